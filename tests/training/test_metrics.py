"""metrics.jsonl and its words."""

import json

import numpy as np
import pytest
import scipy.stats

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


def test_the_verdict_says_whether_the_loss_was_still_falling_when_the_run_ended():
    noise = np.random.default_rng(0).normal(0, 0.01, 100)
    falling, flat = 3 - 0.01 * np.arange(100) + noise, 2 + noise
    words = [metrics.verdict(loss=2.0, chance_loss=4.0, data_wait_share=0.0, losses=list(losses)) for losses in (falling, flat, -falling)]
    assert "cut while it was still learning: over the last fifth its loss changed by -0.1" in words[0]
    assert "converged under this schedule" in words[1]
    assert "getting worse" in words[2]
    assert "last fifth" not in metrics.verdict(loss=2.0, chance_loss=4.0, data_wait_share=0.0, losses=list(falling[:20]))


def test_the_slope_and_its_error_are_those_of_scipy():
    y_N = np.random.default_rng(1).normal(size=20).cumsum()
    expected = scipy.stats.linregress(np.arange(20), y_N)
    assert metrics.slope_and_error(y_N) == pytest.approx((expected.slope, expected.stderr))


def test_an_objective_without_a_known_chance_is_not_judged_by_one():
    assert "cannot be said" in metrics.verdict(loss=1.0, chance_loss=None, data_wait_share=0.0)
    assert metrics.in_words({**LINE, "chance_loss": None}).startswith("loss 3.210, logit scale")
