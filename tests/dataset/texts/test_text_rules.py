"""What each text rule drops and what it must not drop; vectorised rules against what one says in plain Python."""

import re
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clipkit import UserError
from clipkit.dataset.texts import text_rules
from clipkit.dataset.texts.text_rules import RULES, WHOLE_TABLE_RULES, apply_rules, check_names
from clipkit.dataset.texts.tokens import normalise
from clipkit.recipe import TextKnobs

GOOD = [
    "A red circle",
    "a dog",
    "Two cats on a sofa",
    "Sunset over the old harbour of Chania, Crete, f/8, ISO 100",
    "Canon EF 50mm f/1.8 lens on a wooden table",
    "Portrait of a woman in a blue dress, 1907",
    "A dog and a cat and a bird and a fish on the grass",
    "New York, New York",
    "The girl in picture 3 of the series",
    "Model of a P51 in flight over Dover",
    "Café & bar in the old town",
]


def dropped(rule: str, texts: list[str], **knobs: object) -> list[bool]:
    return RULES[rule](pa.array(texts, pa.string()), TextKnobs.model_validate(knobs)).to_pylist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "text",
    [
        "20160716_113957.JPG", "IMG_1234", "DSC00012", "_DSC0421.NEF", "DSCF 0012", "P1010023", "IMG-20200101-WA0001",
        "PXL_20210304_101010123", "Screenshot 2020-01-01 at 10.20.30 PM", "Screen Shot 2019-01-01", "image 12", "Untitled",
        "untitled-3", "photo (2)", "2019-05-05 12.30.11",
        "20160716_113957", "my holiday at the sea.jpeg", "d41d8cd98f00b204e9800998ecf8427e", "123e4567-e89b-12d3-a456-426614174000",
        "green_dog_0042", "WhatsApp Image 2020-05-05 at 10.10.10", "FB_IMG_1570000000000", "scan0003", "photo No. 812",
        "MVI_0001.MOV", "DJI_0123",
    ],
)  # fmt: skip
def test_file_names_are_dropped(text: str) -> None:
    assert dropped("file_name", [text]) == [True]


@pytest.mark.parametrize(
    "text",
    [
        "ISO 200 f/2.8 1/250s Canon EOS 5D",
        "Canon EOS 400D, 1/60 sec, f/5.6, 55mm, ISO 400",
        "Exposure: 1/125, Aperture: f/8.0, Focal Length: 18 mm, ISO Speed: 100, Exposure Bias: 0 EV, Flash: Off, did not fire",
        "NIKON D90 · f3.5 · 1/30s · ISO1600",
        "f/4 1/500",
    ],
)
def test_camera_settings_are_dropped(text: str) -> None:
    assert dropped("camera_settings", [text]) == [True]


@pytest.mark.parametrize(
    "text", ["http://a.example/b.html", "see https://x.example for more", "www.example.org", "example.com", "shop.example.co/a?b=1"]
)
def test_addresses_are_dropped(text: str) -> None:
    assert dropped("url_like", [text]) == [True]


@pytest.mark.parametrize(
    "text", ["red red red", "buy now buy now buy now", "sale sale sale sale sale today", "aaaaaaaah yes", "--------- new"]
)
def test_repetitions_are_dropped(text: str) -> None:
    assert dropped("repetition", [text]) == [True]


@pytest.mark.parametrize(
    "text",
    [
        "<b>Sale</b> today", "photo<br/>of a dog", "<a href=http://x>dog</a>", '<img src="a', "dog</span>", "<!-- logo", "<?= $title ?>",
        'dog" class="thumb', "alt='a dog'", "cats &nbsp; dogs", "Tom &amp Jerry", "it&#39;s a dog", "caf&eacute; au lait",
        "[url=http://x]dog[/url]", "[b]dog", "photo [/caption]", '[gallery ids="1,2"]', "[[File:Dog.jpg]]", "'''Dog''' of the year",
        "![dog](/dog.png)", "{{title}}", "{{ product.name }} photo", "Photo of ${name}", "#{name}", "{% if x %}", "{0} of {1}",
        "{image_title}",
        "Photo of %s", "%1$s in %2$s", "%title% photo", "[object Object]", "undefined", "javascript:void(0)", "function() {",
        "Lorem ipsum dolor", "DOLOR SIT AMET",
    ],
)  # fmt: skip
def test_markup_is_dropped(text: str) -> None:
    assert dropped("markup", [text]) == [True]


@pytest.mark.parametrize(
    "text",
    [
        "I <3 dogs", "a < b and c > d", "a <b and c>d", "AT&T store", "Q&A: dogs & cats", "R&B; soul", "Jane Doe [left] with [sic] dog",
        "[Video] a dog runs", "Chocolate cake {recipe}", "100% cotton", "50 % off", "20%s", "the 5 %-rule", "dog's ''best'' friend",
        "undefined behaviour", "function of the heart (diagram)", "style = modern", "high-class dogs", "1,000,000$ {prize}", "O(n) [1]",
        "lorem-coloured dog",
    ],
)  # fmt: skip
def test_what_only_looks_like_markup_stays(text: str) -> None:
    assert dropped("markup", [text]) == [False]


def test_texts_broken_beyond_repair_are_dropped_and_what_languages_write_stays() -> None:
    broken = ["Caf\ufffd de Paris", "dog\x85 and cat", "Ã©tÃ© Ã  Paris", "dog\x00", "ä½\xa0å¥½", "Ð¡Ð¾Ð±Ð°ÐºÐ°"]
    assert dropped("mojibake", broken) == [True] * len(broken)
    fine = [
        "Café de l’Été",
        "Größe: 5 m²",
        "“Dogs” – ½ price… £5",
        "São João, Ñandú",
        "Смоленск",
        "Ελλάδα",
        "狗",
        "हिंदी",
        "Åse Øre",
        "naïve",
    ]
    assert dropped("mojibake", fine) == [False] * len(fine)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_good_captions_survive_every_rule(rule: str) -> None:
    assert [text for text, is_dropped in zip(GOOD, dropped(rule, GOOD), strict=True) if is_dropped] == []


def test_empty_and_length_and_letters_count_what_their_knobs_say() -> None:
    assert dropped("empty", ["", " \t", "a"]) == [True, True, False]
    texts = ["one", "one two", "one two three", "a b", "éé éé"]
    assert dropped("length", texts, min_words=2, max_words=2, min_characters=5, max_characters=7) == [True, False, True, True, False]
    assert dropped("few_letters", ["ab12", "ab123", "a1 b2", "漢字 12", "हिं 1", "12"], min_letter_share=0.5) == [
        False,
        True,
        False,
        False,
        False,
        True,
    ]


PIECES = st.sampled_from(
    [
        "dog", "Dog", "DOG", "dog’s", "dog's", "don't", "ß", "SS", "é", "e\u0301", "ﬁsh", "fish", "½", "™", "İ", "ı", "K", "σς", "Σ",
        "狗", "ねこ", "कि", "한글", "\u1112\u1161\u11ab", "12", "٣", "a\u00adb", "ab", "a", "aaaaaaa", "ーーーーーーーー", "\u200d",
        "_", "-", "—", "·", "،", "'", "’", "!", ".", "+", "++", "#", "C#", "\U0001f436", "\U0001d538", " ", "  ", "\u00a0", "\u3000", "\n",
    ]
)  # fmt: skip
TEXTS = st.lists(st.one_of(st.lists(PIECES, max_size=14).map("".join), st.lists(PIECES, max_size=14).map(" ".join), st.text(max_size=30)))


def is_repetitive(text: str) -> bool:
    words = normalise(text).split()
    three = any(words[i] == words[i + 1] == words[i + 2] for i in range(len(words) - 2))
    return three or (len(words) >= 6 and len(set(words)) < len(words) / 2) or re.search(r"(\S)\1{7}", text) is not None


@given(TEXTS)
@example(["", "dog dog dog", "", "aaaaaaaa", "my dog", "dog dog"])
@example(["é e\u0301 é", "\u1112\u1161\u11ab 한 \u1112\u1161\u11ab", "İ i İ", "ſ s S"])
@example(["dog", "dog", "dog", "aaaa", "aaaa"])
@example(["a# b# a# b#"])
def test_repetition_finds_what_a_reader_of_one_text_finds(texts: list[str]) -> None:
    assert dropped("repetition", texts) == [is_repetitive(text) for text in texts]


@given(TEXTS)
def test_words_characters_and_letters_are_those_of_each_text_alone(texts: list[str]) -> None:
    words = [len(re.findall(r"[^ \t\n\f\r]+", text)) for text in texts]
    knobs = {"min_words": 2, "max_words": 5, "min_characters": 3, "max_characters": 20}
    expected = [not (2 <= count <= 5 and 3 <= len(text) <= 20) for count, text in zip(words, texts, strict=True)]
    assert dropped("length", texts, **knobs) == expected
    solid = [re.sub(r"[ \t\n\f\r]", "", text) for text in texts]
    letters = [sum(unicodedata.category(c)[0] in "LM" for c in text) for text in solid]
    assert dropped("few_letters", texts) == [count < 0.5 * len(text) for count, text in zip(letters, solid, strict=True)]


SETTINGS = st.sampled_from(
    [
        "f/8", "F2.8", "ƒ/4", "f 8", "f8mm", "1/250", "1/60 sec", "1/5s", "2 sec exposure", "30 seconds exposure", "ISO 100", "iso:800",
        "İso 100", "ıso100", "iSO", "50mm", "18-55 mm", "5 ev", "+1/3 EV", "٥٠mm", "Flash: off", "Canon", "sunset", "harbour",
        ",", " ", "8", "mm", "f", "/",
    ]
)  # fmt: skip


@example(["İSO 200 f/8", "ıso 100, 1/60", "f / 8 ISO 100", "ƒ 8, 2 sec exposure", "٥٠mm ISO 100", "５０mm +1/3 EV"])
@given(st.lists(st.one_of(st.lists(SETTINGS, max_size=8).map(" ".join), st.lists(SETTINGS, max_size=8).map("".join))))
def test_the_quick_look_for_camera_settings_misses_none(texts: list[str]) -> None:
    assert dropped("camera_settings", texts) == [text_rules._is_camera_settings(text) for text in texts]


def test_the_first_rule_in_the_order_of_the_knob_is_the_reason() -> None:
    table = pa.table({"text": ["IMG_1234", "a dog", "x", "1 2 3 4 5"]})
    assert apply_rules(table, TextKnobs(rules=("length", "file_name", "few_letters"))).to_pylist() == [
        "length",
        None,
        "length",
        "few_letters",
    ]
    reasons = ["file_name", None, "length", "few_letters"]
    assert apply_rules(table, TextKnobs(rules=("file_name", "boilerplate", "few_letters", "length"))).to_pylist() == reasons
    assert apply_rules(table, TextKnobs(rules=())).to_pylist() == [None] * 4
    assert apply_rules(table.slice(0, 0), TextKnobs()).to_pylist() == []
    assert apply_rules(pa.table({"text": pa.array([None, "a dog"])}), TextKnobs()).to_pylist() == ["empty", None]


def test_the_default_rules_keep_good_captions() -> None:
    assert apply_rules(pa.table({"text": GOOD}), TextKnobs()).to_pylist() == [None] * len(GOOD)


@settings(max_examples=30)  # the rules' expressions are compiled for every table
@given(st.lists(st.one_of(st.sampled_from([*GOOD, "IMG_1", "", "<b>", "www.a.com"]), st.text(max_size=20), st.none())), st.integers(0, 5))
def test_a_text_is_judged_alike_in_whatever_company_and_form(texts: list[str | None], cut: int) -> None:
    knobs = TextKnobs(rules=tuple(rule for rule in RULES if rule != "language"))
    alone = [apply_rules(pa.table({"text": pa.array([text], pa.string())}), knobs)[0].as_py() for text in texts]
    assert apply_rules(pa.table({"text": pa.array(texts, pa.string())}), knobs).to_pylist() == alone
    chunks = pa.chunked_array([pa.array(texts[:cut], pa.large_string()), pa.array(texts[cut:], pa.large_string())])
    reasons = apply_rules(pa.table({"key": range(len(texts)), "text": chunks}), knobs)
    assert isinstance(reasons, pa.StringArray)
    assert reasons.to_pylist() == alone


def test_long_tables_are_judged_block_by_block_with_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"text": [*GOOD, "IMG_1234", "", "dog " * 40, "DSC0001", "ünïcödé ünïcödé ünïcödé", "x"]})
    knobs = TextKnobs(rules=tuple(rule for rule in RULES if rule != "language"))
    whole = apply_rules(table, knobs)
    for size in (1, 7, 60):
        monkeypatch.setattr(text_rules, "_BLOCK_BYTES", size)
        assert apply_rules(table, knobs) == whole


def test_names_are_checked_and_every_rule_is_explained() -> None:
    check_names(TextKnobs().rules)
    assert {*RULES, *WHOLE_TABLE_RULES} == set(TextKnobs().rules)
    assert all(rule.__doc__ for rule in RULES.values())
    with pytest.raises(UserError, match="`nolength`, which is no text rule: the rules are empty, "):
        check_names(["nolength"])
