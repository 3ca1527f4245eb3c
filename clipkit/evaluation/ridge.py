"""Ridge regression onto +1 / -1 per class in closed form: one eigendecomposition, and every strength is a product."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.evaluation.logistic import turn


class Ridge:
    """Classifiers of all strengths of one draw. Minimised: squared error + lambda x squared length of the weights; the bias is free."""

    def __init__(self, features_NF: NDArray[np.float32], labels_N: NDArray[np.int64]) -> None:
        """Raises UserError where there is one class alone, or features are not finite."""
        self.classes_C, own_N = np.unique(labels_N, return_inverse=True)
        if len(self.classes_C) < 2:
            raise UserError(f"all {len(labels_N)} training pictures are of class {labels_N[0]}: a classifier needs two classes or more")
        self._axes = turn(features_NF)
        turned_NF = self._axes.features_NF.double()
        counts_C = torch.from_numpy(np.bincount(own_N)).double()
        self._bias_C = 2 * counts_C / len(own_N) - 1
        self._spread_F = turned_NF.square().sum(dim=0)
        # Features times (targets - bias) without the N x C targets: those of a class are 1, all others -1.
        sums_CF = torch.zeros(len(self.classes_C), turned_NF.shape[1], dtype=torch.float64)
        sums_CF.index_add_(0, torch.from_numpy(own_N), turned_NF)
        self._product_FC = 2 * sums_CF.T - torch.outer(turned_NF.sum(dim=0), 1 + self._bias_C)

    def logits(self, features_NF: NDArray[np.float32], strengths: Sequence[float], num_classes: int) -> NDArray[np.float64]:
        """Scores (S, N, num_classes); minus infinity for classes that had no training pictures."""
        return np.stack(list(self.each(features_NF, strengths, num_classes)))

    def each(self, features_NF: NDArray[np.float32], strengths: Sequence[float], num_classes: int) -> Iterator[NDArray[np.float64]]:
        """The same, one strength (N, num_classes) after the other: many pictures of many classes are large."""
        turned_NF = (torch.from_numpy(features_NF).double() - self._axes.mean_F) @ self._axes.basis_FF
        for strength in strengths:
            logits_NC = np.full((len(features_NF), num_classes), -np.inf)
            weights_FC = self._product_FC / (self._spread_F + strength)[:, None]
            logits_NC[:, self.classes_C] = (turned_NF @ weights_FC + self._bias_C).numpy()
            yield logits_NC
