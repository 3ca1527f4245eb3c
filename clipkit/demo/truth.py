"""The truth about the small web of `clipkit demo`, as `web.json` holds it: what each image URL is, and what was planted."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

VERSION = 1
PAGE_HOSTS = ("shapes.example", "gallery.example", "shop.example", "blog.example", "art.example")
HOSTS = (*PAGE_HOSTS, "cdn.example", "slow.example")


class Size(NamedTuple):
    """How much is drawn: pictures by kind, pictures per class in the test sets, near-duplicates per change, units of dirt."""

    shapes: int
    groups: int
    textures: int
    words: int
    shape_test: int
    shape_train: int
    texture_test: int
    texture_train: int
    planted: int
    dirt: int


SIZES: Mapping[str, Size] = {
    "full": Size(1_380, 240, 300, 100, shape_test=18, shape_train=25, texture_test=20, texture_train=25, planted=24, dirt=12),
    "small": Size(900, 40, 120, 20, shape_test=10, shape_train=16, texture_test=10, texture_train=10, planted=8, dirt=4),
}


@dataclass(frozen=True)
class Text:
    """A text beside a picture: its place (alt, title, figcaption), and which kind of useless text it is, if any."""

    place: str
    text: str
    dirt: str | None = None


@dataclass(frozen=True)
class Picture:
    """One image URL.

    `kind` is `good`, `planted`, `logo`, `tracking-pixel` or a kind of dirt (`pictures.DIRT`); `depicts` is the class where one
    coloured shape is shown; `file` is what is served, under `files/`; `serve` is how: status, headers, location, delay_seconds,
    drip (in small pieces). Of several texts the last is the one that a dataset should keep, if its `dirt` is null.
    """

    url: str
    kind: str
    file: str | None
    texts: tuple[Text, ...]
    depicts: str | None = None
    serve: Mapping[str, Any] = field(default_factory=dict)
    markup: str = "absolute"
    page: str = ""


@dataclass(frozen=True)
class Planted:
    """A near-duplicate of a test picture (`test_index`: its place in the split): its URL and text, and what was changed."""

    url: str
    text: str
    task: str
    test_index: int
    test_file: str
    change: str
    details: str


@dataclass(frozen=True)
class Web:
    """All of it. `tests` are the files of each task's test split in their order, `crawl` the sha256 of each WARC file."""

    version: int
    seed: int
    size: str
    hosts: tuple[str, ...]
    tests: Mapping[str, Sequence[str]]
    crawl: Mapping[str, str]
    planted: tuple[Planted, ...]
    pictures: tuple[Picture, ...]


def read_web(root: Path) -> Web | None:
    """The web that was drawn into `root`, or None where there is none, a part of one, or one that an older clipkit drew."""
    path = root / "web.json"
    if not path.exists():
        return None
    raw = json.loads(path.read_text(encoding="utf-8"))
    if raw.get("version") != VERSION:
        return None
    pictures = tuple(Picture(**{**picture, "texts": tuple(Text(**text) for text in picture["texts"])}) for picture in raw["pictures"])
    planted = tuple(Planted(**planted) for planted in raw["planted"])
    return Web(**{**raw, "hosts": tuple(raw["hosts"]), "planted": planted, "pictures": pictures})
