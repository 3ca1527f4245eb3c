"""Which classes a classifier finds and what it takes them for: tables beside the predictions of a task."""

import numpy as np
import pyarrow as pa

from clipkit.evaluation.intervals import clopper_pearson
from clipkit.evaluation.suite import Task


def confusion(predictions: pa.Table) -> pa.Table:
    """How many pictures of each label got each prediction, where there are any: label, prediction, count."""
    pairs_2N = np.stack([predictions[name].to_numpy() for name in ("label", "prediction")])
    cells_2U, counts_U = np.unique(pairs_2N, axis=1, return_counts=True)
    return pa.table({"label": cells_2U[0], "prediction": cells_2U[1], "count": counts_U.astype(np.int32)})


def class_table(task: Task, predictions: pa.Table, *, confidence: float) -> pa.Table:
    """One row per class: pictures, how many were right, recall with its exact interval, and the class it is most often taken for.

    Recall is null where a class has no picture, `taken_for` where no picture of it was wrong.
    """
    label_N, said_N = (predictions[name].to_numpy() for name in ("label", "prediction"))
    cells = confusion(predictions).to_pylist()
    wrong: dict[int, tuple[int, int]] = {}  # label -> (count, -prediction): of equal counts the smaller class
    for cell in cells:
        if cell["label"] != cell["prediction"]:
            wrong[cell["label"]] = max(wrong.get(cell["label"], (0, 0)), (cell["count"], -cell["prediction"]))
    count_C = np.bincount(label_N, minlength=len(task.classes))
    right_C = np.bincount(label_N[label_N == said_N], minlength=len(task.classes))
    rows = []
    for label, names in enumerate(task.classes):
        count, right = int(count_C[label]), int(right_C[label])
        low, high = clopper_pearson(right, count, confidence)
        most, said = wrong.get(label, (0, 0))
        rows.append(
            {
                "class": label,
                "name": names[0],
                "pictures": count,
                "right": right,
                "recall": right / count if count else None,
                "low": low,
                "high": high,
                "taken_for": task.classes[-said][0] if most else None,
                "times": most,
            }
        )
    return pa.Table.from_pylist(rows)
