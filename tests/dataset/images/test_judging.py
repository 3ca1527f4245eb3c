from pathlib import Path

import pytest

from clipkit import UserError
from clipkit.dataset.images.judging import Judge
from clipkit.dataset.images.left_out import load_left_out
from clipkit.recipe import ImageKnobs


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
