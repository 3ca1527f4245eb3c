"""Connections to any host, kept between requests: names are asked for once, and addresses are checked before a byte is sent.

Connections go straight to the hosts, never through a proxy: a proxy would hide which address is reached.
"""

import asyncio
import contextlib
import re
import socket
import ssl
import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from clipkit.dataset.addresses import is_public
from clipkit.dataset.images.http1 import Connection, EndedError, Response, Wish, outcome_of

__all__ = ["Connections", "Origin", "parse_url", "redirected"]

MAX_URL_LENGTH = 8_192
IDLE_SECONDS = 15.0
MAX_IDLE = 512
ADDRESS_SECONDS = 3.0
"""After which the next address of a name is tried."""
_ADDRESSES_TRIED = 4
_RESOLVERS = 128


class Origin(NamedTuple):
    """Where a request goes: "http" or "https", host in lower case, port."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """The Host header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        """As it begins a URL."""
        return f"{self.scheme}://{self.authority}"


# Nine URLs in ten: nothing to quote, to fold or to refuse.
_PLAIN_URL = re.compile(r"(https?)://([a-z0-9][a-z0-9.-]*)(/[A-Za-z0-9_.~/%+-]*)", re.ASCII)


def parse_url(url: str) -> tuple[Origin, str]:
    """Where to ask, and for what. User names in the URL are never sent. Raises EndedError("bad_url")."""
    if (plain := _PLAIN_URL.fullmatch(url)) and len(url) <= MAX_URL_LENGTH:
        scheme, host, target = plain.groups()
        return Origin(scheme, host, 80 if scheme == "http" else 443), target
    try:
        parts = urlsplit(url.strip())
        host = (parts.hostname or "").encode("idna" if not (parts.hostname or "").isascii() else "ascii").decode()
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        target = quote(parts.path or "/", safe="%/:=&~+!$,;'@()*") + (
            f"?{quote(parts.query, safe='%/:=&?~+!$,;@()*')}" if parts.query else ""
        )
    except (ValueError, KeyError):
        raise EndedError("bad_url") from None
    if not host or len(url) > MAX_URL_LENGTH or not target.startswith("/") or re.search(r"[\s\x00-\x20\x7f/@\\]", host):
        raise EndedError("bad_url")
    return Origin(parts.scheme, host, port), target


def redirected(url: str, location: str | None) -> str:
    """The URL that a Location header leads to. Raises EndedError where it leads nowhere."""
    if not location:
        raise EndedError("redirects", reached=True)
    with contextlib.suppress(UnicodeError):
        # Headers are read as Latin-1; a bare non-ASCII Location is UTF-8 in practice.
        location = location.encode("latin-1").decode("utf-8")
    try:
        return urljoin(url, location)
    except ValueError:
        raise EndedError("bad_url", reached=True) from None


class Connections:
    """Requests to any host. Use from one event loop."""

    def __init__(self, connect_to: Mapping[tuple[str, int], tuple[str, int]], *, allow_private_addresses: bool) -> None:
        """`connect_to`: (host, port) -> (address, port) to use instead of asking DNS; such an address may be private."""
        self.tls = ssl.create_default_context()
        self._connect_to = connect_to
        self._allow_private = allow_private_addresses
        self._idle: dict[Connection, tuple[Origin, float]] = {}  # since when, from the one that has waited longest
        self._idle_of: dict[Origin, list[Connection]] = defaultdict(list)
        self._open: set[Connection] = set()
        # A resolver cannot be told to hurry: it is asked in a thread that is not waited for past the deadline.
        self._resolvers = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="dns")
        self._resolved: dict[tuple[str, int], asyncio.Future[list[tuple[int, Any]]]] = {}

    def close(self) -> None:
        """Close all connections; resolvers that still ask are not waited for."""
        for connection in list(self._open):
            connection.transport.abort()
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    async def get(self, origin: Origin, target: str, headers: Mapping[str, str], wish: Wish, *, seconds: float) -> Response:
        """One GET, which is over after `seconds`, from the name's resolution to the last byte.

        Raises EndedError for all that a server or a network does.
        """
        connection = None
        try:
            async with asyncio.timeout(seconds):
                if (connection := self._take(origin)) is not None:
                    try:
                        return await connection.ask(target, headers, wish)
                    except EndedError as ended:
                        # A server may close a kept connection at any moment; a GET that met with that may be sent again
                        # (RFC 9112, 9.3.1): once, over a new one.
                        if ended.outcome != "connection" or ended.reached:
                            raise
                connection = await self._connect(origin)
                return await connection.ask(target, headers, wish)
        except TimeoutError:
            raise EndedError("timeout", reached=connection is not None and connection.is_reached) from None

    def _take(self, origin: Origin) -> Connection | None:
        while idle := self._idle_of.get(origin):
            connection = idle[-1]
            since = self._idle[connection][1]
            self._forget_idle(connection)
            if connection.is_usable() and time.monotonic() - since < IDLE_SECONDS:
                return connection
            connection.transport.abort()
        return None

    def _give_back(self, origin: Origin, connection: Connection) -> None:
        self._idle[connection] = origin, time.monotonic()
        self._idle_of[origin].append(connection)
        if len(self._idle) > MAX_IDLE:
            oldest = next(iter(self._idle))
            self._forget_idle(oldest)
            oldest.transport.abort()

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._forget_idle(connection)

    def _forget_idle(self, connection: Connection) -> None:
        origin, _ = self._idle.pop(connection)
        same = self._idle_of[origin]
        same.remove(connection)
        if not same:
            del self._idle_of[origin]

    async def _connect(self, origin: Origin) -> Connection:
        mapped = self._connect_to.get((origin.host, origin.port))
        addresses = await self._resolve(*(mapped or (origin.host, origin.port)))
        # An address that the recipe itself names is the user's own choice.
        if mapped is None and not self._allow_private:
            addresses = [entry for entry in addresses if is_public(entry[1][0])]
            if not addresses:
                raise EndedError("private_address")
        return await self._connect_to_one(origin, addresses[:_ADDRESSES_TRIED])

    async def _connect_to_one(self, origin: Origin, addresses: list[tuple[int, Any]]) -> Connection:
        """A connection to the first address that answers. One that does not answer within a few seconds leaves time to the others."""
        loop = asyncio.get_running_loop()
        tls, name = (self.tls, origin.host) if origin.scheme == "https" else (None, None)
        made = lambda: Connection(origin.authority, on_free=partial(self._give_back, origin), on_lost=self._forget)  # noqa: E731
        failure: Exception = ConnectionError("no address")
        for left, (family, (address, port, *_)) in zip(range(len(addresses) - 1, -1, -1), addresses, strict=True):
            try:
                async with asyncio.timeout(ADDRESS_SECONDS if left else None):
                    _, connection = await loop.create_connection(made, address, port, family=family, ssl=tls, server_hostname=name)
                self._open.add(connection)
                return connection
            except OSError as error:
                failure = error
        raise EndedError(outcome_of(failure), reached=isinstance(failure, ssl.SSLError)) from None

    async def _resolve(self, host: str, port: int) -> list[tuple[int, Any]]:
        """Addresses as (family, address), each once, in the resolver's order. A name is asked for once, whatever the answer."""
        if (host, port) not in self._resolved:
            asking = asyncio.get_running_loop().run_in_executor(self._resolvers, _ask_resolver, host, port)
            asking.add_done_callback(lambda answer: answer.cancelled() or answer.exception())  # it may come when nobody waits any more
            self._resolved[host, port] = asking
        # Shielded: who runs out of time does not take the answer away from the others.
        return await asyncio.shield(self._resolved[host, port])


def _ask_resolver(host: str, port: int) -> list[tuple[int, Any]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise EndedError("dns_failure" if error.errno == socket.EAI_AGAIN else "no_such_host") from None
    except UnicodeError:  # a label of more than 63 characters
        raise EndedError("bad_url") from None
    except OSError:
        raise EndedError("dns_failure") from None
    return list(dict.fromkeys((int(family), address) for family, _, _, _, address in found))
