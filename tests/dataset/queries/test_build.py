import bz2
import gzip
import itertools
import json
import math
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from clipkit import UserError
from clipkit.dataset.queries import QueryList, build, dump_counts, load_queries, ready_counts
from clipkit.dataset.queries.build import build_queries
from clipkit.recipe import BuildQueriesRecipe, QueryKnobs
from clipkit.run import Run

WORDNET = "00001740 03 n 02 Golden_Retriever 0 dog 0 001 @ 00001930 n 0000 | a dog\n00001930 03 s 01 red(p) 0 000 | a colour\n"
VIEWS = "en Dog 90 0\nen Titanic_(1997_film) 200 0\nen Kennel 5 0\nen Redirected 999 0\n"


def articles() -> list[tuple[str, list[str]]]:
    """(title, sentences); "new york" is rarer than "the dog" and far more strongly bound."""
    generator = random.Random(0)
    words = ["the"] * 9 + ["a"] * 5 + ["dog", "cat", "house", "runs", "sleeps", "red", "new york", "golden retriever"]
    sentences = [[generator.choice(words) for _ in range(7)] for _ in range(400)]
    texts = [" ".join(sentence) for sentence in sentences]
    titles = ["Dog", "Titanic (1997 film)", "Kennel"]
    return [(titles[number] if number < 3 else f"Article {number}", texts[number * 10 : number * 10 + 10]) for number in range(40)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    page = "<page><title>{}</title><ns>0</ns><revision><text>{}</text></revision></page>\n"
    pages = [page.format(title, "! ".join(sentences)).encode() for title, sentences in articles()]
    blocks = [b"<mediawiki>\n", *[b"".join(pages[start : start + 4]) for start in range(0, 40, 4)], b"</mediawiki>\n"]
    (root / "multistream.xml.bz2").write_bytes(b"".join(bz2.compress(block) for block in blocks))
    (root / "one.xml.bz2").write_bytes(bz2.compress(b"".join(blocks)))
    (root / "views.gz").write_bytes(gzip.compress(VIEWS.encode()))
    (root / "data.noun").write_text("  1 the licence\n" + WORDNET)
    (root / "own.csv").write_text("query,limit\nDog,5\nmy own,\n")
    return root


def recipe_of(inputs: Path, dump: str = "multistream.xml.bz2", **changes: Any) -> BuildQueriesRecipe:
    knobs = {
        "files": [str(inputs / "own.csv")],
        "wikipedia": {"files": [str(inputs / dump)]},
        "words": {"min_count": 20},
        "bigrams": {"min_count": 20, "top": 3},
        "titles": {"page_views": [str(inputs / "views.gz")], "min_views": 50, "articles": True},
        "wordnet": str(inputs),
        "processes": 1,
    }
    return BuildQueriesRecipe.model_validate({**knobs, **changes})


def build_list(recipe: BuildQueriesRecipe, out: Path) -> tuple[QueryList, dict[str, Any]]:
    report = build_queries(recipe, Run.scratch(out))
    return QueryList.read(out / "queries.parquet"), json.loads(json.dumps(report, allow_nan=False))


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump_counts, "SECTION_BYTES", 300)
    monkeypatch.setattr(dump_counts, "PIECE_BYTES", 2_000)


def test_the_list_has_the_papers_sources_in_the_papers_order(inputs: Path, tmp_path: Path) -> None:
    queries, report = build_list(recipe_of(inputs), tmp_path)
    words = Counter(word for _, sentences in articles() for sentence in sentences for word in sentence.split())
    common = sorted((word for word in words if words[word] >= 20 and word != "dog"), key=lambda word: (-words[word], word))
    bigrams = list(queries.texts)[2 + len(common) : 5 + len(common)]
    assert queries.texts[:2] == ("Dog", "my own")
    assert list(queries.texts[2 : 2 + len(common)]) == common
    assert set(bigrams[:2]) == {"new york", "golden retriever"}
    assert queries.texts[5 + len(common) :] == ("Titanic",)
    assert queries.sources[-1] == "titles"
    assert queries.counts[-1] == 200
    assert queries.limits[:3] == (5, None, None)
    assert queries.counts[2] == words["the"]
    assert report["content_hash"] == queries.content_hash
    assert report["left_out"] == {"duplicate": 4}  # dog (words), Dog (titles), Golden Retriever and red (WordNet)
    assert [(row["source"], row["offered"], row["queries"]) for row in report["sources"]] == [
        ("own", 2, 2),
        ("words", len(common) + 1, len(common)),
        ("bigrams", 3, 3),
        ("titles", 2, 1),
        ("wordnet", 2, 0),
    ]
    assert report["wikipedia"]["articles"] == 40
    assert not (tmp_path / "stages/wikipedia").exists()


def test_bigrams_are_ranked_by_what_they_say_of_each_other(inputs: Path, tmp_path: Path) -> None:
    build_list(recipe_of(inputs, sources=["bigrams"], bigrams={"min_count": 1, "top": None}), tmp_path)
    words: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for _, sentences in articles():
        for sentence in sentences:
            words.update(sentence.split())
            pairs.update(itertools.pairwise(sentence.split()))
    total = words.total()
    kept = {word for word in words if words[word] >= 20}
    wanted = {
        f"{a} {b}": math.log2((count / total) / ((words[a] / total) * (words[b] / total)))
        for (a, b), count in pairs.items()
        if {a, b} <= kept
    }
    table = pq.read_table(tmp_path / "stages/bigrams.parquet").to_pylist()
    assert {row["query"]: pytest.approx(row["pmi"]) for row in table} == wanted
    order = [row["pmi"] for row in table]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(order))
    build_list(recipe_of(inputs, sources=["bigrams"], bigrams={"min_count": 1, "top": None, "pmi_min": 1.0}), tmp_path / "strong")
    strong = pq.read_table(tmp_path / "strong/stages/bigrams.parquet")["query"].to_pylist()
    assert strong == [row["query"] for row in table if row["pmi"] >= 1.0]


@pytest.mark.usefixtures("small_pieces")
def test_the_list_does_not_depend_on_streams_pieces_and_processes(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_list(recipe_of(inputs), tmp_path / "pieces")
    build_list(recipe_of(inputs, processes=2), tmp_path / "processes")
    build_list(recipe_of(inputs, "one.xml.bz2"), tmp_path / "one-stream")
    monkeypatch.undo()
    build_list(recipe_of(inputs), tmp_path / "one-piece")
    files = [(tmp_path / name / "queries.parquet").read_bytes() for name in ("pieces", "processes", "one-stream", "one-piece")]
    assert len(set(files)) == 1


KILLED = """
import sys, time
from pathlib import Path
from clipkit.dataset.queries import dump_counts, ngrams
from clipkit.dataset.queries.build import build_queries
from clipkit.recipe import BuildQueriesRecipe
from clipkit.run import Run
dump_counts.SECTION_BYTES, dump_counts.PIECE_BYTES = 300, 2_000
write = dump_counts.write_sorted
dump_counts.write_sorted = lambda *given: (time.sleep(float(sys.argv[3])), write(*given))
build_queries(BuildQueriesRecipe.model_validate_json(Path(sys.argv[1]).read_text()), Run.scratch(Path(sys.argv[2])))
"""


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dump", ["multistream.xml.bz2", "one.xml.bz2"], ids=["sections of a piece", "a section of many pieces"])
def test_a_killed_run_goes_on_from_the_last_finished_piece(inputs: Path, tmp_path: Path, dump: str) -> None:
    recipe = recipe_of(inputs, dump)
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    out = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "recipe.json"), str(out), "0.1"]
    with subprocess.Popen(command) as process:
        wait_for(lambda: len(list(out.glob("stages/wikipedia/piece-*.json"))) >= 3)
        process.send_signal(signal.SIGKILL)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("stages/wikipedia/piece-*.json")}
    assert 3 <= len(finished) < 12
    assert not (out / "queries.parquet").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipkit.dataset.queries.build.shutil.rmtree", lambda *_, **__: None)
        build_list(recipe, out)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    build_list(recipe, tmp_path / "whole")
    assert (out / "queries.parquet").read_bytes() == (tmp_path / "whole/queries.parquet").read_bytes()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_sources_are_turned_off_and_the_list_ends_where_it_is_told_to(inputs: Path, tmp_path: Path) -> None:
    queries, report = build_list(recipe_of(inputs, sources=["wordnet", "own"], wordnet_names="synsets", max_queries=3), tmp_path)
    assert queries.texts == ("Golden Retriever", "red", "Dog")
    assert report["left_out"] == {"over_max_queries": 1}
    assert report["wikipedia"] is None


def test_titles_of_the_dump_alone_and_with_their_disambiguation(inputs: Path, tmp_path: Path) -> None:
    titles = {"articles": True, "disambiguation": "keep"}
    queries, _ = build_list(recipe_of(inputs, sources=["titles"], titles=titles), tmp_path)
    assert len(queries) == 40
    assert "Titanic (1997 film)" in queries.texts
    assert set(queries.counts) == {None}
    views = {"page_views": [str(inputs / "v*.gz")], "min_views": 5}
    every, _ = build_list(recipe_of(inputs, sources=["titles"], titles=views, wikipedia={}), tmp_path / "views")
    assert every.texts == ("Redirected", "Titanic", "Dog", "Kennel")


def test_ready_counts_stand_in_for_a_dump(tmp_path: Path) -> None:
    (tmp_path / "words.tsv").write_text("word\tcount\nThe\t600\nthe\t300\nNew\t100\nyork\t100\nrare\t2\ntwo words\t500\n")
    (tmp_path / "pairs.csv").write_text("new york,90\nNew-York,9\nthe new,80\nthe rare,99\n")
    knobs = {
        "words": {"counts": str(tmp_path / "words.tsv"), "min_count": 100},
        "bigrams": {"counts": str(tmp_path / "pairs.csv"), "min_count": 50},
    }
    queries, report = build_list(BuildQueriesRecipe.model_validate(knobs), tmp_path / "run")
    assert list(zip(queries.texts, queries.counts, strict=True)) == [
        ("the", 900),
        ("new", 100),
        ("york", 100),
        ("new york", 99),
        ("the new", 80),
    ]
    assert report["bigrams"]["running_words"] == 1102
    assert report["bigrams"]["highest_pmi"] == round(math.log2(99 * 1102 / (100 * 100)), 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "there is no query"),
        ({"wikipedia": {"files": ["nowhere/*.bz2"]}}, "`wikipedia.files` has `nowhere/\\*.bz2`, which matches no file"),
        ({"titles": {"articles": True}}, "give `wikipedia.files`"),
        ({"bigrams": {"counts": "pairs.tsv"}}, "needs the words"),
        ({"words": {"counts": "nowhere.tsv"}}, "`words.counts` names `nowhere.tsv`, which is no file"),
        ({"words": {"counts": "counts.json"}}, "counts are in a .tsv, .txt"),
        ({"words": {"counts": "bad.tsv"}}, "cannot be read as counts"),
        ({"words": {"counts": "minus.tsv"}}, "`the` has the count `-5`"),
        ({"words": {"counts": "minus.tsv.gz"}}, "which unpacks to over 1,000 bytes"),
        ({"words": {"counts": "words.tsv"}, "wikipedia": {"files": ["words.tsv"]}}, "`words.tsv` does not begin as a MediaWiki dump"),
        ({"words": {"counts": "words.tsv"}, "wikipedia": {"files": ["nowhere"]}}, "`wikipedia.files` has `nowhere`"),
        ({"wordnet": "nowhere"}, "^`wordnet` names `nowhere`"),
        ({"files": ["nowhere.txt"]}, "^`files` names `nowhere.txt`"),
        ({"words": {"counts": "words.tsv", "min_count": 9}}, "there is no query: no word occurs `words.min_count` times"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("counts.json").write_text("[]")
    Path("bad.tsv").write_text("dog\t1\ncat\tmany\n")
    Path("words.tsv").write_text("dog\t8\n")
    Path("minus.tsv").write_text("the\t-5\n")
    Path("minus.tsv.gz").write_bytes(gzip.compress(b"the\t5\n" * 300))
    monkeypatch.setattr(ready_counts, "MAX_BYTES", 1_000)
    with pytest.raises(UserError, match=message):
        build_list(BuildQueriesRecipe.model_validate(changes), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wordnet": "nope"}, "`wordnet` names `nope`"),
        ({"files": ["nope.txt"]}, "`files` names `nope.txt`"),
        ({"bigrams": {"counts": "nope.tsv"}}, "`bigrams.counts` names `nope.tsv`"),
        ({"bigrams": {"counts": "{own}"}}, "cannot be read as counts"),
        ({"titles": {"page_views": ["nope"]}}, "`titles.page_views` has `nope`"),
        ({"titles": {"page_views": ["{own}"]}}, "is no file of page views"),
        ({"words": {"min_count": 10**9}, "sources": ["words"]}, "no word occurs `words.min_count` times"),
    ],
)
def test_a_mistake_anywhere_is_told_before_the_count_and_binds_no_directory(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    if "sources" not in changes:
        monkeypatch.setattr(build, "count_dump", lambda *_, **__: pytest.fail("it counted"))
    changes = json.loads(json.dumps(changes).replace("{own}", str(inputs / "own.csv")))
    recipe = recipe_of(inputs, **changes)
    run = Run.open(tmp_path / "out", command="build-queries", recipe=recipe, inputs={}, quiet=True)
    with run, pytest.raises(UserError, match=message):
        build_queries(recipe, run)
    monkeypatch.undo()
    mended = recipe_of(inputs)
    with Run.open(tmp_path / "out", command="build-queries", recipe=mended, inputs={}, quiet=True) as run:
        assert build_queries(mended, run)["count"]


def test_a_source_that_gives_nothing_is_told(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(inputs, titles={"page_views": [str(inputs / "views.gz")], "min_views": 1_000}, wordnet=None)
    report = build_queries(recipe, Run.scratch(tmp_path, quiet=False))
    assert "no title reaches `titles.min_views`" in " ".join(capsys.readouterr().err.split())
    assert [(row["source"], row["offered"] > 0) for row in report["sources"]] == [
        ("own", True),
        ("words", True),
        ("bigrams", True),
        ("titles", False),
    ]


def test_so_many_titles_are_so_many_queries(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "views").write_text("en Titanic_(1997_film) 9 0\nen Titanic 8 0\nen TITANIC 7 0\nen ! 6 0\nen Dog 5 0\nen Cat 4 0\n")
    titles = {"page_views": [str(tmp_path / "views")], "min_views": 1, "top": 2}
    queries, report = build_list(recipe_of(inputs, sources=["titles"], titles=titles), tmp_path / "run")
    assert list(zip(queries.texts, queries.counts, strict=True)) == [("Titanic", 9), ("Dog", 5)]
    assert report["page_views"] == {"files": 1, "lines": 6, "skipped_lines": 0}


@pytest.mark.parametrize(
    "changes",
    [{"words": {"top": 10**20}}, {"bigrams": {"pmi_min": 1e9}}, {"bigrams": {"pmi_min": 1100}}, {"titles": {"min_views": 10**20}}],
)
def test_a_knob_beyond_all_reason_is_refused(inputs: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="less than or equal to"):
        recipe_of(inputs, **changes)


def test_a_dump_that_changed_is_not_gone_on_with(inputs: Path, tmp_path: Path) -> None:
    (dump := tmp_path / "dump.xml.bz2").write_bytes((inputs / "multistream.xml.bz2").read_bytes()[:-30])
    recipe = recipe_of(tmp_path, dump.name, files=[], titles={}, wordnet=None)
    with pytest.raises(UserError, match="is cut short"):
        build_list(recipe, tmp_path / "run")
    dump.write_bytes((inputs / "one.xml.bz2").read_bytes())
    with pytest.raises(UserError, match="have changed since"):
        build_list(recipe, tmp_path / "run")


def test_the_command_writes_a_list_that_build_dataset_reads(inputs: Path, tmp_path: Path) -> None:
    (recipe := tmp_path / "recipe.toml").write_text(f'files = ["{inputs}/own.csv"]\nwordnet = "{inputs}"\n')
    command = [sys.executable, "-m", "clipkit", "build-queries", str(recipe), "--out", str(tmp_path / "queries.parquet"), "--quiet"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "500,000" in told
    assert "86,654" in told
    for name in (tmp_path / "queries.parquet", tmp_path / "queries.parquet" / "queries.parquet"):
        queries = load_queries(QueryKnobs(files=(str(name),)))
        assert queries.texts == ("Dog", "my own", "Golden Retriever", "red")
        assert queries.sources == ("own.csv", "own.csv", "wordnet", "wordnet")
        assert queries.limits == (5, None, None, None)
