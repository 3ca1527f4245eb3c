"""Batches: the same at a step whoever prepares them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit import UserError
from clipkit.dataset.shards import Pair, pair_key, write_shards
from clipkit.model.preprocess import Preprocess, decode_image, resize_shorter_side
from clipkit.recipe import DataKnobs
from clipkit.training import batches as module
from clipkit.training.batches import Batch, Batches, PictureCache


def make(shards, *, batch_size: int = 8, rank: int = 0, ranks: int = 1, seed: int = 5, **knobs) -> Batches:
    data = DataKnobs(**{"workers": 0, "shuffle_buffer": 25, "augmentation": "random-crop-flip", **knobs})
    return Batches(shards, data, image_size=32, batch_size=batch_size, seed=seed, rank=rank, ranks=ranks)


def same(one: Batch, other: Batch) -> bool:
    return (
        one.keys == other.keys
        and one.texts == other.texts
        and one.broken == other.broken
        and torch.equal(one.pixels_BCHW, other.pixels_BCHW)
    )


def test_the_number_of_workers_changes_nothing(make_shards, monkeypatch):
    monkeypatch.setattr(module, "PART", 3)  # Batches of eight come in three parts, from different workers.
    shards = make_shards(40, broken=frozenset({7, 22}))
    alone = list(make(shards).from_step(0, 12))
    assert [len(batch.keys) for batch in alone] == [8] * 12
    assert any(batch.broken for batch in alone)
    for workers in (1, 2):
        assert all(map(same, alone, make(shards, workers=workers).from_step(0, 12)))


def test_starting_at_a_step_gives_the_batches_of_an_uninterrupted_run(make_shards):
    shards = make_shards(40)
    whole = list(make(shards).from_step(0, 12))
    assert all(map(same, whole[7:], make(shards).from_step(7, 12)))


def test_ranks_share_the_batch_that_one_rank_has(make_shards):
    shards = make_shards(40)
    whole = list(make(shards).from_step(0, 6))
    halves = [list(make(shards, rank=rank, ranks=2).from_step(0, 6)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert batch.keys == first.keys + second.keys
        assert torch.equal(batch.pixels_BCHW, torch.cat([first.pixels_BCHW, second.pixels_BCHW]))


def test_keeping_decoded_pictures_changes_nothing_and_decodes_each_once(make_shards, monkeypatch):
    shards = make_shards(24)
    decoded = []
    original = module.decode_image
    monkeypatch.setattr(module, "decode_image", lambda data: decoded.append(data) or original(data))
    kept = list(make(shards).from_step(0, 9))
    assert len(decoded) == len(set(decoded)) == 24
    assert all(map(same, kept, make(shards, cache_bytes=0).from_step(0, 9)))
    assert len(decoded) == 24 + 9 * 8


def test_pictures_and_captions_belong_to_their_keys(make_shards):
    shards = make_shards(24)
    pairs = {pair.key: pair for shard in shards.shards for pair in shards.read(shard)}
    for batch in make(shards, augmentation="resize").from_step(0, 3):
        for key, text, pixels in zip(batch.keys, batch.texts, batch.pixels_BCHW, strict=True):
            assert text == pairs[key].text
            assert torch.equal(pixels, Preprocess(32)(pairs[key].image))


def test_a_random_crop_is_a_square_of_the_resized_picture_mirrored_every_second_time(make_shards):
    shards = make_shards(8, sides=(40, 50))
    parts = make(shards, crop_scale=0.8)._parts
    picture = np.arange(3 * 40 * 50, dtype=np.int64).reshape(3, 40, 50)
    seen = [parts.augmentation.view(0, picture, np.array(draws)) for draws in ((0.0, 0.0, 0.9), (0.999, 0.999, 0.9), (0.5, 0.5, 0.1))]
    np.testing.assert_array_equal(seen[0], picture[:, :32, :32])
    np.testing.assert_array_equal(seen[1], picture[:, 8:, 18:])
    np.testing.assert_array_equal(seen[2], picture[:, 4:36, 9:41][:, :, ::-1])
    assert parts.resized == 40


def test_augmentation_differs_from_epoch_to_epoch(make_shards):
    batches = make(make_shards(1), batch_size=1)
    crops = {batch.pixels_BCHW.numpy().tobytes() for batch in batches.from_step(0, 20)}
    assert len(crops) > 10


def test_held_out_pairs_are_never_trained_on(make_shards):
    shards = make_shards(40)
    batches = make(shards, hold_out=15)
    assert batches.count == 25
    out = {batches.reader.read(position).key for position in batches.held_out_N.tolist()}
    seen = {key for batch in batches.from_step(0, 12) for key in batch.keys}
    assert len(out) == 15
    assert not out & seen


def test_a_broken_picture_is_replaced_by_another_pair_and_named(make_shards):
    shards = make_shards(10, broken=frozenset({3}))
    broken = next(pair.key for shard in shards.shards for pair in shards.read(shard) if len(pair.image) == 60)
    for batch in make(shards, batch_size=10).from_step(0, 5):
        assert set(batch.broken) == {broken}
        assert len(batch.keys) == 10
        assert broken not in batch.keys


def test_shards_of_broken_pictures_alone_are_a_clear_error(make_shards):
    shards = make_shards(10, broken=frozenset(range(10)))
    for workers in (0, 1):
        with pytest.raises(UserError, match="cannot be decoded"):
            list(make(shards, workers=workers).from_step(0, 1))


def test_fewer_pairs_than_a_batch_is_a_clear_error(make_shards):
    with pytest.raises(UserError, match=r"10 pairs, fewer than `batch_size` = 11"):
        make(make_shards(10), batch_size=11)
    with pytest.raises(UserError, match=r"4 pairs after `data.hold_out` = 6"):
        make(make_shards(10), hold_out=6)
    with pytest.raises(UserError, match=r"hold 0 pairs"):
        make(make_shards(0))


def test_ranks_that_cannot_share_a_batch_evenly_are_a_clear_error(make_shards):
    with pytest.raises(UserError, match="3 ranks cannot share it evenly"):
        make(make_shards(10), ranks=3)


def test_more_ranks_and_workers_than_shards_are_no_matter(make_shards):
    shards = make_shards(10, per_shard=10)
    keys = [key for rank in range(4) for batch in make(shards, rank=rank, ranks=4, workers=2).from_step(0, 1) for key in batch.keys]
    assert len(keys) == len(set(keys)) == 8


def test_without_memory_for_the_cache_the_batches_are_the_same(make_shards):
    shards = make_shards(24)
    batches = make(shards, cache_bytes=2**60)
    assert batches.is_cache_refused
    assert not make(shards).is_cache_refused
    for batch, kept in zip(batches.from_step(0, 2), make(shards).from_step(0, 2), strict=True):
        assert torch.equal(batch.pixels_BCHW, kept.pixels_BCHW)


def test_a_full_cache_keeps_what_it_has():
    cache = PictureCache(3, 2 * 3 * 4 * 5)
    pictures = [np.full((3, 4, 5), i, np.uint8) for i in range(3)]
    for i, pixels in enumerate(pictures):
        cache.put(i, pixels)
        cache.put(i, pixels)
    np.testing.assert_array_equal(cache.get(0), pictures[0])
    np.testing.assert_array_equal(cache.get(1), pictures[1])
    assert cache.get(2) is None


def write(pairs, root):
    made = [Pair(pair_key(f"https://pictures.example/{i}", text), image, text, {}) for i, (image, text) in enumerate(pairs)]
    return write_shards(made, root, pairs_per_shard=10, recipe={}, funnel=[])


def picture(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("augmentation", ["random-crop", "resize", "random-crop-flip"])
def test_a_picture_of_one_pixel_an_endless_line_and_captions_of_any_length_are_batches(tmp_path, augmentation):
    pairs = [(picture(1, 1), ""), (picture(1, 3000), "word " * 10_000), (picture(3000, 2), "a caption"), (picture(40, 40), " \n ")]
    shards = write(pairs, tmp_path / "odd")
    (batch,) = make(shards, batch_size=4, augmentation=augmentation).from_step(0, 1)
    assert batch.pixels_BCHW.shape == (4, 3, 32, 32)
    assert batch.broken == []
    assert sorted(batch.texts) == sorted(text for _, text in pairs)
    one_pixel = batch.pixels_BCHW[batch.texts.index("")]
    assert (one_pixel == one_pixel[:, :1, :1]).all()


def test_training_pixels_are_those_of_evaluation_within_two_grey_levels(tmp_path):
    wave = np.sin(np.arange(90)[:, None, None] / 7) * np.cos(np.arange(120)[None, :, None] / 9) * np.array([60.0, 80, 100]) + 127
    file = io.BytesIO()
    Image.fromarray(wave.astype(np.uint8)).save(file, "JPEG", quality=90)
    shards = write([(file.getvalue(), "a wave")], tmp_path / "wave")
    batches = make(shards, batch_size=1, augmentation="random-crop", crop_scale=1.0, cache_bytes=0)
    seen = next(batches.from_step(0, 1)).pixels_BCHW[0].int()
    resized = resize_shorter_side(decode_image(file.getvalue()), 32).int()
    assert min(int((resized[:, :, left : left + 32] - seen).abs().max()) for left in range(resized.shape[2] - 31)) <= 2
