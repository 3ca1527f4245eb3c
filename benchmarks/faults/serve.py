"""The server of the download benchmark, in a process of its own: hosts at 127.7.x.y, all on one port, all good.

    python benchmarks/faults/serve.py [--hosts 400]

It writes its port and obeys lines on its standard input: `delay SECONDS` before each answer, `clear`, `books`, which writes them as
JSON. It ends when its input does. Under `/404/` there is nothing; everything else but robots.txt and its like is a picture.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults import kinds
from faults.web import Answer, Connection, FaultWeb, Request, books, reply

__all__ = ["addresses"]

_NOTHING = reply(b"not here", status="404 Not Found", type_="text/plain")


def addresses(count: int) -> list[str]:
    """`count` addresses of this machine, each of which can stand for a host (on Linux, where all of 127.0.0.0/8 is loopback)."""
    return [f"127.7.{i // 250}.{i % 250 + 1}" for i in range(count)]


class Delayed:
    """Answers after a delay that may be changed."""

    seconds = 0.0

    def answer(self, request: Request) -> Answer:
        """At once where there is no delay."""
        return _at_once(request) if self.seconds == 0 else self._later

    async def _later(self, connection: Connection, request: Request) -> None:
        await asyncio.sleep(self.seconds)
        connection.send(_at_once(request))


def _at_once(request: Request) -> bytes:
    if request.path.startswith(("/404/", "/robots.txt", "/ai.txt", "/.well-known/")):
        return _NOTHING
    return reply(kinds.picture_of(request.name))


def main() -> None:
    """Serve until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=400)
    options = parser.parse_args()
    delayed = Delayed()
    for i in range(1_000):  # the drawn pictures are made now
        kinds.picture_of(str(i))
    with FaultWeb(delayed.answer, addresses=addresses(options.hosts)) as web:
        print(web.ports["http"], flush=True)
        for line in sys.stdin:
            word, _, value = line.strip().partition(" ")
            if word == "delay":
                delayed.seconds = float(value)
            elif word == "clear":
                web.disconnect()
            elif word == "books":
                print(json.dumps(books(web)), flush=True)


if __name__ == "__main__":
    main()
