"""Several folders of shards, mixed by weights or laid end to end."""

import io
import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from clipkit import UserError
from clipkit.cli import app
from clipkit.dataset.shards import Pair, Shards, pair_key, write_shards
from clipkit.recipe import DataKnobs, TrainRecipe
from clipkit.run import Run
from clipkit.training import loop, sources
from clipkit.training.batches import Batches
from clipkit.training.sources import Sources


def make(given, *, batch_size: int = 8, rank: int = 0, ranks: int = 1, **knobs) -> Batches:
    data = DataKnobs(**{"workers": 0, "shuffle_buffer": 25, **knobs})
    return Batches(given, data, image_size=32, batch_size=batch_size, seed=5, rank=rank, ranks=ranks)


def keys_of(shards: Shards) -> list[str]:
    return [pair.key for shard in shards.shards for pair in shards.read(shard)]


def changed(shards: Shards, root, start: int) -> Shards:
    """The same pictures under texts, and so keys, of their own."""
    pairs = [pair for shard in shards.shards for pair in shards.read(shard)]
    texts = [f"{pair.text}, copy {start + i}" for i, pair in enumerate(pairs)]
    made = [Pair(pair_key("copy", text), pair.image, text, pair.metadata) for pair, text in zip(pairs, texts, strict=True)]
    return write_shards(made, root, pairs_per_shard=7, recipe={}, funnel=[])


@pytest.fixture
def two(make_shards, tmp_path) -> tuple[Shards, Shards]:
    """Thirty pairs, and forty others."""
    return make_shards(30), changed(make_shards(40), tmp_path / "others", 0)


def test_batches_have_their_quota_of_each_source(two):
    first = set(keys_of(two[0]))
    batches = make(two, weights=[3, 1])
    assert [sum(key in first for key in batch.keys) for batch in batches.from_step(0, 15)] == [6] * 15
    assert [facts["samples_seen"] for facts in batches.source_facts(15)] == [90, 30]
    assert [facts["pairs"] for facts in batches.source_facts(15)] == [30, 40]


def test_keys_texts_and_pictures_belong_together_whatever_source_they_are_of(two):
    pairs = {pair.key: pair for shards in two for shard in shards.shards for pair in shards.read(shard)}
    for batch in make(two, weights=[1, 1]).from_step(0, 5):
        assert [pairs[key].text for key in batch.keys] == batch.texts


def test_mixed_batches_are_the_same_on_any_number_of_ranks_and_workers_and_after_resuming(two):
    whole = list(make(two, weights=[3, 1]).from_step(0, 6))
    parts = [list(make(two, weights=[3, 1], rank=rank, ranks=4, workers=1).from_step(3, 6)) for rank in range(4)]
    for batch, *quarters in zip(whole[3:], *parts, strict=True):
        assert batch.keys == [key for quarter in quarters for key in quarter.keys]
        assert torch.equal(batch.pixels_BCHW, torch.cat([quarter.pixels_BCHW for quarter in quarters]))


def test_without_weights_sources_are_as_one_set_laid_end_to_end(two, tmp_path):
    pairs = [pair for shards in two for shard in shards.shards for pair in shards.read(shard)]
    assert [pair.key for pair in pairs] == keys_of(two[0]) + keys_of(two[1])
    together = write_shards(pairs, tmp_path / "one", pairs_per_shard=10, recipe={}, funnel=[])
    # One window over all: how the tars are cut does not show then, but for their order, which is drawn.
    order = Sources.of(two, ()).order(batch_size=8, window=100, seed=1, without=np.zeros(0, np.int64))
    assert order.count == together.count == 70
    seen = np.concatenate([order.positions(step) for step in range(8)])
    assert len(set(seen.tolist())) == 64
    reader = make(two).reader
    assert [reader.read(i).key for i in range(70)] == keys_of(together)


def test_a_source_given_twice_is_seen_and_told(two, tmp_path):
    assert Sources.of(two, ()).shared_keys() == 0
    assert Sources.of([two[0], two[1], two[0]], ()).shared_keys() == 30
    assert Sources.of(two[0], ()).shared_keys() == 0


def test_too_many_pairs_are_not_compared(two, monkeypatch):
    monkeypatch.setattr(sources, "MAX_COMPARED", 69)
    assert Sources.of(two, ()).shared_keys() is None


def test_a_pair_that_is_held_out_is_not_trained_on_from_another_source_either(two):
    given = [two[0], two[1], two[0]]
    batches = make(given, weights=[1, 1, 1], batch_size=9, hold_out=31)
    out = {batches.reader.read(position).key for position in batches.held_out_N.tolist()}
    seen = Counter(key for batch in batches.from_step(0, 30) for key in batch.keys)
    assert len(batches.held_out_N) == 31
    assert not out & set(seen)
    assert batches.count == 100 - sum(key in out for shards in given for key in keys_of(shards))


def test_all_copies_of_a_held_out_key_are_kept_out(two):
    given = [two[0], two[1], two[0]]
    keys = [key for shards in given for key in keys_of(shards)]
    for count in range(1, 30):
        kept_out = Sources.of(given, ()).keep_out(count, seed=0)
        out = {keys[i] for i in kept_out.positions_N.tolist()}
        assert kept_out.with_twins.tolist() == [i for i, key in enumerate(keys) if key in out]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"weights": [1, 2, 3]}, r"3 numbers where `--data` was given 2 times"),
        ({"weights": [1]}, r"1 numbers where `--data` was given 2 times"),
        ({"weights": [30, 1], "batch_size": 8}, r"others` less than one pair of a batch of 8"),
        ({"weights": [30, 1], "batch_size": 33}, r"hold 30 pairs to train on, fewer than the 32 .*"),
        ({"weights": [1, 1], "batch_size": 71}, r"70 pairs, fewer than `batch_size` = 71"),
    ],
)
def test_shares_that_cannot_be_had_are_a_clear_error(two, knobs, message):
    with pytest.raises(UserError, match=message):
        make(two, **knobs)


def test_an_empty_source_is_a_clear_error(two, make_shards):
    empty = make_shards(0)
    for weights in ([], [1, 1]):
        with pytest.raises(UserError, match=r"shards-0-10-0` hold no pairs"):
            make([two[0], empty], weights=weights)


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_a_weight_that_is_no_positive_number_is_refused(weight):
    with pytest.raises(ValueError, match="weights"):
        DataKnobs(weights=[1, weight])


def test_a_run_on_several_sources_tells_what_each_gave(two, recipe, tmp_path):
    knobs = TrainRecipe.model_validate({**recipe.model_dump(), "data": {**recipe.data.model_dump(), "weights": [1, 3]}})
    report = loop.train(knobs, two, Run.scratch(tmp_path / "run"))
    assert report["pairs"] == 70
    assert [(told["shards"], told["samples_seen"]) for told in report["sources"]] == [(str(two[0].root), 24), (str(two[1].root), 72)]
    assert "more than one source" not in (tmp_path / "run" / "log.txt").read_text()
    loop.train(knobs, [two[0], two[0]], Run.scratch(tmp_path / "twice"))
    assert "30 pairs stand in more than one source" in (tmp_path / "twice" / "log.txt").read_text()


def test_the_command_takes_data_several_times_and_resumes_on_the_same_in_the_same_order_alone(two, tmp_path):
    def train(*given: Shards):
        data = [part for shards in given for part in ("--data", str(shards.root))]
        few = ["--set", "data.weights=[3,1]", "--set", "samples_seen=64", "--set", "batch_size=16", "--set", "data.workers=0"]
        return CliRunner().invoke(app, ["train", "smoke", *data, "--out", str(tmp_path / "run"), *few, "--quiet", "--json"])

    first = train(*two)
    assert first.exit_code == 0, first.output
    assert [told["samples_seen"] for told in json.loads(first.stdout)["sources"]] == [48, 16]
    assert train(*two).stdout == first.stdout
    swapped = train(*two[::-1])
    assert swapped.exit_code == 2
    assert "option `data` was" in " ".join(swapped.output.split())


def test_a_run_on_odd_pictures_and_captions_ends_with_a_finite_loss(recipe, tmp_path):
    pairs = [
        Pair(pair_key(f"https://pictures.example/{i}", text), _png(*sides), text, {})
        for i, (sides, text) in enumerate([((1, 1), ""), ((1, 2000), "word " * 10_000), ((900, 2), "a caption"), ((40, 40), "\n")] * 2)
    ]
    report = loop.train(
        recipe, write_shards(pairs, tmp_path / "odd", pairs_per_shard=8, recipe={}, funnel=[]), Run.scratch(tmp_path / "run")
    )
    assert report["steps"] == 12
    assert np.isfinite(report["loss"])
    assert report["broken_pictures"] == 0


def _png(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
