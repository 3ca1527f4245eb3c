"""Why a text is dropped.

A rule takes texts and the knobs and answers which texts to drop; its name is the reason that the funnel counts, its docstring is the
rule. The rules for file names and camera settings are those that the CLIP paper states for YFCC100M (section 2.2), which published no
patterns; the others follow what ALIGN, COYO and DataComp report.
"""

import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipkit import UserError
from clipkit.dataset.texts.characters import LETTER, SPACE, characters, count, firsts, kinds, may_repeat
from clipkit.dataset.texts.languages import is_foreign
from clipkit.dataset.texts.mojibake import UNLIKELY, repair_mojibake
from clipkit.dataset.texts.tokens import normalise
from clipkit.recipe import TextKnobs

__all__ = ["RULES", "WHOLE_TABLE_RULES", "apply_rules", "check_names", "repair_mojibake"]

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

_TAG = (
    "a|abbr|b|big|blockquote|body|br|center|cite|code|del|div|em|embed|figcaption|figure|font|form|h[1-6]|head|hr|html|i|iframe|img|input"
    "|ins|li|link|meta|object|ol|option|p|picture|pre|q|script|small|source|span|strike|strong|style|su[bp]|svg|table|tbody|t[dhr]|u|ul|video"
)
_MARKUP = "(?i)" + "|".join(
    [
        rf"<(?:{_TAG})(?:\s*/?>|\s+[\w:-]+\s*=)|</(?:{_TAG})\s*>|<!--|<!\[CDATA|<\?(?:php|xml|=)|<%",
        r"\b(?:alt|class|height|href|id|rel|src|style|target|title|width)\s?=\s?[\"'”]",
        r"&(?:amp|nbsp|quot)\b|&(?:apos|bull|copy|gt|hellip|lt|middot|[lr]aquo|[lr][ds]quo|[mn]dash|reg|trade);|&#x?[0-9a-f]{2,6};",
        r"&[a-z](?:acute|cedil|circ|grave|ring|tilde|uml);",
        r"\[/[a-z*]{1,20}\]|\[(?:b|color|font|i|img|quote|size|u|url)\]|\[[a-z_-]{1,30}(?:=| [a-z_-]{1,30}=)[^\[\]]*\]",  # BBCode
        r"\[\[[^\[\]]+\]\]|'''[^']+'''|!?\[[^\[\]]*\]\((?:https?:|www\.|/)",  # wiki text, Markdown
        r"\{\{|\}\}|\{%|[$#]\{[^{}]*\}|\{(?:[0-9]|[a-z]+_[a-z_]+|alt|caption|description|image|name|title)\}",  # placeholders
        r"(?:^|[\s\"'(])%(?:[a-z_]{2,40}%|(?:[0-9]\$)?[sd](?:$|[\s\"').,:;!?]))",
        r"\[object [a-z]+\]|^(?:null|undefined|nan)$|\bjavascript:|\bfunction ?\(\)|\bdocument\.write\b",
        r"\blorem ipsum\b|\bdolor sit amet\b",
    ]
)
_BROKEN = r"[\x{00}-\x{08}\x{0b}\x{0e}-\x{1f}\x{7f}-\x{9f}\x{fffd}]"

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
_ONE_SETTING = r"(?:[fƒ] ?/? ?\pN|1/\pN|\pN ?sec[a-z]* exposure|[iıİ]so|\pN ?mm|\pN ?ev)"
_TWO_SETTINGS = f"(?is){_ONE_SETTING}.*{_ONE_SETTING}"  # finds whatever _SETTINGS finds twice, and more
_CAMERA_WORDS = re.compile(
    r"(?i)canon|nikon|sony|olympus|panasonic|lumix|fujifilm|fuji|pentax|leica|sigma|tamron|tokina|zeiss|samsung|kodak|casio|ricoh|hasselblad"
    r"|apple|iphone|eos|nikkor|rebel|mark|iii|cyber|shot|powershot|coolpix|finepix|alpha|usm|auto|manual|priority|normal|program|mode"
    r"|pattern|matrix|spot|value|date|taken|software|did|not|fire|off|adobe|photoshop|lightroom"
)
_WORD = re.compile(r"[^\W\d_]{3,}")
_LONG_RUN = re.compile(r"(\S)\1{7}")

_BLOCK_BYTES = 8_000_000  # of text at once: the rules need about ten times as much memory


def empty(texts: pa.StringArray, knobs: TextKnobs) -> pa.BooleanArray:
    """The text has no character but spaces."""
    return pc.invert(pc.match_substring_regex(texts, r"\S"))


def mojibake(texts: pa.StringArray, knobs: TextKnobs) -> pa.BooleanArray:
    """The text is broken beyond repair: it has U+FFFD, control characters, or letters in an order that only a wrong character set makes.

    "Caf� de Paris" goes; "CafÃ© de Paris" has become "Café de Paris" before (knob `repair_mojibake`) and stays.
    """
    return pc.or_(pc.match_substring_regex(texts, _BROKEN), pc.match_substring_regex(texts, UNLIKELY))


def markup(texts: pa.StringArray, knobs: TextKnobs) -> pa.BooleanArray:
    """The text holds code that no reader should see: HTML tags or entities, BBCode, wiki links, placeholders of templates, filler text.

    `<b>Sale</b>`, `&nbsp`, `[img]`, `[[File:a.jpg]]`, `{{title}}`, `${name}`, `%s`, `<?= $x ?>`, `[object Object]`, Lorem ipsum dolor.
    """
    return pc.match_substring_regex(texts, _MARKUP)


def url_like(texts: pa.StringArray, knobs: TextKnobs) -> pa.BooleanArray:
    """The text is a web address or a host name, or holds http:// or https://."""
    return pc.match_substring_regex(texts, _URL)


def file_name(texts: pa.StringArray, knobs: TextKnobs) -> pa.BooleanArray:
    """The text is a file name: it ends in an image suffix, or is what cameras, phones, scanners and hashes call files.

    20160716_113957.JPG, IMG_1234, DSC00012, Screenshot 2020-01-01 at 10.20.30, Untitled 3, d41d8cd98f00b204e9800998ecf8427e.
    """
    patterns = (_IMAGE_NAME, _CAMERA_NAME, _DATED_NAME, _NUMBERED_NAME, _HASH_NAME)
    hits = [pc.match_substring_regex(texts, pattern) for pattern in patterns]
    return functools.reduce(pc.or_, hits)


def camera_settings(texts: pa.StringArray, knobs: TextKnobs) -> pa.BooleanArray:
    """Two exposure settings or more (aperture, shutter, ISO, focal length, bias), and fewer words than settings that say anything else.

    "ISO 200 f/2.8 1/250s Canon EOS" goes; "Sunset over the old harbour of Chania, f/8, ISO 100" stays.
    """
    return _where(texts, pc.match_substring_regex(texts, _TWO_SETTINGS), _is_camera_settings)


def length(texts: pa.StringArray, knobs: TextKnobs) -> pa.BooleanArray:
    """The number of words (runs of non-spaces) or of characters is outside `min_words`..`max_words`, `min_characters`..`max_characters`."""
    all_characters = characters(texts)
    words = count(firsts(kinds(all_characters.codes) != SPACE, all_characters), all_characters)
    outside = (words < knobs.min_words) | (words > knobs.max_words)
    outside |= (all_characters.lengths < knobs.min_characters) | (all_characters.lengths > knobs.max_characters)
    return pa.array(outside)


def few_letters(texts: pa.StringArray, knobs: TextKnobs) -> pa.BooleanArray:
    """Letters and marks of any script are less than `min_letter_share` of the characters that are no spaces."""
    all_characters = characters(texts)
    kind = kinds(all_characters.codes)
    return pa.array(count(kind == LETTER, all_characters) < knobs.min_letter_share * count(kind != SPACE, all_characters))


def repetition(texts: pa.StringArray, knobs: TextKnobs) -> pa.BooleanArray:
    """Of six words or more fewer than half are distinct, or one word stands three times in a row, or one character eight times."""
    return _where(texts, pa.array(may_repeat(characters(texts))), _is_repetitive)


def language(texts: pa.StringArray, knobs: TextKnobs) -> pa.BooleanArray:
    """No wanted language is likely, or none with `language_confidence`: by fastText's lid.176, and for English by CLIP's vocabulary too.

    `clipkit.dataset.texts.languages` says how the two are weighed.
    """
    wanted = frozenset(knobs.languages)
    return pa.array([is_foreign(text, wanted, knobs.language_confidence) for text in texts.to_pylist()], pa.bool_())


Rule = Callable[[pa.StringArray, TextKnobs], pa.BooleanArray]

RULES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (empty, mojibake, markup, url_like, file_name, camera_settings, length, few_letters, repetition, language)
}
"""Every rule that judges a text alone, by its name: texts without nulls and knobs -> True where the text is dropped."""

WHOLE_TABLE_RULES = ("boilerplate",)
"""Rules that look at all pairs together, which the build runs after those of RULES.

boilerplate: the text stands beside more than `max_images_per_text` distinct image URLs.
"""


def check_names(names: Sequence[str]) -> None:
    """Raise UserError when a name is in neither RULES nor WHOLE_TABLE_RULES."""
    for name in names:
        if name not in RULES and name not in WHOLE_TABLE_RULES:
            known = ", ".join([*RULES, *WHOLE_TABLE_RULES])
            raise UserError(f"knob `text.rules` has `{name}`, which is no text rule: the rules are {known}")


def apply_rules(pairs: pa.Table, knobs: TextKnobs) -> pa.StringArray:
    """For each pair [text] the first of `knobs.rules` in RULES that drops it, or null. A rule sees what earlier ones left.

    Every distinct text is judged once: pages repeat their texts.
    """
    texts = pairs["text"].cast(pa.string()).combine_chunks().fill_null("").dictionary_encode()
    blocks = [_first_reasons(block, knobs) for block in _blocks(texts.dictionary)]
    return pa.chunked_array(blocks, pa.string()).combine_chunks().take(texts.indices)


def _blocks(texts: pa.StringArray) -> list[pa.StringArray]:
    ends = pc.cumulative_sum(pc.cast(pc.binary_length(texts), pa.int64())).to_numpy(zero_copy_only=False) // _BLOCK_BYTES
    cuts = [0, *(np.flatnonzero(np.diff(ends)) + 1), len(texts)]
    return [texts.slice(start, end - start) for start, end in itertools.pairwise(cuts)]


def _first_reasons(texts: pa.StringArray, knobs: TextKnobs) -> pa.StringArray:
    reasons = pa.nulls(len(texts), pa.string())
    for name in (name for name in knobs.rules if name in RULES):
        left = pc.is_null(reasons)
        drop = RULES[name](texts.filter(left), knobs)
        reasons = pc.replace_with_mask(reasons, left, pc.if_else(drop, name, pa.scalar(None, pa.string())))
    return reasons


def _where(texts: pa.StringArray, suspect: pa.BooleanArray, is_dropped: Callable[[str], bool]) -> pa.BooleanArray:
    """Of the suspects, which are few, those that the closer look drops."""
    dropped = pa.array([is_dropped(text) for text in texts.filter(suspect).to_pylist()], pa.bool_())
    return pc.replace_with_mask(suspect, suspect, dropped)


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
