import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.dataset.images import near_rows as module
from clipkit.dataset.images.near_rows import near_rows


def hashes(seed: int, count: int, most_flips: int) -> np.ndarray:
    """Random hashes, half of which are another one with a few bits turned."""
    random = np.random.default_rng(seed)
    found = random.integers(0, 2**64, count, dtype=np.uint64)
    for i in range(count // 2, count):
        found[i] = found[random.integers(0, max(i, 1))]
        for bit in random.integers(0, 64, random.integers(0, most_flips + 1)):
            found[i] ^= np.uint64(1 << int(bit))
    return found


def by_brute_force(left: np.ndarray, right: np.ndarray, bits: int) -> list[tuple[int, int]]:
    return [(i, j) for i, a in enumerate(left.tolist()) for j, b in enumerate(right.tolist()) if (a ^ b).bit_count() <= bits]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(0, 60), bits=st.integers(0, 10), agreeing=st.integers(0, 4))
def test_near_rows_are_those_of_brute_force_whatever_the_sorts(seed: int, count: int, bits: int, agreeing: int) -> None:
    some, others = hashes(seed, count, bits + 2), hashes(seed, count // 2, bits + 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "COMPARED_AT_ONCE", 7)
        within, between = near_rows(some, bits=bits, agreeing=agreeing), near_rows(some, others, bits=bits, agreeing=agreeing)
    assert list(zip(*map(np.ndarray.tolist, within), strict=True)) == [(i, j) for i, j in by_brute_force(some, some, bits) if i < j]
    assert list(zip(*map(np.ndarray.tolist, between), strict=True)) == by_brute_force(some, others, bits)


@pytest.mark.parametrize("bits", [0, 4, 6])
def test_many_hashes_are_never_compared_all_with_all(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    some = np.unique(hashes(1, 30_000, bits))
    compared = []
    count_bits = np.bitwise_count

    def counting(differences: np.ndarray) -> np.ndarray:
        compared.append(len(differences))
        return count_bits(differences)

    monkeypatch.setattr(np, "bitwise_count", counting)
    found = near_rows(some, bits=bits)
    monkeypatch.undo()
    assert sum(compared) >= len(found.left)
    assert sum(compared) < len(some) ** 2 / 2 / 20
    codes = some[found.left] ^ some[found.right]
    assert np.bitwise_count(codes).max(initial=0) <= bits
    lone = some[:300]
    expected = by_brute_force(lone, some, bits)
    rows = {(i, j) for i, j in zip(found.left.tolist(), found.right.tolist(), strict=True)}
    assert {(min(i, j), max(i, j)) for i, j in expected if i != j} == {(i, j) for i, j in rows if i < 300}
