import itertools

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.dataset.stages import EXAMPLES_SCHEMA, MATCHED_SCHEMA, examples_of, fewest_examples, marked

KEYS = st.lists(st.text("0123456789abcdef", min_size=2, max_size=3), unique=True).map(sorted)
REASONS = st.lists(st.sampled_from([None, "length", "language"]), max_size=30)


def pairs_of(keys: list[str]) -> pa.Table:
    texts = [f"text of {key}" for key in keys]
    nulls = [None] * len(keys)
    return pa.table([keys, texts, texts, nulls, texts, nulls, [[]] * len(keys)], schema=MATCHED_SCHEMA)


def cut(rows: list[str], sizes: list[int]) -> list[list[str]]:
    cuts = [0, *np.cumsum(sizes).tolist(), len(rows)]
    return [rows[start:end] for start, end in itertools.pairwise(cuts) if rows[start:end]]


@settings(deadline=None, max_examples=60)
@given(keys=KEYS, chosen=KEYS, sizes=st.lists(st.integers(1, 4)), other_sizes=st.lists(st.integers(1, 4)))
def test_two_streams_in_order_mark_the_same_pairs_however_they_are_cut(
    keys: list[str], chosen: list[str], sizes: list[int], other_sizes: list[int]
) -> None:
    batches = [batch for part in cut(keys, sizes) for batch in pairs_of(part).to_batches()]
    arriving = [pa.array(part, pa.string()) for part in cut(chosen, other_sizes)]
    found = [
        (key, mark)
        for batch, marks in marked(batches, arriving)
        for key, mark in zip(batch["key"].to_pylist(), marks.to_pylist(), strict=True)
    ]
    assert found == [(key, key in chosen) for key in keys]


@settings(deadline=None, max_examples=60)
@given(reasons=REASONS, sizes=st.lists(st.integers(1, 7)), most=st.integers(1, 4))
def test_examples_are_the_smallest_keys_of_each_reason_however_the_pairs_were_cut(
    reasons: list[str | None], sizes: list[int], most: int
) -> None:
    keys = [f"{number * 7919 % 1009:04d}" for number in range(len(reasons))]
    why = dict(zip(keys, reasons, strict=True))
    parts = [sorted(part) for part in cut(keys, sizes)]
    found = [examples_of("text rules", pairs_of(part), pa.array([why[key] for key in part], pa.string()), most) for part in parts]
    kept = fewest_examples([EXAMPLES_SCHEMA.empty_table(), *found], most)
    expected = [(reason, key) for reason in ("language", "length") for key in sorted(key for key in keys if why[key] == reason)[:most]]
    assert list(zip(kept["reason"].to_pylist(), kept["key"].to_pylist(), strict=True)) == expected
    assert kept["text"].to_pylist() == [f"text of {key}" for _, key in expected]


def test_no_example_is_kept_where_nothing_was_dropped() -> None:
    assert len(examples_of("match", pairs_of(["a", "b"]), pa.nulls(2, pa.string()), 5)) == 0
    assert fewest_examples([EXAMPLES_SCHEMA.empty_table()], 5) == EXAMPLES_SCHEMA.empty_table()
