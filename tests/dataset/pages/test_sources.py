import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from clipkit import UserError
from clipkit.dataset.pages import PageCounts, read_part, sources
from clipkit.dataset.pages.sources import Part, SourceFile, parts_of
from clipkit.recipe import BuildRecipe, Source, StorageKnobs, load_recipe

KNOBS = StorageKnobs(pause_seconds=0.0, timeout_seconds=2.0, tries=2)
CRAWL = "CC-MAIN-2024-22"


def parts(source: dict[str, Any], knobs: StorageKnobs = KNOBS, kept: Path | None = None) -> list[Part]:
    return parts_of([Source.model_validate(source)], knobs, user_agent="test", kept=kept)


def locations(source: dict[str, Any], knobs: StorageKnobs = KNOBS, kept: Path | None = None) -> list[str]:
    return [file.location for part in parts(source, knobs, kept) for file in part.files]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())


def test_a_file_named_twice_is_one_part_and_parts_are_sorted(tmp_path: Path) -> None:
    touch(tmp_path / "b.warc", tmp_path / "a.warc")
    found = parts({"kind": "warc", "paths": [str(tmp_path / "*.warc"), str(tmp_path / "a.warc")]})
    assert [part.files for part in found] == [(SourceFile(f"{tmp_path}/{name}.warc", "", 6),) for name in "ab"]
    assert [part.name[:11] for part in found] == ["000-000000-", "000-000001-"]


def test_the_name_of_a_part_tells_its_files_and_their_sizes(tmp_path: Path) -> None:
    touch(tmp_path / "a.warc")
    source = {"kind": "warc", "paths": [str(tmp_path / "*.warc")]}
    (before,) = parts(source)
    assert parts(source) == [before]
    (tmp_path / "a.warc").write_bytes(b"longer than it was")
    (after,) = parts(source)
    assert after.name != before.name
    assert after.files[0].location == before.files[0].location


def test_parts_travel_as_json_and_as_pickles(tmp_path: Path) -> None:
    touch(tmp_path / "a.warc")
    (part,) = parts({"kind": "warc", "paths": [str(tmp_path / "a.warc")]})
    assert Part.from_dict(json.loads(json.dumps(part.to_dict()))) == part
    assert pickle.loads(pickle.dumps(part)) == part
    assert part.source.paths == ()


def test_saved_pages_are_cut_into_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PAGES_PER_PART", 3)
    touch(*(tmp_path / f"{n}.html" for n in range(7)), tmp_path / "style.css")
    found = parts({"kind": "html", "paths": [str(tmp_path)], "base_url": "https://h.example/s/"})
    assert [len(part.files) for part in found] == [3, 3, 1]
    assert [file.page_url for part in found for file in part.files] == [f"https://h.example/s/{n}.html" for n in range(7)]


@pytest.mark.parametrize("pattern", ["site", "./site/", "site/**/*.*", "site/sub dir/p.HTM"])
def test_a_saved_page_knows_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "site/sub dir/p.HTM")
    ((file,),) = (part.files for part in parts({"kind": "html", "paths": [pattern], "base_url": "https://h.example/s/"}))
    place = "p.HTM" if pattern.endswith("p.HTM") else "sub%20dir/p.HTM"
    assert file == SourceFile("site/sub dir/p.HTM", f"https://h.example/s/{place}", 5)


def test_a_page_on_the_web_is_its_own_url() -> None:
    ((file,),) = (part.files for part in parts({"kind": "html", "paths": ["https://h.example/p.html"]}))
    assert file == SourceFile("https://h.example/p.html", "https://h.example/p.html", None)


def test_pages_in_s3_are_found_below_a_folder(s3: Any) -> None:
    endpoint, system = s3
    system.create_dir("pages")
    for name in ("site/a/p.html", "site/q.htm", "site/x.css"):
        with system.open_output_stream(f"pages/{name}") as out:
            out.write(b"<img src=i.jpg alt='A dog'>")
    knobs = StorageKnobs(s3_endpoint=endpoint)
    recipe = BuildRecipe(sources=(Source(kind="html", paths=("s3://pages/site",), base_url="https://h.example/"),), storage=knobs)
    (part,) = parts_of(recipe.sources, knobs, user_agent="test")
    (batch,) = read_part(part, recipe=recipe, agent="clipkit", counts=PageCounts())
    assert batch.select(["image_url", "page_url", "source"]).to_pylist() == [
        {"image_url": "https://h.example/a/i.jpg", "page_url": "https://h.example/a/p.html", "source": "s3://pages/site/a/p.html"},
        {"image_url": "https://h.example/i.jpg", "page_url": "https://h.example/q.htm", "source": "s3://pages/site/q.htm"},
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "warc", "paths": ["none.warc"]}, "^`sources.0.paths` has `none.warc`, which does not exist"),
        ({"kind": "warc", "paths": ["*.warc"]}, "which matches nothing"),
        ({"kind": "warc", "paths": ["empty"]}, r"which is a folder: for kind warc write `empty/\*\.warc\.gz`"),
        ({"kind": "html", "paths": ["empty"]}, "without a page"),
        ({"kind": "warc"}, "`sources.0` has neither `paths` nor `crawl`"),
        ({"kind": "table", "crawl": CRAWL}, "a crawl is read as kind warc or wat"),
        ({"kind": "wat", "crawl": "../x"}, "is no name of a crawl"),
        ({"kind": "wat", "paths": ["a"], "files": 3}, "`files = 3` without `crawl`"),
    ],
)
def test_sources_that_lead_nowhere_are_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        parts(source)


def test_paths_go_before_the_crawl_of_a_preset(tmp_path: Path) -> None:
    touch(tmp_path / "a.parquet")
    path = (tmp_path / "a.parquet").as_posix()
    recipe = load_recipe(BuildRecipe, Path("recipes/build-dataset/coyo.toml"), [f'sources.0.paths=["{path}"]', "sources.0.kind=table"])
    (part,) = parts_of(recipe.sources, recipe.storage, user_agent="test")
    assert (part.source.kind, part.files[0].location) == ("table", path)


def test_an_error_says_which_source_it_is(tmp_path: Path) -> None:
    touch(tmp_path / "a.warc")
    sources = (Source(kind="warc", paths=(str(tmp_path / "a.warc"),)), Source(kind="warc", paths=(str(tmp_path / "b.warc"),)))
    with pytest.raises(UserError, match=r"^`sources\.1\.paths` has `.*b\.warc`, which does not exist"):
        parts_of(sources, KNOBS, user_agent="test")


def test_a_name_with_brackets_is_a_name_where_there_is_such_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "a [1].warc", tmp_path / "a 1.warc", tmp_path / "site[2]/sub/p.html")
    assert locations({"kind": "warc", "paths": ["a [1].warc"]}) == ["a [1].warc"]
    assert locations({"kind": "warc", "paths": ["a [1]*.warc"]}) == ["a 1.warc"]
    ((file,),) = (part.files for part in parts({"kind": "html", "paths": ["site[2]"], "base_url": "https://h.example/"}))
    assert file.page_url == "https://h.example/sub/p.html"


def published(kind: str, count: int = 40) -> list[str]:
    """Paths in the layout of Common Crawl, the same captures for both kinds."""
    ending = "warc.gz" if kind == "warc" else "warc.wat.gz"
    return [f"crawl-data/{CRAWL}/segments/17159{n % 7}.6/{kind}/CC-MAIN-20240517{n:06d}-20240518-{n:05d}.{ending}" for n in range(count)]


def packed(paths: list[str]) -> bytes:
    return gzip.compress("".join(f"{path}\n" for path in paths).encode())


@pytest.mark.parametrize("kind", ["warc", "wat"])
def test_a_crawl_is_read_by_its_name_through_the_list_that_it_publishes(files: Any, kind: str) -> None:
    files.content[f"/crawl-data/{CRAWL}/{kind}.paths.gz"] = packed(published(kind))
    knobs = KNOBS.model_copy(update={"crawl_base": files.base + "/"})
    assert locations({"kind": kind, "crawl": CRAWL}, knobs) == [f"{files.base}/{path}" for path in published(kind)]


def test_some_files_of_a_crawl_are_spread_nested_and_the_same_captures_for_both_kinds(tmp_path: Path) -> None:
    for kind in ("warc", "wat"):
        touch(tmp_path / f"crawl-data/{CRAWL}/{kind}.paths.gz")
        (tmp_path / f"crawl-data/{CRAWL}/{kind}.paths.gz").write_bytes(packed(published(kind)))
    knobs = StorageKnobs(crawl_base=str(tmp_path))

    def chosen(kind: str, count: int) -> list[int]:
        return [int(name.partition(".warc")[0][-5:]) for name in locations({"kind": kind, "crawl": CRAWL, "files": count}, knobs)]

    assert len(chosen("wat", 10)) == 10
    assert chosen("wat", 10) == chosen("warc", 10) == sorted(chosen("wat", 10))
    assert set(chosen("wat", 10)) < set(chosen("wat", 20))
    assert max(chosen("wat", 10)) > 20
    assert chosen("wat", 99) == list(range(40))


def test_a_resumed_run_reads_the_same_files_of_a_crawl_without_asking_again(files: Any, tmp_path: Path) -> None:
    path = f"/crawl-data/{CRAWL}/wat.paths.gz"
    files.content[path] = packed(published("wat"))
    knobs = KNOBS.model_copy(update={"crawl_base": files.base})
    source = {"kind": "wat", "crawl": CRAWL, "files": 5}
    first = parts(source, knobs, tmp_path)
    files.content[path] = packed(published("wat", 39)[::-1])
    assert parts(source, knobs, tmp_path) == first
    assert len(files.asked) == 1
    assert parts(source, knobs) != first


def test_a_crawl_in_s3_is_read_too(s3: Any) -> None:
    endpoint, system = s3
    system.create_dir("commoncrawl")
    with system.open_output_stream(f"commoncrawl/crawl-data/{CRAWL}/wat.paths.gz", compression=None) as out:
        out.write(packed(published("wat")))
    knobs = StorageKnobs(s3_endpoint=endpoint, crawl_base="s3://commoncrawl/")
    assert locations({"kind": "wat", "crawl": CRAWL}, knobs) == [f"s3://commoncrawl/{path}" for path in published("wat")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed(["crawl-data/../../etc/passwd"]), "is no path below the base"),
        (packed(["/etc/passwd"]), "is no path below the base"),
        (packed(["https://evil.example/a"]), "is no path below the base"),
        (packed(["crawl-data/a?b"]), "is no path below the base"),
        (packed(["a//b"]), "is no path below the base"),
        (packed(["a/" * 30 + "b"]), "is no path below the base"),
        (packed([]), "is empty"),
        (packed(published("wat"))[:-9], "cannot be read"),
        (b"no gzip", "cannot be read"),
        (gzip.compress("ä".encode()), "cannot be read"),
        (gzip.compress(b"a\n" * 1_000_001), "over .* lines"),
        (None, r"cannot be read at `.*/crawl-data/CC-MAIN-2024-22/wat.paths.gz` \(the server answers 404 Not Found\)"),
    ],
)
def test_a_list_that_is_no_list_of_a_crawl_is_refused(files: Any, content: bytes | None, message: str) -> None:
    if content is not None:
        files.content[f"/crawl-data/{CRAWL}/wat.paths.gz"] = content
    with pytest.raises(UserError, match=message):
        parts({"kind": "wat", "crawl": CRAWL}, KNOBS.model_copy(update={"crawl_base": files.base}))


def test_a_list_is_opened_no_further_than_the_limit(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_LIST_BYTES", 50_000)
    monkeypatch.setattr(sources, "MAX_UNPACKED_LIST_BYTES", 1_000_000)
    knobs = KNOBS.model_copy(update={"crawl_base": files.base})
    for content, message in {
        gzip.compress(b"a" * 2_000_000): "unpacked, it has over",
        b"\x1f" * 50_001: "it has over 50,000 bytes",
    }.items():
        files.content[f"/crawl-data/{CRAWL}/wat.paths.gz"] = content
        with pytest.raises(UserError, match=message):
            parts({"kind": "wat", "crawl": CRAWL}, knobs)
