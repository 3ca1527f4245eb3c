"""Any number of ranks and of parts against one process with the whole batch: the same gradients."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from clipkit import UserError
from clipkit.model.clip import ImageTextModel, architecture, build
from clipkit.model.towers import ImageFeatures
from clipkit.recipe import LossKnobs, TrainRecipe
from clipkit.training import distributed, loop
from clipkit.training.accumulation import backward, refuse_split_batch_norm, some_rows
from clipkit.training.objectives import OBJECTIVES, Inputs, Objective, Scored
from clipkit.training.scoring import Scoring
from clipkit.training.sharding import gradient_norm, shard, whole
from tests.training.ranks import run_ranks
from tests.training.test_distributed import alive

CAPTIONS = "abccdaefghii"
BATCH = len(CAPTIONS)
CASES = [
    ("ViT-tiny-32", None, "all"),
    ("ViT-tiny-32", 2, "all"),
    ("ViT-tiny-32", 1, "all"),
    ("ViT-tiny-32-shared", None, "all"),
    ("ViT-tiny-32-shared", 2, "all"),
    ("RN-tiny-32", None, "all"),
    ("ViT-tiny-32", 2, "shares"),
]
OBJECTIVES_HERE = ("clip", "siglip")


class Head(nn.Module):
    """A weight that a loss reads, and in parts one that it does not; of a whole batch DistributedDataParallel would wait for it."""

    def __init__(self, *, in_parts: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        if in_parts:
            self.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))


def with_head(objective: Objective) -> Objective:
    """The objective, its loss stretched by a weight of the head."""
    return Objective(lambda towers, inputs: (s := objective.score(towers, inputs))._replace(loss=s.loss * towers.head.scale))


def whole_batch(name: str) -> tuple[ImageTextModel, Inputs]:
    return alive(name, CAPTIONS)


def my_rows(inputs: Inputs) -> Inputs:
    rows = BATCH // distributed.ranks()
    return some_rows(inputs, distributed.rank() * rows, (distributed.rank() + 1) * rows)


def gradients(objective: str, name: str, rows: int | None, hold: str) -> dict[str, Tensor]:
    """Loss, gradients and their norm after scoring this rank's rows."""
    model, inputs = whole_batch(name)
    distributed.synchronise_batch_norm(model)
    if hold == "shares" and distributed.ranks() > 1:
        shard(model)
    head = (
        Head(in_parts=rows is not None)
        if objective == "clip"
        else OBJECTIVES[objective](LossKnobs()).make_head(model.architecture, torch.Generator()).double()
    )
    made = OBJECTIVES[objective](LossKnobs())
    scoring = Scoring(model, with_head(made) if objective == "clip" else made, head=head, precision="fp32")
    recipe = TrainRecipe(samples_seen=BATCH, batch_size=BATCH, micro_batch=rows, ranks_hold=hold)
    scored = backward(loop._on_ranks(scoring, recipe), my_rows(inputs), rows=rows)
    named = [*model.named_parameters(), *head.named_parameters(prefix="head")]
    found = {parameter_name: whole(p.grad) for parameter_name, p in named if p.grad is not None}
    norm = gradient_norm([p.grad for _, p in named if p.grad is not None])
    return {**found, "loss": distributed.mean_over_ranks(scored.loss), "norm": norm}


def all_gradients() -> dict[str, Tensor]:
    return {
        f"{objective}/{case}/{tensor_name}": tensor
        for objective in OBJECTIVES_HERE
        for case in CASES
        for tensor_name, tensor in gradients(objective, *case).items()
    }


@pytest.fixture(scope="module")
def of_the_whole() -> dict[str, Tensor]:
    """What one process finds with the whole batch in one pass."""
    torch.set_num_threads(1)
    once = {(objective, case[0]): gradients(objective, case[0], None, "all") for objective in OBJECTIVES_HERE for case in CASES}
    return {
        f"{objective}/{case}/{tensor_name}": tensor
        for objective in OBJECTIVES_HERE
        for case in CASES
        for tensor_name, tensor in once[objective, case[0]].items()
    }


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_and_parts_have_the_gradients_of_the_whole_batch(ranks, of_the_whole, tmp_path):
    def work() -> dict[str, Tensor]:
        with distributed.joined():
            assert distributed.ranks() == ranks
            return all_gradients()

    for found in run_ranks(work, tmp_path, ranks):
        assert_equal(found, of_the_whole)


@pytest.mark.parametrize("objective", OBJECTIVES_HERE)
@pytest.mark.parametrize("rows", [4, 5, 6, 12, 100])
@pytest.mark.parametrize("name", ["ViT-tiny-32", "ViT-tiny-32-shared"])
def test_parts_of_any_size_have_the_gradients_of_the_whole_batch(objective, name, rows):
    expected = gradients(objective, name, None, "all")
    assert expected["logit_scale"].abs() > 1e-4
    assert_equal(gradients(objective, name, rows, "all"), expected)


@dataclass
class PartsInOneGraph:
    """Towers that encode by parts and keep the whole graph: they draw what parts draw, and autograd does the rest."""

    scoring: Scoring
    rows: int

    @property
    def logit_scale(self) -> Tensor:
        return self.scoring.logit_scale

    @property
    def head(self) -> nn.Module:
        return self.scoring.head

    def encode_image(self, pixels: Tensor) -> ImageFeatures:
        return ImageFeatures(*(torch.cat(x) for x in zip(*map(self.scoring.encode_image, pixels.split(self.rows)), strict=True)))

    def encode_text(self, tokens: Tensor) -> Tensor:
        return torch.cat([self.scoring.encode_text(part) for part in tokens.split(self.rows)])


@pytest.mark.parametrize("recomputes", [False, True])
def test_parts_drop_the_same_patches_in_both_of_their_passes(recomputes):
    found = []
    for by_hand in (True, False):
        model, inputs = whole_batch("ViT-tiny-32")
        model.drop_patches(0.5)
        if recomputes:
            model.recompute()
        scoring = Scoring(model, OBJECTIVES["clip"](LossKnobs()), head=nn.Module(), precision="fp32")
        torch.manual_seed(7)
        if by_hand:
            scoring.objective.score(PartsInOneGraph(scoring, 5), inputs).loss.backward()
        else:
            backward(scoring, inputs, rows=5)
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert_equal(found[1], found[0])


@pytest.mark.parametrize("tower", ["visual.", "transformer.", "token_embedding", ""])
def test_frozen_towers_get_no_gradient_and_the_others_get_theirs(tower):
    found = []
    for rows in (None, 5):
        model, inputs = whole_batch("ViT-tiny-32")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(tower) or name == "logit_scale")
        backward(Scoring(model, OBJECTIVES["clip"](LossKnobs()), head=nn.Module(), precision="fp32"), inputs, rows=rows)
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert_equal(found[1], found[0])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_rounded_towers_send_back_the_gradients_of_every_weight(precision):
    found = []
    for rows in (None, 5):
        model, inputs = whole_batch("ViT-tiny-32")
        scoring = Scoring(model.float(), OBJECTIVES["clip"](LossKnobs()), head=nn.Module(), precision=precision)
        backward(scoring, inputs._replace(pixels_BCHW=inputs.pixels_BCHW.float()), rows=rows, scale=256.0)
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, expected in found[0].items():
        assert float((found[1][name] - expected).norm()) <= 0.05 * float(expected.norm()), name


def test_views_that_are_stacked_go_through_by_parts_too():
    def views(towers, inputs):
        stacked = torch.cat([inputs.pixels_BCHW, *inputs.views_VBCHW])
        vectors = towers.encode_image(stacked).features_BF
        return Scored((vectors[:BATCH] * vectors[BATCH : 2 * BATCH]).sum(1).tanh().mean() * towers.logit_scale, {})

    found = []
    for rows in (None, 5):
        model, inputs = whole_batch("ViT-tiny-32")
        inputs = inputs._replace(views_VBCHW=inputs.pixels_BCHW.flip(-1)[None])
        backward(Scoring(model, Objective(views, views=1), head=nn.Module(), precision="fp32"), inputs, rows=rows)
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert "logit_scale" in found[0]
    assert "text_projection" not in found[0]
    assert_equal(found[1], found[0])


@pytest.mark.parametrize("rows", [1, 5, 12])
def test_a_loss_that_is_a_mean_over_pairs_is_scored_part_by_part(rows):
    def own_pairs(towers, inputs):
        image = towers.encode_image(inputs.pixels_BCHW).projected_BD
        text = towers.encode_text(inputs.tokens_UL)[inputs.caption_B]
        seen.append(len(image))
        return Scored((image * text).sum(1).tanh().mean(), {"first": image.detach()[:, 0].mean()})

    found = []
    for given in (None, rows):
        seen: list[int] = []
        model, inputs = whole_batch("ViT-tiny-32")
        scored = backward(Scoring(model, Objective(own_pairs, couples_pairs=False), head=nn.Module(), precision="fp32"), inputs, rows=given)
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append({**grads, "loss": scored.loss, "first": scored.numbers["first"]})
    assert max(seen) == min(rows, BATCH)
    assert_equal(found[1], found[0])


def test_rows_of_a_batch_keep_what_belongs_to_them():
    _, inputs = whole_batch("ViT-tiny-32")
    inputs = inputs._replace(label_B=torch.arange(BATCH), meaning_BE=torch.eye(BATCH), views_VBCHW=inputs.pixels_BCHW[None])
    part = some_rows(inputs, 3, 6)
    assert torch.equal(part.tokens_UL[part.caption_B], inputs.tokens_UL[inputs.caption_B[3:6]])
    assert (len(part.tokens_UL), part.texts_B, part.label_B.tolist()) == (3, ("c", "d", "a"), [3, 4, 5])
    assert torch.equal(part.meaning_BE, torch.eye(BATCH)[3:6])
    assert torch.equal(part.views_VBCHW[0], inputs.pixels_BCHW[3:6])


def test_batch_normalisation_that_sees_the_whole_batch_is_not_split():
    model = build(architecture("RN-tiny-32"), seed=0)
    with pytest.raises(UserError, match=r"`micro_batch` is 4 of 8 pairs, but the model has batch normalisation.*gradient_checkpointing"):
        refuse_split_batch_norm(model, rows=4, batch_size=8)
    refuse_split_batch_norm(model, rows=8, batch_size=8)
    refuse_split_batch_norm(model, rows=None, batch_size=8)
    refuse_split_batch_norm(model.eval(), rows=4, batch_size=8)
