import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq
import pytest

from clipkit import UserError
from clipkit.dataset.queries import Query, QueryList, collect, load_queries
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
    assert queries.left_out == {"blank": 2, "duplicate": 4, "no_letters_or_digits": 1}
    assert queries.table().to_pylist()[6] == {"number": 6, "query": "dog", "source": "wordnet", "count": None, "limit": None}


DATA = """  1 This software and database is being provided to you, the LICENSEE, by
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 ~ 00002137 n 0000 ~ 04424418 n 0000 | that which is perceived to exist
02084071 05 n 03 domestic_dog 0 dog 0 Canis_familiaris 0 001 @ 02083346 n 0000 | a member of the genus Canis
00003356 00 s 02 galore(ip) 0 a.m. 0 001 & 00003131 a 0000 | in great numbers
"""


def test_a_synset_is_named_by_its_first_word(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(DATA)
    assert load_queries(QueryKnobs(wordnet=str(tmp_path), wordnet_names="synsets")).texts == ("entity", "domestic dog", "galore")
    with pytest.raises(UserError, match=r"holds none of index\.noun"):
        load_queries(QueryKnobs(wordnet=str(tmp_path)))
    with pytest.raises(UserError, match="line 2 is no line of a WordNet index file"):
        load_queries(QueryKnobs(wordnet=str(tmp_path / "data.noun")))


def test_a_line_with_a_number_sign_is_a_comment_and_a_query_may_begin_with_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("# my list\n\\#1 dad\ndog # 1\n#dog\n\\\\ back\n")
    assert load_queries(QueryKnobs(files=(str(tmp_path / "a.txt"),))).texts == ("#1 dad", "dog # 1", "\\\\ back")


def test_a_table_brings_limits_counts_and_sources(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("limit,query,count,source\n3,dog,10,words\n,cat,,\n")
    queries = load_queries(QueryKnobs(files=(str(tmp_path / "a.csv"),)))
    assert (queries.limits, queries.counts, queries.sources) == ((3, None), (10, None), ("words", "a.csv"))
    assert queries.limits_Q(20_000).tolist() == [3, 20_000]
    assert queries.limits_Q(1).dtype == np.int64


def test_a_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    queries = collect([Query("dog", "x", 5, 2), Query("Straße", "y"), Query("dog", "z")])
    told = queries.write(tmp_path / "q.parquet")
    again = QueryList.read(tmp_path / "q.parquet")
    assert again == dataclasses.replace(queries, left_out={})
    assert told == {"file": "q.parquet", "count": 2, "content_hash": again.content_hash}
    assert load_queries(QueryKnobs(files=(str(tmp_path / "q.parquet"),))).content_hash == queries.content_hash
    (tmp_path / "other.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is no query list as clipkit writes it"):
        QueryList.read(tmp_path / "other.parquet")


def test_one_wordnet_index_file_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "index.noun").write_text(WORDNET)
    assert load_queries(QueryKnobs(wordnet=str(tmp_path / "index.noun"))).texts == ("toy box", "dog")


def test_the_content_hash_tells_lists_orders_spellings_and_limits_apart() -> None:
    lists = [["dog", "cat"], ["cat", "dog"], ["Dog", "cat"], ["dog", "cat", "a"], ["dog cat"], ["dog\ncat"]]
    hashes = [collect([Query(text, "x") for text in texts]).content_hash for texts in lists]
    limited = collect([Query("dog", "x", limit=5), Query("cat", "x")]).content_hash
    assert len({*hashes, limited}) == 7
    assert collect([Query("dog", "y", count=3), Query("cat", "z"), Query("DOG!", "z")]).content_hash == hashes[0]


def test_a_query_longer_than_any_caption_is_left_out_and_counted() -> None:
    assert collect([Query("x" * 1001, "x"), Query("y", "x")]).left_out == {"too_long": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "is no file"),
        ("q.json", b"[]", r"ends in \.txt, \.csv or \.parquet"),
        ("q.csv", b"word\ndog\n", "has no column `query`, only `word`"),
        ("q.csv", b"", "cannot be read as csv"),
        ("q.parquet", b"PAR1 no", "cannot be read as parquet"),
        ("q.txt", b"caf\xe9\n", "line 1 is no UTF-8 text \\(byte 0xe9\\): save it as UTF-8"),
        ("q.csv", b"query\ndog\ncaf\xe9\n", "line 3 is no UTF-8 text"),
        ("q.csv", b"query;limit\ndog;1\n", "only `query;limit`: part the columns with commas"),
        ("q.txt", b"# only\n\n# comments\n", "q.txt`, which holds no query"),
        ("q.csv", b"query,limit\ndog,0\n", "has the limit 0"),
        ("q.csv", b'query,limit\n"dog\ncat",5\ndog,many\n', "line 4 has the limit `many`: a whole number"),
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


def test_for_metaclips_rule_a_query_is_its_spelling(tmp_path):
    (tmp_path / "queries.txt").write_text("Golden\ngolden\ngolden\n?\n")
    knobs = QueryKnobs(files=(str(tmp_path / "queries.txt"),))
    assert load_queries(knobs).texts == ("Golden",)
    assert load_queries(knobs, mode="metaclip").texts == ("Golden", "golden", "?")


def test_a_folder_without_a_list_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"names the folder `.*`, which holds no queries\.parquet"):
        load_queries(QueryKnobs(files=(str(tmp_path),)))


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('query\nDog\ndog\n""\n!!!\n\U0001f600\n')
    assert load_queries(QueryKnobs(files=(str(tmp_path / "a.csv"),))).left_out == {"blank": 1, "duplicate": 1, "no_letters_or_digits": 2}
