"""The faults: which URLs of which hosts are asked for, and how each of them has to end.

What counts as right is written down here and taken from no code: from HTTP (RFC 9110, 9112), robots.txt (RFC 9309), and from what the
knobs say. Where two ends are right, both are named.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from faults.kinds import DRIP_SECONDS, RETRY_SECONDS, picture_of
from faults.knobs import PROCESSES, ROUNDS, TIMEOUT_SECONDS
from faults.pictures import BOMBS, png
from faults.web import DYING_ANSWERS, FaultWeb, most_in_a_window

__all__ = ["FAULTS", "Fault", "Target", "good"]

ONCE, NEVER, EACH_ROUND = (1, 1), (0, 0), (ROUNDS, ROUNDS)
AT_MOST_EACH_ROUND = (1, ROUNDS)
AND_ANEW = (ROUNDS, 2 * ROUNDS)
"""A connection that was kept and ends without an answer may have ended before: the request may be sent anew (RFC 9112, 9.3.1)."""
STALLED = ROUNDS * (TIMEOUT_SECONDS + 0.5)
"""Seconds that a build may take longer where every round waits for its deadline."""


class Target(NamedTuple):
    """One URL and what may become of it: its outcome, the picture that must be in the shards, how often it is asked for."""

    url: str
    outcomes: frozenset[str]
    picture: bytes | None = None
    asked: tuple[int, int] = ONCE
    is_sure: bool = True
    """False: the picture may be in the shards whole, or not at all."""

    @property
    def name(self) -> str:
        """The URL without its scheme."""
        return self.url.partition("://")[2]


Look = Callable[[FaultWeb, Mapping[str, str]], list[str]]
"""Something more to look at, from the books of the web and the outcome of each URL; says what is wrong."""


@dataclass(frozen=True)
class Fault:
    """A fault, its URLs, the knobs it is met with, and the seconds that it may cost beyond a plain build."""

    name: str
    about: str
    targets: Sequence[Target]
    seconds: float = 0.0
    knobs: Mapping[str, Any] = field(default_factory=dict)
    look: Look | None = None
    good: int = 48


def good(count: int, hosts: int = 4) -> list[Target]:
    """URLs of pictures that arrive."""
    urls = [f"http://{i % hosts}.good.example/{i}.jpg" for i in range(count)]
    return [Target(url, frozenset({"ok"}), picture_of(url.partition("://")[2])) for url in urls]


def _kept(url: str, asked: tuple[int, int] = ONCE) -> Target:
    return Target(url, frozenset({"ok"}), picture_of(url.partition("://")[2]), asked)


def _urls(kind: str, count: int = 6, path: str = "{i}.jpg", scheme: str = "http") -> list[str]:
    """One URL on each of `count` hosts, so that none fails often enough to be left alone."""
    return [f"{scheme}://{i}.{kind}.example/{path.format(i=i)}" for i in range(count)]


def _lost(name: str, about: str, *outcomes: str, asked: tuple[int, int] = ONCE, urls: Sequence[str] = (), **more: Any) -> Fault:
    """A fault that leaves no picture."""
    return Fault(name, about, [Target(url, frozenset(outcomes), None, asked) for url in urls or _urls(name)], **more)


def _passing(name: str, about: str, *outcomes: str, **more: Any) -> Fault:
    return _lost(name, about, *outcomes, **{"asked": EACH_ROUND, **more})


def _survived(
    name: str, about: str, *, asked: tuple[int, int] = ONCE, path: str = "{i}.jpg", urls: Sequence[str] = (), **more: Any
) -> Fault:
    """A fault in spite of which the picture arrives."""
    return Fault(name, about, [_kept(url, asked) for url in urls or _urls(name, path=path)], **more)


def _either(name: str, about: str, *outcomes: str, **more: Any) -> Fault:
    """A fault after which the picture may be there, whole, or not."""
    allowed = frozenset(outcomes)
    return Fault(name, about, [Target(url, allowed, picture_of(url[7:]), AT_MOST_EACH_ROUND, False) for url in _urls(name)], **more)


def _waited(web: FaultWeb, outcomes: Mapping[str, str]) -> list[str]:
    """Between the two requests for each URL that answered 429 lies the time that it asked for."""
    hosts = {url.split("/")[2] for url in outcomes if ".429-seconds." in url or ".429-date." in url}
    gaps = {host: web.arrivals[host][-1] - web.arrivals[host][-2] for host in hosts if len(web.arrivals[host]) > 1}
    # A date has whole seconds.
    return [f"{host} asked for {RETRY_SECONDS} s and got {gap:.2f} s" for host, gap in gaps.items() if gap < RETRY_SECONDS - 1.05]


def _held_limits(connections: int, a_second: float) -> Look:
    def look(web: FaultWeb, outcomes: Mapping[str, str]) -> list[str]:
        found = []
        for host in {url.split("/")[2] for url in outcomes}:
            most = most_in_a_window(web.arrivals[host], 1.0)
            if web.most_requests[host] > connections:
                found.append(f"{host} had {web.most_requests[host]} requests at once, {connections} are allowed")
            if web.most_connections[host] > connections * PROCESSES:  # in use or kept
                found.append(f"{host} had {web.most_connections[host]} connections open at once, {connections} are allowed")
            # As many as there are connections may come at once; one that left at the right time may arrive early.
            if most > a_second + connections + 1:
                found.append(f"{host} had {most} requests in a second, {a_second:g} are allowed")
        return found

    return look


def _died_alone(web: FaultWeb, outcomes: Mapping[str, str]) -> list[str]:
    """What a host sent before it died is there; what comes after is not asked for in vain again and again."""
    sent = [url for url in outcomes if ".dies." in url and web.delivered[url[7:]]]
    lost = [url for url in sent if outcomes[url] != "ok"]
    few = [] if len(sent) >= DYING_ANSWERS // 2 else [f"only {len(sent)} pictures were sent before the host died"]
    return few + [f"{url} was sent whole and ended in {outcomes[url]}" for url in lost]


def _is_left_alone(web: FaultWeb, outcomes: Mapping[str, str]) -> list[str]:
    return [] if "host_down" in outcomes.values() else ["no URL ended in host_down: a dead host was tried for every one of its URLs"]


_SLOW = (
    _passing("drip", "the body comes in drops, past the deadline", "timeout", seconds=STALLED),
    _survived("slow-drip", f"the body takes {DRIP_SECONDS} s, within the deadline", seconds=DRIP_SECONDS + 1),
    _passing("drip-head", "a header without end, in drops", "timeout", "bad_response", asked=AT_MOST_EACH_ROUND, seconds=STALLED),
    _passing("stall", "no answer", "timeout", seconds=STALLED),
    _passing("stall-head", "the answer stops within the headers", "timeout", seconds=STALLED),
    _passing("stall-body", "the answer stops one byte before its end", "timeout", seconds=STALLED),
    _passing("silent", "an address that takes no connection", "timeout", asked=NEVER, seconds=STALLED),
)

_BROKEN = (
    _passing("reset", "reset before the answer", "connection", asked=AND_ANEW),
    _passing("reset-body", "reset in the body", "connection"),
    _passing("hang-up", "closed before the answer", "connection", asked=AND_ANEW),
    _passing("cut", "Content-Length is one more than what comes", "connection"),
    Fault(
        "short",
        "Content-Length is less than what comes, and the rest looks like an answer",
        [
            *(Target(url, frozenset({"ok", "bad_response"})) for url in _urls("short", path="short/{i}.jpg")),
            *(_kept(f"http://{i % 6}.short.example/{i}.jpg", AT_MOST_EACH_ROUND) for i in range(18)),
        ],
        good=30,
    ),
    _survived(
        "close-soon",
        "connections are closed after each answer, without notice",
        asked=(1, 2),
        urls=[f"http://{i % 2}.close-soon.example/{i}.jpg" for i in range(12)],
    ),
    _survived(
        "close-next",
        "a connection's second request finds it closed",
        asked=(1, 5),  # anew on each of four kept connections, and on a new one
        urls=[f"http://{i % 2}.close-next.example/{i}.jpg" for i in range(12)],
        knobs={"rounds": 3},
    ),
    _passing("refused", "connection refused", "connection", asked=NEVER),
    Fault(
        "dies",
        f"a host that dies after {DYING_ANSWERS} answers",
        [
            Target(
                f"http://0.dies.example/{i}.jpg",
                frozenset({"ok", "connection", "host_down"}),
                picture_of(f"0.dies.example/{i}.jpg"),
                (0, ROUNDS),
                False,
            )
            for i in range(40)
        ],
        look=_died_alone,
        good=20,
    ),
    _lost(
        "host-down",
        "forty URLs of a host that refuses, robots.txt not asked for",
        "connection",
        "host_down",
        asked=NEVER,
        knobs={"obey_robots_txt": False, "obey_ai_txt": False},  # what befell robots.txt would befall all URLs, without a try
        urls=[f"http://0.refused.example/{i}.jpg" for i in range(40)],
        look=_is_left_alone,
        good=20,
    ),
    _lost(
        "host-stalls",
        "forty URLs of a host that never answers",
        "timeout",
        "host_down",
        asked=(0, ROUNDS),
        urls=[f"http://0.stall.example/{i}.jpg" for i in range(40)],
        look=_is_left_alone,
        seconds=4 * STALLED,
        good=20,
    ),
)

_BOMBS = (
    _lost("claims-long", "Content-Length is 100 GB", "too_long"),
    _lost("endless", "a body without end", "too_long", knobs={"max_image_bytes": 1_000_000, "timeout_seconds": 10.0}),
    _lost("gzip-bomb", "200 MB of zeros as 200 KB of gzip, not asked for", "ok", "bad_response", "not_image", "too_long"),
    _either("gzip", "a picture as gzip, not asked for", "ok", "bad_response", "not_image"),
    _lost(
        "bomb",
        "pictures that claim hundreds of megapixels, in few KB",
        "ok",
        "not_image",
        urls=[f"http://{i}.bomb.example/{i}/{kind}.jpg" for i, kind in enumerate(BOMBS)],
    ),
)

_STATUSES = (
    _lost("404", "404 Not Found", "not_found"),
    _lost("410", "410 Gone", "not_found"),
    _lost("401", "401 Unauthorized", "forbidden"),
    _lost("403", "403 Forbidden", "forbidden"),
    _lost("451", "451, another status of the client's fault", "http_error_451"),
    _lost("204", "204 No Content", "http_error_204"),
    _passing("500", "500, for ever", "http_error_500"),
    _survived("503-once", "503 once, then fine", asked=(2, 2)),
    _passing("429", "429 without Retry-After, for ever", "http_error_429"),
    _survived("429-seconds", "429 with Retry-After in seconds, then fine", asked=(2, 2), look=_waited, seconds=3),
    _survived("429-date", "429 with Retry-After as a date, then fine", asked=(2, 2), look=_waited, seconds=3),
    _survived("429-nonsense", "429 with Retry-After: -5, then fine", asked=(2, 2)),
    _lost("429-hour", "429 with Retry-After: 3600", "host_busy", asked=AT_MOST_EACH_ROUND),
)

_CONTENTS = (
    _survived("as-text", "a JPEG called text/plain"),
    _survived("as-octets", "a JPEG called application/octet-stream"),
    _survived("as-nothing", "a JPEG without Content-Type"),
    Fault("png-as-jpeg", "a PNG called image/jpeg", [Target(url, frozenset({"ok"}), png(url[7:])) for url in _urls("png-as-jpeg")]),
    _lost("html", "HTML with 200", "not_image"),
    _lost("html-as-jpeg", "HTML with 200, called image/jpeg", "not_image"),
    _lost("empty", "an empty body", "empty"),
)


def _moved(url: str, to: str) -> Target:
    return Target(url, frozenset({"ok"}), picture_of(to))


_PRIVATE = ("to-loopback", "to-metadata", "to-ipv6", "to-mapped", "to-number", "to-name")
_REDIRECTS = (
    _lost("loop", "a redirect to itself", "redirects", asked=(1, 6)),
    Fault(
        "steps",
        "three redirects, then the picture",
        [_moved(url, url[7:].replace("/3/", "/0/")) for url in _urls("steps", path="3/{i}.jpg")],
    ),
    Fault(
        "elsewhere",
        "a redirect to another host",
        [_moved(url, f"target.good.example/from-elsewhere/{url.split('/')[3]}") for url in _urls("elsewhere")],
    ),
    _lost("nowhere", "a redirect without Location", "redirects"),
    _lost("to-file", "a redirect to file:///etc/passwd", "bad_url"),
    _lost(
        "to-private",
        "redirects to private addresses: loopback, metadata, IPv6, IPv6-mapped, as a number, by name",
        "private_address",
        urls=[url for kind in _PRIVATE for url in _urls(kind, 1)],
    ),
    _lost(
        "private",
        "names that lead to private addresses",
        "private_address",
        asked=NEVER,
        urls=[*_urls("private.dns", 3), *_urls("metadata.dns", 3)],
    ),
)

_NAMES = (
    _lost("unknown", "names that do not exist", "no_such_host", asked=NEVER, urls=_urls("unknown.dns")),
    _passing("again", "a resolver that cannot say", "dns_failure", asked=NEVER, urls=_urls("again.dns")),
    _passing("hangs", "a resolver that hangs", "timeout", "dns_failure", asked=NEVER, urls=_urls("hangs.dns"), seconds=STALLED + 6),
)

_TLS = (
    _survived("tls-good", "TLS with a certificate that is trusted", urls=_urls("tls-good", scheme="https")),
    _lost("tls-self", "a self-signed certificate", "tls", asked=NEVER, urls=_urls("tls-self", scheme="https")),
    _lost("tls-name", "a trusted certificate of another name", "tls", asked=NEVER, urls=_urls("tls-name", scheme="https")),
    _lost("tls-plain", "plain HTTP where TLS should be", "tls", asked=NEVER, urls=_urls("tls-plain", scheme="https")),
    _passing(
        "tls-mute", "a TLS handshake without an answer", "timeout", asked=NEVER, urls=_urls("tls-mute", scheme="https"), seconds=STALLED
    ),
)

_HTTP = (
    _lost("many-headers", "2,000 headers", "bad_response"),
    _lost("long-header", "a header of 1 MB", "bad_response"),
    _lost("http-09", "a picture without status and headers", "bad_response"),
    _lost("garbage", "no HTTP at all", "bad_response"),
    _survived("continue", "100 Continue before the answer"),
    _survived("hints", "103 Early Hints before the answer"),
    _passing("flood", "100 Continue without end", "bad_response", "timeout", asked=AT_MOST_EACH_ROUND, seconds=STALLED),
    _survived("chunked", "a chunked body"),
    _passing("chunk-size", "a chunk whose size is no number", "bad_response", "connection", asked=AT_MOST_EACH_ROUND),
    _passing("chunk-minus", "a chunk whose size is negative", "bad_response", "connection", asked=AT_MOST_EACH_ROUND),
    _passing("chunk-huge", "a chunk of 2^80 bytes", "bad_response", "connection", "too_long", asked=AT_MOST_EACH_ROUND),
    _passing("chunk-cut", "chunks without the last one", "connection", "bad_response", asked=AT_MOST_EACH_ROUND),
    _passing("chunk-trailers", "trailers without end", "bad_response", "timeout", "not_image", asked=AT_MOST_EACH_ROUND, seconds=STALLED),
    _survived("until-close", "HTTP/1.0: the body ends with the connection"),
    _either("two-lengths", "two Content-Lengths that differ", "ok", "bad_response"),
    _either("chunks-and-length", "chunks and a Content-Length that differs", "ok", "bad_response"),
)


def _tagged(tag: str, outcome: str) -> Target:
    url = f"http://0.robots-tag.example/{tag.replace(' ', '%20')}/0.jpg"
    return _kept(url) if outcome == "ok" else Target(url, frozenset({outcome}))


_OPT_OUTS = (
    Fault(
        "robots-tag",
        "X-Robots-Tag of many kinds",
        [
            *(_tagged(tag, "opted_out") for tag in ("noai", "noimageai", "noindex", "none", "noarchive, noai", "clipkit: noindex")),
            *(_tagged(tag, "ok") for tag in ("all", "nofollow", "otherbot: noai", "max-image-preview: none")),
        ],
    ),
    _lost("opts-out-on-the-way", "X-Robots-Tag: noai on a redirect", "opted_out"),
    Fault(
        "tdm",
        "tdm-reservation: 1, and 0",
        [
            *(Target(f"http://0.tdm.example/1/{i}.jpg", frozenset({"opted_out"})) for i in range(3)),
            *(_kept(f"http://0.tdm.example/0/{i}.jpg") for i in range(3)),
        ],
    ),
)


def _disallowed(name: str, about: str, *outcomes: str, **more: Any) -> Fault:
    return _lost(name, about, *(outcomes or ("disallowed",)), **{"asked": NEVER, **more})


_ROBOTS = (
    _survived("robots-403", "robots.txt answers 403: no rules"),
    _disallowed("robots-500", "robots.txt answers 500: nothing may be fetched", "robots_unreachable", "host_down"),
    _disallowed("robots-stall", "robots.txt does not answer", "robots_unreachable", "timeout", "host_down", seconds=2 * STALLED),
    _disallowed("robots-reset", "robots.txt resets the connection", "robots_unreachable", "connection", "host_down"),
    _disallowed("robots-moved", "robots.txt redirects to one that disallows"),
    _disallowed("robots-long", "a robots.txt of 5 MB that disallows"),
    _disallowed("robots-endless", "a robots.txt without end that disallows", "disallowed", "robots_unreachable", seconds=STALLED),
    _disallowed("robots-us", "robots.txt disallows us alone"),
    _survived("robots-others", "robots.txt disallows somebody else"),
    _disallowed("robots-glob", "robots.txt disallows /*.jpg$"),
    _disallowed("robots-bom", "robots.txt with a byte order mark and CRLF that disallows"),
    _survived("robots-html", "robots.txt is HTML: no rules"),
    _survived("robots-binary", "robots.txt is binary: no rules"),
    Fault(
        "robots-private",
        "robots.txt redirects to a private address",
        [
            Target(url, frozenset({"ok", "robots_unreachable", "private_address"}), picture_of(url[7:]), (0, ROUNDS), False)
            for url in _urls("robots-private")
        ],
    ),
    Fault(
        "robots-allow",
        "robots.txt disallows all but /open/",
        [
            *(_kept(f"http://{i}.robots-allow.example/open/{i}.jpg") for i in range(4)),
            *(Target(f"http://{i}.robots-allow.example/{i}.jpg", frozenset({"disallowed"}), None, NEVER) for i in range(4)),
        ],
    ),
    _survived("robots-all", "robots.txt disallows all, and the knob says not to obey", knobs={"obey_robots_txt": False}),
    _survived("crawl-delay", "robots.txt asks for a Crawl-delay"),
    Fault(
        "ai-txt",
        "ai.txt disallows *.jpg",
        [
            *(Target(f"http://{i}.ai-txt.example/{i}.jpg", frozenset({"disallowed"}), None, NEVER) for i in range(4)),
            *(_kept(f"http://{i}.ai-txt.example/{i}.png") for i in range(4)),
        ],
    ),
    Fault(
        "limits",
        "a host with 30 pictures: 2 connections, 10 requests a second",
        [_kept(f"http://0.good.example/many/{i}.jpg") for i in range(30)],
        knobs={"host_connections": 2, "host_requests_per_second": 10.0},
        look=_held_limits(2, 10.0),
        seconds=5,
        good=4,
    ),
)

FAULTS: Mapping[str, Fault] = {
    fault.name: fault
    for group in (_SLOW, _BROKEN, _BOMBS, _STATUSES, _CONTENTS, _REDIRECTS, _NAMES, _TLS, _HTTP, _OPT_OUTS, _ROBOTS)
    for fault in group
}
"""Every fault by its name."""
