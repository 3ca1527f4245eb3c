"""Checkpoints: a run between two steps, kept on disk so that it resumes to the same bits.

A checkpoint is a folder `step-NNNNNNNN` with `model.safetensors` (which `--model` takes), `head.safetensors` (the
objective's own weights), `optimiser.safetensors` and `state.json`.
It is written under another name and renamed when it is whole. It holds no random state, because none is carried from step to step:
order, augmentation and whatever a model draws are functions of the seed and the step.
"""

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clipkit import UserError
from clipkit.model.checkpoint import load_model, save_model
from clipkit.run import save_tensors, write_json
from clipkit.training.state import Progress, State

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_NAME = re.compile(r"step-[0-9]{8}")


def save_checkpoint(folder: Path, state: State, *, keep: int) -> Path:
    """Write the checkpoint of the present step into `folder`, then remove all but the newest `keep`."""
    path = folder / f"step-{state.progress.step:08d}"
    temporary = folder / f".{path.name}.tmp"
    for leftover in (temporary, path):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_model(temporary / "model.safetensors", state.model, preprocess=state.preprocess, facts={"step": state.progress.step})
    save_tensors(temporary / "head.safetensors", {name: tensor.cpu().contiguous() for name, tensor in state.head.state_dict().items()})
    save_tensors(temporary / "optimiser.safetensors", _optimiser_tensors(state))
    write_json(temporary / "state.json", asdict(state.progress))
    _flush(temporary)
    os.replace(temporary, path)
    for old in checkpoints(folder)[:-keep]:
        # Renamed first: a kill in the middle of removing must not leave half a checkpoint under a whole one's name.
        shutil.rmtree(old.rename(old.with_name(f".{old.name}.tmp")))
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def load_checkpoint(path: Path, state: State) -> None:
    """Put a checkpoint's weights, moments and progress into `state`. Raises UserError when it is damaged."""
    try:
        state.model.load_state_dict(load_model(path / "model.safetensors").model.state_dict())
        state.head.load_state_dict(load_file(path / "head.safetensors"))
        _fill_optimiser(state, load_file(path / "optimiser.safetensors"))
        state.progress = Progress(**json.loads((path / "state.json").read_text(encoding="utf-8")))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"checkpoint `{path}` is damaged ({reason}): remove that folder to resume from the one before") from None


def _optimiser_tensors(state: State) -> dict[str, Tensor]:
    """AdamW's moments by the name of their weight."""
    moments = {
        f"{moment}/{name}": state.optimiser.state[parameter][moment]
        for name, parameter in state.named_parameters()
        if parameter in state.optimiser.state
        for moment in _MOMENTS
    }
    return {name: tensor.detach().cpu().contiguous() for name, tensor in moments.items()}


def _fill_optimiser(state: State, tensors: dict[str, Tensor]) -> None:
    for name, parameter in state.named_parameters():
        if not parameter.requires_grad and f"step/{name}" not in tensors:
            continue  # Frozen: it never had moments.
        step, *moments = (tensors[f"{moment}/{name}"] for moment in _MOMENTS)
        # The fused kernel walks weight and moments side by side: they must lie in memory alike.
        filled = [torch.empty_like(parameter, requires_grad=False).copy_(moment) for moment in moments]
        state.optimiser.state[parameter] = dict(zip(_MOMENTS, (step.to(parameter.device), *filled), strict=True))


def _flush(folder: Path) -> None:
    """Have the folder's files on the disk before it gets its name: a power cut must not leave an empty checkpoint."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
