"""Score normalisation beside a loop, and backgrounds that strangers wrote."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from clipkit import UserError
from clipkit.model.score_norm import AT_ONCE, ScoreNorm, read_background


def unit(count: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize(("weight", "nearest"), [(1.0, 3), (0.5, 1), (2.0, 40)])
def test_what_is_taken_off_is_the_weighted_mean_of_the_nearest(weight: float, nearest: int) -> None:
    background, tests = unit(40), unit(AT_ONCE + 7, seed=1)
    taken = ScoreNorm(background, weight=weight, nearest=nearest).taken_off(tests)
    assert taken.shape == (len(tests),)
    for i in (0, 5, AT_ONCE - 1, AT_ONCE, AT_ONCE + 6):
        cosines = sorted((np.dot(tests[i].tolist(), other) for other in background.tolist()), reverse=True)
        assert float(taken[i]) == pytest.approx(weight * sum(cosines[:nearest]) / nearest, abs=1e-6)


def test_a_picture_in_a_crowd_loses_more_than_one_alone() -> None:
    crowd = functional.normalize(torch.tensor([1.0, 0, 0]) + 0.1 * unit(20, 3), dim=1)
    taken = ScoreNorm(crowd).taken_off(torch.tensor([[1.0, 0, 0], [-1, 0, 0]]))
    assert taken[0] > 0.9 > 0 > taken[1]


def test_no_test_pictures_lose_nothing() -> None:
    assert ScoreNorm(unit(5)).taken_off(torch.zeros(0, 16)).shape == (0,)


def test_the_fingerprint_changes_with_what_changes_similarities() -> None:
    norm = ScoreNorm(unit(9), source="here")
    others = [ScoreNorm(unit(9, seed=2)), ScoreNorm(unit(9), weight=0.9), ScoreNorm(unit(9), nearest=2), ScoreNorm(unit(8))]
    assert len({norm.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert norm.fingerprint == ScoreNorm(unit(9), source="elsewhere").fingerprint == norm.facts()["fingerprint"]


def test_a_background_comes_back_at_unit_length_from_half_precision(tmp_path: Path) -> None:
    save_file({"background_KD": unit(30).half()}, tmp_path / "b.safetensors")
    read = read_background(tmp_path / "b.safetensors", width=16)
    torch.testing.assert_close(read, unit(30), atol=1e-3, rtol=0)
    torch.testing.assert_close(read.norm(dim=1), torch.ones(30))


BROKEN = {
    "no such tensor": ({"other": unit(3)}, "no tensor `background_KD`"),
    "another width": ({"background_KD": unit(3, 8)}, r"shape \(3, 8\), expected 1 to 100,000 vectors of 16"),
    "no vectors": ({"background_KD": unit(0)}, r"shape \(0, 16\)"),
    "one axis": ({"background_KD": unit(1)[0].clone()}, r"shape \(16,\)"),
    "whole numbers": ({"background_KD": torch.ones(3, 16, dtype=torch.int32)}, "int32"),
    "no unit length": ({"background_KD": 2 * unit(3)}, "not of unit length"),
    "no numbers": ({"background_KD": torch.full((3, 16), torch.nan)}, "not of unit length"),
    "too many": ({"background_KD": torch.zeros(100_001, 16, dtype=torch.float16)}, r"shape \(100001, 16\)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_holds_no_background_is_refused(case: str, tmp_path: Path) -> None:
    tensors, expected = BROKEN[case]
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=expected):
        read_background(tmp_path / "b.safetensors", width=16)


def test_a_damaged_file_and_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b.safetensors").write_bytes(b"\xff" * 64)
    for name in ("b.safetensors", "none.safetensors"):
        with pytest.raises(UserError, match=name):
            read_background(tmp_path / name, width=16)


@pytest.mark.parametrize(("weight", "nearest"), [(float("nan"), 3), (-1, 3), (11, 3), (1, 0), (1, 6)])
def test_numbers_that_make_no_sense_are_refused(weight: float, nearest: int) -> None:
    with pytest.raises(UserError, match="score normalisation"):
        ScoreNorm(unit(5), weight=weight, nearest=nearest)
