"""One raw server for all that real ones do to connections: each test scripts, byte by byte, what it says."""

import asyncio
import contextlib
import gzip
import socket
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from clipkit.dataset.images import connections as module
from clipkit.dataset.images import http1
from clipkit.dataset.images.connections import Connections, Origin
from clipkit.dataset.images.http1 import EndedError, Response, Wish

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
EVERYTHING = Wish(lambda response: True, 1_000_000)


class Talk:
    """A server that runs a script for each connection, and a pool of connections to it."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.opened = self.asked = 0

    async def __aenter__(self) -> "Talk":
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.opened += 1
            try:
                await self.script(reader, writer)
                await writer.drain()
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        self.server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self.origin = Origin("http", "a.example", 80)
        port = self.server.sockets[0].getsockname()[1]
        self.pool = Connections({("a.example", 80): ("127.0.0.1", port)}, allow_private_addresses=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.pool.close()
        self.server.close()
        await asyncio.sleep(0.05)

    async def get(self, wish: Wish = EVERYTHING, seconds: float = 10.0, target: str = "/") -> Response:
        return await self.pool.get(self.origin, target, {"User-Agent": "x"}, wish, seconds=seconds)


async def request(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def says(*answers: bytes) -> Script:
    """One answer for each request, then hang up."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await request(reader)
            writer.write(answer)
            await writer.drain()

    return script


def run(script: Script, test: Callable[[Talk], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with Talk(script) as talk:
            return await asyncio.wait_for(test(talk), 60)

    return asyncio.run(main())


def outcome(answer: bytes, wish: Wish = EVERYTHING, seconds: float = 10.0) -> str:
    async def test(talk: Talk) -> str:
        with pytest.raises(EndedError) as ended:
            await talk.get(wish, seconds)
        return ended.value.outcome

    return str(run(says(answer), test))


def test_a_connection_is_kept_and_used_again() -> None:
    async def test(talk: Talk) -> int:
        for _ in range(5):
            assert (await talk.get()).body == b"hello"
        return talk.opened

    assert run(says(*[OK] * 5), test) == 1
    assert run(says(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")), test) == 5
    assert run(says(OK.replace(b"HTTP/1.1", b"HTTP/1.0")), test) == 5


def test_requests_at_once_have_connections_of_their_own() -> None:
    async def test(talk: Talk) -> int:
        responses = await asyncio.gather(*(talk.get() for _ in range(6)))
        assert {response.body for response in responses} == {b"hello"}
        return talk.opened

    assert run(says(OK, OK), test) == 6


def test_a_kept_connection_that_the_server_has_closed_costs_nothing_but_a_new_one() -> None:
    async def hang_up_when_asked_again(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(OK)
        await request(reader)  # and no answer

    async def test(talk: Talk) -> int:
        for _ in range(3):
            assert (await talk.get()).body == b"hello"
        return talk.opened

    assert run(hang_up_when_asked_again, test) == 3


def test_a_new_connection_that_is_closed_without_a_word_is_not_asked_again() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)

    async def test(talk: Talk) -> tuple[str, bool, int]:
        with pytest.raises(EndedError) as ended:
            await talk.get()
        return ended.value.outcome, ended.value.reached, talk.opened

    assert run(silent, test) == ("connection", False, 1)


def test_what_comes_after_the_response_is_never_taken_for_the_next_one() -> None:
    async def test(talk: Talk) -> list[bytes | None]:
        first = await talk.get()
        await asyncio.sleep(0.05)
        return [first.body, (await talk.get()).body]

    smuggled = OK + OK.replace(b"hello", b"evil!")
    assert run(says(smuggled, smuggled), test) == [b"hello", b"hello"]


def test_what_comes_unasked_between_two_requests_ends_the_connection() -> None:
    async def chatters(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.write(OK.replace(b"hello", b"evil!"))
        await request(reader)
        writer.write(OK)

    async def test(talk: Talk) -> tuple[list[bytes | None], int]:
        first = await talk.get()
        await asyncio.sleep(0.3)
        return [first.body, (await talk.get()).body], talk.opened

    assert run(chatters, test) == ([b"hello", b"hello"], 2)


def test_where_one_address_refuses_or_says_nothing_the_next_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ADDRESS_SECONDS", 0.2)
    real = module._ask_resolver

    async def test(talk: Talk) -> bytes | None:
        return (await talk.get(seconds=5.0)).body

    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())  # takes no connection and refuses none
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        for bad in (("127.0.0.1", 1), full.getsockname()):
            monkeypatch.setattr(module, "_ask_resolver", lambda host, port, bad=bad: [(socket.AF_INET, bad), *real(host, port)])
            assert run(says(OK), test) == b"hello"


def test_an_old_kept_connection_is_not_used_and_there_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    async def twice(talk: Talk) -> int:
        await talk.get()
        await talk.get()
        return talk.opened

    with monkeypatch.context() as patch:
        patch.setattr(module, "IDLE_SECONDS", 0.0)
        assert run(says(OK, OK), twice) == 2
    monkeypatch.setattr(module, "MAX_IDLE", 3)

    async def many(talk: Talk) -> int:
        await asyncio.gather(*(talk.get() for _ in range(10)))
        return len(talk.pool._idle)

    assert run(says(OK, OK), many) == 3


def test_the_rest_of_an_unwanted_body_is_read_if_short_and_the_answer_does_not_wait_for_it() -> None:
    nothing = Wish(lambda response: False, 1_000)

    async def test(talk: Talk) -> tuple[int, int]:
        for _ in range(2):
            assert (await talk.get(nothing)) == Response(404, [("content-length", str(length))], None)
            await asyncio.sleep(0.1)
        return talk.opened, len(talk.pool._open)

    for length, opened in ((1_000, 1), (1_000_000, 2)):
        answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n" % length + b"x" * length
        assert run(says(answer, answer), test)[0] == opened

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 100\r\n\r\n")
        await asyncio.sleep(30)

    async def quick(talk: Talk) -> int:
        return (await talk.get(nothing, seconds=20)).status

    assert run(drip, quick) == 404


def test_draining_ends_with_the_body_and_an_endless_one_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Wish(lambda response: False, 1_000)

    async def later(talk: Talk) -> int:
        assert (await talk.get(nothing)).status == 404
        await asyncio.sleep(0.4)
        assert (await talk.get()).body == b"hello"
        return talk.opened

    monkeypatch.setattr(http1, "DRAIN_SECONDS", 0.2)
    assert run(says(b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno!", OK), later) == 1
    monkeypatch.setattr(http1, "DRAIN_SECONDS", 60.0)
    written = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await request(reader)
        writer.write(b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
            await writer.drain()
            written += 0x4000

    async def cut(talk: Talk) -> int:
        assert (await talk.get(nothing)).status == 404
        for _ in range(100):
            await asyncio.sleep(0.05)
            if not talk.pool._open:
                return written
        raise AssertionError("the connection is still open")

    assert run(endless, cut) < 20_000_000


def body(content: bytes, encoding: str) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (encoding.encode(), len(content)) + content


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", "deflate"])
def test_a_body_that_is_compressed_although_nobody_asked_is_what_it_was(encoding: str) -> None:
    picture = b"\xff\xd8\xff" + bytes(range(256)) * 50

    async def test(talk: Talk) -> bytes | None:
        return (await talk.get()).body

    packed = zlib.compress(picture) if encoding == "deflate" else gzip.compress(picture)
    assert run(says(body(packed, encoding)), test) == picture


def test_a_compressed_bomb_stays_closed_and_a_broken_one_is_named() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < 100_000
    assert outcome(body(bomb, "gzip")) == "too_long"
    assert outcome(body(b"no gzip at all", "gzip")) == "bad_response"
    assert outcome(body(gzip.compress(b"x" * 10_000)[:-20], "gzip")) == "connection"


def test_lengths_have_caps() -> None:
    assert outcome(b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n") == "too_long"
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    assert outcome(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 20) == "too_long"
    assert outcome(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000) == "bad_response"
    assert outcome(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300 + b"\r\n") == "bad_response"
    assert outcome(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000) == "bad_response"


def test_what_follows_a_body_without_end_is_cut_before_the_deadline() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: ")
        while True:
            writer.write(b"y" * 10_000)
            await writer.drain()

    async def test(talk: Talk) -> str:
        with pytest.raises(EndedError) as ended:
            await talk.get(seconds=15.0)
        return ended.value.outcome

    assert run(endless, test) == "connection"


def test_with_cut_a_long_body_is_its_beginning() -> None:
    async def test(talk: Talk) -> bytes | None:
        return (await talk.get(Wish(lambda response: True, 10, cut=True))).body

    assert run(says(b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 2_000_000), test) == b"x" * 10
    assert run(says(OK), test) == b"hello"


def test_interim_responses_are_passed_over() -> None:
    async def test(talk: Talk) -> bytes | None:
        return (await talk.get()).body

    assert run(says(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK), test) == b"hello"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", "connection"),
        (b"HTTP/1.1 200 OK\r\nConte", "connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", "connection"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n", "connection"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello", "bad_response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "bad_response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello", "bad_response"),
        (b"<html>an old server</html>", "bad_response"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "bad_response"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "bad_response"),
    ],
)
def test_broken_responses_have_names(answer: bytes, expected: str) -> None:
    assert outcome(answer) == expected


def test_a_body_may_end_with_the_connection() -> None:
    async def test(talk: Talk) -> bytes | None:
        return (await talk.get()).body

    assert run(says(b"HTTP/1.1 200 OK\r\n\r\nhello"), test) == b"hello"


def test_the_time_is_up_at_any_point_and_says_whether_the_host_was_heard() -> None:
    async def test(talk: Talk) -> tuple[str, bool]:
        with pytest.raises(EndedError) as ended:
            await talk.get(seconds=0.3)
        await asyncio.sleep(0.05)
        assert not talk.pool._open  # nobody waits for what may still come
        return ended.value.outcome, ended.value.reached

    def stalls_after(answer: bytes) -> Script:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await request(reader)
            writer.write(answer)
            await asyncio.sleep(30)

        return script

    assert run(stalls_after(b""), test) == ("timeout", False)
    assert run(stalls_after(b"HTTP/1.1 200"), test) == ("timeout", True)
    assert run(stalls_after(OK[:-1]), test) == ("timeout", True)


def test_a_name_is_resolved_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = module._ask_resolver

    def counted(host: str, port: int) -> Any:
        asked.append(host)
        return real(host, port)

    monkeypatch.setattr(module, "_ask_resolver", counted)

    async def test(talk: Talk) -> None:
        await asyncio.gather(*(talk.get() for _ in range(8)))
        for _ in range(3):
            with pytest.raises(EndedError):
                await talk.pool.get(Origin("http", "nobody.invalid", 80), "/", {}, EVERYTHING, seconds=20)

    run(says(OK, OK), test)
    assert sorted(asked) == ["127.0.0.1", "nobody.invalid"]
