import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binomtest, norm

from ctxaware.intervals import DIFFERENCE, BoundedMean, mean_interval, mean_of_tasks

MANY = 1e9  # degrees of freedom at which Student's t is the normal distribution


def normal(values, clusters=None, bounds=(0.0, 1.0)):
    """The published intervals take the normal quantile."""
    mean = BoundedMean(values, clusters, bounds)
    mean.df = MANY
    return mean


@pytest.mark.parametrize(("n_right", "n"), [(0, 9), (1, 9), (5, 9), (9, 9), (350, 400)])
def test_of_0_1_scores_it_is_wilsons_interval(n_right, n):
    interval = normal([1] * n_right + [0] * (n - n_right)).interval()
    wilson = binomtest(n_right, n).proportion_ci(method="wilson")
    assert (interval.low, interval.high) == pytest.approx((wilson.low, wilson.high), abs=1e-6)


def tango(losses, gains, n, difference):
    """Tango's (1998) score statistic for paired proportions, as published: the root of a quadratic."""
    delta = -difference  # his difference is the share of losses less that of gains
    a = 2 * n
    b = (2 * n + gains - losses) * delta - gains - losses
    c = -gains * delta * (1 - delta)
    q = (np.sqrt(b * b - 4 * a * c) - b) / (2 * a)
    return (losses - gains - n * delta) / np.sqrt(n * (2 * q + delta * (1 - delta)))


@pytest.mark.parametrize(("losses", "gains", "n"), [(12, 5, 100), (0, 0, 9), (0, 3, 50), (7, 0, 400)])
def test_of_paired_0_1_scores_it_is_tangos_interval(losses, gains, n):
    values = [-1] * losses + [1] * gains + [0] * (n - losses - gains)
    mean = normal(values, bounds=DIFFERENCE)
    for confidence in (0.9, 0.975):
        for bound, sign in ((mean.lower(confidence), -1), (mean.upper(confidence), 1)):
            assert tango(losses, gains, n, bound) == pytest.approx(sign * norm.ppf(confidence), abs=1e-4)


def test_against_zero_it_is_mcnemars_test():
    losses, gains = 12, 5
    mean = normal([-1] * losses + [1] * gains + [0] * 83, bounds=DIFFERENCE)
    assert mean.p_below(0) == pytest.approx(norm.cdf((gains - losses) / np.sqrt(gains + losses)))
    assert mean.p_above(0) == 1.0


def test_the_variance_is_that_of_the_likeliest_distribution_with_that_mean():
    values = np.random.default_rng(0).choice([-0.6, -1 / 7, 0, 1 / 7, 0.4], 40)
    support, counts = np.unique([*values, -1, 1], return_counts=True)
    counts[[0, -1]] = 0  # the bounds were not seen
    for mean in (-0.4, -0.1, 0.05):
        best = minimize(
            lambda p: -np.sum(counts * np.log(np.maximum(p, 1e-12))),
            np.full(len(support), 1 / len(support)),
            bounds=[(0, 1)] * len(support),
            constraints=[
                {"type": "eq", "fun": lambda p: p.sum() - 1},
                {"type": "eq", "fun": lambda p, mean=mean: p @ support - mean},
            ],
        )
        variance = best.x @ (support - mean) ** 2
        assert BoundedMean(values, bounds=DIFFERENCE).variance(mean) == pytest.approx(variance, rel=1e-2)


def test_equal_values_are_no_certainty():
    nine = mean_interval([0.0] * 9, bounds=DIFFERENCE)
    assert (nine.low, nine.high) == pytest.approx((-0.371, 0.371), abs=1e-3)
    many = mean_interval([0.0] * 4000, bounds=DIFFERENCE)
    assert many.high < 0.002
    single = mean_interval([1.0])
    assert (single.mean, single.low, single.high, single.n) == (1.0, 0.0, 1.0, 1)


def test_bounds_and_p_values_say_the_same():
    values = np.random.default_rng(3).choice([-1.0, 0.0, 0.0, 0.0, 1.0], 200, p=[0.1, 0.3, 0.3, 0.25, 0.05])
    mean = BoundedMean(values, [n // 4 for n in range(200)], DIFFERENCE)
    assert mean.p_below(mean.upper(0.95)) == pytest.approx(0.05, abs=1e-6)
    assert mean.p_above(mean.lower(0.99)) == pytest.approx(0.01, abs=1e-6)
    interval = mean.interval(0.9)
    assert (interval.low, interval.high) == (mean.lower(0.95), mean.upper(0.95))
    assert str(interval) == interval.signed


def test_values_of_a_cluster_count_as_little_as_they_differ():
    values = np.random.default_rng(1).random(80)
    once = mean_interval(values, range(80))
    twice = mean_interval([*values, *values], [*range(80), *range(80)])
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), abs=0.002)  # no more evidence
    apart = mean_interval([*values, *values])
    assert apart.high - apart.low < 0.75 * (once.high - once.low)


def test_the_design_effect_is_the_jackknife_over_clusters():
    rng = np.random.default_rng(2)
    clusters = rng.integers(12, size=90)  # of unequal sizes
    values = np.clip(0.5 + 0.2 * rng.normal(size=12)[clusters] + 0.1 * rng.normal(size=90), 0, 1)
    left_out = np.array([values[clusters != name].mean() for name in range(12)])
    jackknife = 11 / 12 * np.sum((left_out - values.mean()) ** 2)
    assert BoundedMean(values, clusters).design_effect == pytest.approx(jackknife / (values.var(ddof=1) / 90))
    assert BoundedMean(values, clusters).df == pytest.approx(90**2 / np.sum(np.bincount(clusters) ** 2) - 1)


def test_clusters_never_make_an_interval_narrower():
    balanced = [0, 1] * 40  # each pair has one of both: fewer differences between clusters than chance has
    assert mean_interval(balanced, np.repeat(range(40), 2)).high >= mean_interval(balanced).high


def test_one_cluster_says_nothing_of_others():
    mean = BoundedMean([0, 1, 1, 1], ["a"] * 4)
    assert (mean.lower(0.95), mean.upper(0.95)) == (0, 1)
    assert mean.p_below(0.99) == mean.p_above(0.01) == 1


def test_random_ratings_cover_zero_as_often_as_the_interval_says():
    rng = np.random.default_rng(0)
    questions = np.repeat(np.arange(80), 2)  # two turns each
    covered = 0
    for _ in range(200):
        interval = mean_interval(rng.integers(1, 11, 160) - rng.integers(1, 11, 160), questions, (-9, 9))
        covered += interval.low <= 0 <= interval.high
    assert 183 <= covered <= 197  # of 200 at 95%


def test_the_mean_of_one_task_is_that_task():
    part = BoundedMean([0, 1, 1, 1, 0, 1], list("aabbcc"))
    whole = mean_of_tasks([part])
    assert (whole.lower(0.9), whole.upper(0.9)) == pytest.approx((part.lower(0.9), part.upper(0.9)))
    assert whole.p_above(0.2) == part.p_above(0.2)


def test_the_mean_of_tasks_counts_each_alike_and_shared_clusters_once():
    rng = np.random.default_rng(5)
    effect = rng.normal(size=40)
    values = np.clip(0.5 + 0.2 * effect + 0.05 * rng.normal(size=40), 0, 1)
    names = [f"cell {n}" for n in range(40)]
    one = BoundedMean(values, names)
    same = mean_of_tasks([one, BoundedMean(values, names)])
    assert same.interval().high == pytest.approx(
        one.interval().high, abs=1e-6
    )  # the same cells twice: no more evidence
    other = mean_of_tasks([one, BoundedMean(values, [f"other {name}" for name in names])])
    assert other.interval().high - other.mean == pytest.approx((one.interval().high - one.mean) / np.sqrt(2), abs=1e-6)
    small = BoundedMean([0.0] * 10, [f"small {n}" for n in range(10)])
    assert mean_of_tasks([one, small]).mean == pytest.approx(one.mean / 2)
    nothing = BoundedMean([0.5] * 40, names)
    assert mean_of_tasks([nothing, nothing]).correlation[0, 1] == 1.0
    p = other.p_below(0.7)
    assert other.upper(1 - p) == pytest.approx(0.7, abs=1e-6)
    assert other.p_above(0.7) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "at least one value"),
        (([0.5, 1.5],), "within 0 to 1, got 0.5 to 1.5"),
        (([0.5, float("nan")],), "within 0 to 1"),
        (([0.5, 0.5], ["a"]), "each of 2 values needs a cluster, got 1"),
    ],
)
def test_values_that_can_not_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        mean_interval(*arguments)
