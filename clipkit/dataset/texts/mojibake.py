"""Repair of texts that were decoded with the wrong character set or escaped once too often.

"CafÃ© &amp;amp; bar" becomes "Café & bar". The repair is ftfy's: encode the text back into each usual 8-bit character set and see
whether UTF-8 comes out, where its heuristic finds combinations of characters that no language has. Two regular expressions find
the few texts that need it first, so that a clean text costs a fraction of a microsecond.
"""

import functools
import re

import ftfy
import pyarrow as pa
import pyarrow.compute as pc
from ftfy.badness import BADNESS_RE
from ftfy.fixes import unescape_html

__all__ = ["MAX_ROUNDS", "UNLIKELY", "repair", "repair_mojibake"]

MAX_ROUNDS = 10
"""A text that was broken or escaped more often than this was made to keep us busy."""

_SOFT_HYPHEN = "\u00ad"
_ENTITY = "&#?[0-9A-Za-z]{1,24};"


def _for_arrow(pattern: str) -> str:
    r"""A verbose Python pattern as one for RE2: no comments, no layout; \s and \w, which RE2 takes as ASCII only, by Unicode's classes."""
    plain = re.sub(r"(\[[^\]]*\])|#.*|\s+", lambda match: match[1] or "", pattern)
    return plain.replace(r"\s", r"[\s\x{0b}\x{1c}-\x{1f}\x{85}\pZ]").replace(r"\w", r"[\pL\pN_]")


UNLIKELY = _for_arrow(BADNESS_RE.pattern)
"""RE2 pattern of character combinations that are nearly always mojibake: ftfy's heuristic."""


def repair_mojibake(texts: pa.StringArray) -> tuple[pa.StringArray, pa.BooleanArray]:
    """Texts with broken characters and left-over HTML entities repaired and without soft hyphens, and which changed; null stays null.

    Repairing twice changes nothing more, and no text gets more characters than it had.
    """
    looks = [pc.match_substring_regex(texts, pattern) for pattern in (_ENTITY, UNLIKELY, _SOFT_HYPHEN)]
    suspect = pc.fill_null(functools.reduce(pc.or_, looks), False)
    repaired = pa.array([repair(text) for text in texts.filter(suspect).to_pylist()], pa.string())
    result = pc.replace_with_mask(texts, suspect, repaired)
    return result, pc.fill_null(pc.not_equal(result, texts), False)


def repair(text: str) -> str:
    """One text, repaired until nothing changes, without soft hyphens and with the white space folded that entities stood for.

    What does not settle within MAX_ROUNDS is left as it is.
    """
    fixed = text
    for _ in range(MAX_ROUNDS):
        before = fixed
        fixed = ftfy.fix_encoding(unescape_html(before))
        if fixed == before:  # what soft hyphens there are now are no part of a broken letter
            fixed = before.replace(_SOFT_HYPHEN, "")
        if fixed == before:
            return fixed
        fixed = " ".join(fixed.split())
    return text
