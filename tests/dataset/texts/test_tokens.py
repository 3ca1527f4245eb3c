import re
import sys
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clipkit.dataset.texts.tokens import TOKENISE, normalise

ENDINGS = ("s", "t", "d", "m", "ll", "re", "ve")


def tokens_of(texts: list[str]) -> list[list[str]]:
    """The tokens of a column, as `QueryIndex` meets them."""
    tokens = TOKENISE["tokens"][1](pa.array(texts, pa.string()))
    found: list[list[str]] = [[] for _ in texts]
    for start, length, row in zip(tokens.starts_T, tokens.lengths_T, tokens.rows_T, strict=True):
        found[row].append(tokens.data[start : start + length].tobytes().decode())
    return found


def letter_by_letter(text: str) -> list[str]:
    """The rule for a text in ASCII, read one character at a time."""
    text, tokens, word = text.lower(), [], ""
    for at, character in enumerate(text + " "):
        if character.isalnum():
            word += character
            continue
        tokens += [word] if word else []
        before, after, word = text[at - 1 : at], re.match(r"[a-z0-9]*", text[at + 1 :]).group(), ""  # type: ignore[union-attr]
        if character == "'" and after in ENDINGS and re.search(r"[a-z0-9](\+\+?|#)?$", text[:at]):
            word = "'"
        elif character == "#" and before.isalnum() and not after and text[at + 1 : at + 2] != "#":
            tokens.append("#")
        elif character == "+" and before.isalnum() and (signs := re.match(r"\+\+?(?![+a-z0-9])", text[at:])):
            tokens.append(signs.group())
    return tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("(dog)", "dog"),
        ("Dog's", "dog 's"),
        ("the dogs’ DON’T", "the dogs don 't"),
        ("dog´s dog`s dogʼs dog‘s dog＇s", "dog 's dog s dog 's dog 's dog 's"),
        ("we'll they're I've I'd I'm", "we 'll they 're i 've i 'd i 'm"),
        ("toy-box", "toy box"),
        ("toy_box.jpg", "toy box jpg"),
        ("Mr. Smith", "mr smith"),
        ("U.S.", "u s"),
        ("US", "us"),
        ("Golden Retriever's", "golden retriever 's"),
        ("l'homme O'Neill rock'n'roll Hawaiʻi", "l homme o neill rock n roll hawai i"),
        ("d'été 's 'tis", "d été s tis"),
        ("Straße STRASSE", "strasse strasse"),
        ("İSTANBUL I\u0307zmir Isparta ısı", "istanbul izmir isparta ısı"),
        ("ﬁsh ＦＩＳＨ ⓕⓘⓢⓗ 𝐟𝐢𝐬𝐡", "fish fish fish fish"),
        ("cafe\u0301 CAFÉ", "café café"),
        ("f/2.8 1/250s 1,000 3.5 1st 50mm", "f 2 8 1 250s 1 000 3 5 1st 50mm"),
        ("漢字abc のネコ ﾈｺ", "漢 字 abc の ネ コ ネ コ"),
        ("漢's 葛\U000e0100城", "漢 's 葛 城"),
        ("가나 다", "가나 다"),
        ("กำ", unicodedata.normalize("NFKC", "กำ")[:2] + " " + "า"),
        ("हिन्दी", "हिन्दी"),
        ("שָׁלוֹם וַיֹּאמֶר", "שלום ויאמר"),
        ("كِتَابٌ كـــتاب", "كتاب كتاب"),
        ("so\u00adft ❤\ufe0f 1\ufe0f\u20e3", "soft 1"),
        ("٣٤ x² CO₂ 3½ №5 5㎏ ①dog", "٣٤ x2 co2 3 1 2 no 5 5 kg 1 dog"),
        ("C++ & C# c++11 a+b c+++ Disney+ a# #b ##", "c ++ c # c 11 a b c disney + a # b"),
        ("C++'s g++/gcc", "c ++ 's g ++ gcc"),
        ("LEGO™ Brand® iPhone©", "lego tm brand iphone"),
        ("a¨b \u0301c", "a b c"),
        ("می\u200cخواهم", "میخواهم"),
        ("a\ud800b", "a b"),
        (" \t\n…!?", ""),
    ],
)
def test_normalise_gives_the_tokens_that_a_reader_expects(text: str, tokens: str) -> None:
    assert normalise(text) == tokens


UNICODE = st.text(max_size=30) | st.text(alphabet="aS'’+#漢\u0301\u00ad¨½™ßİé٣ก -", max_size=12)
SIGNS = st.text(alphabet="aSstdm1lrvE'+#_ -.", max_size=14)
SIGN_CASES = [
    "c+++",
    "++'s",
    "+'s",
    "#'t",
    "c++'s",
    "c+'s",
    "c#'s",
    "c+++'s",
    "c++d",
    "c#d",
    "c##",
    "c+#'s",
    "x'll'",
    "x'lla",
    "x's's",
    "x're+",
]
ASCII = st.text(alphabet=[chr(code) for code in range(128)], max_size=30)


@given(st.lists(UNICODE | SIGNS | ASCII, max_size=6))
@example(SIGN_CASES + [f"é {text}" for text in SIGN_CASES] + ["’t", "漢++", "漢+’s"])
@settings(deadline=None, max_examples=400)
def test_a_column_is_split_as_normalise_splits_each_text(texts: list[str]) -> None:
    assert tokens_of(texts) == [normalise(text).split() for text in texts]


@given(SIGNS | ASCII)
@example("  ".join(SIGN_CASES))
@settings(deadline=None, max_examples=400)
def test_ascii_is_split_as_the_rule_read_letter_by_letter_has_it(text: str) -> None:
    assert normalise(text).split() == letter_by_letter(text)


@given(st.text(max_size=20), st.text(max_size=20))
@settings(deadline=None, max_examples=200)
def test_case_and_compatibility_forms_make_no_difference(first: str, second: str) -> None:
    text = f"{first} {second}"
    assert normalise(text.upper().casefold()) == normalise(text.casefold())
    assert normalise(unicodedata.normalize("NFD", text)) == normalise(unicodedata.normalize("NFC", text))


@given(UNICODE)
@settings(deadline=None, max_examples=200)
def test_ascii_and_other_texts_follow_one_rule(text: str) -> None:
    assert normalise(f"é, {text}").split() == ["é", *normalise(text).split()]


def test_every_letter_and_digit_of_unicode_is_in_some_token() -> None:
    letters = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in ("Lu", "Ll", "Lo", "Nd")][::5]
    lost = [letter for letter in letters if not normalise(f"x{letter}").replace("x", "", 1).strip()]
    assert [letter for letter in lost if not re.match("ARABIC (LIGATURE SHADDA|[A-Z]+ (ISO|MED|WITH))", unicodedata.name(letter))] == []
