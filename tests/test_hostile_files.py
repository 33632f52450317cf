"""Files that claim more than they hold: sizes are checked before anything is allocated, and pipes are never opened."""

import gzip
import io
import json
import os
import pickle
import resource
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save

from darts_sg import search
from darts_sg.analysis.deriving import derive_genotype
from darts_sg.analysis.report import write_report
from darts_sg.analysis.run_folder import read_metrics, read_run, read_search_epochs
from darts_sg.cli.main import run
from darts_sg.config import make_config
from darts_sg.data import load_dataset
from darts_sg.data.cifar import CIFAR10
from darts_sg.data.fashion_mnist import read_idx
from darts_sg.data.pickles import load_pickled_dict
from darts_sg.derive import random_cell
from darts_sg.engine.weights import FORMAT, Metadata, _checksum, read_weights, weights_bytes
from darts_sg.errors import UsageError
from darts_sg.files import read_bytes
from darts_sg.genotype import Cell, Edge, load_genotype
from darts_sg.networks.mobile import find_model
from darts_sg.networks.skeleton import cell_specs
from darts_sg.study.protocol import read_protocol
from tests.analysis.fakes import varied_search
from tests.data.fakes import write_cifar, write_image_folder, write_imagenet
from tests.fuzz.targets import weights_content
from tests.fuzz.watch import memory


@contextmanager
def at_most(megabytes: int) -> Iterator[None]:
    """Within the context this process can have only so much more memory; a larger allocation is a MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 10**6, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


IDX = "train-images-idx3-ubyte"


def idx_header(*sizes: int) -> bytes:
    return bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)


def zeros_compressed(header: bytes, size: int) -> bytes:
    """A gzip file of a header and `size` zeros, made without having them in memory."""
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as stream:
        stream.write(header)
        for _ in range(size >> 20):
            stream.write(bytes(1 << 20))
    return file.getvalue()


def test_a_small_idx_file_that_expands_to_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    size = 320 << 20
    (tmp_path / f"{IDX}.gz").write_bytes(zeros_compressed(idx_header(320, 1024, 1024), size))
    before = memory()
    with pytest.raises(UsageError, match=r"claims to hold 320 MiB in a file of 1\.\d+ MiB; no images are"):
        read_idx(tmp_path / f"{IDX}.gz")
    assert memory() - before < 100e6
    # and one whose header is modest, with gigabytes behind it
    (tmp_path / f"{IDX}.gz").write_bytes(zeros_compressed(idx_header(4, 28, 28), size))
    with at_most(300), pytest.raises(UsageError, match="cut short or is no idx file"):
        read_idx(tmp_path / f"{IDX}.gz")


def test_an_idx_file_of_more_dimensions_than_numpy_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / IDX).write_bytes(idx_header(*[1] * 70) + b"\0")
    with pytest.raises(UsageError, match="no idx file of bytes"):
        read_idx(tmp_path / IDX)


@pytest.mark.parametrize(
    "content",
    [
        b"r\x00\x00\x00\x10.",  # a memo index of 2**28
        b"}(" + b")" + b"2\x86" * 60 + b"K\x01u.",  # a key whose hash takes 2**60 steps
        pickle.dumps({"a": {1, 2}}),  # a set
        pickle.dumps({(1, 2): 3}),
    ],
)
def test_pickles_that_ask_for_memory_or_for_time_are_refused(content: bytes) -> None:
    with at_most(300), pytest.raises(UsageError, match="damaged or is no CIFAR file") as caught:
        load_pickled_dict(content, Path("data_batch_1"))
    assert "MemoryError" not in str(caught.value)


def test_class_names_that_are_no_texts_are_refused(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path)
    for names in ([b"\xff"] * 10, [1] * 10, [""] * 10, {"a": 1}):
        (folder / CIFAR10.meta).write_bytes(pickle.dumps({b"label_names": names}, protocol=2))
        with pytest.raises(UsageError, match="does not hold 10 class names"):
            load_dataset("cifar10", tmp_path, download=False)


def test_a_pipe_among_images_is_left_out(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "train", {"a": 3, "b": 3})
    write_image_folder(tmp_path / "test", {"a": 1, "b": 1})
    os.mkfifo(tmp_path / "train" / "a" / "x.jpg")
    assert len(load_dataset("folder", tmp_path).train) == 6
    write_imagenet(tmp_path / "imagenet", 2, 3)
    os.mkfifo(next((tmp_path / "imagenet" / "val").iterdir()) / "x.JPEG")
    test = load_dataset("imagenet", tmp_path / "imagenet", image_size=32).test
    assert sum(len(labels) for _, labels in test.parts(4)) == 6
    assert [name for name in test.unusual if name.endswith("/x.JPEG")]  # type: ignore[union-attr]


def test_only_regular_files_are_read_and_no_more_than_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="it is larger than 4 bytes"):
        read_bytes(tmp_path / "file", 4)
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        if path.name == "pipe":
            os.mkfifo(path)
        with pytest.raises(OSError, match="it is no regular file"):
            read_bytes(path, 5)
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path, 5)
    with pytest.raises(UsageError, match=r"pipe is not a weights file|cannot be read: it is no regular file"):
        read_weights(tmp_path / "pipe")
    with pytest.raises(UsageError, match=r"cannot read .*: it is no regular file"):
        read_protocol(tmp_path / "pipe")


@pytest.mark.parametrize("header", [b"P6 x y 255\n", b"P5\n-1 5\n255\n", b"P6 99999 99999 255\n", b"P6 1 1 99999999\n"])
def test_damaged_headers_do_not_stop_the_choice_of_an_image_size(header: bytes, tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_image_folder(tmp_path / part, {"a": 2, "b": 2})
    (tmp_path / "train" / "a" / "x.ppm").write_bytes(header)
    assert load_dataset("folder", tmp_path).spec.image_size == 40


def weights_file(**changed: Any) -> bytes:
    """A sound weights file, but for some of its metadata, and with a checksum that holds; None removes an entry."""
    tensors, texts = weights_content()
    said = {key: value for key, value in {**texts, **changed}.items() if value is not None}
    return save(tensors, {**said, "format": FORMAT, "checksum": _checksum(tensors, said)})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"cells": "100000"}, "its tensors are not those of .*100000 cells"),
        ({"cells": "1" + "0" * 30}, "cells: must be at most"),
        ({"channels": "100000"}, "a network has at most"),
        ({"channels": "60000"}, "its tensors are not those of"),
        ({"channels": str(2**62)}, "a network has at most"),
        ({"num_classes": "100000", "class_names": json.dumps(["x"] * 100_000)}, "its tensors are not those of"),
        ({"channels": "null"}, "channels is None"),
        ({"channels": None}, "channels is None"),
        ({"channels": "[1]"}, "channels: expected"),
        ({"cells": "-1"}, "cells is -1"),
        ({"image_size": "1000000000"}, "image_size is 1000000000"),
        ({"mean": '{"a": 1}'}, "mean is"),
        ({"mean": "[null, 1, 2]"}, "mean: expected"),
        ({"std": "[0, 1, 2]"}, "std is"),
        ({"class_names": "[1, 2]"}, "class_names: expected"),
        ({"class_names": "[" * 100_000}, "class_names is not JSON"),
        ({"task_options": "7"}, "task_options is 7"),
        ({"test_error": '"x"'}, "test_error is 'x'"),
        ({"network": "round"}, "expected one of cifar, imagenet"),
        ({"genotype": "x" * 200_000}, "its genotype is larger than 128 KiB"),
        ({"genotype": None, "model": "mobilenext_" + "9" * 400}, "unknown model"),
        ({"genotype": None, "model": "mobilenext_100.0"}, "its tensors are not those of"),
    ],
)
def test_a_network_is_built_only_if_it_is_that_of_the_tensors(
    changed: dict[str, str | None], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(weights_file(**changed))
    with at_most(600), pytest.raises(UsageError, match=said) as caught:
        read_weights(path)
    assert len(str(caught.value)) < 1000


def test_the_bytes_of_a_weights_file_are_a_function_of_its_content(tmp_path: Path) -> None:
    tensors, texts = weights_content()
    metadata = Metadata.from_texts(texts)
    contents = {weights_bytes(tensors, metadata) for _ in range(8)}
    assert len(contents) == 1
    (tmp_path / "new").write_bytes(contents.pop())
    (tmp_path / "old").write_bytes(weights_file())  # as safetensors orders it
    new, old = (read_weights(tmp_path / name) for name in ("new", "old"))
    assert new.metadata == old.metadata
    assert new.checksum == old.checksum
    assert all(torch.equal(new.tensors[name], old.tensors[name]) for name in tensors)


def npz(**headers: tuple[str, str]) -> bytes:
    """An npz file of arrays that consist of little more than a header (dtype, shape)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, (dtype, shape) in headers.items():
            text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
            entry = zipfile.ZipInfo(f"{name}.npy")  # of a fixed date, unlike one by its name alone
            archive.writestr(entry, b"\x93NUMPY\x01\0v\0" + text.encode() + bytes(8))
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        npz(normal=("<f8", "(1000000000000,)")),
        npz(normal=("<f8", "(1000000000000, 1000000000000)")),
        npz(normal=("<U0", "(1000000000000,)")),
        npz(normal=("|O", "(1,)")),
        npz(normal=("<f8", "(-1, 8)")),
        npz(normal=("<f8", "'abc'")),
        npz(normal=("nothing", "(1,)")),
        npz(**{f"a{i}": ("<f8", "(1,)") for i in range(100)}),
        b"PK\x03\x04",
        b"",
    ],
    ids=[
        "long",
        "square",
        "empty texts",
        "objects",
        "negative",
        "no shape",
        "no type",
        "many",
        "no archive",
        "nothing",
    ],
)
def test_mixing_weights_whose_header_promises_more_than_follows_are_refused(content: bytes, tmp_path: Path) -> None:
    folder = varied_search(tmp_path / "run", epochs=2)
    (folder / "alphas" / "epoch_0002.npz").write_bytes(content)
    with at_most(300), pytest.raises(UsageError, match=r"epoch_0002\.npz cannot be read: .*go without epoch 2"):
        read_search_epochs(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.1])
@pytest.mark.parametrize("name", ["normal", "edge_reduce"])
def test_nothing_is_derived_from_numbers_that_are_no_mixing_weights(name: str, value: float, tmp_path: Path) -> None:
    folder = varied_search(tmp_path / "run", epochs=2, edge_weights=True)
    path = folder / "alphas" / "epoch_0002.npz"
    with np.load(path) as file:
        weights = dict(file)
    weights[name].flat[1] = value
    np.savez(path, **weights)
    with pytest.raises(UsageError, match=rf"epoch_0002\.npz: '{name}' holds .*, which is no mixing weight"):
        derive_genotype(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe,\n1,2\n", "cannot read .*metrics.csv: it is no text"),
        (b"epoch,loss\nnan,1\n", "line 2, epoch: nan is not a whole number"),
        (b"epoch,loss\n,1\n", "line 2, epoch: nan is not a whole number"),
        (b"epoch,loss\ninf,1\n", "is not a whole number"),
        (b"epoch,loss\n1," + b"9" * 200_000 + b"x\n", "is no table of numbers|is not a number"),
        (b"a\nb\n", "is not a number|no column epoch"),
    ],
)
def test_a_damaged_metrics_file_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(UsageError, match=said):
        read_metrics(tmp_path / "metrics.csv")


def test_the_report_of_a_run_without_a_row_is_written(tmp_path: Path) -> None:
    folder = varied_search(tmp_path / "run", epochs=1)
    for content in (b"", b"\n", b"epoch\n"):
        (folder / "metrics.csv").write_bytes(content)
        assert write_report(folder, animate=False).is_file()


RESULT = {
    "test_error_last": 3.0, "test_error_best": 2.9, "best_epoch": 2, "best_chosen_on": "test", "params": 1, "macs": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("test_error_last", "x"), ("test_error_best", None), ("test_error_last", [1]), ("params", 1.5),
        ("params", "many"), ("macs", -1), ("macs", True), ("best_epoch", {}), ("best_chosen_on", 3),
        ("unusual_images", [1]), ("test_error_last", 10**400),
    ],
)  # fmt: skip
def test_a_result_of_wrong_types_is_named(key: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("job: augment\noptions: {genotype: DARTS_V2, epochs: 3}\n")
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    assert read_run(tmp_path).finished
    (tmp_path / "result.json").write_text(json.dumps({**RESULT, key: value}))
    with pytest.raises(UsageError, match=rf"result\.json: {key}: expected"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("job: search\noptions: {}\nenvironment: [1]", "environment: expected a mapping, found"),
        ("job: search\noptions: {}\nenvironment: {data: 5}", "environment: data: expected a mapping, found 5"),
        ("job: search\noptions: {}\nenvironment: {processes: many}", "environment: processes: expected a whole number"),
        ("job: search\noptions: {}\nenvironment: {threads: -5}", "environment: threads: must not be negative"),
        ("job: search\noptions: {}\nenvironment: {threads: 0}", "environment: threads: must be from 1 to"),
        ("job: search\noptions: {}\nenvironment: {threads: 99999999}", "environment: threads: must be from 1 to"),
        ("job: search\noptions: {}\nenvironment: {plugins: [a]}", "environment: plugins: expected a list of mapp"),
        ("job: search\noptions: {}\nenvironment: {finetuned_from: 5}", "finetuned_from: expected a mapping"),
        ("job: search\noptions: {epochs: [1]}", "options: epochs: expected a whole number"),
        ("job: search\noptions: 5", "does not belong to a run"),
        ("job: [search]\noptions: {}", "does not belong to a run"),
        ("- 1", "does not belong to a run"),
        ("a: " + "[" * 3000, "nests lists and mappings more than"),
        ("a: &a [*a]", "contains itself"),
    ],
)
def test_a_config_of_wrong_types_is_named(config: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(UsageError, match=said):
        write_report(tmp_path)


def test_a_run_whose_environment_is_damaged_is_not_resumed(tmp_path: Path) -> None:
    options = make_config("search", dataset="synthetic").as_dict()
    for environment in (
        [1],
        {"data": 5},
        {"threads": -5},
        {"threads": 0},
        {"plugins": [1]},
        {"data": {"fingerprint": 1}},
    ):
        content = {"job": "search", "options": options, "environment": environment}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(UsageError, match=r"config\.yaml: environment"):
            search(resume=tmp_path)


def test_a_run_without_an_environment_is_still_reported(tmp_path: Path) -> None:
    for config in ("job: search\noptions: {}\nenvironment: null", "job: search\noptions: {}"):
        (tmp_path / "config.yaml").write_text(config)
        assert read_run(tmp_path).machine == "unknown machine"


def test_a_study_file_with_aliases_in_aliases_is_refused(tmp_path: Path) -> None:
    pairs = zip("abcdefgh", "bcdefghi", strict=True)
    lines = ["a: &a [1]", *(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairs)]
    (tmp_path / "study.yaml").write_text("\n".join(lines))
    with pytest.raises(UsageError, match="aliases"):
        read_protocol(tmp_path / "study.yaml")


@pytest.mark.parametrize(
    "words",
    [
        ["genotype", "show", "DARTS_V2", "--cells", "9" * 18],
        ["genotype", "show", "DARTS_V2", "--channels", "9" * 18],
        ["genotype", "show", "DARTS_V2", "--channels", "60000"],
        ["genotype", "random", "--nodes", "9" * 9],
        ["genotype", "cost", "DARTS_V2", "--cells", "9" * 30],
        ["models", "mobilenext_" + "9" * 400],
        ["search", "--print-config", "--cells", "9" * 18],
        ["search", "--print-config", "--nodes", "9" * 18],
        ["search", "--print-config", "--penalty", "params:1e400"],
        ["search", "--print-config", "--regularizer", "params:weight=" + "9" * 5000],
        ["search", "--print-config", "--space", "a\nb"],
        ["search", "--print-config", "--config", "no\nsuch\nfile"],
        ["augment", "--print-config", "--genotype", "DARTS_V2", "--channels", "9" * 18],
        ["data", "subset", "--data", "x", "--fraction", "nan"],
        ["data", "subset", "--data", "x", "--fraction", "1e400"],
    ],
)
def test_numbers_beyond_all_measure_and_values_of_many_lines_are_answered_in_a_short_line(words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        run(words)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(("nodes", "edges"), [(33, 2), (1, 101), (3000, 2)])
def test_a_genotype_of_thousands_of_edges_is_refused(nodes: int, edges: int) -> None:
    sound = load_genotype("DARTS_V2")
    cell = Cell(tuple((Edge("skip_connect", 0),) * edges for _ in range(nodes)), (2,))
    with pytest.raises(UsageError, match="at most 32 nodes and 100 edges"):
        replace(sound, normal=cell)


def test_sizes_are_bounded_where_networks_and_cells_are_made() -> None:
    with pytest.raises(UsageError, match="at most 300 cells"):
        cell_specs(16, 10**9, 48, lambda reduction: 4)
    with pytest.raises(UsageError, match="at most 32"):
        random_cell(10**9, ["none", "skip_connect"], np.random.default_rng(0))
    with pytest.raises(UsageError, match="unknown model"):
        find_model("mobilenext_1000000.0")
    with pytest.raises(UsageError, match="--cells must be at most 300"):
        make_config("search", cells=10**6)


def test_a_message_is_one_line_that_no_terminal_obeys() -> None:
    error = UsageError("no file a\nrm -rf b\x1b[31m\u2028c" + "x" * 10**6)
    assert str(error).startswith("no file a rm -rf b?[31m cxxx")
    assert len(str(error)) < 300
    assert str(error).isprintable()
    assert len(str(UsageError("many words " * 10**5))) == 4000


def test_a_bound_says_for_which_network_it_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="params at most 1,000 at C=16, 8 cells; loosen a bound"):
        derive_genotype(varied_search(tmp_path / "run", epochs=1), channels=16, cells=8, max_params=1000)


def test_pillow_still_reads_what_is_sound(tmp_path: Path) -> None:
    Image.new("RGB", (20, 30)).save(tmp_path / "x.png")
    write_image_folder(tmp_path / "data", {"a": 5, "b": 5})
    assert load_dataset("folder", tmp_path / "data").spec.image_size == 40
