"""Test sets that stay on the web: files read by HTTP range requests, from public addresses alone.

A task's file may come from a stranger, and so may a redirect: each connection goes to an address that was looked up and checked
first. `CLIPKIT_PRIVATE_ADDRESSES=1` allows servers of the own network.
"""

import http.client
import io
import ipaddress
import itertools
import os
import re
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast
from urllib.parse import quote, urljoin, urlsplit

from clipkit import UserError, __version__
from clipkit.evaluation.splits.split import Place

MAX_REDIRECTS = 5
TRIES = 4
TIMEOUT_SECONDS = 60
AHEAD_BYTES = 4_000_000
"""Read at once where a tar is gone through."""
MOST_AT_ONCE_BYTES = 64_000_000
TEMPORARY = frozenset({429, 500, 502, 503, 504})


def is_address(folder: str) -> bool:
    """Whether a task's folder is on the web."""
    return folder.startswith(("hf://", "https://", "http://"))


def to_url(address: str) -> str:
    """`hf://OWNER/NAME/FOLDER` as the URL that a data set of the Hugging Face hub has; other addresses as they are."""
    if not address.startswith("hf://"):
        return address.rstrip("/")
    owner, _, rest = address.removeprefix("hf://").partition("/")
    name, _, folder = rest.strip("/").partition("/")
    if not (re.fullmatch(r"[\w.-]{1,100}", owner) and re.fullmatch(r"[\w.-]{1,100}", name)) or ".." in folder.split("/"):
        raise UserError(f"`{address}` should be hf://OWNER/NAME or hf://OWNER/NAME/FOLDER of a data set")
    return f"https://huggingface.co/datasets/{owner}/{name}/resolve/main/{quote(folder)}".rstrip("/")


class WebFolder:
    """A folder on the web: its files by name."""

    def __init__(self, address: str) -> None:
        """`address`: `hf://OWNER/NAME/...` or `https://...`."""
        self.url = to_url(address)

    def where(self, name: str) -> str:
        """The file's URL."""
        return f"{self.url}/{quote(name)}"

    def text(self, name: str, max_bytes: int) -> str | None:
        """A small text file; None where the server has none."""
        data = fetch_range(self.where(name), 0, max_bytes + 1)
        if data is not None and len(data) > max_bytes:
            raise UserError(f"`{self.where(name)}` is over {max_bytes:,} bytes: that is not the file of a test set")
        return None if data is None else data.decode("utf-8", "replace")

    def open(self, name: str) -> BinaryIO:
        """A file, fetched piece by piece as it is read."""
        return cast(BinaryIO, io.BufferedReader(_WebFile(self.where(name)), AHEAD_BYTES))


class _WebFile(io.RawIOBase):
    """A file on the web that can be sought in."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url, self.position = url, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence not in (io.SEEK_SET, io.SEEK_CUR):
            raise io.UnsupportedOperation("the end of a file on the web is not known")
        self.position = offset + (self.position if whence == io.SEEK_CUR else 0)
        return self.position

    def readinto(self, buffer: Any) -> int:
        data = fetch_range(self.url, self.position, len(buffer))
        if data is None:
            raise FileNotFoundError(2, "the server has no such file")
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


@dataclass(frozen=True)
class WebFiles:
    """Pictures in files on the web; neighbours come with one request."""

    places: Sequence[Place]
    folder: WebFolder

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.places)

    def read(self, start: int, stop: int) -> list[bytes]:
        """Encoded pictures start..stop, in order. Raises UserError where the server has become another."""
        pictures: list[bytes] = []
        for path, group in itertools.groupby(self.places[start:stop], key=lambda place: place.path):
            for run in _runs(list(group)):
                first = run[0].offset
                size = run[-1].offset + run[-1].size - first
                data = fetch_range(path, first, size)
                if data is None or len(data) != size:
                    raise UserError(f"`{path}` has become shorter while it was read: run the same command again")
                pictures += [data[place.offset - first :][: place.size] for place in run]
        return pictures


def _runs(places: Sequence[Place]) -> list[list[Place]]:
    """Places in rising order, cut where one request would become too large."""
    runs: list[list[Place]] = []
    for place in places:
        fits = runs and runs[-1][-1].offset <= place.offset and place.offset + place.size - runs[-1][0].offset <= MOST_AT_ONCE_BYTES
        if fits:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def fetch_range(url: str, start: int, size: int) -> bytes | None:
    """At most `size` bytes of a file on the web from `start` on; None where the server has no such file, empty behind its end.

    Tries again where the server is busy. Raises UserError where it cannot be had or lies in a private network.
    """
    if size <= 0:
        return b""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(0.2 * 4**attempt)
        try:
            status, data = _followed(url, start, size)
        except (OSError, http.client.HTTPException) as error:
            status, data = 0, str(error).encode()
        if status not in TEMPORARY | {0}:
            break
    if status == 404:
        return None
    if status == 416:
        return b""
    if status not in (200, 206):
        reason = data.decode("utf-8", "replace")[:200] if status == 0 else f"HTTP status {status}"
        raise UserError(f"`{url}` cannot be fetched ({reason}): check the address, or fetch the test set by hand")
    if status == 200 and start:
        raise UserError(f"the server of `{url}` does not serve parts of a file: fetch the test set by hand")
    return data


def _followed(url: str, start: int, size: int) -> tuple[int, bytes]:
    """Status and body of one request, its redirects followed, each checked."""
    for _ in range(MAX_REDIRECTS):
        connection = _connected(url)
        try:
            parts = urlsplit(url)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            span = f"bytes={start}-{start + size - 1}"
            connection.request(
                "GET", target, headers={"Range": span, "User-Agent": f"clipkit/{__version__}", "Accept-Encoding": "identity"}
            )
            answer = connection.getresponse()
            if answer.status in (301, 302, 303, 307, 308) and (location := answer.getheader("Location")):
                url = urljoin(url, location)
                continue
            return answer.status, answer.read(size) if answer.status in (200, 206) else b""
        finally:
            connection.close()
    raise UserError(f"`{url}` redirects more than {MAX_REDIRECTS} times: fetch the test set by hand")


def _connected(url: str) -> http.client.HTTPConnection:
    """A connection to the server of a URL, at an address that was checked before."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"`{url}` should begin with https:// and name a server")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"the server of `{url}` is not known ({error}): check the address and the network") from None
    address = str(found[0][4][0])
    if os.environ.get("CLIPKIT_PRIVATE_ADDRESSES") != "1" and not _is_public(address):
        raise UserError(
            f"`{url}` leads to {address}, which is no public address: set CLIPKIT_PRIVATE_ADDRESSES=1 if that server is your own"
        )
    connection = http.client.HTTPConnection(parts.hostname, port, timeout=TIMEOUT_SECONDS)
    connection.sock = socket.create_connection((address, port), timeout=TIMEOUT_SECONDS)
    if parts.scheme == "https":
        connection.sock = ssl.create_default_context().wrap_socket(connection.sock, server_hostname=parts.hostname)
    return connection


def _is_public(address: str) -> bool:
    """Whether an IP address belongs to the public Internet, also where IPv6 wraps an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in ipaddress.IPv6Network("64:ff9b::/96"):
            wrapped = ipaddress.IPv4Address(ip.packed[-4:])
        if wrapped or ip.is_site_local:
            return bool(wrapped) and _is_public(str(wrapped))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved
