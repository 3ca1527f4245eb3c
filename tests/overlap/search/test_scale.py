"""Score normalisation and thresholds in the report."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from clipkit import UserError
from clipkit.dataset.shards import Pair, Shards, pair_key, write_shards
from clipkit.evaluation.embeddings import Embeddings, Pictures
from clipkit.model.detector import CosineDetector, Threshold, load_detector
from clipkit.model.encoder import Encoded
from clipkit.model.score_norm import ScoreNorm
from clipkit.overlap.search.neighbours import NearestSearch, Neighbours
from clipkit.overlap.search.scale import detector_facts, normalised, threshold_of, with_background
from clipkit.recipe import OverlapRecipe


def unit(count: int, seed: int, width: int = 8) -> torch.Tensor:
    return functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def candidates(tests: torch.Tensor, train: torch.Tensor, k: int = 3) -> Neighbours:
    search = NearestSearch(tests[None], k)
    search.add(train, np.array([f"{i:04x}" for i in range(len(train))], "S64"), np.arange(len(train)))
    return search.neighbours


def shards_of(folder: Path, make_picture: Any, count: int) -> Shards:
    pairs = [Pair(pair_key(f"http://x.example/{i}", "c"), make_picture("red", seed=i), "c", {"image_url": str(i)}) for i in range(count)]
    return write_shards(pairs, folder, pairs_per_shard=4, recipe={}, funnel=[])


def test_one_threshold_serves_where_crowds_and_loners_are_mixed(color_encoder: Any) -> None:
    """Drawings on white are all alike (cosines up to 0.8), photographs are not, and there a copy has no more than that."""
    white, width = torch.eye(64)[0], 64
    crowd = functional.normalize(1.5 * white + unit(400, 1, width), dim=1)
    loners = unit(400, 2, width)
    background = torch.cat([crowd[200:], loners[200:]])
    train = torch.cat([crowd[:100], loners[:100]])
    originals = torch.cat([crowd[:50], loners[:50], crowd[100:200], loners[100:200]])  # 100 copies, 200 others
    tests = functional.normalize(originals + 0.7 * unit(300, 3, width) * torch.where(originals[:, :1] > 0.7, 0.35, 1.0), dim=1)
    is_copy = np.arange(300) < 100
    detector = CosineDetector(color_encoder, score_norm=ScoreNorm(background, source="drawn"))
    before = candidates(tests, train)
    after = normalised(before, detector, Encoded(tests, tests))

    def errors(similarity: np.ndarray) -> int:
        return min(int(((similarity >= threshold) != is_copy).sum()) for threshold in np.unique(similarity))

    assert errors(after.similarity_NK[:, 0]) < 0.4 * errors(before.similarity_NK[:, 0])
    assert np.array_equal(after.key_NK, before.key_NK)
    assert (np.diff(after.similarity_NK, axis=1) <= 0).all()  # the order of a test picture's candidates stays


def test_similarities_are_lessened_by_the_mean_of_the_nearest_in_the_background(color_encoder: Any) -> None:
    tests, train, background = unit(5, 1), unit(9, 2), unit(12, 3)
    detector = CosineDetector(color_encoder, score_norm=ScoreNorm(background, weight=0.5, nearest=2))
    found = normalised(candidates(tests, train), detector, Encoded(tests, tests))
    for i in range(5):
        likeness = sorted((tests[i] @ background.T).tolist())[-2:]
        expected = sorted((tests[i] @ train.T).tolist(), reverse=True)[:3]
        np.testing.assert_allclose(found.similarity_NK[i], np.array(expected) - 0.5 * np.mean(likeness), atol=2e-5)


def test_places_without_a_candidate_stay_empty_and_without_a_background_nothing_changes(color_encoder: Any) -> None:
    tests = unit(3, 1)
    few = candidates(tests, unit(1, 2))
    found = normalised(few, CosineDetector(color_encoder, score_norm=ScoreNorm(unit(5, 3))), Encoded(tests, tests))
    assert np.isneginf(found.similarity_NK[:, 1:]).all()
    assert normalised(few, CosineDetector(color_encoder), Encoded(tests, tests)) is few


def test_the_tasks_threshold_stands_above_the_knob_and_that_above_the_detectors(color_encoder: Any) -> None:
    detector = CosineDetector(color_encoder, threshold=Threshold(0.3, "drawn pictures"))
    assert threshold_of(OverlapRecipe(), detector, "birds") == 0.3
    assert threshold_of(OverlapRecipe(threshold=0.1), detector, "birds") == 0.1
    assert threshold_of(OverlapRecipe(threshold=0.5, thresholds={"birds": 0.01}), detector, "birds") == 0.01
    facts = detector_facts(OverlapRecipe(), detector)
    assert (facts["default_threshold"], facts["threshold_measured_on"], facts["score_norm"]) == (0.3, "drawn pictures", None)
    assert detector_facts(OverlapRecipe(threshold=0.5), detector)["threshold_measured_on"] == "the knob `threshold`"


def test_the_reports_fingerprint_changes_with_the_background(color_encoder: Any) -> None:
    norms = [None, ScoreNorm(unit(5, 1)), ScoreNorm(unit(5, 2)), ScoreNorm(unit(5, 1), weight=0.5)]
    found = [detector_facts(OverlapRecipe(), CosineDetector(color_encoder, score_norm=norm))["detector_fingerprint"] for norm in norms]
    assert len(set(found)) == 4


def test_the_first_pictures_of_the_knobs_shards_become_the_background(tmp_path: Path, make_picture: Any, color_encoder: Any) -> None:
    described: list[str] = []

    def describe(pictures: Pictures) -> Embeddings:
        described.append(pictures.name)
        encoded = color_encoder.encode_images(torch.stack([color_encoder.preprocess(file) for file in pictures.read(0, len(pictures))]))
        return Embeddings(*encoded)

    train, background = shards_of(tmp_path / "train", make_picture, 3), shards_of(tmp_path / "background", make_picture, 11)
    recipe = OverlapRecipe(detector="x", background=str(background.root), background_pictures=6)
    found = with_background(recipe, CosineDetector(color_encoder), train, describe)
    assert described == ["00000.tar", "00001.tar"]  # the third is not needed
    assert found.score_norm is not None
    assert found.score_norm.facts()["pictures"] == 6
    assert found.score_norm.facts()["source"] == str(background.root)
    assert with_background(OverlapRecipe(), found, train, describe) is found


def test_a_background_that_would_hide_the_copies_or_serves_no_such_detector_is_refused(
    tmp_path: Path, make_picture: Any, color_encoder: Any
) -> None:
    def describe(pictures: Pictures) -> Embeddings:
        return Embeddings(torch.eye(4)[: len(pictures)], torch.eye(4)[: len(pictures)])

    train, two = shards_of(tmp_path / "train", make_picture, 3), shards_of(tmp_path / "two", make_picture, 2)
    empty = write_shards([], tmp_path / "empty", pairs_per_shard=4, recipe={}, funnel=[])
    for shards, detector, expected in (
        (train, CosineDetector(color_encoder), "is the training shards, in which the copies are"),
        (two, CosineDetector(color_encoder), "3 nearest of 2 background pictures"),
        (empty, CosineDetector(color_encoder), "3 nearest of 0 background pictures"),
        (two, load_detector("pixels"), "`pixels` takes no background"),
    ):
        with pytest.raises(UserError, match=expected):
            with_background(OverlapRecipe(background=str(shards.root)), detector, train, describe)
