"""robots.txt (RFC 9309) and ai.txt: each is fetched once per origin, by whichever process comes first, and kept for a day.

A file that is not there (4xx) allows everything. A robots.txt that the server cannot give (5xx) forbids everything until it can;
where the host cannot be reached at all, its images end as that did. A missing or broken ai.txt, which no standard defines, says nothing.
"""

import asyncio
import contextlib
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from protego import Protego

from clipkit.dataset.images.connections import Origin, parse_url, redirected
from clipkit.dataset.images.host_store import HostStore, Text
from clipkit.dataset.images.hosts import Hosts
from clipkit.dataset.images.http1 import EndedError, Response
from clipkit.recipe import DownloadKnobs

__all__ = ["Robots"]

MAX_BYTES = 512_000
"""How much of a file is read (RFC 9309, 2.5: at least 500 kibibytes)."""
MAX_REDIRECTS = 5
_CACHED_ORIGINS = 2_000
_CACHED_BYTES = 20_000_000
_SECONDS_BETWEEN_LOOKS = 0.05

GetText = Callable[[Origin, str, int], Awaitable[Response]]


class Robots:
    """What robots.txt and ai.txt of any origin say to one agent."""

    def __init__(self, get_text: GetText, knobs: DownloadKnobs, agent: str, *, store: HostStore, hosts: Hosts) -> None:
        """`get_text(origin, target, most)` fetches the first `most` bytes of a text, or raises EndedError."""
        self._get_text = get_text
        self._agent = agent
        self._store, self._hosts = store, hosts
        self._patience = 3 * knobs.timeout_seconds * (MAX_REDIRECTS + 1)
        self._names = [name for name, obeyed in (("robots.txt", knobs.obey_robots_txt), ("ai.txt", knobs.obey_ai_txt)) if obeyed]
        self._known: OrderedDict[Origin, asyncio.Task[list[Protego]]] = OrderedDict()
        self._lengths: dict[Origin, int] = {}
        self._length = 0

    async def check(self, origin: Origin, target: str) -> None:
        """Raise EndedError("disallowed") where a file says no, and another outcome where robots.txt cannot be had."""
        if not self._names:
            return
        if origin not in self._known:
            self._known[origin] = asyncio.create_task(self._load(origin))
            self._forget_oldest()
        self._known.move_to_end(origin)
        rules = await asyncio.shield(self._known[origin])
        if not all(rule.can_fetch(f"{origin}{target}", self._agent) for rule in rules):
            raise EndedError("disallowed", reached=True)

    def _forget_oldest(self) -> None:
        for origin in list(self._known)[:8]:
            if len(self._known) <= _CACHED_ORIGINS and self._length <= _CACHED_BYTES:
                return
            if self._known[origin].done():
                del self._known[origin]
                self._length -= self._lengths.pop(origin, 0)

    async def _load(self, origin: Origin) -> list[Protego]:
        """The rules of an origin."""
        rules, length = [], 0
        for name in self._names:
            found = await self._file(origin, name)
            if found.failure is not None and name == "robots.txt":
                raise EndedError(found.failure)
            # ai.txt has the grammar of robots.txt; a page that a server shows for every missing file has not.
            if found.text and (name == "robots.txt" or "user-agent" in found.text.lower()):
                ours = _groups_for(found.text, self._agent)
                rules.append(Protego.parse(ours))
                length += len(ours)
        self._lengths[origin] = length
        self._length += length
        for rule in rules:
            if delay := rule.crawl_delay(self._agent):
                self._hosts.slow_down(origin.host, float(delay))
        return rules

    async def _file(self, origin: Origin, name: str) -> Text:
        url = f"{origin}/{name}"
        deadline = time.monotonic() + self._patience
        while (known := self._store.get(url)) is None:
            if self._store.claim(url) or time.monotonic() > deadline:
                found = await self._fetch(url)
                self._store.put(url, found)
                return found
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
        return known

    async def _fetch(self, url: str) -> Text:
        own = url
        try:
            for _ in range(MAX_REDIRECTS + 1):
                origin, target = parse_url(url)
                response = await self._get_text(origin, target, MAX_BYTES)
                if not 300 <= response.status < 400:
                    return _judged(response)
                url = redirected(url, response.first("location"))
        except EndedError as ended:
            # What is no HTTP or leads nowhere is as good as no file; a host out of reach is the images' own misfortune, unless it is
            # another host, to which their own one has sent us.
            if ended.outcome in ("bad_response", "redirects", "bad_url", "too_long"):
                return Text("", None)
            return Text("", ended.outcome if url == own else "robots_unreachable")
        return Text("", None)


def _groups_for(text: str, agent: str) -> str:
    """The groups of a file that may concern the agent, with no other names.

    A parser that keeps every name's rules needs memory for names times rules: half a megabyte of both would fill any machine.
    """
    kept: list[str] = []
    ours: set[str] = set()
    is_header = False  # whether the line before was a name: then another one belongs to the same group
    for line in text.splitlines():
        field, colon, value = line.partition("#")[0].partition(":")
        field, name = field.strip().lower(), value.strip().lower()
        if field in ("user-agent", "useragent"):
            ours = ours if is_header else set()
            # Product tokens are equal or not (RFC 9309, 2.2.1); `clipkit/0.1` is ours, and `clip` is somebody else's.
            if (token := re.split(r"[/\s]", name)[0]) in ("*", agent):
                ours.add(token)
        elif colon and ours:
            kept += [f"User-agent: {name}" for name in sorted(ours)] if is_header else []
            kept.append(line)
        is_header = field in ("user-agent", "useragent") or (is_header and not colon)
    return "\n".join(kept)


def _judged(response: Response) -> Text:
    """RFC 9309, 2.3.1: 4xx is no file, 5xx forbids. 429 is no absence: the server is there, and busy."""
    if response.status >= 500 or response.status == 429:
        return Text("", "robots_unreachable")
    if response.status >= 300 or response.body is None:
        return Text("", None)
    body = response.body
    if len(body) == MAX_BYTES:  # half a line may forbid more than the whole one
        body = body[: body.rfind(b"\n") + 1]
    with contextlib.suppress(UnicodeError):
        return Text(body.decode("utf-8-sig"), None)
    return Text(body.decode("utf-8", "replace"), None)
