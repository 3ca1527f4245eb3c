"""Files behind https:// and http:// as streams that go on where a connection dropped, as long as the server still has the same file.

The hosts are those that the user's own recipe names, so they may be private; a redirect to another host may lead to public ones only.
"""

import contextlib
import http.client
import io
import re
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from http.client import HTTPMessage
from typing import IO, Any, BinaryIO, NamedTuple, cast
from urllib.parse import quote, urlsplit

from clipkit.dataset.addresses import is_public
from clipkit.dataset.pages.warc import BrokenFileError, OutOfReachError
from clipkit.recipe import StorageKnobs

__all__ = ["fetch_to_temporary", "open_web_file"]

MAX_REDIRECTS = 5
MAX_PAUSE_SECONDS = 60.0
NEVER_REACHED_TRIES = 3
"""At most, for a host that cannot be found or refuses, and has answered nothing yet."""
LEAST_BYTES_PER_SECOND = 1_000
SECONDS_OF_PACE = 60.0
_PROGRESS = 1 << 20
_BLOCK = 1 << 20
_PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})")
_SAFE = "%/:=&?~+!$,;'@()*[]"


def open_web_file(url: str, knobs: StorageKnobs, user_agent: str) -> BinaryIO:
    """The file as a stream. Raises BrokenFileError, also while it is read, for what the server will not give."""
    file = _WebFile(url, knobs, user_agent)
    file.connect()
    return _Buffered(file, _BLOCK)


def fetch_to_temporary(url: str, knobs: StorageKnobs, user_agent: str) -> BinaryIO:
    """The file in a temporary one without a name, which is gone when it is closed. Raises BrokenFileError past `max_table_bytes`."""
    temporary = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        with open_web_file(url, knobs, user_agent) as file:
            while block := file.read(_BLOCK):
                temporary.write(block)
                if temporary.tell() > knobs.max_table_bytes:
                    raise BrokenFileError(f"it has over `storage.max_table_bytes`, {knobs.max_table_bytes:,} bytes")
    except BaseException:
        temporary.close()
        raise
    temporary.seek(0)
    return cast(BinaryIO, temporary)


class _Version(NamedTuple):
    """What a server tells about the file that it has now; None where it does not."""

    length: int | None
    tag: str | None
    modified: str | None

    def differs(self, other: "_Version") -> bool:
        """Whether something that both tell is not the same, or both tell nothing in common."""
        told = [(mine, its) for mine, its in zip(self, other, strict=True) if mine is not None and its is not None]
        return not told or any(mine != its for mine, its in told)


class _DroppedError(Exception):
    """A reason that may pass, and the pause that the server asked for in seconds."""

    def __init__(self, reason: str, pause: float = 0.0, *, is_elsewhere: bool = False) -> None:
        super().__init__(reason)
        self.pause = pause
        self.is_elsewhere = is_elsewhere


class _Pace:
    """Reads the next bytes of a response; raises _DroppedError where a minute of reading brings no more than a trickle."""

    def __init__(self) -> None:
        self._bytes = 0
        self._seconds = 0.0

    def read(self, response: http.client.HTTPResponse, size: int) -> bytes:
        start = time.monotonic()
        try:
            block = response.read1(min(size, _BLOCK))
        except (OSError, http.client.HTTPException) as error:
            raise _DroppedError(_reason(error)) from None
        self._bytes += len(block)
        self._seconds += time.monotonic() - start
        if self._seconds >= SECONDS_OF_PACE:
            if self._bytes < LEAST_BYTES_PER_SECOND * self._seconds:
                raise _DroppedError(f"it comes at less than {LEAST_BYTES_PER_SECOND:,} bytes a second")
            self._bytes, self._seconds = 0, 0.0
        return block


class _Buffered(io.BufferedReader):
    """As its base, but a read that meets the place where the file broke gives what was read before; the next one raises."""

    def read(self, size: int | None = -1) -> bytes:
        """At most `size` bytes, all where it is negative. Raises BrokenFileError where the file breaks before the first of them."""
        if size is None or size < 0:
            return super().read(size)
        left = size
        blocks: list[bytes] = []
        while left > 0:
            try:
                block = self.read1(min(left, _BLOCK))
            except BrokenFileError:
                if blocks:
                    break
                raise
            if not block:
                break
            blocks.append(block)
            left -= len(block)
        return b"".join(blocks)


class _WebFile(io.RawIOBase):
    """A response, and those to later requests for the rest of the file. Once broken, it stays so."""

    def __init__(self, url: str, knobs: StorageKnobs, user_agent: str) -> None:
        self._url = url
        self._knobs = knobs
        self._headers = {"User-Agent": user_agent, "Accept": "*/*", "Accept-Encoding": "identity"}
        self._response: http.client.HTTPResponse | None = None
        self._version: _Version | None = None
        self._pace = _Pace()
        self._position = self._last_drop = 0
        self._failures = 0
        self._broken: BrokenFileError | None = None

    def readable(self) -> bool:
        """Always."""
        return True

    def connect(self) -> None:
        """Ask for the file from the present position on, again and again where the reason may pass."""
        if self._broken is not None:
            raise self._broken
        while self._response is None:
            try:
                self._response = self._request()
            except _DroppedError as dropped:
                self._wait(dropped)
            except BrokenFileError as broken:
                self._broken = broken
                raise

    def readinto(self, buffer: Any) -> int:
        """Read some bytes, 0 at the end, from as many responses as it takes. Raises BrokenFileError."""
        while True:
            self.connect()
            try:
                count = self._read(buffer)
            except _DroppedError as dropped:
                self._disconnect()
                self._wait(dropped)
                continue
            self._position += count
            return count

    def close(self) -> None:
        """Close the connection too."""
        self._disconnect()
        super().close()

    def _read(self, buffer: Any) -> int:
        assert self._response is not None
        assert self._version is not None
        block = self._pace.read(self._response, len(buffer))
        count = len(block)
        buffer[:count] = block
        if count == 0 and len(buffer) and self._version.length is not None and self._position < self._version.length:
            raise _DroppedError(f"cut off after {self._position:,} of {self._version.length:,} bytes")
        return count

    def _request(self) -> http.client.HTTPResponse:
        headers = self._headers | ({"Range": f"bytes={self._position}-"} if self._position else {})
        response = _ask(self._url, headers, self._knobs.timeout_seconds)
        try:
            self._check(response)
        except BaseException:
            response.close()
            raise
        return response

    def _check(self, response: http.client.HTTPResponse) -> None:
        """The file must be the one whose beginning has been read, from where its reading broke off."""
        start, version = _version(response)
        if self._position == 0:
            self._version = version
        elif self._version is None or self._version.differs(version):
            raise BrokenFileError(f"its connection dropped after {self._position:,} bytes and the server has another file there now")
        if start > self._position:
            raise BrokenFileError(f"the server answers with bytes from {start:,} on, not from {self._position:,}")
        # A server without ranges begins anew.
        _skip(response, self._position - start, self._pace)

    def _wait(self, dropped: _DroppedError) -> None:
        self._failures = 1 if self._position - self._last_drop >= _PROGRESS else self._failures + 1
        self._last_drop = self._position
        most = self._knobs.tries
        if dropped.is_elsewhere and self._version is None:
            most = min(most, NEVER_REACHED_TRIES)
        if self._failures >= most:
            self._broken = OutOfReachError(f"{dropped}, tried {self._failures} times")
            raise self._broken from None
        time.sleep(min(max(self._knobs.pause_seconds * 2 ** (self._failures - 1), dropped.pause), MAX_PAUSE_SECONDS))

    def _disconnect(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response = None
        self._pace = _Pace()


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """The request that follows. Raises BrokenFileError where it would leave https or enter a private network."""
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        reason = ""
        if before.scheme == "https" and after.scheme != "https":
            reason = "which is not https"
        elif _is_elsewhere(after.hostname, req) and not _may_be_public(after.hostname or ""):
            reason = "a host without a public address"
        if reason:
            fp.close()
            raise BrokenFileError(f"it is redirected to `{newurl.partition('?')[0][:200]}`, {reason}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _PublicConnection(http.client.HTTPConnection):
    """Connects to an address that was seen to be public, and does not ask for it by name again."""

    def connect(self) -> None:
        addresses = _public_addresses(self.host, self.port)
        for address in addresses:
            with contextlib.suppress(OSError):
                self.sock = socket.create_connection(address, self.timeout)
                return
        raise ConnectionError("no address of the host can be reached")


class _PublicTlsConnection(http.client.HTTPSConnection, _PublicConnection):
    """The same under TLS, which the first of its bases puts around the connection of the second."""


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PublicConnection, req) if _must_be_public(req) else super().http_open(req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PublicTlsConnection, req) if _must_be_public(req) else super().https_open(req)


def _opener() -> urllib.request.OpenerDirector:
    """As urllib's own, with neither file:// nor ftp://."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        _Http,
        _Https,
        _Redirects,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
    ):
        opener.add_handler(handler())
    return opener


def _ask(url: str, headers: Mapping[str, str], timeout: float) -> http.client.HTTPResponse:
    """The response, whose status is 200 or 206."""
    try:
        request = urllib.request.Request(quote(url, safe=_SAFE), headers=dict(headers))
        response = cast(http.client.HTTPResponse, _opener().open(request, timeout=timeout))
    except urllib.error.HTTPError as error:
        with error:
            reason = f"the server answers {error.code} {error.reason}"
            if error.code in _PASSING:
                raise _DroppedError(reason, _asked_pause(error.headers)) from None
            raise BrokenFileError(reason) from None
    except (ValueError, http.client.InvalidURL) as error:
        raise BrokenFileError(f"it is no URL: {error}") from None
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        raise _DroppedError(_reason(error), is_elsewhere=isinstance(cause, (socket.gaierror, ConnectionRefusedError))) from None
    if response.status not in (200, 206):
        response.close()
        raise BrokenFileError(f"the server answers {response.status} {response.reason}")
    return response


def _version(response: http.client.HTTPResponse) -> tuple[int, _Version]:
    """The position at which an answer starts, and the version of the whole file."""
    start, length = 0, response.length
    if response.status == 206:
        told = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if told is None:
            raise BrokenFileError("the server answers with a part of the file and does not say which")
        start, length = int(told[1]), int(told[2])
    return start, _Version(length, response.headers.get("ETag"), response.headers.get("Last-Modified"))


def _skip(response: http.client.HTTPResponse, count: int, pace: _Pace) -> None:
    while count > 0:
        block = pace.read(response, count)
        if not block:
            raise _DroppedError(f"cut off {count:,} bytes before the place where it dropped")
        count -= len(block)


def _asked_pause(headers: Message) -> float:
    asked = headers.get("Retry-After", "")
    return float(asked) if re.fullmatch(r"\d{1,6}", asked) else 0.0


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", None) or error
    return " ".join(str(cause).split()) or type(cause).__name__


def _must_be_public(request: urllib.request.Request) -> bool:
    """Whether a redirect has led to another host than the one that was named; where a proxy connects, its address is the user's."""
    host = urlsplit(request.full_url).hostname or ""
    has_proxy = request.type in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)
    return _is_elsewhere(host, request) and not has_proxy


def _is_elsewhere(host: str | None, request: urllib.request.Request) -> bool:
    return host != request.origin_req_host.strip("[]")


def _may_be_public(host: str) -> bool:
    """Whether nothing speaks against it: a name that is not known here may be known to a proxy, and without one leads nowhere."""
    try:
        return bool(_public_addresses(host, 0))
    except OSError:
        return True
    except BrokenFileError:
        return False


def _public_addresses(host: str, port: int) -> list[tuple[str, int]]:
    """What the name stands for. Raises OSError for a name that is not known, BrokenFileError where not all of it is public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise BrokenFileError(f"it is redirected to `{host}`, which is no name of a host") from None
    addresses = [(str(address[0]), port) for *_, address in found]
    if not all(is_public(address) for address, _ in addresses):
        raise BrokenFileError(f"it is redirected to `{host}`, a host without a public address")
    return addresses
