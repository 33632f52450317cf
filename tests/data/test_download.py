"""Downloads from a server of our own: whole and checked, or nothing left behind."""

import hashlib
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from darts_sg.data import cifar, fashion_mnist, load_dataset
from darts_sg.data.download import fetch
from darts_sg.errors import UsageError
from tests.data.fakes import write_cifar, write_fashion_mnist

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `files`; /cut promises more than it sends."""

    files: dict[str, bytes]

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        content = CONTENT if name in ("whole", "cut") else self.files.get(name)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:500_000] if name == "cut" else content)

    def log_message(self, *arguments: object) -> None:
        """Nothing into the output of the tests."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server on this machine; what is put into Handler.files is there."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    Handler.files = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_whole_file_arrives(site: str, tmp_path: Path) -> None:
    fetch(f"{site}/whole", tmp_path / "new" / "file", MD5)
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "md5", "message"),
    [
        ("whole", "0" * 32, "instead of 0000"),
        ("cut", MD5, "download .* by other means|instead of"),
        ("missing", MD5, "404"),
    ],
)
def test_anything_else_leaves_nothing_behind(site: str, tmp_path: Path, name: str, md5: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        fetch(f"{site}/{name}", tmp_path / "file", md5)
    assert str(tmp_path / "file") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_no_server_is_one_line(tmp_path: Path, site: str) -> None:
    with pytest.raises(UsageError, match="could not be downloaded"):
        fetch("http://127.0.0.1:1/file", tmp_path / "new" / "file", MD5)
    assert list(tmp_path.iterdir()) == []


def test_cifar_downloads_its_archive(site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_cifar(tmp_path / "made")
    with tarfile.open(tmp_path / "archive", "w:gz") as tar:
        tar.add(folder, cifar.CIFAR10.folder)
    archive = (tmp_path / "archive").read_bytes()
    Handler.files[cifar.CIFAR10.archive] = archive
    monkeypatch.setattr(cifar, "SITE", site)
    with pytest.raises(UsageError, match=f"instead of {cifar.CIFAR10.archive_md5}"):
        load_dataset("cifar10", tmp_path / "data")
    fetch(
        f"{site}/{cifar.CIFAR10.archive}", tmp_path / "data" / cifar.CIFAR10.archive, hashlib.md5(archive).hexdigest()
    )
    dataset = load_dataset("cifar10", tmp_path / "data")
    assert dataset.fingerprint() == load_dataset("cifar10", tmp_path / "made").fingerprint()


def test_fashion_mnist_downloads_its_four_files(site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made").mkdir()
    write_fashion_mnist(tmp_path / "made")
    for path in (tmp_path / "made").iterdir():
        Handler.files[path.name] = path.read_bytes()
        monkeypatch.setitem(fashion_mnist.FILES, path.stem, hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(fashion_mnist, "SITE", site)
    dataset = load_dataset("fashion_mnist", tmp_path / "data")
    assert (len(dataset.train), len(dataset.test)) == (40, 10)
    assert dataset.remark == ""
