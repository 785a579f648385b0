import numpy as np
import pytest

from ctxaware.bootstrap import bootstrap_mean


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
