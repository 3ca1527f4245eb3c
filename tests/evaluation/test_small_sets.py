"""The small test sets that benchmarks/real writes are what their tasks say."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from clipkit.evaluation.suite import load_task

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "real"


def test_digits_are_scikit_learns_pictures_and_labels_with_the_first_thousand_for_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    from small_sets import write_digits  # type: ignore[import-not-found]

    write_digits(tmp_path)
    digits = load_digits()
    for name, (start, stop) in {"train": (0, 1_000), "test": (1_000, 1_797)}.items():
        split = load_task("digits").split(tmp_path, name)  # type: ignore[arg-type]
        order = np.argsort(digits.target[start:stop], kind="stable")
        np.testing.assert_array_equal(split.labels_N, digits.target[start:stop][order])
        first = np.asarray(Image.open(io.BytesIO(split.files.read(0, 1)[0])), np.float64)
        np.testing.assert_allclose(first, digits.images[start:stop][order[0]] * 255 / 16, atol=0.5)
