"""Texts to tokens, the same for queries and for captions: clipkit's normaliser, and MetaCLIP's spacing rule.

A query is in a text where its tokens stand in a row in the text's tokens. Tokens are bytes of one buffer, found for a whole column at
once: plain ASCII by a table over bytes, other texts by `normalise`, which is the definition.
"""

import functools
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["TOKENISE", "Mode", "Tokens", "normalise"]

Mode = Literal["tokens", "metaclip"]
Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_SPACE, _WORD_BYTES = 0x20, 8
_IGNORED = "".join(
    (
        "\u00ad\u034f\u061c\u180b-\u180f\u200c-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef",
        "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7",  # Hebrew points and accents
        "\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed",  # Arabic vowel signs, tatweel
        "\u20dd-\u20e0\u20e2-\u20e4",  # the frames of keycaps and their like
    )
)
_APOSTROPHES = "’‘ʼʻ"
_SPACELESS = (
    "THAI ",
    "LAO ",
    "KHMER ",
    "MYANMAR ",
    "TIBETAN ",
    "TAI ",
    "NEW TAI ",
    "CJK ",
    "HIRAGANA ",
    "KATAKANA",
    "IDEOGRAPHIC ",
    "BOPOMOFO ",
)
"""How the names begin of letters in scripts that are written without spaces."""
_APART_FORMS = ("<circle>", "<square>", "<compat>", "<fraction>")
_BASIC, _ASTRAL = (0, 0x10000), (0x10000, sys.maxunicode + 1)
_METACLIP_WRAPPED, _METACLIP_BLANKS = "[,.;:?!`]", "[\t\n\r]"


class Tokens(NamedTuple):
    """The tokens of a column of texts, in order: where each lies in `data` (which 8 zero bytes end), and the text it is of."""

    data: Bytes
    starts_T: Int64s
    lengths_T: Int64s
    rows_T: Int64s

    def of(self, is_wanted: npt.NDArray[np.bool_]) -> Self:
        """The tokens of the wanted texts; the others are left without any."""
        kept = is_wanted[self.rows_T]
        return self._replace(starts_T=self.starts_T[kept], lengths_T=self.lengths_T[kept], rows_T=self.rows_T[kept])

    def words(self, chosen: Int64s, number: int) -> npt.NDArray[np.uint64]:
        """Bytes 8 * number to 8 * number + 8 of the chosen tokens as little-endian integers; zeros follow a token's end."""
        unaligned = np.ndarray(len(self.data) - _WORD_BYTES + 1, "<u8", self.data, 0, (1,))
        left = np.clip(self.lengths_T[chosen] - number * _WORD_BYTES, 0, _WORD_BYTES)
        return unaligned[np.minimum(self.starts_T[chosen] + number * _WORD_BYTES, len(unaligned) - 1)] & _LOW_BYTES[left]


def normalise(text: str) -> str:
    """The tokens of a text, joined by single spaces; what queries and texts are compared in.

    Compatibility forms and case are folded (NFKC, full case folding: "Straße" = "STRASSE", "ﬁsh" = "Fish", "İzmir" = "izmir"). A token
    is a run of Unicode letters, marks and digits; everything else separates, the underscore, hyphen and full stop too:

    * "(dog)", "dog,", "Dog's", "#dog", "toy_dog" and "dog™" contain "dog"; "dogs", "hotdog" and "#HotDog" do not.
    * "toy-box" contains "toy", "box", "toy box" and "toy-box"; "toybox" is another word.
    * "Mr. Smith" is "mr smith". "U.S." is "u s": it matches "U.S.", "U. S." and "u s", not "US", which as a query would find "us".
    * "3.5" is "3 5" and "1,000" is "1 000": they match what is written so, and "5" is found in "3.5". "1st", "50mm", "CO₂" are one token.
    * The endings 's, 't, 'd, 'm, 'll, 're, 've and the signs +, ++ and # after a word are a token of their own, so that "Golden
      Retriever's" contains "golden retriever", neither "s" nor "t" is found in "dog's" and "don't", and "C++" and "C#" are found
      where they stand, not in "vitamin C". Other apostrophes separate: "l'homme" contains "homme". Typographic ones count as '.
    * Accents tell words apart: "café" and "cafe", "schön" and "schon" are two. Hebrew points and Arabic vowel signs do not.
    * Scripts written without spaces (Han, kana, Bopomofo, Thai, Lao, Khmer, Burmese, Tibetan, Tai): each letter with its marks is a
      token, so a query is found anywhere in a text, as a substring of letters. Hangul is split at spaces.
    * Soft hyphens, joiners, direction marks and variation selectors are ignored. Emoji separate.

    Which characters are letters is asked of this Python's Unicode tables. The result is "" where a text has no letter and no digit.
    """
    if text.isascii():
        return " ".join(_ASCII_TOKEN.findall(text.lower()))
    patterns = _patterns()
    text = patterns.apart.sub(r" \g<0> ", text.replace("´", "'"))
    text = patterns.ignored.sub("", unicodedata.normalize("NFKC", text)).casefold().replace("i\u0307", "i")
    text = patterns.orphans.sub("", unicodedata.normalize("NFKC", text))
    for apostrophe in _APOSTROPHES:
        text = text.replace(apostrophe, "'")
    return " ".join(patterns.token.findall(text))


def _normalised_tokens(texts: pa.StringArray) -> Tokens:
    """What `normalise` splits each text into. ASCII is split as it stands, other texts once they are normalised."""
    plain = pc.string_is_ascii(texts)
    other = [_ENDING_APART.sub("", normalise(text)) for text in texts.filter(pc.invert(plain)).to_pylist()]
    data, bounds = _bytes_of(pc.replace_with_mask(texts, pc.invert(plain), pa.array(other, pa.string())))
    folded = _FOLDED[data]
    is_token = folded != 0
    endings, seconds = _endings(data, folded)
    for signs in (endings, seconds):
        folded[signs], is_token[signs] = data[signs], True
    is_start = is_token.copy()
    is_start[1:] &= ~is_token[:-1]
    is_start[endings] = True
    is_end = is_token.copy()
    is_end[:-1] &= ~is_token[1:] | is_start[1:]
    starts = np.flatnonzero(is_start)
    return Tokens(folded, starts, np.flatnonzero(is_end) + 1 - starts, _rows(starts, bounds))


def _endings(data: Bytes, folded: Bytes) -> tuple[Int64s, Int64s]:
    """Where 's, 't, 'd, 'm, 'll, 're, 've, +, ++ and # end a word, and where the second sign of a ++ is."""
    at = np.flatnonzero(_IS_SIGN[data])
    raw, letters = ([column[at + ahead] for ahead in range(-3, 4)] for column in (data, folded))
    after_word = letters[2] != 0
    after_one, after_two = (raw[2] == ord("+")) | (raw[2] == ord("#")), (raw[2] == ord("+")) & (raw[1] == ord("+"))
    short = _is_one_of(letters[4], "stdm") & (letters[5] == 0)
    long = _is_one_of(letters[4], "rv") & (letters[5] == ord("e")) | (letters[4] == ord("l")) & (letters[5] == ord("l"))
    quoted = (after_word | after_one & (letters[1] != 0) | after_two & (letters[0] != 0)) & (short | long & (letters[6] == 0))
    single = after_word & (raw[4] != raw[3]) & (letters[4] == 0)
    double = after_word & (raw[3] == ord("+")) & (raw[4] == ord("+")) & (raw[5] != ord("+")) & (letters[5] == 0)
    return at[np.where(raw[3] == ord("'"), quoted, single | double)], at[double] + 1


def _is_one_of(letters: Bytes, wanted: str) -> npt.NDArray[np.bool_]:
    return np.isin(letters, np.frombuffer(wanted.encode(), np.uint8))


def _metaclip_tokens(texts: pa.StringArray) -> Tokens:
    """MetaCLIP's rule (arXiv 2309.16671): `" " + entry + " "` is a substring of the text with a space on both sides and around each of
    `, . ; : ? ! `` and a space for each tab and line end. That is: what stands between the spaces of the entry, which may be nothing,
    stands in a row between the spaces of the text."""
    spaced = pc.replace_substring_regex(pc.replace_substring_regex(texts, _METACLIP_WRAPPED, r" \0 "), _METACLIP_BLANKS, " ")
    return _between_spaces(spaced)


def _metaclip_query_tokens(queries: pa.StringArray) -> Tokens:
    """MetaCLIP spaces no entry, so "Mr. Smith" and "U.S." match nothing: kept as published."""
    return _between_spaces(queries)


def _between_spaces(texts: pa.StringArray) -> Tokens:
    data, bounds = _bytes_of(texts)
    ends = np.flatnonzero(data == _SPACE)
    starts = np.concatenate(([0], ends[:-1] + 1))[: len(ends)]
    return Tokens(data, starts, ends - starts, _rows(starts, bounds))


TOKENISE: Mapping[Mode, tuple[Callable[[pa.StringArray], Tokens], Callable[[pa.StringArray], Tokens]]] = {
    "tokens": (_normalised_tokens, _normalised_tokens),
    "metaclip": (_metaclip_query_tokens, _metaclip_tokens),
}
"""Mode -> (the tokens of queries, the tokens of texts); no nulls."""


def _bytes_of(texts: pa.StringArray) -> tuple[Bytes, Int64s]:
    """UTF-8 of all texts with a space after each and 8 zero bytes at the end; where each text begins, and the end."""
    spaced = pc.binary_join_element_wise(texts, "", " ")
    bounds = np.frombuffer(spaced.buffers()[1], np.int32, len(spaced) + 1, spaced.offset * 4).astype(np.int64)
    data = np.zeros(bounds[-1] - bounds[0] + _WORD_BYTES, np.uint8)
    data[:-_WORD_BYTES] = np.frombuffer(spaced.buffers()[2] or b"", np.uint8)[bounds[0] : bounds[-1]]
    return data, bounds - bounds[0]


def _rows(starts: Int64s, bounds: Int64s) -> Int64s:
    return np.repeat(np.arange(len(bounds) - 1), np.diff(np.searchsorted(starts, bounds)))


def _folded_bytes() -> Bytes:
    """Byte -> byte of a token, 0 for a separator: ASCII letters and digits in lower case, and what is beyond ASCII."""
    return np.array([b if b >= 0x80 else ord(chr(b).lower()) if chr(b).isalnum() else 0 for b in range(256)], np.uint8)


def _token_pattern(word: str, *, before: str, after: str) -> re.Pattern[str]:
    """A word, or an ending: where another character of a word stands before it and none after it."""
    after_word = rf"(?:(?<=[{before}]')|(?<=[{before}][+#]')|(?<=[{before}]\+\+'))"
    quoted = f"'{after_word}(?:s|t|d|m|ll|re|ve)(?!{after})"
    signs = rf"\+(?<=[{before}]\+)\+?(?!\+|{after})|#(?<=[{before}]#)(?!#|{after})"
    return re.compile(f"{word}|{quoted}|{signs}")


class _Patterns(NamedTuple):
    """`apart`: symbols that stand for words or numbers; `ignored`; `orphans`: marks on no letter; `token`: one of a folded text."""

    apart: re.Pattern[str]
    ignored: re.Pattern[str]
    orphans: re.Pattern[str]
    token: re.Pattern[str]


@functools.cache
def _patterns() -> _Patterns:
    """Python's `\\w` knows no marks, so the classes are spelt out from the Unicode tables."""
    kinds = np.frombuffer("".join(map(_kind, map(chr, range(sys.maxunicode + 1)))).encode(), np.uint8)
    letter, mark, alone, word = (_class(kinds, wanted) for wanted in ("w", "m", "a", "wm"))
    before = "".join(_ranges(kinds, "wma", *bounds) for bounds in (_BASIC, _ASTRAL))
    return _Patterns(
        apart=re.compile(f"[{_ranges(kinds, 's', *_BASIC)}]"),
        ignored=re.compile(f"[{_IGNORED}]"),
        orphans=re.compile(f"(?=[\u0300-\U0010ffff])(?={mark})(?<![{before}]){mark}+"),
        token=_token_pattern(f"{letter}{_run(kinds, 'wm')}|{alone}{_run(kinds, 'm')}", before=before, after=word),
    )


def _kind(character: str) -> str:
    """w: letter or digit, m: mark, a: a letter that is a token alone, s: a symbol that stands for more, -: separator."""
    category = unicodedata.category(character)
    if category[0] == "M":
        return "m"
    if category in ("So", "No") and not unicodedata.name(character).startswith(("CIRCLED LATIN", "SQUARED LATIN")):
        form = unicodedata.decomposition(character).partition(" ")[0]
        if form in _APART_FORMS or character in "™℠":
            return "s"
    if category[0] not in "LN" or character in _APOSTROPHES:
        return "-"
    return "a" if category[0] == "L" and unicodedata.name(character, "").startswith(_SPACELESS) else "w"


def _class(kinds: Bytes, wanted: str) -> str:
    """A class for one character. Those above U+FFFF stand apart: Python goes through a class that holds some of them range by range."""
    return f"(?:[{_ranges(kinds, wanted, *_BASIC)}]|(?=[\U00010000-\U0010ffff])[{_ranges(kinds, wanted, *_ASTRAL)}])"


def _run(kinds: Bytes, wanted: str) -> str:
    """None, one or more characters of a class. No possessive group: before 3.11.5, Python's go on from where their last turn failed."""
    basic, astral = (_ranges(kinds, wanted, *bounds) for bounds in (_BASIC, _ASTRAL))
    return f"[{basic}]*+(?:(?=[\U00010000-\U0010ffff])[{astral}][{basic}]*+)*"


def _ranges(kinds: Bytes, wanted: str, first: int, end: int) -> str:
    """The code points from `first` to before `end` of the wanted kinds as the inside of a regular expression's class."""
    edges = np.diff(_is_one_of(kinds[first:end], wanted).astype(np.int8), prepend=0, append=0)
    firsts, lasts = np.flatnonzero(edges == 1) + first, np.flatnonzero(edges == -1) - 1 + first
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in zip(firsts, lasts, strict=True))


_FOLDED = _folded_bytes()
_IS_SIGN = np.isin(np.arange(256), [ord(sign) for sign in "'+#"])
_LOW_BYTES = np.array([(1 << 8 * count) - 1 for count in range(_WORD_BYTES + 1)], np.uint64)
_ASCII_TOKEN = _token_pattern("[a-z0-9]+", before="a-z0-9", after="[a-z0-9]")
_ENDING_APART = re.compile(" (?=['+#])")
