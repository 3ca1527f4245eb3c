"""The Tux Paint stamps as a web: pictures over loopback HTTP, pages in 77 languages with the stamps' captions as alt texts."""

import html
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

HOST = "stamps.example"
MAX_CAPTION_LINES = 200


class Caption(NamedTuple):
    """One caption of one picture: its path under the stamps' folder, the language's code, the text."""

    picture: str
    language: str
    text: str


def read_captions(stamps: Path) -> list[Caption]:
    """Every caption of every PNG stamp: line 1 of NAME.txt is English, the others read `lang.utf8=text`."""
    captions = []
    for picture in sorted(stamps.rglob("*.png")):
        described = picture.with_suffix(".txt")
        if not described.exists():
            continue
        first, *others = described.read_text(encoding="utf-8", errors="replace").splitlines()[:MAX_CAPTION_LINES]
        name = picture.relative_to(stamps).as_posix()
        captions.append(Caption(name, "en", first.strip()))
        for line in others:
            language, sign, text = line.partition(".utf8=")
            if sign and text.strip():
                captions.append(Caption(name, language.strip(), text.strip()))
    return captions


def is_english(caption: Caption, english: frozenset[str]) -> bool:
    """True for English, its regional forms (en_GB, ...) and translations that are left equal to an English caption."""
    return caption.language == "en" or caption.language.startswith("en_") or caption.text in english


def write_pages(captions: list[Caption], folder: Path) -> int:
    """One HTML page for each language and folder of stamps, `LANGUAGE/FOLDER.html`; returns the number of pages."""

    def place(caption: Caption) -> tuple[str, str]:
        return caption.language, caption.picture.rsplit("/", 1)[0]

    pages = 0
    for (language, category), group in groupby(sorted(captions, key=place), key=place):
        path = folder / language / f"{category.replace('/', '-')}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        images = "\n".join(f'<p><img src="/stamps/{c.picture}" alt="{html.escape(c.text)}"></p>' for c in group)
        path.write_text(
            f'<!doctype html><html lang="{language}"><meta charset="utf-8"><title>{category}</title>\n{images}\n</html>\n', encoding="utf-8"
        )
        pages += 1
    return pages


@contextmanager
def serving(stamps: Path) -> Iterator[str]:
    """Serve the pictures under /stamps on a free loopback port; yields ADDRESS:PORT."""

    class Quiet(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def translate_path(self, path: str) -> str:
            return super().translate_path(path.removeprefix("/stamps"))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(stamps)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
