"""Several models' weights as one: interpolation between a model and what it was fine-tuned to, and soups."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clipkit import UserError
from clipkit.model.architectures import Architecture
from clipkit.model.checkpoint import Loaded, load_spec
from clipkit.model.vectors import fingerprint


def average_models(specs: Sequence[str], weights: Sequence[float] | None = None) -> Loaded:
    """The weighted sum of models' weights, computed in float64 and kept in float32.

    Two models with weights 1 - a and a are WiSE-FT (Wortsman et al., CVPR 2022, section 3, equation 3); several, equally weighted, are a
    uniform soup (Wortsman et al., ICML 2022, section 2). Running statistics of batch norms are averaged as weights are, which only
    approximates those of the average. Whole numbers, such as their counts of batches, are the first model's. The temperature is averaged
    as its logarithm, as it is learnt.

    `specs`: as `load_spec` takes. `weights`: none below 0, their sum 1; unset: all equal. One model is in memory at a time, beside the sum.
    The facts name the models, their weights and the hashes of what they hold. Raises UserError where models do not fit each other.
    """
    shares = _checked(specs, weights)
    first: Loaded | None = None
    total: dict[str, Tensor] = {}
    told: list[dict[str, Any]] = []
    untrained: dict[str, Any] = {}
    for spec, share in zip(specs, shares, strict=True):
        loaded = load_spec(spec)
        if first is None:
            first = loaded
        _refuse_difference(specs[0], first, spec, loaded)
        # What no text may be asked of stays so when it is averaged with a model that has seen texts.
        untrained |= {key: loaded.facts[key] for key in ("objective", "towers") if "towers" in loaded.facts and key in loaded.facts}
        state = loaded.model.state_dict()
        for name, tensor in state.items():
            total[name] = _added(total.get(name), tensor, share)
        told.append({"model": spec, "weight": share, "weights_sha256": fingerprint(state, {})})
    assert first is not None
    first.model.load_state_dict({name: tensor.to(first.model.state_dict()[name].dtype) for name, tensor in total.items()})
    return Loaded(first.model, first.preprocess, {"averaged": told, **untrained})


def has_running_statistics(loaded: Loaded) -> bool:
    """Whether some of a model's state is measured and not trained: the means and variances of batch norms."""
    return any(tensor.is_floating_point() for tensor in loaded.model.buffers())


def _added(total: Tensor | None, tensor: Tensor, share: float) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.clone() if total is None else total
    part = tensor.to(torch.float64) * share
    return part if total is None else total.add_(part)


def _checked(specs: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    if len(specs) < 2:
        raise UserError(f"{len(specs)} model is given, an average needs two or more: name further ones")
    if weights is None:
        return [1 / len(specs)] * len(specs)
    if len(weights) != len(specs):
        raise UserError(f"`--weights` has {len(weights)} numbers for {len(specs)} models: give one for each, such as 0.5,0.5")
    wrong = [weight for weight in weights if not (math.isfinite(weight) and weight >= 0)]
    if wrong or not math.isclose(math.fsum(weights), 1, abs_tol=1e-6):
        what = f"contains {wrong[0]:g}" if wrong else f"sums to {math.fsum(weights):g}"
        raise UserError(f"`--weights` {what}: give numbers from 0 on whose sum is 1, such as 0.3,0.7")
    return [float(weight) for weight in weights]


def _refuse_difference(first_spec: str, first: Loaded, spec: str, loaded: Loaded) -> None:
    """Two models with one name may differ in sizes, and two with different names may not."""
    if different := _differing(first.model.architecture, loaded.model.architecture):
        raise UserError(
            f"`{first_spec}` is a `{first.model.architecture.name}` and `{spec}` a `{loaded.model.architecture.name}`, which differ in "
            f"{', '.join(different)}: models of one architecture can be averaged"
        )
    if first.preprocess != loaded.preprocess:
        raise UserError(
            f"`{first_spec}` and `{spec}` prepare pictures differently ({first.preprocess.facts()}, {loaded.preprocess.facts()}): "
            "models that see the same can be averaged"
        )


def _differing(one: Architecture, other: Architecture) -> list[str]:
    mine, theirs = one.as_dict(), other.as_dict()
    return sorted(key for key in mine.keys() | theirs.keys() if key != "name" and mine.get(key) != theirs.get(key))
