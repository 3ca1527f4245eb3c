"""Captions of known language, and how the two witnesses are weighed."""

import math

import pytest

from clipkit.dataset.texts import languages
from clipkit.dataset.texts.languages import is_foreign

ENGLISH = """a dog|red circle|A coral trout.|An open book.|The moon.|BMW X5|Hotel Berlin|Volkswagen Golf GTI|Mont Saint Michel|lake Garda
paella pan|Venezia gondola|two cats on a sofa|Model T Ford|snow leopard cub|Woodcut from a Diggers document by William Everard
Sunset over the old harbour of Chania|Portrait of Empress Maria Theresa|wedding dress|iPhone 12 case, black""".replace("\n", "|").split("|")

FOREIGN = """ein roter Kreis auf dem Tisch|un cercle rouge sur la table|le chat noir|la casa|el gato|mein Hund|una mesa roja|plage de sable
donna con cane|zwei Katzen auf dem Sofa|Czerwony tulipan.|En gul tulipan.|Kırmızı bir çiçek|собака|красный круг|赤い丸|一只狗|강아지
ένας σκύλος|कुत्ता|كلب أحمر|Egy sárga tulipán.|Žlutý tulipán.|Een gele tulp.|Keltainen tulppaani.|Một bông hoa""".replace("\n", "|").split(
    "|"
)


def test_english_captions_are_kept_and_others_are_not() -> None:
    assert [text for text in ENGLISH if is_foreign(text, {"en"}, 0)] == []
    assert [text for text in FOREIGN if not is_foreign(text, {"en"}, 0)] == []


def test_other_languages_are_kept_where_they_are_wanted() -> None:
    german, french = "ein roter Kreis auf dem Tisch", "un cercle rouge sur la table"
    assert not is_foreign(german, {"de", "fr"}, 0)
    assert not is_foreign(french, {"de", "fr"}, 0)
    assert is_foreign("A red circle is lying on the table.", {"de", "fr"}, 0)
    assert not is_foreign("A red circle is lying on the table.", {"de", "en"}, 0)


def test_a_confidence_bounds_the_score_from_below() -> None:
    assert not is_foreign("a red circle", {"en"}, 0.1)
    assert is_foreign("a red circle", {"en"}, 0.9)
    assert not is_foreign("The dog is asleep on the red sofa in the living room.", {"en"}, 0.9)


@pytest.mark.parametrize("text", ["", " ", "12345", "!?", "\n\n", "one\ntwo", "\x00", "a" * 10_000])
def test_odd_texts_have_an_answer(text: str) -> None:
    assert is_foreign(text, {"en"}, 0) in (True, False)
    assert is_foreign(text, set(), 0)


def test_capitals_and_a_full_stop_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def guesses(text: str, most: int, least: float) -> dict[str, float]:
        asked.append(text)
        return {"en": 1.0}

    monkeypatch.setattr(languages, "_guesses", guesses)
    for form in ("the old harbour", "THE OLD HARBOUR", "The Old Harbour.", "The old harbour …", "the old\nharbour!"):
        assert not is_foreign(form, {"en"}, 0)
    assert set(asked) == {"the old harbour"}


def test_surplus_pieces_are_those_beyond_one_for_each_word_per_letter() -> None:
    vocabulary = languages._vocabulary()
    assert languages._surplus_pieces("A red circle!") == 0
    assert len(vocabulary.encode("czerwony tulipan")) > 2
    assert languages._surplus_pieces("Czerwony, 3 tulipan") == (len(vocabulary.encode("czerwony tulipan")) - 2) / 15
    assert languages._surplus_pieces("123") == 0


def guess(monkeypatch: pytest.MonkeyPatch, **scores: float) -> None:
    def guesses(text: str, most: int, least: float) -> dict[str, float]:
        likely = {language: score for language, score in scores.items() if score >= least}
        return dict(sorted(likely.items(), key=lambda pair: -pair[1])[:most])

    monkeypatch.setattr(languages, "_guesses", guesses)


def test_english_needs_a_tenth_of_the_best_score_and_more_for_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 0.001 * math.exp(25 * languages._surplus_pieces("Neuschwanstein castle"))
    assert 0.02 < needed < 0.9
    for text, best, score, foreign in [
        ("red circle", 0.8, 0.081, False),
        ("red circle", 0.8, 0.079, True),
        ("Neuschwanstein castle", 0.1, needed * 1.01, False),
        ("Neuschwanstein castle", 0.1, needed * 0.99, True),
    ]:
        guess(monkeypatch, de=best, en=score)
        assert is_foreign(text, {"en"}, 0) == foreign


def test_other_languages_need_three_tenths_of_the_best_score(monkeypatch: pytest.MonkeyPatch) -> None:
    guess(monkeypatch, en=0.6, de=0.17)
    assert is_foreign("Bratwurst", {"de"}, 0)
    guess(monkeypatch, en=0.6, de=0.19)
    assert not is_foreign("Bratwurst", {"de"}, 0)
    assert is_foreign("Bratwurst", {"de"}, 0.2)


def test_a_sure_guess_is_not_asked_for_what_comes_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def guesses(text: str, most: int, least: float) -> dict[str, float]:
        asked.append(most)
        return {"de": 0.95}

    monkeypatch.setattr(languages, "_guesses", guesses)
    assert is_foreign("ein Hund", {"en"}, 0)
    assert asked == [1]
    assert is_foreign("красный круг", {"en"}, 0)
    assert asked == [1], "no score is enough for so many pieces"
