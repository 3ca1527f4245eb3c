"""What a training run is made of between two steps: model, optimiser, progress; and what it starts from."""

import math
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from clipkit import UserError
from clipkit.model.architectures import ResNetSizes, architecture
from clipkit.model.checkpoint import load_model
from clipkit.model.clip import ImageTextModel, build
from clipkit.model.preprocess import Preprocess
from clipkit.recipe import ModelKnobs, TrainRecipe
from clipkit.training.distributed import synchronise_batch_norm
from clipkit.training.objectives import OBJECTIVES, Objective
from clipkit.training.schedule import build_optimiser

LIKE_THE_WEIGHTS = "start_from"
"""What the knob `model.architecture` says where the weights of `model.start_from` decide."""


@dataclass
class Progress:
    """How far a run has come, all its processes together.

    `seconds` in the loop, `waited_seconds` of them for batches. `losses`: of the steps since the last line of metrics.jsonl; `loss`: their
    mean at that line. `broken`: keys of pairs whose picture could not be decoded.
    """

    step: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    loss: float | None = None
    broken: list[str] = field(default_factory=list)


@dataclass
class State:
    """What a step changes and a checkpoint keeps."""

    model: ImageTextModel
    preprocess: Preprocess
    objective: Objective
    head: nn.Module
    optimiser: torch.optim.AdamW
    progress: Progress

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.logit_scale.device

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every weight, the model's under its own name, the objective's under `head.`."""
        yield from self.model.named_parameters()
        yield from self.head.named_parameters(prefix="head")

    @property
    def layout(self) -> torch.memory_format:
        """How pixels lie in memory: for convolutions with their colours side by side, so that nothing has to be turned round for them."""
        return torch.channels_last if isinstance(self.model.architecture.image, ResNetSizes) else torch.contiguous_format


def new_state(recipe: TrainRecipe, device: torch.device) -> State:
    """A model with its first weights, on the device, and an optimiser that has not yet stepped."""
    model, preprocess = first_weights(recipe.model, seed=recipe.seed)
    model = model.to(device).train()
    objective = OBJECTIVES[recipe.objective](recipe.loss)
    _check_towers(recipe, model, objective)
    head = objective.make_head(model.architecture, torch.Generator().manual_seed(recipe.seed + 1)).to(device).train()
    synchronise_batch_norm(model)
    _set_up(model, recipe.model)
    _freeze(model, {"image", "text"} - objective.trains)
    model.logit_scale.requires_grad_("text" in objective.trains)  # objectives on pictures alone have a fixed temperature
    optimiser = build_optimiser(nn.ModuleDict({"model": model, "head": head}), recipe.optimiser, architecture=model.architecture)
    state = State(model, preprocess, objective, head, optimiser, Progress())
    model.to(memory_format=state.layout)  # type: ignore[call-overload]
    return state


def _set_up(model: ImageTextModel, knobs: ModelKnobs) -> None:
    """How a step goes through the model; the weights are not concerned."""
    if knobs.drop_patches:
        if isinstance(model.architecture.image, ResNetSizes):
            raise UserError(
                f"knob `model.drop_patches` is {knobs.drop_patches:g}, `{model.architecture.name}` has no patches: set 0, or take a ViT"
            )
        model.drop_patches(knobs.drop_patches)
    if knobs.gradient_checkpointing:
        model.recompute()
    if knobs.compile:
        if knobs.gradient_checkpointing and isinstance(model.architecture.image, ResNetSizes):
            raise UserError(
                f"knobs `model.compile` and `model.gradient_checkpointing` are both true, which a ResNet, `{model.architecture.name}`, "
                "cannot have: set one of them to false"
            )
        model.compile_towers()


def _check_towers(recipe: TrainRecipe, model: ImageTextModel, objective: Objective) -> None:
    """Refuse captions for a model that sees pictures only."""
    if model.architecture.text is not None:
        return
    if "text" in objective.trains or not objective.views:
        raise UserError(
            f"`{model.architecture.name}` sees pictures only, knob `objective` is {recipe.objective}, which needs captions: set "
            "`duplicates`, or take an architecture with a text tower"
        )
    if recipe.data.hold_out:
        raise UserError(
            f"knob `data.hold_out` is {recipe.data.hold_out:,}: retrieval by captions is measured on those pairs, and "
            f"`{model.architecture.name}` sees pictures only: set 0"
        )


def _freeze(model: ImageTextModel, towers: AbstractSet[str]) -> None:
    """Leave these towers' weights as they are. What a shared architecture has in common belongs to both."""
    shared = {"image", "text"} if model.architecture.shared else set()
    for name, parameter in model.named_parameters():
        tower = {"image"} if name.startswith("visual.") else set() if name == "logit_scale" else shared or {"text"}
        if tower and tower <= towers:
            parameter.requires_grad_(False)


def first_weights(knobs: ModelKnobs, *, seed: int) -> tuple[ImageTextModel, Preprocess]:
    """The model as it is before the first step: drawn by the seed (CLIP section 2.5), or taken from a run or checkpoint.

    Raises UserError when the weights are of another architecture than the recipe's.
    """
    if knobs.start_from is None:
        wanted = architecture(knobs.architecture)
        model = build(wanted, seed=seed)
        with torch.no_grad():
            model.logit_scale.fill_(math.log(1 / knobs.initial_temperature))
        return model, Preprocess(wanted.image_size)
    loaded = load_model(Path(knobs.start_from))
    if knobs.architecture == LIKE_THE_WEIGHTS:
        return loaded.model, loaded.preprocess
    wanted = architecture(knobs.architecture)
    if replace(loaded.model.architecture, name="") != replace(wanted, name=""):
        raise UserError(
            f"knob `model.start_from` names weights of `{loaded.model.architecture.name}`, `model.architecture` is `{wanted.name}`: "
            f"set the architecture that the weights have, or `{LIKE_THE_WEIGHTS}`"
        )
    return loaded.model, loaded.preprocess
