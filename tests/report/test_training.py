"""The panel, the plan's tables, and where lines are sent."""

import io
import sys
from typing import Any
from unittest.mock import MagicMock
from xml.etree import ElementTree

import pytest
from rich.console import Console

from clipkit import UserError
from clipkit.report import boards
from clipkit.report.figures import training_curves
from clipkit.report.training import TrainingPanel, flat_scores, panel_lines, plan_verdict, size, sparkline

LINE = {
    "step": 120,
    "samples_seen": 7680,
    "unique_pairs": 2092,
    "epochs": 3.67,
    "loss": 2.731,
    "chance_loss": 4.159,
    "logit_scale": 14.9,
    "learning_rate": 1e-3,
    "samples_per_second": 309.2,
    "data_wait_share": 0.013,
    "eta_seconds": 92.0,
    "peak_share": 0.43,
    "memory_bytes": 968_011_776,
}
EVALUATION = {
    "step": 100,
    "evaluation": {"held_out": {"pairs": 40, "image_to_text_recall@1": 0.425, "chance": 0.1}, "zero_shot": {"x": 0.5}},
}
FACTS = {"step": 0, "steps": 600, "batch_size": 64, "architecture": "RN-tiny-32", "max_logit_scale": 100.0, "lines": []}
STATE: dict[str, Any] = {"facts": FACTS, "step": 120, "line": LINE, "evaluation": EVALUATION, "losses": [4.1, 3.0, 2.731], "since": 2.0}


@pytest.mark.parametrize("width", [1, 2, 13, 20, 40, 79, 119, 300])
def test_no_line_of_the_panel_is_wider_than_the_terminal(width: int) -> None:
    for state in (STATE, {**STATE, "line": None, "evaluation": None}, {**STATE, "line": {**LINE, "chance_loss": None, "peak_share": None}}):
        assert all(line.cell_len <= width for line in panel_lines(state, width=width))


def test_the_panel_says_what_a_person_asks() -> None:
    text = "\n".join(line.plain for line in panel_lines(STATE, width=100))
    for words in ("step 120 of 600", "20%", "ETA 0:01:30", "2.731 · chance 4.159 █", "14.9 ─", "309 pairs/s · 43% of peak", "968.0 MB"):
        assert words in text
    assert "2,092 unique · 3.67 epochs" in text
    assert "step 100: x 50.0%, picture→caption 42.5%" in text


def test_a_sparkline_is_high_at_chance_and_low_at_the_lowest_and_keeps_to_its_cells() -> None:
    assert sparkline([4.0, 2.0, 0.0], 3, top=4.0) == "█▅▁"
    assert sparkline([4.0, 4.0, 0.0, 0.0], 2, top=4.0) == "█▁"
    assert sparkline([1.0], 10, top=1.0) == "▁"
    assert sparkline([1.0, 2.0], 0, top=2.0) == sparkline([], 5, top=1.0) == ""


def test_a_panel_draws_itself_on_a_terminal_and_stops() -> None:
    out = io.StringIO()
    panel = TrainingPanel(Console(file=out, force_terminal=True, width=60, color_system=None))
    panel.begin({**FACTS, "lines": [LINE]})
    panel.tell({**LINE, "step": 130, "loss": 2.5})
    panel.tell(EVALUATION)
    panel.advance(130)
    panel.end()
    panel.end()
    assert "2.500 · chance 4.159" in out.getvalue()
    assert "step 130 of 600" in out.getvalue()


def test_the_curves_are_svg_and_the_same_every_time_with_and_without_evaluations() -> None:
    for lines in ([LINE, {**LINE, "step": 130}, EVALUATION], [{**LINE, "chance_loss": None}], []):
        first = training_curves(lines)
        assert ElementTree.fromstring(first).tag.endswith("svg")
        assert first == training_curves(lines)
    assert training_curves([LINE]) != training_curves([LINE, EVALUATION])


@pytest.mark.parametrize("name", ["pair_cosine", "gradient_norm"])
def test_without_an_evaluation_the_fourth_panel_is_the_cosine_of_pairs_or_the_gradients_norm(name: str) -> None:
    flat, rising = ([{**LINE, name: 0.1}, {**LINE, "step": 130, name: end}] for end in (0.1, 0.5))
    assert training_curves(flat) != training_curves(rising)
    assert training_curves([*flat, EVALUATION]) == training_curves([*rising, EVALUATION])
    both = [{**line, "pair_cosine": 0.1, "gradient_norm": line["step"]} for line in flat]
    assert training_curves(both) == training_curves([{**line, "gradient_norm": 1.0} for line in both])


def test_a_plan_that_does_not_fit_says_how_much_is_missing() -> None:
    report = {"memory_bytes": {"weights": 2_000_000_000, "activations": 638_000_000_000}, "memory_there": 16_000_000_000, "fits": False}
    words = plan_verdict({**report, "device": "cpu", "problems": ["too few pairs"], "measured_rows": 3})
    assert words.startswith("it does not fit: a rank needs about 640.0 GB, cpu has 16.0 GB; ")
    assert "it would be refused: too few pairs" in words


def test_sizes_have_the_unit_that_suits_them() -> None:
    assert [size(count) for count in (0, 999, 1000, 2.5e9, 1e15)] == ["0 B", "999 B", "1.0 kB", "2.5 GB", "1,000.0 TB"]


def test_shares_have_their_full_name_and_counts_are_left_out() -> None:
    assert flat_scores(EVALUATION["evaluation"]) == {"held_out/image_to_text_recall@1": 0.425, "held_out/chance": 0.1, "zero_shot/x": 0.5}


def test_tensorboard_shows_each_step_once_after_a_run_is_resumed(tmp_path: Any) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, steps, offset in ((0, (2, 4, 6), 0.0), (4, (6, 8), 100.0)):
        board = boards.TensorBoard(tmp_path)
        board.begin({**FACTS, "step": start})
        for step in steps:
            board.tell({**LINE, "step": step, "loss": step + offset})
        board.tell({**EVALUATION, "step": steps[-1]})
        board.end()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(2, 2.0), (4, 4.0), (6, 106.0), (8, 108.0)]
    assert [event.step for event in events.Scalars("evaluation/zero_shot/x")] == [8]


@pytest.mark.parametrize("failed", [False, True])
def test_weights_and_biases_is_told_whether_the_run_failed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, *, failed: bool) -> None:
    package = MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", package)
    (tmp_path / "run.json").write_text('{"start": "today"}')
    board = boards.WeightsAndBiases("project", tmp_path, {})
    package.errors.Error = RuntimeError
    board.begin(FACTS)
    board.end(failed=failed)
    package.init.return_value.finish.assert_called_once_with(exit_code=int(failed))


def test_a_missing_package_is_one_sentence_that_names_the_extra(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"clipkit\[tensorboard\]"):
        boards.TensorBoard(tmp_path)
    with pytest.raises(UserError, match=r"clipkit\[wandb\]"):
        boards.WeightsAndBiases("project", tmp_path, {})
