"""Serves the small web on loopback ports, one per host, and misbehaves where `web.json` says so.

    with serving(web, root / "files", ports) as server:
        ...  # server.ports: {"shapes.example": 21871, ...}

The hosts are threads of this process: they cannot outlive it.
"""

import contextlib
import errno
import socket
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipkit.demo.truth import HOSTS, Web

DEFAULT_PORTS: Mapping[str, int] = {host: 21871 + i for i, host in enumerate(HOSTS)}
"""The ports that `recipes/build-dataset/demo.toml` names."""

TYPES = {".webp": "image/webp", ".jpg": "image/jpeg", ".png": "image/png", ".gif": "image/gif"}
DRIPS = 16


class PortTakenError(OSError):
    """A port is in use. `port` says which."""

    def __init__(self, port: int) -> None:
        """`port`: the one that could not be had."""
        super().__init__(errno.EADDRINUSE, f"port {port} is in use")
        self.port = port


class WebServer:
    """The hosts of a web, each listening on its port. `ports` are the real ones where 0 was asked for."""

    def __init__(self, web: Web, files: Path, ports: Mapping[str, int]) -> None:
        """Start to listen and to serve. Raises PortTakenError, and then holds no port."""
        self.stopping = threading.Event()
        self.answers = {_without_query(picture.url): (picture.file, picture.serve) for picture in web.pictures}
        redirected = [picture for picture in web.pictures if "location" in picture.serve]
        self.answers |= {_without_query(str(picture.serve["location"])): (picture.file, {}) for picture in redirected}
        self.answers |= {picture.url: (None, picture.serve) for picture in redirected}
        self.files = files
        self._servers: list[_Server] = []
        try:
            for host in web.hosts:
                self._servers.append(_listen(self, ports[host]))
        except PortTakenError:
            self._close()
            raise
        self.ports = {host: int(server.server_address[1]) for host, server in zip(web.hosts, self._servers, strict=True)}
        self._threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True) for server in self._servers
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop listening, wake whoever is being slow, and wait until no host accepts any more."""
        self.stopping.set()
        for server in self._servers:
            server.shutdown()
        for thread in self._threads:
            thread.join()
        self._close()

    def _close(self) -> None:
        for server in self._servers:
            server.server_close()


@contextlib.contextmanager
def serving(web: Web, files: Path, ports: Mapping[str, int]) -> Iterator[WebServer]:
    """The web's hosts for the time of a `with` block; port 0 means any free one. Raises PortTakenError."""
    server = WebServer(web, files, ports)
    try:
        yield server
    finally:
        server.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    # On some systems the default would let two demos listen on one port.
    allow_reuse_port = False

    def __init__(self, web: WebServer, port: int) -> None:
        self.web = web
        super().__init__(("127.0.0.1", port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own would ask DNS for this machine's name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no event here."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "small-web"
    sys_version = ""
    timeout = 60
    wbufsize = -1

    def do_GET(self) -> None:
        """Answer as `web.json` says; what it does not know is 404."""
        host = self.headers.get("Host", "").partition(":")[0]
        web = self.server.web
        file, serve = web.answers.get(f"http://{host}{_without_query(self.path)}", (None, {"status": 404}))
        if seconds := serve.get("delay_seconds"):
            self._answer_slowly(web.files / str(file), float(seconds), drip=bool(serve.get("drip")))
            return
        status = int(serve.get("status", 200))
        body = (web.files / file).read_bytes() if file is not None and status == 200 else b"" if status == 302 else b"not here"
        self._send_head(status, file, len(body), serve)
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""

    def _answer_slowly(self, path: Path, seconds: float, *, drip: bool) -> None:
        """Wait, then answer; or answer at once, and send the body drop by drop."""
        body = path.read_bytes()
        stopping = self.server.web.stopping
        if not drip and stopping.wait(seconds):
            self.close_connection = True
            return
        self._send_head(200, path.name, len(body), {})
        step = -(-len(body) // DRIPS)
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            self.wfile.flush()
            if drip and stopping.wait(seconds / DRIPS):
                self.close_connection = True
                return

    def _send_head(self, status: int, file: str | None, length: int, serve: Mapping[str, Any]) -> None:
        suffix = Path(file).suffix if file is not None and status == 200 else ".txt"
        headers = {"Content-Type": TYPES.get(suffix, "text/plain"), "Content-Length": str(length)}
        headers |= {"Location": str(serve["location"])} if "location" in serve else {}
        self.send_response(status)
        for name, value in {**headers, **serve.get("headers", {})}.items():
            self.send_header(name, value)
        self.end_headers()


def _listen(web: WebServer, port: int) -> _Server:
    try:
        return _Server(web, port)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise PortTakenError(port) from None
        raise


def _without_query(url: str) -> str:
    return urlsplit(url)._replace(query="").geturl()
