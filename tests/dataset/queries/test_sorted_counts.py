from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipkit.dataset.queries import sorted_counts
from clipkit.dataset.queries.sorted_counts import sum_counts, write_sorted

Counts = dict[str | int, int]


def write(folder: Path, tables: list[Counts], kind: pa.DataType) -> list[Path]:
    for old in folder.glob("*.parquet"):
        old.unlink()
    files = [folder / f"{number:03d}.parquet" for number in range(len(tables))]
    for file, table in zip(files, tables, strict=True):
        keys = sorted(table)
        write_sorted(file, pa.table({"key": pa.array(keys, kind), "count": pa.array([table[key] for key in keys], pa.int64())}))
    return files


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["words", "numbers"]).flatmap(
        lambda kind: st.lists(
            st.dictionaries(
                st.text("aé猫z", min_size=1, max_size=3) if kind == "words" else st.integers(0, 2**62), st.integers(1, 9), max_size=30
            ),
            min_size=1,
            max_size=7,
        )
    ),
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(2, 4),
)
def test_sums_are_those_of_a_counter_whatever_fits_the_memory(
    tmp_path: Path, tables: list[Counts], least: int, rows_in_memory: int, fan_in: int
) -> None:
    total: Counter[str | int] = Counter()
    for table in tables:
        total.update(table)
    kind = pa.int64() if any(isinstance(key, int) for key in total) else pa.string()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_counts, "ROWS_PER_GROUP", 3)
        files = write(tmp_path, tables, kind)
        parts = list(sum_counts(files, "key", least=least, rows_in_memory=rows_in_memory, fan_in=fan_in))
    found = pa.concat_tables(parts)
    assert list(zip(*found.to_pydict().values(), strict=True)) == sorted((key, count) for key, count in total.items() if count >= least)


def test_only_a_range_of_rows_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorted_counts, "ROWS_PER_GROUP", 10)
    files = write(tmp_path, [{number * 7 + file: 1 for number in range(300)} for file in range(5)], pa.int64())
    sizes = [len(part) for part in sum_counts(files, "key", least=1, rows_in_memory=200)]
    assert sum(sizes) == 1500
    assert max(sizes) <= 200 + 5 * 10
    assert len(sizes) >= 7


def test_whole_numbers_are_stored_as_differences(tmp_path: Path) -> None:
    write_sorted(tmp_path / "a.parquet", pa.table({"key": pa.array(range(0, 10**7, 100)), "count": pa.array([1] * 10**5)}))
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    assert "DELTA_BINARY_PACKED" in pq.read_metadata(tmp_path / "a.parquet").row_group(0).column(0).encodings
