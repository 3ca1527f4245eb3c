"""Retrieval on held-out pairs, by a model whose answers are known by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from clipkit.model.preprocess import Preprocess
from clipkit.model.tokenizer import Tokenizer
from clipkit.model.towers import ImageFeatures
from clipkit.training import retrieval
from clipkit.training.pairs import PairReader
from clipkit.training.retrieval import measure_retrieval

WORDS = ["red", "green", "blue", "yellow", "white", "black"]


class ColorModel(nn.Module):
    """Pictures as their mean colour, captions as the colour they name; of pictures it takes red for green."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.architecture = SimpleNamespace(context=32, embed_width=4)
        tokenizer = Tokenizer(32)
        self.tokens = [int(tokenizer([word])[0, 1]) for word in WORDS]
        corners = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [1, 1, 1], [-1, -1, -1]])
        self.vectors = nn.functional.normalize(torch.cat([corners, torch.ones(6, 1)], dim=1), dim=1)

    def encode_image(self, pixels_BCHW):
        means = pixels_BCHW.mean(dim=(2, 3))
        nearest = torch.cdist(torch.sign(means), torch.sign(self.vectors[:, :3])).argmin(dim=1)
        return ImageFeatures(means, self.vectors[torch.where(nearest == 0, 1, nearest)])

    def encode_text(self, tokens_BL):
        named = [next(i for i, token in enumerate(self.tokens) if token in row) for row in tokens_BL.tolist()]
        return 3 * self.vectors[named]


@pytest.mark.parametrize("block", [2, 256])
def test_recall_is_counted_by_caption_both_ways(make_shards, monkeypatch, block):
    monkeypatch.setattr(retrieval, "BLOCK", block)
    shards = make_shards(36, broken=frozenset({3}))
    reader = PairReader(shards, open_shards=4)
    # Pairs 0, 3, 6, ... have the six captions without a number: red, yellow, red, yellow, ... (every third of six colours).
    positions = np.array([0, 3, 6, 9, 12])
    found = measure_retrieval(ColorModel(), Preprocess(32, mean=(0.5,) * 3, std=(0.5,) * 3), reader, positions_N=positions)
    # Pair 3 is broken. Red pictures are taken for green, so that they are equally far from both captions; yellow ones are found.
    assert found["pairs"] == 4
    assert found["chance"] == 1 / 2
    assert found["image_to_text_recall@1"] == pytest.approx(1 / 4)
    assert found["text_to_image_recall@1"] == pytest.approx(1 / 4)


def test_the_mode_of_the_model_is_its_callers(make_shards, monkeypatch):
    model = ColorModel().eval()
    monkeypatch.setattr(ColorModel, "train", None)  # which `eval` calls, too
    reader = PairReader(make_shards(6), open_shards=2)
    assert measure_retrieval(model, Preprocess(32), reader, positions_N=np.array([3]))["pairs"] == 1


def test_no_readable_pair_gives_no_number(make_shards):
    reader = PairReader(make_shards(2, broken=frozenset({0, 1})), open_shards=2)
    found = measure_retrieval(ColorModel(), Preprocess(32), reader, positions_N=np.array([0, 1]))
    assert found == {"pairs": 0, "image_to_text_recall@1": None, "text_to_image_recall@1": None, "chance": None}


def test_near_cosines_are_told_apart_in_half_precision_runs_too():
    angles_M = 0.8 + torch.arange(64) * 1e-3
    target_MD = torch.stack([angles_M.cos(), angles_M.sin()], dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(retrieval.nearest(target_MD, target_MD), torch.arange(64))
