import numpy as np
import pytest

from ctxaware.intervals import bootstrap_mean


def test_the_interval_is_the_percentiles_of_resampled_means():
    values = np.random.default_rng(1).random(80)
    rng = np.random.default_rng(2)
    means = [rng.choice(values, len(values)).mean() for _ in range(20_000)]
    interval = bootstrap_mean(values)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(np.percentile(means, 2.5), abs=0.003)
    assert interval.high == pytest.approx(np.percentile(means, 97.5), abs=0.003)
    assert interval.n == 80
    assert bootstrap_mean(values) == interval  # a fixed seed


def test_equal_and_single_values_have_an_interval_without_width():
    assert str(bootstrap_mean([0.5] * 9)) == "0.500 [0.500, 0.500]"
    assert bootstrap_mean([1.0]).signed == "+1.000 [+1.000, +1.000]"
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_mean([])


def test_each_value_a_group_of_its_own_is_the_plain_bootstrap():
    differences = np.random.default_rng(1).integers(-9, 10, 60)
    grouped, plain = bootstrap_mean(differences, groups=range(60)), bootstrap_mean(differences)
    assert (grouped.mean, grouped.n) == (plain.mean, plain.n)
    assert (grouped.low, grouped.high) == pytest.approx((plain.low, plain.high), abs=0.1)


def test_values_of_a_group_are_drawn_together():
    differences = np.random.default_rng(1).normal(size=80)
    twice = bootstrap_mean([*differences, *differences], groups=[*range(80), *range(80)])
    once = bootstrap_mean(differences, groups=range(80))
    assert twice.high - twice.low == pytest.approx(once.high - once.low, rel=1e-9)  # no pair more of evidence


def test_random_ratings_cover_zero_as_often_as_the_interval_says():
    rng = np.random.default_rng(0)
    questions = np.repeat(np.arange(80), 2)  # two turns each
    covered = 0
    for _ in range(100):
        interval = bootstrap_mean(rng.integers(1, 11, 160) - rng.integers(1, 11, 160), groups=questions)
        covered += interval.low <= 0 <= interval.high
    assert 89 <= covered <= 99  # of 100 at 95%


def test_a_true_difference_is_found():
    differences = np.random.default_rng(0).integers(-2, 5, 160)
    assert bootstrap_mean(differences, groups=np.repeat(np.arange(80), 2)).low > 0
