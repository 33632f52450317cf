"""The options of both jobs with their help and validation, and the named recipes.

The text under a field is its help. Later sources override earlier ones: the defaults here, a recipe, a YAML file,
the command line or Python keywords. `make_config` puts them together; all values go through the typed reader of
options.py. A config made directly, `SearchConfig(recipe="pc-darts")`, is read, and completed from its recipe, too.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import docstring_parser

from darts_sg import plugins
from darts_sg.baselines import STRATEGIES, Strategy
from darts_sg.baselines.gradient import Gradient
from darts_sg.data.rand_augment import MAX_MAGNITUDE
from darts_sg.errors import UsageError, cut, quoted
from darts_sg.genotype import MOST_NODES
from darts_sg.methods.auxiliary_skips import AUXILIARY_SKIPS
from darts_sg.methods.method import Method, method_of
from darts_sg.methods.operation_freezing import OPERATION_FREEZING
from darts_sg.methods.parts import build_part, describe_parts
from darts_sg.methods.perturbations import PERTURBATIONS
from darts_sg.methods.regularizers import REGULARIZERS
from darts_sg.methods.relaxations import RELAXATIONS
from darts_sg.methods.selection import SELECTIONS
from darts_sg.methods.stages import STAGE_PLANS
from darts_sg.methods.weight_regularizers import WEIGHT_REGULARIZERS
from darts_sg.networks.derived import NetworkShape
from darts_sg.networks.mobile import find_model
from darts_sg.networks.skeleton import MOST_CELLS, MOST_CHANNELS
from darts_sg.networks.ssdlite import PriorStyle
from darts_sg.ops import OPERATIONS
from darts_sg.options import flag, read_options
from darts_sg.quantity import parse_quantity
from darts_sg.registry import Registry, unknown_name
from darts_sg.spaces import parse_space
from darts_sg.tasks import DEFAULT_TASK, TASKS, task_of
from darts_sg.yaml_files import read_mapping

OF_ALPHAS = (
    "hypergradient", "penalty", "target_params", "target_macs", "target_latency", "latency_table", "recompute",
    "relaxation", "regularizer",
    "perturbation", "auxiliary_skip", "weight_regularizer", "freeze_operations", "drop_path_prob", "selection",
    "partial_channels", "stages", "edge_normalization", "alpha_frozen_epochs", "eigenvalue_every", "stop_eigenvalue",
    "stop_skips", "compile",
)  # fmt: skip
"""Options that only a search by the gradient of alphas has."""
RECIPES = Path(__file__).parent / "recipes"
LARGEST_SIDE = 2**15  # pixels; Pillow refuses images that are larger
MOST_OPERATIONS = 14  # of RandAugment on one image: as many as there are
MOST_THREADS = 1024  # more than any machine has cores; the system may end a process that asks for too many


def option(
    default: Any,
    group: str,
    *,
    free: bool = False,
    infinite: bool = False,
    compared: bool | None = None,
    parts: Registry[Any] | None = None,
    joined: bool = False,
    common: bool = False,
) -> Any:
    """A field with its help group.

    free: it does not change the result and may differ when a run is resumed.
    infinite: the number may be .inf.
    compared: runs that differ in it are not pooled into one mean. Default: every option that is not free.
    parts: the registry of the parts of a method that the option names; its help ends with them.
    joined: it holds several names joined with +; on a command line it may also be given several times.
    common: --help shows it; --help-all shows every option.
    """
    metadata = {
        "group": group,
        "free": free,
        "infinite": infinite,
        "compared": not free if compared is None else compared,
        "parts": parts,
        "joined": joined,
        "common": common,
    }
    return field(default=default, metadata=metadata)


class ConfigType(type):
    """The class of config classes: reads the keywords before an instance is made, so that the instance can be frozen.

    Values are typed (a path may be given as a text), and options that are left out come from the recipe, if one is
    named, or are the defaults.
    """

    def __call__(cls, **options: Any) -> Any:
        return super().__call__(**cls.completed(options))  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class RunConfig(metaclass=ConfigType):
    """Options that search and augment have in common."""

    recipe: str = option("", "Run", compared=False, common=True)
    """Named set of options to start from; options given explicitly override it."""
    run_dir: Path | None = option(None, "Output", free=True, common=True)
    """Folder for this run. It must not exist yet, except with torchrun --max-restarts, which continues a run with the
    same options. Default: a new folder under runs/."""
    seed: int = option(0, "Run", compared=False, common=True)
    """Seed of all random numbers: the same seed gives the same bits on the same machine."""
    device: str = option("auto", "Machine", free=True, common=True)
    """Device to run on: cpu, cuda, cuda:1, mps, …; auto takes a GPU if there is one. With several processes (torchrun)
    each takes its own GPU."""
    threads: int | None = option(None, "Machine", free=True)
    """CPU threads per process. The last bits of a result depend on it, so a resumed run keeps its own. Default: one per
    core, with torchrun one."""
    time_budget: float | None = option(None, "Run", free=True, infinite=True, common=True)
    """Minutes after the start of the process at which the run saves a checkpoint and exits; continue it with
    --resume."""
    checkpoint_minutes: float = option(10.0, "Output", free=True, infinite=True)
    """Minutes between checkpoints within an epoch. Each epoch ends with a checkpoint in any case."""
    logger: str = option("", "Output", free=True, joined=True)
    """Logger beside metrics.csv and TensorBoard, which are always on: wandb (Weights & Biases) or mlflow; may be given
    several times, or names joined with +. Each needs its package: pip install 'darts_sg[wandb]'. A logger that fails
    does not end the run."""

    plugin: str = option("", "Run", free=True)
    """Python file that adds operations, spaces, data sets, relaxations, regularizers or loggers; may be given several
    times, or files joined with +. Its code is executed with your rights: load only files that you trust. The run
    records name and hash, and a resumed run loads the same files by itself."""

    task: str = option(DEFAULT_TASK, "Data")
    """What the network is trained for: classification (one label for each image) or detection (boxes and classes of the
    objects in it, by SSDLite)."""
    dataset: str = option("cifar10", "Data", common=True)
    """Data set; folder: class folders of your own images; voc, coco, yolo: images with objects in boxes, in the layout
    of that name; synthetic: rendered figures, always there."""
    data: Path = option(Path("data"), "Data", free=True, common=True)
    """Folder of the data set, and where to download it."""
    data_note: str = option("", "Data")
    """Remark to print beside every figure measured on this data, such as 'CIFAR-10 (JPEG q75)'."""
    image_size: int | None = option(None, "Data")
    """Side in pixels to resize the images of --dataset folder, imagenet, voc, coco or yolo to. Default: chosen from the
    images; 224 for imagenet; 320 for images with boxes."""
    workers: int | None = option(None, "Data", free=True)
    """Worker processes that prefetch the files of --dataset imagenet, voc, coco or yolo, per stream of batches; 0 for
    none. Fewer start where their batches would take more than 1/8 of the available memory. Default: one per core."""
    damaged: Literal["skip", "stop"] = option("skip", "Data", free=True)
    """How to treat an image of --dataset imagenet, voc, coco or yolo that cannot be decoded. skip: report it, train on
    the next image instead, leave it out of the test. stop: report it and end the run."""
    split_seed: int = option(0, "Data")
    """Seed of the test part that --dataset folder, voc, coco or yolo splits off where there is none. It belongs to the
    data: runs with different --seed test on the same images."""
    reduced_decoding: bool = option(False, "Data")
    """Decode the JPEGs of --dataset imagenet, voc, coco or yolo at 1/2, 1/4 or 1/8 of their size where that is still
    larger than the crop: faster, with slightly different pixels."""
    train_images: int | None = option(None, "Data")
    """Number of training images, a seeded, class-balanced subset. Default: all."""
    validation_images: int | None = option(None, "Data")
    """Number of images held out of the training set for validation, class-balanced."""
    cutout_length: int = option(0, "Data")
    """Side in pixels of the square cut out of each training image; 0 for none."""
    colour_jitter: float = option(0.0, "Data")
    """Strength of colour jitter on training images: brightness, contrast and saturation change by factors within 1 ±
    this, the hue by up to half of it (in turns), in random order. 0 for none."""

    epochs: int = option(1, "Training", common=True)
    """Number of epochs."""
    batch_size: int = option(64, "Training", common=True)
    """Images in a batch; the last batch of an epoch takes the remaining images. With several processes (torchrun) each
    computes its share, so neither this nor the learning rate depends on their number."""
    learning_rate: float = option(0.025, "Training")
    """Learning rate of the weights in the first epoch."""
    learning_rate_min: float = option(0.0, "Training")
    """Final learning rate of the schedule."""
    momentum: float = option(0.9, "Training")
    """Momentum of the weights' SGD."""
    nesterov: bool = option(False, "Training")
    """Use Nesterov's momentum for the weights."""
    weight_decay: float = option(3e-4, "Training")
    """Weight decay of the weights."""
    gradient_clip: float = option(5.0, "Training", infinite=True)
    """Clip the norm of the weights' gradient to this; .inf for no clipping."""

    precision: Literal["float32", "bfloat16"] = option("float32", "Machine")
    """Precision of the training steps: float32, or bfloat16 where PyTorch's autocast allows it (for GPUs; a CPU gains
    nothing). Weights, losses and evaluation stay in float32."""
    compile: bool = option(False, "Machine")
    """Compile with torch.compile: in augment the network, which takes about a minute; in a search each batch of edges,
    which on a CPU takes long and gains nothing. Changes the last bits of the result."""

    capture: bool = option(True, "Machine", free=True)
    """On a CUDA GPU, capture the launches of a training step as a CUDA graph and replay it: the same bits, without
    waiting for Python. Steps with --compile, hard samples, --weight-regularizer, --freeze-operations or dropout after
    skip connections are launched one kernel at a time; those of several processes, too, without --capture-ranks."""
    capture_ranks: bool = option(False, "Machine", free=True)
    """Capture the steps of several processes, too, with the collectives of NCCL inside. Not tried on GPUs yet."""
    kernels: Literal["auto", "native", "pytorch"] = option("auto", "Machine", free=True)
    """Kernels for the operations of cells and the blocks of models. native: C++ on a CPU, Triton in a search on a CUDA
    GPU, compiled at the first run and checked against PyTorch before use. pytorch: PyTorch's own. auto: native where
    there is a C++ compiler, or Triton. The last bits of a result depend on it, so a resumed run keeps its own."""

    def __post_init__(self) -> None:
        plugins.load_all(self.plugin)
        for name in ("epochs", "batch_size", "image_size", "train_images", "validation_images", "threads"):
            self._at_least(name, 1)
        for name in (
            "cutout_length", "colour_jitter", "workers", "seed", "split_seed", "learning_rate_min", "momentum",
            "weight_decay",
        ):  # fmt: skip
            self._at_least(name, 0)
        for name, most in (
            ("threads", MOST_THREADS), ("workers", MOST_THREADS), ("seed", 2**63 - 1), ("split_seed", 2**63 - 1),
            ("nodes", MOST_NODES), ("cells", MOST_CELLS),
            ("channels", MOST_CHANNELS), ("stem_multiplier", MOST_CHANNELS), ("partial_channels", MOST_CHANNELS),
            ("cutout_length", LARGEST_SIDE), ("image_size", LARGEST_SIDE),
        ):  # fmt: skip
            value = getattr(self, name, None)
            if isinstance(value, int) and value > most:
                raise UsageError(f"{flag(name)} must be at most {most}, found {value}")
        for name in ("learning_rate", "gradient_clip", "time_budget", "checkpoint_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{flag(name)} must be above 0, found {value}")
        if self.nesterov and not self.momentum:
            raise UsageError("--nesterov needs momentum: leave it out, or give --momentum above 0")
        self._check_task()

    @classmethod
    def completed(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords of a new instance: `given` as typed values, over those of the recipe that is given."""
        options = read_options(cls, given, cls.__name__)
        job = next((job for job, config in JOBS.items() if config is cls), None)
        if job is not None and "recipe" in options and len(options) < len(fields(cls)):
            return load_recipe(job, options["recipe"]) | options
        return options

    def _check_task(self) -> None:
        """UsageError for an unknown task, or an option that is for another one."""
        own = getattr(TASKS[self.task], "own_options", ())
        for task in TASKS:
            for f in fields(self):
                value = getattr(self, f.name)
                if f.name in getattr(TASKS[task], "own_options", ()) and f.name not in own and value != f.default:
                    raise UsageError(f"{flag(f.name)} {value} is for --task {task}, not for {self.task}; leave it out")
        task_of(self.as_dict())

    def _at_least(self, name: str, least: float) -> None:
        value = getattr(self, name)
        if value is not None and not value >= least:
            raise UsageError(f"{flag(name)} must be at least {least}, found {value}")

    def as_dict(self) -> dict[str, Any]:
        """The options as plain values for YAML, in order."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: str(v) if isinstance(v, Path) else v for name, v in plain.items()}


@dataclass(frozen=True, kw_only=True)
class SearchConfig(RunConfig):
    """Options of the search (defaults: DARTS paper, appendix A.1.1, first order)."""

    recipe: str = option("darts-first", "Run", compared=False, common=True)
    train_images: int | None = option(None, "Data")
    """Number of images to train the weights on, a seeded, class-balanced part. Default: what --validation-images
    leaves, or half of the training set."""
    validation_images: int | None = option(None, "Data")
    """Number of images to train the alphas on, disjoint from the others. Default: as many as --train-images, or
    half."""
    split: Path | None = option(None, "Data", free=True)
    """File that lists the images of --dataset imagenet for the weights and for the alphas (see python -m darts_sg data
    subset). The run keeps a copy."""
    epochs: int = option(50, "Training", common=True)
    learning_rate_min: float = option(0.001, "Training")
    cutout_schedule: Literal["constant", "linear"] = option("constant", "Data")
    """constant: --cutout-length cuts each training image. linear: with a probability that grows by epoch from 0 to 1
    (R-DARTS)."""
    drop_path_prob: float | None = option(None, "Training")
    """Probability of drop path on the edges of the supernet in the last epoch; it grows linearly from 0 (R-DARTS).
    Default: none."""
    network: NetworkShape = option("cifar", "Network")
    """Shape of the supernet, and of the derived network that --penalty and the targets measure. cifar: stem at full
    resolution. imagenet: stem of three convolutions that reduces by 8, as in PC-DARTS on ImageNet."""
    channels: int = option(16, "Network")
    """Channels C of the first cells."""
    cells: int = option(8, "Network")
    """Number of cells; those at 1/3 and 2/3 of the depth are reduction cells."""

    space: str = option("darts+sandglass", "Search", common=True)
    """Candidate operations: named spaces and single operations joined with + (see python -m darts_sg spaces)."""
    nodes: int = option(4, "Search")
    """Nodes of a cell."""
    stem_multiplier: int = option(3, "Search")
    """Channels of the stem of the cifar shape, as a multiple of --channels."""
    strategy: str = option("gradient", "Search", parts=STRATEGIES)
    """How to search: by the gradient of alphas, or a baseline without them, such as random:epochs=5 or
    evolution:score=synflow. Candidates are networks of --channels and --cells, and --epochs is the budget of all."""
    hypergradient: str = option("first_order", "Method")
    """How to compute the gradient of the alphas: first_order, unrolled (second order), or single_level: weights and
    alphas learn from the same batch in one pass, by default of all training images (SNAS). --validation-images are then
    only evaluated on."""
    penalty: str = option("", "Method")
    """Penalty on the expected size or latency of the derived network, added to the loss of the alphas: params:WEIGHT,
    macs:WEIGHT or latency:WEIGHT, such as params:0.1. The weight multiplies the expected size relative to that of
    uniform mixing weights; with a target, the excess relative to the target. Sizes are for CIFAR at C=36, 20 cells,
    ImageNet at C=48, 14 cells; latencies for the shape of --latency-table."""
    target_params: str = option("", "Search", common=True)
    """Upper bound on the parameters of the derived network, such as 2.45M. The genotype is derived within the bound,
    and a penalty of weight 1 (or that of --penalty) steers towards it."""
    target_macs: str = option("", "Search")
    """Upper bound on the multiply-adds (MACs) of the derived network, such as 600M; works as --target-params."""
    target_latency: str = option("", "Search")
    """Upper bound on the latency of the derived network by --latency-table, such as 12ms; works as --target-params."""
    latency_table: Path | None = option(None, "Search", free=True, compared=True)
    """Table of measured latencies, for --penalty latency:WEIGHT and --target-latency (see python -m darts_sg
    latency-table). The run keeps a copy."""
    recompute: bool = option(False, "Machine", free=True)
    """Recompute each cell in the backward pass instead of keeping its activations: a fraction of the memory, the same
    bits, somewhat more time."""
    relaxation: str = option("softmax", "Method", parts=RELAXATIONS)
    """How alphas become mixing weights: NAME, or NAME:OPTION=VALUE,OPTION=VALUE such as
    gumbel:temperature=10,hard=true."""
    regularizer: str = option("", "Method", parts=REGULARIZERS, joined=True)
    """Terms added to the loss of the alphas, joined with +: params:weight=0.1,target=2.45M."""
    perturbation: str = option("none", "Method", parts=PERTURBATIONS)
    """How the mixing weights are perturbed in the step of the weights: random:epsilon_end=0.3, or adversarial."""
    auxiliary_skip: str = option("none", "Method", parts=AUXILIARY_SKIPS)
    """Second skip connection on each edge, which the alphas do not weigh and the genotype does not have (DARTS-):
    linear."""
    weight_regularizer: str = option("none", "Method", parts=WEIGHT_REGULARIZERS)
    """Term beside the loss in the step of the weights, of which only a gradient is computed:
    alignment:strength=0.25."""
    freeze_operations: str = option("none", "Method", parts=OPERATION_FREEZING)
    """When the weights of an operation stop learning while it goes on computing: oles:threshold=0.4,window=20."""
    selection: str = option("argmax", "Method", parts=SELECTIONS)
    """How the genotype is chosen by the mixing weights: skip-limit:most=2. With --target-params or --target-macs argmax
    becomes bounded."""
    partial_channels: int = option(1, "Method")
    """K: 1/K of the channels pass through the candidate operations, the others bypass them (PC-DARTS)."""
    stages: str = option("single", "Method", parts=STAGE_PLANS)
    """Stages of the search, with supernets that grow while operations are pruned: p-darts, drnas-progressive. --epochs
    are those of all stages, --cells those of the last."""
    edge_normalization: bool = option(False, "Method")
    """Learn a weight for each edge as well as for its operations (PC-DARTS)."""
    alpha_learning_rate: float = option(3e-4, "Alphas")
    """Learning rate of the alphas' Adam."""
    alpha_beta1: float = option(0.5, "Alphas")
    """Decay of the first moment in the alphas' Adam."""
    alpha_beta2: float = option(0.999, "Alphas")
    """Decay of the second moment in the alphas' Adam."""
    alpha_gradient_clip: float = option(math.inf, "Alphas", infinite=True)
    """Clip the norm of the alphas' gradient to this; .inf for no clipping."""
    alpha_mean: float | None = option(None, "Alphas")
    """Mean of the normal distribution that the initial alphas are drawn from. Default: that of the relaxation, 0."""
    alpha_deviation: float | None = option(None, "Alphas")
    """Standard deviation of the initial alphas. Default: that of the relaxation, 0 for sigmoid, otherwise 1e-3."""
    alpha_weight_decay: float = option(1e-3, "Alphas")
    """Weight decay of the alphas."""
    alpha_frozen_epochs: int = option(0, "Alphas")
    """Number of epochs at the start in which only the weights are trained."""
    eigenvalue_every: int = option(0, "Early stopping", free=True)
    """Measure the dominant eigenvalue of the validation loss's Hessian with respect to the alphas every N epochs and
    after the last; 0 for never. A growing eigenvalue announces a collapse of the search (RobustDARTS). Measured on one
    fixed batch of at most 64 validation images, in float64; does not change the run. Costs about 10 steps of the same
    batch size with the native kernels, several times more with --kernels pytorch on a CPU."""
    stop_eigenvalue: float | None = option(None, "Early stopping")
    """Stop early when old eigenvalue / new eigenvalue falls below this ratio, and return the genotype of the old epoch.
    Both are means over 5 epochs, 5 epochs apart; not before epoch 11. RobustDARTS: 0.75. Needs --eigenvalue-every 1.
    Default: never."""
    stop_skips: int | None = option(None, "Early stopping")
    """Stop early when the normal cell derived after an epoch has more skip connections than this, and return the last
    genotype within the limit. A search that starts above the limit continues. Default: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("channels", "nodes", "stem_multiplier", "partial_channels"):
            self._at_least(name, 1)
        if self.split is not None and (self.train_images or self.validation_images):
            raise UsageError("--split says which images are used: leave --train-images and --validation-images out")
        self._at_least("cells", 3)
        for name in (
            "alpha_frozen_epochs", "alpha_learning_rate", "alpha_weight_decay", "alpha_deviation", "eigenvalue_every",
            "stop_skips",
        ):  # fmt: skip
            self._at_least(name, 0)
        if not self.alpha_gradient_clip > 0:
            raise UsageError(f"--alpha-gradient-clip must be above 0, found {self.alpha_gradient_clip}")
        for name in ("alpha_beta1", "alpha_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{flag(name)} must be from 0 up to, not including, 1: {getattr(self, name)}")
        if self.stop_eigenvalue is not None:
            if not 0 < self.stop_eigenvalue < 1:
                raise UsageError(f"--stop-eigenvalue must be between 0 and 1, such as 0.75: {self.stop_eigenvalue}")
            if self.eigenvalue_every != 1:
                raise UsageError(
                    f"--stop-eigenvalue {self.stop_eigenvalue} needs the eigenvalue of every epoch: add "
                    "--eigenvalue-every 1"
                )
        if not task_of(self.as_dict()).searchable:
            raise UsageError(
                f"--task {self.task}: a search trains a classifier; search on labelled images, then train the genotype "
                f"for {self.task} with augment"
            )
        space = parse_space(self.space)
        if space.num_nodes not in (None, self.nodes):
            raise UsageError(
                f"--nodes {self.nodes}: space {space.name} has lists for the edges of {space.num_nodes} nodes; give "
                f"--nodes {space.num_nodes}"
            )
        random = [name for name in space.operations if OPERATIONS[name].is_random]
        if self.recompute and random:
            raise UsageError("--recompute would draw the noise of an operation a second time; leave it out")
        if self.recompute and self.method().has_skip_dropout:
            raise UsageError(
                f"--recompute would draw the dropout of --stages {cut(self.stages)} a second time; leave it out, or "
                "give p-darts:dropout=0/0/0"
            )
        if random and self.method().weight_regularizer.needed:
            raise UsageError(
                f"--weight-regularizer {cut(self.weight_regularizer)} takes the difference of two passes, and the "
                f"operation {random[0]} draws anew in each; leave one of them out"
            )
        if self.cutout_schedule == "linear" and not self.cutout_length:
            raise UsageError("--cutout-schedule linear has nothing to cut: add --cutout-length, such as 16")
        self.method()
        if self.baseline() is not None:
            self._refuse_alphas()

    def method(self) -> Method:
        """The search method that the options name; UsageError if there is no such one."""
        return method_of(self)

    def baseline(self) -> Strategy | None:
        """The strategy of a search without alphas; None for one by their gradient. UsageError if there is none."""
        found = build_part(STRATEGIES, self.strategy, "--strategy")
        return None if isinstance(found, Gradient) else found

    def _refuse_alphas(self) -> None:
        """UsageError if an option of the search by gradient is given beside another strategy."""
        defaults = {f.name: f.default for f in fields(self)}
        for name in OF_ALPHAS:
            if (value := getattr(self, name)) != defaults[name]:
                way_out = "choose another recipe" if name in load_recipe("search", self.recipe) else "leave it out"
                given = str(value).lower() if isinstance(value, bool) else value
                raise UsageError(
                    f"{flag(name)} {given} is for a search by gradient, not for --strategy {cut(self.strategy)}; "
                    f"{way_out}"
                )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(RunConfig):
    """Options of augment, which trains the network of a genotype or a model (defaults: DARTS paper, appendix A.1.2).

    The options in CELL_DEFAULTS apply to the cells of a genotype: None for a model.
    """

    recipe: str = option("darts", "Run", compared=False, common=True)
    genotype: str = option("", "Network", compared=False, common=True)
    """Genotype to train: a name of the zoo (see python -m darts_sg genotype list), the path of a file, hf://user/name
    or a URL."""
    model: str = option("", "Network", common=True)
    """Model to train instead of a genotype: mobilenext_1.0, mobilenetv2_0.5, … (see python -m darts_sg models). Models
    have no cells, no auxiliary head and no drop path."""
    finetune: str = option("", "Network", common=True)
    """Weights file (weights.safetensors of an earlier run), run folder, hf://user/name or URL to start from, on another
    data set or with other options. The network is the file's; its output layer is new if the task or the number of
    classes differs. A classifier becomes the backbone of a detector. Published checkpoints (.pth, .tar) of MobileNeXt
    and of torchvision's MobileNetV2 are read, too."""
    network: NetworkShape = option("cifar", "Network")
    """Shape of the network. cifar: stem at full resolution; a model ends at 1/8 of the resolution. imagenet: the stem
    of cells reduces by 8; a model ends at 1/32 of the resolution."""
    channels: int | str | None = option(None, "Network", common=True)
    """Channels C of the first cells of a genotype; auto:600M takes the widest network within 600M MACs. Default: 36."""
    cells: int | None = option(None, "Network")
    """Number of cells of a genotype; those at 1/3 and 2/3 of the depth are reduction cells. Default: 20."""
    epochs: int = option(600, "Training", common=True)
    batch_size: int = option(96, "Training", common=True)
    cutout_length: int = option(16, "Data")
    validation_images: int | None = option(None, "Data")
    """Number of training images to hold out for choosing the best epoch. Default: none; the best epoch is then chosen
    on the test set, and the results say so."""
    schedule: Literal["cosine", "linear", "exponential", "step"] = option("cosine", "Training")
    """Schedule of the learning rate from --learning-rate to --learning-rate-min: half a cosine, a straight line, or the
    same factor each epoch. step: a tenth after 2/3, and again after 5/6 of the epochs."""
    warmup_epochs: int = option(0, "Training")
    """Number of epochs at the start over which the learning rate rises linearly to --learning-rate; the schedule
    follows from there."""
    learning_rate_batch: int | None = option(None, "Training")
    """Reference batch size of the learning rates: they are scaled by --batch-size over this. Default: no scaling."""
    keep_every: int | None = option(None, "Output", free=True)
    """Also keep weights and checkpoint every N epochs: weights_epoch_0010.safetensors and so on, and
    checkpoints/epoch_0010_step_000000.pt. --resume continues from the newest checkpoint; to go back to an earlier one,
    remove the newer ones and result.json; the run then removes what later epochs have left. Default: the weights of
    the last and the best epoch, and the newest two checkpoints."""
    label_smoothing: float = option(0.0, "Training")
    """Share of each label to spread over all classes in the training loss, including the reported one."""
    mixup: float = option(0.0, "Data")
    """Mix training images and their labels in pairs, in proportions from Beta(α, α) of this α, such as 0.2 (mixup). 0
    for none."""
    cutmix: float = option(0.0, "Data")
    """Replace a rectangle of each training image by that of another one, and its share of the label, with areas from
    Beta(α, α) of this α, such as 1 (CutMix). 0 for none; with --mixup each image takes one of them at random."""
    rand_augment: int = option(0, "Data")
    """Number N of random operations on each training image, such as 2: contrast, colours, shears, shifts, rotations and
    so on (RandAugment). 0 for none."""
    rand_augment_magnitude: int = option(9, "Data")
    """Strength M of the operations of --rand-augment, from 0 to 30."""
    random_erasing: float = option(0.0, "Data")
    """Probability with which a random rectangle of a training image is set to the mean, such as 0.25. 0 for none."""
    auxiliary_weight: float | None = option(None, "Training")
    """Weight of the auxiliary head's loss, for a genotype; 0 for no auxiliary head. Default: 0.4."""
    detector: PriorStyle = option("authors", "Network")
    """Prior boxes and heads of a detector. authors: those of MobileNeXt's authors. torchvision: sides from 0.2 to 0.95
    of the image, separable heads on all levels, more candidates in the test."""
    box_augment: str = option("ssd", "Data")
    """Augmentation of the training images of a detector. ssd: colours, expansion, crops and flips as in SSD. crop:
    crops and flips as in torchvision's SSDLite. mirror: flips only. none: only brought to size."""
    freeze_backbone: bool = option(False, "Training")
    """Train only the extra levels and heads of a detector: the weights and BatchNorm statistics of the backbone stay
    those of --finetune."""
    sync_batchnorm: bool = option(False, "Machine")
    """On several GPUs, normalise by the statistics of the whole batch instead of each process's share."""
    ema: float = option(0.0, "Training")
    """Decay of an exponential moving average (EMA) of the weights and BatchNorm statistics, updated after each step and
    tested alongside the weights: 0.9999 averages over about the last 10,000 steps. 0 for none."""
    drop_path_prob: float | None = option(None, "Training")
    """Probability of drop path in the last epoch, in the cells of a genotype; it grows linearly from 0. Default:
    0.2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.genotype and self.model:
            raise UsageError(f"--genotype {self.genotype} and --model {self.model}: give one of them")
        if self.model:
            find_model(self.model)
        elif not self.genotype:
            raise UsageError(
                "which network? Give --genotype NAME_OR_PATH (python -m darts_sg genotype list), --model NAME "
                "(python -m darts_sg models) or --finetune FILE"
            )
        for name in CELL_DEFAULTS:
            value = getattr(self, name)
            if self.model and value is not None:
                way_out = "choose another recipe" if name in load_recipe("augment", self.recipe) else "leave it out"
                raise UsageError(f"{flag(name)} {value} is for genotypes, --model {self.model} has no cells; {way_out}")
        if self.freeze_backbone and not self.finetune:
            raise UsageError("--freeze-backbone keeps the weights of --finetune; give a file to start from")
        if self.max_macs() is None:
            self._at_least("channels", 1)
        for name, most in (("rand_augment", MOST_OPERATIONS), ("rand_augment_magnitude", MAX_MAGNITUDE)):
            self._at_least(name, 0)
            if getattr(self, name) > most:
                raise UsageError(f"{flag(name)} must be at most {most}, found {getattr(self, name)}")
        if self.rand_augment_magnitude != AugmentConfig.rand_augment_magnitude and not self.rand_augment:
            raise UsageError("--rand-augment-magnitude is for --rand-augment: add --rand-augment 2, or leave it out")
        if not self.random_erasing <= 1:
            raise UsageError(f"--random-erasing is a probability, from 0 to 1: {self.random_erasing}")
        if self.schedule == "exponential" and not self.learning_rate_min:
            raise UsageError("--schedule exponential never gets to 0: give --learning-rate-min, such as 1e-4")
        for name, least in (
            ("cells", 3), ("keep_every", 1), ("learning_rate_batch", 1), ("auxiliary_weight", 0), ("warmup_epochs", 0),
            ("mixup", 0), ("cutmix", 0), ("random_erasing", 0),
        ):  # fmt: skip
            self._at_least(name, least)
        for name in ("drop_path_prob", "label_smoothing", "ema"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UsageError(f"{flag(name)} must be from 0 up to, not including, 1: {value}")

    @classmethod
    def completed(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords of a new instance, with the defaults of the cells where a genotype is trained."""
        options = super().completed(given)
        if not options.get("model"):
            defaults = dict(CELL_DEFAULTS)
            if not getattr(TASKS[options.get("task") or DEFAULT_TASK], "has_auxiliary", True):
                defaults["auxiliary_weight"] = 0.0
            options |= {name: default for name, default in defaults.items() if options.get(name) is None}
        return options

    @property
    def num_channels(self) -> int | None:
        """--channels where it is a number; None for a model."""
        return self.channels if isinstance(self.channels, int) else None

    def max_macs(self) -> int | None:
        """The bound in --channels auto:BOUND; None for a number of channels. UsageError if it is neither."""
        if not isinstance(self.channels, str):
            return None
        word, _, bound = self.channels.partition(":")
        try:
            return parse_quantity("", bound if word == "auto" else "")
        except UsageError:
            raise UsageError(
                f"--channels {cut(self.channels)}: expected a number, or auto:600M for the widest network of 600M MACs"
            ) from None


CELL_DEFAULTS: dict[str, Any] = {"channels": 36, "cells": 20, "auxiliary_weight": 0.4, "drop_path_prob": 0.2}

JobName = Literal["search", "augment"]
JOBS: dict[JobName, type[RunConfig]] = {"search": SearchConfig, "augment": AugmentConfig}


def compared_options(job: JobName) -> dict[str, Any]:
    """The options that runs of `job` must share to be pooled, each with its default.

    A run folder that is older than an option lacks it: such a run had the default.
    """
    compared = {f.name: f.default for f in fields(JOBS[job]) if f.metadata["compared"]}
    return {
        name: CELL_DEFAULTS.get(name, default) if job == "augment" else default for name, default in compared.items()
    }


def help_texts(config: type[Any]) -> dict[str, str]:
    """The help of each field: the text under it, in the class or in the one it inherits from."""
    texts: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        if dataclasses.is_dataclass(cls):
            for parameter in docstring_parser.parse_from_object(cls).params:
                texts[parameter.arg_name] = " ".join((parameter.description or "").split())
    for f in fields(config):
        if (parts := f.metadata["parts"]) is not None:
            texts[f.name] += f" Choices: {describe_parts(parts)}."
    return texts


def default_options(job: JobName) -> dict[str, Any]:
    """Every option of a job with its default."""
    return {f.name: f.default for f in fields(JOBS[job])}


def make_config(
    job: JobName, recipe: str | None = None, *, base: Mapping[str, Any] | None = None, **options: Any
) -> RunConfig:
    """The config of a job: `options` over those of a recipe (by default the job's own), or over `base` instead.

    Values may be texts, as on a command line or in a YAML file. Raises UsageError for what is wrong with them.
    """
    given = known_options(job, options, f"{job}()")
    if recipe is not None:
        given["recipe"] = recipe
    if base is None:
        base = starting_options(job, given.get("recipe"))
    return JOBS[job](**{**default_options(job), **base, **given})


def starting_options(job: JobName, recipe: str | None = None, file: Path | None = None) -> dict[str, Any]:
    """The options that a recipe and a YAML file over it set; a recipe named here overrides one named in the file."""
    given = {} if file is None else load_options(job, file)
    name = recipe or given.get("recipe") or default_recipe(job)
    return load_recipe(job, name) | given | {"recipe": name}


def recipe_names(job: JobName) -> list[str]:
    """The recipes that have a section for `job`."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml") if job in read_mapping(path))


def default_recipe(job: JobName) -> str:
    """The recipe of a job when none is named."""
    return str(default_options(job)["recipe"])


def load_recipe(job: JobName, name: str) -> dict[str, Any]:
    """The options that a named recipe sets for `job`; UsageError with the choices if there is none."""
    names = recipe_names(job)
    if name not in names:
        raise UsageError(unknown_name(f"{job} recipe", name, names))
    return known_options(job, read_mapping(RECIPES / f"{name}.yaml")[job] or {}, f"recipe {name}")


def load_options(job: JobName, path: Path) -> dict[str, Any]:
    """The options that a YAML file sets for `job`: a mapping of options, or one with a section for each job.

    The config.yaml of a run folder serves as well. Raises UsageError naming file and option.
    """
    content = read_mapping(path, pipe=True)
    if "job" in content and "options" in content:
        if content["job"] != job:
            raise UsageError(f"{path} is the config of a {quoted(content['job'])} run, not of {job}")
        content = with_split_seed(content["options"])
    elif content.keys() <= JOBS.keys():
        content = content.get(job) or {}
    return known_options(job, content, str(path))


def with_split_seed(options: Any) -> Any:
    """The options of a run with the seed of its split: --seed, for a class folder in a run older than --split-seed."""
    if not isinstance(options, Mapping) or options.get("dataset") != "folder" or "split_seed" in options:
        return options
    return {**options, "split_seed": options.get("seed", 0)}


def known_options(job: JobName, given: Any, source: str) -> dict[str, Any]:
    """Options of a job by field name, typed; UsageError naming `source` if one is unknown or does not fit."""
    if isinstance(given, Mapping):  # `recipe: ~` asks for the default recipe
        given = {key: value for key, value in given.items() if key != "recipe" or value is not None}
    return read_options(JOBS[job], given, source)
