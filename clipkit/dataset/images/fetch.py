"""One image by its URL: a total deadline, a cap on bytes, redirects, opt-outs, robots.txt, and no way into private networks.

Every URL ends in exactly one named outcome, never in an exception:

* `ok`; `opted_out` (X-Robots-Tag, tdm-reservation); `disallowed` (robots.txt, ai.txt);
* `not_found` (404, 410); `forbidden` (401, 403); `http_error_NNN` (any other status); `not_image` (HTML or other text);
* `timeout`; `connection` (refused, reset, cut off); `dns_failure` (the resolver could not say); `no_such_host`; `tls`;
* `too_long`; `empty`; `redirects` (too many, or nowhere); `bad_response` (not HTTP); `bad_url`; `private_address`;
* `robots_unreachable` (robots.txt answers 5xx or 429: RFC 9309 forbids to go on); `host_busy` (the host asks to be left alone for
  longer than this round waits); `host_down` (it said nothing many times in a row, and is not asked again in this round);
* `unexpected` (a mistake of ours, which `clipkit.dataset.images.rounds` tells in the log).
"""

import contextlib
import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from clipkit import UserError
from clipkit.dataset.images.connections import Connections, Origin, parse_url, redirected
from clipkit.dataset.images.host_store import HostStore
from clipkit.dataset.images.hosts import Hosts
from clipkit.dataset.images.http1 import EndedError, Response, Wish
from clipkit.dataset.images.robots import Robots
from clipkit.dataset.opt_outs import agent_of, opts_out, reserves_rights
from clipkit.recipe import DownloadKnobs

__all__ = ["Fetched", "Fetcher", "Visit", "check_knobs", "host_of", "is_passing"]

_PASSING = {"timeout", "connection", "dns_failure", "http_error_429", "robots_unreachable", "host_busy", "host_down"}
_REDIRECTS = (301, 302, 303, 307, 308)
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF")


class Fetched(NamedTuple):
    """How one URL ended; `image` holds bytes where the outcome is "ok"."""

    outcome: str
    image: bytes | None = None


class Visit(NamedTuple):
    """A URL on its way: where it leads now, how many redirects were followed, and the seconds left for its requests.

    Reading robots.txt has a deadline of its own, and waiting for a turn has none.
    """

    url: str
    redirects: int
    seconds: float


def is_passing(outcome: str) -> bool:
    """Whether the reason may pass, so that another round is worth it: timeouts, broken connections, busy hosts, 429 and 5xx."""
    return outcome in _PASSING or outcome.startswith("http_error_5")


def check_knobs(knobs: DownloadKnobs) -> None:
    """Raise UserError for a User-Agent that is no header and for a `connect_to` that is not HOST:PORT = ADDRESS:PORT."""
    if not knobs.user_agent.isascii() or not knobs.user_agent.isprintable():
        raise UserError(f"knob `download.user_agent` is {knobs.user_agent!r}: a header has printable ASCII characters only")
    _connections(knobs.connect_to)


def host_of(url: str) -> str:
    """The host whose limits a URL is under; "" for what is no URL, which is never asked for."""
    try:
        return parse_url(url)[0].host
    except EndedError:
        return ""


class Fetcher:
    """Fetches images by the rules of the knobs. Use from one event loop; `visit` may run many times at once."""

    def __init__(self, knobs: DownloadKnobs, hosts: Hosts | None = None, store: HostStore | None = None) -> None:
        """`hosts` and `store` are what the processes of a round share; without them this fetcher is alone.

        Raises UserError as `check_knobs`.
        """
        check_knobs(knobs)
        self.knobs = knobs
        self.agent = agent_of(knobs.user_agent)
        self.connections = Connections(_connections(knobs.connect_to), allow_private_addresses=knobs.allow_private_addresses)
        self.hosts = hosts or Hosts(knobs)
        self.robots = Robots(self._get_text, knobs, self.agent, store=store or HostStore(), hosts=self.hosts)

    def close(self) -> None:
        """Close connections and let the resolvers' threads end, without waiting for those that still ask."""
        self.connections.close()

    def begin(self, url: str) -> Visit:
        """The first visit of a URL."""
        return Visit(url, 0, self.knobs.timeout_seconds)

    async def visit(self, visit: Visit) -> Fetched | Visit:
        """Ask for a URL under a turn of its host, which the caller holds. Does not raise for anything that a server or a network does.

        Redirects within that host are followed; what leads to another one comes back as the visit to be made there, under its turn.
        """
        own, is_paid = host_of(visit.url), True
        try:
            while True:
                origin, target = parse_url(visit.url)
                if origin.host != own:
                    return visit
                if not is_paid:  # the first request was paid with the turn
                    await self.hosts.pace(own)
                is_paid = False
                await self._ask_leave(origin, target)
                started = time.monotonic()
                response = await self._ask(origin, target, visit.seconds)
                left = max(0.001, visit.seconds - (time.monotonic() - started))
                if response.status not in _REDIRECTS or self._is_opted_out(response):
                    return self._fetched(response)
                if visit.redirects == self.knobs.max_redirects:
                    return Fetched("redirects")
                visit = Visit(redirected(visit.url, response.first("location")), visit.redirects + 1, left)
        except EndedError as ended:
            return Fetched(ended.outcome)

    async def _ask_leave(self, origin: Origin, target: str) -> None:
        """Raise EndedError where robots.txt or ai.txt say no; where they ask for a pause between requests, the first one keeps it too."""
        was_slow = self.hosts.is_slow(origin.host)
        await self.robots.check(origin, target)
        if self.hosts.is_slow(origin.host) and not was_slow:
            await self.hosts.pace(origin.host)

    async def _ask(self, origin: Origin, target: str, seconds: float) -> Response:
        """One request for an image; its host is judged by how it ended."""
        headers = {"User-Agent": self.knobs.user_agent, "Accept": "image/*,*/*;q=0.5"}
        wish = Wish(lambda response: response.status == 200 and not self._is_opted_out(response), self.knobs.max_image_bytes)
        try:
            response = await self.connections.get(origin, target, headers, wish, seconds=seconds)
        except EndedError as ended:
            if ended.outcome in ("timeout", "connection"):
                self.hosts.failed(origin.host, silent=not ended.reached)
            elif ended.outcome == "too_long":  # the host does what it should
                self.hosts.answered(origin.host, 200, None)
            raise
        self.hosts.answered(origin.host, response.status, _retry_after(response))
        return response

    async def _get_text(self, origin: Origin, target: str, most: int) -> Response:
        """What robots.txt and ai.txt are read with: the first `most` bytes."""
        await self.hosts.pace(origin.host)
        headers = {"User-Agent": self.knobs.user_agent, "Accept": "text/plain,*/*;q=0.5"}
        wish = Wish(lambda response: response.status < 300, most, cut=True)
        response = await self.connections.get(origin, target, headers, wish, seconds=self.knobs.timeout_seconds)
        if response.status in (429, 503):  # a good answer says nothing of the images; who is busy is busy
            self.hosts.answered(origin.host, response.status, _retry_after(response))
        return response

    def _is_opted_out(self, response: Response) -> bool:
        # A 404 that should not be indexed is a 404.
        if not self.knobs.obey_opt_outs or not (response.status in _REDIRECTS or response.status == 200):
            return False
        return opts_out(response.all("x-robots-tag"), self.agent) or reserves_rights(response.all("tdm-reservation"))

    def _fetched(self, response: Response) -> Fetched:
        if self._is_opted_out(response):
            return Fetched("opted_out")
        if response.status != 200 or response.body is None:
            named = {401: "forbidden", 403: "forbidden", 404: "not_found", 410: "not_found"}
            return Fetched(named.get(response.status, f"http_error_{response.status}"))
        if not response.body:
            return Fetched("empty")
        return Fetched("not_image") if _is_text(response) else Fetched("ok", response.body)


def _is_text(response: Response) -> bool:
    """Whether a body is a page instead of an image. The bytes decide: servers call images text/plain, and pages image/jpeg."""
    start = (response.body or b"")[:512]
    if start.startswith(_MAGIC) or start[4:8] == b"ftyp":
        return False
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|script|meta|\?xml|svg|!--)", start, re.IGNORECASE):
        return True
    kind = (response.first("content-type") or "").strip().lower()
    return kind.startswith(("text/html", "application/xhtml", "application/json"))


def _retry_after(response: Response) -> float | None:
    """Retry-After in seconds from now, given in seconds or as a date (RFC 9110, 10.2.3); None where there is none."""
    value = (response.first("retry-after") or "").strip()
    if value.isdecimal() and len(value) < 16:
        return float(value)
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        date = parsedate_to_datetime(value)
        return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time())
    return None


def _connections(connect_to: Mapping[str, str]) -> dict[tuple[str, int], tuple[str, int]]:
    return {_host_and_port(source): _host_and_port(target) for source, target in connect_to.items()}


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise UserError(
            f'knob `download.connect_to` has `{text}`: write "HOST:PORT" = "ADDRESS:PORT", as in "a.example:80" = "127.0.0.1:8000"'
        )
    return host.strip("[]").lower(), int(port)
