"""What makes two pairs one class."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipkit import UserError
from clipkit.dataset.shards import Pair, pair_key, write_shards
from clipkit.training.labels import Labels, class_of
from clipkit.training.sources import Sources


@pytest.fixture
def shards(tmp_path, make_shards):
    image = next(make_shards(1).read(make_shards(1).shards[0])).image
    pairs = []
    for i in range(7):
        metadata = {"image_url": f"https://pictures.example/{i}", "source": None if i in (2, 5) else f"site {i % 2}", "queries": [i % 2]}
        pairs.append(Pair(pair_key(metadata["image_url"], f"text {i}"), image, f"text {i}", metadata))
    return write_shards(pairs, tmp_path / "labelled", pairs_per_shard=3, recipe={}, funnel=[])


def test_captions_that_differ_in_case_and_white_space_alone_are_one_class():
    assert class_of("A  Straße\n") == class_of("a STRASSE")
    assert class_of("a cat") != class_of("a cats")
    assert len({class_of(f"caption {i}") for i in range(10_000)}) == 10_000
    assert all(-(2**63) <= class_of(f"caption {i}") < 2**63 for i in range(100))
    assert class_of("\ud800") != class_of("")


def test_a_column_makes_the_classes_and_who_has_no_value_is_alone(shards):
    labels = Labels(Sources.of(shards, ()), "source", open_shards=1)
    found = np.array([labels.of(position, "the same caption") for position in (6, 0, 1, 2, 3, 4, 5)])[[1, 2, 3, 4, 5, 6, 0]]
    expected = np.array([0, 1, -2, 1, 0, -5, 0])
    np.testing.assert_array_equal(found[:, None] == found, expected[:, None] == expected)
    queries = Labels(Sources.of(shards, ()), "queries", open_shards=2)
    assert [queries.of(i, "") == queries.of(0, "") for i in range(7)] == [i % 2 == 0 for i in range(7)]


def test_the_key_as_a_column_sets_every_pair_alone(shards):
    labels = Labels(Sources.of(shards, ()), "key", open_shards=2)
    assert len({labels.of(i, "") for i in range(7)}) == 7


def test_by_caption_no_table_is_read(shards):
    (shards.root / shards.shards[0].table_name).unlink()
    assert Labels(Sources.of(shards, ()), "caption", open_shards=1).of(0, "Text  0") == class_of("text 0")


def test_an_unknown_column_is_a_sentence_that_lists_the_columns(shards):
    with pytest.raises(UserError, match=r"`data.label` is `breed`, .* `caption`, or one of key, image_url, text, page_url, source"):
        Labels(Sources.of(shards, ()), "breed", open_shards=1)


def test_a_table_that_was_changed_is_a_clear_error(shards):
    path = shards.root / shards.shards[1].table_name
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(UserError, match="is not what its manifest says"):
        Labels(Sources.of(shards, ()), "source", open_shards=1).of(4, "")
