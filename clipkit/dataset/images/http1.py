"""One HTTP/1.1 connection: a request, its response, and again; every length has a cap.

httptools, Node's parser, reads what comes in; what is here is what a download needs around it: which bodies are wanted, how long they
may be, and a name for every way in which a response can fail to come.
"""

import asyncio
import ssl
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import httptools

__all__ = ["Connection", "EndedError", "Response", "Wish", "outcome_of"]

MAX_HEADER_BYTES = 65_536
MAX_HEADERS = 256
MAX_DRAINED_BYTES = 65_536
MAX_FRAME_BYTES = 1_000_000
"""Most bytes in a row that are neither header nor body: sizes of chunks, and what may follow the last one."""
DRAIN_SECONDS = 2.0


class Response(NamedTuple):
    """Status, headers as (name in lower case, value), and the body; None where it was not asked for."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes | None

    def all(self, name: str) -> list[str]:
        """The values of a header, in order."""
        return [value for header, value in self.headers if header == name]

    def first(self, name: str) -> str | None:
        """The first value of a header."""
        return next(iter(self.all(name)), None)


class EndedError(Exception):
    """A request that ended without a response. `outcome` names how; `reached` is whether the host said anything at all."""

    def __init__(self, outcome: str, *, reached: bool = False) -> None:
        """`outcome`: one of clipkit.dataset.images.fetch's."""
        super().__init__(outcome)
        self.outcome = outcome
        self.reached = reached


class Wish(NamedTuple):
    """What is wanted of a response: `body` says, of the response without it, whether its body is; at most `most` bytes after decoding.

    A longer one ends in "too_long", or, with `cut`, is cut off there.
    """

    body: Callable[[Response], bool]
    most: int
    cut: bool = False


def outcome_of(error: Exception) -> str:
    """The outcome that stands for an exception of a socket."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "tls"
    return "connection"


class Connection(asyncio.Protocol):
    """One connection: a request, its response, and again. The methods `on_...` are httptools' callbacks."""

    transport: asyncio.Transport

    def __init__(self, authority: str, *, on_free: Callable[["Connection"], None], on_lost: Callable[["Connection"], None]) -> None:
        """`authority`: the Host header. `on_free` is told when another request may be sent, `on_lost` when the socket is gone."""
        self._authority = authority
        self._on_free, self._on_lost = on_free, on_lost
        self._waiting: asyncio.Future[Response] | None = None
        self.is_reached = False
        self._draining: asyncio.TimerHandle | None = None
        self._is_lost = False

    def ask(self, target: str, headers: Mapping[str, str], wish: Wish) -> "asyncio.Future[Response]":
        """Send a GET; the future is its response, or raises EndedError. Cancelling it closes the connection."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        request = f"GET {target} HTTP/1.1\r\nHost: {self._authority}\r\n{lines}Accept-Encoding: identity\r\n\r\n"
        self._parser = httptools.HttpResponseParser(self)
        self._wish = wish
        self._header_bytes = self._frame_bytes = 0
        self.is_reached = self._is_complete = False
        self._begin()
        self._waiting = asyncio.get_running_loop().create_future()
        self._waiting.add_done_callback(self._close_if_cancelled)
        if self._is_lost:
            self._fail("connection")
        else:
            self.transport.write(request.encode("latin-1"))
        return self._waiting

    def is_usable(self) -> bool:
        """Whether a kept connection may take another request."""
        return not self._is_lost and not self.transport.is_closing()

    def _close_if_cancelled(self, waiting: "asyncio.Future[Response]") -> None:
        if waiting.cancelled():
            self.transport.abort()

    def _begin(self) -> None:
        """Ready for the status line: of the response, or of another one after an interim response."""
        self._headers: list[tuple[str, str]] = []
        self._response: Response | None = None
        self._body: bytearray | None = None
        self._inflate: Any = None
        self._drained = 0

    def _fail(self, outcome: str) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(EndedError(outcome, reached=self.is_reached))
        if not self._is_lost:
            self.transport.abort()

    def _finish(self, body: bytes | None) -> None:
        assert self._response is not None
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(self._response._replace(body=body))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse what came in."""
        if self._waiting is None or self._is_complete:  # unasked
            self.transport.abort()
            return
        self.is_reached = True
        if self._response is None:
            self._header_bytes += len(data)
        self._frame_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("bad_response")
        except httptools.HttpParserError:
            # Garbage in front of the headers is no HTTP; garbage between the chunks of a body is a broken connection.
            self._fail("bad_response" if self._response is None else "connection")
        if self._response is None and self._header_bytes > MAX_HEADER_BYTES:
            self._fail("bad_response")
        elif self._frame_bytes > MAX_FRAME_BYTES:
            self._fail("connection")

    def eof_received(self) -> bool:
        """Nothing more comes: the end of a body that has no other."""
        if self._waiting is not None and not self._is_complete:
            if self._response is not None and not self._has_length():
                self._is_complete = True
                self._finish_body()
            else:
                self._fail("connection")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is gone."""
        self._is_lost = True
        self._on_lost(self)
        self._fail("connection" if error is None else outcome_of(error))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, whole."""
        if len(self._headers) < MAX_HEADERS:
            self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))
        else:
            self._fail("bad_response")

    def on_headers_complete(self) -> None:
        """Decide about the body."""
        status = self._parser.get_status_code()
        if status < 200 or self._is_ended():
            return
        self._response = Response(status, self._headers, None)
        if not self._wish.body(self._response):
            # The answer is there; the rest of a short body is read so that the connection can be kept.
            self._finish(None)
            if self._declared() > MAX_DRAINED_BYTES:
                self.transport.abort()
            else:
                self._draining = asyncio.get_running_loop().call_later(DRAIN_SECONDS, self.transport.abort)
        elif self._declared() > self._wish.most and not self._wish.cut:
            self._fail("too_long")
        else:
            self._body = bytearray()
            encodings = self._response.all("content-encoding")
            if encodings and encodings[-1].strip().lower() in ("gzip", "x-gzip", "deflate"):  # although it was not asked for
                self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._frame_bytes = 0
        if self._body is None:
            self._drained += len(data)
            if self._drained > MAX_DRAINED_BYTES:
                self.transport.abort()
            return
        if self._is_ended():
            return
        if self._inflate is not None:
            try:
                data = self._inflate.decompress(data, self._wish.most + 1 - len(self._body))
            except zlib.error:
                self._fail("bad_response")
                return
        self._body += data
        if len(self._body) > self._wish.most:
            if self._wish.cut:
                self._finish(bytes(self._body[: self._wish.most]))
                self.transport.abort()
            else:
                self._fail("too_long")

    def on_message_complete(self) -> None:
        """The end of the response, or of an interim one."""
        if self._response is None:
            self._begin()
            return
        self._is_complete = True
        if self._draining is not None:
            self._draining.cancel()
        keep = self._parser.should_keep_alive() and self._has_length() and not self._is_lost and not self.transport.is_closing()
        self._finish_body()
        if keep and (self._waiting is None or not self._waiting.cancelled()):
            self._on_free(self)
        else:
            self.transport.close()

    def _finish_body(self) -> None:
        if self._inflate is not None and not self._inflate.eof and not self._is_ended():
            self._fail("connection")
        self._finish(None if self._body is None else bytes(self._body))

    def _is_ended(self) -> bool:
        return self._waiting is None or self._waiting.done()

    def _declared(self) -> int:
        """Content-Length, 0 where there is none. The parser has refused what is no number."""
        lengths = [value for name, value in self._headers if name == "content-length"]
        return int(lengths[-1]) if lengths and lengths[-1].strip().isdecimal() else 0

    def _has_length(self) -> bool:
        """Whether the body ends otherwise than with the connection."""
        assert self._response is not None
        names = {name for name, _ in self._headers}
        return self._response.status in (204, 304) or bool(names & {"content-length", "transfer-encoding"})
