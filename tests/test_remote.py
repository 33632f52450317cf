"""Weights and genotypes of other machines: fetched once, of two kinds only, and refused in one line."""

import hashlib
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from darts_sg import remote
from darts_sg.api import plan
from darts_sg.engine.published import read_start
from darts_sg.engine.weights import read_weights
from darts_sg.errors import UsageError
from darts_sg.genotype import load_genotype, zoo_folder
from tests import fake_hub
from tests.engine.test_weights import metadata, written

Capture = pytest.CaptureFixture[str]
FILE = Path("weights.safetensors")


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a log; /away/… leads to another address."""

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/away/"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("/away/", "/"))
            self.end_headers()
        elif self.path.startswith("/cut/"):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
            self.close_connection = True
        else:
            super().do_GET()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the repository user/net: weights and their genotype."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "user" / "net").mkdir(parents=True)
    written(folder / "user" / "net" / FILE, metadata("DARTS_V2"))
    shutil.copy(zoo_folder() / "PDARTS.yaml", folder / "user" / "net" / "genotype.yaml")
    (folder / "user" / "net" / "large.yaml").write_bytes(b"#" * (remote.GENOTYPE.most + 1))
    (folder / "user" / "net" / "net.pth").write_bytes(b"x")
    return folder


@pytest.fixture(scope="module")
def server(files: Path) -> Iterator[str]:
    """The address of that folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(files))) as served:
        threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    remote._fetched.cache_clear()


def test_a_url_gives_the_file_once_with_its_digest(server: str, files: Path, capsys: Capture) -> None:
    address = f"{server}/user/net/{FILE}"
    content = (files / "user" / "net" / FILE).read_bytes()
    first = read_weights(Path(address))  # a Path makes one slash of two
    assert first.path.read_bytes() == content
    err = capsys.readouterr().err
    assert err == f"{address}: {first.path}, sha256 {hashlib.sha256(content).hexdigest()}\n"
    start = read_start(Path(address))
    assert (start.checksum, capsys.readouterr().err) == (first.checksum, "")
    remote._fetched.cache_clear()  # as in another process
    first.path.write_bytes(content[:-1] + b"x")
    with pytest.raises(UsageError, match="does not match its checksum"):
        read_weights(Path(address))
    assert f"is in the cache; remove {first.path}" in capsys.readouterr().err


def test_a_redirection_is_followed_and_genotypes_are_read(server: str) -> None:
    assert load_genotype(f"{server}/away/user/net/genotype.yaml") == load_genotype("PDARTS")


def test_the_hub_gives_weights_and_genotypes(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    fake_hub.install(monkeypatch, files)
    assert read_weights(Path("hf://user/net")).path == files / "user" / "net" / FILE
    assert load_genotype("hf://user/net") == load_genotype("hf://user/net/genotype.yaml") == load_genotype("PDARTS")
    assert len(capsys.readouterr().err.splitlines()) == 3
    planned = plan("augment", {"finetune": "hf://user/net", "dataset": "synthetic"})
    assert planned.config.as_dict()["finetune"] == "hf://user/net"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("hf://user", "expected hf://user/name or hf://user/name/file"),
        ("hf://user/other", "no such repository user/other, or a private one"),
        ("hf://user/net/other.safetensors", "user/net has no file other.safetensors: name another"),
        ("hf://user/net/net.pth", "only files that end in .safetensors are fetched here"),
        ("{server}/user/net/net.pth", "only files that end in .safetensors are fetched here"),
        ("{server}/user/net/other.safetensors", "the server answers 404"),
        ("{server}/cut/x.safetensors", "cannot be fetched (it ended after 4 of 1,000 bytes)"),
        ("http://example.org/x.safetensors", "is no https address: files are fetched over https only"),
        ("http://127.0.0.1:1/x.safetensors", "cannot be fetched ("),
    ],
)
def test_what_cannot_be_fetched_is_one_line(
    place: str, message: str, server: str, files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_hub.install(monkeypatch, files)
    with pytest.raises(UsageError) as error:
        read_start(Path(place.format(server=server)))
    assert message in str(error.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_too_large_for_a_genotype_is_not_kept(server: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is larger than 128 KiB"):
        load_genotype(f"{server}/user/net/large.yaml")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_errors_of_the_hub_have_a_way_out(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = fake_hub.install(monkeypatch, files)
    for error, text in (
        (errors.GatedRepoError(), "open to some users only"),
        (errors.LocalEntryNotFoundError(), "no network, and f of u/n is not in the cache"),
        (errors.HFValidationError(), "expected user/name"),
        (ConnectionError("\nunreachable\nmore"), "u/n: unreachable"),
    ):
        assert text in remote.hub_failure(error, "u/n", "f")


def test_without_the_extra_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"hf://user/net needs huggingface_hub: pip install 'darts_sg\[hub\]'"):
        read_weights(Path("hf://user/net"))


def test_plain_paths_stay_what_they_are(tmp_path: Path) -> None:
    for place in ("weights.safetensors", str(tmp_path), "DARTS_V2", "hf", "https", "a/hf:/x/y"):
        assert not remote.is_address(place)
        assert remote.local_file(place, remote.WEIGHTS) == Path(place)
