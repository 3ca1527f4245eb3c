"""The model of a run as an encoder, while it trains: training goes on after an evaluation as if there had been none."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from clipkit import UserError
from clipkit.model.encoder import Encoded, Encoder
from clipkit.model.tokenizer import Tokenizer
from clipkit.model.vectors import encode_in_batches, unit
from clipkit.training.scoring import AUTOCAST
from clipkit.training.state import State

Evaluate = Callable[[Encoder], dict[str, Any]]
"""Called between two steps on every rank, with the model as it is; what it answers is a line of metrics.jsonl, the same on all ranks.

Sentences under PROBLEMS are no part of the line: they are said to the person watching, each once.
"""

PROBLEMS = "problems"


class LiveEncoder:
    """A view of the model in training: nothing is copied, nothing rearranged. Use it inside `view`."""

    name = "the model in training"
    has_text = True

    def __init__(self, state: State, *, precision: str) -> None:
        """`precision`: the recipe's."""
        self._state = state
        self.precision = precision

    @classmethod
    @contextlib.contextmanager
    def view(cls, state: State, *, precision: str) -> Iterator[Self]:
        """The model in evaluation mode, so that batch normalisation and dropped patches are not touched; afterwards it trains again.

        What an evaluation draws at random is drawn beside the training's own numbers.
        """
        devices = [state.device] if state.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            modes = [(part, part.training) for part in state.model.modules()]  # a frozen tower may not be in training mode
            state.model.eval()
            try:
                with torch.autocast(state.device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
                    yield cls(state, precision=precision)
            finally:
                for part, mode in modes:
                    part.training = mode

    @property
    def fingerprint(self) -> str:
        """None: the weights change with every step, and nothing about them may be kept."""
        raise UserError("a model in training has no fingerprint: its embeddings cannot be kept")

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by."""
        return float(self._state.model.logit_scale.detach().exp())

    @property
    def feature_width(self) -> int:
        """F of `features_BF`."""
        return self._state.model.architecture.feature_width

    @property
    def width(self) -> int:
        """D of `projected_BD` and of texts."""
        return self._state.model.architecture.embed_width

    def preprocess(self, image: bytes | Image.Image) -> Tensor:
        """uint8 (3, size, size). Raises UndecodableImage."""
        return self._state.preprocess(image)

    def encode_images(self, pixels_BCHW: Tensor) -> Encoded:
        """uint8 pixels -> vectors."""
        state = self._state
        pixels_BCHW = pixels_BCHW.to(state.device, non_blocking=True).contiguous(memory_format=state.layout)
        features_BF, projected_BD = state.model.encode_image(state.preprocess.normalise(pixels_BCHW))
        return Encoded(features_BF.float().cpu(), unit(projected_BD.float()).cpu())

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """In batches, each as long as its longest text."""
        return encode_in_batches(texts, self.width, self._encode_batch)

    def _encode_batch(self, texts: Sequence[str]) -> Tensor:
        state = self._state
        tokens_BL = Tokenizer(state.model.architecture.context)(texts).to(state.device)
        return unit(state.model.encode_text(tokens_BL).float()).cpu()
