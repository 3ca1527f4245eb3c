"""The small test sets that benchmarks/real writes are what their tasks say."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from clipkit.evaluation.suite import load_suite, load_task

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "real"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])


def test_digits_are_scikit_learns_pictures_and_labels_with_the_first_thousand_for_training(tmp_path: Path) -> None:
    from test_sets import write_all  # type: ignore[import-not-found]

    assert write_all(tmp_path, tmp_path, most=None, only=["digits"]) == ["digits"]
    digits = load_digits()
    for name, (start, stop) in {"train": (0, 1_000), "test": (1_000, 1_797)}.items():
        split = load_task("digits").split(tmp_path, name)  # type: ignore[arg-type]
        np.testing.assert_array_equal(split.labels_N, digits.target[start:stop])
        for i in (0, len(split) - 1):
            shown = np.asarray(Image.open(io.BytesIO(split.files.read(i, i + 1)[0])), np.float64)
            np.testing.assert_allclose(shown, digits.images[start + i] * 255 / 16, atol=0.5)


def test_captioned_pictures_are_read_back_with_their_captions(tmp_path: Path) -> None:
    from test_sets import write_split

    write_split(tmp_path, "tuxpaint-retrieval", "test", [(b"a picture", "A red hen."), (b"another", "An owl, é")])
    split = load_task("tuxpaint-retrieval").model_copy(update={"sizes": {}}).split(tmp_path, "test")
    assert split.texts is not None
    assert [list(texts) for texts in split.texts] == [["A red hen."], ["An owl, é"]]
    assert split.read(0, 2) == [b"a picture", b"another"]


def test_the_script_writes_every_split_of_every_task_of_the_suites() -> None:
    from test_sets import SETS

    assert {name: set(splits) for name, splits in SETS.items()} == {
        t.name: set(t.splits) for suite in ("small-real", "small-captions", "small-probes") for t in load_suite(suite).tasks
    }
