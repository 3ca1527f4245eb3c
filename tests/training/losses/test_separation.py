"""AlignCLIP's separation, by hand."""

import math

import pytest
import torch

from clipkit.training.losses import separation_loss
from tests.training.losses.oracles import case


def test_captions_that_say_the_same_do_not_push_their_pictures_apart():
    image, text = torch.eye(3)[[0, 0, 1]], torch.eye(3)[[0, 0, 1]]
    meaning = torch.eye(2)[[0, 0, 1]]
    loss = separation_loss(image, text, meaning, torch.tensor(2.0))
    # Every row: its own logit is 2, those of others 0, as either the meaning or the picture's cosine leaves nothing of them.
    assert float(loss) == pytest.approx(math.log(math.exp(2) + 2) - 2)


def test_captions_that_say_something_else_do():
    image, text = torch.eye(3)[[0, 0]], torch.eye(3)[[0, 0]]
    loss = separation_loss(image, text, torch.eye(2), torch.tensor(2.0))
    assert float(loss) == pytest.approx(math.log(2))
    opposite = separation_loss(image, text, torch.tensor([[1.0, 0], [-1, 0]]), torch.tensor(2.0))
    assert float(opposite) == pytest.approx(math.log(math.exp(2) + math.exp(4)) - 2)


def test_meanings_get_no_gradient_even_if_they_could():
    leaves = case("separation", 4).leaves()
    leaves["meaning"].requires_grad_()
    separation_loss(*leaves.values()).backward()
    assert leaves["meaning"].grad is None
    assert leaves["partner"].grad.abs().max() > 0
