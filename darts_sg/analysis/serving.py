"""Serves the page of a folder on this machine while something in it runs, such as a study; it never writes."""

import functools
import json
import mimetypes
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from darts_sg.errors import UsageError
from darts_sg.files import read_bytes, why

HOST = "127.0.0.1"
LARGEST_FILE = 2**28
SHOWN_AS_TEXT = {".md", ".yaml", ".yml", ".csv", ".tex", ".log", ".txt"}
SHOWN_AS_THEY_ARE = {".html", ".json", ".svg", ".png", ".gif", ".pdf"}
POLL_MILLISECONDS = 3000
"""Between two questions of a page whether something has changed."""
FOLLOW_SCRIPT = Path(__file__).with_name("follow.js")
"""The part of a page's script that asks and takes over what is new."""
REST = 10  # the page is made again after this many times as long as making it took: runs need the processor more


class LivePage(ABC):
    """A page about a folder, made again when something that it shows has changed."""

    kind = "folder"
    """The subject in a word."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._made: tuple[str, bytes] = "", b""
        self._keep_until = 0.0

    @abstractmethod
    def state(self) -> str:
        """A text that changes with what the page shows."""

    @abstractmethod
    def make(self, version: str) -> str:
        """The page of this version as HTML. Raises UsageError if a file cannot be read."""

    def version(self) -> str:
        """`state`, but no new one more often than the page may be made again."""
        return self._made[0] if time.monotonic() < self._keep_until else self.state()

    def page(self) -> bytes:
        """The page as of now. Raises UsageError if a file cannot be read."""
        with self._lock:  # one request makes it, the others wait for that
            version = self.version()
            if self._made[0] != version:
                begun = time.monotonic()
                self._made = version, self.make(version).encode()
                self._keep_until = time.monotonic() + REST * (time.monotonic() - begun)
            return self._made[1]


class Handler(BaseHTTPRequestHandler):
    """Answers with the page, its version, and files of its folder."""

    server_version = "darts-sg"
    sys_version = ""

    def __init__(self, live: LivePage, *arguments: object) -> None:
        self.live = live
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Answer a request, which must name this machine as its host."""
        # A page of another site may name this server by a host name of its own (DNS rebinding): refuse any but ours.
        assert isinstance(self.server, HTTPServer)
        port = self.server.server_port
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            self._answer(HTTPStatus.FORBIDDEN, f"this server answers to http://{HOST}:{port} only\n".encode())
            return
        path = unquote(urlsplit(self.path).path)
        try:
            if path == "/":
                self._answer(HTTPStatus.OK, self.live.page(), "text/html; charset=utf-8")
            elif path == "/state.json":
                state = json.dumps({"version": self.live.version()}).encode()
                self._answer(HTTPStatus.OK, state, "application/json")
            else:
                self._file(path)
        except UsageError as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error}\n".encode())

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _file(self, path: str) -> None:
        found = file_in(self.live.folder, path)
        if found is None:
            self._answer(HTTPStatus.NOT_FOUND, f"no such file in the folder of the {self.live.kind}\n".encode())
            return
        try:
            content = read_bytes(found, LARGEST_FILE)
        except OSError as error:
            self._answer(HTTPStatus.NOT_FOUND, f"{found.name}: {why(error)}\n".encode())
            return
        self._answer(HTTPStatus.OK, content, content_type(found))

    def _answer(self, status: HTTPStatus, content: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing: the page asks every few seconds."""


class Server(ThreadingHTTPServer):
    """Serves each request in a thread of its own."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over a browser that went away; print anything else."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def file_in(folder: Path, path: str) -> Path | None:
    """The regular file at `path` below `folder`, or None.

    Symbolic links count by where they lead: nothing outside the folder is ever read. Hidden files do not exist here.
    """
    parts = [part for part in path.split("/") if part]
    if not parts or "\0" in path or "\\" in path or any(part.startswith(".") for part in parts):
        return None
    root = folder.resolve()
    try:
        found = root.joinpath(*parts).resolve()
    except (OSError, RuntimeError):  # a circle of links
        return None
    return found if found.is_relative_to(root) and found.is_file() else None


def content_type(path: Path) -> str:
    """The content type of a file; a browser offers files of unknown kinds for download."""
    if path.suffix in SHOWN_AS_TEXT:
        return "text/plain; charset=utf-8"
    if path.suffix == ".html":
        return "text/html; charset=utf-8"
    known = mimetypes.guess_type(path.name)[0] if path.suffix in SHOWN_AS_THEY_ARE else None
    return known or "application/octet-stream"


def state_of_files(paths: Iterable[Path]) -> str:
    """A text that changes when one of the files is written."""
    facts = []
    for path in sorted(paths):
        try:
            status = path.stat()
        except OSError:  # removed or replaced in this moment
            continue
        facts.append(f"{path}\0{status.st_mtime_ns}\0{status.st_size}\0")
    return "".join(facts)


def make_server(live: LivePage, port: int) -> Server:
    """A server of the page on 127.0.0.1; port 0 takes any free one. Raises UsageError if the port is taken."""
    try:
        return Server((HOST, port), functools.partial(Handler, live))
    except OSError as error:
        raise UsageError(f"--port {port}: {why(error)}; choose another one, or 0 for any free port") from None


def serve(live: LivePage, port: int, say: Callable[[str], None] = print) -> None:
    """Serve the page until Ctrl-C. Raises UsageError if the port is taken."""
    with make_server(live, port) as server:
        say(f"http://{HOST}:{server.server_port}/   shows {live.folder}; Ctrl-C ends it")
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            say("")
