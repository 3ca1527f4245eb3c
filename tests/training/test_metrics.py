"""metrics.jsonl and its words."""

import json

import pytest

from clipkit.training import metrics

LINE = {
    "loss": 3.21,
    "chance_loss": 6.24,
    "logit_scale": 14.3,
    "samples_per_second": 1234.5,
    "data_wait_share": 0.034,
    "eta_seconds": 3725.0,
}


def test_lines_after_the_checkpoint_and_a_cut_one_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics.keep_until(path, 4)
    assert not path.exists()
    for step in (2, 4, 6):
        metrics.append(path, {"step": step})
    path.write_text(path.read_text() + '{"step": 4, "lo')
    metrics.keep_until(path, 4)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 4]


def test_a_line_in_words_tells_loss_chance_scale_speed_waiting_and_time_left():
    assert metrics.in_words(LINE) == "loss 3.210 (chance 6.240), logit scale 14.3, 1,234 pairs/s, 3% waiting for data, 1 h 02 min left"
    assert metrics.in_words({**LINE, "eta_seconds": 61.2}).endswith("1 min 01 s left")


@pytest.mark.parametrize(("loss", "words"), [(3.0, "has learnt"), (4.84, "has learnt nothing"), (5.5, "has learnt nothing")])
def test_the_verdict_compares_the_loss_with_chance(loss, words):
    assert words + (":" if "nothing" not in words else "") in metrics.verdict(loss=loss, chance_loss=4.852, data_wait_share=0.0)


def test_the_verdict_says_what_the_run_waited_for():
    assert "compute-bound: 5%" in metrics.verdict(loss=1.0, chance_loss=4.852, data_wait_share=0.05)
    assert "data-bound: 40%" in metrics.verdict(loss=1.0, chance_loss=4.852, data_wait_share=0.4)
