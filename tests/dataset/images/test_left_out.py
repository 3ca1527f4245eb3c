import hashlib
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from clipkit import UserError
from clipkit.dataset.images import left_out
from clipkit.dataset.images.image_rules import StoredImage, Wanted, store_image
from clipkit.dataset.images.left_out import HASHES_SCHEMA, LeftOut, load_left_out, picture_hashes, write_hashes
from clipkit.recipe import ImageKnobs


def photo(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


class Pictures(list[bytes]):
    def read(self, start: int, stop: int) -> list[bytes]:
        return self[start:stop]


TEST_SET = Pictures([encode(photo(seed)) for seed in range(3)] + [encode(Image.new("RGB", (200, 100), "white")), b"no picture"])


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lists") / "hashes.parquet"
    told = write_hashes([("shapes", "test", TEST_SET)], path, processes=1)
    assert told == {"shapes": {"pictures": 5, "undecodable": 1, "flat": 1}}
    return path


def fate(tests: LeftOut | None, *images: bytes, **knobs: Any) -> list[bool]:
    """Which of the downloaded images are of the test set."""
    assert tests is not None
    chosen = ImageKnobs(rules=(), **knobs)
    wanted = Wanted(likeness=tests.has_likenesses, downloaded=True, sizes=tests.sizes)
    stored = [store_image(data, chosen, wanted) for data in images]
    assert all(isinstance(one, StoredImage) for one in stored)
    rows = [one._asdict() | {"position": i} for i, one in enumerate(stored) if isinstance(one, StoredImage)]
    schema = pa.schema([*((n, pa.string()) for n in ("sha256", "downloaded_sha256", "pixels_sha256")), ("perceptual_hash", pa.uint64())])
    table = pa.Table.from_pylist(rows, schema.append(pa.field("position", pa.int64())))
    thumbnails = [np.frombuffer(row["thumbnail"] or bytes(768), np.uint8) for row in rows]
    return tests.among(table, lambda rows: np.array([thumbnails[row] for row in rows]).reshape(-1, 768), chosen).to_pylist()  # type: ignore[no-any-return]


def test_a_row_tells_file_pixels_and_likeness_of_each_picture(listed: Path) -> None:
    rows = pq.read_table(listed).to_pylist()
    assert [(row["task"], row["split"], row["index"]) for row in rows] == [("shapes", "test", i) for i in range(5)]
    assert [row["sha256"] for row in rows] == [hashlib.sha256(data).hexdigest() for data in TEST_SET]
    header = (320).to_bytes(4, "big") + (240).to_bytes(4, "big")
    assert rows[0]["pixels_sha256"] == hashlib.sha256(header + np.asarray(photo(0)).tobytes()).hexdigest()
    assert [row["perceptual_hash"] is None for row in rows] == [False, False, False, True, True]
    assert rows[4]["pixels_sha256"] is None


def test_the_same_bytes_the_same_pixels_and_the_same_look_are_left_out(listed: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    copies = {
        "the file": TEST_SET[0],
        "encoded anew without loss": encode(photo(1), "WEBP", lossless=True),
        "turned, and said so": encode(photo(1).transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif),
        "a worse JPEG": encode(photo(2), "JPEG", quality=40),
        "a larger copy": encode(photo(2).resize((1600, 1200)), "JPEG"),
        "a flat one, by its pixels": encode(Image.new("RGB", (200, 100), "white"), "BMP"),
    }
    others = [photo(7), photo(8), Image.new("RGB", (200, 101), "white"), Image.new("RGB", (200, 100), "#fffffe"), photo(2).transpose(0)]
    tests = load_left_out([str(listed)])
    found = fate(tests, *copies.values(), *map(encode, others))
    assert dict(zip(copies, found, strict=False)) == dict.fromkeys(copies, True)
    assert found[len(copies) :] == [False] * len(others)


def test_pixels_are_compared_upright_and_of_a_large_jpeg_all_of_them(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    faint = np.full((2200, 2800, 3), 120, np.uint8)  # too flat for a perceptual hash: only pixels can tell
    faint[:700, :1200] += 3
    picture = Image.fromarray(faint)
    on_its_side = encode(picture.transpose(Image.Transpose.ROTATE_90), exif=exif)
    jpeg = encode(picture.transpose(0), "JPEG", subsampling=0)
    write_hashes([("faint", "test", Pictures([on_its_side, jpeg]))], tmp_path / "x.parquet", processes=1)
    remark = jpeg[:2] + b"\xff\xfe\0\x06text" + jpeg[2:]
    tests = load_left_out([str(tmp_path / "x.parquet")])
    assert tests is not None
    assert not tests.has_likenesses
    again = encode(picture, "WEBP", lossless=True)
    side = encode(picture.transpose(Image.Transpose.ROTATE_90), "BMP")
    turned_again = encode(picture.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif, compress_level=1)
    assert fate(tests, again, remark, turned_again, side) == [True, True, True, False]


def test_each_of_three_hashes_of_bytes_is_enough() -> None:
    tests = LeftOut(pa.array(["a" * 64]), frozenset(), np.empty(0, np.uint64), np.empty((0, 768), np.uint8), np.empty(0, np.uint64))
    columns = ["sha256", "downloaded_sha256", "pixels_sha256"]
    hit = {name: ["a" * 64 if name == columns[row] else "b" * 64 for row in range(3)] + ["b" * 64] for name in columns}
    images = pa.table({**hit, "perceptual_hash": pa.nulls(4, pa.uint64()), "position": range(4)})
    assert tests.among(images, lambda rows: np.empty((len(rows), 768), np.uint8), ImageKnobs()).to_pylist() == [True, True, True, False]


def test_a_run_is_known_by_all_that_its_lists_say() -> None:
    def fingerprint(**changes: Any) -> str:
        facts: dict[str, Any] = {
            "sha256s": pa.array(["a" * 64]),
            "sizes": frozenset({(3, 4)}),
            "hashes": np.array([7], np.uint64),
            "thumbnails": np.zeros((1, 768), np.uint8),
            "exact_hashes": np.array([9], np.uint64),
        }
        return LeftOut(**{**facts, **changes}).fingerprint

    changes: list[dict[str, Any]] = [
        {},
        {"sha256s": pa.array(["b" * 64])},
        {"sizes": frozenset({(4, 3)})},
        {"hashes": np.array([8], np.uint64)},
        {"thumbnails": np.ones((1, 768), np.uint8)},
        {"exact_hashes": np.array([10], np.uint64)},
    ]
    assert len({fingerprint(**change) for change in changes}) == len(changes)


def test_the_knobs_say_how_near_is_near(listed: Path) -> None:
    worse = encode(photo(2), "JPEG", quality=15)
    assert fate(load_left_out([str(listed)]), worse) == [True]
    assert fate(load_left_out([str(listed)]), worse, near_duplicate_difference=0.01) == [False]


def test_what_is_stored_counts_too(tmp_path: Path) -> None:
    data = encode(photo(0, (900, 700)))
    stored = store_image(data, ImageKnobs())
    assert isinstance(stored, StoredImage)
    (tmp_path / "list.txt").write_text(f"# what we had\n{stored.sha256.upper()}\n\n")
    assert fate(load_left_out([str(tmp_path / "list.txt")]), data, encode(photo(1))) == [True, False]


def test_a_plain_list_of_hashes_wants_equality(tmp_path: Path) -> None:
    own = picture_hashes(TEST_SET[0]).perceptual_hash
    assert own is not None
    (tmp_path / "equal.csv").write_text(f"name,phash\na.png,{own:016x}\n")
    (tmp_path / "near.csv").write_text(f"{own ^ 1:016x},a.png\n")
    assert fate(load_left_out([str(tmp_path / "equal.csv")]), TEST_SET[0], TEST_SET[1]) == [True, False]
    assert fate(load_left_out([str(tmp_path / "near.csv")]), TEST_SET[0]) == [False]
    assert fate(load_left_out([str(tmp_path / "*.csv")]), TEST_SET[0]) == [True]


def test_several_files_are_one_list_in_any_order(listed: Path, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("0" * 64 + "\n")
    places = [str(listed), str(tmp_path / "more.txt")]
    there, back = load_left_out(places), load_left_out(places[::-1])
    only = load_left_out(places[:1])
    assert there is not None
    assert back is not None
    assert only is not None
    assert there.fingerprint == back.fingerprint != only.fingerprint
    assert load_left_out([]) is None


def many_scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: each repetition goes over all of its blocks."""
    data = encode(Image.new("L", (side, side)), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + b"\xff\xd9"


def test_a_test_picture_of_thousands_of_scans_is_undecodable_and_costs_nothing() -> None:
    data = many_scans(4_000, 3_000)
    started = time.process_time()
    assert picture_hashes(data) == (hashlib.sha256(data).hexdigest(), *[None] * 5)
    assert time.process_time() - started < 1.0
    assert picture_hashes(many_scans(64, 80)).pixels_sha256 is not None


def test_a_test_picture_that_takes_too_long_is_undecodable_and_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_out, "SECONDS_PER_IMAGE", 0.2)  # the photos take a tenth of it, the other one five times as much
    pictures = Pictures([encode(photo(0)), many_scans(4_000, 80), encode(photo(1))])
    told = write_hashes([("slow", "test", pictures)], tmp_path / "x.parquet", processes=1)
    assert told == {"slow": {"pictures": 3, "undecodable": 1, "flat": 0}}
    assert [pixels is None for pixels in pq.read_table(tmp_path / "x.parquet")["pixels_sha256"].to_pylist()] == [False, True, False]


def broken(folder: Path, kind: str) -> Path:
    good = pa.Table.from_pylist([{"sha256": "0" * 64}], HASHES_SCHEMA)
    path = (
        folder
        / f"list.{'csv' if kind == 'csv' else 'txt' if kind in ('words', 'empty', 'binary') else kind if kind == 'json' else 'parquet'}"
    )
    match kind:
        case "words":
            path.write_text("a.png\n")
        case "csv":
            path.write_text(f"sha256\n{'0' * 64}\nmissing\n")
        case "empty":
            path.write_text("# nothing\n")
        case "binary":
            path.write_bytes(b"\xff\xfe\0\1" * 20)
        case "columns":
            pq.write_table(good.drop_columns(["thumbnail"]), path)
        case "digits":
            pq.write_table(good.set_column(3, "sha256", pa.array(["0" * 63])), path)
        case "thumbnail":
            pq.write_table(good.drop_columns(["thumbnail"]).append_column("thumbnail", pa.array([b"short"])), path)
        case "unsized":
            pq.write_table(good.set_column(4, "pixels_sha256", pa.array(["0" * 64])), path)
        case _:
            path.write_bytes(b"PAR1 and no more")
    return path


@pytest.mark.parametrize("kind", ["words", "csv", "empty", "binary", "columns", "digits", "thumbnail", "unsized", "json", "cut"])
def test_a_file_that_is_no_list_is_told_in_one_sentence(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`images.leave_out`: `.*` is no list of test pictures \(.+\): give what") as told:
        load_left_out([str(broken(tmp_path, kind))])
    assert "\n" not in str(told.value)


def test_a_list_that_is_not_there_is_told(tmp_path: Path) -> None:
    for place in (tmp_path / "none.parquet", tmp_path / "*.parquet", tmp_path):
        with pytest.raises(UserError, match="which is no file"):
            load_left_out([str(place)])
    with pytest.raises(UserError, match="a file on this machine"):
        load_left_out(["https://lists.example/hashes.parquet"])
