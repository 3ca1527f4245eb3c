"""The screen leaves out no pair that counts: against float64, for every arithmetic, on vectors drawn, real-like and hostile."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clipkit.overlap.search import neighbours, screening
from clipkit.overlap.search.neighbours import GRAIN, NearestSearch
from clipkit.overlap.search.screening import (
    LADDER,
    MOST_CODE,
    WIDEST,
    Arithmetic,
    Block,
    Chunk,
    Screen,
    Wanted,
    adds_whole_numbers,
    choose_arithmetic,
)

CPU = torch.device("cpu")
WANTED = Wanted(torch.zeros(0), 1, 1, GRAIN)


def unit(vectors: NDArray[np.float64]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(vectors.astype(np.float32)), dim=-1)


def drawn(kind: str, rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Unit vectors: of no direction; of a spectrum that falls, with a part in common; with few great numbers; all nearly the same."""
    noise = rng.normal(size=shape)
    if kind == "spectrum":
        noise = noise * np.geomspace(1, 1e-2, shape[-1]) + np.eye(shape[-1])[0] * 2
    elif kind == "spiky":
        noise = noise**5
    elif kind == "narrow":
        noise = 1e-3 * noise + 1
    return unit(noise)


KINDS = ("plain", "spectrum", "spiky", "narrow")


def by_float64(views_VND: torch.Tensor, vectors_MD: torch.Tensor, keys: NDArray[np.bytes_], k: int) -> list[list[int]]:
    """A naive search: places of the k best by the rounded similarity, then the key."""
    exact = np.einsum("vnd,md->vnm", views_VND.numpy().astype(np.float64), vectors_MD.numpy().astype(np.float64)).max(0)
    rounded = np.rint(exact / GRAIN)
    return [sorted(range(len(keys)), key=lambda j: (-row[j], keys[j]))[:k] for row in rounded]


def searched(
    views: torch.Tensor, vectors: torch.Tensor, keys: NDArray[np.bytes_], k: int, *, arithmetic: str, block: int = 100
) -> NearestSearch:
    search = NearestSearch(views, k, arithmetic=arithmetic)
    for start in range(0, len(vectors), block):
        rows = np.arange(start, min(start + block, len(vectors)))
        search.add(vectors[start : start + block], keys[rows], rows)
    return search


def keys_of(rng: np.random.Generator, count: int) -> NDArray[np.bytes_]:
    return np.array([f"{n:04x}" for n in rng.permutation(count)], "S64")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arithmetic", LADDER)
@pytest.mark.parametrize(("views", "k"), [(1, 1), (3, 4)])
def test_every_arithmetic_finds_what_float64_finds(arithmetic: Arithmetic, kind: str, views: int, k: int) -> None:
    rng = np.random.default_rng(3)
    tests, vectors, keys = drawn(kind, rng, views, 40, 48), drawn(kind, rng, 1_500, 48), keys_of(rng, 1_500)
    found = searched(tests, vectors, keys, k, arithmetic=arithmetic, block=400).neighbours
    assert found.place_NK.tolist() == by_float64(tests, vectors, keys, k)


@pytest.mark.parametrize("arithmetic", LADDER)
def test_near_ties_below_the_codes_grain_are_told_apart(arithmetic: Arithmetic) -> None:
    """Training vectors that differ from the nearest by less than the screen can see, those of int8 and bf16 in thousands."""
    rng = np.random.default_rng(5)
    tests = drawn("plain", rng, 1, 8, 64)
    off = rng.normal(size=(8, 300, 64)) * np.geomspace(1e-5, 2e-2, 300)[:, None] / 8
    near = tests[0, :, None].double().numpy() + off
    vectors = unit(np.concatenate([near.reshape(-1, 64), rng.normal(size=(600, 64))]))
    order = rng.permutation(len(vectors))
    vectors, keys = vectors[order], keys_of(rng, len(vectors))
    found = searched(tests, vectors, keys, 5, arithmetic=arithmetic, block=512).neighbours
    assert found.place_NK.tolist() == by_float64(tests, vectors, keys, 5)


@pytest.mark.parametrize("arithmetic", LADDER)
def test_ten_thousand_equal_pictures_give_the_smallest_keys(arithmetic: Arithmetic) -> None:
    rng = np.random.default_rng(6)
    tests = drawn("plain", rng, 1, 5, 16)
    vectors, keys = tests[0, :1].expand(10_000, 16).contiguous(), keys_of(rng, 10_000)
    found = searched(tests, vectors, keys, 4, arithmetic=arithmetic, block=2_500).neighbours
    assert all(row.tolist() == sorted(keys.tolist())[:4] for row in found.key_NK)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.sampled_from(LADDER), st.integers(1, 200), st.sampled_from((1, 7, 64)))
def test_products_of_codes_are_within_their_margin(seed: int, kind: str, arithmetic: Arithmetic, count: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    views, vectors = drawn(kind, rng, 1, 9, width), drawn(kind, rng, count, width)
    screen = Screen(views, vectors.mean(0), arithmetic, block=count, device=CPU)
    (chunk,) = screen.chunks
    block = screen.coded(vectors)
    product_RM = screen._product(chunk.rows.code_RD, block.code_DM)
    error_RM, margin_RM = errors(chunk, block, product_RM, views, vectors)
    assert (error_RM <= margin_RM).all()


def errors(
    chunk: Chunk, block: Block, product_RM: torch.Tensor, views: torch.Tensor, vectors: torch.Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """By how much the codes' similarities are wrong, and the margins, in the order of the vectors."""
    steps = chunk.rows.step_R[:, None] * block.step_G.repeat_interleave(screening.GROUP)
    said = (product_RM.double() * steps + chunk.centre_R[:, None]).numpy()
    rounding = screening._rounding(product_RM.dtype, vectors.shape[1])
    left_R3, right_3G = screening._margins(chunk.rows, block, rounding)
    margin = (left_R3 @ right_3G).repeat_interleave(screening.GROUP, 1).numpy()
    if product_RM.dtype == torch.bfloat16:  # the product's own rounding, which the limits share
        margin = margin + (product_RM.double().abs() * steps).numpy() * 2.0**-8
    is_real = block.order_M >= 0
    exact = views[0].double().numpy() @ vectors.double().numpy().T
    return np.abs(said[:, is_real] - exact[:, block.order_M[is_real]]), margin[:, is_real]


def test_the_screen_leaves_few_pairs() -> None:
    """Which is what it is for: of 4 million pairs less than one in a thousand is computed again, and fewer by finer codes."""
    rng = np.random.default_rng(1)
    tests, vectors = drawn("plain", rng, 1, 200, 256), drawn("plain", rng, 20_000, 256)
    counts = []
    for arithmetic in LADDER:
        screen = Screen(tests, vectors.mean(0), arithmetic, block=10_000, device=CPU)
        wanted = Wanted(torch.full((200,), -torch.inf, dtype=torch.float64), 1, 10**6, GRAIN)
        blocks = [screen.coded(vectors[start : start + 10_000]) for start in (0, 10_000)]
        counts.append(sum(len(screen.pairs(chunk, block, wanted).test_P) for block in blocks for chunk in screen.chunks))
    assert all(coarse >= fine for coarse, fine in pairwise(counts))
    assert 400 <= counts[-1] <= 600
    assert counts[0] < 200 * 20_000 / 1_000


def test_vectors_too_alike_for_coarse_codes_are_searched_in_finer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "ROOM", 0)
    rng = np.random.default_rng(2)
    keys, side = keys_of(rng, 2_000), np.where(rng.random((2_000, 1)) < 0.5, -1, 1)
    tests, vectors = unit(np.eye(8)[0] + 0.03 * rng.normal(size=(1, 30, 8))), unit(side * np.eye(8)[0] + 0.03 * rng.normal(size=(2_000, 8)))
    search = searched(tests, vectors, keys, 1, arithmetic="int8", block=500)
    assert search.arithmetic == "fp32"
    assert search.neighbours.place_NK.tolist() == by_float64(tests, vectors, keys, 1)


def test_auto_takes_whole_numbers_only_where_they_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})
    assert choose_arithmetic("auto", CPU) == ("int8" if adds_whole_numbers() else "fp32")
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.int() @ b.int()).clamp(-100_000, 100_000))  # sums that are cut off
    assert choose_arithmetic("auto", CPU) == "fp32"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert choose_arithmetic("auto", CPU) == "bf16"
    assert choose_arithmetic("auto", torch.device("cuda")) == "bf16"
    assert choose_arithmetic("fp32", CPU) == "fp32"


def test_vectors_too_wide_for_sums_of_codes_are_coded_otherwise() -> None:
    """As long as one of all ones can be in 8 bits, and longer: there its product with itself overflows."""
    assert MOST_CODE**2 * WIDEST < 2**31 <= MOST_CODE**2 * (WIDEST + 1)
    assert choose_arithmetic("int8", CPU, width=WIDEST) == "int8"
    assert choose_arithmetic("int8", CPU, width=WIDEST + 1) == "bf16"
    assert choose_arithmetic("auto", CPU, width=WIDEST + 1) == "fp32"
    ones = torch.full((1, WIDEST + 7_000), 1.0) / (WIDEST + 7_000) ** 0.5
    vectors, keys = torch.cat([-ones] * 33 + [ones]), keys_of(np.random.default_rng(3), 34)
    search = searched(ones[None], vectors, keys, 1, arithmetic="int8", block=34)
    assert search.neighbours.place_NK.tolist() == [[33]]


@pytest.mark.parametrize("arithmetic", LADDER)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_vector_that_is_no_number_is_told_and_does_not_hide_the_others(value: float, arithmetic: Arithmetic) -> None:
    rng = np.random.default_rng(4)
    tests, vectors, keys = drawn("plain", rng, 1, 3, 16), drawn("plain", rng, 40, 16), keys_of(rng, 40)
    vectors[7, 3] = value
    with pytest.raises(ValueError, match="NaN or infinity among 40 training pictures"):
        searched(tests, vectors, keys, 1, arithmetic=arithmetic)
    tests[0, 1, 3] = value
    with pytest.raises(ValueError, match="NaN or infinity among the test pictures"):
        NearestSearch(tests, 1, arithmetic=arithmetic)
