"""Plots of what a run found, as SVG text: no display, no global state, the same bytes for the same numbers."""

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipkit.report.training import flat_scores

INK, FAINT, BLUE, ORANGE = "#1f2933", "#9aa5b1", "#2563a8", "#d9622b"
CLASSIFIERS = {"logistic": BLUE, "ridge": ORANGE}
MOST_CURVES = 8
"""Of the evaluations of one run."""
INSTEAD = (("pair_cosine", "cosine of pairs"), ("gradient_norm", "gradient norm"))
"""What is drawn of the steps of a run without evaluations: the first that every line has."""

_STYLE: Any = {
    "svg.hashsalt": "clipkit",
    "svg.fonttype": "path",  # text as outlines: looks the same wherever the page is opened
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def house_style() -> Any:
    """The house's look while a figure is drawn and written: a context."""
    return mpl.rc_context(_STYLE)


def similarity_histogram(similarities: Sequence[float], *, threshold: float) -> str:
    """How similar the nearest training pictures are, on a logarithmic scale so that few duplicates show beside many others."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 1.9), layout="constrained")
        axes = figure.add_subplot()
        low = min([0.0, *similarities])
        edges = [low + (1 - low) * i / 50 for i in range(51)]
        clipped = [min(similarity, 1.0) for similarity in similarities]
        for colour, part in ((FAINT, [s for s in clipped if s < threshold]), (ORANGE, [s for s in clipped if s >= threshold])):
            axes.hist(part, bins=edges, color=colour, log=bool(clipped))
        axes.axvline(threshold, color=ORANGE, linewidth=1.2, linestyle="--")
        axes.set_xlim(low, 1.0)
        axes.set_xlabel(f"similarity of the nearest training picture (threshold {threshold:g})")
        axes.set_ylabel("test pictures")
        return svg(figure)


def accuracy_curves(curves: Mapping[str, Sequence[tuple[int, float]]], *, chance: float) -> str:
    """CLIP's figure 2: accuracy (0 to 1) against pictures seen, a curve for each way of learning, named where it ends."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(100 * chance, color=FAINT, linewidth=1, linestyle="--")
        for (name, points), colour in zip(curves.items(), itertools.cycle((INK, BLUE, ORANGE))):
            seen, accuracies = zip(*points, strict=True)
            axes.plot(seen, [100 * accuracy for accuracy in accuracies], "o-", color=colour, markersize=4, linewidth=1.4)
            axes.annotate(name, (seen[-1], 100 * accuracies[-1]), xytext=(6, -3), textcoords="offset points", fontsize=8)
        axes.set_xlim(0, 1.35 * max(points[-1][0] for points in curves.values()))
        axes.set_xlabel("pictures seen")
        axes.set_ylabel("zero-shot accuracy (%)")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        return svg(figure)


def training_curves(lines: Sequence[Mapping[str, Any]]) -> str:
    """A run by the lines of its metrics.jsonl: loss against chance, logit scale, learning rate, and what evaluations found.

    Without an evaluation the fourth panel is the pairs' mean cosine, or the gradient's norm of an objective that knows no such.
    """
    steps = [line for line in lines if "loss" in line]
    scores: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in flat_scores(line.get("evaluation") or {}).items():
            if not name.endswith("chance"):
                scores.setdefault(name, []).append((line["step"], 100 * value))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.4, 5.0), layout="constrained")
        (loss, scale), (rate, fourth) = figure.subplots(2, 2, sharex=True)
        _draw_loss(loss, steps)
        _draw_steps(scale, steps, "logit_scale", "logit scale")
        _draw_steps(rate, steps, "learning_rate", "learning rate")
        if scores:
            _draw_scores(fourth, scores)
        else:
            name, label = next((one for one in INSTEAD if all(one[0] in line for line in steps)), INSTEAD[-1])
            _draw_steps(fourth, [line for line in steps if name in line], name, label)
        for axes in (rate, fourth):
            axes.set_xlabel("step")
        return svg(figure)


def _draw_loss(axes: Axes, steps: Sequence[Mapping[str, Any]]) -> None:
    _draw_steps(axes, steps, "loss", "loss")
    chance = [(line["step"], line["chance_loss"]) for line in steps if line.get("chance_loss") is not None]
    if chance:
        axes.axhline(chance[-1][1], color=ORANGE, linewidth=1.2, linestyle="--")
        axes.annotate(
            "chance", (0.99, chance[-1][1]), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=ORANGE, fontsize=8
        )


def _draw_steps(axes: Axes, steps: Sequence[Mapping[str, Any]], name: str, label: str) -> None:
    axes.plot([line["step"] for line in steps], [line[name] for line in steps], color=BLUE, linewidth=1.2)
    axes.set_title(label, fontsize=9, loc="left")
    axes.margins(y=0.12)


def _draw_scores(axes: Axes, scores: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    axes.set_title("evaluation (%)", fontsize=9, loc="left")
    for i, (name, points) in enumerate(list(scores.items())[:MOST_CURVES]):
        colour, style = (BLUE, ORANGE, INK, FAINT)[i % 4], ("-", "--")[i // 4 % 2]
        axes.plot(*zip(*points, strict=True), style, marker="o", markersize=3, color=colour, linewidth=1.2, label=name[-40:])
    axes.legend(fontsize=7, frameon=False)


def svg(figure: Figure) -> str:
    """A figure as SVG text, without a date; to be called within `house_style`."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def few_shot_figure(result: Mapping[str, Any]) -> str:
    """Scores against pictures per class on a logarithmic axis, a band of the interval over draws, zero-shot as a line (CLIP figure 6).

    All training pictures are a hollow point at the end, its bar the interval of the test pictures (figure 7).
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for classifier, curve in result["curves"].items():
            shots = [point["shots"] for point in curve]
            low, middle, high = ([100 * point[name] for point in curve] for name in ("low", "score", "high"))
            axes.fill_between(shots, low, high, color=CLASSIFIERS[classifier], alpha=0.2, linewidth=0)
            axes.plot(shots, middle, color=CLASSIFIERS[classifier], marker="o", markersize=3, label=classifier)
        for classifier, point in result["fully_supervised"].items():
            ends = [[100 * (point["score"] - point["low"])], [100 * (point["high"] - point["score"])]]
            place, colour = ([point["pictures_per_class"]], [100 * point["score"]]), CLASSIFIERS[classifier]
            axes.errorbar(*place, yerr=ends, color=colour, marker="o", markersize=4, markerfacecolor="white")
        if "zero_shot" in result:
            axes.axhline(100 * result["zero_shot"], color=INK, linewidth=1, linestyle="--", label="zero-shot")
        axes.set_xscale("log", base=2)
        every = sorted({point["pictures_per_class"] for point in result["fully_supervised"].values()})
        axes.set_xticks([*shots, *every], [*(str(k) for k in shots), *(f"all\n{k:.4g}" for k in every)])
        axes.minorticks_off()
        axes.set_xlabel("pictures per class")
        axes.set_ylabel(f"{result['metric']}, %")
        axes.set_title(result["dataset"], loc="left", fontsize=9)
        axes.legend(frameon=False)
        return svg(figure)
