"""The language of --where, beside SQLite's answers to the same conditions."""

import sqlite3
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit import UserError
from clipkit.dataset.shards.conditions import Condition
from clipkit.dataset.shards.expressions import MAX_CHARACTERS, MAX_DEPTH, parse
from clipkit.dataset.shards.tables import TABLE_SCHEMA

ROWS = [
    {"n": 1, "m": 5, "score": 0.28, "text": "a red fox", "ok": True},
    {"n": 2, "m": 2, "score": None, "text": "A Red Fox", "ok": False},
    {"n": None, "m": 0, "score": -1.5, "text": None, "ok": None},
    {"n": -3, "m": None, "score": 1e9, "text": "", "ok": True},
    {"n": 7, "m": 7, "score": 0.0, "text": "100% 'quoted' \"so\" a_b", "ok": False},
    {"n": 0, "m": -3, "score": 2.5, "text": "é漢字 naïve", "ok": None},
]
SCHEMA = pa.schema([("n", pa.int32()), ("m", pa.int64()), ("score", pa.float32()), ("text", pa.string()), ("ok", pa.bool_())])
TABLE = pa.Table.from_pylist(ROWS, schema=SCHEMA)


def selected(where: str, table: pa.Table = TABLE) -> list[int]:
    found = Condition(where, table.schema).select(table).fill_null(False).to_pylist()
    return [row for row, is_selected in enumerate(found) if is_selected]


@pytest.fixture(scope="module")
def sqlite() -> Any:
    database = sqlite3.connect(":memory:")
    database.execute("pragma case_sensitive_like = on")
    database.execute("create table t (row int, n int, m int, score real, text text, ok int)")
    for row, values in enumerate(TABLE.to_pylist()):
        database.execute("insert into t values (?, ?, ?, ?, ?, ?)", (row, *values.values()))
    yield lambda where: [row for (row,) in database.execute(f"select row from t where {where} order by row")]
    database.close()


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


NUMBERS = st.one_of(st.integers(-5, 8).map(str), st.sampled_from(["0.28", "-1.5", "2.5", "1e9", ".5", "3."]))
TEXTS = st.sampled_from(["a red fox", "A Red Fox", "", "a_b", "'quoted'", "é漢字 naïve"]).map(quoted)
PATTERNS = st.sampled_from(["%red%", "a%", "%F_x", "%", "_%", "100%", "%''q%", "é%", "%漢_ %"]).map(lambda p: f"'{p}'")
SIGNS = st.sampled_from(["=", "==", "!=", "<>", "<", "<=", ">", ">="])
COLUMNS = st.sampled_from(["n", "m", "score"])
LEAVES = st.one_of(
    st.builds("{} {} {}".format, COLUMNS, SIGNS, st.one_of(NUMBERS, st.sampled_from(["n", "m"]))),
    st.builds("text {} {}".format, SIGNS, TEXTS),
    st.builds("text {} {}".format, st.sampled_from(["like", "not like", "LIKE"]), PATTERNS),
    st.builds("{} {}".format, st.sampled_from(["n", "score", "text", "ok"]), st.sampled_from(["is null", "is not null", "IS NULL"])),
    st.builds("{} {} ({})".format, COLUMNS, st.sampled_from(["in", "not in"]), st.lists(NUMBERS, min_size=1, max_size=4).map(", ".join)),
    st.builds("length(text) {} {}".format, SIGNS, st.integers(0, 12)),
    st.sampled_from(["ok", "ok = true", "ok != true"]),
)
CONDITIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or", "AND"]), inner),
        st.builds("{} {} {}".format, inner, st.sampled_from(["and", "or"]), inner),
        st.builds("not ({})".format, inner),
        st.builds("not {}".format, LEAVES),
    ),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(where=CONDITIONS)
def test_a_condition_selects_what_sqlite_selects(sqlite: Any, where: str) -> None:
    # 0.28 as float32 is not 0.28: SQLite was given the same float32 value. Of `not a < 1` both read `not (a < 1)`.
    assert selected(where) == sqlite(where)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("text ilike '%RED%'", [0, 1]),
        ('text contains "red"', [0]),
        ("not text contains 'red'", [1, 3, 4, 5]),  # null is unknown, not different
        ("text not contains 'red'", [1, 3, 4, 5]),
        ('text = "100% \'quoted\' ""so"" a_b"', [4]),
        ("`n` > 1", [1, 4]),
        ("true", [0, 1, 2, 3, 4, 5]),
        ("false or n = 1", [0]),
        ("n = n", [0, 1, 3, 4, 5]),
        ("1 = 1", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_conditions_beyond_sqlite(where: str, rows: list[int]) -> None:
    assert selected(where) == rows


def test_lists_hosts_and_lengths() -> None:
    urls = ["https://Cdn.Example:8080/a", "http://user:pw@x.org", "ftp://x.org/a", None, "//x.org", "http://[2001:db8::1]/a"]
    queries = [[1, 2], [], [2], None, [12], [1, 1]]
    table = pa.table({"image_url": urls, "queries": pa.array(queries, pa.list_(pa.int32()))})
    assert selected("host(image_url) = 'cdn.example'", table) == [0]
    assert selected("host(image_url) = 'x.org'", table) == [1]
    assert selected("host(image_url) is null", table) == [2, 3, 4]
    assert selected("host(image_url) like '[2001:%'", table) == [5]
    assert selected("queries contains 1", table) == [0, 5]
    assert selected("not queries contains 1", table) == [1, 2, 4]
    assert selected("length(queries) >= 1 and not queries contains 2", table) == [4, 5]
    assert selected("queries is null", table) == [3]
    # A table is cut into batches: a list's members must not be counted from another batch.
    chunked = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    assert selected("queries contains 2", chunked) == [0, 2]
    assert selected("queries contains 12", table.slice(3)) == [1]


@pytest.mark.parametrize(
    ("where", "position", "problem"),
    [
        ("widht > 3", 1, "there is no column `widht`: there are key, image_url"),
        ("width >", 8, "the end stands where a column, a number or a text in quotes should"),
        ("width > 3 width", 11, "`width` stands where `and`, `or` or the end should"),
        ("width > 'a'", 7, "a number is compared with a text"),
        ("text like 3", 6, "`like` compares a text with a text in quotes"),
        ("text = 'a", 8, "a text that is not closed"),
        ("width = 3; drop", 10, "`;` means nothing here"),
        ("(width = 3", 11, "the end stands where `)` should"),
        ("width", 1, "it is a value, no condition"),
        ("width and height", 1, "`and` joins conditions, and this is a value"),
        ("queries = 3", 9, "a list is not compared"),
        ("queries contains 'a'", 9, "`contains` looks for a text in a text, or for a number in a list"),
        ("queries contains 1.5", 9, "a list holds whole numbers"),
        ("width in (1, 'a')", 14, "a number is compared with a text"),
        ("width in ()", 11, "`)` stands where a column, a number or a text in quotes should"),
        ("length(width) > 1", 8, "`length` takes a column of text or lists"),
        ("length(3) > 1", 8, "`3` stands where a column should"),
        ("__import__('os').system('x')", 17, "`.` means nothing here"),
        ("__import__('os')", 11, "`(` stands where `and`, `or` or the end should"),
        ("lambda: 1", 7, "`:` means nothing here"),
        ("width > 99999999999999999999", 9, "a whole number has at most 64 bits"),
        ("width not 3", 11, "`3` stands where `in`, `like`, `ilike` or `contains` should"),
        ("width is 3", 10, "`3` stands where `null` should"),
        ("width =", 8, "the end stands where"),
        ("(" * 51 + "width = 1" + ")" * 51, 52, f"more than {MAX_DEPTH} conditions inside each other"),
        ("not " * 60 + "width = 1", 205, f"more than {MAX_DEPTH} conditions inside each other"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_position(where: str, position: int, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        Condition(where, TABLE_SCHEMA)
    assert f"at position {position}: {problem}" in str(caught.value)


def test_a_condition_is_not_endless() -> None:
    with pytest.raises(UserError, match=r"has 10,001 characters: at most 10,000 are read"):
        parse("a" * (MAX_CHARACTERS + 1))
    long = " or ".join(["width = 1"] * 700)
    assert selected(long, pa.table({"width": [1, 2]})) == [0]


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_is_a_condition_or_a_sentence(where: str) -> None:
    try:
        Condition(where, TABLE_SCHEMA)
    except UserError as error:
        told = str(error)
    else:
        return
    assert "at position" in told


def test_conditions_inside_each_other_are_checked_once() -> None:
    nested = "width = 1"
    for _ in range(40):
        nested = f"({nested}) = true"
    assert selected(nested, pa.table({"width": [1, 2]})) == [0]  # twice per level would take years


def test_a_column_of_another_kind_is_told() -> None:
    with pytest.raises(UserError, match=r"column `day` holds timestamp\[s\]"):
        Condition("day > 3", pa.schema([("day", pa.timestamp("s"))]))


@pytest.mark.parametrize(("text", "value", "kind"), [("id > 0.5", 2**60 + 1, pa.int64()), ("id > 5", 2**63, pa.uint64())])
def test_what_arrow_cannot_compare_is_a_sentence(text: str, value: int, kind: pa.DataType) -> None:
    table = pa.table({"id": pa.array([value], kind)})
    with pytest.raises(UserError, match=r"cannot be computed .*: compare columns of like types"):
        Condition(text, table.schema).select(table)
