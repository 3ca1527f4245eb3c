"""Text to tokens: CLIP's lower-cased byte-pair encoding, equal to OpenAI's and open_clip's (CLIP section 2.4).

Each code point was compared with open_clip's tokens; `benchmarks/parity/compare_inputs.py` compares captions and generated strings. Three
things are taken apart elsewhere: an iota below that is apart from its letter (U+0345), a long s right after an apostrophe, and letters
that are younger than the tables of the compiled tokenizer.
"""

import functools
import html
from collections.abc import Sequence

import ftfy
import instant_clip_tokenizer
import numpy as np
import torch
from torch import Tensor

from clipkit.model.architectures import VOCABULARY

START_OF_TEXT = VOCABULARY - 2
END_OF_TEXT = VOCABULARY - 1

MAX_CHARACTERS = 20_000
"""Of a longer text only the beginning is read: it has more tokens than any context, and mending megabytes would take seconds."""


class Tokenizer:
    """Texts to token ids of at most `context_length`, start and end included."""

    def __init__(self, context_length: int = 77) -> None:
        """`context_length`: the architecture's `text.context`."""
        self.context_length = context_length

    def __call__(self, texts: Sequence[str], *, padded: bool = False) -> Tensor:
        """Token ids (B, L) int64, zeros after end-of-text.

        L is the longest text of the batch, or with `padded` the context: features are the same, as no token sees a later one. A text
        that is too long is cut, its last token then is end-of-text.
        """
        if not texts:
            return torch.zeros(0, self.context_length if padded else 0, dtype=torch.int64)
        cleaned = [clean(text) for text in texts]
        ids_BL: np.ndarray = _vocabulary().tokenize_batch(cleaned, context_length=self.context_length)
        length = self.context_length if padded else int((ids_BL == END_OF_TEXT).argmax(axis=1).max()) + 1
        return torch.from_numpy(ids_BL[:, :length].astype(np.int64))


def count_over_context(texts: Sequence[str], context: int = 77) -> int:
    """Texts of more tokens than the context holds, start and end included: what a text tower cuts."""
    ids_BL = Tokenizer(context + 1)(texts, padded=True)
    return int((ids_BL[:, context] == END_OF_TEXT).sum()) if texts else 0


def clean(text: str) -> str:
    """Broken encodings mended, HTML entities resolved twice, white space folded, lower case: as the published tokenizers do."""
    text = text.lstrip()[:MAX_CHARACTERS] if len(text) > MAX_CHARACTERS else text
    if not _is_plain(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
        # Entities can name lone surrogates, which no encoding can express.
        text = text.encode("utf-8", errors="replace").decode("utf-8")
    return " ".join(text.split()).lower()


def _is_plain(text: str) -> bool:
    """Whether mending can change nothing: printable ASCII without entities. Ten times faster than mending, and most captions are."""
    return text.isascii() and text.isprintable() and "&" not in text


@functools.cache
def _vocabulary() -> instant_clip_tokenizer.Tokenizer:
    return instant_clip_tokenizer.Tokenizer()
