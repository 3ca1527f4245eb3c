"""Overlap reports on real pictures: what is known to be there is found, and what is not there is not.

    python benchmarks/real/overlap.py --model MODEL --out DIR [--only cifar10,emoji,tuxpaint,openclipart] [--set KNOB=VALUE ...]

* cifar10: CIFAR-10's training pictures against its test set, which has near-duplicates of them (Barz and Denzler 2020), and against
  Fashion-MNIST and MNIST, which have none.
* emoji: Google's drawings against those of three other companies: the same concepts drawn anew are no duplicates. Flags are told apart,
  because two drawings of one flag are the same picture.
* tuxpaint, openclipart: drawings that no other of the set resembles; each test set is a draw of them; the training shards hold others
  and, at known places, one changed copy each of most test pictures, 15 kinds of change in equal numbers. A planted copy is found if its
  test picture counts as overlap and the copy is the nearest training picture.

MODEL is any model with a text tower: its zero-shot answers are what the overlap is measured on. Prints Markdown; DIR keeps the reports,
and killed and started again the runs go on.
"""

import argparse
import io
import json
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import acceptance_pictures  # noqa: E402
import efficientnet_lite0  # noqa: E402
import numpy as np  # noqa: E402
import objectives  # noqa: E402
import pictures  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import test_sets  # noqa: E402
import torch  # noqa: E402
from fetch import fetch_all  # noqa: E402
from PIL import Image  # noqa: E402

from clipkit.dataset.shards import Pair, pair_key, write_shards  # noqa: E402
from clipkit.model.detector import load_detector  # noqa: E402
from clipkit.report.tables import Table  # noqa: E402

KINDS = (
    *("JPEG 10", "JPEG 60", "crop 5%", "crop 10%", "crop 20%", "rescale 0.5, nearest", "rescale 0.25, bicubic", "rotate 5°"),
    *("colour", "grey", "blur", "watermark", "border", "mirror", "all mixed"),
)
"""Planted changes: rows of the acceptance table."""

STYLES = ("twitter", "apple", "facebook")
ROOTS = {"tuxpaint": "tuxpaint/usr/share/tuxpaint/stamps", "openclipart": "openclipart/usr/share/openclipart/png"}
TITLES = {"tuxpaint": "Tux Paint's stamps", "openclipart": "Open Clip Art's drawings"}
FETCHED = ("cifar10", "fashion-mnist", "mnist", "tuxpaint", "openclipart", "emoji-names", *(f"emoji-{s}" for s in ("google", *STYLES)))
PLANTED = {"tuxpaint": 20, "openclipart": 40}
"""Copies of each kind."""

UNPLANTED = 100
MOST_OTHERS = 3_000
MOST_PIXELS = 4_000_000
LEAST_BITS = 11
"""Test pictures without a copy; other drawings in the training shards, at most; pixels of a drawing; bits of 64 between two."""


class Drawing(NamedTuple):
    """A picture file and its class: the folder it lies in."""

    path: Path
    folder: str


def drawings(data: Path, name: str) -> list[Drawing]:
    """All drawings, in an order of their own; of stamps in several files (`_mirror`, `_flip`) the first."""
    root = data / ROOTS[name]
    names = [path for path in sorted(root.rglob("*.png")) if not path.stem.endswith(("_mirror", "_flip", "_mirror_flip"))]
    paths = alone([path for path in names if _pixels(path) <= MOST_PIXELS])
    order = np.random.default_rng(0).permutation(len(paths))
    return [Drawing(paths[i], paths[i].relative_to(root).parts[0]) for i in order]


def _pixels(path: Path) -> int:
    """As the head of a PNG says: width and height at bytes 16 to 24."""
    with path.open("rb") as file:
        width, height = struct.unpack(">16x2I", file.read(24))
    return int(width * height)


def alone(paths: Sequence[Path]) -> list[Path]:
    """Those with no other drawing nearer than LEAST_BITS of pHash: real near-duplicates, of which there are many, would be mistakes."""
    hashes = load_detector("phash").encoder
    pixels = [hashes.preprocess(efficientnet_lite0.on_white(path)) for path in paths]
    vectors_ND = torch.cat([hashes.encode_images(torch.stack(pixels[i : i + 256])).projected_BD for i in range(0, len(pixels), 256)])
    near_NN = vectors_ND @ vectors_ND.T > 1 - 2 * LEAST_BITS / 64 + 1e-6
    return [path for path, near in zip(paths, near_NN.sum(dim=1).tolist(), strict=True) if near == 1]


def plant(data: Path, name: str, folder: Path) -> None:
    """Training shards, a test set with its task and suite, and `planted.json`: kind of change by index of the test picture."""
    found = drawings(data, name)
    copies = PLANTED[name] * len(KINDS)
    tests, others = found[: copies + UNPLANTED], found[copies + UNPLANTED :][:MOST_OTHERS]
    kinds = {i: KINDS[i % len(KINDS)] for i in range(copies)}
    classes = sorted({drawing.folder for drawing in tests})
    known = [(efficientnet_lite0.on_white(drawing.path), str(classes.index(drawing.folder))) for drawing in tests]
    pictures.write_tars(folder / "tests" / name / "test", "cls", known)
    (folder / "planted.json").write_text(json.dumps(kinds))
    write_task(folder, name, TITLES[name], classes)
    write_shards(_pairs(name, tests, others, kinds), folder / "shards", pairs_per_shard=1_000, recipe={"planted": len(kinds)}, funnel=[])


def _pairs(name: str, tests: Sequence[Drawing], others: Sequence[Drawing], kinds: dict[int, str]) -> Iterator[Pair]:
    for place, (drawing, index) in enumerate([(one, -1) for one in others] + [(tests[i], i) for i in kinds]):
        with Image.open(io.BytesIO(efficientnet_lite0.on_white(drawing.path))) as opened:
            picture = opened.convert("RGB")
        if index >= 0:
            picture = acceptance_pictures.CHANGES[kinds[index]](picture, np.random.default_rng((1, index)))
        url = f"{name}://{'planted' if index >= 0 else 'other'}/{index if index >= 0 else place}"
        text = drawing.path.stem.replace("_", " ")
        yield Pair(pair_key(url, text), pictures.png(np.asarray(picture)), text, {"image_url": url, "source": name})


def write_task(folder: Path, name: str, title: str, classes: Sequence[str]) -> None:
    """A task file in `folder`, and a suite of it."""
    lines = {"name": name, "title": title, "folder": name, "layout": "clip-benchmark-wds", "classes": list(classes)}
    lines |= {"templates": ["a picture of {}."], "metric": "accuracy", "published": "distribution packages"}
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in lines.items())
    (folder / f"{name}.toml").write_text(text + '\nsplits = { test = "test" }\n')
    (folder / "suite.toml").write_text(f'name = "{name}"\ntitle = {json.dumps(title)}\ntasks = ["{name}.toml"]\n')


def report(model: str, folder: Path, *, suite: Path, tests: Path, shards: Path, knobs: Sequence[str]) -> dict[str, Any]:
    """`clipkit overlap-report`, as a user types it, with an embedding cache for all sections."""
    words = ["overlap-report", "--model", model, "--train", str(shards), "--suite", str(suite), "--data", str(tests)]
    words += ["--out", str(folder / "report"), "--cache", str(folder.parent / "cache"), "--json", *(f"--set={knob}" for knob in knobs)]
    done = subprocess.run([sys.executable, "-m", "clipkit", *words], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def effects(found: dict[str, Any]) -> Table:
    """A row per task: how much overlap, and what it did."""
    columns = (
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
    return Table("Overlap", columns, [tuple(row[column] for column in columns) for row in found["tasks"]])


def by_kind(folder: Path) -> tuple[Table, str]:
    """Of each kind of change how many planted copies were found, and what else was called overlap."""
    kinds = {int(i): kind for i, kind in json.loads((folder / "planted.json").read_text()).items()}
    rows = pq.read_table(folder / "report" / "overlap.parquet").to_pylist()
    [shards_name] = {path.name for path in (folder / "tests").iterdir()}
    own_keys = _planted_keys(folder, shards_name)
    flagged = [row for row in rows if row["is_overlap"]]
    right = {row["test_index"] for row in flagged if row["key"] == own_keys.get(row["test_index"])}
    counts = []
    for kind in KINDS:
        planted = {i for i, its in kinds.items() if its == kind}
        nearest = sum(row["key"] == own_keys[row["test_index"]] for row in rows if row["test_index"] in planted)
        counts.append((kind, len(planted), nearest, len(planted & right), round(len(planted & right) / len(planted), 3)))
    counts.append(("all", len(kinds), sum(row[2] for row in counts), len(right), round(len(right) / len(kinds), 3)))
    other = [row["test_index"] for row in flagged if row["test_index"] not in right]
    precision = len(right) / max(1, len(flagged))
    found = f"{len(flagged)} test pictures count as overlap, {len(right)} by their planted copy (precision {precision:.3f})"
    return (
        Table("Planted copies", ("change", "planted", "nearest is the copy", "found", "recall"), counts),
        f"{found}; by another picture: {other}.",
    )


def _planted_keys(folder: Path, name: str) -> dict[int, str]:
    prefix = f"{name}://planted/"
    keys = {}
    for table in sorted((folder / "shards").glob("*.parquet")):
        for row in pq.read_table(table, columns=["key", "image_url"]).to_pylist():
            if row["image_url"].startswith(prefix):
                keys[int(row["image_url"].removeprefix(prefix))] = row["key"]
    return keys


def run_planted(name: str, data: Path, folder: Path, model: str, knobs: Sequence[str]) -> str:
    """Plant, report, count."""
    if not (folder / "shards" / "shards.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        plant(data, name, folder)
    found = report(model, folder, suite=folder / "suite.toml", tests=folder / "tests", shards=folder / "shards", knobs=knobs)
    table, rest = by_kind(folder)
    return "\n".join([f"## Planted copies: {TITLES[name]}\n", effects(found).to_markdown(), table.to_markdown(), rest + "\n"])


def run_cifar10(data: Path, folder: Path, model: str, knobs: Sequence[str]) -> str:
    """CIFAR-10's training pictures against three test sets."""
    names = ["cifar10", "fashion-mnist", "mnist"]
    if not (folder / "shards" / "shards.json").exists():
        pictures.write_training_shards(data, folder / "shards")
    test_sets.write_all(data, folder / "tests", most=None, only=names)
    found = report(model, folder, suite=_suite(folder, names), tests=folder / "tests", shards=folder / "shards", knobs=knobs)
    return "\n".join(["## CIFAR-10's training pictures against three test sets\n", effects(found).to_markdown()])


def run_emoji(data: Path, folder: Path, model: str, knobs: Sequence[str]) -> str:
    """Google's drawings against those of three others, flags told apart."""
    names = [f"emoji-{style}" for style in STYLES]
    concepts = objectives.emoji(data)
    if not (folder / "shards" / "shards.json").exists():
        write_shards(_google(data, concepts), folder / "shards", pairs_per_shard=1_000, recipe={"style": "google"}, funnel=[])
    test_sets.write_all(data, folder / "tests", most=None, only=names)
    report(model, folder, suite=_suite(folder, names), tests=folder / "tests", shards=folder / "shards", knobs=knobs)
    rows = pq.read_table(folder / "report" / "overlap.parquet").to_pylist()
    flag = [name.startswith("flag: ") for _, name, _ in concepts]
    counts = []
    for name in names:
        overlap = [row["test_index"] for row in rows if row["task"] == name and row["is_overlap"]]
        flags = sum(flag[i] for i in overlap)
        counts.append((name, sum(flag), flags, len(flag) - sum(flag), len(overlap) - flags))
    columns = ("style", "flags", "of them overlap", "other drawings", "of them overlap ")
    return "\n".join(["## Emoji: Google's drawings against three other styles\n", Table("Emoji", columns, counts).to_markdown()])


def _google(data: Path, concepts: Sequence[tuple[str, str, list[str]]]) -> Iterator[Pair]:
    for file, name, _ in concepts:
        url = f"emoji://google/{file}"
        yield Pair(pair_key(url, name), objectives.on_white(objectives.emoji_file(data, "google", file)), name, {"image_url": url})


def _suite(folder: Path, tasks: Sequence[str]) -> Path:
    path = folder / "suite.toml"
    path.write_text(f'name = "{folder.name}"\ntitle = "{folder.name}"\ntasks = {json.dumps(list(tasks))}\n')
    return path


def main() -> None:
    """Every section that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="cifar10,emoji,tuxpaint,openclipart")
    parser.add_argument("--set", action="append", default=[], dest="knobs", metavar="KNOB=VALUE")
    options = parser.parse_args()
    data = fetch_all(only=FETCHED)
    for name in options.only.split(","):
        folder = options.out / name
        if name in ROOTS:
            print(run_planted(name, data, folder, options.model, options.knobs), flush=True)
        else:
            run = {"cifar10": run_cifar10, "emoji": run_emoji}[name]
            print(run(data, folder, options.model, options.knobs), flush=True)


if __name__ == "__main__":
    main()
