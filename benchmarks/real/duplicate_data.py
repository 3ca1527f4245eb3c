"""What the small near-duplicate detector was trained on: free pictures of Debian packages, free emoji, and pictures drawn by clipkit.

    python benchmarks/real/duplicate_data.py --out SHARDS       (needs apt-get, dpkg-deb and npm: Debian or Ubuntu)

Writes SHARDS/train, SHARDS/held-out (the threshold is chosen on it) and SHARDS/photographs (for the acceptance table). A picture larger
than a tile is cut into it at several scales, without overlap inside a scale, and plain tiles are left out; every picture is a JPEG of at
most SIDE pixels a side. Which of the three a file goes to is drawn by its name, so that no tile of a photograph is on two sides.
"""

import argparse
import hashlib
import re
import sys
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fetch import DATA, fetch_all
from PIL import Image, ImageFile

from clipkit.dataset.shards import Pair, pair_key, write_shards
from clipkit.demo import drawing

SIDE = 72
"""Pixels of a tile's side: what the augmentation cuts its parts from, nearly twice what the network sees."""

LEAST_DEVIATION = 12.0
"""Grey levels (standard deviation) below which a tile is plain: two skies are one picture."""

MOST_TILES = 160
HELD_OUT_SHARE = 0.06
PICTURES_PER_TAR = 5_000

LICENCES = {
    "mate-backgrounds": "GPL-2+, CC-BY-SA-4.0",
    "gnome-backgrounds": "CC-BY-SA-3.0, CC-BY-SA-2.0, CC-BY-2.0, GPL-2+",
    "plasma-workspace-wallpapers": "GPL-2+ as packaged",
    "ukui-wallpapers": "CC-BY-SA-3.0",
    "lomiri-wallpapers-20.04": "CC-BY-4.0, CC-BY-SA-3.0, CC-BY-SA-4.0, CC0-1.0",
    "lomiri-wallpapers-16.04": "CC-BY-4.0, CC-BY-SA-3.0, CC-BY-SA-4.0, CC0-1.0",
    "lxqt-themes": "CC-BY-SA-3.0, LGPL-2.1+, LGPL-3",
    "supertuxkart-data": "CC-BY-SA-3.0 and -4.0, CC-BY-3.0, CC0, GPL, public domain",
    "wesnoth-1.16-data": "GPL-2+",
    "widelands-data": "GPL-2+, CC-BY-SA-3.0",
    "supertux-data": "GPL-2+, GPL-3+, CC-BY-SA-4.0, CC0",
    "hedgewars-data": "GPL-2",
    "extremetuxracer-data": "GPL-2+, CC0",
    "fluent-emoji-3d": "MIT (Microsoft's Fluent Emoji)",
}
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
VARIANT = re.compile(r"screenshot|720x|1080x|1622x|images_dark|-d\.webp|_pc\.|1f3f[b-f]|normal|/maps/")
"""Files that show what another does, or a map of normals."""

NUMBER = re.compile(r"_?\d+(x\d+)?")

PHOTOGRAPHS = "lomiri-wallpapers-16.04"
"""The set of photographs that is kept for the acceptance table, whole."""

DRAWN = {"shape": 2_500, "group": 2_000, "texture": 1_000, "word": 1_000}


class Source(NamedTuple):
    """A file of a set."""

    origin: str
    path: Path
    name: str

    @property
    def part(self) -> str:
        """`train`, `held-out` or `photographs`."""
        if self.origin == PHOTOGRAPHS:
            return "photographs"
        return "held-out" if _draw(self.name) < HELD_OUT_SHARE else "train"


def _draw(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32


def sources(data: Path, *, only: Collection[str] = tuple(LICENCES)) -> list[Source]:
    """Every picture file of every set, but of an animation's frames, of sizes and of skin tones the first alone."""
    found: dict[str, Source] = {}
    for origin in only:
        for path in sorted((data / origin).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file() and path.stat().st_size > 4_000 and not VARIANT.search(str(path)):
                stem = path.stem if origin == "fluent-emoji-3d" else NUMBER.sub("", path.stem)
                found.setdefault(f"{origin} {path.parent} {stem}", Source(origin, path, str(path.relative_to(data))))
    return list(found.values())


def tiles(source: Source, *, side: int = SIDE) -> list[bytes]:
    """A file's pictures as JPEGs: the whole, and for large ones what is cut from it. Nothing for what cannot be read."""
    rng = np.random.default_rng(int(_draw(source.name) * 2**32))
    try:
        image = _on_paper(source.path, rng)
    except Exception as error:  # a format that Pillow lacks, or a damaged file of a package
        print(f"{source.name}: {error}", file=sys.stderr)
        return []
    boxes = [(0, 0, *image.size), *_grid(image.size, rng, side)]
    cut = (image.resize(_fitted(box, side), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0) for box in boxes)
    kept = [tile for tile in cut if np.asarray(tile.convert("L")).std() >= LEAST_DEVIATION]
    return [drawing.encode(tile, "jpg", 95) for tile in kept[:MOST_TILES]]


def _on_paper(path: Path, rng: np.random.Generator) -> Image.Image:
    """A picture of at most 2,560 pixels a side; over white or a random colour where it is transparent."""
    with Image.open(path) as opened:
        opened.draft("RGB", (2560, 2560))
        image = opened.convert("RGBA") if opened.has_transparency_data else opened.convert("RGB")
    image.thumbnail((2560, 2560), Image.Resampling.BOX)
    if image.mode == "RGB":
        return image
    colour = (255, 255, 255) if rng.random() < 0.5 else tuple(rng.integers(0, 256, 3).tolist())
    paper = Image.new("RGBA", image.size, (*colour, 255))
    paper.alpha_composite(image)
    return paper.convert("RGB")


def _grid(size: tuple[int, int], rng: np.random.Generator, least: int) -> list[tuple[int, int, int, int]]:
    """Boxes in random order: grids of squares of a half, a quarter, an eighth of the shorter side, down to 1.5 tiles; shifted at random."""
    boxes, side = [], min(size) // 2
    while side >= 1.5 * least and side >= min(size) // 10:
        left, top = (int(rng.integers(0, length % side + 1)) for length in size)
        boxes += [(x, y, x + side, y + side) for x in range(left, size[0] - side + 1, side) for y in range(top, size[1] - side + 1, side)]
        side //= 2
    return [boxes[i] for i in rng.permutation(len(boxes))]


def _fitted(box: tuple[int, int, int, int], shorter: int) -> tuple[int, int]:
    """The box's sides, the shorter one as asked, or as it is where it is smaller."""
    width, height = box[2] - box[0], box[3] - box[1]
    scale = min(1.0, shorter / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def drawn(number: int, kind: str) -> bytes:
    """A drawn picture."""
    rng = np.random.default_rng((number, sum(map(ord, kind))))
    colours = rng.permutation(list(drawing.COLOURS))[:2].tolist()
    shapes = rng.permutation(drawing.SHAPES)[:2].tolist()
    if kind == "shape":
        made = drawing.draw_shape(rng, colours[0], shapes[0])
    elif kind == "group":
        made = drawing.draw_group(rng, colours, shapes, rng.integers(1, 5, 2).tolist(), str(rng.choice(["above", "beside"])))
    elif kind == "texture":
        made = drawing.draw_texture(rng, str(rng.choice(drawing.TEXTURES)), colours)
    else:
        made = drawing.draw_word(rng, "".join(rng.choice(list("abcdefghilmnoprstu"), rng.integers(3, 9))), colours[0])
    return drawing.encode(made.image.resize(_fitted((0, 0, *made.image.size), SIDE), Image.Resampling.LANCZOS), "jpg", 95)


def cut_all(data: Path) -> dict[str, list[Pair]]:
    """All pictures by part."""
    parts: dict[str, list[Pair]] = {"train": [], "held-out": [], "photographs": []}
    files = sources(data)
    with ProcessPoolExecutor(2) as pool:
        for source, found in zip(files, pool.map(tiles, files, chunksize=4), strict=True):
            parts[source.part] += [_pair(f"{source.origin}://{source.name}#{n}", jpeg, source.origin) for n, jpeg in enumerate(found)]
        for kind, count in DRAWN.items():
            made = pool.map(drawn, range(count), [kind] * count, chunksize=100)
            for number, jpeg in enumerate(made):
                parts["held-out" if number < 0.1 * count else "train"].append(_pair(f"drawn://{kind}/{number}", jpeg, "drawn"))
    return {name: [part[i] for i in np.random.default_rng(0).permutation(len(part))] for name, part in parts.items()}


def _pair(url: str, jpeg: bytes, origin: str) -> Pair:
    return Pair(pair_key(url, origin), jpeg, origin, {"image_url": url, "source": origin})


def _funnel(part: list[Pair]) -> Iterator[dict[str, object]]:
    for origin in (*LICENCES, "drawn"):
        count = sum(pair.text == origin for pair in part)
        if count:
            yield {"stage": origin, "in": count, "out": count, "dropped": {}}


def main() -> None:
    """Fetch, cut, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder that the three folders of shards go to")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder that the packages are unpacked in")
    options = parser.parse_args()
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    fetch_all(options.data, only=tuple(LICENCES))
    for name, part in cut_all(options.data).items():
        funnel = list(_funnel(part))
        write_shards(iter(part), options.out / name, pairs_per_shard=PICTURES_PER_TAR, recipe={"side": SIDE}, funnel=funnel)
        print(name, len(part), {stage["stage"]: stage["out"] for stage in funnel})


if __name__ == "__main__":
    main()
