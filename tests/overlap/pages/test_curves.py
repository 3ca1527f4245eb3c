from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clipkit.overlap.pages.curves import leading_curves
from clipkit.overlap.statistics.curve import CURVE_SCHEMA


def test_each_task_has_the_curve_of_its_leading_score(tmp_path: Path) -> None:
    rows = [
        {"task": task, "score": score, "threshold": threshold}
        for task in ("birds", "cars")
        for score in ("zero-shot", "probe")
        for threshold in (0.9, 0.8)
    ]
    pq.write_table(pa.Table.from_pylist(rows, CURVE_SCHEMA), tmp_path / "curve.parquet")
    leading = [{"task": "birds", "score": "zero-shot"}, {"task": "cars", "score": "probe"}, {"task": "cats", "score": "probe"}]
    curves = leading_curves(tmp_path / "curve.parquet", leading)
    assert {task: [(point["score"], point["threshold"]) for point in points] for task, points in curves.items()} == {
        "birds": [("zero-shot", 0.9), ("zero-shot", 0.8)],
        "cars": [("probe", 0.9), ("probe", 0.8)],
        "cats": [],
    }
