"""Views and labels in batches, and what the objectives make of them."""

import math

import numpy as np
import pytest
import torch

from clipkit import UserError
from clipkit.model.architectures import architecture
from clipkit.model.clip import build
from clipkit.model.preprocess import decode_image, middle, resized_sides
from clipkit.model.resizing import resize_quickly
from clipkit.recipe import DataKnobs, LossKnobs
from clipkit.training import batches as module
from clipkit.training.augmentation import KINDS
from clipkit.training.batches import Batch, Batches
from clipkit.training.labels import class_of
from clipkit.training.losses.views import false_negative_loss, false_negatives, hard_negative_loss, nt_xent_loss, supcon_loss
from clipkit.training.objectives import OBJECTIVES, Inputs
from clipkit.training.order import keyed_uniform
from clipkit.training.scoring import Scoring
from clipkit.training.sources import Sources

OF_VIEWS = ("supcon", "nt-xent", "hard-negatives", "false-negatives")


def make(shards, *, views: int = 2, labels: bool = True, rank: int = 0, ranks: int = 1, **knobs) -> Batches:
    data = DataKnobs(**{"workers": 0, "shuffle_buffer": 25, "augmentation": "views", "crop_area": 0.3, **knobs})
    return Batches(shards, data, image_size=32, batch_size=8, seed=5, rank=rank, ranks=ranks, views=views, labels=labels)


def resized_in_training(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """As torch's byte kernel does, of the square's neighbourhood that a crop may show."""
    shown = middle(pixels)
    return resize_quickly(shown, resized_sides(shown, side))


def same(one: Batch, other: Batch) -> bool:
    tensors = ((one.pixels_BCHW, other.pixels_BCHW), (one.views_VBCHW, other.views_VBCHW), (one.label_B, other.label_B))
    return one.keys == other.keys and all(torch.equal(a, b) for a, b in tensors)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"resize"}))
def test_views_differ_from_each_other_and_are_the_same_whoever_prepares_them(make_shards, monkeypatch, kind):
    monkeypatch.setattr(module, "PART", 3)
    shards = make_shards(40, broken=frozenset({7, 22}))
    alone = list(make(shards, augmentation=kind).from_step(0, 6))
    for batch in alone:
        assert batch.views_VBCHW.shape == (2, 8, 3, 32, 32)
        assert batch.views_VBCHW.dtype == torch.uint8
        views = torch.cat([batch.pixels_BCHW[None], batch.views_VBCHW])
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert sum(not torch.equal(a, b) for a, b in zip(views[one], views[other], strict=True)) >= 6
        assert batch.label_B.tolist() == [class_of(text) for text in batch.texts]
    assert all(map(same, alone, make(shards, augmentation=kind, workers=2).from_step(0, 6)))
    assert all(map(same, alone[4:], make(shards, augmentation=kind).from_step(4, 6)))
    halves = [list(make(shards, augmentation=kind, rank=rank, ranks=2).from_step(0, 6)) for rank in (0, 1)]
    for batch, *parts in zip(alone, *halves, strict=True):
        joined = module._join(parts)
        assert same(batch, joined)


def test_a_first_view_is_what_it_would_be_without_others(make_shards):
    shards = make_shards(24)
    for kind in KINDS.keys() - {"resize"}:
        pairs = zip(*(make(shards, views=views, augmentation=kind).from_step(0, 2) for views in (0, 3)), strict=True)
        for alone, beside in pairs:
            assert alone.views_VBCHW is None
            assert torch.equal(alone.pixels_BCHW, beside.pixels_BCHW)


@pytest.mark.parametrize("flips", [False, True])
def test_random_crops_are_cut_at_the_random_numbers_of_the_whole_step_three_for_each_row(make_shards, flips):
    shards = make_shards(24)
    pairs = {pair.key: pair for shard in shards.shards for pair in shards.read(shard)}
    batches = make(shards, views=0, labels=False, augmentation="random-crop-flip" if flips else "random-crop", rank=1, ranks=2)
    for step, batch in enumerate(batches.from_step(0, 3)):
        draws_B3 = keyed_uniform(5, "augmentation", (step,), 24).reshape(8, 3)[4:]
        for key, pixels, (down, across, mirror) in zip(batch.keys, batch.pixels_BCHW, draws_B3, strict=True):
            resized = resized_in_training(decode_image(pairs[key].image), round(32 / 0.9))
            top, left = int(down * (resized.shape[1] - 31)), int(across * (resized.shape[2] - 31))
            expected = resized[:, top : top + 32, left : left + 32]
            assert torch.equal(pixels, expected.flip(2) if flips and mirror < 0.5 else expected)


def test_labels_follow_a_pair_that_takes_the_place_of_a_broken_one(make_shards):
    shards = make_shards(40, broken=frozenset({3, 4, 5}))
    rows = shards.table(["key", "text"]).to_pylist()
    label_of = {row["key"]: module.Labels(Sources.of(shards, ()), "text", open_shards=2).of(i, "") for i, row in enumerate(rows)}
    batches = list(make(shards, label="text").from_step(0, 5))
    assert any(batch.broken for batch in batches)
    for batch in batches:
        assert batch.label_B.tolist() == [label_of[key] for key in batch.keys]


def test_views_that_nothing_tells_apart_are_a_clear_error(make_shards):
    with pytest.raises(UserError, match=r"`data.augmentation` is `resize`, which shows every view of a picture alike"):
        make(make_shards(10), augmentation="resize")
    assert make(make_shards(10), augmentation="resize", views=0)


def test_an_unknown_label_is_a_clear_error_before_anything_is_read(make_shards):
    with pytest.raises(UserError, match="no column of the shards' tables"):
        make(make_shards(10), label="breed")
    assert make(make_shards(10), label="breed", labels=False)


def scored(name: str, *, precision: str = "fp32", views: int = 1, **knobs):
    objective = OBJECTIVES[name](LossKnobs(temperature=0.2, **knobs))
    sizes = architecture("ViT-tiny-32")
    generator = torch.Generator().manual_seed(3)
    head = objective.make_head(sizes, torch.Generator().manual_seed(0))
    scoring = Scoring(build(sizes, seed=0), objective, head=head, precision=precision)
    pixels, views_VBCHW = torch.randn(6, 3, 32, 32, generator=generator), torch.randn(views, 6, 3, 32, 32, generator=generator)
    tokens = torch.randint(1, 1000, (6, 6), generator=generator)
    inputs = Inputs(pixels, tokens, torch.arange(6), views_VBCHW=views_VBCHW, label_B=torch.tensor([4, 4, -1, 7, -1, 4]))
    return scoring, inputs


def vectors_of(scoring, inputs) -> torch.Tensor:
    """View by view, the head written out."""
    first, second = (scoring.head[i].weight for i in (0, 2))
    rows = []
    for pixels_BCHW in (inputs.pixels_BCHW, *inputs.views_VBCHW):
        h = scoring.model.encode_image(pixels_BCHW).projected_BD
        z = (h @ first.T).clamp(min=0) @ second.T
        rows.append(z / z.norm(dim=1, keepdim=True))
    return torch.stack(rows, dim=1)


def test_each_objective_is_its_loss_on_what_the_head_makes_of_all_views():
    scoring, inputs = scored("supcon")
    z = vectors_of(scoring, inputs)
    torch.testing.assert_close(scoring(inputs).loss, supcon_loss(z, inputs.label_B, 0.2))
    torch.testing.assert_close(scoring(inputs).numbers["view_cosine"], (z[:, 0] * z[:, 1]).sum(1).mean())
    scoring, inputs = scored("nt-xent")
    torch.testing.assert_close(scoring(inputs).loss, nt_xent_loss(z, 0.2))
    scoring, inputs = scored("hard-negatives", hardness=0.7, class_prior=0.2)
    torch.testing.assert_close(scoring(inputs).loss, hard_negative_loss(z, 0.2, hardness=0.7, class_prior=0.2))


@pytest.mark.parametrize("answer", ["left-out", "attracted"])
def test_false_negatives_are_sought_by_the_views_after_the_second(answer):
    knobs = {"support_views": 3, "false_negatives": 2, "false_negative_cosine": 0.1, "false_negatives_are": answer}
    scoring, inputs = scored("false-negatives", views=4, **knobs)
    assert scoring.objective.views == 4
    z = vectors_of(scoring, inputs)
    is_false_BM = false_negatives(z[:, :2], z[:, 2:], most=2, cosine=0.1)
    assert int(is_false_BM.sum()) > 0
    found = scoring(inputs)
    torch.testing.assert_close(found.loss, false_negative_loss(z[:, :2], is_false_BM, 0.2, attracted=answer == "attracted"))
    assert float(found.numbers["false_negatives"]) == pytest.approx(int(is_false_BM.sum()) / 6)


@pytest.mark.parametrize("name", OF_VIEWS)
def test_the_image_tower_is_called_once_and_its_gradient_reaches_all_of_it_and_the_head(name, monkeypatch):
    scoring, inputs = scored(name, views=OBJECTIVES[name](LossKnobs()).views)
    calls = []
    encode = scoring.model.encode_image
    monkeypatch.setattr(scoring.model, "encode_image", lambda pixels: calls.append(len(pixels)) or encode(pixels))
    scoring(inputs).loss.backward()
    assert calls == [6 * (1 + scoring.objective.views)]
    assert scoring.objective.trains == {"image"}
    without = [n for n, p in scoring.named_parameters() if (n.startswith(("model.visual.", "head."))) and p.grad is None]
    assert without == []
    assert scoring.model.logit_scale.grad is None


@pytest.mark.parametrize("name", OF_VIEWS)
def test_a_tower_that_tells_nothing_apart_guesses_one_of_all_views_and_that_is_not_called_chance(name):
    scoring, inputs = scored(name, views=OBJECTIVES[name](LossKnobs()).views, false_negatives_are="attracted")
    same = inputs._replace(pixels_BCHW=torch.ones_like(inputs.pixels_BCHW), views_VBCHW=torch.ones_like(inputs.views_VBCHW))
    assert scoring(same).loss.item() == pytest.approx(math.log(11), rel=1e-5)
    assert scoring.objective.chance is None


def test_a_head_is_drawn_by_its_generator():
    heads = [OBJECTIVES["nt-xent"](LossKnobs()).make_head(architecture("RN-tiny-32"), torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    one, same, other = ([p.detach().numpy() for p in head.parameters()] for head in heads)
    assert all(map(np.array_equal, one, same))
    assert not np.array_equal(one[0], other[0])


def test_bf16_rounds_the_tower_and_not_the_loss():
    full, inputs = scored("nt-xent")
    rounded, _ = scored("nt-xent", precision="bf16")
    losses = [scoring(inputs).loss.detach() for scoring in (full, rounded)]
    assert losses[1].dtype == torch.float32
    assert float(losses[0]) != float(losses[1])
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=0.02)
