"""Small servers: a web that misbehaves in every way that a download has to survive, one of large files, and one that speaks S3."""

import contextlib
import hashlib
import os
import re
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from clipkit.recipe import DownloadKnobs

HOST = "images.example"


class Web:
    """A server on 127.0.0.1 that stands for any host on port 80 of `images.example`. `hits` counts requests by path."""

    def __init__(self) -> None:
        self.hits: Counter[str] = Counter()
        self.rules: dict[str, tuple[Any, ...]] = {}
        self.asked_rules: Counter[str] = Counter()
        self.stopping = threading.Event()
        self.seconds_per_answer = 0.0
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.web = self
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://{HOST}{path}"

    def knobs(self, **changes: Any) -> DownloadKnobs:
        here = {f"{HOST}:80": f"127.0.0.1:{self.port}"}
        return DownloadKnobs(
            **{
                "connect_to": here,
                "timeout_seconds": 5.0,
                "pause_seconds": 0.05,
                "connections": 8,
                "host_requests_per_second": 0,
                **changes,
            }
        )

    def stop(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()


def body_of(path: str) -> bytes:
    return b"\xff\xd8\xff\xe0" + path.encode() * 40


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    web: Web

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gives up is no event here."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        if self.path in ("/robots.txt", "/ai.txt"):
            self.serve_rules(self.path[1:])
            return
        self.server.web.hits[self.path] += 1
        time.sleep(self.server.web.seconds_per_answer)
        name = urlsplit(self.path).path.split("/")[1].replace("-", "_")
        if name.isdecimal():
            self.answer(b"not what you want", status=int(name))
        else:
            getattr(self, f"serve_{name}")()

    def answer(self, body: bytes, *headers: tuple[str, str], status: int = 200, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def query(self, name: str) -> list[str]:
        return parse_qs(urlsplit(self.path).query)[name]

    def serve_rules(self, name: str) -> None:
        """robots.txt and ai.txt, which are not among the hits: `web.rules` has (status, body, headers); status 0 hangs up."""
        self.server.web.asked_rules[name] += 1
        status, body, *headers = self.server.web.rules.get(name, (404, b""))
        if not status:
            self.serve_hang_up()
            return
        self.answer(body, *headers, status=status)

    def serve_ok(self) -> None:
        self.answer(body_of(self.path), ("Content-Type", "image/jpeg"))

    def serve_once(self) -> None:
        """/once/503/... fails the first time."""
        if self.server.web.hits[self.path] == 1:
            self.answer(b"", status=int(self.path.split("/")[2]))
        else:
            self.answer(body_of(self.path))

    def serve_echo(self) -> None:
        self.answer(str(self.headers).encode())

    def serve_until_close(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body_of(self.path))

    def serve_chunked(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")

    def serve_broken_chunks(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nhello")

    def serve_html(self) -> None:
        self.answer(b"<!DOCTYPE html><p>Log in to see this picture", ("Content-Type", "text/html"))

    def serve_empty(self) -> None:
        self.answer(b"")

    def serve_drip(self) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.web.stopping.wait(0.05):
            self.wfile.write(b".")

    def serve_drip_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not self.server.web.stopping.wait(0.05):
            self.wfile.write(b".")

    def serve_stall(self) -> None:
        self.server.web.stopping.wait(60)

    def serve_claims_long(self) -> None:
        self.answer(b"short", length=10**12)

    def serve_long(self) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.web.stopping.is_set():
            self.wfile.write(b"x" * 65536)

    def serve_loop(self) -> None:
        self.answer(b"", ("Location", self.path), status=302)

    def serve_redirect(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        tags = [("X-Robots-Tag", tag) for tag in asked.get("tag", [])]
        self.answer(b"", ("Location", asked["to"][0]), *tags, status=int(asked.get("status", ["301"])[0]))

    def serve_redirect_in_utf8(self) -> None:
        self.wfile.write("HTTP/1.1 302 Found\r\nLocation: /ok/\u732b\r\nContent-Length: 0\r\n\r\n".encode())

    def serve_steps(self) -> None:
        """/steps/3 redirects three times."""
        left = int(self.path.split("/")[2])
        if left:
            self.answer(b"", ("Location", str(left - 1)), status=307)
        else:
            self.answer(b"arrived")

    def serve_nowhere(self) -> None:
        self.answer(b"", status=302)

    def serve_robots(self) -> None:
        status = int((parse_qs(urlsplit(self.path).query).get("status") or ["200"])[0])
        self.answer(b"a picture", *(("X-Robots-Tag", tag) for tag in self.query("tag")), status=status)

    def serve_reserved(self) -> None:
        self.answer(body_of(self.path), ("TDM-Reservation", self.path[-1]))

    def serve_cut(self) -> None:
        self.answer(b"half", length=1000)

    def serve_reset(self) -> None:
        self.answer(b"half", length=1000)
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def serve_garbage(self) -> None:
        self.wfile.write(b"\0\1\2 this is no HTTP at all\r\n\r\n")

    def serve_many_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000)

    def serve_hang_up(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    yield web
    web.stop()


class Files:
    """A server of files on 127.0.0.1. By path: `content`; `cuts`, after how many bytes of the next answers it hangs up;
    `statuses` of the next answers, and `moved`, where a path is now. `asked` holds (path, headers) of every request."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.cuts: dict[str, list[int]] = {}
        self.statuses: dict[str, list[int]] = {}
        self.moved: dict[str, str] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.has_ranges = self.tells_version = self.tells_length = True
        self._server = _FileServer(("127.0.0.1", 0), _FileHandler)
        self._server.files = self
        self.base = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _FileServer(_Server):
    files: Files


class _FileHandler(BaseHTTPRequestHandler):
    server: _FileServer

    def do_GET(self) -> None:
        files, path = self.server.files, self.path
        files.asked.append((path, {name.lower(): value for name, value in self.headers.items()}))
        status = files.statuses[path].pop(0) if files.statuses.get(path) else 200
        if status == 200 and path in files.moved:
            self.send_response(302)
            self.send_header("Location", files.moved[path])
            self.end_headers()
        elif status != 200 or path not in files.content:
            self.send_error(status if status != 200 else 404)
        else:
            self.serve(files.content[path])

    def serve(self, body: bytes) -> None:
        files = self.server.files
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if files.has_ranges else None
        start = int(wanted[1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if files.tells_version:
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        if files.tells_length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cut = files.cuts[self.path].pop(0) if files.cuts.get(self.path) else len(body)
        self.wfile.write(body[start:][:cut])
        if cut < len(body) and not files.tells_length:
            time.sleep(0.1)  # a reset overtakes what was sent before it
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""


@pytest.fixture
def files() -> Iterator[Files]:
    files = Files()
    yield files
    files.stop()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, fs.S3FileSystem]:
    """The URL of a server that speaks S3, with credentials for it in the environment, and a file system to put objects there."""
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return s3_server, fs.S3FileSystem(
        endpoint_override=s3_server.removeprefix("http://"), scheme="http", region="us-east-1", allow_bucket_creation=True
    )


class Hostile:
    """A server of tables on 127.0.0.1. Who reads /killer.tsv is killed; /slow.tsv comes after `enough` is set; `asked` holds the paths."""

    def __init__(self) -> None:
        self.enough = threading.Event()
        self.asked: list[str] = []
        self._server = _HostileServer(("127.0.0.1", 0), _HostileHandler)
        self._server.hostile = self
        self.base = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self.enough.set()
        self._server.shutdown()
        self._server.server_close()


class _HostileServer(_Server):
    hostile: Hostile


class _HostileHandler(BaseHTTPRequestHandler):
    server: _HostileServer

    def do_GET(self) -> None:
        self.server.hostile.asked.append(self.path)
        if self.path == "/killer.tsv":
            os.kill(self.reader(), signal.SIGKILL)
            return
        if self.path == "/slow.tsv":
            self.server.hostile.enough.wait(60)
        rows = "".join(f"http://{self.path[1:-4]}.example/{n}.jpg\tA red dog and a cat in house number {n}\n" for n in range(40))
        body = f"url\ttext\n{rows}".encode()
        with contextlib.suppress(ConnectionError):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def reader(self) -> int:
        """The process at the other end, whatever other connections and processes come and go while it is looked for."""
        ends = [f"0100007F:{port:04X}" for port in (self.client_address[1], self.server.server_address[1])]
        for _ in range(100):  # the kernel's table may leave out a row while others change
            inodes = {row[9] for row in map(str.split, Path("/proc/net/tcp").read_text().splitlines()) if row[1:3] == ends}
            for process in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError):
                    for descriptor in os.listdir(f"/proc/{process}/fd"):
                        with contextlib.suppress(OSError):
                            if os.readlink(f"/proc/{process}/fd/{descriptor}").removeprefix("socket:[").removesuffix("]") in inodes:
                                return int(process)
        raise AssertionError(f"nobody has {self.client_address}")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    hostile = Hostile()
    yield hostile
    hostile.stop()
