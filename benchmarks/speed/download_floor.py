"""The floor of the download benchmark: one process, a loop over keep-alive connections, bytes from the socket to one file, nothing else.

python benchmarks/speed/download_floor.py URLS OUT CONNECTIONS
"""

import selectors
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit


class Line:
    """One keep-alive connection of the floor to one host at a time: asks for its URLs and hands on what comes."""

    def __init__(self, urls: list[str]) -> None:
        """Connect and ask for the last of `urls`, which are all of one host."""
        self.urls = urls
        self.left = 0
        self.head = b""
        parts = urlsplit(urls[-1])
        self.socket = socket.create_connection((parts.hostname, parts.port))
        self.ask()

    def ask(self) -> None:
        """Ask for the next URL."""
        parts = urlsplit(self.urls.pop())
        self.socket.sendall(f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        self.head, self.left = b"", 0

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """(bytes of the image, whether it is whole)."""
        if not self.left:
            self.head += data
            head, end, data = self.head.partition(b"\r\n\r\n")
            if not end:
                return b"", False
            self.left = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        self.left -= len(data)
        return data, self.left == 0


def main() -> None:
    """Fetch the URLs of a file into one file; prints how many came."""
    urls = Path(sys.argv[1]).read_text().split()
    hosts: dict[str, list[str]] = {}
    for url in urls:
        hosts.setdefault(urlsplit(url).netloc, []).append(url)
    waiting, done = list(hosts.values()), 0
    with selectors.DefaultSelector() as selector, open(sys.argv[2], "wb") as file:
        for _ in range(min(int(sys.argv[3]), len(waiting))):
            line = Line(waiting.pop())
            selector.register(line.socket, selectors.EVENT_READ, line)
        while selector.get_map():
            for key, _ in selector.select():
                line = key.data
                data, is_whole = line.take(line.socket.recv(1 << 18))
                file.write(data)
                if not is_whole:
                    continue
                done += 1
                if line.urls:
                    line.ask()
                    continue
                selector.unregister(line.socket)
                line.socket.close()
                if waiting:
                    line = Line(waiting.pop())
                    selector.register(line.socket, selectors.EVENT_READ, line)
    print(done)


if __name__ == "__main__":
    main()
