"""L2-regularised multinomial logistic regression by L-BFGS, at many strengths at once (CLIP appendix A.3).

Minimised for each strength lambda: sum over pictures of cross-entropy + lambda / 2 x squared length of the weights; the bias is free.
With two classes the strength counts twice, which makes it scikit-learn's: one vector of weights there, the difference of two here.

The features are turned and shifted first, which changes nothing: a rotation keeps the penalty, the free bias takes up the shift. Along
the axes of their covariance a diagonal, curvature x variance + lambda, comes near the Hessian of every strength, and L-BFGS begins from
that diagonal instead of from a multiple of the identity: tens of iterations where hundreds were needed. Fewer pictures than features
span few axes, and only those are kept.

Weights of S strengths are S x C x F. One product gives the logits of all strengths for a chunk of pictures; each strength has a line
search and a history of its own, and leaves when it has converged. Products are float32, sums and decisions float64.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit import UserError
from clipkit.model.linear import linear

HISTORY = 10
TOLERANCE = 1e-6
"""On the largest component of the gradient of the mean loss.

scikit-learn's `tol` is 1e-4, which it often reaches before the optimum of a small strength; along these axes 1e-4 comes earlier still, at
up to 3.3 times scikit-learn's loss. A gradient says little of small losses: `FLAT` has to hold too.
"""
FLAT = 1e-6
"""A fit goes on until its loss has less than this share left to fall along the next direction, or fell by less over `HISTORY` iterations.

On digits and on drawn classes every loss from lambda 1e-6 to 1e6 ended within 6e-6 of its optimum; scikit-learn's ended at up to hundreds
of times theirs where strengths are small, so that a search may choose another strength than its search does.
"""
CHUNK_BYTES = 4 * 2**20
"""Of logits that are made at once: more would leave the processor's cache."""
SUFFICIENT = 1e-4
ROUNDING = 1e-7
"""Relative error of a loss that float32 logits give: a step may seem to rise by that much."""
MOST_TRIALS = 30
TENSORS_OF_WEIGHTS = 2 * HISTORY + 10
"""That the solver holds for each strength."""


class Axes(NamedTuple):
    """Features along the axes of their covariance."""

    features_NF: Tensor  # shifted and turned; F is at most N
    basis_FF: Tensor  # columns are the axes, float64
    mean_F: Tensor  # float64


class Fitted(NamedTuple):
    """Classifiers of S strengths, in the order asked for."""

    weights_SCF: NDArray[np.float32]
    bias_SC: NDArray[np.float32]
    classes_C: NDArray[np.int64]
    loss_S: NDArray[np.float64]  # the whole objective, summed over pictures
    iterations_S: NDArray[np.int64]
    converged_S: NDArray[np.bool_]

    def logits(self, which: int, features_NF: NDArray[np.float32], num_classes: int) -> NDArray[np.float32]:
        """Logits (N, num_classes) of one strength; minus infinity for classes that had no training pictures."""
        logits_NC = np.full((len(features_NF), num_classes), -np.inf, dtype=np.float32)
        given = torch.from_numpy(np.ascontiguousarray(features_NF, dtype=np.float32))
        logits_NC[:, self.classes_C] = linear(given, torch.from_numpy(self.weights_SCF[which])).numpy() + self.bias_SC[which]
        return logits_NC


def turn(features_NF: NDArray[np.float32], *, device: str | torch.device = "cpu") -> Axes:
    """The features along their axes. Raises UserError where they hold NaN or infinity."""
    given_NF = torch.from_numpy(np.ascontiguousarray(features_NF, dtype=np.float32)).to(device)
    broken_N = ~given_NF.isfinite().all(dim=1)
    if broken_N.any():
        raise UserError(f"the features of picture {int(broken_N.int().argmax())} hold NaN or infinity: encode the pictures again")
    mean_F = given_NF.mean(dim=0, dtype=torch.float64)
    centred_NF = given_NF - mean_F.float()
    basis_FF = _few_axes(centred_NF) if len(given_NF) <= given_NF.shape[1] else _all_axes(centred_NF)
    return Axes(linear(centred_NF, basis_FF.T.float().contiguous()), basis_FF, mean_F)


def _all_axes(centred_NF: Tensor) -> Tensor:
    transposed_FN = centred_NF.t()
    axes_FF: Tensor = torch.linalg.eigh(linear(transposed_FN, transposed_FN).double()).eigenvectors
    return axes_FF


def _few_axes(centred_NF: Tensor) -> Tensor:
    """Where there are no more pictures than features: an orthogonal basis of what they span."""
    orthogonal_FN, triangle_NN = torch.linalg.qr(centred_NF.double().t())
    axes_FN: Tensor = orthogonal_FN @ torch.linalg.eigh(triangle_NN @ triangle_NN.t()).eigenvectors
    return axes_FN


def fit_strengths(
    features_NF: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    strengths: Sequence[float],
    *,
    max_iterations: int = 1_000,
    tolerance: float = TOLERANCE,
    memory_mb: int = 1_024,
    device: str | torch.device = "cpu",
    axes: Axes | None = None,
) -> Fitted:
    """Classifiers at all strengths (lambda), fitted together.

    As many at once as `memory_mb` megabytes of weights and histories hold, at least one; the answer is the same. `axes` saves turning
    features that were turned before. Raises UserError where there is one class alone, or features are not finite.
    """
    if (labels_N == labels_N[0]).all():
        raise UserError(f"all {len(labels_N)} training pictures are of class {labels_N[0]}: a probe needs two classes or more")
    axes = turn(features_NF, device=device) if axes is None else axes
    classes_C, own_N = np.unique(labels_N, return_inverse=True)
    problem = _Problem(axes, torch.from_numpy(own_N).to(device), len(classes_C))
    bytes_each = 4 * TENSORS_OF_WEIGHTS * len(classes_C) * (axes.features_NF.shape[1] + 1)
    at_once = max(1, int(memory_mb * 1e6 / bytes_each))
    # Neighbours need about as many iterations as each other: ordered, a batch ends together.
    order = sorted(range(len(strengths)), key=lambda i: -strengths[i])
    parts = [order[start : start + at_once] for start in range(0, len(order), at_once)]
    solved = [_Solver(problem, [strengths[i] for i in part], tolerance).solve(max_iterations) for part in parts]
    joined = (np.concatenate(fields)[np.argsort(order)] for fields in zip(*solved, strict=True))
    weights_SCF, bias_SC, loss_S, iterations_S, converged_S = joined
    return Fitted(weights_SCF, bias_SC, classes_C, loss_S, iterations_S, converged_S)


class _Problem:
    """The data term: what all strengths share. Weights here have the bias as a last column: (S, C, F + 1)."""

    def __init__(self, axes: Axes, labels_N: Tensor, classes: int) -> None:
        self.axes, self.labels_N, self.classes = axes, labels_N, classes
        self.count, self.width = axes.features_NF.shape
        self.spread_F1 = torch.cat([axes.features_NF.square().sum(dim=0), axes.features_NF.new_tensor([self.count])])
        # The smallest axes are rounding alone.
        self.spread_F1 = self.spread_F1.clamp_min(float(self.spread_F1.max()) * 1e-12)

    def evaluate(self, weights_SCG: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy (S) in float64 and its gradient (S, C, F + 1)."""
        strengths, flat_MG = len(weights_SCG), weights_SCG.reshape(-1, self.width + 1)
        weights_MF, bias_M = flat_MG[:, :-1].contiguous(), flat_MG[:, -1].contiguous()
        loss_S = torch.zeros(strengths, dtype=torch.float64, device=flat_MG.device)
        gradient_MG = torch.zeros_like(flat_MG)
        rows = max(256, CHUNK_BYTES // (4 * len(flat_MG)))
        for features_BF, labels_B in zip(torch.split(self.axes.features_NF, rows), torch.split(self.labels_N, rows), strict=True):
            logits_BM = linear(features_BF, weights_MF, bias_M)
            loss_S += _residuals(logits_BM.view(len(features_BF), strengths, -1), labels_B)
            gradient_MG[:, :-1] += linear(logits_BM.t(), features_BF.t())
            gradient_MG[:, -1] += logits_BM.sum(dim=0)
        return loss_S, gradient_MG.view_as(weights_SCG)

    def steepest(self, gradient_SCG: Tensor) -> Tensor:
        """The largest component (S) of the gradient in the features as they were given, of the mean loss."""
        axes, of_bias_SC = self.axes, gradient_SCG[..., -1:]
        given_SCF = linear(gradient_SCG[..., :-1], axes.basis_FF.float()) + of_bias_SC * axes.mean_F.float()
        return torch.maximum(given_SCF.abs().amax(dim=(1, 2)), of_bias_SC.abs().amax(dim=(1, 2))).double() / self.count

    def untwisted(self, weights_SCG: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and bias for the features as they were given."""
        weights_SCF = weights_SCG[..., :-1].double() @ self.axes.basis_FF.T
        return weights_SCF, weights_SCG[..., -1].double() - weights_SCF @ self.axes.mean_F


def _residuals(logits_BSC: Tensor, labels_B: Tensor) -> Tensor:
    """Summed cross-entropy (S); the logits become probabilities less the truth, in place.

    Neither is a difference of numbers near 1: a picture that is right by far keeps its small loss and gradient in float32.
    """
    index_BS1 = labels_B[:, None, None].expand(-1, logits_BSC.shape[1], 1)
    logits_BSC -= logits_BSC.amax(dim=2, keepdim=True)
    own_BS1 = logits_BSC.gather(2, index_BS1)
    logits_BSC.exp_().scatter_(2, index_BS1, 0.0)
    others_BS1 = logits_BSC.sum(dim=2, keepdim=True)
    total_BS1 = others_BS1 + own_BS1.exp()
    logits_BSC /= total_BS1
    logits_BSC.scatter_(2, index_BS1, -others_BS1 / total_BS1)
    return (torch.log1p(others_BS1 + own_BS1.expm1()) - own_BS1)[..., 0].sum(dim=0, dtype=torch.float64)


def _dot(a_SCG: Tensor, b_SCG: Tensor) -> Tensor:
    return (a_SCG * b_SCG).sum(dim=(1, 2), dtype=torch.float64)


class _State(NamedTuple):
    """Where the strengths that are still at work stand."""

    which_S: Tensor
    strength_SCG: Tensor  # of each weight, 0 for the bias (S, 1, F + 1)
    weights_SCG: Tensor
    loss_S: Tensor
    gradient_SCG: Tensor
    curvature_S: Tensor  # of the loss along the last step, in units of the features' spread
    steps_HSCG: Tensor
    changes_HSCG: Tensor
    inverse_HS: Tensor  # 1 / (step . change); 0 where a pair is not used
    losses_HS: Tensor  # of the last iterations

    def keep(self, mask_S: Tensor) -> "_State":
        """The strengths of a mask."""
        if mask_S.all():
            return self
        return _State(*(x[:, mask_S] if name.endswith(("HSCG", "HS")) else x[mask_S] for name, x in zip(self._fields, self, strict=True)))


class _Solver:
    """One batch of strengths from a cold start to the end."""

    def __init__(self, problem: _Problem, strengths: Sequence[float], tolerance: float) -> None:
        self.problem, self.tolerance = problem, tolerance
        # With two classes the difference of their weights is what scikit-learn penalises: its square is twice the sum of theirs.
        doubled = 2 if problem.classes == 2 else 1
        self.strength_SCG = problem.spread_F1.new_tensor(strengths)[:, None, None] * doubled
        self.strength_SCG = self.strength_SCG.repeat(1, 1, problem.width + 1)
        self.strength_SCG[..., -1] = 0

    def solve(self, max_iterations: int) -> tuple[NDArray[np.generic], ...]:
        """Weights, bias, loss, iterations and whether each converged, by strength."""
        state = self._start()
        count = len(state.which_S)
        weights_SCG, loss_S = torch.empty_like(state.weights_SCG), torch.empty_like(state.loss_S)
        iterations_S, converged_S = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=bool)
        can_move_S = torch.ones_like(state.which_S, dtype=torch.bool)
        for iteration in range(max_iterations + 1):
            direction_SCG = _direction(state, self.problem.spread_F1, iteration)
            slope_S = _dot(state.gradient_SCG, direction_SCG)
            done_S = self._has_ended(state, slope_S, iteration)
            leaves_S = done_S | ~can_move_S if iteration < max_iterations else torch.ones_like(done_S)
            which = state.which_S[leaves_S].cpu().numpy()
            weights_SCG[which], loss_S[which] = state.weights_SCG[leaves_S], state.loss_S[leaves_S]
            iterations_S[which], converged_S[which] = iteration, done_S[leaves_S].cpu().numpy()
            if leaves_S.all():
                break
            state, can_move_S = self._step(state.keep(~leaves_S), direction_SCG[~leaves_S], slope_S[~leaves_S], iteration)
        weights_SCF, bias_SC = self.problem.untwisted(weights_SCG)
        return (weights_SCF.float().cpu().numpy(), bias_SC.float().cpu().numpy(), loss_S.cpu().numpy(), iterations_S, converged_S)

    def _has_ended(self, state: _State, slope_S: Tensor, iteration: int) -> Tensor:
        """Which strengths have a small gradient and little left to fall, or a loss that has come to rest."""
        before_S = state.losses_HS[iteration % HISTORY].clone()
        state.losses_HS[iteration % HISTORY] = state.loss_S
        least_S = FLAT * state.loss_S
        at_optimum_S = (self.problem.steepest(state.gradient_SCG) <= self.tolerance) & (-slope_S <= least_S)
        return at_optimum_S | (before_S - state.loss_S <= least_S)

    def _start(self) -> _State:
        strengths, shape = len(self.strength_SCG), (len(self.strength_SCG), self.problem.classes, self.problem.width + 1)
        weights_SCG = self.strength_SCG.new_zeros(shape)
        loss_S, gradient_SCG = self._objective(weights_SCG, self.strength_SCG)
        # Of equal probabilities the Hessian is this multiple of the spread, so that the first step is Newton's.
        curvature_S = loss_S.new_full((strengths,), 1 / self.problem.classes)
        empty_HSCG = weights_SCG.new_zeros(HISTORY, *shape)
        which_S = torch.arange(strengths, device=weights_SCG.device)
        inverse_HS, losses_HS = loss_S.new_zeros(HISTORY, strengths), loss_S.new_full((HISTORY, strengths), torch.inf)
        pairs = (empty_HSCG, empty_HSCG.clone(), inverse_HS)
        return _State(which_S, self.strength_SCG, weights_SCG, loss_S, gradient_SCG, curvature_S, *pairs, losses_HS)

    def _objective(self, weights_SCG: Tensor, strength_SCG: Tensor) -> tuple[Tensor, Tensor]:
        loss_S, gradient_SCG = self.problem.evaluate(weights_SCG)
        pull_SCG = strength_SCG * weights_SCG
        return loss_S + _dot(pull_SCG, weights_SCG) / 2, gradient_SCG.add_(pull_SCG)

    def _step(self, state: _State, direction_SCG: Tensor, slope_S: Tensor, iteration: int) -> tuple[_State, Tensor]:
        """One iteration; also which strengths could move."""
        size_S, loss_S, gradient_SCG = self._search(state, direction_SCG, slope_S)
        step_SCG = direction_SCG.mul_(size_S.to(direction_SCG.dtype)[:, None, None])
        change_SCG = gradient_SCG - state.gradient_SCG
        self._remember(state, step_SCG, change_SCG, iteration % HISTORY)
        of_data_S = _dot(step_SCG, change_SCG - state.strength_SCG * step_SCG)
        curvature_S = of_data_S / _dot(step_SCG, self.problem.spread_F1 * step_SCG).clamp_min(1e-300)
        trusted_S = (curvature_S > 0) & curvature_S.isfinite()
        curvature_S = torch.where(trusted_S, curvature_S, state.curvature_S)
        moved = state._replace(weights_SCG=state.weights_SCG + step_SCG, loss_S=loss_S, gradient_SCG=gradient_SCG, curvature_S=curvature_S)
        return moved, size_S > 0

    def _search(self, state: _State, direction_SCG: Tensor, slope_S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Backtracking by parabolas until each strength has fallen enough: size of its step (0: none falls), loss and gradient there."""
        size_S, loss_S, gradient_SCG = torch.ones_like(slope_S), state.loss_S.clone(), state.gradient_SCG.clone()
        open_S = torch.ones_like(slope_S, dtype=torch.bool)
        for _ in range(MOST_TRIALS):
            tried_SCG = state.weights_SCG[open_S] + size_S[open_S].to(direction_SCG.dtype)[:, None, None] * direction_SCG[open_S]
            losses, gradients = self._objective(tried_SCG, state.strength_SCG[open_S])
            size, slope, before = size_S[open_S], slope_S[open_S], state.loss_S[open_S]
            falls = losses <= before + SUFFICIENT * size * slope + ROUNDING * before.abs()
            lowest = -slope * size**2 / (2 * (losses - before - slope * size)).clamp_min(1e-300)
            found = open_S.nonzero()[:, 0][falls]
            loss_S[found], gradient_SCG[found] = losses[falls], gradients[falls]
            size_S[open_S] = torch.where(falls, size, torch.minimum(torch.maximum(lowest.nan_to_num(0.0), size / 10), size / 2))
            open_S[found] = False
            if not open_S.any():
                break
        return size_S.masked_fill(open_S, 0.0), loss_S, gradient_SCG

    def _remember(self, state: _State, step_SCG: Tensor, change_SCG: Tensor, place: int) -> None:
        product_S = _dot(step_SCG, change_SCG)
        usable_S = product_S > 1e-10 * (_dot(step_SCG, step_SCG) * _dot(change_SCG, change_SCG)).sqrt()
        state.steps_HSCG[place], state.changes_HSCG[place] = step_SCG, change_SCG
        state.inverse_HS[place] = torch.where(usable_S, 1 / product_S, 0.0)


def _direction(state: _State, spread_F1: Tensor, iteration: int) -> Tensor:
    """The two loops of L-BFGS around the diagonal of spread and strength."""
    held = [(iteration - 1 - age) % HISTORY for age in range(min(iteration, HISTORY))]  # newest first
    left_SCG, factors = state.gradient_SCG.clone(), {}
    for place in held:
        factors[place] = (state.inverse_HS[place] * _dot(state.steps_HSCG[place], left_SCG)).to(left_SCG.dtype)[:, None, None]
        left_SCG -= factors[place] * state.changes_HSCG[place]
    left_SCG /= state.curvature_S.to(left_SCG.dtype)[:, None, None] * spread_F1 + state.strength_SCG
    for place in reversed(held):
        back = (state.inverse_HS[place] * _dot(state.changes_HSCG[place], left_SCG)).to(left_SCG.dtype)[:, None, None]
        left_SCG += (factors[place] - back) * state.steps_HSCG[place]
    return left_SCG.neg_()
