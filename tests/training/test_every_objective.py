"""Every objective, on any number of ranks and in parts, has the gradients of one process with the whole batch."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from clipkit.model.clip import architecture, build
from clipkit.recipe import LossKnobs, ModelKnobs, TrainRecipe
from clipkit.training import distributed, loop
from clipkit.training.accumulation import backward, some_rows
from clipkit.training.freezing import freeze
from clipkit.training.objectives import OBJECTIVES, Inputs, Objective, Taught
from clipkit.training.scoring import Scoring
from tests.training.ranks import run_ranks

BATCH, PART = 8, 3
KNOBS = LossKnobs(
    caption_encoder="a",
    teacher="b",
    own_weight=0.7,
    teacher_weight=1.3,
    support_views=2,
    false_negatives=3,
    false_negative_cosine=-1.0,
    decoder_layers=1,
    decoder_width=64,
    initial_bias=-3.0,
)


def whole_batch(objective: Objective) -> Inputs:
    """All that objectives ask for, in float64; captions repeat."""
    made = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made, dtype=torch.float64)

    pixels, tokens, caption = noise(BATCH, 3, 32, 32), torch.zeros(6, 9, dtype=torch.int64), torch.tensor([0, 1, 2, 2, 3, 0, 4, 5])
    for text in tokens:
        length = int(torch.randint(2, 7, (), generator=made))
        text[: length + 1] = torch.randint(1, 40, (length + 1,), generator=made)
        text[length + 1] = 49_407
    meanings = functional.normalize(noise(6, 12), dim=1)[caption]
    taught = Taught(*(functional.normalize(noise(BATCH, 7), dim=1) for _ in range(2)), torch.tensor(9.0, dtype=torch.float64))
    views = pixels + 0.5 * noise(objective.views, BATCH, 3, 32, 32) if objective.views else None
    return Inputs(pixels, tokens, caption, tuple("abccdaef"), views, caption.clone(), meanings, taught)


def gradients(name: str, rows: int | None) -> dict[str, Tensor]:
    """Loss and gradients after scoring this rank's rows of the batch."""
    objective = OBJECTIVES[name](KNOBS)
    model = build(architecture("ViT-tiny-32"), seed=0).double()
    freeze(model, ModelKnobs(), objective=objective, name=name)
    head = objective.make_head(model.architecture, torch.Generator().manual_seed(5)).double()
    scoring = Scoring(model, objective, head=head, precision="fp32")
    own = BATCH // distributed.ranks()
    inputs = some_rows(whole_batch(objective), distributed.rank() * own, (distributed.rank() + 1) * own)
    recipe = TrainRecipe(samples_seen=BATCH, batch_size=BATCH, micro_batch=rows)
    scored = backward(loop._on_ranks(scoring, recipe), inputs, rows=rows)
    named = [*model.named_parameters(), *head.named_parameters(prefix="head")]
    found = {f"{name}: {weight}": p.grad for weight, p in named if p.grad is not None}
    return {**found, f"{name}: loss": distributed.mean_over_ranks(scored.loss)}


def all_gradients(rows: int | None) -> dict[str, Tensor]:
    return {weight: tensor for name in OBJECTIVES for weight, tensor in gradients(name, rows).items()}


@pytest.fixture(scope="module")
def of_the_whole() -> dict[str, Tensor]:
    torch.set_num_threads(1)
    return all_gradients(None)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for weight, tensor in expected.items():
        torch.testing.assert_close(found[weight], tensor, rtol=1e-6, atol=1e-10, msg=lambda text, w=weight: f"{w}: {text}")


def test_the_gradients_are_no_zeros(of_the_whole):
    for name in OBJECTIVES:
        assert sum(float(tensor.abs().sum()) for weight, tensor in of_the_whole.items() if weight.startswith(f"{name}: visual.")) > 1e-3


def test_in_parts(of_the_whole):
    assert_equal(all_gradients(PART), of_the_whole)


@pytest.mark.parametrize("rows", [None, PART])
def test_on_two_ranks(of_the_whole, tmp_path, rows):
    def work() -> dict[str, Tensor]:
        with distributed.joined():
            assert distributed.ranks() == 2
            return all_gradients(rows)

    for found in run_ranks(work, tmp_path):
        assert_equal(found, of_the_whole)
