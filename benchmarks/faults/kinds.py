"""How each kind of host answers. The host `anything.KIND.example` is of the kind KIND; any other host is good.

A good host has a picture under every path (a small one under `/small/...`), no robots.txt and no ai.txt.
"""

import asyncio
import functools
import gzip
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate

from faults.pictures import bomb, picture, png
from faults.web import Answer, Connection, Request, Script, reply

__all__ = ["ANSWERS", "ROBOTS", "answer", "kind_of", "picture_of"]

HTML = b"<!DOCTYPE html><html><body><p>Log in to see this picture</p></body></html>"
MOVED_ROBOTS = "/elsewhere/rules.txt"
RETRY_SECONDS = 2
LATE_SECONDS = 0.1
DRIP_SECONDS = 0.8
"""How long a slow but honest drip takes."""


def kind_of(host: str) -> str:
    """KIND of `anything.KIND.example`; good for every other name."""
    labels = host.split(".")
    return labels[-2] if len(labels) > 2 and labels[-1] == "example" else "good"


def picture_of(name: str) -> bytes:
    """The picture of a URL without its scheme."""
    return picture(name, small="/small/" in name)


def answer(request: Request) -> Answer:
    """What a host of this kind answers to this request."""
    kind = kind_of(request.host)
    if request.path == "/robots.txt":
        robots = ROBOTS.get(kind, _no_such_file)
        return robots(request) if callable(robots) else reply(robots, type_="text/plain")
    if request.path == "/ai.txt":
        return reply(b"User-Agent: *\nDisallow: *.jpg\n", type_="text/plain") if kind == "ai-txt" else _no_such_file(request)
    if request.path == MOVED_ROBOTS:
        return reply(_DISALLOW, type_="text/plain")
    if request.path.startswith("/.well-known/"):
        return _no_such_file(request)
    return ANSWERS.get(kind, _good)(request)


def _good(request: Request) -> Answer:
    return reply(picture_of(request.name))


def _no_such_file(request: Request) -> Answer:
    return reply(b"not here", status="404 Not Found", type_="text/plain")


def _whole(request: Request, *headers: str, **more: str | None) -> bytes:
    return reply(picture_of(request.name), *headers, **more)  # type: ignore[arg-type]


def _always(given: bytes) -> Callable[[Request], Answer]:
    return lambda request: given


def _status(status: str, *headers: str) -> Callable[[Request], Answer]:
    return _always(reply(b"no picture", *headers, status=status, type_="text/plain"))


def _once(first: Callable[[Request], Answer]) -> Callable[[Request], Answer]:
    return lambda request: first(request) if request.number == 1 else _good(request)


def _redirect(to: str, *headers: str) -> Callable[[Request], Answer]:
    return lambda request: reply(b"", f"Location: {to.format(path=request.path, port=request.port)}", *headers, status="302 Found")


def _redirect_in_steps(request: Request) -> Answer:
    """/3/a.jpg leads to /2/a.jpg, and so on; /0/a.jpg is a picture."""
    _, left, rest = request.path.split("/", 2)
    return _good(request) if left == "0" else reply(b"", f"Location: /{int(left) - 1}/{rest}", status="301 Moved Permanently")


def _when(request: Request) -> Answer:
    when = formatdate(time.time() + RETRY_SECONDS, usegmt=True)
    return reply(b"", f"Retry-After: {when}", status="429 Too Many Requests")


# ------------------------------------------------------------------- scripts


def _script(play: Script) -> Callable[[Request], Answer]:
    return lambda request: play


def _then_close(made: Callable[[Request], bytes]) -> Callable[[Request], Answer]:
    async def play(connection: Connection, request: Request) -> None:
        connection.send(made(request))
        connection.close()

    return _script(play)


def _then_wait(made: Callable[[Request], bytes]) -> Callable[[Request], Answer]:
    async def play(connection: Connection, request: Request) -> None:
        connection.send(made(request))
        await asyncio.sleep(3_600)

    return _script(play)


def _drip(seconds: float) -> Callable[[Request], Answer]:
    async def play(connection: Connection, request: Request) -> None:
        whole = _whole(request)
        step = -(-len(whole) // 40)
        for start in range(0, len(whole), step):
            await connection.push(whole[start : start + step])
            await asyncio.sleep(seconds / 40)

    return _script(play)


def _without_end(head: bytes, block: bytes, pause: float = 0.0) -> Callable[[Request], Answer]:
    async def play(connection: Connection, request: Request) -> None:
        connection.send(head)
        while True:
            await connection.push(block)
            await asyncio.sleep(pause)

    return _script(play)


async def _late(connection: Connection, request: Request) -> None:
    await asyncio.sleep(LATE_SECONDS)
    connection.deliver(_whole(request), request)


async def _reset_in_the_body(connection: Connection, request: Request) -> None:
    whole = _whole(request)
    connection.send(whole[: len(whole) // 2])
    await asyncio.sleep(0.05)
    connection.reset()


async def _reset_at_once(connection: Connection, request: Request) -> None:
    connection.reset()


async def _close_at_once(connection: Connection, request: Request) -> None:
    connection.close()


async def _close_soon(connection: Connection, request: Request) -> None:
    """Answer as if the connection stayed open, and close it."""
    connection.send(_whole(request, "Connection: keep-alive"))
    connection.close()


async def _close_at_the_next(connection: Connection, request: Request) -> None:
    """Answer the first request of a connection; the second finds it closed."""
    if getattr(connection, "was_asked", False):
        connection.reset()
        return
    connection.was_asked = True  # type: ignore[attr-defined]
    connection.send(_whole(request))


def _chunked(request: Request, *, size: str = "{:x}", after: bytes = b"0\r\n\r\n") -> bytes:
    body = picture_of(request.name)
    blocks = [body[start : start + 8_000] for start in range(0, len(body), 8_000)]
    chunks = b"".join(size.format(len(block)).encode() + b"\r\n" + block + b"\r\n" for block in blocks)
    return b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + after


def _until_close(request: Request) -> bytes:
    return b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + picture_of(request.name)


def _two_lengths(request: Request) -> bytes:
    return _whole(request, "Content-Length: 100")


def _chunks_and_length(request: Request) -> bytes:
    return _chunked(request).replace(b"\r\n\r\n", b"\r\nContent-Length: 100\r\n\r\n", 1)


def _short(request: Request) -> Answer:
    """Paths under /short/ claim half of what is sent; what is left over looks like another answer."""
    if "/short/" not in request.path:
        return _good(request)
    smuggled = reply(picture("smuggled", small=True))
    return reply(picture_of(request.name)[:1_000] + smuggled, length=1_000)


def _bomb(request: Request) -> Answer:
    kind = request.path.rpartition("/")[2].split(".")[0]
    return reply(bomb(kind), type_=f"image/{'png' if kind == 'tall' else kind.split('-')[0]}")


@functools.cache
def _packed_zeros() -> bytes:
    return gzip.compress(bytes(200 << 20), 9)


def _gzip_bomb(request: Request) -> Answer:
    return reply(_packed_zeros(), "Content-Encoding: gzip")


def _gzip_picture(request: Request) -> Answer:
    return reply(gzip.compress(picture_of(request.name), 1), "Content-Encoding: gzip")


def _robots_tag(request: Request) -> Answer:
    """/noai/..., /clipkit:%20noindex/...: the first part of the path is the X-Robots-Tag."""
    return _whole_with(request, "X-Robots-Tag: " + request.path.split("/")[1].replace("%20", " "))


def _tdm(request: Request) -> Answer:
    return _whole_with(request, "tdm-reservation: " + request.path.split("/")[1])


def _whole_with(request: Request, header: str) -> Answer:
    return reply(picture_of(request.name), header)


_OK_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"

ANSWERS: Mapping[str, Callable[[Request], Answer]] = {
    "good": _good,
    "dies": _good,
    "late": _script(_late),
    # slowness
    "drip": _drip(600.0),
    "slow-drip": _drip(DRIP_SECONDS),
    "drip-head": _without_end(b"HTTP/1.1 200 OK\r\nX-Slow: ", b".", 0.05),
    "stall": _then_wait(lambda request: b""),
    "stall-head": _then_wait(lambda request: b"HTTP/1.1 200 OK\r\nContent-Type: ima"),
    "stall-body": _then_wait(lambda request: _whole(request)[:-1]),
    # connections that break
    "reset": _script(_reset_at_once),
    "reset-body": _script(_reset_in_the_body),
    "hang-up": _script(_close_at_once),
    "cut": _then_close(lambda request: reply(picture_of(request.name), length=len(picture_of(request.name)) + 1)),
    "short": _short,
    "close-soon": _script(_close_soon),
    "close-next": _script(_close_at_the_next),
    # bombs and endless bodies
    "claims-long": _then_close(lambda request: reply(b"short", length=10**11)),
    "endless": _without_end(_OK_HEAD + b"\r\n", bytes(1 << 16)),
    "gzip-bomb": _gzip_bomb,
    "gzip": _gzip_picture,
    "bomb": _bomb,
    # statuses
    "404": _status("404 Not Found"),
    "410": _status("410 Gone"),
    "401": _status("401 Unauthorized"),
    "403": _status("403 Forbidden"),
    "451": _status("451 Unavailable For Legal Reasons"),
    "204": _always(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "500": _status("500 Internal Server Error"),
    "503-once": _once(_status("503 Service Unavailable")),
    "429": _status("429 Too Many Requests"),
    "429-seconds": _once(_status("429 Too Many Requests", f"Retry-After: {RETRY_SECONDS}")),
    "429-date": _once(_when),
    "429-hour": _status("429 Too Many Requests", "Retry-After: 3600"),
    "429-nonsense": _once(_status("429 Too Many Requests", "Retry-After: -5")),
    # what a picture is called, and what is none
    "as-text": lambda request: _whole(request, type_="text/plain"),
    "as-octets": lambda request: _whole(request, type_="application/octet-stream"),
    "as-nothing": lambda request: _whole(request, type_=None),
    "png-as-jpeg": lambda request: reply(png(request.name)),
    "html": lambda request: reply(HTML, type_="text/html"),
    "html-as-jpeg": lambda request: reply(HTML),
    "empty": _always(reply(b"")),
    # redirects
    "loop": lambda request: reply(b"", f"Location: {request.path}", status="302 Found"),
    "steps": _redirect_in_steps,
    "elsewhere": _redirect("http://target.good.example/from-elsewhere{path}"),
    "nowhere": _always(reply(b"", status="302 Found")),
    "to-file": _redirect("file:///etc/passwd"),
    "to-loopback": _redirect("http://127.0.0.1:{port}{path}"),
    "to-metadata": _redirect("http://169.254.169.254/latest/meta-data/"),
    "to-ipv6": _redirect("http://[::1]:{port}{path}"),
    "to-mapped": _redirect("http://[::ffff:127.0.0.1]:{port}{path}"),
    "to-number": _redirect("http://2130706433:{port}{path}"),
    "to-name": _redirect("http://private.dns.example:{port}{path}"),
    "opts-out-on-the-way": _redirect("http://target.good.example/opted-out{path}", "X-Robots-Tag: noai"),
    # HTTP that is none, or too much
    "many-headers": _then_close(lambda request: b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(2_000)) + b"\r\n"),
    "long-header": _then_close(lambda request: b"HTTP/1.1 200 OK\r\nX-Long: " + b"y" * (1 << 20) + b"\r\n\r\n"),
    "http-09": _then_close(lambda request: picture_of(request.name)),
    "garbage": _then_close(lambda request: b"\0\1\2 this is no HTTP at all\r\n\r\n"),
    "continue": lambda request: _CONTINUE + _whole(request),
    "hints": lambda request: _HINTS + _whole(request),
    "flood": _without_end(b"", _CONTINUE * 100),
    "chunked": _chunked,
    "chunk-size": _then_close(lambda request: _chunked(request, size="xyz")),
    "chunk-minus": _then_close(lambda request: _chunked(request, size="-{:x}")),
    "chunk-huge": _then_close(lambda request: _chunked(request, size="fffffffffffffff{:x}")),
    "chunk-cut": _then_close(lambda request: _chunked(request, after=b"")),
    "chunk-trailers": _without_end(_OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", b"X-Trailer: y\r\n"),
    "until-close": _then_close(_until_close),
    "two-lengths": _then_close(_two_lengths),
    "chunks-and-length": _then_close(_chunks_and_length),
    # what owners say
    "robots-tag": _robots_tag,
    "tdm": _tdm,
}

_DISALLOW = b"User-agent: *\nDisallow: /\n"

ROBOTS: Mapping[str, bytes | Callable[[Request], Answer]] = {
    "robots-403": _status("403 Forbidden"),
    "robots-500": _status("500 Internal Server Error"),
    "robots-stall": _then_wait(lambda request: b""),
    "robots-reset": _script(_reset_at_once),
    "robots-moved": _redirect(MOVED_ROBOTS),
    "robots-private": _redirect("http://127.0.0.1:{port}/robots.txt"),
    "robots-long": _DISALLOW + b"# nothing\n" * 500_000,
    "robots-endless": _without_end(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + _DISALLOW, b"# nothing\n" * 6_000),
    "robots-us": b"User-agent: clipkit\nDisallow: /\n\nUser-agent: *\nAllow: /\n",
    "robots-others": b"User-agent: otherbot\nDisallow: /\n",
    "robots-all": _DISALLOW,
    "robots-allow": b"User-agent: *\nDisallow: /\nAllow: /open/\n",
    "robots-glob": b"User-agent: *\nDisallow: /*.jpg$\n",
    "robots-html": HTML,
    "robots-bom": b"\xef\xbb\xbfUser-Agent: *\r\nDisallow: /\r\n",
    "robots-binary": bytes(range(256)) * 40,
    "crawl-delay": b"User-agent: *\nCrawl-delay: 1\n",
}
