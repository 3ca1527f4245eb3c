"""The acceptance table of near-duplicate detectors: recall by kind of change at 90% and 99% precision, on pictures none was trained on.

    python benchmarks/real/acceptance.py --out acceptance.md --detector NAME=SPEC [--detector NAME=SPEC ...]

Every query is searched for in one gallery, its best match counts. Queries are changed copies of pictures of the gallery, and as many
changed strangers, of which the gallery has no copy; a match with anything but the query's own original is false. For every detector ONE
threshold is taken over all kinds of change together: the least similarity at which 90% or 99% of the matches found are right. Recall is
the share of a kind's copies whose right match is at or above it. Writes a Markdown table and, beside it, the same as JSON.
"""

import argparse
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import acceptance_pictures as shown
import numpy as np
import torch
from fetch import DATA, fetch_all
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clipkit.model.detector import UNMEASURED, Detector, load_detector
from clipkit.model.encoder import Encoded
from clipkit.run import replacing, write_json

Pairs = list[tuple[bytes, bytes]]

BATCH = 128
NOWHERE = 9.0
"""A similarity that nothing has."""

PRECISIONS = (0.9, 0.99)
GALLERY, STRANGERS, QUERIES, STRANGE_QUERIES = 800, 120, 30, 30
"""Pictures of each origin: in the gallery, kept out of it; of a kind's queries from each origin: copies, strangers."""


class Matches(NamedTuple):
    """The best match of each of Q queries: its place in the gallery and the detector's similarity."""

    place_Q: NDArray[np.int64]
    similarity_Q: NDArray[np.float64]


def described(detector: Detector, pictures: Sequence[bytes]) -> Encoded:
    """Encoded pictures, as they would come from a shard, to vectors."""
    parts = []
    for start in range(0, len(pictures), BATCH):
        pixels = torch.stack([detector.encoder.preprocess(picture) for picture in pictures[start : start + BATCH]])
        parts.append(detector.encoder.encode_images(pixels))
    return Encoded(torch.cat([part.features_BF for part in parts]), torch.cat([part.projected_BD for part in parts]))


def png(picture: Image.Image) -> bytes:
    """Encoded without loss."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def best_matches(detector: Detector, queries: Encoded, gallery: Encoded) -> Matches:
    """As the overlap report searches: the candidates nearest through any view, of which the verified similarity decides."""
    cosines_VQG = torch.stack([view_QD @ gallery.projected_BD.T for view_QD in detector.views(queries)])
    best_QG, view_QG = cosines_VQG.max(dim=0)
    cosine_QK, place_QK = best_QG.topk(min(detector.candidates, best_QG.shape[1]), dim=1)
    if detector.verify is None:
        return Matches(place_QK[:, 0].numpy(), (cosine_QK[:, 0] - _taken_off(detector, queries)).double().numpy())
    similarity_QK = _verified(detector, queries, gallery, place_QK, view_QG.gather(1, place_QK))
    similarity_Q, best_Q = similarity_QK.max(dim=1)
    return Matches(place_QK.gather(1, best_Q[:, None])[:, 0].numpy(), similarity_Q.double().numpy())


def _taken_off(detector: Detector, queries: Encoded) -> Tensor:
    """What score normalisation subtracts from each query's similarities."""
    return torch.zeros(len(queries.projected_BD)) if detector.score_norm is None else detector.score_norm.taken_off(queries.projected_BD)


def _verified(detector: Detector, queries: Encoded, gallery: Encoded, place_QK: Tensor, view_QK: Tensor) -> Tensor:
    assert detector.verify is not None
    count = place_QK.shape[1]
    test_PF = queries.features_BF.repeat_interleave(count, dim=0)
    train_PF = gallery.features_BF[place_QK.flatten()]
    parts = [slice(start, start + 512) for start in range(0, len(test_PF), 512)]
    found = [detector.verify(test_PF[part], train_PF[part], view_QK.flatten()[part]) for part in parts]
    return torch.cat(found).view(place_QK.shape)


class Gallery(NamedTuple):
    """What is searched in, and the queries' originals: (kind, picture, place in the gallery, -1 for a stranger)."""

    pictures: list[bytes]
    queries: list[tuple[str, bytes, int]]


def gallery_and_queries(data: Path) -> Gallery:
    """The same pictures every time."""
    pictures: list[bytes] = []
    copied: list[tuple[Image.Image, int]] = []
    for drawer in shown.drawers(data, most=GALLERY, strangers=STRANGERS):
        copied += [(picture, len(pictures) + place) for place, picture in enumerate(drawer.gallery[:QUERIES])]
        copied += [(picture, -1) for picture in drawer.strangers[:STRANGE_QUERIES]]
        pictures += [png(picture) for picture in drawer.gallery]
    queries = []
    for number, (kind, change) in enumerate(shown.CHANGES.items()):
        for place, (picture, original) in enumerate(copied):
            queries.append((kind, png(change(picture, np.random.default_rng((number, place)))), original))
    return Gallery(pictures, queries)


def threshold_at(matches: Matches, original_Q: NDArray[np.int64], precision: float) -> float:
    """The least similarity above which at least `precision` of the matches are right; NOWHERE where there is none."""
    order = np.argsort(-matches.similarity_Q, kind="stable")
    similarity, right = matches.similarity_Q[order], (matches.place_Q == original_Q)[order]
    ends = np.append(similarity[1:] < similarity[:-1], True)  # equal similarities are reported together
    good = ends & (np.cumsum(right) >= precision * np.arange(1, len(right) + 1))
    return float(similarity[np.flatnonzero(good)[-1]]) if good.any() else NOWHERE


def recalls(matches: Matches, gallery: Gallery, threshold: float) -> dict[str, float]:
    """By kind of change, and of all."""
    kind_Q = np.array([kind for kind, _, _ in gallery.queries])
    original_Q = np.array([original for _, _, original in gallery.queries])
    found = (matches.place_Q == original_Q) & (matches.similarity_Q >= threshold)
    copies = original_Q >= 0
    by_kind = {kind: float(found[(kind_Q == kind) & copies].mean()) for kind in shown.CHANGES}
    return by_kind | {"all kinds": float(found[copies].mean())}


def same_picture(detector: Detector, pairs: Pairs) -> NDArray[np.float64]:
    """The similarity of each pair, whatever else there is."""
    first, second = (described(detector, [pair[side] for pair in pairs]) for side in (0, 1))
    cosine_VP = torch.stack([(view_PD * second.projected_BD).sum(dim=1) for view_PD in detector.views(first)])
    best_P, view_P = cosine_VP.max(dim=0)
    if detector.verify is None:
        return (best_P - _taken_off(detector, first)).double().numpy()
    similarity_P = detector.verify(first.features_BF, second.features_BF, view_P)
    return similarity_P.double().numpy()


class Measured(NamedTuple):
    """One detector's column."""

    thresholds: dict[str, float]
    recalls: dict[str, dict[str, float]]
    failures: dict[str, dict[str, float]]
    seconds_per_1000: float


def measure(detector: Detector, gallery: Gallery, failures: dict[str, Pairs]) -> Measured:
    """The detector's own threshold, where it has one, is measured beside those that are taken from the table."""
    chosen = None if detector.threshold is UNMEASURED else detector.threshold.value
    started = time.perf_counter()
    vectors, queries = described(detector, gallery.pictures), described(detector, [picture for _, picture, _ in gallery.queries])
    seconds = (time.perf_counter() - started) / (len(gallery.pictures) + len(gallery.queries)) * 1_000
    matches = best_matches(detector, queries, vectors)
    original_Q = np.array([original for _, _, original in gallery.queries])
    thresholds = {f"{precision:.0%} precision": threshold_at(matches, original_Q, precision) for precision in PRECISIONS}
    thresholds |= {} if chosen is None else {"own threshold": chosen}
    found = {name: recalls(matches, gallery, threshold) for name, threshold in thresholds.items()}
    if chosen is not None:
        above = matches.similarity_Q >= chosen
        found["own threshold"]["precision"] = float((matches.place_Q == original_Q)[above].mean()) if above.any() else 1.0
    pairs = {name: same_picture(detector, given) for name, given in failures.items()}
    shares = {name: {at: float((given >= threshold).mean()) for at, threshold in thresholds.items()} for name, given in pairs.items()}
    return Measured(thresholds, found, shares, seconds)


def failure_pairs(data: Path) -> dict[str, Pairs]:
    """The paper's two failures, as pairs: those that must not match, and those that must."""
    cifar, labels = shown.read_cifar10(data, "test")
    rng = np.random.default_rng(4)
    same_class = []
    for label in range(10):
        of_class = rng.permutation(np.flatnonzero(labels == label))[:120].reshape(-1, 2)
        same_class += [(Image.fromarray(cifar[a]), Image.fromarray(cifar[b])) for a, b in of_class]
    pairs = {
        "emoji of one concept in two styles (must not match)": shown.emoji_of_two_styles(data, 600),
        "CIFAR-10, two pictures of one class (must not match)": same_class,
        "fine texture resampled by two methods (must match)": [shown.resampled_twice(picture, rng) for picture in shown.textures(100)],
    }
    return {name: [(png(first), png(second)) for first, second in given] for name, given in pairs.items()}


def table(columns: dict[str, Measured], gallery: Gallery) -> str:
    """As Markdown: a row for each kind of change, `recall at 90% / at 99% precision`."""
    names = list(columns)
    at_90, at_99 = (f"{precision:.0%} precision" for precision in PRECISIONS)
    lines = ["| change | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for kind in (*shown.CHANGES, "all kinds"):
        lines.append(_line(kind, [f"{c.recalls[at_90][kind]:.0%} / {c.recalls[at_99][kind]:.0%}" for c in columns.values()]))
    for failure in next(iter(columns.values())).failures:
        lines.append(_line(failure, [f"{c.failures[failure][at_90]:.1%} / {c.failures[failure][at_99]:.1%}" for c in columns.values()]))
    lines.append(_line("threshold", [f"{_told(c.thresholds[at_90])} / {_told(c.thresholds[at_99])}" for c in columns.values()]))
    lines.append(_line("seconds for 1,000 pictures", [f"{c.seconds_per_1000:.1f}" for c in columns.values()]))
    copies = sum(original >= 0 for _, _, original in gallery.queries)
    head = (
        f"Recall at 90% / at 99% precision. Gallery: {len(gallery.pictures):,} pictures; {copies:,} changed copies of "
        f"{len({original for _, _, original in gallery.queries}) - 1} of them and {len(gallery.queries) - copies:,} changed strangers, "
        f"{len(shown.CHANGES)} kinds of change.\n\n"
    )
    return head + "\n".join(lines) + "\n" + own_thresholds(columns)


def _told(threshold: float) -> str:
    return "none" if threshold == NOWHERE else f"{threshold:.3f}"


def _line(name: str, cells: list[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def own_thresholds(columns: dict[str, Measured]) -> str:
    """What detectors with a threshold of their own do at it."""
    lines = []
    for name, column in columns.items():
        if "own threshold" in column.thresholds:
            found = column.recalls["own threshold"]
            wrong = ", ".join(f"{failure}: {shares['own threshold']:.1%}" for failure, shares in column.failures.items())
            lines.append(
                f"\n{name} at its own threshold of {column.thresholds['own threshold']:.3f}: recall {found['all kinds']:.1%}, "
                f"precision {found['precision']:.1%}; {wrong}.\n"
            )
    return "".join(lines)


def main() -> None:
    """Measure every detector and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the Markdown file; the JSON file goes beside it")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the fetched sets")
    parser.add_argument("--detector", action="append", required=True, metavar="NAME=SPEC", help="a column")
    parser.add_argument("--add", action="store_true", help="keep the columns of the JSON file that are not measured again")
    options = parser.parse_args()
    fetch_all(options.data, only=("tuxpaint", "cifar10", "emoji-google", "emoji-apple", shown.PHOTOGRAPHS))
    gallery, failures = gallery_and_queries(options.data), failure_pairs(options.data)
    kept = options.out.with_suffix(".json")
    columns = {name: Measured(**column) for name, column in json.loads(kept.read_text()).items()} if options.add else {}
    for given in options.detector:
        name, _, spec = given.partition("=")
        columns[name] = measure(load_detector(spec), gallery, failures)
        print(name, json.dumps(columns[name].recalls), flush=True)
    with replacing(options.out) as temporary:
        temporary.write_text(table(columns, gallery), encoding="utf-8")
    write_json(kept, {name: column._asdict() for name, column in columns.items()})
    print(options.out.read_text())


if __name__ == "__main__":
    main()
