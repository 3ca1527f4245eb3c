"""Distillation, by hand."""

import pytest
import torch

from clipkit.training.losses import contrastive_loss, distillation_loss
from clipkit.training.losses.distillation import Taught
from tests.training.losses.oracles import case


def test_a_teacher_who_is_certain_of_the_pairs_teaches_clips_own_loss():
    leaves = case("contrastive", 6).leaves()
    certain = Taught(torch.eye(6), torch.eye(6), torch.tensor(1000.0))
    found = distillation_loss(*leaves.values(), certain)
    assert float(found.detach()) == pytest.approx(float(contrastive_loss(*leaves.values()).detach()), rel=1e-12)


def test_a_student_who_is_the_teacher_has_nothing_to_learn():
    leaves = case("contrastive", 6).leaves()
    distillation_loss(*leaves.values(), Taught(*leaves.values())).backward()
    for leaf in leaves.values():
        torch.testing.assert_close(leaf.grad, torch.zeros_like(leaf), rtol=0, atol=1e-12)


def test_the_teacher_gets_no_gradient_even_if_it_could():
    made = case("distillation", 5)
    leaves = made.leaves()
    for name in made.given & leaves.keys():
        leaves[name].requires_grad_()
    made.ours(*leaves.values()).backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is not None} == {"image", "text", "scale"}
