from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from clipkit import UserError
from clipkit.dataset.images.judging import Judge, prepare
from clipkit.dataset.images.left_out import load_left_out, write_hashes
from clipkit.recipe import ImageKnobs
from tests.dataset.images.test_left_out import Pictures
from tests.dataset.images.test_stored_images import Downloaded, Watched, encode


def judge(model: Path | None = None, listed: Path | None = None) -> Judge:
    return Judge(ImageKnobs(), load_left_out([str(listed)] if listed else []), str(model) if model else None)


def test_a_run_is_not_resumed_with_another_model_or_other_lists(tmp_path: Path) -> None:
    model, listed, same = (tmp_path / name for name in ("model.onnx", "list.txt", "copy.onnx"))
    model.write_bytes(b"the one")
    same.write_bytes(b"the one")
    listed.write_text("0" * 64 + "\n")
    judge(model, listed).check_unchanged(tmp_path / "run")
    judge(same, listed).check_unchanged(tmp_path / "run")
    for other in (judge(model), judge(None, listed), judge()):
        with pytest.raises(UserError, match=r"`images.leave_out` or `images.nsfw_model` have changed"):
            other.check_unchanged(tmp_path / "run")
    model.write_bytes(b"another")
    with pytest.raises(UserError, match=r"`images.leave_out` or `images.nsfw_model` have changed"):
        judge(model, listed).check_unchanged(tmp_path / "run")


def test_every_rule_that_looks_at_all_images_shows_how_far_it_is(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    pictures = [Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((120, 90)) for _ in range(3)]
    images = [encode(one) for one in (*pictures, pictures[0], Image.new("RGB", (120, 90)))] + [encode(pictures[1], quality=60)]
    listed = tmp_path / "tests.parquet"
    write_hashes([("shapes", "test", Pictures([encode(pictures[2])]))], listed, processes=1)
    knobs = ImageKnobs(rules=("duplicate", "near_duplicate"), leave_out=(str(listed),))
    keys = [str(i) for i in range(len(images))]
    pairs = pa.table({"key": keys, "text": keys}).to_batches()
    run: Any = Watched()
    table = prepare(knobs).judged(pairs, Downloaded(images), tmp_path, run=run, processes=1)  # type: ignore[arg-type]
    assert table["reason"].to_pylist() == [None, None, "test_set", "duplicate", None, "near_duplicate"]
    assert run.totals == {"image rules": 6, "image rule test_set": 6, "image rule duplicate": 5, "image rule near_duplicate": 4}
    assert {name: sum(told) for name, told in run.told.items()} == run.totals
    assert len(run.told["image rule near_duplicate"]) > 2
