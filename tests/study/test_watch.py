"""study watch over real connections: what it serves, to whom, and how it ends."""

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from darts_sg.analysis.serving import HOST, Server, file_in
from darts_sg.errors import UsageError
from darts_sg.study.folder import StudyFolder
from darts_sg.study.watch import make_server, watch
from tests.analysis.test_page import CHROMIUM, QUIET
from tests.study.studies import made_up_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("watched")
    made_up_study(base / "study", without=("retrain_SG_1_s2",))
    (base / "secret.txt").write_text("secret")
    (base / "study" / "out.txt").symlink_to(base / "secret.txt")
    (base / "study" / "outside").symlink_to(base)
    (base / "study" / ".hidden").write_text("hidden")
    (base / "study" / "runs" / "odd.bin").write_bytes(b"\0")
    return base / "study"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with make_server(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def answer(server: Server, path: str, host: str | None = None, method: str = "GET") -> tuple[int, dict[str, str], str]:
    """(status, headers, body) of a request whose path goes over the wire as it is."""
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=20)
    try:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host or f"{HOST}:{server.server_port}")
        connection.endheaders()
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode("utf-8", "replace")
    finally:
        connection.close()


def test_the_page_is_served_and_follows_the_study(server: Server, folder: Path) -> None:
    status, headers, page = answer(server, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "connect-src 'self'" in page
    assert "Not finished: 20 done, 1 waiting of 21 jobs." in page
    live = server.RequestHandlerClass.args[0]  # type: ignore[attr-defined]
    live._keep_until = 0.0  # as if the page had been made long ago
    before = json.loads(answer(server, "/state.json")[2])["version"]
    assert f'follow("{before}"' in page
    states = StudyFolder(folder)
    state = states.state("retrain_SG_1_s2")
    states.write_state(state.changed(heartbeat=1.0))
    assert json.loads(answer(server, "/state.json")[2])["version"] == before  # a heartbeat changes nothing on the page
    states.write_state(state.changed(state="failed", attempts=3, failure="OSError: the disk is full"))
    assert json.loads(answer(server, "/state.json")[2])["version"] != before
    assert "OSError: the disk is full" in answer(server, "/")[2]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "localhost:1", "127.0.0.1.evil.example:80", "[::1]:80"])
def test_other_hosts_are_refused(server: Server, host: str) -> None:
    status, _, text = answer(server, "/", host)
    assert (status, text) == (403, f"this server answers to http://{HOST}:{server.server_port} only\n")


def test_it_answers_to_localhost_and_listens_on_the_loopback_only(server: Server) -> None:
    assert answer(server, "/study.yaml", f"localhost:{server.server_port}")[0] == 200
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert answer(server, "/", method="POST")[0] == 501


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/runs/../../secret.txt",
        "/..%2fsecret.txt",
        "/..\\secret.txt",
        "//etc/passwd",
        "/%2fetc%2fpasswd",
        "/out.txt",
        "/outside/secret.txt",
        "/.hidden",
        "/runs",
        "/nothing",
        "/study.yaml%00.html",
        "/jobs/%2e%2e%2f%2e%2e%2fsecret.txt",
    ],
)
def test_nothing_outside_the_folder_is_read(server: Server, path: str) -> None:
    status, _, text = answer(server, path)
    assert status == 404
    assert "secret" not in text
    assert "root:" not in text


def test_files_of_the_study_are_served_as_what_they_are(server: Server, folder: Path) -> None:
    status, headers, text = answer(server, "/study.yaml?x=1")
    assert (status, text) == (200, (folder / "study.yaml").read_text())
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert answer(server, "/runs/odd.bin")[1]["Content-Type"] == "application/octet-stream"
    status, headers, text = answer(server, "/runs/search_darts%2Bsandglass_first_s0/config.yaml", method="HEAD")
    assert (status, text) == (200, "")
    assert int(headers["Content-Length"]) > 100


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    assert file_in(tmp_path, "/b.txt") == (tmp_path / "a.txt").resolve()
    assert file_in(tmp_path, "/round") is None


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: chromium, chromium-browser or google-chrome")
def test_in_a_browser_the_page_follows_a_change(server: Server, folder: Path, tmp_path: Path) -> None:
    live = server.RequestHandlerClass.args[0]  # type: ignore[attr-defined]
    live._made, live._keep_until = ("", b""), 0.0
    states = StudyFolder(folder)

    def change() -> None:
        while not live._made[0]:
            time.sleep(0.01)
        states.write_state(states.state("retrain_SG_1_s2").changed(state="failed", failure="seen without a reload"))
        live._keep_until = 0.0

    thread = threading.Thread(target=change)
    thread.start()
    options = [*QUIET, f"user-data-dir={tmp_path / 'profile'}", "virtual-time-budget=30000", "dump-dom"]
    url = f"http://{HOST}:{server.server_port}/"
    command = [str(CHROMIUM), *(f"--{option}" for option in options), url]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    thread.join()
    assert "seen without a reload" in dom
    assert f'follow("{live.version()}"' not in dom  # the script is that of the page before


def test_ctrl_c_ends_it_cleanly(folder: Path) -> None:
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if line:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    try:
        watch(folder, 0, say)  # returns, so the command exits with 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert lines[0].startswith("http://127.0.0.1:")
    assert lines[1:] == [""]


def test_what_cannot_be_watched_is_answered(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not the folder of a study"):
        watch(tmp_path, 0)
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"--port {port}: .*choose another one, or 0 for any free port"):
            watch(folder, port)
