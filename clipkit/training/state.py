"""What a training run is made of between two steps: model, optimiser, progress; and what it starts from."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from clipkit import UserError
from clipkit.dataset.shards import Shards
from clipkit.model.architectures import ResNetSizes, architecture
from clipkit.model.checkpoint import Loaded, is_package_spec, load_spec
from clipkit.model.clip import ImageTextModel, build
from clipkit.model.encoder import trained_before
from clipkit.model.preprocess import Preprocess
from clipkit.model.tokenizer import Tokenizer
from clipkit.recipe import ModelKnobs, TrainRecipe
from clipkit.run import Run
from clipkit.training.averages import Average
from clipkit.training.distributed import ranks, synchronise_batch_norm
from clipkit.training.freezing import freeze
from clipkit.training.loss_scale import first_scale
from clipkit.training.meanings import Meanings, load_caption_encoder, prepare_meanings
from clipkit.training.objectives import OBJECTIVES, Objective
from clipkit.training.schedule import build_optimiser
from clipkit.training.sharding import shard
from clipkit.training.teacher import Teacher

LIKE_THE_WEIGHTS = "start_from"
"""What the knob `model.architecture` says where the weights of `model.start_from` decide."""


@dataclass
class Progress:
    """How far a run has come, all its processes together.

    `seconds` in the loop, `waited_seconds` of them for batches. `losses`: of the steps since the last line of metrics.jsonl; `loss`: their
    mean at that line. `broken`: keys of pairs whose picture could not be decoded, on any rank.

    `loss_scale`: what the loss is multiplied with before the gradient is taken, so that it fits float16; `unskipped`: steps since that
    was last changed; `skipped`: steps that were left out because it was too much, `overflows`: of them the last ones in a row.
    """

    step: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    loss: float | None = None
    broken: set[str] = field(default_factory=set)
    loss_scale: float = 1.0
    unskipped: int = 0
    skipped: int = 0
    overflows: int = 0


@dataclass
class State:
    """What a step changes and a checkpoint keeps, and the frozen models that the objective asks.

    `described`: what its files say of the model beside the step.
    """

    model: ImageTextModel
    preprocess: Preprocess
    objective: Objective
    head: nn.Module
    optimiser: torch.optim.AdamW
    progress: Progress
    average: Average | None = None
    meanings: Meanings | None = None
    teacher: Teacher | None = None
    described: Mapping[str, Any] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """What a file of the model as it is says of it."""
        return {"step": self.progress.step, **self.described}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.logit_scale.device

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every weight, the model's under its own name, the objective's under `head.`."""
        yield from self.model.named_parameters()
        yield from self.head.named_parameters(prefix="head")

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Token ids (U, L) of texts; L is 0 for a model that sees pictures only."""
        text = self.model.architecture.text
        return Tokenizer(text.context)(texts) if text else torch.zeros(len(texts), 0, dtype=torch.int64)

    @property
    def layout(self) -> torch.memory_format:
        """How pixels lie in memory."""
        return _layout(self.model)


def new_state(recipe: TrainRecipe, device: torch.device) -> State:
    """A model with its first weights, on the device, and an optimiser that has not yet stepped."""
    model, preprocess, known, _ = _first_model(recipe.model, seed=recipe.seed)
    model = model.to(device).train()
    objective = OBJECTIVES[recipe.objective](recipe.loss)
    _check_towers(recipe, model, objective)
    head = objective.make_head(model.architecture, torch.Generator().manual_seed(recipe.seed + 1)).to(device).train()
    synchronise_batch_norm(model)
    _set_up(model, recipe.model)
    freeze(model, recipe.model, objective=objective, name=recipe.objective)
    if recipe.ranks_hold == "shares" and ranks() > 1:
        _shard(model, recipe.model)  # Which can cut weights only as they lie in memory by default.
    else:
        model.to(memory_format=_layout(model))  # type: ignore[call-overload]
    optimiser = build_optimiser(nn.ModuleDict({"model": model, "head": head}), recipe.optimiser, architecture=model.architecture)
    average = None if recipe.average_decay is None else Average(model, recipe.average_decay)
    progress, described = Progress(loss_scale=first_scale(recipe.precision)), _described(recipe, model, objective, known)
    return State(model, preprocess, objective, head, optimiser, progress, average, described=described)


def _described(recipe: TrainRecipe, model: ImageTextModel, objective: Objective, known: Mapping[str, Any]) -> dict[str, Any]:
    """That a model's text tower was never trained, where it has one: its texts say nothing. `known`: the facts of its first weights."""
    if model.architecture.text is None or "text" in objective.trains | trained_before(known):
        return {}
    return {"objective": recipe.objective, "towers": sorted(objective.trains)}


def _shard(model: ImageTextModel, knobs: ModelKnobs) -> None:
    if knobs.compile:
        raise UserError(
            "knob `ranks_hold` is `shares` and `model.compile` is true: weights that come and go cannot be in a compiled graph; set "
            "`model.compile` to false, or `ranks_hold` to `all`"
        )
    shard(model)


def _layout(model: ImageTextModel) -> torch.memory_format:
    """For convolutions with the colours of a pixel side by side, so that nothing has to be turned round for them."""
    return torch.channels_last if isinstance(model.architecture.image, ResNetSizes) else torch.contiguous_format


def ask_frozen_models(state: State, recipe: TrainRecipe, sources: Sequence[Shards], run: Run) -> None:
    """Open the models that the objective learns from: a teacher; a caption encoder, which is asked for all captions before a step."""
    knobs = recipe.loss
    if state.objective.wants_teacher:
        assert knobs.teacher is not None
        state.teacher = Teacher(knobs.teacher, precision=recipe.precision, device=state.device)
    if state.objective.wants_meanings:
        assert knobs.caption_encoder is not None
        state.meanings = prepare_meanings(load_caption_encoder(knobs.caption_encoder), sources, run)


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
            f"`{model.architecture.name}` sees pictures only: set `data.hold_out` to 0"
        )


def first_weights(knobs: ModelKnobs, *, seed: int) -> tuple[ImageTextModel, Preprocess]:
    """The model as it is before the first step: drawn by the seed (CLIP section 2.5), or taken from a run or checkpoint.

    Raises UserError when the weights are of another architecture than the recipe's, or only another package can read them.
    """
    first = _first_model(knobs, seed=seed)
    return first.model, first.preprocess


def _first_model(knobs: ModelKnobs, *, seed: int) -> Loaded:
    if knobs.start_from is None:
        if knobs.architecture == LIKE_THE_WEIGHTS:
            raise UserError(
                f"knob `model.start_from` is not set, `model.architecture` is `{LIKE_THE_WEIGHTS}`: name the model to take weights from"
            )
        return _drawn(knobs, seed=seed)
    if is_package_spec(knobs.start_from):
        raise UserError(
            f"knob `model.start_from` is `{knobs.start_from}`, a name that another package loads: give files, such as the folder that it "
            "was downloaded to"
        )
    loaded = load_spec(knobs.start_from)
    if knobs.architecture == LIKE_THE_WEIGHTS:
        return loaded
    wanted = architecture(knobs.architecture)
    if replace(loaded.model.architecture, name="") != replace(wanted, name=""):
        raise UserError(
            f"knob `model.start_from` names weights of `{loaded.model.architecture.name}`, `model.architecture` is `{wanted.name}`: "
            f"set the architecture that the weights have, or `{LIKE_THE_WEIGHTS}`"
        )
    return loaded


def _drawn(knobs: ModelKnobs, *, seed: int) -> Loaded:
    """A new model, none of whose towers was trained."""
    wanted = architecture(knobs.architecture)
    model = build(wanted, seed=seed)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(1 / knobs.initial_temperature))
    return Loaded(model, Preprocess(wanted.image_size), {"towers": []})
