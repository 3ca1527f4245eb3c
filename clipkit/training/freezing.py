"""Towers that keep their weights: LiT, fine-tuning of the last blocks, objectives that train one tower alone."""

from collections.abc import Sequence

from torch import nn

from clipkit import UserError
from clipkit.model.align import SharedClip
from clipkit.model.clip import Clip, ImageTextModel
from clipkit.model.duplicates import DuplicateNet
from clipkit.model.resnet import ModifiedResNet
from clipkit.model.towers import VisionTransformer
from clipkit.recipe import ModelKnobs
from clipkit.training.objectives.objective import Objective

TOWERS = frozenset({"image", "text"})


def freeze(model: ImageTextModel, knobs: ModelKnobs, *, objective: Objective, name: str) -> None:
    """Leave the weights of `model.freeze`'s towers as they are, and those of towers that the objective, called `name`, does not train.

    With `model.unfrozen_blocks` the last blocks of a tower that `model.freeze` names, and what comes after them, are trained nevertheless.
    So is the temperature by objectives of both towers; what an objective calls idle is left as it is. The model is in training mode
    afterwards, but for the parts whose weights are all frozen. LiT (Zhai et al., CVPR 2022, section 3) freezes the image tower. Raises
    UserError where that leaves nothing to train, or cannot be.
    """
    wanted = frozenset(knobs.freeze)
    _refuse(model, knobs, objective=objective, name=name)
    frozen = wanted | (TOWERS - objective.trains)
    for weight_name, weight in model.named_parameters():
        owners = _owners(model, weight_name)
        weight.requires_grad_(objective.trains == TOWERS if not owners else not owners <= frozen)
    for tower in wanted & objective.trains if knobs.unfrozen_blocks else ():
        _unfreeze_end(model, tower, knobs.unfrozen_blocks)
    for weight_name, weight in model.named_parameters():
        # What gets no gradient: ranks would wait for it, and weight decay would wear it out.
        if any(weight_name == idle or weight_name.startswith(f"{idle}.") for idle in objective.idle):
            weight.requires_grad_(False)
    model.train()


def trained_towers(model: ImageTextModel) -> frozenset[str]:
    """The towers of which some weight is trained."""
    return frozenset(owner for name, weight in model.named_parameters() if weight.requires_grad for owner in _owners(model, name))


def _owners(model: ImageTextModel, name: str) -> frozenset[str]:
    """Whose a weight is. What a shared architecture has in common belongs to both towers, the temperature to neither."""
    if name == "logit_scale":
        return frozenset()
    if name.startswith("visual."):
        return frozenset({"image"})
    ways_in = ("token_embedding.", "positional_embedding")
    return TOWERS if model.architecture.shared and not name.startswith(ways_in) else frozenset({"text"})


def _refuse(model: ImageTextModel, knobs: ModelKnobs, *, objective: Objective, name: str) -> None:
    wanted = frozenset(knobs.freeze)
    if knobs.unfrozen_blocks and not wanted:
        raise UserError(f"knob `model.unfrozen_blocks` is {knobs.unfrozen_blocks}, and no tower is frozen: set `model.freeze`, or 0")
    if len(wanted) == 1 and model.architecture.shared:
        raise UserError(
            f"knob `model.freeze` names one tower, and those of `{model.architecture.name}` share their weights: freeze both and set "
            "`model.unfrozen_blocks`, or take an architecture of two towers"
        )
    if wanted == TOWERS and not knobs.unfrozen_blocks:
        raise UserError("knob `model.freeze` names both towers, which leaves nothing to train: freeze one, or set `model.unfrozen_blocks`")
    if objective.trains <= wanted and not knobs.unfrozen_blocks:
        raise UserError(
            f"objective `{name}` trains the {next(iter(objective.trains))} tower alone, which knob `model.freeze` freezes: freeze the "
            "other, or set `model.unfrozen_blocks`"
        )


def _unfreeze_end(model: ImageTextModel, tower: str, count: int) -> None:
    """Train the last `count` blocks of a tower and its weights behind them. Raises UserError where there are fewer."""
    blocks, behind = _stages(model, tower)
    if count > len(blocks):
        raise UserError(
            f"knob `model.unfrozen_blocks` is {count}, the {tower} tower of `{model.architecture.name}` has {len(blocks)} blocks: "
            "set at most that, or do not freeze the tower"
        )
    for part in (*blocks[-count:], *behind):
        part.requires_grad_(True)


def _stages(model: ImageTextModel, tower: str) -> tuple[Sequence[nn.Module], Sequence[nn.Module | nn.Parameter]]:
    """A tower's blocks, first to last, and what stands behind them. A ResNet's blocks are its bottlenecks."""
    if isinstance(model, SharedClip):
        return list(model.transformer.blocks()), (model.ln_post, model.projection)
    if isinstance(model, DuplicateNet):
        return list(model.visual.blocks), (model.visual.proj,)
    assert isinstance(model, Clip)
    if tower == "text":
        return list(model.transformer.blocks()), (model.ln_final, model.text_projection)
    visual = model.visual
    if isinstance(visual, VisionTransformer):
        return list(visual.transformer.blocks()), (visual.ln_post, visual.proj)
    assert isinstance(visual, ModifiedResNet)
    return list(visual.bottlenecks()), (visual.attnpool,)
