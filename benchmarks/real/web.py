"""Pictures of a folder over loopback HTTP, as the web that a build downloads from."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextmanager
def serving(folder: Path, port_file: Path, *, prefix: str) -> Iterator[str]:
    """Serve the folder's files under `prefix` on a loopback port, the same one on every call; yields ADDRESS:PORT."""

    class Quiet(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def translate_path(self, path: str) -> str:
            return super().translate_path(path.removeprefix(prefix))

        def log_message(self, *_: object) -> None:
            pass

    port = int(port_file.read_text()) if port_file.exists() else 0
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(Quiet, directory=str(folder)))
    port_file.write_text(str(server.server_port))  # the port is part of the recipe: a resumed run must find the same one
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
