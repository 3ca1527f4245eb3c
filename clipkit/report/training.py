"""A training run seen while it goes on, and its plan: the terminal panel, and tables."""

import itertools
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from clipkit import printable
from clipkit.report.tables import Cell, Table

BARS = "▁▂▃▄▅▆▇█"
NAME_WIDTH = 13
MOST_LINES = 2_000
"""Losses that the panel remembers."""


class TrainingPanel:
    """What a run is doing, in six lines that stay where they are. For a terminal; a pipe has the progress line."""

    shows_progress = True

    def __init__(self, console: Console) -> None:
        """`console`: the run's, so that what is said meanwhile stands above the panel."""
        self._console = console
        self._facts: Mapping[str, Any] = {}
        self._step, self._told_at = 0, time.monotonic()
        self._line: Mapping[str, Any] | None = None
        self._evaluation: Mapping[str, Any] | None = None
        self._losses: deque[float] = deque(maxlen=MOST_LINES)
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4)

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Lines of a resumed run are shown at once."""
        self._facts, self._step = facts, facts["step"]
        for line in facts["lines"]:
            self.tell(line)
        self._live.start()

    def advance(self, step: int) -> None:
        """So many steps are done."""
        self._step = step

    def tell(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""
        if "evaluation" in line:
            self._evaluation = line
        else:
            self._line, self._told_at = line, time.monotonic()
            self._losses.append(line["loss"])

    def end(self, *, failed: bool = False) -> None:
        """Leave the last state on the terminal."""
        self._live.stop()

    def _render(self) -> Group:
        width = max(1, self._console.width - 1)
        return Group() if not self._facts else Group(*panel_lines(self._state(), width=width))

    def _state(self) -> dict[str, Any]:
        since = time.monotonic() - self._told_at
        return {
            "facts": self._facts,
            "step": self._step,
            "line": self._line,
            "evaluation": self._evaluation,
            "losses": list(self._losses),
            "since": since,
        }


def panel_lines(state: Mapping[str, Any], *, width: int) -> list[Text]:
    """The panel as lines of at most `width` characters: each is cut, none is folded."""
    facts, line = state["facts"], state["line"]
    rows = [("training", _done(state, width - NAME_WIDTH))]
    if line is not None:
        rows += [
            ("loss", _loss(line, state["losses"], width - NAME_WIDTH)),
            ("logit scale", _scale(line, facts["max_logit_scale"])),
            ("speed", _speed(line)),
            ("pairs", f"{line['samples_seen']:,} seen · {line['unique_pairs']:,} unique · {line['epochs']:.2f} epochs"),
        ]
    if state["evaluation"] is not None:
        rows.append(("evaluation", f"step {state['evaluation']['step']:,}: {scores_in_words(state['evaluation']['evaluation'])}"))
    texts = [Text.assemble((f"{name:<{NAME_WIDTH}}", "bold"), printable(words), no_wrap=True) for name, words in rows]
    for text in texts:
        text.truncate(width, overflow="ellipsis")
    return texts


def _done(state: Mapping[str, Any], width: int) -> str:
    facts, line, step = state["facts"], state["line"], int(state["step"])
    share: float = step / max(1, facts["steps"])
    left = "" if line is None else f" · ETA {clock(max(0.0, line['eta_seconds'] - state['since'] if step < facts['steps'] else 0.0))}"
    words = f" {share:.0%} · step {step:,} of {facts['steps']:,}{left} · {facts['architecture']}"
    cells = max(0, min(24, width - len(words)))
    return "━" * round(share * cells) + "─" * (cells - round(share * cells)) + words


def _loss(line: Mapping[str, Any], losses: Sequence[float], width: int) -> str:
    """The sparkline reaches from the lowest loss to chance, or to the highest where that is above."""
    chance = line["chance_loss"]
    words = f"{line['loss']:.3f}" + ("" if chance is None else f" · chance {chance:.3f}")
    cells = max(0, min(40, width - len(words) - 1))
    top = max(losses) if chance is None else max(chance, *losses)
    return f"{words} {sparkline(losses, cells, top=top)}"


def sparkline(values: Sequence[float], cells: int, *, top: float) -> str:
    """Values as a row of at most `cells` bars, from their lowest to `top`; where there are more values, each bar is a mean."""
    cells = min(cells, len(values))
    if cells < 1:
        return ""
    edges = [len(values) * i // cells for i in range(cells + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low = min(values)
    span = top - low
    return "".join(BARS[min(7, int(8 * (mean - low) / span))] if span > 0 else BARS[0] for mean in means)


def _scale(line: Mapping[str, Any], most: float) -> str:
    """On a logarithmic way from 1 to its maximum."""
    place = min(20, max(0, round(20 * math.log(max(1.0, line["logit_scale"])) / math.log(most))))
    return f"{line['logit_scale']:.1f} {'─' * place}●{'─' * (20 - place)} {most:g}"


def _speed(line: Mapping[str, Any]) -> str:
    peak = "" if line.get("peak_share") is None else f" · {line['peak_share']:.0%} of peak"
    return (
        f"{line['samples_per_second']:,.0f} pairs/s{peak} · {line['data_wait_share']:.0%} waiting for data · "
        f"{size(line['memory_bytes'])} memory"
    )


def scores_in_words(evaluation: Mapping[str, Any]) -> str:
    """The numbers of an evaluation, tasks first; retrieval as recall at 1 from picture to caption and back."""
    short = {"image_to_text_recall@1": "picture→caption", "text_to_image_recall@1": "caption→picture"}
    named = [(name.split("/")[-1], value) for name, value in flat_scores(evaluation).items() if not name.endswith("chance")]
    named.sort(key=lambda pair: pair[0] in short)
    return ", ".join(f"{short.get(name, name)} {value:.1%}" for name, value in named)


def flat_scores(evaluation: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Shares by name: `held_out/image_to_text_recall@1`; counts and what was not found are left out."""
    found: dict[str, float] = {}
    for name, value in evaluation.items():
        if isinstance(value, Mapping):
            found |= flat_scores(value, f"{prefix}{name}/")
        elif isinstance(value, float):
            found[prefix + name] = value
    return found


def plan_tables(report: Mapping[str, Any]) -> list[Table]:
    """What a run will take: the tables of `--dry-run`."""
    rows: list[tuple[str, Cell]] = [
        ("architecture", report["architecture"]),
        ("objective", report["objective"]),
        ("steps", report["steps"]),
        ("of which warm-up", report["warmup_steps"]),
        ("pairs per step", report["batch_size"]),
        ("ranks", report["ranks"]),
        ("pairs seen", report["samples_seen"]),
        ("unique pairs", report["unique_pairs"]),
        ("epochs", report["epochs"]),
        ("parameters", report["parameters"]),
        ("of which trained", report["trained_parameters"]),
        *((f"memory of a rank: {name}", size(count)) for name, count in report["memory_bytes"].items() if count),
        ("memory of a rank, in all", size(sum(report["memory_bytes"].values()))),
        (f"memory of {report['device']}", size(report["memory_there"])),
        ("time, computing alone", duration(report["seconds"])),
        ("share of peak of the measured step", None if report["peak_share"] is None else f"{report['peak_share']:.0%}"),
    ]
    if report["price"] is not None:
        rows.append(("price", f"{report['price']:,.2f}"))
    return [Table("what this run will take", ("what", "value"), rows, note=plan_verdict(report))]


def plan_verdict(report: Mapping[str, Any]) -> str:
    """Whether the run could start here."""
    needed, there = sum(report["memory_bytes"].values()), report["memory_there"]
    if report["fits"]:
        memory = f"it fits into the memory of {report['device']}"
    else:
        memory = (
            f"it does not fit: a rank needs about {size(needed)}, {report['device']} has {size(there)}; more ranks, `micro_batch` or "
            "`model.gradient_checkpointing` need less"
        )
    problems = "".join(f"; it would be refused: {problem}" for problem in report["problems"])
    return f"{memory}{problems}; measured with {report['measured_rows']} pairs on this machine, nothing was written"


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for most, divisor, unit in ((120, 1, "seconds"), (7200, 60, "minutes"), (172800, 3600, "hours")):
        if seconds < most:
            return f"{seconds / divisor:.1f} {unit}"
    return f"{seconds / 86400:,.1f} days"
