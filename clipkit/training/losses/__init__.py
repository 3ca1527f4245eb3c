"""The loss functions: vectors to a number, in float32 or better, exact on any number of ranks."""

from clipkit.training.losses.contrastive import contrastive_loss
from clipkit.training.losses.vocabulary import log_likelihood

__all__ = ["contrastive_loss", "log_likelihood"]
