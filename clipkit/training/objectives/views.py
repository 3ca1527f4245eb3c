"""Objectives on pictures alone: views of one picture, or of one class, find each other.

What the image tower projects to is the h of SimCLR's section 2.1: the views are compared behind a head of the objective's own, which is
trained with the tower and left out of what is saved for use. All views of a batch go through the tower in one call.
"""

import functools

import torch
from torch import Tensor, nn

from clipkit.model.architectures import Architecture
from clipkit.model.vectors import unit
from clipkit.recipe import LossKnobs
from clipkit.training.losses import views as losses
from clipkit.training.objectives.objective import Inputs, Objective, Score, Scored, Towers

HEAD_WIDTH = 128
"""Width in which views are compared (SimCLR section 2.1)."""


def supcon(knobs: LossKnobs) -> Objective:
    """Supervised contrastive learning: views of pictures with one label find each other (Khosla et al. 2020); knob `temperature`."""
    return _on_views(functools.partial(_supcon, temperature=knobs.temperature), wants_labels=True)


def nt_xent(knobs: LossKnobs) -> Objective:
    """SimCLR: two views of a picture find each other (Chen et al. 2020); knob `temperature`."""
    return _on_views(functools.partial(_nt_xent, temperature=knobs.temperature))


def hard_negatives(knobs: LossKnobs) -> Objective:
    """HCL: SimCLR with hard negatives (Robinson et al. 2021); knobs `temperature`, `hardness`, `class_prior`."""
    return _on_views(functools.partial(_hard_negatives, knobs=knobs))


def false_negatives(knobs: LossKnobs) -> Objective:
    """FNC: SimCLR without its false negatives (Huynh et al. 2022); knobs `temperature`, `support_views`, `false_negative...`.

    The support views need no gradient, but go through the tower with the others: a step costs (2 + support_views) / 2 of SimCLR's.
    """
    return _on_views(functools.partial(_false_negatives, knobs=knobs), views=1 + knobs.support_views)


def projection_head(architecture: Architecture, generator: torch.Generator) -> nn.Module:
    """SimCLR's two-layer perceptron W2 relu(W1 h), as wide as h inside, without biases; drawn as He et al. 2015 do."""
    width = architecture.embed_width
    layers = nn.Linear(width, width, bias=False), nn.Linear(width, HEAD_WIDTH, bias=False)
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


def encode_views(towers: Towers, inputs: Inputs) -> Tensor:
    """Unit vectors (B, V, HEAD_WIDTH) of a batch's pictures and of their further views, behind the head."""
    assert inputs.views_VBCHW is not None
    stacked = torch.cat([inputs.pixels_BCHW, inputs.views_VBCHW.flatten(0, 1)])
    vectors = unit(towers.head(towers.encode_image(stacked).projected_BD))
    return vectors.view(-1, len(inputs.pixels_BCHW), vectors.shape[1]).transpose(0, 1)


def view_cosine(vectors_BVD: Tensor) -> Tensor:
    """Mean cosine of the first two views of a picture."""
    return (vectors_BVD[:, 0].detach() * vectors_BVD[:, 1].detach()).sum(dim=1).mean()


def _on_views(score: Score, *, views: int = 1, wants_labels: bool = False) -> Objective:
    """Its chance cannot be said: views of one picture are near each other in any tower, one that has learnt nothing, too."""
    return Objective(score, make_head=projection_head, trains=frozenset({"image"}), views=views, wants_labels=wants_labels)


def _supcon(towers: Towers, inputs: Inputs, *, temperature: float) -> Scored:
    vectors_BVD = encode_views(towers, inputs)
    assert inputs.label_B is not None
    return _scored(losses.supcon_loss(vectors_BVD, inputs.label_B, temperature), vectors_BVD)


def _nt_xent(towers: Towers, inputs: Inputs, *, temperature: float) -> Scored:
    vectors_BVD = encode_views(towers, inputs)
    return _scored(losses.nt_xent_loss(vectors_BVD, temperature), vectors_BVD)


def _hard_negatives(towers: Towers, inputs: Inputs, *, knobs: LossKnobs) -> Scored:
    vectors_BVD = encode_views(towers, inputs)
    loss = losses.hard_negative_loss(vectors_BVD, knobs.temperature, hardness=knobs.hardness, class_prior=knobs.class_prior)
    return _scored(loss, vectors_BVD)


def _false_negatives(towers: Towers, inputs: Inputs, *, knobs: LossKnobs) -> Scored:
    vectors_BVD = encode_views(towers, inputs)
    anchors_BVD, support_BSD = vectors_BVD[:, :2], vectors_BVD[:, 2:]
    is_false_BM = losses.false_negatives(anchors_BVD, support_BSD, most=knobs.false_negatives, cosine=knobs.false_negative_cosine)
    attracted = knobs.false_negatives_are == "attracted"
    scored = _scored(losses.false_negative_loss(anchors_BVD, is_false_BM, knobs.temperature, attracted=attracted), anchors_BVD)
    return Scored(scored.loss, {**scored.numbers, "false_negatives": is_false_BM.sum(dim=1).float().mean()})


def _scored(loss: Tensor, vectors_BVD: Tensor) -> Scored:
    return Scored(loss, {"view_cosine": view_cosine(vectors_BVD)})
