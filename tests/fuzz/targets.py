"""What is fuzzed: for each reader a strategy for its input, as bytes, and a function that reads such bytes.

A function returns, or raises one of the errors that users see as one line. Anything else that it raises is a finding.
"""

import contextlib
import gzip
import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from darts_sg import api
from darts_sg.analysis.deriving import derive_genotype
from darts_sg.analysis.latency import read_latency_table
from darts_sg.analysis.report import write_report
from darts_sg.analysis.run_folder import read_run, read_search_epochs
from darts_sg.cli.main import COMMANDS, build_parser
from darts_sg.cli.main import run as run_command
from darts_sg.config import JOBS, make_config
from darts_sg.data import DetectionImages, load_dataset
from darts_sg.data.cifar import CIFAR10
from darts_sg.data.detection.predictions import read_predictions
from darts_sg.data.fashion_mnist import read_idx
from darts_sg.data.folder import median_size, read_image
from darts_sg.data.pickles import load_pickled_dict
from darts_sg.data.split import read_split, split_text
from darts_sg.data.stream import UNREADABLE, ImageFiles, middle_box, read_square
from darts_sg.engine.checkpoint import load_newest, write_torch
from darts_sg.engine.published import read_published
from darts_sg.engine.weights import FORMAT, Metadata, _checksum, read_weights
from darts_sg.errors import UsageError
from darts_sg.fitting.state import FORMAT as FIT_FORMAT
from darts_sg.fitting.state import State
from darts_sg.formats import FORMATS
from darts_sg.genotype import load_genotype, parse_genotype, zoo_names
from darts_sg.networks.build import NetworkPlan, build_network
from darts_sg.plugins import load
from darts_sg.study.check import check_study
from darts_sg.study.file import TEMPLATE, read_study
from darts_sg.study.protocol import PROTOCOLS, read_protocol
from darts_sg.study.results import write_results
from darts_sg.tasks.average_precision import average_precision
from darts_sg.tasks.classified import FILE, Classified, read_classified
from darts_sg.yaml_files import parse_yaml
from tests.analysis.fakes import LATENCY_SPACE, made_up_latencies, varied_search
from tests.data.detection_fakes import (
    BOXES,
    coco_content,
    voc_object,
    voc_xml,
    write_coco,
    write_voc,
    write_yolo,
    yolo_text,
)
from tests.data.fakes import cifar_batch, idx_bytes, write_imagenet
from tests.fuzz.damage import WORDS, as_json, damaged_bytes, damaged_plain
from tests.plugged import plugins_left_behind
from tests.study.small import SMALL
from tests.study.studies import made_up_study

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "plugins"
STUDIES = ROOT / "examples" / "studies"


@dataclass(frozen=True)
class Target:
    """A reader under test."""

    inputs: Callable[[], st.SearchStrategy[bytes]]
    read: Callable[[bytes, Path], object]
    """Reads the input; may write to the folder, which is the same for all inputs of a process."""


TARGETS: dict[str, Target] = {}


def target(inputs: Callable[[], st.SearchStrategy[bytes]]) -> Callable[[Any], Any]:
    """Register a function as the reader of inputs from this strategy, under its name."""

    def add(read: Callable[[bytes, Path], object]) -> Callable[[bytes, Path], object]:
        TARGETS[read.__name__] = Target(cache(inputs), read)
        return read

    return add


# --- texts ------------------------------------------------------------------------------------------------------------


def genotype_texts() -> st.SearchStrategy[bytes]:
    sound = []
    for name in zoo_names():
        for form in FORMATS:
            with contextlib.suppress(UsageError):  # not every genotype fits every format
                sound.append(load_genotype(name).to_text(form).encode())
    return damaged_bytes(sound)


@target(genotype_texts)
def genotypes(content: bytes, folder: Path) -> None:
    path = folder / "genotype.yaml"
    path.write_bytes(content)
    parse_genotype(load_genotype(path).to_yaml())


def yaml_texts() -> st.SearchStrategy[bytes]:
    config = yaml.safe_dump(make_config("search").as_dict())
    bomb = "a: &a [1]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{f'*{chr(97 + i)},' * 9}]\n" for i in range(9))
    endless = "epochs: &a [*a]"
    nested = "epochs: " + "[" * 3000
    texts = [config, bomb, endless, nested, "epochs: " + "9" * 5000, "!!set {a, b}", "2020-01-01", "? [1]\n: 2"]
    return damaged_bytes([text.encode() for text in texts])


@target(yaml_texts)
def yaml_files(content: bytes, folder: Path) -> None:
    path = folder / "options.yaml"
    path.write_bytes(content)
    with contextlib.suppress(UsageError):
        parse_yaml(content.decode(errors="replace"), "text")
    api.plan("search", {}, file=path)


def protocol_texts() -> st.SearchStrategy[bytes]:
    sound = [path.read_bytes() for path in PROTOCOLS.glob("*.yaml")]
    plain = st.sampled_from([yaml.safe_load(text) for text in sound])
    return damaged_bytes(sound) | plain.flatmap(damaged_plain).map(lambda value: _yaml(value))


def _yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=False).encode(errors="replace")


@target(protocol_texts)
def protocols(content: bytes, folder: Path) -> None:
    path = folder / "study.yaml"
    path.write_bytes(content)
    read_protocol(path)


def study_texts() -> st.SearchStrategy[bytes]:
    sound = [path.read_bytes() for path in (*sorted(STUDIES.glob("*.yaml")), TEMPLATE)] + [SMALL.encode()]
    plain = st.sampled_from([yaml.safe_load(text) for text in sound])
    return damaged_bytes(sound) | plain.flatmap(damaged_plain).map(_yaml)


@target(study_texts)
def study_files(content: bytes, folder: Path) -> None:
    path = folder / "study.yaml"
    path.write_bytes(content)
    study = read_study(path)
    if not study.data.get("plugin"):
        check_study(study, here=False, data=False)


def latency_tables_as_yaml() -> st.SearchStrategy[bytes]:
    sound = made_up_latencies().as_dict()
    return damaged_bytes([_yaml(sound)]) | damaged_plain(sound).map(_yaml)


@target(latency_tables_as_yaml)
def latency_tables(content: bytes, folder: Path) -> None:
    path = folder / "table.yaml"
    path.write_bytes(content)
    table = read_latency_table(path)
    _ = table.costs(LATENCY_SPACE.operations), table.noisy, table.foreign("Abacus", 1), str(table.shape)


def fit_states() -> st.SearchStrategy[bytes]:
    options = {"data": "photos", "minutes": 6.0, "space": "darts", "recipe": "pc-darts", "seed": 0}
    facts = {"images": 8, "test": 2, "classes": 2, "side": 64}
    sound = {
        "format": FIT_FORMAT, "options": options, "machine": "a CPU", "compare_seconds": 0.0, "done": {"search": {}},
        "data": {"name": "photos", "facts": facts, "notes": ["a"], "listing": "", "described": ""},
        "level": [64, "imagenet", 8, 5, 8, 5], "timing": [0.1, 8, 0.1, 8, 0.1, 1.0, 1.0, 0.1, 0.1],
        "plan": {"search_epochs": 3, "epochs": 5, "search_seconds": 1.0, "train_seconds": 1.0},
        "choices": [["stem", "imagenet", "given"]], "search": {"epochs": 3}, "training": {"batch_size": 8},
    }  # fmt: skip
    return damaged_bytes([as_json(sound)]) | damaged_plain(sound).map(as_json)


@target(fit_states)
def fits(content: bytes, folder: Path) -> None:
    (folder / "fit.json").write_bytes(content)
    State.read(folder).options({}, started=False)


# --- options ----------------------------------------------------------------------------------------------------------


def option_values() -> st.SearchStrategy[bytes]:
    """[job, {option: value}], as Python or a file gives them."""
    job = st.sampled_from(sorted(JOBS))
    return job.flatmap(
        lambda name: damaged_plain(make_config(name, **_needed(name)).as_dict()).map(lambda o: as_json([name, o]))
    )


def _needed(job: str) -> dict[str, str]:
    return {"genotype": "DARTS_V2"} if job == "augment" else {}


@target(option_values)
def options(content: bytes, folder: Path) -> None:
    job, given = json.loads(content)
    if isinstance(given, dict) and not given.get("plugin"):
        api.plan(job, given)


@cache
def all_options() -> list[list[str]]:
    """[command, …, option] for every option of every command."""
    found = []
    for command in COMMANDS:
        parsers = [([command], build_parser(command)._subparsers._group_actions[0].choices[command])]  # type: ignore[union-attr, index]
        while parsers:
            words, parser = parsers.pop()
            for action in parser._actions:
                found += [
                    [*words, name]
                    for name in action.option_strings
                    if name not in ("-h", "--help", "--help-all", "--plugin")
                ]
                if isinstance(action.choices, dict):
                    parsers += [([*words, name], inner) for name, inner in action.choices.items()]
    return found


RUNNING = {"demo", "bench", "diagnose", "export", "latency-table"}
"""Commands that are parsed only: they train or measure for minutes."""


def command_lines() -> st.SearchStrategy[bytes]:
    """[the words of a command with one option], its value hostile, as it may stand or apart."""
    return st.tuples(st.sampled_from(all_options()), st.sampled_from(WORDS), st.booleans()).map(
        lambda drawn: as_json([*drawn[0][:-1], f"{drawn[0][-1]}={drawn[1]}"] if drawn[2] else [*drawn[0], drawn[1]])
    )


ARGUMENTS = {"show": ["DARTS_V2"], "cost": ["DARTS_V2"], "compare": ["DARTS_V2"], "export": ["DARTS_V2"]}


@target(command_lines)
def commands(content: bytes, folder: Path) -> None:
    words = json.loads(content)
    if words[0] in JOBS:
        needed = ["--genotype=DARTS_V2"] if words[0] == "augment" else []
        words = [words[0], "--print-config", *needed, *words[1:]]
    elif words[0] == "genotype" and words[1] in ("show", "export", "random", "list") and "-o" not in words:
        words = [*words[:2], *ARGUMENTS.get(words[1], []), *words[2:]]
    elif words[0] in RUNNING or words[0] not in ("spaces",):
        build_parser(words[0]).parse_args(words)
        return
    if not any(word.startswith(("-o", "--output", "--plugin", "--config", "--resume", "--evaluate")) for word in words):
        with contextlib.redirect_stdout(io.StringIO()):
            run_command(words)


@cache
def command_inputs(folder: Path) -> Path:
    """A folder with what commands take: weights, an image, detection data with predictions, and a search."""
    path = folder / "inputs"
    path.mkdir()
    tensors, texts = weights_content()
    texts = {**texts, "format": FORMAT, "checksum": _checksum(tensors, texts)}
    (path / "w.safetensors").write_bytes(save(tensors, texts))
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(path / "image.png")
    write_voc(path / "voc")
    (path / "predictions.json").write_text("[]")
    varied_search(path / "search", epochs=2)
    return path


SOUND_COMMANDS = {
    ("predict",): ["w.safetensors", "image.png", "--batch-size=2"],
    ("data", "check"): ["voc"],
    ("data", "score"): ["predictions.json", "--data=voc"],
    ("data", "subset"): ["--data=voc"],
    ("genotype", "score"): ["DARTS_V2", "--proxy=naswot", "--channels=2", "--cells=2", "--image-size=8"],
    ("genotype", "derive"): ["search", "--name=x"],
    ("genotype", "validate"): ["search/genotype.yaml"],
    ("genotype", "import"): ["search/genotype.yaml"],
    ("genotype", "compare"): ["DARTS_V2", "search/genotype.yaml", "--json"],
    ("models",): [],
}  # fmt: skip
"""Commands that end within a second, with arguments that they accept."""
SLOW = {"--latency"}


def carried_out() -> st.SearchStrategy[bytes]:
    """[the words of a sound command, and one hostile option or argument]."""
    given = [words for words in all_options() if tuple(words[:-1]) in SOUND_COMMANDS and words[-1] not in SLOW]
    options = st.tuples(st.sampled_from(given), st.sampled_from(WORDS)).map(
        lambda drawn: [*drawn[0][:-1], *SOUND_COMMANDS[tuple(drawn[0][:-1])], f"{drawn[0][-1]}={drawn[1]}"]
    )
    several = [words for words, sound in SOUND_COMMANDS.items() if sound]

    def replaced(drawn: tuple[tuple[str, ...], int, str]) -> list[str]:
        words, place, word = drawn
        sound = list(SOUND_COMMANDS[words])
        sound[place % len(sound)] = word
        return [*words, *sound]

    arguments = st.tuples(st.sampled_from(several), st.integers(0, 3), st.sampled_from(WORDS)).map(replaced)
    return (options | arguments).map(as_json)


@target(carried_out)
def actions(content: bytes, folder: Path) -> None:
    with contextlib.chdir(command_inputs(folder)), contextlib.redirect_stdout(io.StringIO()):
        run_command(json.loads(content))


# --- run folders ------------------------------------------------------------------------------------------------------


@cache
def run_files(folder: Path) -> dict[str, bytes]:
    """The files of a sound search and of a sound retraining, by their names below the folder."""
    search = varied_search(folder / "search", epochs=3)
    config = make_config("search", epochs=3).as_dict()
    environment = {
        "darts_sg": "0.1.0", "git": "no git", "device": "cpu", "threads": 1, "processes": 1, "command": "search.py",
        "kernels": "pytorch", "data": {"name": "cifar10", "note": "", "remark": "", "train_images": 100},
    }  # fmt: skip
    (search / "config.yaml").write_bytes(_yaml({"job": "search", "options": config, "environment": environment}))
    train = folder / "augment"
    train.mkdir(exist_ok=True)
    config = make_config("augment", genotype="DARTS_V2").as_dict()
    (train / "config.yaml").write_bytes(_yaml({"job": "augment", "options": config, "environment": environment}))
    load_genotype("DARTS_V2").save(train / "genotype.yaml")
    result = {
        "test_error_last": 3.0, "test_error_best": 2.9, "best_epoch": 2, "best_chosen_on": "test", "params": 100,
        "params_with_auxiliary": 120, "macs": 1000, "unusual_images": {"damaged": 1},
    }  # fmt: skip
    (train / "result.json").write_text(json.dumps(result))
    (train / "metrics.csv").write_text("epoch,train_loss,test_accuracy,seconds\n1,2.0,0.5,3\n2,1.0,0.6,3\n")
    paths = [path for job in (search, train) for path in job.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.suffix != ".md"}


def damaged_runs() -> st.SearchStrategy[bytes]:
    """NAME of a file, a zero byte, and its new content."""
    return damaged_files(run_files)


def damaged_files(files_of: Any) -> st.SearchStrategy[bytes]:
    """Damage one of the files that the cached function `files_of` writes into a folder."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        files: dict[str, bytes] = files_of(Path(name))
    files_of.cache_clear()
    strategies = []
    for name, content in files.items():
        inner = damaged_bytes([content])
        plain = {"yaml": yaml.safe_load, "json": json.loads}.get(name.rpartition(".")[2])
        if plain is not None:
            inner |= damaged_plain(plain(content)).map(_yaml if name.endswith("yaml") else as_json)
        if name.endswith("npz"):
            inner |= damaged_arrays(content)
        strategies.append(inner.map(lambda damaged, name=name: name.encode() + b"\0" + damaged))
    return st.one_of(strategies)


def damaged_arrays(content: bytes) -> st.SearchStrategy[bytes]:
    """An npz file whose members are damaged, with checksums that hold; and with values that are no mixing weights."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def packed(name: str, member: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for other, sound in members.items():
                archive.writestr(other, member if other == name else sound)
        return file.getvalue()

    headers = [
        b"\x93NUMPY\x01\0v\0"
        + f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode()
        + b"\n" + bytes(64)
        for dtype, shape in (("<f8", (10**12,)), ("<f8", (10**12, 10**12)), ("|O", (8,)), ("<U0", (10**12,)),
                             ("<f8", (-1, 8)), ("<c16", (4,)), ("<f8", ()), ("V0", (2**62,)))
    ]  # fmt: skip
    return st.sampled_from(sorted(members)).flatmap(
        lambda name: damaged_bytes([members[name], *headers]).map(lambda member: packed(name, member))
    )


def _with_file(content: bytes, folder: Path) -> Path:
    """The run folder that the input belongs to, with one file damaged."""
    files = run_files(folder)
    for name, sound in files.items():
        (folder / name).write_bytes(sound)
    name, _, damaged = content.partition(b"\0")
    changed = folder / name.decode()
    assert changed.resolve().is_relative_to(folder.resolve())
    changed.write_bytes(damaged)
    return folder / name.decode().split("/")[0]


@target(damaged_runs)
def run_folders(content: bytes, folder: Path) -> None:
    run_dir = _with_file(content, folder)
    run = read_run(run_dir)
    _ = run.title, run.machine, run.data, run.stopped, run.finished, run.task
    if run.job == "search":
        read_search_epochs(run_dir)
        derive_genotype(run_dir)


@target(damaged_runs)
def resumed(content: bytes, folder: Path) -> None:
    run_dir = _with_file(content, folder)
    api.plan("search" if run_dir.name == "search" else "augment", {}, resume=run_dir)


@target(damaged_runs)
def reports(content: bytes, folder: Path) -> None:
    write_report(_with_file(content, folder), animate=False)


@cache
def study_folder(folder: Path) -> dict[str, bytes]:
    """A made-up study below `study`, and its files by name."""
    path = folder / "study"
    made_up_study(path)
    found = (each for each in path.rglob("*") if each.is_file() and each.suffix in (".json", ".yaml", ".csv", ".npz"))
    return {str(each.relative_to(folder)): each.read_bytes() for each in sorted(found)}


def damaged_studies() -> st.SearchStrategy[bytes]:
    """NAME of a file, a zero byte, and its new content."""
    return damaged_files(study_folder)


@target(damaged_studies)
def study_folders(content: bytes, folder: Path) -> None:
    files = study_folder(folder)
    name, _, damaged = content.partition(b"\0")
    changed = folder / name.decode()
    try:
        changed.write_bytes(damaged)
        write_results(folder / "study")
    finally:
        changed.write_bytes(files[name.decode()])


# --- trained weights and checkpoints ----------------------------------------------------------------------------------


@cache
def weights_content() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a small trained network."""
    genotype = load_genotype("DARTS_V2")
    torch.manual_seed(0)
    network = build_network(NetworkPlan(trained=genotype, shape="cifar", channels=1, cells=3), 2, 3)
    metadata = Metadata(
        genotype=genotype.to_yaml(), network="cifar", channels=1, cells=3, dataset="cats", num_classes=2,
        class_names=("a", "b"), image_size=32, in_channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1),
        data_fingerprint="0", figures={"test_error": 12.0}, test_images=50, epoch=2, epochs=3, seed=1,
        darts_sg="0.1.0", torch="2", git="no git", finetuned_from={"seed": 1}, ema=0.9,
    )  # fmt: skip
    return dict(network.state_dict()), metadata.as_texts()


def weights_files() -> st.SearchStrategy[bytes]:
    """Damaged bytes; and files with a checksum that holds whose metadata are damaged."""
    tensors, texts = weights_content()

    def written(metadata: Any) -> bytes:
        given = metadata if isinstance(metadata, dict) else {}
        said = {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in given.items()}
        said = {key.encode(errors="replace").decode(): v.encode(errors="replace").decode() for key, v in said.items()}
        return save(tensors, {**said, "format": FORMAT, "checksum": _checksum(tensors, said)})

    parsed = {k: json.loads(v) if v[:1] in "0123456789[{" and k not in ("data_fingerprint", "torch", "darts_sg") else v
              for k, v in texts.items()}  # fmt: skip
    sizes = st.sampled_from(["cells", "channels", "num_classes", "image_size", "in_channels", "epochs"]).flatmap(
        lambda key: st.sampled_from([100_000, 10**7, 10**9, 10**18, 2**64, 0, -1, None, "null"]).map(
            lambda size: {**parsed, key: size}
        )
    )
    return damaged_bytes([written(texts)]) | (damaged_plain(parsed) | sizes).map(written)


@target(weights_files)
def weights(content: bytes, folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(content)
    found = read_weights(path)
    _ = found.history, found.options(), found.origin(), found.recorded
    found.build()


def checkpoint_files() -> st.SearchStrategy[bytes]:
    file = io.BytesIO()
    torch.save({"epoch": 1, "rows": [{"epoch": 1.0}], "weights": {"w": torch.ones(40)}}, file)
    return damaged_bytes([file.getvalue(), b"\x80\x02r\xff\xff\xff\x0f.", pickle.dumps({"a": [1]})])


@target(checkpoint_files)
def checkpoints(content: bytes, folder: Path) -> None:
    inner = folder / "checkpoints"
    inner.mkdir(exist_ok=True)
    write_torch(inner / "epoch_0001_step_000000.pt", {"sound": 1})
    (inner / "epoch_0002_step_000000.pt").write_bytes(content)
    try:
        found = load_newest(inner, lambda text: None)
    except Exception as error:
        raise AssertionError(f"the sound checkpoint was not taken: {error!r}") from error
    assert found is not None


def published_files() -> st.SearchStrategy[bytes]:
    """Damaged checkpoints; and sound archives whose tensors have other names, shapes or types than a model's."""
    tensors = {f"features.0.{i}": torch.ones(3, 2) for i in range(3)}
    values = [None, 1, "x", torch.ones(()), torch.ones(2, 3).to_sparse(), torch.ones(2, dtype=torch.complex64), {}, []]
    contents = [tensors, {"state_dict": tensors}, {"state_dict": {"state_dict": tensors}}, {"model": []}, [], None,
                {1: torch.ones(1)}, *({**tensors, "features.0.1": value} for value in values)]  # fmt: skip

    def written(content: Any) -> bytes:
        file = io.BytesIO()
        torch.save(content, file)
        return file.getvalue()

    return damaged_bytes([written(content) for content in contents])


@target(published_files)
def published(content: bytes, folder: Path) -> None:
    path = folder / "checkpoint.pth"
    path.write_bytes(content)
    read_published(path, "mobilenetv2_1.0" if len(content) % 2 else "")


# --- data sets --------------------------------------------------------------------------------------------------------


def pickles() -> st.SearchStrategy[bytes]:
    sound = [pickle.dumps(cifar_batch(CIFAR10, 2, 0), protocol=protocol) for protocol in range(6)]
    hostile = [
        b"r\xff\xff\xff\x0f.", b"\x80\x02r\0\0\0\x10.", b"\x8e" + b"\xff" * 8, b"\x80\x04\x95" + b"\xff" * 8 + b".",
        b"(" * 5000 + b".", b"]" + b"2" * 5000 + b".", b"}" + b"(" + b")" + b"\x85" * 200 + b"K\x01u.",
        b"}()" + b"2\x86" * 60 + b"K\x01u.", b"cos\nsystem\n(S'touch executed'\ntR.", b"cbuiltins\neval\n.",
    ]  # fmt: skip
    return damaged_bytes(sound + hostile)


@target(pickles)
def pickled(content: bytes, folder: Path) -> None:
    load_pickled_dict(content, Path("data_batch_1"))


def idx_files() -> st.SearchStrategy[bytes]:
    sound = idx_bytes(np.zeros((4, 28, 28), np.uint8))
    huge = bytes([0, 0, 8, 3]) + (10**8).to_bytes(4, "big") + (28).to_bytes(4, "big") * 2
    bomb = huge + bytes(2**20)
    many = bytes([0, 0, 8, 200]) + (1).to_bytes(4, "big") * 200 + b"\0"
    plain = damaged_bytes([sound, huge, many]).map(lambda content: b"0" + content)
    zipped = damaged_bytes([sound, huge, many, bomb]).map(lambda content: b"1" + gzip.compress(content))
    return plain | zipped | damaged_bytes([b"1" + gzip.compress(sound)])


@target(idx_files)
def idx(content: bytes, folder: Path) -> None:
    path = folder / ("train-images-idx3-ubyte" + (".gz" if content[:1] == b"1" else ""))
    path.write_bytes(content[1:])
    read_idx(path)


def image_files() -> st.SearchStrategy[bytes]:
    rng, sound = np.random.default_rng(0), []
    pixels = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    for form in ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP"):
        for mode in ("RGB", "L"):
            file = io.BytesIO()
            pixels.convert(mode).save(file, form)
            sound.append(file.getvalue())
    bombs = [b"P6 99999999 99999999 255\n", b"P5\n-1 5\n255\n", b"P6 x y 255\n", b"P6 1 1 99999\n"]
    return damaged_bytes(sound + bombs)


@target(image_files)
def images(content: bytes, folder: Path) -> None:
    path = folder / "image.png"
    path.write_bytes(content)
    median_size([path])
    with contextlib.suppress(*UNREADABLE):
        read_image(path, 32)
    with contextlib.suppress(*UNREADABLE):
        read_square(str(path), 32, middle_box, reduced=True)


@cache
def listed(folder: Path) -> ImageFiles:
    """A small data set of image files."""
    write_imagenet(folder / "imagenet", 2, 3)
    files = load_dataset("imagenet", folder / "imagenet").train
    assert isinstance(files, ImageFiles)
    return files


def split_files() -> st.SearchStrategy[bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        text = split_text(listed(Path(name)), (0.5, 0.5), 0)
    listed.cache_clear()
    return damaged_bytes([text.encode(), b"[[1]]", b"true", b"[" * 10**5]) | damaged_plain(json.loads(text)).map(
        as_json
    )


@target(split_files)
def splits(content: bytes, folder: Path) -> None:
    path = folder / "split.json"
    path.write_bytes(content)
    read_split(path, listed(folder))


def voc_annotations() -> st.SearchStrategy[bytes]:
    objects = voc_object("red", 2, 3, 9, 12) + voc_object("green", 1.5, 1, "nan", 9, difficult=1)
    bomb = '<!DOCTYPE a [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'
    texts = [voc_xml(objects), voc_xml(""), bomb, "<annotation>" + "<a>" * 3000, "<svg/>"]
    forms = [text.encode(form) for text in texts for form in ("utf-8", "utf-16")]
    return damaged_bytes([*forms, f'<?xml version="1.0" encoding="latin-1"?>{texts[0]}'.encode()])


@cache
def voc_folder(folder: Path) -> Path:
    """A small data set in the layout of VOC."""
    return write_voc(folder / "voc")


@target(voc_annotations)
def voc(content: bytes, folder: Path) -> None:
    directory = voc_folder(folder)
    (directory / "Annotations" / "a.xml").write_bytes(content)
    train = load_dataset("voc", directory).train
    assert isinstance(train, DetectionImages)
    assert np.isfinite(train.table.boxes).all()


@target(lambda: damaged_bytes([b"a\nb\nc\n", b"a  1\nb -1\n", b"../a\n", b"x\n"]))
def voc_sets(content: bytes, folder: Path) -> None:
    directory = voc_folder(folder)
    (directory / "ImageSets" / "Main" / "trainval.txt").write_bytes(content)
    load_dataset("voc", directory)


def coco_files() -> st.SearchStrategy[bytes]:
    plain = coco_content({stem: BOXES[stem] for stem in "abc"})
    return damaged_bytes([as_json(plain), b"[" * 10**5]) | damaged_plain(plain).map(as_json)


@cache
def coco_folder(folder: Path) -> Path:
    (folder / "coco").mkdir()
    return write_coco(folder / "coco")


@target(coco_files)
def coco(content: bytes, folder: Path) -> None:
    directory = coco_folder(folder)
    (directory / "annotations" / "instances_train2017.json").write_bytes(content)
    load_dataset("coco", directory)


def yolo_files() -> st.SearchStrategy[bytes]:
    """A letter for the file, and its content: the objects of an image, or data.yaml."""
    labels = damaged_bytes([yolo_text(BOXES["b"]).encode(), b"0 0.1 0.2 0.5 0.2 0.3 0.6\n", b"nan 1 1 1 1", b"1e400"])
    plain = {"train": "images/train", "val": ["images/val"], "names": {0: "red", 1: "green", 2: "blue"}, "path": "."}
    bomb = b"a: &a [1]\nnames: [*a, *a]"
    configs = damaged_bytes([_yaml(plain), bomb, b"names: [a, b, c]"]) | damaged_plain(plain).map(_yaml)
    return labels.map(lambda content: b"l" + content) | configs.map(lambda content: b"c" + content)


@cache
def yolo_folder(folder: Path) -> Path:
    return write_yolo(folder / "yolo")


@target(yolo_files)
def yolo(content: bytes, folder: Path) -> None:
    directory = yolo_folder(folder)
    config = directory / "data.yaml"
    config.unlink(missing_ok=True)
    path = config if content[:1] == b"c" else directory / "labels" / "train" / "a.txt"
    path.write_bytes(content[1:])
    load_dataset("yolo", directory)


def prediction_files() -> st.SearchStrategy[bytes]:
    plain = [{"image": "JPEGImages/d.jpg", "category": "red", "bbox": [1.0, 2.0, 3.5, 4.0], "score": 0.5}] * 2
    return damaged_bytes([as_json(plain), b"[]", b"[" * 10**5]) | damaged_plain(plain).map(as_json)


@target(prediction_files)
def predictions(content: bytes, folder: Path) -> None:
    path = folder / "predictions.json"
    path.write_bytes(content)
    test = load_dataset("voc", voc_folder(folder)).test
    assert isinstance(test, DetectionImages)
    average_precision(test.table, read_predictions(path, test), 2).figures()


def classified_files() -> st.SearchStrategy[bytes]:
    labels, classes = np.arange(6, dtype=np.int32) % 3, np.tile(np.arange(3, dtype=np.int32), (6, 1))
    names, pixels = np.array(["a", "b", "c"]), np.zeros((2, 4, 4, 3), np.uint8)
    given = labels, classes, np.zeros((6, 3), np.float16), np.zeros(6, np.float32), names, np.arange(2), pixels
    sound = Classified(*given).as_bytes()
    return damaged_bytes([sound]) | damaged_arrays(sound)


@target(classified_files)
def classified(content: bytes, folder: Path) -> None:
    (folder / FILE).write_bytes(content)
    found = read_classified(folder / FILE)
    found.details()
    found.shown()


# --- plug-ins ---------------------------------------------------------------------------------------------------------


def plugin_files() -> st.SearchStrategy[bytes]:
    """Example plug-ins, cut off or with bytes that no Python file has: damage that changes no meaning unseen."""
    sound = [path.read_bytes() for path in sorted(EXAMPLES.glob("*.py"))]
    ends = st.sampled_from([b"", b"\0", b"\xff", b"(", b"\n  x", b"import nowhere_at_all\n", b"\nraise SystemExit\n"])
    return st.tuples(st.sampled_from(sound), st.floats(0, 1), ends).map(
        lambda drawn: drawn[0][: int(len(drawn[0]) * drawn[1])] + drawn[2]
    )


@target(plugin_files)
def plugin(content: bytes, folder: Path) -> None:
    path = folder / f"plugin_{hashlib.sha256(content).hexdigest()[:8]}.py"
    path.write_bytes(content)
    with plugins_left_behind():
        load(path)
