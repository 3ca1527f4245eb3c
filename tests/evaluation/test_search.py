"""The nearest pictures of shards, beside a sort of all cosines; the page; what is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from clipkit import UserError
from clipkit.cli import app
from clipkit.dataset.shards import Pair, Shards, pair_key, write_shards
from clipkit.evaluation.search import Best, search_shards

COLORS = ("red", "green", "blue", "yellow", "white", "black")
HOSTILE = "<script>alert(1)</script> red \x1b[31m & \u202egnp.exe"


@pytest.fixture
def shards(tmp_path: Path, make_picture: Callable[..., bytes]) -> Shards:
    """23 pairs in shards of 6; pair 0 has a hostile caption."""
    pairs = []
    for i in range(23):
        text = HOSTILE if i == 0 else f"{COLORS[i % 6]} number {i}"
        image = make_picture(COLORS[i % 6], seed=i, size=20)
        pairs.append(Pair(pair_key(f"http://x/{i}", text), image, text, {"image_url": f"http://x/{i}"}))
    return write_shards(pairs, tmp_path / "shards", pairs_per_shard=6, recipe={}, funnel=[])


@given(st.lists(st.lists(st.integers(-3, 3), max_size=9), max_size=6), st.integers(1, 12))
def test_the_best_of_a_stream_are_the_best_of_all(blocks: list[list[int]], k: int) -> None:
    best = Best(k)
    for number, block in enumerate(blocks):
        best.add(np.array(block, float), number)
    wanted = sorted((-score, number, row) for number, block in enumerate(blocks) for row, score in enumerate(block))[:k]
    assert [(-s, *place) for s, place in zip(best.score_K.tolist(), best.place_K.tolist(), strict=True)] == wanted


def test_a_text_finds_what_a_sort_of_all_cosines_finds(shards: Shards, color_encoder: Any, scratch_run: Any, tmp_path: Path) -> None:
    report = search_shards(color_encoder, shards, "something red", top=9, run=scratch_run, cache=tmp_path / "c", batch_size=4)
    text = color_encoder.encode_texts(["red"])[0].double().numpy()
    scores = {}
    for shard in shards.shards:
        for pair in shards.read(shard):
            image = color_encoder.encode_images(color_encoder.preprocess(pair.image)[None]).projected_BD[0].double().numpy()
            scores[pair.key] = (math.fsum(image * text), pair.text)
    wanted = sorted(scores, key=lambda key: -scores[key][0])[:9]
    assert report["kind"] == "text"
    assert [found["key"] for found in report["found"]] == wanted
    assert [found["score"] for found in report["found"]] == pytest.approx([scores[key][0] for key in wanted], abs=1e-5)
    assert [found["text"] for found in report["found"]] == [scores[key][1] for key in wanted]
    assert [found["rank"] for found in report["found"]] == list(range(1, 10))


def test_a_second_search_encodes_nothing(shards: Shards, color_encoder: Any, scratch_run: Any, tmp_path: Path) -> None:
    first = search_shards(color_encoder, shards, "red", top=3, run=scratch_run, cache=tmp_path / "c")
    seen = color_encoder.pictures_seen
    assert search_shards(color_encoder, shards, "red", top=3, run=scratch_run, cache=tmp_path / "c") == first
    assert color_encoder.pictures_seen == seen == 23


def test_a_file_is_a_picture_and_finds_itself_first(
    shards: Shards, color_encoder: Any, image_only_encoder: Any, scratch_run: Any, tmp_path: Path
) -> None:
    pair = list(shards.read(shards.shards[1]))[2]
    (tmp_path / "asked.png").write_bytes(pair.image)
    for encoder in (color_encoder, image_only_encoder):
        report = search_shards(encoder, shards, str(tmp_path / "asked.png"), top=1, run=scratch_run, cache=tmp_path / "c")
        assert (report["kind"], report["found"][0]["key"]) == ("picture", pair.key)
        assert report["found"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_what_cannot_be_asked_is_told(
    shards: Shards, color_encoder: Any, image_only_encoder: Any, scratch_run: Any, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for encoder, asked, told in (
        (image_only_encoder, "red", "encodes no texts"),
        (color_encoder, "  ", "is empty"),
        (color_encoder, str(tmp_path / "broken.png"), "cannot be decoded"),
    ):
        with pytest.raises(UserError, match=told):
            search_shards(encoder, shards, asked, top=1, run=scratch_run, cache=tmp_path / "c")


def test_the_command_writes_a_page_that_holds_the_pictures_and_obeys_no_caption(
    shards: Shards, color_encoder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("clipkit.model.encoder.load_encoder", lambda spec, **_: color_encoder)
    page = tmp_path / "found.html"
    asked = ["search", "red", "--model", "color", "--shards", str(shards.root), "--cache", str(tmp_path / "c"), "--top", "4"]
    told = CliRunner().invoke(app, [*asked, "--out", str(page)])
    assert told.exit_code == 0, told.output
    assert "taken as a text" in told.stderr
    assert "\x1b[31m" not in told.stdout
    assert "\u202e" not in told.stdout
    html = page.read_text()
    assert html.count("data:image/png;base64,") == 4
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "\u202e" not in html
    report = json.loads(CliRunner().invoke(app, [*asked, "--json", "--quiet"]).stdout)
    places = [html.index(f'id="{found["key"]}"') for found in report["found"]]
    assert places == sorted(places)
    assert f"score {report['found'][0]['score']:.4f}" in html
