import pyarrow as pa
import pytest

from clipkit import UserError
from clipkit.dataset.text_rules import RULES, apply_rules, check_names
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
]


def dropped(rule: str, texts: list[str], **knobs: object) -> list[bool]:
    table = pa.table({"text": pa.array(texts, pa.string()), "images_per_text": pa.array([1] * len(texts))})
    return RULES[rule](table, TextKnobs.model_validate(knobs)).to_pylist()  # type: ignore[no-any-return]


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


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"boilerplate"}))
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


def test_boilerplate_is_a_text_beside_too_many_images() -> None:
    table = pa.table({"text": ["logo", "cat"], "images_per_text": [11, 10]})
    assert RULES["boilerplate"](table, TextKnobs()).to_pylist() == [True, False]


def test_other_languages_are_dropped_and_those_asked_for_kept() -> None:
    german, french, japanese = "ein roter Kreis auf dem Tisch", "un cercle rouge sur la table", "赤い丸がテーブルの上にある"
    assert dropped("language", [german, french, japanese]) == [True, True, True]
    assert dropped("language", [german, french, "A red circle is lying on the table."], languages=["de", "fr"]) == [False, False, True]
    assert dropped("language", ["a red circle"], language_confidence=0.9) == [True]


def test_the_first_rule_in_the_order_of_the_knob_is_the_reason() -> None:
    table = pa.table({"text": ["IMG_1234", "a dog", "x", "1 2 3 4 5"], "images_per_text": [1, 99, 1, 1]})
    rules = ("length", "file_name", "boilerplate", "few_letters")
    assert apply_rules(table, TextKnobs(rules=rules)).to_pylist() == ["length", "boilerplate", "length", "few_letters"]
    assert apply_rules(table, TextKnobs(rules=("file_name", "boilerplate", "few_letters", "length"))).to_pylist() == [
        "file_name",
        "boilerplate",
        "length",
        "few_letters",
    ]
    assert apply_rules(table, TextKnobs(rules=())).to_pylist() == [None] * 4
    assert apply_rules(table.slice(0, 0), TextKnobs()).to_pylist() == []


def test_the_default_rules_keep_good_captions() -> None:
    table = pa.table({"text": GOOD, "images_per_text": [1] * len(GOOD)})
    assert apply_rules(table, TextKnobs()).to_pylist() == [None] * len(GOOD)


def test_names_are_checked_and_every_rule_is_explained() -> None:
    check_names(TextKnobs().rules)
    assert all(rule.__doc__ for rule in RULES.values())
    with pytest.raises(UserError, match="`nolength`, which is no text rule: the rules are empty, "):
        check_names(["nolength"])


@pytest.mark.parametrize(
    ("text", "is_dropped"),  # with English's share of the best guess's score
    [
        ("Bratwurst grill", True),  # 0.11
        ("Lisboa tram", True),  # 0.15
        ("paella pan", True),  # 0.16
        ("Hotel Berlin", True),  # 0.27
        ("Neuschwanstein castle", False),  # 0.32
        ("Volkswagen Golf GTI", False),  # 0.36
        ("Venezia gondola", False),  # 0.43
        ("lake Garda", False),  # 0.56
        ("Mont Saint Michel", False),  # 0.68
    ],
)
def test_a_wanted_language_needs_its_share_of_the_best_guesss_score(text: str, *, is_dropped: bool) -> None:
    assert dropped("language", [text]) == [is_dropped]
