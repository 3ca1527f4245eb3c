"""One image by its URL: a total deadline, a cap on bytes, redirects, opt-outs, and no way into private networks.

Every URL ends in exactly one named outcome, never in an exception:

* `ok`; `opted_out` (X-Robots-Tag); `not_found` (404, 410); `forbidden` (401, 403); `http_error_NNN` (any other status);
* `timeout`; `connection` (refused, reset, cut off); `dns_failure` (the resolver could not say); `no_such_host`; `tls`;
* `too_long`; `empty`; `redirects` (too many, or nowhere); `bad_response` (not HTTP); `bad_url`; `private_address`.

Connections go straight to the hosts, never through a proxy: a proxy would hide which address is reached.
"""

import contextlib
import http.client
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader, RawIOBase
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from clipkit import UserError
from clipkit.dataset.addresses import is_public
from clipkit.dataset.opt_outs import agent_of, opts_out
from clipkit.recipe import DownloadKnobs

__all__ = ["Fetched", "Fetcher", "check_knobs", "is_passing"]

MAX_URL_LENGTH = 8_192
_PASSING = {"timeout", "connection", "dns_failure", "http_error_429"}
_ADDRESSES_TRIED = 4
_CHUNK = 1 << 16


class Fetched(NamedTuple):
    """How one URL ended; `image` holds bytes where the outcome is "ok"."""

    outcome: str
    image: bytes | None = None


def is_passing(outcome: str) -> bool:
    """Whether the reason may pass, so that another round is worth it: timeouts, broken connections, 429 and 5xx."""
    return outcome in _PASSING or outcome.startswith("http_error_5")


def check_knobs(knobs: DownloadKnobs) -> None:
    """Raise UserError for a User-Agent that is no header and for a `connect_to` that is not HOST:PORT = ADDRESS:PORT."""
    if not knobs.user_agent.isascii() or not knobs.user_agent.isprintable():
        raise UserError(f"knob `download.user_agent` is {knobs.user_agent!r}: a header has printable ASCII characters only")
    _connections(knobs.connect_to)


class Fetcher:
    """Fetches images by the rules of the knobs. Its `fetch` may be called from many threads."""

    def __init__(self, knobs: DownloadKnobs) -> None:
        """Raises UserError as `check_knobs`."""
        check_knobs(knobs)
        self.knobs = knobs
        self.agent = agent_of(knobs.user_agent)
        self.connections = _connections(knobs.connect_to)
        self.tls = ssl.create_default_context()
        # A resolver cannot be told to hurry: it is asked in a thread that is not waited for past the deadline.
        self._resolvers = ThreadPoolExecutor(knobs.threads, thread_name_prefix="dns")
        self._resolved: dict[tuple[str, int], list[tuple[int, Any]]] = {}

    def close(self) -> None:
        """Let the resolvers' threads end, without waiting for those that still ask."""
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    def fetch(self, url: str) -> Fetched:
        """Fetch one image. Does not raise for anything that a URL, a server or a network does."""
        deadline = time.monotonic() + self.knobs.timeout_seconds
        try:
            for _ in range(self.knobs.max_redirects + 1):
                fetched, url = self._hop(url, deadline)
                if fetched is not None:
                    return fetched
            return Fetched("redirects")
        except _EndedError as ended:
            return Fetched(ended.outcome)
        except Exception as error:
            if outcome := _outcome_of(error):
                return Fetched(outcome)
            raise

    def _hop(self, url: str, deadline: float) -> tuple[Fetched | None, str]:
        """One request: (what it ended in, "") or (None, where it is redirected to)."""
        scheme, host, port, target = _parse_url(url)
        connect = lambda: self._connect(scheme, host, port, deadline)  # noqa: E731
        with contextlib.closing(_Connection(host, port, 443 if scheme == "https" else 80, connect)) as connection:
            connection.request("GET", target, headers={"User-Agent": self.knobs.user_agent, "Accept": "image/*,*/*;q=0.5"})
            with connection.getresponse() as response:
                is_redirect = response.status in (301, 302, 303, 307, 308)
                # A 404 that should not be indexed is a 404.
                if (is_redirect or response.status == 200) and self._is_opted_out(response):
                    return Fetched("opted_out"), ""
                if is_redirect:
                    return None, _redirected(url, response.headers.get("Location"))
                return self._read(response), ""

    def _is_opted_out(self, response: http.client.HTTPResponse) -> bool:
        return self.knobs.obey_opt_outs and opts_out(response.headers.get_all("X-Robots-Tag", []), self.agent)

    def _read(self, response: http.client.HTTPResponse) -> Fetched:
        if response.status != 200:
            named = {401: "forbidden", 403: "forbidden", 404: "not_found", 410: "not_found"}
            return Fetched(named.get(response.status, f"http_error_{response.status}"))
        expected, most = response.length, self.knobs.max_image_bytes
        if expected is not None and expected > most:
            return Fetched("too_long")
        body = bytearray()
        while chunk := response.read(_CHUNK):
            body += chunk
            if len(body) > most:
                return Fetched("too_long")
        if expected is not None and len(body) < expected:
            return Fetched("connection")
        return Fetched("ok", bytes(body)) if body else Fetched("empty")

    def _connect(self, scheme: str, host: str, port: int, deadline: float) -> "_DeadlineSocket":
        mapped = self.connections.get((host, port))
        addresses = self._resolve(*(mapped or (host, port)), deadline)
        # An address that the recipe itself names is the user's own choice.
        if mapped is None and not self.knobs.allow_private_addresses:
            addresses = [entry for entry in addresses if is_public(entry[1][0])]
            if not addresses:
                raise _EndedError("private_address")
        plain = _connect_to_one(addresses[:_ADDRESSES_TRIED], deadline)
        if scheme == "http":
            return _DeadlineSocket(plain, deadline)
        try:
            plain.settimeout(_left(deadline))
            return _DeadlineSocket(self.tls.wrap_socket(plain, server_hostname=host), deadline)
        except BaseException:
            plain.close()
            raise

    def _resolve(self, host: str, port: int, deadline: float) -> list[tuple[int, Any]]:
        """Addresses as (family, address), each once, in the resolver's order. A name that was found is not asked for again."""
        if known := self._resolved.get((host, port)):
            return known
        asked = self._resolvers.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            found = asked.result(_left(deadline))
        except socket.gaierror as error:
            raise _EndedError("dns_failure" if error.errno == socket.EAI_AGAIN else "no_such_host") from None
        except UnicodeError:  # a label of more than 63 characters
            raise _EndedError("bad_url") from None
        finally:
            asked.cancel()
        return self._resolved.setdefault((host, port), list(dict.fromkeys((int(family), address) for family, _, _, _, address in found)))


class _EndedError(Exception):
    def __init__(self, outcome: str) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def _outcome_of(error: Exception) -> str | None:
    """The outcome that stands for an exception of the network; None for one that is our own bug."""
    kinds: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
        (TimeoutError, "timeout"),
        ((ConnectionError, http.client.IncompleteRead, ssl.SSLEOFError, ssl.SSLZeroReturnError), "connection"),
        (ssl.SSLError, "tls"),
        (http.client.HTTPException, "bad_response"),
        (OSError, "connection"),
    )
    return next((outcome for kind, outcome in kinds if isinstance(error, kind)), None)


def _connect_to_one(addresses: Sequence[tuple[int, Any]], deadline: float) -> socket.socket:
    """A connection to the first address that answers. An address that does not answer leaves half of the time to the others."""
    failure: OSError = ConnectionError("no address")
    for i, (family, address) in enumerate(addresses):
        left = _left(deadline)
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(left if i == len(addresses) - 1 else left / 2)
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            failure = error
    raise failure


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Connection(http.client.HTTPConnection):
    """HTTP/1.1 over a socket that `connect` of the caller opens: names and Host header stay the URL's."""

    def __init__(self, host: str, port: int, default_port: int, opened: Callable[[], "_DeadlineSocket"]) -> None:
        self.default_port = default_port
        super().__init__(host, port)
        self._opened = opened

    def connect(self) -> None:
        """Take the socket that was opened for it."""
        self.sock = self._opened()


class _DeadlineSocket:
    """The part of a socket that http.client uses, with one deadline over all reads and writes instead of a timeout for each."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._socket = connection
        self._deadline = deadline
        self._is_read = False

    def sendall(self, data: bytes) -> None:
        """Send all of `data` before the deadline; TimeoutError after it."""
        self._socket.settimeout(_left(self._deadline))
        self._socket.sendall(data)

    def makefile(self, mode: str) -> BufferedReader:
        """A reader of what comes in; closing it closes the socket."""
        self._is_read = True
        return BufferedReader(_DeadlineReader(self._socket, self._deadline), _CHUNK)

    def close(self) -> None:
        """Close the socket, unless a reader has it."""
        # http.client closes the socket before it reads a body that ends with the connection: then the reader closes it.
        if not self._is_read:
            self._socket.close()


class _DeadlineReader(RawIOBase):
    """What a socket receives until the deadline."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._socket = connection
        self._deadline = deadline

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Receive some bytes, 0 at the end; TimeoutError after the deadline."""
        self._socket.settimeout(_left(self._deadline))
        return self._socket.recv_into(buffer)

    def close(self) -> None:
        """Close the socket too."""
        self._socket.close()
        super().close()


def _parse_url(url: str) -> tuple[str, str, int, str]:
    """(scheme, host, port, request target). User names in the URL are never sent."""
    try:
        parts = urlsplit(url.strip())
        host = (parts.hostname or "").encode("idna" if not (parts.hostname or "").isascii() else "ascii").decode()
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        target = quote(parts.path or "/", safe="%/:=&~+!$,;'@()*") + (
            f"?{quote(parts.query, safe='%/:=&?~+!$,;@()*')}" if parts.query else ""
        )
    except (ValueError, KeyError):
        raise _EndedError("bad_url") from None
    if not host or len(url) > MAX_URL_LENGTH or not target.startswith("/") or re.search(r"[\s\x00-\x20\x7f/@\\]", host):
        raise _EndedError("bad_url")
    return parts.scheme, host, port, target


def _redirected(url: str, location: str | None) -> str:
    if not location:
        raise _EndedError("redirects")
    with contextlib.suppress(UnicodeError):
        # http.client reads headers as Latin-1; a bare non-ASCII Location is UTF-8 in practice.
        location = location.encode("latin-1").decode("utf-8")
    try:
        return urljoin(url, location)
    except ValueError:
        raise _EndedError("bad_url") from None


def _connections(connect_to: Mapping[str, str]) -> dict[tuple[str, int], tuple[str, int]]:
    return {_host_and_port(source): _host_and_port(target) for source, target in connect_to.items()}


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise UserError(
            f'knob `download.connect_to` has `{text}`: write "HOST:PORT" = "ADDRESS:PORT", as in "a.example:80" = "127.0.0.1:8000"'
        )
    return host.strip("[]").lower(), int(port)
