import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipkit import UserError
from clipkit.dataset import build
from clipkit.dataset.build import build_dataset
from clipkit.dataset.images.left_out import write_hashes
from clipkit.dataset.shards import Shards
from clipkit.recipe import BuildRecipe
from clipkit.report.tables import build_tables
from clipkit.run import Run, write_json

pytestmark = pytest.mark.filterwarnings(
    r"ignore:unclosed file <_io.BufferedReader name=\d+>:ResourceWarning"
)  # a pipe that Daft leaves open

COLOURS = ("red", "green", "blue", "white")
SHAPES = ("circle", "square", "triangle")


class PictureServer(BaseHTTPRequestHandler):
    """/SEED.jpg is a picture of its own, /tiny/... one of 8 pixels, /gone/... is not there, /same/... always one picture."""

    gone: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        if self.path.startswith("/gone/") or self.path in self.gone:
            self.send_error(404)
            return
        seed = 0 if self.path.startswith("/same/") else int.from_bytes(hashlib.sha256(self.path.encode()).digest()[:4], "big")
        side = 8 if self.path.startswith("/tiny/") else 80
        pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "JPEG")
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(encoded.getvalue())))
        self.end_headers()
        self.wfile.write(encoded.getvalue())

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), PictureServer)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield int(server.server_address[1])
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four saved pages with 96 good pictures and one of each thing that goes wrong."""
    site = tmp_path_factory.mktemp("site")
    for page in range(4):
        images = [
            f'<img src="/{page}-{n}.jpg" alt="A {COLOURS[n % 4]} {SHAPES[n % 3]} on the table, number {n} of page {page}">'
            for n in range(24)
        ]
        (site / f"page{page}.html").write_text("<html><body>" + "\n".join(images) + "</body></html>")
    odd = [
        '<img src="/gone/1.jpg" alt="A red circle that is gone">',
        '<img src="/tiny/1.jpg" alt="A red circle that is tiny">',
        *(f'<img src="/same/{n}.jpg" alt="A blue square in {word}">' for n, word in enumerate(("winter", "spring", "summer"))),
        '<img src="/0-0.jpg" alt="A photo of the house and the red circle and the blue square">',
        '<img src="/camera.jpg" alt="IMG_1234">',
        '<img src="/none.jpg" alt="A photo of the house by the river">',
        '<img src="/0-0.jpg">',
        '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" alt="A red circle inside the page">',
    ]
    (site / "odd.html").write_text("<html><body>" + "\n".join(odd) + "</body></html>")
    (site / "private.html").write_text('<meta name="robots" content="noai"><img src="/p.jpg" alt="A red circle of my own">')
    (site / "queries.txt").write_text("red\ngreen circle\nblue\nsquare\nTriangle\ntable\nelephant\n")
    return site


def recipe_of(site: Path, port: int, **changes: Any) -> BuildRecipe:
    knobs = {
        "queries": {"files": [str(site / "queries.txt")]},
        "sources": [{"kind": "html", "paths": [str(site)], "base_url": "http://site.example/"}],
        "balance": {"limit": 20, "oversample": 2.0},
        "download": {
            "connect_to": {"site.example:80": f"127.0.0.1:{port}"},
            "allow_private_addresses": True,
            "pause_seconds": 0.01,
            "processes": 1,
            "host_requests_per_second": 0,
            "urls_per_part": 40,
        },
        "images": {"placeholder_texts": 3},
        "shards": {"pairs_per_shard": 16},
    }
    return BuildRecipe.model_validate(knobs | changes)


def hashes(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((out / "shards").iterdir())}


@pytest.fixture(scope="module")
def built(site: Path, port: int, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("built") / "run [1] {a,b}*"
    return out, build_dataset(recipe_of(site, port), Run.scratch(out))


def test_the_funnel_accounts_for_everything_that_went_in(built: tuple[Path, dict[str, Any]]) -> None:
    _, report = built
    for line in report["funnel"]:
        assert line["in"] == line["out"] + sum(line["dropped"].values())
    dropped = {(line["stage"], reason): count for line in report["funnel"] for reason, count in line["dropped"].items()}
    balanced = {key: count for key, count in dropped.items() if "balance" not in key[0]}
    assert balanced == {
        ("pages", "page_opted_out"): 1,
        ("images on pages", "page_opted_out"): 1,
        ("images on pages", "data_uri"): 1,
        ("images on pages", "no_text"): 1,
        ("text rules", "file_name"): 1,
        ("match", "no_query"): 1,
        ("one per image", "other_text_of_image"): 1,
        ("download", "not_found"): 1,
        ("image rules", "too_small"): 1,
        ("image rules", "placeholder"): 3,
    }
    assert report["funnel"][-1]["out"] == report["pairs"]
    json.dumps(report, allow_nan=False)


def test_no_query_has_more_pairs_than_it_picked_and_the_limit_binds(built: tuple[Path, dict[str, Any]]) -> None:
    out, report = built
    table = Shards.open(out).table()
    assert report["queries"]["never_matched"] == 1
    counts = np.bincount(np.concatenate(table["queries"].to_pylist()), minlength=7)
    final = json.loads((out / "stages/08-balance/stage.json").read_text())["balance"]
    assert counts[6] == 0
    assert final["above_limit"] > 0
    assert final.items() <= report["queries"].items()
    before = json.loads((out / "stages/05-balance/stage.json").read_text())["balance"]
    assert report["queries_before_download"] == before != final
    assert final["picks"] == sum(min(20, seen) for seen in _matches_before_the_last_balance(out))
    assert final["union"] == len(table) < report["funnel"][-1]["in"]


def _matches_before_the_last_balance(out: Path) -> list[int]:
    queries = pq.read_table(out / "stages/07-images/pairs.parquet")["queries"].to_pylist()
    return list(np.bincount(np.concatenate(queries), minlength=7))


def test_an_image_keeps_the_text_that_contains_most_queries(built: tuple[Path, dict[str, Any]]) -> None:
    out, _ = built
    kept = pq.read_table(out / "stages/04-one-per-image/pairs.parquet").to_pylist()
    assert len({row["image_url"] for row in kept}) == len(kept)
    text = next(row["text"] for row in kept if row["image_url"] == "http://site.example/0-0.jpg")
    assert text == "A photo of the house and the red circle and the blue square"


def test_shards_verify_and_dropped_pairs_can_be_looked_at(built: tuple[Path, dict[str, Any]]) -> None:
    out, report = built
    assert Shards.open(out).verify()["problems"] == []
    examples = pq.read_table(report["dropped_examples"]).to_pylist()
    assert [row["text"] for row in examples if row["reason"] == "file_name"] == ["IMG_1234"]
    assert {row["stage"] for row in examples} >= {"text rules", "match", "download", "image rules"}


def test_the_report_becomes_tables(built: tuple[Path, dict[str, Any]]) -> None:
    _, report = built
    largest, balance, hosts, funnel = build_tables(report)
    outcomes = report["outcomes"]
    assert outcomes.keys() == {"ok", "not_found"}
    assert hosts.rows == [("site.example", f"ok {outcomes['ok']}, not_found {outcomes['not_found']}")]
    assert pq.read_table(report["hosts_table"]).select(["host", "outcome", "urls"]).to_pylist() == [
        {"host": "site.example", "outcome": outcome, "urls": outcomes[outcome]} for outcome in ("not_found", "ok")
    ]
    assert hosts.note == f"of 1 hosts; all of them: {report['hosts_table']}"
    assert ("image rules", 3) not in funnel.rows
    assert any("placeholder 3" in str(row[-1]) for row in funnel.rows)
    assert "not_found 1" in funnel.note.splitlines()[0]
    assert f"pairs in {report['shards']}" in funnel.note
    assert ("never matched", 1, 1) in balance.rows
    assert largest.columns[0] == "query"
    assert len(largest.rows) == 5


def test_killed_anywhere_and_run_again_gives_the_same_bytes(
    site: Path, port: int, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    (tmp_path / "recipe.json").write_text(recipe_of(site, port).model_dump_json())
    script = (
        "import sys\nfrom pathlib import Path\nfrom clipkit.recipe import BuildRecipe\nfrom clipkit.run import Run\n"
        "from clipkit.dataset.build import build_dataset\n"
        "if __name__ == '__main__':\n"
        "    build_dataset(BuildRecipe.model_validate_json(Path(sys.argv[1]).read_text()), Run.scratch(Path(sys.argv[2])))\n"
    )
    (tmp_path / "build.py").write_text(script)
    command = [sys.executable, str(tmp_path / "build.py"), str(tmp_path / "recipe.json"), str(out)]
    for landmark in ("stages/02-pairs", "stages/06-download/images", "shards/00001.tar"):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (out / landmark).exists():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"it had ended before {landmark} was seen and it was killed"
    subprocess.run(command, check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    assert hashes(out) == hashes(built[0])


def test_nothing_left_names_the_stage_and_the_reasons(site: Path, port: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing of 104 is left after stage `text rules` \(dropped: length 103, file_name 1\)"):
        build_dataset(recipe_of(site, port, text={"min_words": 100, "rules": ["file_name", "length"]}), Run.scratch(tmp_path))


def test_a_build_without_queries_says_what_to_give(site: Path, port: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no query: give `queries\.files`"):
        build_dataset(recipe_of(site, port, queries={}), Run.scratch(tmp_path))


def test_a_misspelt_rule_is_told_before_anything_is_read(site: Path, port: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`lenght`, which is no text rule"):
        build_dataset(recipe_of(site, port, text={"rules": ["lenght"]}), Run.scratch(tmp_path))
    assert not (tmp_path / "stages").exists()


def test_queries_that_changed_between_two_starts_are_refused(site: Path, port: int, tmp_path: Path) -> None:
    queries = tmp_path / "queries.txt"
    queries.write_text("red\n")
    recipe = recipe_of(site, port, queries={"files": [str(queries)]}, sources=[{"kind": "html", "paths": [str(tmp_path)]}])
    with pytest.raises(UserError, match="without a page"):
        build_dataset(recipe, Run.scratch(tmp_path / "run"))
    queries.write_text("green\n")
    with pytest.raises(UserError, match="the queries have changed"):
        build_dataset(recipe, Run.scratch(tmp_path / "run"))


def _mixed(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def keyed_hash_of(key: str, salted_by: str) -> int:
    """The hash that orders pairs, in plain integers: of a key, under the text that gives the salt."""
    salt = int.from_bytes(hashlib.blake2b(salted_by.encode(), digest_size=8).digest(), "little")
    return _mixed(_mixed((salt + int(key[:16], 16)) % 2**64) ^ int(key[16:], 16))


def chosen_by_hand(stage: Path, queries: list[str], *, seed: int, limit: int) -> list[str]:
    """The keys that the balance has to keep of a stage's pairs: all without a query, and `limit` of each query by their hashes."""
    rows = pq.read_table(stage / "pairs.parquet", columns=["key", "queries"]).to_pylist()
    chosen = {row["key"] for row in rows if not row["queries"]}
    for number, query in enumerate(queries):
        of_query = [row["key"] for row in rows if number in row["queries"]]
        chosen |= set(sorted(of_query, key=lambda key: keyed_hash_of(key, f"{seed}\n{query.lower()}"))[:limit])
    assert len(chosen) < len(rows)
    return sorted(chosen)


def keys_of(stage: Path) -> list[str]:
    return sorted(pq.read_table(stage / "pairs.parquet", columns=["key"])["key"].to_pylist())


def test_both_balances_pick_the_pairs_with_the_smallest_hashes_of_the_recipes_seed(site: Path, port: int, tmp_path: Path) -> None:
    balance = {"limit": 3, "oversample": 2.5}
    build_dataset(recipe_of(site, port, seed=5, balance=balance, match={"required": False}), Run.scratch(tmp_path))
    stages = tmp_path / "stages"
    queries = pq.read_table(stages / "00-queries/queries.parquet", columns=["query"])["query"].to_pylist()
    assert keys_of(stages / "05-balance") == chosen_by_hand(stages / "04-one-per-image", queries, seed=5, limit=8)
    assert keys_of(stages / "08-balance") == chosen_by_hand(stages / "07-images", queries, seed=5, limit=3)
    shards = Shards.open(tmp_path)
    written = [pair.key for shard in shards.shards for pair in shards.read(shard)]
    assert written == sorted(keys_of(stages / "08-balance"), key=lambda key: keyed_hash_of(key, "5\nshards"))


def test_the_numbers_of_queries_are_told_beside_the_shards(built: tuple[Path, dict[str, Any]]) -> None:
    out, report = built
    told = json.loads((out / "shards/shards.json").read_text())["queries"]
    sha256 = hashlib.sha256((out / "shards/queries.parquet").read_bytes()).hexdigest()
    assert told == {"file": "queries.parquet", "count": 7, "content_hash": report["queries"]["content_hash"], "sha256": sha256}
    table = pq.read_table(out / "shards" / told["file"]).to_pylist()
    assert table[0] == {"number": 0, "query": "red", "source": "queries.txt", "count": None, "limit": None}
    pair = next(Shards.open(out).read(Shards.open(out).shards[0]))
    assert all(table[number]["query"].lower() in pair.text.lower() for number in pair.metadata["queries"])


def test_shards_that_were_removed_are_made_again_from_the_downloads(
    site: Path, port: int, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "again"
    shutil.copytree(built[0], out)
    shutil.rmtree(out / "shards")
    leftover = out / "stages/07-images/.stored-00000.bin.123.tmp"
    leftover.write_bytes(b"half")
    unreachable = recipe_of(site, port).download.model_copy(update={"connect_to": {"site.example:80": "127.0.0.1:1"}})
    build_dataset(recipe_of(site, port).model_copy(update={"download": unreachable}), Run.scratch(out))
    tars = [name for name in hashes(out) if name.endswith(".tar")]
    assert {name: hashes(out)[name] for name in tars} == {name: hashes(built[0])[name] for name in tars}
    assert not leftover.exists()


def without_shards(built: tuple[Path, dict[str, Any]], out: Path) -> Path:
    """A copy of a finished run whose shards were removed."""
    shutil.copytree(built[0], out)
    shutil.rmtree(out / "shards")
    return out


def test_a_download_that_was_deleted_is_fetched_anew_and_a_url_that_is_gone_by_then_is_dropped(
    site: Path, port: int, built: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = without_shards(built, tmp_path / "again")
    tar = out / "stages/06-download/images/round-1/00000.tar"
    table = pq.read_table(tar.with_suffix(".parquet")).to_pylist()
    lost = next(row["url"] for row in table if row["outcome"] == "ok")
    tar.unlink()
    monkeypatch.setattr(PictureServer, "gone", {lost.removeprefix("http://site.example")})
    report = build_dataset(recipe_of(site, port), Run.scratch(out))
    assert report["outcomes"]["not_found"] == built[1]["outcomes"]["not_found"] + 1
    assert Shards.open(out).verify()["problems"] == []
    assert lost not in Shards.open(out).table(["image_url"])["image_url"].to_pylist()


def test_more_sources_fetch_only_what_is_new_and_end_as_if_built_at_once(
    built: tuple[Path, dict[str, Any]], site: Path, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = tmp_path / "more.csv"
    rows = [f"http://site.example/more-{n}.jpg,A {COLOURS[n % 4]} star on the wall in house {n}" for n in range(30)]
    rows += ["http://site.example/0-1.jpg,A green square on the table", "http://site.example/gone/1.jpg,A red circle that is gone for good"]
    more.write_text("\n".join(["url,text", *rows]) + "\n")
    sources = [
        *({**source.model_dump(exclude_unset=True)} for source in recipe_of(site, port).sources),
        {"kind": "table", "paths": [str(more)]},
    ]
    recipe = recipe_of(site, port, sources=sources)
    at_once = build_dataset(recipe, Run.scratch(tmp_path / "at once"))

    earlier, _ = built
    write_json(earlier / "run.json", {"command": "build-dataset", "inputs": {}})
    write_json(earlier / "report.json", {})
    asked: list[str] = []
    answer = PictureServer.do_GET

    def remember(self: PictureServer) -> None:
        asked.append(self.path)
        answer(self)

    monkeypatch.setattr(PictureServer, "do_GET", remember)
    report = build_dataset(recipe, Run.scratch(tmp_path / "extended"), extends=earlier)
    assert hashes(tmp_path / "extended") == hashes(tmp_path / "at once")
    assert report["funnel"] == at_once["funnel"]
    before = {row["image_url"] for row in read(earlier / "stages" / "05-balance")}
    after = {row["image_url"] for row in read(tmp_path / "extended" / "stages" / "05-balance")}
    assert {f"http://site.example{path}" for path in asked if not path.endswith(".txt")} == after - before
    assert report["taken_over"] == len(after & before) > 50

    # An extended run is extended in turn; nothing is asked for any more.
    write_json(tmp_path / "extended" / "run.json", {"command": "build-dataset", "inputs": {"extend": str(earlier)}})
    write_json(tmp_path / "extended" / "report.json", {})
    asked.clear()
    again = build_dataset(recipe, Run.scratch(tmp_path / "again"), extends=tmp_path / "extended")
    assert hashes(tmp_path / "again") == hashes(tmp_path / "at once")
    assert (asked, again["taken_over"]) == ([], len(after))


def test_only_a_finished_build_can_be_extended(site: Path, port: int, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"command": "train"}')
    with pytest.raises(UserError, match="is no finished run of `clipkit build-dataset`: give the directory"):
        build_dataset(recipe_of(site, port), Run.scratch(tmp_path / "out"), extends=tmp_path)


def test_a_run_that_judged_urls_otherwise_cannot_be_extended(site: Path, port: int, tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"command": "build-dataset", "recipe": {"download": {"obey_robots_txt": False}}})
    write_json(tmp_path / "report.json", {})
    with pytest.raises(UserError, match=r"there knob `download.obey_robots_txt` was false, now it is true, .* set it as it was"):
        build_dataset(recipe_of(site, port), Run.scratch(tmp_path / "out"), extends=tmp_path)


def read(stage: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(stage / "pairs.parquet").to_pylist())


def test_images_that_are_stored_anew_in_another_form_are_found_at_their_new_places(
    site: Path, port: int, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = without_shards(built, tmp_path / "again")
    recipe = recipe_of(site, port, images={"placeholder_texts": 3, "max_side_pixels": 70})
    assert build_dataset(recipe, Run.scratch(out))["pairs"] == built[1]["pairs"]
    assert Shards.open(out).verify()["problems"] == []
    assert set(Shards.open(out).table(["width"])["width"].to_pylist()) == {70}


def test_stored_images_that_are_damaged_come_into_no_shard(
    site: Path, port: int, built: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = without_shards(built, tmp_path / "again")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no shards")

    with monkeypatch.context() as patched:
        patched.setattr(build, "resume_shards", fail)
        with pytest.raises(OSError, match="no shards"):
            build_dataset(recipe_of(site, port), Run.scratch(out))
    spool = out / "stages/07-images/stored-00000.bin"
    spool.write_bytes(b"x" * spool.stat().st_size)
    with pytest.raises(UserError, match=r"stored-00000\.bin` is damaged at the image of .+: delete the file and run again"):
        build_dataset(recipe_of(site, port), Run.scratch(out))
    spool.unlink()
    assert build_dataset(recipe_of(site, port), Run.scratch(out))["pairs"] == built[1]["pairs"]


def test_a_source_of_the_wrong_kind_is_told_whether_others_give_pairs_or_not(
    site: Path, port: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<img src=/1.jpg alt='A red circle'>"
    head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.example/\r\nContent-Length: {len(page)}\r\n"
    kind = "Content-Type: application/http; msgtype=response\r\nWARC-Record-ID: <urn:uuid:1>\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n\r\n"
    (tmp_path / "a.warc").write_bytes((head + kind).encode() + page + b"\r\n\r\n")
    (tmp_path / "cut.warc.gz").write_bytes(b"\x1f\x8b\x08\0 this is no gzip")
    wat = {"kind": "wat", "paths": [str(tmp_path / "a.warc")]}
    told = rf"source 1 \(kind wat, `{tmp_path}/a\.warc`\) gave no page: kind wat reads WAT files"
    with pytest.raises(UserError, match=rf"nothing of 0 is left after stage `images on pages`: {told}"):
        build_dataset(recipe_of(site, port, sources=[wat]), Run.scratch(tmp_path / "alone"))
    cut = {"kind": "warc", "paths": [str(tmp_path / "cut.warc.gz")]}
    pages = {"on_broken_file": "skip"}
    with pytest.raises(UserError, match=r"`\S+cut\.warc\.gz` is broken \(.+\): mend it, or change the sources"):
        build_dataset(recipe_of(site, port, sources=[cut], pages=pages), Run.scratch(tmp_path / "cut"))
    capfd.readouterr()
    sources = [wat, {"kind": "html", "paths": [str(site)]}]
    with pytest.raises(UserError, match=r"not_http .+ name the pages' own URL with `base_url`"):
        build_dataset(recipe_of(site, port, sources=sources), Run.scratch(tmp_path / "both", quiet=False))
    said = " ".join(capfd.readouterr().err.split())
    assert "gave no page" in said
    assert "images on pages: 0 of" in said
    assert "dropped-examples.parquet" not in said  # nothing that was dropped is a pair


def test_test_pictures_and_near_duplicates_are_dropped_and_counted(site: Path, port: int, tmp_path: Path) -> None:
    served = [picture_of(f"/0-{n}.jpg") for n in range(3)]
    pixels = np.asarray(Image.open(io.BytesIO(served[1])).convert("RGB"))
    (tmp_path / "bytes.txt").write_text(hashlib.sha256(served[0]).hexdigest())
    write_hashes([("shapes", "test", Encoded([encoded(pixels, "PNG")]))], tmp_path / "hashes.parquet", processes=1)
    images = {
        "placeholder_texts": 3,
        "leave_out": [str(tmp_path / "bytes.txt"), str(tmp_path / "*.parquet")],
        "rules": ["undecodable", "too_small", "placeholder", "duplicate", "near_duplicate"],
        "near_duplicate_bits": 0,
    }
    out = tmp_path / "run"
    limits = {"limit": 10_000, "oversample": 1.0}
    report = build_dataset(recipe_of(site, port, images=images, balance=limits), Run.scratch(out))
    [line] = [line for line in report["funnel"] if line["stage"] == "image rules"]
    assert line["dropped"] == {"placeholder": 3, "test_set": 2, "too_small": 1}
    left = set(Shards.open(out).table(["image_url"])["image_url"].to_pylist())
    assert {f"http://site.example/0-{n}.jpg" for n in range(3)} & left == {"http://site.example/0-2.jpg"}
    kept = pq.read_table(out / "stages" / "07-images" / "pairs.parquet")
    assert kept["perceptual_hash"].null_count == 0
    (tmp_path / "bytes.txt").write_text("0" * 64)
    with pytest.raises(UserError, match=r"the files of `images.leave_out` or `images.nsfw_model` have changed"):
        build_dataset(recipe_of(site, port, images=images, balance=limits), Run.scratch(out))


class Encoded(list[bytes]):
    def read(self, start: int, stop: int) -> list[bytes]:
        return self[start:stop]


def encoded(pixels: Any, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def picture_of(path: str) -> bytes:
    """What the server sends."""
    seed = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big")
    return encoded(np.random.default_rng(seed).integers(0, 256, (80, 80, 3), dtype=np.uint8), "JPEG")


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ({"leave_out": ["none.parquet"]}, "`images.leave_out` has `none.parquet`, which is no file"),
        ({"rules": ["nsfw"]}, "knob `images.rules` has `nsfw`"),
        ({"rules": ["blurry"]}, "which is no image rule"),
    ],
)
def test_what_the_image_rules_need_is_looked_for_before_anything_is_read(
    images: dict[str, Any], told: str, site: Path, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(UserError, match=told):
        build_dataset(recipe_of(site, port, images=images), Run.scratch(tmp_path / "run"))
    assert not (tmp_path / "run" / "stages").exists()
