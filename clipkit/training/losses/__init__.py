"""The loss functions: vectors to a number, in float32 or better, exact on any number of ranks."""

from clipkit.training.losses.contrastive import contrastive_loss
from clipkit.training.losses.distillation import distillation_loss
from clipkit.training.losses.separation import separation_loss
from clipkit.training.losses.sigmoid import sigmoid_loss
from clipkit.training.losses.vocabulary import log_likelihood

__all__ = ["contrastive_loss", "distillation_loss", "log_likelihood", "separation_loss", "sigmoid_loss"]
