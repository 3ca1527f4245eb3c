"""Ridge regression onto +1 / -1 per class in closed form: one eigendecomposition, and every strength is a product."""

from collections.abc import Sequence

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
        targets_NC = 2.0 * torch.nn.functional.one_hot(torch.from_numpy(own_N), len(self.classes_C)) - 1
        self._bias_C = targets_NC.mean(dim=0, dtype=torch.float64)
        self._spread_F = turned_NF.square().sum(dim=0)
        self._product_FC = turned_NF.T @ (targets_NC - self._bias_C)

    def logits(self, features_NF: NDArray[np.float32], strengths: Sequence[float], num_classes: int) -> NDArray[np.float64]:
        """Scores (S, N, num_classes); minus infinity for classes that had no training pictures."""
        turned_NF = (torch.from_numpy(features_NF).double() - self._axes.mean_F) @ self._axes.basis_FF
        logits_SNC = np.full((len(strengths), len(features_NF), num_classes), -np.inf)
        for i, strength in enumerate(strengths):
            weights_FC = self._product_FC / (self._spread_F + strength)[:, None]
            logits_SNC[i][:, self.classes_C] = (turned_NF @ weights_FC + self._bias_C).numpy()
        return logits_SNC
