"""Checkpoints: a run between two steps, kept on disk so that it resumes to the same bits.

A checkpoint is a folder `step-NNNNNNNN` with `model.safetensors` (which `--model` takes), `head.safetensors` (the objective's own
weights), `optimiser.safetensors`, `average.safetensors` where weights are averaged, and `state.json`. Everything in it is whole,
however many ranks hold it: any number of them may go on. It is written under another name and renamed when it is whole.

It holds no random state, because none is carried from step to step: order, augmentation and whatever a model draws are functions of
the seed and the step. So it needs no data position of workers either: the step is the position.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clipkit import UserError
from clipkit.model.architectures import Architecture
from clipkit.model.checkpoint import load_model, save_model
from clipkit.run import new_folder, save_tensors, write_json
from clipkit.training.distributed import rank
from clipkit.training.sharding import fill, is_share, whole, whole_model
from clipkit.training.state import Progress, State

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_NAME = re.compile(r"step-[0-9]{8}")


def save_checkpoint(folder: Path, state: State, *, keep: int) -> Path:
    """Write the checkpoint of the present step into `folder`, then remove all but the newest `keep`.

    All ranks must call it; the first one writes.
    """
    path = folder / f"step-{state.progress.step:08d}"
    model, moments, average = whole_model(state.model), _moments(state), _average(state)
    if rank() > 0:
        return path
    # Of any step: a kill while one was written or an old one removed leaves it half, and no later step has its name.
    for leftover in (*folder.glob(".step-*.tmp"), path):
        shutil.rmtree(leftover, ignore_errors=True)
    with new_folder(path) as temporary:
        save_model(temporary / "model.safetensors", model, preprocess=state.preprocess, facts=state.facts)
        _save(temporary / "head.safetensors", state.head.state_dict())
        _save(temporary / "optimiser.safetensors", moments)
        if average is not None:
            _save(temporary / "average.safetensors", average)
        write_json(temporary / "state.json", _told(state.progress))
    for old in checkpoints(folder)[:-keep]:
        # Renamed first: a kill in the middle of removing must not leave half a checkpoint under a whole one's name.
        shutil.rmtree(old.rename(old.with_name(f".{old.name}.tmp")))
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def load_checkpoint(path: Path, state: State) -> None:
    """Put a checkpoint's weights, moments, average and progress into `state`.

    Raises UserError when it is damaged, or of another architecture.
    """
    with _damage_told(path):
        loaded = load_model(path / "model.safetensors").model
    _refuse_other_architecture(path, loaded.architecture, state.model.architecture)
    with _damage_told(path):
        state.progress = _progress(path)
        fill(state.model.state_dict(), loaded.state_dict())
        fill(state.head.state_dict(), load_file(path / "head.safetensors"))
        _fill_optimiser(state, load_file(path / "optimiser.safetensors"))
        if state.average is not None:
            fill(state.average.tensors, load_file(path / "average.safetensors"))


@contextlib.contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """What goes wrong while a checkpoint is read, as one sentence that says what to do."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        goal = "to resume from the one before" if len(checkpoints(path.parent)) > 1 else "to begin anew"
        raise UserError(f"checkpoint `{path}` is damaged ({reason}): remove that folder {goal}") from None


def _told(progress: Progress) -> dict[str, Any]:
    """Progress as plain JSON, of which equal ones have equal bytes."""
    return {**asdict(progress), "broken": sorted(progress.broken)}


def _progress(path: Path) -> Progress:
    """Raises TypeError for other fields or kinds than are written, ValueError for a step that is not the folder's, or no factor."""
    told = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if not isinstance(told["broken"], list):
        raise TypeError(f"`broken` is {told['broken']!r} in state.json")
    progress = Progress(**{**told, "broken": set(told["broken"])})
    for name, value in asdict(Progress(loss=0.0)).items():
        found = getattr(progress, name)
        kinds = (int, float) if isinstance(value, float) else type(value)
        if not isinstance(found, kinds) and not (name == "loss" and found is None):
            raise TypeError(f"`{name}` is {found!r} in state.json")
    if progress.step != int(path.name.removeprefix("step-")) or not progress.loss_scale > 0:
        raise ValueError(f"state.json says step {progress.step} and a loss scale of {progress.loss_scale:g}")
    return progress


def _refuse_other_architecture(path: Path, found: Architecture, wanted: Architecture) -> None:
    if replace(found, name="") != replace(wanted, name=""):
        raise UserError(
            f"checkpoint `{path}` is of `{found.name}`, the run's recipe of `{wanted.name}`: give a new directory, or put the run's own "
            "checkpoints back"
        )


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_tensors(path, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _moments(state: State) -> dict[str, Tensor]:
    """AdamW's moments by the name of their weight."""
    return {
        f"{moment}/{name}": _for_disk(state.optimiser.state[parameter][moment])
        for name, parameter in state.named_parameters()
        if parameter in state.optimiser.state
        for moment in _MOMENTS
    }


def _average(state: State) -> dict[str, Tensor] | None:
    return None if state.average is None else {name: _for_disk(tensor) for name, tensor in state.average.tensors.items()}


def _for_disk(tensor: Tensor) -> Tensor:
    """The whole of it, of which the first rank alone keeps more than one at a time: all beside the shares may not fit a device."""
    if not is_share(tensor):
        return tensor
    gathered = whole(tensor)
    return gathered.cpu() if rank() == 0 else gathered.new_empty(0)


def _fill_optimiser(state: State, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless every weight that is trained has its moments, and no other: AdamW would begin anew with the rest."""
    has_moved = state.progress.step > state.progress.skipped
    trained = {name: weight for name, weight in state.named_parameters() if weight.requires_grad and has_moved}
    filled = {f"{moment}/{name}": _empty(moment, weight) for name, weight in trained.items() for moment in _MOMENTS}
    fill(filled, tensors)
    for name, weight in trained.items():
        state.optimiser.state[weight] = {moment: filled[f"{moment}/{name}"] for moment in _MOMENTS}


def _empty(moment: str, weight: Tensor) -> Tensor:
    """The fused kernel walks weight and moments side by side: they must lie in memory alike. Its count of steps is one number."""
    if moment == "step":
        return torch.empty((), dtype=torch.float32, device=weight.device)
    return torch.empty_like(weight, requires_grad=False)
