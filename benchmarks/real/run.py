"""clipkit on real data, from fetching to a page of figures: `make real`.

    python benchmarks/real/run.py [--only queries,openclipart,tuxpaint,captures,cifar10,lite0] [--work DIR]

Writes benchmarks/results/real-DATE.md with every figure and the command lines that made it. Needs npm, apt-get and dpkg. About an
hour on 2 cores; killed and started again it goes on, since every clipkit command does.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

import captures  # noqa: E402
import efficientnet_lite0  # noqa: E402
import numpy as np  # noqa: E402
import openclipart  # noqa: E402
import pictures  # noqa: E402
import tuxpaint  # noqa: E402
from fetch import fetch_all  # noqa: E402
from web import serving  # noqa: E402

from clipkit import __version__  # noqa: E402
from clipkit.report.tables import Table, build_tables, query_tables  # noqa: E402


class Commands:
    """Runs clipkit as a user would, and remembers the command lines for the page."""

    def __init__(self) -> None:
        """Nothing has been typed yet."""
        self.lines: list[str] = []

    def __call__(self, *words: object, hidden: tuple[object, ...] = ()) -> dict[str, Any]:
        """Run `clipkit WORDS --json` in the project's root and return its report; `hidden` words are not shown on the page."""
        typed = [str(word) for word in words]
        self.lines.append("clipkit " + shlex.join(typed))
        print("\n$ " + self.lines[-1], file=sys.stderr, flush=True)
        words_run = [sys.executable, "-m", "clipkit", *typed, *(str(word) for word in hidden), "--json"]
        done = subprocess.run(words_run, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.returncode)
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def block(self) -> str:
        """The command lines as a code block."""
        return "```console\n" + "\n".join(self.lines) + "\n```\n"


def run_queries(_data: Path, work: Path) -> str:
    """Two lists: of a slice of Wikipedia alone, and at the paper's size from counts, titles and WordNet; the recipes name the data."""
    clipkit = Commands()
    slice_ = clipkit("build-queries", "benchmarks/real/wikipedia.toml", "--out", _short(work / "wikipedia"))
    whole = clipkit("build-queries", "benchmarks/real/queries.toml", "--out", _short(work / "queries"))
    tables = [
        f"{title}\n\n" + "\n".join(table.to_markdown() for table in query_tables(report))
        for title, report in (("206 articles of English Wikipedia:", slice_), ("Ready counts, titles and WordNet:", whole))
    ]
    return "\n".join(["## Queries\n", clipkit.block(), *tables])


def run_openclipart(data: Path, work: Path) -> str:
    """Serve 8,121 drawings as a web with the titles, keywords and descriptions that people gave them; needs the step `queries`."""
    clipart = data / "openclipart" / "usr" / "share" / "openclipart"
    drawings = openclipart.read_drawings(clipart)
    pages = openclipart.write_pages(drawings, work / "openclipart-pages")
    clipkit = Commands()
    with serving(clipart / "png", work / "openclipart-port", prefix="/clipart") as address:
        connect = f"download.connect_to={{'{openclipart.HOST}:80'='{address}'}}"
        report = clipkit("build-dataset", "benchmarks/real/openclipart.toml", "--out", _short(work / "openclipart"), "--set", connect)
    verified = clipkit("shards", "verify", _short(work / "openclipart"))
    return "\n".join(
        [
            "## Open Clip Art: texts that people typed, as a web\n",
            f"{len(drawings):,} drawings on {pages:,} HTML pages: alt = title, title = keywords, figcaption = description.\n",
            clipkit.block(),
            *(table.to_markdown() for table in build_tables(report)),
            f"`shards verify`: {verified['pairs']:,} pairs in {verified['tars']} shards, {len(verified['problems'])} problems.\n",
        ]
    )


def run_tuxpaint(data: Path, work: Path) -> str:
    """Serve the stamps as a web in 78 languages, keep the English pairs; the language rule's precision and recall."""
    stamps = data / "tuxpaint" / "usr" / "share" / "tuxpaint" / "stamps"
    captions = tuxpaint.read_captions(stamps)
    pages = tuxpaint.write_pages(captions, work / "tuxpaint-pages")
    clipkit = Commands()
    with serving(stamps, work / "tuxpaint-port", prefix="/stamps") as address:
        connect = f"download.connect_to={{'{tuxpaint.HOST}:80'='{address}'}}"
        report = clipkit("build-dataset", "benchmarks/real/tuxpaint.toml", "--out", _short(work / "tuxpaint"), "--set", connect)
    verified = clipkit("shards", "verify", _short(work / "tuxpaint"))
    rule, by_language = tuxpaint.measure_language_rule(captions)
    kept = tuxpaint.measure_shards(captions, work / "tuxpaint")
    return "\n".join(
        [
            "## Tux Paint: captions in 78 languages as a web\n",
            f"{len(captions):,} captions of the PNG stamps became {pages:,} HTML pages, served over loopback HTTP with their pictures.\n",
            clipkit.block(),
            f"The language rule alone, on every caption against its known language ({rule.title}):\n",
            rule.to_markdown(),
            "The six languages that pass most often, then large ones, at the default confidence (untranslated captions are English):\n",
            by_language.to_markdown(),
            "The funnel of the whole command:\n",
            funnel_table(report).to_markdown(),
            kept.to_markdown(),
            f"`shards verify`: {verified['pairs']:,} pairs in {verified['tars']} shards, {len(verified['problems'])} problems.\n",
        ]
    )


def run_captures(data: Path, _work: Path) -> str:
    """Captures of two crawls through extraction and text rules, every image tag accounted for."""
    fixtures = data / "common-crawl"
    return "\n".join(
        [
            "## Captures: Common Crawl and a crawl of iana.org\n",
            captures.measure("warc", next(fixtures.rglob("*.warc")), "A WARC of Common Crawl, 2014"),
            captures.measure("wat", next(fixtures.rglob("*.wat")), "The WAT file of the same crawl, cut short"),
            captures.measure("warc", data / "pywb" / "iana.warc.gz", "A WARC of iana.org, 2014"),
        ]
    )


def run_cifar10(data: Path, work: Path) -> str:
    """Shards, training, zero-shot, linear probe and overlap on CIFAR-10, overlap on Fashion-MNIST."""
    shards, tests, model, cache = work / "cifar10-shards", work / "tests", work / "cifar10-model", work / "embeddings"
    if not (shards / "shards.json").exists():
        pictures.write_training_shards(data, shards)
    if not tests.exists():
        unfinished = tests.with_name("tests.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        for split in ("train", "test"):
            pictures.write_task(unfinished, "cifar10", split, *pictures.read_cifar10(data, split))
            pictures.write_task(unfinished, "fashion-mnist", split, *pictures.read_fashion_mnist(data, split))
        unfinished.rename(tests)
    clipkit = Commands()
    trained = clipkit("train", "cifar10", "--data", _short(shards), "--out", _short(model))
    common = ("--model", _short(model), "--data", _short(tests), "--cache", _short(cache))
    zero_shot = clipkit("eval", "zero-shot", "--suite", "cifar10", *common, "--out", _short(work / "zero-shot"))
    probe = clipkit("eval", "linear-probe", "--suite", "real", *common, "--out", _short(work / "linear-probe"))
    overlap = clipkit("overlap-report", "--train", _short(shards), "--suite", "real", *common, "--out", _short(work / "overlap"))
    return cifar10_section(clipkit, {"trained": trained, "zero_shot": zero_shot["scores"], "probe": probe["scores"], "overlap": overlap})


LOOKED_AT = ("animals/birds", "animals/mammals", "vehicles", "food")
"""Folders of Tux Paint's stamps whose photographs the pretrained encoder names."""


def run_lite0(data: Path, work: Path) -> str:
    """A pretrained encoder in a file: its classes for photographs of stamps, and a linear probe on CIFAR-10."""
    description = work / "lite0" / "encoder.toml"
    if not description.exists():
        efficientnet_lite0.export(efficientnet_lite0.load_lite0(data), description.parent)
    tests = work / "lite0-tests"
    if not tests.exists():
        unfinished = tests.with_name("lite0-tests.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        for split, count in (("train", 5_000), ("test", 2_000)):
            images, labels = pictures.read_cifar10(data, split)
            chosen = np.random.default_rng(0).permutation(len(images))[:count]
            pictures.write_task(unfinished, str(HERE / "cifar10-small.toml"), split, images[chosen], labels[chosen])
        unfinished.rename(tests)
    clipkit = Commands()
    common = ("--data", _short(tests), "--cache", _short(work / "embeddings"), "--out", _short(work / "lite0-probe"))
    probe = clipkit("eval", "linear-probe", "--suite", "benchmarks/real/lite0.toml", "--model", _short(description), *common)
    scores = ("task", "metric", "value", "low", "high", "count", "seconds")
    return "\n".join(
        [
            "## EfficientNet-Lite0: a pretrained encoder as a TorchScript file\n",
            clipkit.block(),
            "Linear probe by the paper's protocol:\n",
            _rows("Linear probe", probe["scores"], scores).to_markdown(),
            "What its ImageNet-1k head says of Tux Paint's stamps, the first four of four folders by name:\n",
            _named_stamps(data, description).to_markdown(),
        ]
    )


def _named_stamps(data: Path, description: Path) -> Table:
    stamps = data / "tuxpaint" / "usr" / "share" / "tuxpaint" / "stamps"
    files = [path for folder in LOOKED_AT for path in sorted((stamps / folder).rglob("*.png"))[:4]]
    found = efficientnet_lite0.likeliest(description, [efficientnet_lite0.on_white(path) for path in files])
    names = efficientnet_lite0.class_names(data)
    rows = [
        (str(path.relative_to(stamps)), *(f"{names[at]} {share:.0%}" for at, share in top)) for path, top in zip(files, found, strict=True)
    ]
    return Table("stamps", ("stamp", "first", "second", "third"), rows)


def cifar10_section(clipkit: Commands, reports: dict[str, Any]) -> str:
    """The page's section from the four commands' reports."""
    scores, overlap = ("task", "metric", "value", "low", "high", "count", "seconds"), reports["overlap"]
    effect = (
        "task",
        "count",
        "overlap",
        "contamination",
        "accuracy_all",
        "accuracy_overlap",
        "accuracy_clean",
        "all_minus_clean",
        "p_value",
    )
    return "\n".join(
        [
            "## CIFAR-10: shards, training, evaluation, overlap\n",
            clipkit.block(),
            "Training:\n",
            _facts("Training", reports["trained"]).to_markdown(),
            "Zero-shot, with 95% intervals:\n",
            _rows("Zero-shot", reports["zero_shot"], scores).to_markdown(),
            "Linear probe by the paper's protocol:\n",
            _rows("Linear probe", reports["probe"], scores).to_markdown(),
            f"Overlap with the training shards at threshold {overlap['tasks'][0]['threshold']}, and what it did to zero-shot accuracy:\n",
            _rows("Overlap", overlap["tasks"], effect).to_markdown(),
            "Over the tasks: " + ", ".join(f"{name} {value:.4g}" for name, value in overlap["summary"].items()) + ".\n",
        ]
    )


STEPS: dict[str, Callable[[Path, Path], str]] = {
    "queries": run_queries,
    "openclipart": run_openclipart,
    "tuxpaint": run_tuxpaint,
    "captures": run_captures,
    "cifar10": run_cifar10,
    "lite0": run_lite0,
}


def funnel_table(report: dict[str, Any]) -> Table:
    """A build report's funnel: pairs in, out, and why the rest went."""
    rows = [
        (stage["stage"], stage["in"], stage["out"], ", ".join(f"{reason} {count:,}" for reason, count in stage["dropped"].items()))
        for stage in report["funnel"]
    ]
    return Table("funnel", ("stage", "in", "out", "dropped"), rows)


def _facts(title: str, report: dict[str, Any]) -> Table:
    plain = [(key, value) for key, value in report.items() if isinstance(value, str | int | float)]
    return Table(title, ("what", "value"), plain)


def _rows(title: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Table:
    plain = tuple(column for column in columns if not isinstance(rows[0].get(column), list | dict))
    return Table(title, plain, [tuple(row.get(column) for column in plain) for row in rows])


def _short(path: Path) -> str:
    return os.path.relpath(path, ROOT)


def _head(only: list[str]) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return (
        f"# Real data, {datetime.date.today().isoformat()}\n\n"
        f"Made by `make real` ({', '.join(only)}): clipkit {__version__} at {commit or 'no commit'}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, no GPU. The data is fetched by `benchmarks/real/fetch.py` and is not part of the project.\n"
    )


def main() -> None:
    """Fetch, run the steps, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(STEPS), help="steps, comma-separated")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="where the runs go")
    options = parser.parse_args()
    only = options.only.split(",")
    if unknown := set(only) - set(STEPS):
        parser.error(f"no step {', '.join(sorted(unknown))}: choose from {', '.join(STEPS)}")
    data, work = fetch_all(), options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    sections = work / "sections"
    sections.mkdir(exist_ok=True)
    for name in only:
        (sections / f"{name}.md").write_text(STEPS[name](data, work))
    found = [sections / f"{name}.md" for name in STEPS if (sections / f"{name}.md").exists()]
    page = ROOT / "benchmarks" / "results" / f"real-{datetime.date.today().isoformat()}.md"
    page.write_text("\n".join([_head([path.stem for path in found]), *(path.read_text() for path in found)]))
    print(f"figures in {page}")


if __name__ == "__main__":
    main()
