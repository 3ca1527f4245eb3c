import contextlib
import io
import os
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipkit.dataset.images import stored_images
from clipkit.dataset.images.image_rules import StoredImage, Wanted, store_image
from clipkit.dataset.images.perceptual import likeness
from clipkit.dataset.images.stored_images import read_stored, read_thumbnails, store_images
from clipkit.recipe import ImageKnobs
from clipkit.run import Run


class Downloaded:
    """What `Downloads.images` gives."""

    def __init__(self, images: Sequence[bytes]) -> None:
        self._images = images

    def images(self, keys: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        yield from ((key, self._images[int(key)]) for key in keys)


def picture(seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((120, 90), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def store(images: Sequence[bytes], folder: Path, wanted: Wanted = Wanted(), run: Any = None) -> pa.Table:  # noqa: B008
    out = folder / "stored"
    out.mkdir(exist_ok=True)
    keys = pa.table({"key": [str(i) for i in range(len(images))]}).to_batches()
    run = run or Run.scratch(folder / "run")
    return store_images(keys, Downloaded(images), out, knobs=ImageKnobs(), wanted=wanted, run=run, processes=1)  # type: ignore[arg-type]


def test_thumbnails_are_found_by_rows_over_several_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_images, "PAIRS_PER_PART", 3)
    images = [encode(picture(seed)) for seed in range(8)]
    table = store(images, tmp_path, Wanted(likeness=True))
    assert "thumbnail" not in table.column_names
    expected = [likeness(Image.open(io.BytesIO(data)).convert("RGB")) for data in images]
    assert table["perceptual_hash"].to_pylist() == [one.hash for one in expected]
    rows = np.array([7, 0, 4, 3])
    assert [bytes(row) for row in read_thumbnails(tmp_path / "stored", rows)] == [expected[row].thumbnail for row in rows]
    last = table.to_pylist()[7]
    assert read_stored(tmp_path / "stored", last["file"], last["offset"], last["size"]) == images[7]


def test_what_no_rule_asks_for_is_not_computed(tmp_path: Path) -> None:
    [row] = store([encode(picture(0))], tmp_path).to_pylist()
    assert [row[name] for name in ("perceptual_hash", "nsfw", "downloaded_sha256", "pixels_sha256")] == [None] * 4


def test_a_part_of_a_version_that_told_less_is_made_again(tmp_path: Path) -> None:
    images = [encode(picture(0))]
    store(images, tmp_path)
    path = tmp_path / "stored" / "stored-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["thumbnail", "perceptual_hash"]), path)
    [row] = store(images, tmp_path, Wanted(likeness=True)).to_pylist()
    assert row["perceptual_hash"] == likeness(picture_of(images[0])).hash


class Watched:
    """What of a run says how far it is."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.told: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def progress(self, description: str, *, total: float, unit: str) -> Iterator[Any]:
        self.totals[description], self.told[description] = total, []
        yield self.told[description].append


def test_progress_moves_by_a_few_images_and_by_whole_parts_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_images, "IMAGES_AT_ONCE", 2)
    images = [encode(picture(seed)) for seed in range(5)]
    for expected in ([2, 2, 1], [5]):
        watched = Watched()
        store(images, tmp_path, run=watched)
        assert watched.totals == {"image rules": 5}
        assert watched.told == {"image rules": expected}


def picture_of(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


# ------------------------------------------------------------------- hostile files


def many_scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: each repetition goes over all of its blocks."""
    data = encode(Image.new("L", (side, side)), progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + b"\xff\xd9"


def test_a_jpeg_of_thousands_of_scans_costs_nothing() -> None:
    data = many_scans(4_000, 3_000)
    assert len(data) < 400_000
    started = time.process_time()
    assert store_image(data, ImageKnobs()) == "undecodable"
    assert time.process_time() - started < 1.0
    assert isinstance(store_image(many_scans(64, 80), ImageKnobs()), StoredImage)


def test_an_image_that_takes_too_long_is_undecodable_and_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_images, "SECONDS_PER_IMAGE", 1.0)
    images = [encode(picture(0)), many_scans(8_000, 90), encode(picture(1))]
    assert store(images, tmp_path)["reason"].to_pylist() == [None, "undecodable", None]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(idat: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


BOMB = zlib.compress(bytes(1 << 28), 9)
PIXELS = zlib.compress(bytes(65 * 64))
HOSTILE = {
    "a text that unpacks to 256 MB": png(PIXELS, chunk(b"zTXt", b"k\0\0" + BOMB)),
    "a colour profile that does": png(PIXELS, chunk(b"iCCP", b"k\0\0" + BOMB)),
    "pixels that do, of a picture of 64 x 64": png(BOMB),
    "a WebP canvas of 16,383 x 16,383": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0\xfe\x3f\0\xfe\x3f\0VP8L\0\0\0\0",
    "a GIF canvas of 65,535 x 65,535": b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bomb_in_any_corner_of_a_file_takes_no_memory(name: str) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        import resource

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        store_image(HOSTILE[name], ImageKnobs())
        os.write(writing, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reading, 100)) < 64_000  # kilobytes
    os.close(reading)
    os.close(writing)
