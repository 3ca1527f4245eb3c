"""Intervals against published constants, scipy's binomial test and the normal approximation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from clipkit.evaluation.intervals import bootstrap, clopper_pearson, clustered_share

# 99.5% intervals, computed once with scipy 1.17's binomtest.
CONSTANTS = [
    (7, 10, 0.2367268336, 0.9710442466),
    (0, 10, 0.0, 0.4507197283),
    (10, 10, 0.5492802717, 1.0),
    (50, 100, 0.3579788231, 0.6420211769),
    (119, 224, 0.4356027741, 0.6253069593),
    (1, 5000, 5.006259183e-07, 0.001641209639),
]


@pytest.mark.parametrize(("successes", "count", "low", "high"), CONSTANTS)
def test_clopper_pearson_gives_the_known_constants(successes: int, count: int, low: float, high: float) -> None:
    interval = clopper_pearson(successes, count, 0.995)
    assert interval.low == pytest.approx(low, rel=1e-9)
    assert interval.high == pytest.approx(high, rel=1e-9)


@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.995]))
def test_clopper_pearson_is_scipys_exact_interval(count: int, share: float, confidence: float) -> None:
    successes = round(share * count)
    exact = binomtest(successes, count).proportion_ci(confidence, method="exact")
    assert clopper_pearson(successes, count, confidence) == pytest.approx((exact.low, exact.high), rel=1e-6, abs=1e-9)


def test_clopper_pearson_of_nothing_knows_nothing() -> None:
    assert clopper_pearson(0, 0, 0.95) == (0, 1)


def test_clopper_pearson_refuses_more_successes_than_tries() -> None:
    with pytest.raises(ValueError, match="11 successes among 10"):
        clopper_pearson(11, 10, 0.95)


def test_bootstrap_of_a_mean_is_the_normal_interval() -> None:
    values_N = np.random.default_rng(0).normal(size=2_000)
    interval = bootstrap(lambda drawn: float(values_N[drawn].mean()), np.zeros(2_000, dtype=np.int64), confidence=0.95, seed=1)
    half = 1.96 * values_N.std() / np.sqrt(2_000)
    assert interval == pytest.approx((values_N.mean() - half, values_N.mean() + half), abs=0.15 * half)


def test_bootstrap_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    values_N = np.random.default_rng(0).normal(size=50)
    strata_N = np.arange(50) % 3

    def run(seed: int) -> tuple[float, float]:
        return bootstrap(lambda drawn: float(values_N[drawn].mean()), strata_N, confidence=0.9, seed=seed, resamples=100)

    assert run(7) == run(7)
    assert run(7) != run(8)


def test_bootstrap_draws_each_stratum_in_its_own_size() -> None:
    strata_N = np.array([5, 1, 5, 5, 1, 9])
    seen: list[list[int]] = []

    def statistic(drawn: np.ndarray) -> float:
        seen.append(sorted(strata_N[drawn].tolist()))
        return float(drawn[0])

    bootstrap(statistic, strata_N, confidence=0.9, seed=0, resamples=50)
    assert all(strata == [1, 1, 5, 5, 5, 9] for strata in seen)


def test_answers_that_are_independent_have_clopper_pearsons_interval() -> None:
    deviation = (0.3 * 0.7 / 200) ** 0.5
    wanted = clopper_pearson(60, 200, 0.95)
    assert clustered_share(0.3, deviation, clusters=100, count=200, confidence=0.95) == pytest.approx(wanted, abs=1e-9)
    assert clustered_share(0.3, deviation / 9, clusters=100, count=200, confidence=0.95) == pytest.approx(wanted, abs=1e-9)
    for share in (0.0, 1.0):
        wanted = clopper_pearson(round(100 * share), 100, 0.95)
        assert clustered_share(share, 0.0, clusters=100, count=200, confidence=0.95) == wanted


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.97])
def test_the_interval_of_pairs_that_answer_alike_holds_the_truth_where_that_of_single_answers_does_not(rate: float) -> None:
    random, clusters = np.random.default_rng(0), 100
    held = held_single = 0
    for seed in range(400):
        right_C2 = np.repeat(random.random(clusters) < rate, 2).reshape(-1, 2)
        share = float(right_C2.mean())
        drawn_RC = np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), 200)
        deviation = float((drawn_RC @ right_C2.mean(axis=1) / clusters).std())
        low, high = clustered_share(share, deviation, clusters=clusters, count=2 * clusters, confidence=0.95)
        held += low <= rate <= high
        single = clopper_pearson(int(right_C2.sum()), 2 * clusters, 0.95)
        held_single += single.low <= rate <= single.high
    assert held / 400 >= 0.94
    assert held_single / 400 < 0.9
