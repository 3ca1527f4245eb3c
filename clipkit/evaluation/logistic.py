"""L2-regularised multinomial logistic regression by L-BFGS, at many strengths at once (CLIP appendix A.3).

Minimised for each strength lambda: sum over pictures of cross-entropy + lambda / 2 x squared length of the weights; the bias is free.
With two classes the strength counts twice, which makes it scikit-learn's: one vector of weights there, the difference of two here.

The features are turned and shifted first, which changes nothing: a rotation keeps the penalty, the free bias takes up the shift. Along
the axes of their covariance the Hessian's diagonal comes near the Hessian, and L-BFGS begins from that diagonal instead of from a multiple
of the identity: tens of iterations where hundreds were needed. The diagonal is exact, of each class and strength, and taken again as the
probabilities change. Fewer pictures than features span few axes, and only those are kept.

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
"""A fit goes on until its loss has less than this share left to fall along the next direction, or fell by a tenth of it over `HISTORY`
iterations.

On digits and drawn classes every loss from lambda 1e-6 to 1e4 ended within 4e-5 of its optimum. It is a share of the loss, since a gradient
says little of small losses: scikit-learn's `tol` of 1e-4, on the gradient of the mean loss, stops at up to hundreds of times the optimum's
loss where strengths are small. When the paper was written it was on that of the sum.
"""
CHUNK_BYTES = 4 * 2**20
"""Of features and logits that are worked on at once: more would leave the processor's cache."""
SUFFICIENT = 1e-4
ROUNDING = 1e-7
"""Relative error of a loss that float32 logits give: a step may seem to rise by that much."""
MOST_TRIALS = 30
TENSORS_OF_WEIGHTS = 3 * HISTORY + 15
"""That the solver holds for each strength."""


class Axes(NamedTuple):
    """Features along the axes of their covariance."""

    features_NF: Tensor  # shifted and turned; F is at most N
    basis_FF: Tensor  # columns are the axes, float64
    mean_F: Tensor  # float64


class Start(NamedTuple):
    """Classifiers of S strengths to begin from, for the features as they were given."""

    weights_SCF: NDArray[np.float32]
    bias_SC: NDArray[np.float32]

    def take(self, which: Sequence[int]) -> "Start":
        """Those of some strengths."""
        return Start(self.weights_SCF[which], self.bias_SC[which])


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
    start: Start | None = None,
) -> Fitted:
    """Classifiers at all strengths (lambda), fitted together.

    As many at once as `memory_mb` megabytes of weights and histories hold, at least one; the answer is the same. `axes` saves turning
    features that were turned before. `start` are weights to begin from instead of 0, of the same classes. Raises UserError where there is
    one class alone, or features are not finite.
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
    parts = [order[first : first + at_once] for first in range(0, len(order), at_once)]
    begun = [None if start is None else start.take(part) for part in parts]
    with torch.inference_mode():  # a tenth of the time of small problems
        pairs = zip(parts, begun, strict=True)
        solved = [_Solver(problem, [strengths[i] for i in part], tolerance).solve(max_iterations, one) for part, one in pairs]
    joined = (np.concatenate(fields)[np.argsort(order)] for fields in zip(*solved, strict=True))
    weights_SCF, bias_SC, loss_S, iterations_S, converged_S = joined
    return Fitted(weights_SCF, bias_SC, classes_C, loss_S, iterations_S, converged_S)


class _Point(NamedTuple):
    """Weights of S strengths and what is known there. Weights have the bias as a last column: (S, C, F + 1)."""

    weights_SCG: Tensor
    loss_S: Tensor  # float64
    gradient_SCG: Tensor
    curvature_SCG: Tensor  # diagonal of the Hessian of the cross-entropy, here or at a point before

    def at(self, which_I: Tensor) -> "_Point":
        """Some of the strengths, in order."""
        return self if len(which_I) == len(self.loss_S) else _Point(*(field[which_I] for field in self))

    def moved(self, which_I: Tensor, other: "_Point") -> "_Point":
        """The same, but some strengths are elsewhere."""
        if len(which_I) == len(self.loss_S):
            return other
        return _Point(*(mine.index_copy(0, which_I, theirs) for mine, theirs in zip(self, other, strict=True)))


class _Problem:
    """The data term: what all strengths share."""

    def __init__(self, axes: Axes, labels_N: Tensor, classes: int) -> None:
        self.axes, self.labels_N, self.classes = axes, labels_N, classes
        self.count, self.width = axes.features_NF.shape

    def evaluate(self, weights_SCG: Tensor, known_SCG: Tensor | None = None) -> _Point:
        """Summed cross-entropy, its gradient, and the diagonal of its Hessian where none is known."""
        strengths, flat_MG = len(weights_SCG), weights_SCG.reshape(-1, self.width + 1)
        weights_MF, bias_M1 = flat_MG[:, :-1].contiguous(), flat_MG[:, -1:]
        loss_S = torch.zeros(strengths, dtype=torch.float64, device=flat_MG.device)
        gradient_MG = torch.zeros_like(flat_MG)
        curvature_MG = torch.zeros_like(flat_MG) if known_SCG is None else None
        rows = max(256, CHUNK_BYTES // (4 * (len(flat_MG) + self.width)))
        for features_BF, labels_B in zip(torch.split(self.axes.features_NF, rows), torch.split(self.labels_N, rows), strict=True):
            logits_MB = linear(weights_MF, features_BF).add_(bias_M1)
            loss_S += _residuals(logits_MB.view(strengths, self.classes, -1), labels_B)
            _add_products(gradient_MG, logits_MB, features_BF)
            if curvature_MG is not None:
                wrong_MB = logits_MB.abs_()  # 1 - p of the truth, p of the others
                _add_products(curvature_MG, wrong_MB - wrong_MB.square(), features_BF.square())
        curvature_SCG = known_SCG if curvature_MG is None else curvature_MG.view_as(weights_SCG)
        assert curvature_SCG is not None
        return _Point(weights_SCG, loss_S, gradient_MG.view_as(weights_SCG), curvature_SCG)

    def twisted(self, start: Start) -> Tensor:
        """Weights with bias (S, C, F + 1) for the features along their axes."""
        weights_SCF, bias_SC = (torch.from_numpy(part).to(self.axes.mean_F) for part in start)
        return torch.cat([weights_SCF @ self.axes.basis_FF, (bias_SC + weights_SCF @ self.axes.mean_F)[..., None]], dim=2).float()

    def untwisted(self, weights_SCG: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and bias for the features as they were given."""
        weights_SCF = weights_SCG[..., :-1].double() @ self.axes.basis_FF.T
        return weights_SCF, weights_SCG[..., -1].double() - weights_SCF @ self.axes.mean_F


def _add_products(sums_MG: Tensor, values_MB: Tensor, features_BF: Tensor) -> None:
    sums_MG[:, :-1] += linear(values_MB, features_BF.t())
    sums_MG[:, -1] += values_MB.sum(dim=1)


def _residuals(logits_SCB: Tensor, labels_B: Tensor) -> Tensor:
    """Summed cross-entropy (S); the logits become probabilities less the truth, in place.

    Neither is a difference of numbers near 1: a picture that is right by far keeps its small loss and gradient in float32.
    """
    index_S1B = labels_B.expand(len(logits_SCB), 1, -1)
    logits_SCB -= logits_SCB.amax(dim=1, keepdim=True)
    own_S1B = logits_SCB.gather(1, index_S1B)
    logits_SCB.exp_().scatter_(1, index_S1B, 0.0)
    others_S1B = logits_SCB.sum(dim=1, keepdim=True)
    total_S1B = others_S1B + own_S1B.exp()
    logits_SCB /= total_S1B
    logits_SCB.scatter_(1, index_S1B, -others_S1B / total_S1B)
    return (torch.log1p(others_S1B + own_S1B.expm1()) - own_S1B)[:, 0].sum(dim=1, dtype=torch.float64)


def _dot(a_SCG: Tensor, b_SCG: Tensor) -> Tensor:
    return (a_SCG * b_SCG).sum(dim=(1, 2), dtype=torch.float64)


class _State(NamedTuple):
    """Where the strengths that are still at work stand."""

    which_S: Tensor
    strength_S1G: Tensor  # of each weight, 0 for the bias
    point: _Point
    losses_SH: Tensor  # of the last iterations
    steps_SHM: Tensor  # of the last iterations, M = C x (F + 1); 0 where a pair is not used
    changes_SHM: Tensor  # of the gradient along them
    products_SHH: Tensor  # steps x changes, float64

    def keep(self, mask_S: Tensor) -> "_State":
        """The strengths of a mask."""
        if mask_S.all():
            return self
        fields = {name: field[mask_S] for name, field in self._asdict().items() if name != "point"}
        return _State(**fields, point=self.point.at(mask_S.nonzero()[:, 0]))


class _Solver:
    """One batch of strengths from the start to the end."""

    def __init__(self, problem: _Problem, strengths: Sequence[float], tolerance: float) -> None:
        self.problem, self.tolerance = problem, tolerance
        # With two classes the difference of their weights is what scikit-learn penalises: its square is twice the sum of theirs.
        doubled = 2 if problem.classes == 2 else 1
        self.strength_S1G = problem.axes.features_NF.new_tensor(strengths)[:, None, None] * doubled
        self.strength_S1G = self.strength_S1G.repeat(1, 1, problem.width + 1)
        self.strength_S1G[..., -1] = 0

    def solve(self, max_iterations: int, start: Start | None) -> tuple[NDArray[np.generic], ...]:
        """Weights, bias, loss, iterations and whether each converged, by strength."""
        state = self._start(start)
        count = len(state.which_S)
        weights_SCG, loss_S = torch.empty_like(state.point.weights_SCG), torch.empty_like(state.point.loss_S)
        iterations_S, converged_S = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=bool)
        can_move_S, refresh_at = torch.ones_like(state.which_S, dtype=torch.bool), 0
        for iteration in range(max_iterations + 1):
            direction_SCG, slope_S = _direction(state, iteration)
            done_S = self._has_ended(state, slope_S, iteration)
            leaves_S = done_S | ~can_move_S if iteration < max_iterations else torch.ones_like(done_S)
            if leaves_S.any():
                which = state.which_S[leaves_S].cpu().numpy()
                weights_SCG[which], loss_S[which] = state.point.weights_SCG[leaves_S], state.point.loss_S[leaves_S]
                iterations_S[which], converged_S[which] = iteration, done_S[leaves_S].cpu().numpy()
                if leaves_S.all():
                    break
                state, direction_SCG, slope_S = state.keep(~leaves_S), direction_SCG[~leaves_S], slope_S[~leaves_S]
            is_due = iteration >= refresh_at
            refresh_at = max(iteration + 1, iteration * 3 // 2) if is_due else refresh_at
            point, can_move_S = self._search(state, direction_SCG, slope_S, is_due=is_due)
            state = self._remember(state, point, iteration % HISTORY)
        weights_SCF, bias_SC = self.problem.untwisted(weights_SCG)
        return (weights_SCF.float().cpu().numpy(), bias_SC.float().cpu().numpy(), loss_S.cpu().numpy(), iterations_S, converged_S)

    def _start(self, start: Start | None) -> _State:
        strengths, classes, width = len(self.strength_S1G), self.problem.classes, self.problem.width + 1
        zeros_SCG = self.strength_S1G.new_zeros(strengths, classes, width)
        point = self._objective(zeros_SCG if start is None else self.problem.twisted(start), self.strength_S1G)
        empty_SHM = zeros_SCG.new_zeros(strengths, HISTORY, classes * width)
        losses_SH = point.loss_S.new_full((strengths, HISTORY), torch.inf)
        products_SHH = point.loss_S.new_zeros(strengths, HISTORY, HISTORY)
        which_S = torch.arange(strengths, device=zeros_SCG.device)
        return _State(which_S, self.strength_S1G, point, losses_SH, empty_SHM, empty_SHM.clone(), products_SHH)

    def _has_ended(self, state: _State, slope_S: Tensor, iteration: int) -> Tensor:
        """Which strengths have little left to fall, or a loss that has come to rest."""
        loss_S, place = state.point.loss_S, iteration % HISTORY
        fallen_S = state.losses_SH[:, place] - loss_S
        state.losses_SH[:, place] = loss_S
        least_S = self.tolerance * loss_S
        return (-slope_S <= least_S) | (fallen_S <= least_S / HISTORY)

    def _objective(self, weights_SCG: Tensor, strength_S1G: Tensor, known_SCG: Tensor | None = None) -> _Point:
        point = self.problem.evaluate(weights_SCG, known_SCG)
        pull_SCG = strength_S1G * weights_SCG
        return point._replace(loss_S=point.loss_S + _dot(pull_SCG, weights_SCG) / 2, gradient_SCG=point.gradient_SCG.add_(pull_SCG))

    def _search(self, state: _State, direction_SCG: Tensor, slope_S: Tensor, *, is_due: bool) -> tuple[_Point, Tensor]:
        """Backtracking by parabolas until each strength has fallen enough: the new point, and which strengths could move."""
        point, strength_S1G = state.point, state.strength_S1G
        open_I, size_I = torch.arange(len(slope_S), device=slope_S.device), torch.ones_like(slope_S)
        for _ in range(MOST_TRIALS):
            here, slope_I = state.point.at(open_I), slope_S[open_I]
            tried_ICG = here.weights_SCG + size_I.to(direction_SCG.dtype)[:, None, None] * direction_SCG[open_I]
            tried = self._objective(tried_ICG, strength_S1G[open_I], None if is_due else here.curvature_SCG)
            rise_I = tried.loss_S - here.loss_S
            falls_I = rise_I <= SUFFICIENT * size_I * slope_I + ROUNDING * here.loss_S.abs()
            point = point.moved(open_I[falls_I], tried.at(falls_I.nonzero()[:, 0]))
            if falls_I.all():
                return point, torch.ones_like(state.which_S, dtype=torch.bool)
            lowest_I = -slope_I * size_I**2 / (2 * (rise_I - slope_I * size_I)).clamp_min(1e-300)
            size_I = torch.minimum(torch.maximum(lowest_I.nan_to_num(0.0), size_I / 10), size_I / 2)[~falls_I]
            open_I = open_I[~falls_I]
        return point, torch.ones_like(state.which_S, dtype=torch.bool).index_fill(0, open_I, False)

    def _remember(self, state: _State, point: _Point, place: int) -> _State:
        """The state at the new point; the pair takes its place among the last ones, zeros where it is not usable."""
        step_SCG, change_SCG = point.weights_SCG - state.point.weights_SCG, point.gradient_SCG - state.point.gradient_SCG
        lengths_S = (_dot(step_SCG, step_SCG) * _dot(change_SCG, change_SCG)).sqrt()
        is_usable_S11 = (_dot(step_SCG, change_SCG) > 1e-10 * lengths_S)[:, None, None]
        state.steps_SHM[:, place] = (step_SCG * is_usable_S11).flatten(1)
        state.changes_SHM[:, place] = (change_SCG * is_usable_S11).flatten(1)
        state.products_SHH[:, place] = _with_each(state.changes_SHM, state.steps_SHM[:, place])
        state.products_SHH[:, :, place] = _with_each(state.steps_SHM, state.changes_SHM[:, place])
        return state._replace(point=point)


def _with_each(vectors_SHM: Tensor, vector_SM: Tensor) -> Tensor:
    """Dot products (S, H) in float64."""
    return torch.bmm(vectors_SHM, vector_SM[..., None])[..., 0].double()


def _combined(factors_SH: Tensor, vectors_SHM: Tensor) -> Tensor:
    return torch.bmm(factors_SH[:, None].to(vectors_SHM.dtype), vectors_SHM)[:, 0]


def _direction(state: _State, iteration: int) -> tuple[Tensor, Tensor]:
    """Minus the inverse Hessian of L-BFGS (Byrd, Nocedal and Schnabel 1994, theorem 2.2) times the gradient, and the slope along it.

    It begins from the inverse of the diagonal, scaled so that it is right along the last step.
    """
    curvature_SCG = state.point.curvature_SCG + state.strength_S1G
    # The smallest axes are rounding alone.
    inverse_SM = 1 / curvature_SCG.clamp_min(curvature_SCG.amax(dim=2, keepdim=True) * 1e-12).flatten(1)
    gradient_SM = state.point.gradient_SCG.flatten(1)
    bent_SHM = state.changes_SHM * inverse_SM[:, None]
    order_H = torch.tensor([(iteration + age) % HISTORY for age in range(HISTORY)], device=gradient_SM.device)  # oldest first
    products_SHH = state.products_SHH[:, order_H[:, None], order_H]
    bends_SHH = torch.bmm(bent_SHM, state.changes_SHM.mT)[:, order_H[:, None], order_H].double()
    along_SH = products_SHH.diagonal(dim1=1, dim2=2)
    scale_S1 = torch.where(along_SH[:, -1] > 0, along_SH[:, -1] / bends_SHH[:, -1, -1], 1.0)[:, None]
    upper_SHH = products_SHH.triu() + torch.diag_embed((along_SH == 0).double())  # a pair that is not used is zeros
    first_SH1 = torch.linalg.solve_triangular(upper_SHH, _with_each(state.steps_SHM, gradient_SM)[:, order_H, None], upper=True)
    bent_SH = (bends_SHH @ first_SH1)[..., 0] - _with_each(bent_SHM, gradient_SM)[:, order_H]
    right_SH1 = along_SH[..., None] * first_SH1 + (scale_S1 * bent_SH)[..., None]
    second_SH1 = torch.linalg.solve_triangular(upper_SHH.mT, right_SH1, upper=False)
    back_H = order_H.argsort()
    plain_SM, scale_S1 = inverse_SM * gradient_SM, scale_S1.to(inverse_SM.dtype)
    of_steps_SM = _combined(second_SH1[:, back_H, 0], state.steps_SHM)
    of_changes_SM = _combined(first_SH1[:, back_H, 0], bent_SHM)
    direction_SM = -(of_steps_SM + scale_S1 * (plain_SM - of_changes_SM))
    direction_SM = torch.where((direction_SM * gradient_SM).sum(dim=1, keepdim=True) < 0, direction_SM, -plain_SM)
    direction_SCG = direction_SM.view_as(curvature_SCG)
    return direction_SCG, _dot(direction_SCG, state.point.gradient_SCG)
