import itertools
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from clipkit.dataset.images.near_duplicates import alike, near_duplicates
from clipkit.dataset.images.perceptual import likeness
from clipkit.dataset.images.table_rules import table_reasons
from clipkit.recipe import ImageKnobs

BASE = np.random.default_rng(5).integers(60, 190, 768)


def thumbnail(step: int) -> np.ndarray:
    """Pictures on a line: those of steps a and b differ by |a - b| levels on average."""
    return (BASE + step).astype(np.uint8)


def dropped(steps: list[int], hashes: list[int], *, bits: int = 2, difference: float = 4.0) -> list[bool]:
    pictures = np.array([thumbnail(step) for step in steps], np.uint8).reshape(-1, 768)
    return near_duplicates(np.array(hashes, np.uint64), lambda rows: pictures[rows], bits=bits, difference=difference).tolist()


def test_a_hash_alone_drops_nothing_and_pixels_alone_neither() -> None:
    assert dropped([0, 1], [0b0, 0b11]) == [False, True]
    assert dropped([0, 30], [0, 0]) == [False, False]
    assert dropped([0, 0], [0b0, 0b111]) == [False, False]


def test_the_end_of_a_chain_stays_where_it_is_unlike_its_beginning() -> None:
    assert dropped([0, 3, 6], [0, 0, 0]) == [False, True, False]
    assert dropped([3, 0, 6], [0, 0, 0]) == [False, True, True]
    assert dropped([0, 3, 6, 9], [0, 0b11, 0b1111, 0b111111]) == [False, True, False, True]
    assert dropped([0, 1, 2, 3], [0, 0, 0, 0]) == [False, True, True, True]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 15)), min_size=0, max_size=25))
def test_of_every_group_the_first_stays_as_a_loop_over_all_pairs_finds_it(pictures: list[tuple[int, int]]) -> None:
    steps, hashes = [step for step, _ in pictures], [value for _, value in pictures]
    stays: list[int] = []
    for i in range(len(pictures)):
        if not any((hashes[i] ^ hashes[j]).bit_count() <= 2 and abs(steps[i] - steps[j]) <= 4 for j in stays):
            stays.append(i)
    assert dropped(steps, hashes) == [i not in stays for i in range(len(pictures))]


def table(pictures: list[Image.Image], keys: list[str]) -> tuple[pa.Table, Any]:
    found = [likeness(picture) for picture in pictures]
    thumbnails = np.stack([np.frombuffer(one.thumbnail, np.uint8) for one in found])
    columns = {"key": keys, "text": keys, "sha256": keys, "perceptual_hash": pa.array([one.hash for one in found], pa.uint64())}
    return pa.table({**columns, "position": pa.array(range(len(keys)), pa.int64())}), lambda rows: thumbnails[rows]


def drawing(seed: int, size: tuple[int, int] = (200, 150)) -> Image.Image:
    random = np.random.default_rng(seed)
    picture = Image.new("RGB", (200, 150), tuple(random.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(picture)
    for _ in range(6):
        left, top = random.integers(0, 150), random.integers(0, 100)
        colour = tuple(random.integers(0, 256, 3).tolist())
        pen.ellipse((left, top, left + random.integers(20, 90), top + random.integers(20, 90)), fill=colour)
    return picture.resize(size, Image.Resampling.BICUBIC)


KNOBS = ImageKnobs(rules=("near_duplicate",))


def test_a_smaller_copy_goes_and_different_drawings_stay_in_whatever_order() -> None:
    pictures = [drawing(1), drawing(2), drawing(1, (130, 97)), drawing(3), drawing(1, (260, 195))]
    for order in itertools.permutations(range(5)):
        rows, thumbnails = table([pictures[i] for i in order], [f"k{i}" for i in order])
        reasons = dict(zip(rows["key"].to_pylist(), table_reasons(rows, KNOBS, thumbnails).to_pylist(), strict=True))
        assert reasons == {"k0": None, "k1": None, "k2": "near_duplicate", "k3": None, "k4": "near_duplicate"}


def test_flat_pictures_and_thin_drawings_on_white_are_told_apart_or_kept() -> None:
    pictures = [Image.new("RGB", (100, 100), colour) for colour in ("white", "white", "#fefefe", "black")]
    for word in range(4):  # a thin line, elsewhere each time
        picture = Image.new("RGB", (300, 300), "white")
        ImageDraw.Draw(picture).line((20, 40 + 60 * word, 280, 40 + 60 * word), fill="black", width=2)
        pictures.append(picture)
    rows, thumbnails = table(pictures, [f"k{i}" for i in range(8)])
    assert table_reasons(rows, KNOBS, thumbnails).to_pylist() == [None] * 8


def test_pictures_that_an_earlier_rule_dropped_take_no_part() -> None:
    rows, thumbnails = table([drawing(1), drawing(1), drawing(1)], ["k0", "k1", "k2"])
    rows = rows.append_column("nsfw", pa.array([0.9, None, 0.2], pa.float32()))
    knobs = ImageKnobs(rules=("nsfw", "near_duplicate"), max_nsfw_score=0.5)
    assert table_reasons(rows, knobs, thumbnails).to_pylist() == ["nsfw", None, "near_duplicate"]
    swapped = knobs.model_copy(update={"rules": ("near_duplicate", "nsfw")})
    assert table_reasons(rows, swapped, thumbnails).to_pylist() == ["nsfw", "near_duplicate", "near_duplicate"]


def test_a_score_at_the_limit_stays() -> None:
    names = ["a", "b", "c"]
    rows = pa.table({"key": names, "text": names, "sha256": names, "nsfw": pa.array([0.5, 0.51, None], pa.float32())})
    assert table_reasons(rows, ImageKnobs(rules=("nsfw",), max_nsfw_score=0.5)).to_pylist() == [None, "nsfw", None]


def test_only_candidates_thumbnails_are_asked_for() -> None:
    asked: list[int] = []

    def thumbnails(rows: np.ndarray) -> np.ndarray:
        asked.extend(rows.tolist())
        return np.stack([thumbnail(0) for _ in rows]) if len(rows) else np.empty((0, 768), np.uint8)

    hashes = np.array([0, 2**40 - 1, 1, 2**63 + 2**20 - 1], np.uint64)
    assert near_duplicates(hashes, thumbnails, bits=1, difference=4).tolist() == [False, False, True, False]
    assert asked == [0, 2]


def test_alike_is_the_mean_absolute_difference() -> None:
    assert [alike(thumbnail(0)[None], thumbnail(shift), 4.0).tolist() for shift in (4, 5)] == [[True], [False]]


def test_the_lesser_contrast_of_the_two_counts() -> None:
    signs = np.where(np.arange(256) % 2, 1, -1).repeat(3)
    strong, weak = (128 + signs * 24).astype(np.uint8), (128 + signs * 19).astype(np.uint8)  # 5 apart: over a quarter of 19, not of 24
    assert not alike(strong[None], weak, 6.0)[0]
    assert not alike(weak[None], strong, 6.0)[0]
    weak = (128 + signs * 20).astype(np.uint8)  # 4 apart
    assert alike(strong[None], weak, 6.0)[0]


def test_few_levels_are_much_where_there_is_little_contrast_and_a_detail_counts_where_the_mean_is_small() -> None:
    faint = np.full((2, 16, 16, 3), 250)
    faint[0, :8] -= 4
    faint[1, :, :8] -= 4
    assert not alike(faint[0].reshape(1, -1).astype(np.uint8), faint[1].reshape(-1).astype(np.uint8), 4.0)[0]
    own, other = BASE.astype(np.uint8), BASE.reshape(16, 16, 3).copy()
    other[3, 3] += 41
    assert not alike(own[None], other.reshape(-1).astype(np.uint8), 4.0)[0]
    other[3, 3] -= 1
    assert alike(own[None], other.reshape(-1).astype(np.uint8), 4.0)[0]
