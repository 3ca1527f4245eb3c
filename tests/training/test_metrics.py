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


def learnt(losses, chance: float | None = None) -> str:
    return metrics.verdict(loss=float(losses[-1]), chance_loss=chance, data_wait_share=0.0, losses=list(losses), first_steps=10).split(
        "; "
    )[0]


def test_without_a_chance_the_verdict_tells_how_far_the_loss_fell():
    noise = np.random.default_rng(0).normal(0, 0.05, 40)
    found = learnt(5 - 0.05 * np.arange(40) + noise, None)
    assert found.startswith("the model has learnt: the loss fell from 5.006 (the first 10 steps) to 3.")
    early = np.r_[5.0, np.full(39, 2.0)] + noise
    assert learnt(early, None).startswith("the model has learnt: the loss fell from 5.006"), "one great change is no scatter"
    flat = np.r_[2.01, 2 + noise, 2.0]
    assert learnt(flat, None).startswith("the loss fell from 2.010 (the first 10 steps) to 2.000, which is no more than scatter (0.2 times")
    assert learnt(-early, None).startswith("the loss did not fall: -5.006 in the first 10 steps, -2.")
    assert learnt([5.0, 1.0], None) == "the loss fell from 5.000 (the first 10 steps) to 1.000"
    assert metrics.verdict(loss=1.0, chance_loss=None, data_wait_share=0.0).startswith("the loss is 1.000; ")


def test_a_run_that_begins_at_chance_is_judged_by_it():
    assert learnt([4.84, 4.0], 4.852) == "the model has learnt: its loss of 4.000 is 0.852 below chance (4.852)"


@pytest.mark.parametrize("lines", [8, 20, 100])
def test_of_losses_that_only_scatter_few_are_said_to_have_fallen(lines):
    noise = np.random.default_rng(2).normal(2, 0.1, (4_000, lines))
    assert sum("has learnt" in learnt(losses) for losses in noise) < 0.01 * len(noise)


@pytest.mark.parametrize("lines", [25, 100])
def test_a_slope_just_above_students_t_moves_and_one_just_below_does_not(lines):
    last = lines // 5
    x_N = np.arange(last) - (last - 1) / 2
    scatter_N = np.random.default_rng(3).normal(0, 0.01, last)
    scatter_N -= np.polyval(np.polyfit(x_N, scatter_N, 1), x_N)
    error = np.sqrt(scatter_N @ scatter_N / (last - 2) / (x_N @ x_N))
    clear = scipy.stats.t.isf(0.0027 / 2, last - 2)
    for factor, words in ((0.99, "converged"), (1.01, "cut while it was still learning")):
        losses = [*[9.0] * (lines - last), *(3 + scatter_N - factor * clear * error * x_N)]
        assert words in metrics.verdict(loss=3.0, chance_loss=None, data_wait_share=0.0, losses=losses)


@pytest.mark.parametrize("last", [5, 20])
def test_of_losses_that_stand_still_one_in_370_is_said_to_move_however_few_lines_there_are(last):
    noise = np.random.default_rng(4).normal(2, 0.1, (20_000, last))
    alarms = sum("converged" not in metrics._ending([*[2.0] * (4 * last), *losses]) for losses in noise)
    assert 30 < alarms < 80, "54 are expected, with a deviation of 7"


def test_a_line_without_chance_tells_none():
    assert metrics.in_words({**LINE, "chance_loss": None}).startswith("loss 3.210, logit scale")
