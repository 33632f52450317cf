"""Plug-ins: files and entry points, what is refused, what a run records, and the examples through the command line."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import entropy
from torch import nn
from torch.utils.data import DataLoader

import darts_sg
from darts_sg import plugins
from darts_sg.__main__ import PROG, run
from darts_sg.analysis.cost import derived_cost
from darts_sg.analysis.draw import draw_genotype
from darts_sg.analysis.sheet import family, legend_rows, style_of
from darts_sg.backends.unfused import num_calls, unfused_operations
from darts_sg.cli.terminal import answer
from darts_sg.data import DATASETS, load_dataset
from darts_sg.errors import UsageError
from darts_sg.genotype import load_genotype, parse_genotype
from darts_sg.methods.regularizers import REGULARIZERS
from darts_sg.methods.relaxations import RELAXATIONS
from darts_sg.networks.supernet import Mixing, Supernet, candidate
from darts_sg.ops import OPERATIONS
from darts_sg.registry import PLUGGED, Registry
from darts_sg.spaces import SPACES, parse_space
from tests.plugged import plugins_left_behind

pytestmark = [pytest.mark.usefixtures("rendered_once"), pytest.mark.xdist_group("plug-ins")]

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "plugins"
MBCONV = EXAMPLES / "mbconv_se.py"
TINY = ["--batch-size=8", "--train-images=24", "--epochs=1", "--threads=1", "--channels=4", "--cells=3"]
SEARCH = ["search", *TINY, "--nodes=1", "--validation-images=24", "--dataset=synthetic", "--kernels=pytorch"]
OPERATION = """
from torch import nn
from darts_sg.ops import register_operation

@register_operation("conv_1x1", "conv", "1×1 - BN")
def conv_1x1(C, stride, affine):
    return nn.Sequential(nn.Conv2d(C, C, 1, stride, bias=False), nn.BatchNorm2d(C, affine=affine))
"""


@pytest.fixture(autouse=True)
def _left_behind() -> Iterator[None]:
    with plugins_left_behind():
        yield


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The console command in this process: exit code, standard output, standard error."""

    def called(*arguments: object) -> tuple[int, str, str]:
        with plugins_left_behind(), pytest.raises(SystemExit) as ended:
            answer(lambda: run([str(a) for a in arguments]), PROG)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return called


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


BAD = {
    "syntax error": ("x = 1\ny = (\n", r"plug-in .*mine\.py, line 2: SyntaxError: '\(' was never closed"),
    "import error": ("import os\nimport nosuch\n", r"line 2: ModuleNotFoundError: No module named 'nosuch'"),
    "exception": ("def f():\n    return 1 / 0\n\nf()\n", r"line 2: ZeroDivisionError: division by zero"),
    "exit": ("import sys\nsys.exit(3)\n", r"line 2: SystemExit: 3"),
    "null byte": ("x = '\0'\n", r"mine\.py.*: \w+Error: source code string cannot contain null bytes"),
    "registers nothing": ("x = 1\n", r"registers nothing"),
    "name of the package": (
        OPERATION.replace("conv_1x1", "sep_conv_3x3"),
        r"line 5: operation 'sep_conv_3x3' is registered already, by darts_sg",
    ),
    "wrong stride": (
        OPERATION.replace("1, stride,", "1, 1,"),
        r"operation 'conv_1x1': with stride 2 an input of shape \(2, 16, 9, 9\) must give \(2, 16, 5, 5\), found",
    ),
    "wrong arguments": (
        OPERATION.replace("(C, stride, affine)", "(C)"),
        r"'conv_1x1': TypeError: .*positional argument",
    ),
    "no module": (OPERATION.replace("return nn", "nn"), r"'conv_1x1': .*must return a torch module, found None"),
    "fails when built": (
        OPERATION.replace("    return", "    raise OSError(7, 'no')\n    return"),
        r"line 7: operation 'conv_1x1': OSError: \[Errno 7\] no",
    ),
    "space of unknown operations": (
        "from darts_sg.spaces import SPACES\nSPACES.add('mine', ('sep_conv_3x4',))\n",
        r"space 'mine': unknown operation 'sep_conv_3x4' \(did you mean 'sep_conv_3x3'\?\)",
    ),
    "space as a text": ("from darts_sg.spaces import SPACES\nSPACES.add('mine', 'a')\n", r"expected a tuple"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_plugin_is_answered_in_one_line_and_leaves_nothing(
    case: str, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    text, message = BAD[case]
    names, file = [*OPERATIONS, *SPACES], write(tmp_path, text)
    with pytest.raises(UsageError, match=message) as caught:
        plugins.load(file)
    assert "\n" not in str(caught.value)
    assert [*OPERATIONS, *SPACES] == names
    assert not [name for name in sys.modules if name.startswith(PLUGGED)]
    code, out, err = command("spaces", "--plugin", file)
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("start", [["spaces"], ["search", "--dry-run"], ["genotype", "show", "DARTS_V2"]])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.py", "does not exist"),
        ("folder.py", "is a folder; give the .py file in it"),
        ("text.txt", "is not a Python file: expected a name that ends in .py"),
    ],
)
def test_what_is_no_plugin_file_is_refused_by_every_command(
    start: list[str], name: str, message: str, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "folder.py").mkdir()
    write(tmp_path, "", "text.txt")
    code, _, err = command(*start, "--plugin", tmp_path / name)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_the_option_needs_a_file(command: Callable[..., tuple[int, str, str]]) -> None:
    for arguments in (["spaces", "--plugin"], ["search", "--plugin", "--dry-run"]):
        code, _, err = command(*arguments)
        assert (code, err.count("\n")) == (2, 1)
        assert "--plugin needs a file" in err


def test_two_plugins_cannot_share_a_name(tmp_path: Path) -> None:
    plugins.load(write(tmp_path, OPERATION, "first.py"))
    second = write(tmp_path, OPERATION + "\nregister_operation('conv_new', 'conv', '')(conv_1x1)\n", "second.py")
    with pytest.raises(
        UsageError, match=r"second\.py, line 5: operation 'conv_1x1' is registered already, by first\.py"
    ):
        plugins.load(second)
    assert "conv_new" not in OPERATIONS


def test_a_file_is_loaded_once_and_not_again_when_it_has_changed(tmp_path: Path) -> None:
    file = write(tmp_path, OPERATION)
    first = plugins.load(file)
    assert plugins.load(file) is first
    assert plugins.load(Path(shutil.copy(file, tmp_path / "copy.py"))) is first
    assert first.registration.names() == ("operation conv_1x1",)
    file.write_text(OPERATION + "\n# another version\n", encoding="utf-8")
    with pytest.raises(UsageError, match="has changed since this process loaded it"):
        plugins.load(file)


def test_a_mended_file_can_be_loaded_after_it_failed(tmp_path: Path) -> None:
    file = write(tmp_path, OPERATION + "\n1 / 0\n")
    with pytest.raises(UsageError, match="line 9: ZeroDivisionError"):
        plugins.load(file)
    file.write_text(OPERATION, encoding="utf-8")
    plugins.load(file)
    assert OPERATIONS.origin("conv_1x1") == "mine.py"
    assert OPERATIONS.origin("sep_conv_3x3") == ""


def test_what_the_package_registers_when_a_plugin_imports_it_first_stays_the_package_s(tmp_path: Path) -> None:
    bad = write(tmp_path, "import darts_sg.spaces\nimport darts_sg.data\n1 / 0\n", "bad.py")
    code = f"""
from darts_sg import plugins
from darts_sg.errors import UsageError
try:
    plugins.load({str(bad)!r})
except UsageError as error:
    print(error)
from darts_sg.data import DATASETS
from darts_sg.ops import OPERATIONS
from darts_sg.spaces import SPACES
assert "cifar10" in DATASETS and "sep_conv_3x3" in OPERATIONS and "darts" in SPACES
"""
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout.count("line 3: ZeroDivisionError")) == (0, 1), done.stderr
    code = f"""
from darts_sg import plugins
print(plugins.load({str(MBCONV)!r}).registration.names())
from darts_sg.ops import OPERATIONS
print([name for name in OPERATIONS if OPERATIONS.origin(name)])
"""
    done = python(code, tmp_path)
    operations = ["mbconv_se_3x3", "mbconv_se_5x5"]
    names = (*(f"operation {name}" for name in operations), "space mbconv_se")
    assert done.stdout.splitlines() == [repr(names), repr(operations)], done.stderr


@pytest.mark.parametrize(
    ("argv", "files", "rest"),
    [
        (["a", "--plugin", "x.py", "b"], ["x.py"], ["a", "b"]),
        (["--plugin=x.py", "a", "--plugin", "y.py"], ["x.py", "y.py"], ["a"]),
        (["a", "--", "--plugin", "x.py"], [], ["a", "--", "--plugin", "x.py"]),
        (["--plugins", "x.py"], [], ["--plugins", "x.py"]),
    ],
)
def test_files_are_taken_from_a_command_line(argv: list[str], files: list[str], rest: list[str]) -> None:
    assert plugins.taken(argv) == (files, rest)
    assert plugins.joined(argv) == [*([f"--plugin={'+'.join(files)}"] if files else []), *rest]
    assert plugins.files_of("+".join(files)) == files


def test_a_plus_within_a_path_joins_nothing() -> None:
    assert plugins.files_of("c++/a.py+b.py") == ["c++/a.py", "b.py"]


def installed(folder: Path, name: str, code: str, version: str = "1.0", entry: str = "") -> None:
    """A distribution `name` in `folder` whose module NAME_module is an entry point."""
    write(folder, code, f"{name}_module.py")
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    write(info, f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "METADATA")
    write(info, f"[{plugins.GROUP}]\n{name}_plugin = {name}_module{entry}\n", "entry_points.txt")


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def test_installed_plugins_are_found_by_name_and_a_broken_one_is_skipped(tmp_path: Path) -> None:
    installed(tmp_path, "good", OPERATION)
    function = OPERATION.replace("conv_1x1", "conv_called").replace("\n@register", "\ndef setup():\n  @register")
    function = function.replace("\ndef conv_called", "\n  def conv_called").replace("    return", "      return")
    installed(tmp_path, "called", function, entry=":setup")
    installed(tmp_path, "broken", OPERATION.replace("conv_1x1", "conv_lost") + "\nimport nosuch\n")
    code = (
        "from darts_sg import plugins; from darts_sg.ops import OPERATIONS; import json\n"
        "assert not plugins.loaded()\n"  # nothing asked for a name yet
        "op = OPERATIONS['conv_1x1']\n"
        "names = list(OPERATIONS)\n"
        "print(json.dumps([op.family, OPERATIONS.origin('conv_1x1'), names[-2:], plugins.recorded()]))"
    )
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "good_module.py"
    record = {
        "name": "good_plugin",
        "distribution": "good 1.0",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert json.loads(done.stdout) == ["conv", "good_plugin of good 1.0", ["conv_called", "conv_1x1"], [record]]
    assert done.stderr.count("\n") == 1
    assert "plug-in broken_plugin of broken 1.0 is skipped" in done.stderr
    assert "broken_module.py, line 9): ModuleNotFoundError: No module named 'nosuch'" in done.stderr


def test_a_run_wants_the_installed_plugins_that_it_used(tmp_path: Path) -> None:
    installed(tmp_path, "good", OPERATION)
    then = {"name": "good_plugin", "distribution": "good 0.9", "sha256": "0" * 64}
    lost = {"name": "lost_plugin", "distribution": "lost 1.0", "sha256": "0" * 64}
    for record, message in ((then, "good 1.0 holds another version of it"), (lost, "is not installed or failed")):
        done = python(f"from darts_sg import plugins; plugins.restore([{record!r}])", tmp_path)
        assert message in done.stderr.splitlines()[-1]


def test_an_unknown_name_says_how_to_load_a_plugin(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    genotype = load_genotype("DARTS_V2").to_yaml().replace("sep_conv_3x3", "mbconv_se_3x3")
    file = write(tmp_path, genotype, "found.yaml")
    for arguments in (
        ["search", "--space", "mbconv_se"],
        ["search", "--dataset", "npz", "--dry-run"],
        ["genotype", "show", file],
        ["augment", "--genotype", file, "--dataset=synthetic", "--dry-run"],
    ):
        code, _, err = command(*arguments)
        assert (code, err.count("\n")) == (2, 1)
        assert "--plugin FILE.py" in err


# ---- examples/plugins, through the command line


@pytest.mark.parametrize("name", ["mbconv_se_3x3", "mbconv_se_5x5"])
@pytest.mark.parametrize("stride", [1, 2])
def test_mbconv_is_the_block_of_the_papers(name: str, stride: int) -> None:
    """Written out with functions, from the weights of the module."""
    plugins.load(MBCONV)
    torch.manual_seed(0)
    block = OPERATIONS[name].build(8, stride, True).double()
    x = torch.randn(2, 8, 7, 6, dtype=torch.float64)
    expand, norm_1, _, depthwise, norm_2, _, gate, project, norm_3 = block.body
    k = int(name[-1])
    y = nn.functional.conv2d(x, expand.weight)
    y = nn.functional.silu(norm_1(y))
    y = nn.functional.conv2d(y, depthwise.weight, stride=stride, padding=k // 2, groups=48)
    y = nn.functional.silu(norm_2(y))
    squeezed = y.flatten(2).mean(2)  # (N, 48)
    hidden = nn.functional.silu(squeezed @ gate.gate[0].weight.flatten(1).T + gate.gate[0].bias)
    scale = torch.sigmoid(hidden @ gate.gate[2].weight.flatten(1).T + gate.gate[2].bias)
    y = norm_3(nn.functional.conv2d(y * scale[:, :, None, None], project.weight))
    assert hidden.shape == (2, 2)
    torch.testing.assert_close(block(x), y + x if stride == 1 else y)


def test_operations_without_a_fast_path_are_told_from_chains() -> None:
    plugins.load(MBCONV)
    assert unfused_operations(list(OPERATIONS)) == ("noise", "mbconv_se_3x3", "mbconv_se_5x5")
    supernet = Supernet(parse_space("mbconv_se").operations, channels=4, cells=3, num_nodes=3)
    assert num_calls(supernet.specs, 3) == 3 * (2 + 3 + 4)


def test_pictures_and_costs_know_a_plugged_operation() -> None:
    plugins.load(MBCONV)
    text = load_genotype("DARTS_V2").to_yaml().replace("sep_conv_3x3", "mbconv_se_3x3")
    genotype = parse_genotype(text, known=list(OPERATIONS))
    assert family("mbconv_se_3x3") == "mbconv_se"
    style = style_of("mbconv_se")
    assert style.title == "mbconv se"
    assert "mbconv_se" in {name for row in legend_rows(genotype.operations, 700.0) for _, name in row}
    texts = {text.get_text() for text in draw_genotype(genotype).findobj() if hasattr(text, "get_text")}
    assert {"mbconv se", "mbconv se 3×3"} <= texts
    assert derived_cost(genotype).params > derived_cost(load_genotype("DARTS_V2")).params


def test_inspection_commands_take_plugins(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, out, _ = command("spaces", "--plugin", MBCONV)
    line = next(line for line in out.splitlines() if line.startswith("mbconv_se_3x3"))
    assert (code, line.split()[-1]) == (0, "mbconv_se.py")
    assert "mbconv_se.py" not in next(line for line in out.splitlines() if line.startswith("sep_conv_3x3"))
    file = tmp_path / "found.yaml"
    assert command("genotype", "random", f"--plugin={MBCONV}", "--space", "mbconv_se", "-o", file)[0] == 0
    assert "mbconv_se" in file.read_text(encoding="utf-8")
    for action in (["show"], ["draw", "-o", tmp_path / "found.svg"], ["cost", "--channels=4", "--batch-size=1"]):
        code, out, err = command("--plugin", MBCONV, "genotype", *action, file)
        assert code == 0
        assert not err or action[0] == "cost"  # it warns of times that scatter, on a busy machine
    assert "mbconv se" in (tmp_path / "found.svg").read_text(encoding="utf-8")


def test_help_names_the_option_and_what_a_plugin_adds(command: Callable[..., tuple[int, str, str]]) -> None:
    for arguments in (
        ["search", "--help-all"],
        ["augment", "--help-all"],
        ["spaces", "--help"],
        ["genotype", "show", "--help"],
    ):
        code, out, _ = command(*arguments)
        assert code == 0
        assert "--plugin" in out
        assert "load only files that you trust" in " ".join(out.split())


ADDED = {
    "mbconv_se": "mbconv_se",
    "small_data": "npz",
    "sharpened_softmax": "sharpened:temperature_end=0.2",
    "entropy": "entropy:weight=0.1",
    "json_lines": "json_lines",
}
"""What the help of a search lists with each example."""


@pytest.mark.parametrize("example", [path.stem for path in EXAMPLES.glob("*.py")])
def test_the_help_of_a_search_lists_what_an_example_adds(
    example: str, command: Callable[..., tuple[int, str, str]]
) -> None:
    without = "".join(command("search", "--help-all")[1].split())
    code, out, err = command("search", "--plugin", EXAMPLES / f"{example}.py", "--help-all")
    assert (code, err) == (0, "")
    assert ADDED[example] in "".join(out.split())
    assert ADDED[example] not in without


def test_a_search_with_a_plugged_operation_records_it_and_resumes(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    folder, file = tmp_path / "run", Path(shutil.copy(MBCONV, tmp_path / "mbconv_se.py"))
    search = [*SEARCH, "--space=mbconv_se", "--run-dir", folder, "--plugin", file]
    code, out, err = command(*search, "--dry-run")
    assert code == 0, err
    assert (
        "operations mbconv_se_3x3, mbconv_se_5x5 are computed layer by layer on every edge (not a chain of known "
        "layers): 2 of 3 operations, 6 calls each in a forward pass, about "
    ) in out
    code, out, err = command(*search, "--time-budget=1e-9")
    assert code == 0, err
    content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    record = {"name": "mbconv_se.py", "path": str(file), "sha256": digest}
    assert content["environment"]["plugins"] == [record]

    moved = file.rename(tmp_path / "elsewhere.py")
    code, _, err = command("search", "--resume", folder)
    assert code == 2
    assert f"the run was started with the plug-in {file}, which is not there; say where it is with --plugin" in err
    other = write(tmp_path, MBCONV.read_text(encoding="utf-8") + "\n# changed\n", "mbconv_se.py")
    for more in ([], ["--plugin", other]):
        code, _, err = command("search", "--resume", folder, *more)
        assert (code, err.count("\n")) == (2, 1)
        assert "has changed since the run was started" in err or "is another version of mbconv_se.py" in err
    code, out, err = command("search", "--resume", folder, "--plugin", moved, "--time-budget=1e-9")
    assert (code, err) == (0, "")
    moved.rename(file)
    code, out, err = command("search", "--resume", folder)
    assert (code, err) == (0, "")
    genotype = yaml.safe_load((folder / "genotype.yaml").read_text(encoding="utf-8"))
    assert genotype["provenance"]["plugins"] == [{"name": "mbconv_se.py", "sha256": digest}]
    assert str(tmp_path) not in (folder / "genotype.yaml").read_text(encoding="utf-8")

    trained = tmp_path / "trained"
    augment = ["augment", *TINY, "--dataset=synthetic", "--genotype", folder / "genotype.yaml", "--run-dir", trained]
    code, _, err = command(*augment)
    assert (code, err.count("\n")) == (2, 1)
    code, out, err = command(*augment, "--plugin", file)
    assert (code, err) == (0, "")
    weights = trained / "weights.safetensors"
    code, _, err = command("augment", "--evaluate", weights, "--plugin", file, "--threads=1")
    assert (code, err) == (0, "")
    code, _, err = command("augment", "--evaluate", weights, "--threads=1")
    assert (code, err.count("\n")) == (2, 1)
    code, out, err = command("report", folder, "--plugin", file)
    assert (code, err) == (0, "")
    assert '"mbconv_se":{"title":"mbconv se"' in (folder / "search.html").read_text(encoding="utf-8")
    # a report does not load the code that a run folder names; in a process that has not seen it
    done = python(f"from darts_sg.__main__ import run; run(['report', {str(folder)!r}])", tmp_path / "nothing")
    assert "unknown operation 'mbconv_se" in done.stderr
    assert "--plugin FILE.py" in done.stderr


def test_an_operation_that_fails_in_a_step_is_answered_in_one_line(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code = (
        OPERATION
        + """
class Narrow(nn.Conv2d):
    def forward(self, x):
        if x.shape[-1] > 9:
            raise ValueError("too wide")
        return super().forward(x)

@register_operation("narrow", "conv", "1×1")
def narrow(C, stride, affine):
    return Narrow(C, C, 1, stride)
"""
    )
    file = write(tmp_path, code)
    code, _, err = command(*SEARCH, "--space=narrow+skip_connect", "--plugin", file, "--run-dir", tmp_path / "run")
    assert (code, err) == (1, f"{PROG}: plug-in {file}, line 12: ValueError: too wide\n")


def npz(folder: Path, **changes: object) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, object] = {}
    for part, number in (("train", 48), ("test", 12)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (number, 16, 16), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(number) % 3
    arrays |= changes
    np.savez(folder / "images.npz", **{name: value for name, value in arrays.items() if value is not None})  # type: ignore[arg-type]
    return folder


def test_a_search_on_a_plugged_data_set(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    search = [*SEARCH, "--dataset=npz", "--data", npz(tmp_path), "--space=sandglass+skip_connect"]
    code, _, err = command(*search, "--plugin", EXAMPLES / "small_data.py", "--run-dir", folder)
    assert (code, err) == (0, "")
    content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert content["environment"]["data"]["name"] == "npz"
    assert [record["name"] for record in content["environment"]["plugins"]] == ["small_data.py"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": None}, "x_train"),
        ({"x_train": np.zeros((48, 16, 16))}, "must be uint8"),
        ({"x_test": np.zeros((12, 8, 8), np.uint8)}, "differ in size"),
        ({"y_test": np.zeros(11, int)}, "must be 12 integers"),
        ({"y_test": np.full(12, -1)}, "integers from 0"),
        ({"class_names": np.array(["a"])}, "class names"),
    ],
)
def test_a_npz_file_that_is_none_is_answered_in_one_line(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    plugins.load(EXAMPLES / "small_data.py")
    with pytest.raises(UsageError, match=message) as caught:
        load_dataset("npz", npz(tmp_path, **changes))
    assert "\n" not in str(caught.value)


READER = """
import torch
from torch.utils.data import Dataset
from darts_sg.data import DATASETS

class Squares(Dataset):
    def __len__(self):
        return 3
    def __getitem__(self, index):
        return torch.tensor(index**2)

DATASETS.add("squares", Squares)
"""


def test_spawned_data_workers_find_the_classes_of_a_plugin(tmp_path: Path) -> None:
    plugins.load(write(tmp_path, READER, "squares.py"))
    squares = DATASETS["squares"]()  # type: ignore[call-arg]
    assert type(pickle.loads(pickle.dumps(squares))) is type(squares)
    loader = DataLoader(squares, num_workers=1, multiprocessing_context="spawn")  # type: ignore[arg-type]
    assert [int(batch) for batch in loader] == [0, 1, 4]


def test_formats_are_no_matter_of_plugins() -> None:
    """Looking at a genotype's format must not import installed plug-ins, and with them torch."""
    asked = []
    closed, opened = Registry[int]("format", plugged=False), Registry[int]("operation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("darts_sg.registry.HOOKS.discover", lambda: asked.append(1))
        assert list(closed) == []
        assert not asked
        assert list(opened) == []
        assert asked


def test_the_sharpened_softmax_has_its_temperature_by_progress() -> None:
    plugins.load(EXAMPLES / "sharpened_softmax.py")

    relaxation = RELAXATIONS["sharpened"](temperature_end=0.25)  # type: ignore[call-arg]
    alphas = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for progress, temperature in ((0.0, 1.0), (0.5, 0.5), (1.0, 0.25)):
        weights = relaxation.sample(alphas, torch.tensor(progress, dtype=torch.float64), None)
        powers = np.exp(alphas.numpy() / temperature)
        np.testing.assert_allclose(weights.numpy(), powers / powers.sum(axis=1, keepdims=True))
    torch.testing.assert_close(relaxation.expected(alphas), alphas.softmax(dim=-1))


def test_the_entropy_is_that_of_scipy() -> None:
    plugins.load(EXAMPLES / "entropy.py")

    generator = torch.Generator().manual_seed(0)
    normal, reduce = (torch.randn(5, 4, dtype=torch.float64, generator=generator).softmax(dim=-1) for _ in range(2))
    term = REGULARIZERS["entropy"](weight=0.3)  # type: ignore[call-arg]
    found = term(None, Mixing(normal, reduce), torch.tensor(0.5, dtype=torch.float64))  # type: ignore[arg-type]
    both = np.concatenate([entropy(weights.numpy(), axis=1) for weights in (normal, reduce)])
    assert found.item() == pytest.approx(0.5 * 0.3 * both.mean())


def test_a_search_with_a_plugged_relaxation_and_regularizer(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    parts = [
        "--relaxation=sharpened:temperature_end=0.3",
        "--regularizer=entropy:0.2",
        "--space=sandglass+skip_connect",
    ]
    files = [f"--plugin={EXAMPLES / name}" for name in ("sharpened_softmax.py", "entropy.py")]
    code, _, err = command(*SEARCH, *parts, *files, "--run-dir", folder)
    assert (code, err) == (0, "")
    content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert [record["name"] for record in content["environment"]["plugins"]] == ["sharpened_softmax.py", "entropy.py"]
    assert "mean_entropy" in (folder / "metrics.csv").read_text(encoding="utf-8").partition("\n")[0]


def test_a_search_with_a_plugged_logger(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    search = [*SEARCH, "--space=sandglass+skip_connect", "--run-dir", folder, "--logger=json_lines"]
    code, _, err = command(*search, "--plugin", EXAMPLES / "json_lines.py")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["kind"] for line in lines] == ["run", "epoch", "end"]
    assert lines[0]["job"] == "search"
    assert lines[1]["epoch"] == 1
    assert lines[2]["status"] == "finished"


def test_a_supernet_normalises_what_says_so_and_not_what_has_the_family_of_a_pool(tmp_path: Path) -> None:
    code = """
from torch import nn
from darts_sg.ops import register_operation

for name, family, needs_norm in (("pooled", "pool", False), ("bare", "conv", True)):
    @register_operation(name, family, "average pool", needs_norm=needs_norm)
    def pool(C, stride, affine):
        return nn.AvgPool2d(3, stride, 1)
"""
    plugins.load(write(tmp_path, code))
    assert isinstance(candidate("pooled", 4, 1), nn.AvgPool2d)
    norm = list(candidate("bare", 4, 1).modules())[-1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert not norm.affine


def test_the_python_api_takes_plugins(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = {"space": "mbconv_se", "dataset": "npz", "data": npz(tmp_path), "kernels": "pytorch", "threads": 1}
    small = {"batch_size": 8, "train_images": 24, "validation_images": 24, "channels": 4, "cells": 3, "nodes": 1}
    with pytest.raises(UsageError, match=r"unknown space or operation 'mbconv_se'.*--plugin FILE\.py"):
        darts_sg.search(dry_run=True, **options, **small)
    files = f"{MBCONV}+{EXAMPLES / 'small_data.py'}"
    for _ in range(2):  # twice in one process
        darts_sg.search(dry_run=True, plugin=files, **options, **small)
    assert "operations mbconv_se_3x3, mbconv_se_5x5 are computed layer by layer" in capsys.readouterr().out
