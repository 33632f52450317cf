"""Registers the networks of the genotype zoo and MobileNeXt with timm when it is imported.

    import timm, darts_sg.timm_models
    timm.create_model("darts_v2_cifar10", checkpoint_path="runs/…/weights.safetensors")

A genotype NAME becomes name_cifar10 (C=36, 20 cells) and name_imagenet (C=48, 14 cells), with the options `channels`,
`cells` and, for training, `drop_path_rate`. MobileNeXt of width 1.0 is mobilenext_100 and mobilenext_100_cifar10.
MobileNetV2 is already in timm. There are no pretrained weights; `checkpoint_path` loads weights files of this package.
"""

from collections.abc import Callable, Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import register_model
from torch import Tensor, nn

from darts_sg.analysis.cost import CELLS, CHANNELS, IMAGE_SIZE, NUM_CLASSES
from darts_sg.data.cifar import CIFAR10
from darts_sg.errors import UsageError
from darts_sg.genotype import load_genotype, zoo_names
from darts_sg.networks.derived import DerivedNetwork, NetworkShape
from darts_sg.networks.mobile import MODELS, MobileNetwork

__all__ = ["TimmNetwork"]

SHAPES: tuple[tuple[str, NetworkShape], ...] = (("cifar10", "cifar"), ("imagenet", "imagenet"))
PREFIX = "network."
Build = Callable[..., nn.Module]
"""Builds a network from (num_classes, in_channels, **options); it returns (logits, auxiliary logits or None)."""


class TimmNetwork(nn.Module):
    """A network with timm's interface: images (N, in_channels, H, W) to logits (N, num_classes).

    With num_classes 0 it returns the classifier's input. `load_state_dict` also reads weights files of this package and
    leaves their auxiliary head out.
    """

    def __init__(self, network: nn.Module, classifier: str, num_classes: int, cfg: Mapping[str, Any]) -> None:
        super().__init__()
        self.network, self.classifier = network, classifier
        last = self.get_classifier()
        assert isinstance(last, nn.Linear)
        self.num_features = self.head_hidden_size = last.in_features
        self.pretrained_cfg = self.default_cfg = dict(cfg)
        self.num_classes = num_classes
        if num_classes == 0:
            self.reset_classifier(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[0]

    def get_classifier(self) -> nn.Module:
        return self.network.get_submodule(self.classifier)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by one for `num_classes`, or remove it for 0. `global_pool` can only be `avg`."""
        if global_pool not in (None, "avg"):
            raise UsageError(f"global_pool {global_pool!r}: these networks end in average pooling; leave it out")
        new = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.network.set_submodule(self.classifier, new)
        self.num_classes = num_classes

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        if not any(name.startswith(PREFIX) for name in state_dict):
            own = {name: t for name, t in state_dict.items() if not name.startswith("auxiliary_head.")}
            state_dict = {PREFIX + name: tensor for name, tensor in own.items()}
        return super().load_state_dict(state_dict, strict, assign)


def derived(name: str, shape: NetworkShape) -> Build:
    def build(
        num_classes: int, in_channels: int, channels: int = CHANNELS[shape], cells: int = CELLS[shape],
        drop_path_rate: float = 0.0,
    ) -> nn.Module:  # fmt: skip
        network = DerivedNetwork(
            load_genotype(name), network=shape, channels=channels, cells=cells, num_classes=num_classes,
            in_channels=in_channels,
        )  # fmt: skip
        network.set_drop_path_prob(drop_path_rate)
        return network

    return build


def mobile(name: str, shape: NetworkShape) -> Build:
    return lambda num_classes, in_channels: MobileNetwork(
        MODELS[name], network=shape, num_classes=num_classes, in_channels=in_channels
    )


def add(name: str, build: Build, shape: NetworkShape, classifier: str) -> None:
    """Register the network with timm under `name`."""
    mean, std = (CIFAR10.mean, CIFAR10.std) if shape == "cifar" else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    cfg = {
        "num_classes": NUM_CLASSES[shape],
        "input_size": (3, IMAGE_SIZE[shape], IMAGE_SIZE[shape]),
        "mean": mean,
        "std": std,
        "crop_pct": 1.0 if shape == "cifar" else 0.875,
        "classifier": PREFIX + classifier,
    }

    def create(
        pretrained: bool = False, pretrained_cfg: Any = None, pretrained_cfg_overlay: Any = None, cache_dir: Any = None,
        num_classes: int = NUM_CLASSES[shape], in_chans: int = 3, drop_rate: float | None = None, **options: Any,
    ) -> TimmNetwork:  # fmt: skip
        if pretrained:
            raise UsageError(f"{name} has no pretrained weights; give a weights.safetensors as checkpoint_path")
        network = build(num_classes or 1, in_chans, **options)
        dropouts = [module for module in network.modules() if isinstance(module, nn.Dropout)]
        if drop_rate and not dropouts:
            raise UsageError(f"drop_rate {drop_rate}: {name} has no dropout; leave it out")
        for dropout in dropouts:
            dropout.p = dropout.p if drop_rate is None else drop_rate
        return TimmNetwork(network, classifier, num_classes, cfg)

    create.__name__ = create.__qualname__ = name
    default_cfgs[name] = cfg
    register_model(create)


default_cfgs: dict[str, dict[str, Any]] = {}  # timm looks up this name in the module
for _suffix, _shape in SHAPES:
    for _name in zoo_names():
        add(f"{_name.lower()}_{_suffix}", derived(_name, _shape), _shape, "head.classifier")
    for _name in MODELS:
        _model = MODELS[_name]
        if not _name.startswith("mobilenetv2"):
            _divisor = f"_id{_model.identity_divisor}" if _model.identity_divisor > 1 else ""
            _timm_name = f"{_name.partition('_')[0]}_{round(100 * _model.width):03d}{_divisor}"
            _timm_name += "_cifar10" if _shape == "cifar" else ""
            add(_timm_name, mobile(_name, _shape), _shape, "classifier.1")
