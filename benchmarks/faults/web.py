"""The server: HTTP/1.1 with keep-alive over asyncio, one process, thousands of answers a second, and it keeps books on its clients.

    with FaultWeb(kinds.answer) as web:
        web.ports["http"]             # what `download.connect_to` leads to
        web.hits["a.good.example/1.jpg"], web.most_connections["a.good.example"], web.arrivals["a.good.example"]

What is answered to a request, its `answer` says: bytes, which are sent at once, or a script, which may take its time over the open
connection or break it. Hosts are names in the Host header; one server stands for all of them. It runs in a thread of its own.
"""

import asyncio
import contextlib
import re
import socket
import ssl
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

__all__ = ["Answer", "Connection", "FaultWeb", "Request", "Script", "reply"]

_HOST = re.compile(rb"\r\nhost:[ \t]*([^\r\n]*)", re.IGNORECASE)
_MOST_HEAD = 1 << 16
DYING_ANSWERS = 20


class Request(NamedTuple):
    """What a client asked for. `number` counts the requests of this URL from 1; `port` is the server's for plain HTTP."""

    host: str
    path: str
    number: int
    port: int

    @property
    def name(self) -> str:
        """Host and path: the URL without its scheme."""
        return self.host + self.path


class Connection(asyncio.Protocol):
    """One connection of a client. Requests are answered one after the other."""

    def __init__(self, web: "FaultWeb") -> None:
        """`web` keeps the books and knows the answers."""
        self.web = web
        self.host: str | None = None
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._is_asked = False
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: Any) -> None:
        """Called by asyncio."""
        self.transport = transport
        self.web._open.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio: ends the script that is being played."""
        self.web._open.discard(self)
        self._writable.set()
        if self._task is not None:
            self._task.cancel()
        if self._is_asked:
            self._ended()
        if self.host is not None:
            self.web._connections[self.host] -= 1

    def pause_writing(self) -> None:
        """Called by asyncio: the client does not read as fast as it is written to."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Called by asyncio."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._buffer += data
        self._answer_next()

    def send(self, data: bytes) -> None:
        """Send without waiting."""
        self.transport.write(data)

    def deliver(self, whole: bytes, request: Request) -> None:
        """Send a whole answer, and note it."""
        self.transport.write(whole)
        self.web.delivered[request.name].append(time.monotonic())

    async def push(self, data: bytes) -> None:
        """Send when the client has read enough of what came before."""
        await self._writable.wait()
        self.transport.write(data)

    def close(self) -> None:
        """Close after what was sent."""
        self.transport.close()

    def reset(self) -> None:
        """End the connection with a reset. What was sent but not read may be lost."""
        plain = self.transport.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _answer_next(self) -> None:
        if self._buffer.startswith(b"\x16\x03"):  # somebody speaks TLS
            self.send(reply(b"", status="400 Bad Request"))
            self.close()
            return
        while not self._is_asked:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _MOST_HEAD:
                    self.close()
                return
            head = bytes(self._buffer[: end + 2])
            del self._buffer[: end + 4]
            request = self.web._note(head, self)
            self._is_asked = True
            answer = self.web.answer(request)
            if isinstance(answer, bytes):
                self.deliver(answer, request)
                self._ended()
            else:
                self._task = asyncio.get_running_loop().create_task(self._play(answer, request))

    async def _play(self, script: "Script", request: Request) -> None:
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await script(self, request)
        if not self.transport.is_closing():
            self._task = None
            self._ended()
            self._answer_next()

    def _ended(self) -> None:
        self._is_asked = False
        if self.host is not None:
            self.web._requests[self.host] -= 1


class _Mute(Connection):
    """A connection on which nothing is ever said."""

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""


Script = Callable[[Connection, Request], Awaitable[None]]
Answer = bytes | Script


def reply(body: bytes = b"", *headers: str, status: str = "200 OK", length: int | None = None, type_: str | None = "image/jpeg") -> bytes:
    """A whole response that leaves the connection open; `length` is what it claims, `headers` are lines."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    if type_ is not None:
        lines.append(f"Content-Type: {type_}")
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


class FaultWeb:
    """The server and its books, by URL without scheme or by host.

    `hits` counts requests; `delivered` has the times at which whole answers were sent (those of scripts: where they say so);
    `arrivals` has the times of requests, `most_connections` and `most_requests` the most that were open at once.
    """

    def __init__(self, answer: Callable[[Request], Answer], *, addresses: Sequence[str] = ("127.0.0.1",), port: int = 0) -> None:
        """`addresses`: where the port "http" listens, which is `port` or any free one; the others are at 127.0.0.1."""
        self.answer = answer
        self.addresses = addresses
        self.ports: dict[str, int] = {"http": port}
        self.clear()
        self._open: set[Connection] = set()
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def clear(self) -> None:
        """Begin new books. Connections that are open are forgotten too, so let the clients end first."""
        self.hits: Counter[str] = Counter()
        self.delivered: defaultdict[str, list[float]] = defaultdict(list)
        self.arrivals: defaultdict[str, list[float]] = defaultdict(list)
        self.most_connections: Counter[str] = Counter()
        self.most_requests: Counter[str] = Counter()
        self._connections: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()

    def __enter__(self) -> Self:
        """Listen. Ports of TLS are opened by `listen_tls`."""
        self._thread.start()
        self.ports["http"] = self._run(self._listen(self.addresses, self.ports["http"]))
        self.ports["dying"] = self._run(self._listen_dying())
        self.ports["mute"] = self._run(self._listen_mute())
        for name in ("refused", "silent"):
            self.ports[name] = self._bind()
        self._fall_silent(self._sockets[-1])
        return self

    def __exit__(self, *_: object) -> None:
        """Close all connections and stop."""
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for kept in self._sockets:
            kept.close()
        self._loop.close()

    def listen_tls(self, name: str, certificate: str) -> None:
        """Another port, with TLS and the certificate and key of a PEM file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.ports[name] = self._run(self._listen(("127.0.0.1",), 0, context))

    def disconnect(self) -> None:
        """Close all open connections, as a server does that is restarted; then it listens as before, and the dying host too."""
        self._run(self._close_all())
        self.clear()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self, addresses: Sequence[str], port: int, context: ssl.SSLContext | None = None) -> int:
        first, others = addresses[0], list(addresses[1:])
        port = await self._serve(lambda: Connection(self), first, port, context)
        if others:
            await self._serve(lambda: Connection(self), others, port, context)
        return port

    async def _serve(
        self, made: Callable[[], asyncio.Protocol], address: str | list[str], port: int, context: ssl.SSLContext | None = None
    ) -> int:
        server = await self._loop.create_server(made, address, port, ssl=context, backlog=2_048)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _listen_mute(self) -> int:
        """A port that takes connections and never says anything."""
        return await self._serve(lambda: _Mute(self), "127.0.0.1", 0)

    async def _listen_dying(self) -> int:
        """A port whose host is dead after DYING_ANSWERS answers: it takes no connection any more until `clear`."""
        server = await self._loop.create_server(lambda: Connection(self), "127.0.0.1", 0, backlog=2_048)
        port = int(server.sockets[0].getsockname()[1])
        self._life = self._loop.create_task(self._die_and_rise(server, port))
        return port

    async def _die_and_rise(self, server: asyncio.Server, port: int) -> None:
        try:
            while True:
                is_dead = sum(len(times) for name, times in self.delivered.items() if ".dies.example/" in name) >= DYING_ANSWERS
                if is_dead and server.is_serving():
                    server.close()
                    for connection in [some for some in self._open if (some.host or "").endswith(".dies.example")]:
                        connection.close()
                elif not is_dead and not server.is_serving():
                    server = await self._loop.create_server(lambda: Connection(self), "127.0.0.1", port, backlog=2_048)
                await asyncio.sleep(0.005)
        finally:
            server.close()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        self._life.cancel()
        await self._close_all()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _close_all(self) -> None:
        for connection in list(self._open):
            connection.transport.abort()
        await asyncio.sleep(0)

    def _bind(self) -> int:
        """A port that is taken and does not listen: connections are refused."""
        kept = socket.socket()
        kept.bind(("127.0.0.1", 0))
        self._sockets.append(kept)
        return int(kept.getsockname()[1])

    def _fall_silent(self, kept: socket.socket) -> None:
        """Fill the queue of a port from which nobody takes connections: who connects to it waits."""
        kept.listen(0)
        for _ in range(4):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(kept.getsockname())
            self._sockets.append(waiting)

    def _note(self, head: bytes, connection: Connection) -> Request:
        now = time.monotonic()
        found = _HOST.search(head)
        host = found[1].decode("latin-1").rpartition(":")[0] or found[1].decode("latin-1") if found else ""
        path = head.split(b" ", 2)[1].decode("latin-1")
        if connection.host is None:
            connection.host = host
            self._connections[host] += 1
            self.most_connections[host] = max(self.most_connections[host], self._connections[host])
        self._requests[connection.host] += 1
        self.most_requests[host] = max(self.most_requests[host], self._requests[host])
        self.hits[host + path] += 1
        self.arrivals[host].append(now)
        return Request(host, path, self.hits[host + path], self.ports["http"])


def most_in_a_window(times: Sequence[float], seconds: float) -> int:
    """The most of sorted `times` that lie within `seconds`."""
    most = first = 0
    for last, moment in enumerate(times):
        while moment - times[first] >= seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


def books(web: FaultWeb) -> Mapping[str, Any]:
    """Sums of the books, for a client in another process."""
    return {
        "requests": sum(web.hits.values()),
        "urls": len(web.hits),
        "most_connections": max(web.most_connections.values(), default=0),
        "most_a_second": max((most_in_a_window(times, 1.0) for times in web.arrivals.values()), default=0),
    }
