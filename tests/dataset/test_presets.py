"""The recipes that stand for published datasets: what they keep and drop is what was published."""

import io
import itertools
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from clipkit.dataset.images import image_rules
from clipkit.dataset.images.image_rules import store_image
from clipkit.dataset.texts import text_rules
from clipkit.dataset.texts.text_rules import WHOLE_TABLE_RULES, apply_rules
from clipkit.recipe import BuildRecipe, load_recipe
from clipkit.resources import find, names

PRESETS = ("clip-wit", "coyo", "datacomp-basic", "laion", "metaclip-400m", "yfcc15m")


def preset(name: str) -> BuildRecipe:
    return load_recipe(BuildRecipe, find("recipes/build-dataset", name))


def reasons(name: str, *texts: str) -> list[str | None]:
    return apply_rules(pa.table({"text": texts}), preset(name).text).to_pylist()  # type: ignore[no-any-return]


def image(width: int, height: int, *, few_bytes: bool = False) -> bytes:
    out = io.BytesIO()
    noise = Image.effect_noise((width, height), 80).convert("RGB")
    (Image.new("RGB", (width, height)) if few_bytes else noise).save(out, "JPEG")
    return out.getvalue()


def fate(name: str, data: bytes) -> str:
    stored = store_image(data, preset(name).images)
    return stored if isinstance(stored, str) else "kept"


@pytest.mark.parametrize("name", PRESETS)
def test_the_command_line_of_a_preset_loads_and_all_its_rules_exist(name: str) -> None:
    assert name in names("recipes/build-dataset")
    path = find("recipes/build-dataset", name)
    header = re.match(r"(#.*\n)+", path.read_text())
    assert header is not None
    assert "What it reproduces" in header[0]
    assert "What it does not do" in header[0]
    lines = [line.removeprefix("#").strip() for line in header[0].splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("clipkit build-dataset"))
    words = shlex.split(" ".join(line.removesuffix("\\") for line in lines[start : lines.index("", start)]))
    assert words[:3] == ["clipkit", "build-dataset", f"recipes/build-dataset/{name}.toml"]
    overrides = [value for option, value in itertools.pairwise(words) if option == "--set"]
    assert overrides
    recipe = load_recipe(BuildRecipe, Path(path), overrides)
    text_rules.check_names(recipe.text.rules)
    image_rules.check_names(recipe.images.rules)


def test_clip_wit_judges_no_text_and_matches_and_balances_exactly() -> None:
    recipe = preset("clip-wit")
    assert reasons("clip-wit", "IMG_1234", "ein Hund", "x", "<b>dog</b>", "dog dog dog dog") == [None] * 5
    assert not recipe.text.repair_mojibake
    assert (recipe.match.mode, recipe.match.required, recipe.balance.mode, recipe.balance.limit) == ("tokens", True, "exact", 20_000)
    assert fate("clip-wit", image(5, 5)) == "kept"


def test_metaclip_keeps_english_and_expects_twenty_thousand_picks() -> None:
    recipe = preset("metaclip-400m")
    assert reasons("metaclip-400m", "IMG_1234 of a dog", "x", "ein roter Kreis auf dem Tisch") == [None, None, "language"]
    assert (recipe.match.mode, recipe.match.required, recipe.balance.mode, recipe.balance.limit) == ("metaclip", True, "expected", 20_000)


def test_yfcc15m_drops_file_names_camera_settings_and_other_languages_and_needs_no_query() -> None:
    texts = (
        "20160716_113957.JPG",
        "Canon EOS 400D, 1/60 sec, f/5.6, 55mm, ISO 400",
        "Der Hafen am frühen Morgen",
        "Sunset over the harbour",
    )
    assert reasons("yfcc15m", *texts) == ["file_name", "camera_settings", "language", None]
    recipe = preset("yfcc15m")
    assert not recipe.match.required
    assert [source.text_column for source in recipe.sources] == ["title", "description"]


def test_datacomp_basic_wants_more_than_two_words_and_more_than_five_characters() -> None:
    assert reasons("datacomp-basic", "a dog", "a big dog", "two-word dog,sofa", "a b c", "a b cd") == [
        "length",
        None,
        "length",
        "length",
        None,
    ]
    assert reasons("datacomp-basic", "a dog " * 500, "un chien noir sur le canapé") == [None, "language"]


@pytest.mark.parametrize("name", ["datacomp-basic", "coyo"])
def test_datacomp_and_coyo_want_200_pixels_and_a_ratio_of_3(name: str) -> None:
    assert fate(name, image(200, 600)) == "kept"
    assert fate(name, image(199, 300)) == "too_small"
    assert fate(name, image(601, 200)) == "aspect_ratio"


def test_coyo_counts_words_and_characters_and_drops_texts_of_many_images() -> None:
    longest = ("the dog " * 128).strip()
    assert reasons("coyo", "a dog", "a b c", "a b cd", longest) == ["length", "length", None, "length"]
    assert reasons("coyo", "dogs " * 199 + "today", "dogs " * 199 + "today.") == [None, "length"]
    assert reasons("coyo", ("in a " * 128).strip(), ("in a " * 128) + "dog") == [None, "length"]
    recipe = preset("coyo")
    assert set(WHOLE_TABLE_RULES) <= set(recipe.text.rules)
    assert recipe.text.max_images_per_text == 10


@pytest.mark.parametrize("name", ["coyo", "laion"])
def test_coyo_and_laion_want_five_kilobytes(name: str) -> None:
    small = image(300, 300, few_bytes=True)
    assert len(small) < 5_000
    assert fate(name, small) == "few_bytes"
    assert fate(name, small + bytes(4_999 - len(small))) == "few_bytes"
    assert fate(name, small + bytes(5_000 - len(small))) == "kept"


def test_laion_wants_five_characters_of_english() -> None:
    assert reasons("laion", "dogs", "a dog", "apple", "Der Hafen am frühen Morgen") == ["length", None, None, "language"]
    assert fate("laion", image(90, 900)) == "kept"
