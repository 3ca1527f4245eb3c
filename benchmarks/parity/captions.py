"""Real short texts in many languages and scripts, and strings that nobody would write, for comparing tokenizers.

The real ones are fetched by `benchmarks/real/fetch.py`, each set under its own licence; none is part of the project.
"""

import bz2
import gettext
import json
import random
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "real"))

import openclipart
import tuxpaint

SETS = ("tuxpaint", "openclipart", "wikipedia-slice", "cldr-annotations", "iso-codes")
"""Folders of fetched data that `real_captions` reads."""

_FILE_LINK = re.compile(r"\[\[(?:File|Image):[^\[\]|]+\|([^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*)\]\]")
_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")


def real_captions(data: Path) -> dict[str, list[str]]:
    """Source -> its distinct texts, in a fixed order."""
    share = Path("usr") / "share"
    found = {
        "Tux Paint stamps": (caption.text for caption in tuxpaint.read_captions(data / "tuxpaint" / share / "tuxpaint" / "stamps")),
        "Open Clip Art": _drawings(data / "openclipart" / share / "openclipart"),
        "Wikipedia image captions": _wikipedia(next((data / "wikipedia-slice").glob("*.bz2"))),
        "CLDR emoji names": _emoji_names(data / "cldr-annotations" / "package" / "annotations"),
        "ISO names, translated": _translations(data / "iso-codes" / share / "locale"),
    }
    return {source: list(dict.fromkeys(text for text in texts if text.strip())) for source, texts in found.items()}


def _drawings(clipart: Path) -> Iterator[str]:
    for drawing in openclipart.read_drawings(clipart):
        yield from (drawing.title, ", ".join(drawing.keywords), drawing.description)


def _wikipedia(dump: Path) -> Iterator[str]:
    """Captions of images as their authors typed them, entities and markup left in; a second time with links as readers see them."""
    text = bz2.decompress(dump.read_bytes()).decode("utf-8")
    for link in _FILE_LINK.finditer(text):
        caption = link[1].rpartition("|")[2] if "[[" not in link[1] else link[1]
        yield from (caption, _LINK.sub(r"\1", caption))


def _emoji_names(annotations: Path) -> Iterator[str]:
    """Of each emoji and symbol in each language its name, and its keywords with the sign itself."""
    for path in sorted(annotations.glob("*/annotations.json")):
        for sign, words in json.loads(path.read_text(encoding="utf-8"))["annotations"].get("annotations", {}).items():
            yield from words.get("tts", ())
            yield f"{sign} {', '.join(words.get('default', ()))}"


def _translations(locales: Path) -> Iterator[str]:
    for path in sorted(locales.glob("*/LC_MESSAGES/iso_*.mo")):
        with path.open("rb") as file:
            catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        yield from (text for original, text in catalogue.items() if original and isinstance(text, str))


def script_of(text: str) -> str:
    """The script of most of a text's letters, by the first word of their Unicode names; "no letters" where there are none."""
    counts = Counter(unicodedata.name(letter, "UNNAMED").split()[0] for letter in text if letter.isalpha())
    return counts.most_common(1)[0][0].removesuffix("-COMPATIBILITY") if counts else "no letters"


_WORDS = r"""
a photo of the Cat's dog WE'RE they'LL I'd 'S ''t don't x's' café naïve İstanbul ISPARTA ıI ßẞ STRASSE ΌΣΟΣ ΣΑΣ Σ ὈΔΥΣΣΕΎΣ
写真 ｶﾀｶﾅ ＦＵＬＬｗｉｄｔｈ１２ ไทย รูปแมว हिन्दी क्ष ελληνικά русский ЁЖ עִבְרִית العَرَبِيَّة ქართული ՀԱՅ አማርኛ 한국어 ㅎㅏㄴ ᏣᎳᎩ ꭰ 𐐀𐐨 𝐁𝒸 ǅ ﬁ ŉ
😀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 1️⃣ 🇩🇪🇫🇷 ❤️ ☺︎ 🫠 🧑🏿‍🦰 ™ © ㊗️ ⌛
&amp; &amp;amp; &lt;b&gt; &#39; &#x1F600; &#0; &#xD800; &nbsp; &notin &eacute &#150; &; &ACUTE;
donâ€™t schÃ¶n Ã‰tÃ© ðŸ˜€ вЂ” l’été “”‘’«» Â£5 ¾Ìé
0 1 12345 ٣٤٥ ४२ ５６ ½ Ⅷ ① ² 𝟙𝟚 〇 十 ৪ ௧
! ?! ... -- _ __ # @ / \ | ~ ` ^ $ € ¥ % * + = < > ( ) [ ] { } " ' “ ” … – — • ♪ ∑ № ʼ ʻ ＇ 's
<start_of_text> <end_of_text> <START_OF_TEXT> <|startoftext|> </w> <start_of_text
"""
_CODES = (
    (0x301, 0x307, 0x323, 0x20E3, 0xE4D, 0x94D, 0x3099, 0x489, 0x5BC, 0x651, 0x1AB0),  # marks
    (*range(32), *range(0x7F, 0xA0), 0xAD, 0x61C, 0x180E, 0xFEFF, 0xFFF9, 0xFFFC, 0xFFFD, 0xFFFE, 0xE0041),  # controls
    (9, 10, 13, 32, 32, 32, 0x2028, 0x2029, *range(0x2000, 0x2010), 0x202F, 0x205F, 0x3000, 0x1680, 0xA0),  # spaces
    (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x206A)),  # directions
)
_BROKEN = ["â€œquoteâ€\x9d", "\x91q\x92", "\x1b[1mx\x1b[0m"]
_KINDS = [*(line.split() for line in _WORDS.strip().splitlines()), *([chr(code) for code in codes] for codes in _CODES), _BROKEN]
"""What `generated` draws from: a kind first, then one of its pieces."""


def generated(count: int, seed: int) -> Iterator[str]:
    """Strings of up to 24 pieces of all kinds, some of them any code point that Unicode 14 has given a meaning; no lone surrogate."""
    draw = random.Random(seed)
    for _ in range(count):
        pieces = []
        for _ in range(draw.randint(1, 24)):
            piece = draw.choice(draw.choice(_KINDS)) if draw.random() < 0.93 else _any_character(draw)
            pieces.append(piece if draw.random() < 0.7 else piece + " ")
        yield "".join(pieces)


def _any_character(draw: random.Random) -> str:
    while True:
        character = chr(draw.randrange(0x110000) if draw.random() < 0.5 else draw.randrange(0x3000))
        if unicodedata.category(character) not in ("Cs", "Cn") and character not in UNLIKE:
            return character


UNLIKE = "\u0345ſ"
"""Characters that `generated` leaves out: see `KNOWN`."""

KNOWN = {
    "a long s where `'s` could stand, which ignores case for open_clip": ["congreſs'ſ", "it'ſ <ſtart_of_text>"],
    "an iota below that no letter before it takes (U+0345), a letter only for open_clip": ["b\u0345 x"],
    "a letter younger than the tables of the compiled tokenizer": ["a\u1c8ab", "a\ua7dab"],
}
"""What open_clip and clipkit are known to take apart in different places, with examples. open_clip's answer to the last depends on its
version of the `regex` package, clipkit's on its compiled tokenizer; no cleaning of the text can mend them."""


def long_texts(captions: Iterable[str], draw: random.Random, count: int) -> list[str]:
    """Texts of hundreds to thousands of words, put together from captions: every one is cut."""
    pool = list(captions)
    return [draw.choice((" ", "\n", ". ")).join(draw.choices(pool, k=draw.randint(60, 400))) for _ in range(count)]
