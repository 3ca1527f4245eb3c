from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq
import pytest

from clipkit import UserError
from clipkit.dataset.queries import collect, load_queries
from clipkit.recipe import QueryKnobs

WORDNET = """  1 This software and database is being provided to you, the LICENSEE, by
  2 Princeton University under the following license.
toy_box n 1 1 @ 1 0 02876657
dog n 7 5 @ ~ #m #p %p 7 1 02084071 10114209
"""


def test_sources_are_joined_in_order_and_the_first_spelling_stands(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Toy-Box\n\n  New York  \r\ntoy box\n?!\nNEW YORK!\n", encoding="utf-8-sig")
    pq.write_table(pa.table({"query": ["cat", None, "new york"], "other": [1, 2, 3]}), tmp_path / "b.parquet")
    pc_csv.write_csv(pa.table({"id": [1, 2, 3], "query": ["null", "007", "two\nlines"]}), tmp_path / "c.csv")
    (tmp_path / "index.noun").write_text(WORDNET)
    names = tuple(str(tmp_path / name) for name in ("a.txt", "b.parquet", "c.csv"))
    queries = load_queries(QueryKnobs(files=names, wordnet=str(tmp_path)))
    assert queries.texts == ("Toy-Box", "New York", "cat", "null", "007", "two\nlines", "dog")
    assert queries.sources == ("a.txt", "a.txt", "b.parquet", "c.csv", "c.csv", "c.csv", "wordnet")
    assert queries.left_out == {"duplicate": 4, "no_letters_or_digits": 1}
    assert queries.table().to_pylist()[6] == {"number": 6, "query": "dog", "source": "wordnet"}


def test_one_wordnet_index_file_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "index.noun").write_text(WORDNET)
    assert load_queries(QueryKnobs(wordnet=str(tmp_path / "index.noun"))).texts == ("toy box", "dog")


def test_the_content_hash_tells_lists_apart_and_spellings_not() -> None:
    first, spelt, longer = (
        collect([(text, "x") for text in texts]).content_hash for texts in (["Dog", "cat"], ["dog!", "CAT"], ["dog", "cat", "a"])
    )
    assert first == spelt != longer
    assert collect([("ab", "x")]).content_hash != collect([("a b", "x")]).content_hash


def test_a_query_longer_than_any_caption_is_left_out_and_counted() -> None:
    assert collect([("x" * 1001, "x"), ("y", "x")]).left_out == {"too_long": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "is no file"),
        ("q.json", b"[]", r"ends in \.txt, \.csv or \.parquet"),
        ("q.csv", b"word\ndog\n", "has no column `query`, only `word`"),
        ("q.csv", b"", "cannot be read as csv"),
        ("q.parquet", b"PAR1 no", "cannot be read as parquet"),
        ("q.txt", b"caf\xe9\n", "cannot be read as UTF-8"),
    ],
)
def test_an_unfit_file_is_told_in_one_sentence(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_queries(QueryKnobs(files=(str(tmp_path / name),)))


@pytest.mark.parametrize(
    ("content", "message"), [(None, "holds none of index.noun"), ("dog cat\n", "line 1 is no line of a WordNet index")]
)
def test_a_folder_that_is_not_wordnet_is_told(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "index.verb").write_text(content)
    with pytest.raises(UserError, match=message):
        load_queries(QueryKnobs(wordnet=str(tmp_path)))
