"""Statistics keep their promises on samples whose truth is known, and say "cannot tell" where they cannot."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from benchmarks.simulation import NOISES, STUDIES, Noise, covered, different, equal_cells, paired, table, unpaired
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from knee.lab import statistics
from knee.lab.statistics import (
    Comparison,
    Estimate,
    compare_paired,
    compare_unpaired,
    enough_for,
    median_interval,
    outliers,
    percentile,
    student_t_cdf,
    student_t_quantile,
    trend,
)

LAW = settings(deadline=None, max_examples=50)

any_number = st.floats(allow_nan=False, allow_infinity=False)
sample = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=25)
times = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=25)
rounds = st.dictionaries(st.integers(0, 12), st.floats(1e-3, 1e6), max_size=12)
noises = pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.name)


def better(a, b, **options) -> Comparison:
    return compare_paired(dict(enumerate(a)), dict(enumerate(b)), higher_is_better=True, **options)


def finite(*numbers: float | None) -> bool:
    return all(number is None or math.isfinite(number) for number in numbers)


# --- promises, simulated ------------------------------------------------------------------------------------------


@noises
@pytest.mark.parametrize("n", [5, 10, 20])
def test_intervals_hold_the_true_median_as_often_as_they_say(noise: Noise, n: int):
    assert 0.92 <= covered(noise, n, trials=300, seed=n) <= 0.985


def test_without_smoothing_intervals_hold_the_true_median_too_rarely(monkeypatch):
    monkeypatch.setattr(statistics, "BANDWIDTH", 0.0)
    assert covered(NOISES[0], 7, trials=500, seed=7) < 0.92


@noises
@pytest.mark.parametrize("n", [3, 5, 10])
def test_equal_cells_are_rarely_called_different(noise: Noise, n: int):
    assert different(paired, *equal_cells(noise, n, trials=1000, seed=n)) <= 0.06
    assert different(paired, *equal_cells(noise, n, trials=1000, seed=n, delay=20)) <= 0.06
    assert different(unpaired, *equal_cells(noise, n, trials=1000, seed=n)) <= 0.06


@noises
def test_three_values_beside_twenty_are_rarely_called_different(noise: Noise):
    assert different(unpaired, *equal_cells(noise, 3, trials=1000, seed=3, m=20)) <= 0.06


def test_five_rounds_find_a_tenth_in_three_percent_of_noise():
    a, b = equal_cells(NOISES[0], 5, trials=500, seed=5)
    assert different(paired, a, 1.1 * b) > 0.9


def test_pairing_sees_through_what_slows_a_whole_round():
    a, b = equal_cells(NOISES[0], 5, trials=300, seed=5)
    slowdown = np.exp(0.2 * np.random.default_rng(1).standard_normal(a.shape))
    assert different(paired, a * slowdown, 1.1 * b * slowdown) > 0.9
    assert different(unpaired, a * slowdown, 1.1 * b * slowdown) < 0.2


def test_a_trend_is_found_in_noise_as_rarely_as_its_p_value_says():
    samples = NOISES[0].draw(np.random.default_rng(2), (1000, 8))
    found = np.mean([trend(values.tolist()).p_value < 0.05 for values in samples])
    assert 0.03 <= found <= 0.07


def test_every_table_of_the_simulation_has_a_figure_under_each_head():
    for study in STUDIES:
        row = study.row(study.cases[0], trials=5)
        assert len(row) == len(study.heads)
        assert table(study.title, study.heads, [row]).count("\n") == 5


# --- median ------------------------------------------------------------------------------------------------------


@LAW
@given(sample)
def test_an_interval_is_finite_and_holds_its_median(values):
    found = median_interval(values)
    assert found.value == pytest.approx(np.median(values), abs=1e-6)
    assert found.n == len(values)
    assert (found.low is None) == (found.high is None) == (len(values) < statistics.MIN_REPEATS)
    if found.low is not None:
        assert found.low <= found.value <= found.high


@LAW
@given(st.lists(any_number, min_size=1, max_size=12))
def test_the_largest_numbers_give_no_infinity(values):
    found = median_interval(values)
    assert finite(found.value, found.low, found.high)
    line = trend(values)
    assert line is None or finite(line.change, line.p_value)
    assert len(outliers(values)) == len(values)
    assert finite(percentile(sorted(values), 37.5))


@LAW
@given(sample, st.randoms(), st.integers(0, 3))
def test_an_interval_is_the_same_for_any_order_of_the_values(values, random, seed):
    shuffled = random.sample(values, len(values))
    assert median_interval(shuffled, seed) == median_interval(values, seed)


def test_an_interval_depends_on_the_seed_but_little():
    values = [101.0, 99.0, 104.0, 100.0, 97.0, 102.5, 99.5]
    first, second = median_interval(values, 0), median_interval(values, 1)
    assert first != second
    assert first.low == pytest.approx(second.low, rel=5e-3)
    assert first.high == pytest.approx(second.high, rel=5e-3)


@LAW
@given(times.filter(lambda values: len(values) >= 5), st.floats(1e-3, 1e3))
def test_an_interval_scales_with_the_unit(values, unit):
    found, scaled = median_interval(values), median_interval([unit * value for value in values])
    for name in ("value", "low", "high"):
        assert getattr(scaled, name) == pytest.approx(unit * getattr(found, name), rel=1e-9)


@LAW
@given(st.lists(st.floats(-1e6, -1), min_size=5, max_size=10))
def test_values_that_are_not_positive_scale_too(values):
    found, scaled = median_interval(values), median_interval([4 * value for value in values])
    assert (scaled.low, scaled.high) == pytest.approx((4 * found.low, 4 * found.high), rel=1e-9)


@given(any_number, st.integers(5, 20))
def test_equal_values_have_an_interval_without_width(value, n):
    assert median_interval([value] * n) == Estimate(value, value, value, n)


@given(times.filter(lambda values: len(values) >= 5))
@LAW
def test_an_interval_of_positive_values_is_positive(values):
    assert median_interval(values).low > 0


def test_a_few_values_have_a_median_and_no_interval():
    assert median_interval([3.0, 1.0, 2.0, 4.0]) == Estimate(2.5, None, None, 4)


def test_no_values_have_no_median():
    with pytest.raises(ValueError, match="at least one value"):
        median_interval([])


# --- outliers ----------------------------------------------------------------------------------------------------


def test_a_value_far_from_the_rest_is_labelled():
    assert outliers([10.0, 10.2, 30.0, 9.9, 10.1]) == [False, False, True, False, False]
    assert outliers([10.0, 10.2, 1.0, 9.9, 10.1]) == [False, False, True, False, False]


def test_a_value_apart_is_labelled_where_all_others_are_equal():
    assert outliers([7.0, 7.0, 8.0, 7.0, 7.0]) == [False, False, True, False, False]


def test_a_few_values_have_no_outliers():
    assert outliers([1.0, 1.0, 1.0, 99.0]) == [False] * 4


@given(any_number, st.integers(0, 20))
def test_equal_values_have_no_outliers(value, n):
    assert outliers([value] * n) == [False] * n


@given(sample, st.sampled_from([0.25, 2.0, 1024.0]))
def test_labels_do_not_depend_on_the_unit(values, unit):
    assume(all(value == 0 or abs(value) > 1e-300 for value in values))
    assert outliers([unit * value for value in values]) == outliers(values)


@given(sample)
def test_fewer_than_half_of_the_values_are_outliers(values):
    assert 2 * sum(outliers(values)) <= len(values)


# --- comparisons -------------------------------------------------------------------------------------------------


def test_a_change_of_every_pair_by_much_the_same_is_found():
    found = better([100, 200, 150, 120, 90], [111, 219, 166, 131, 100])
    assert found.verdict == "better"
    assert found.change == pytest.approx(0.1, abs=0.01)
    assert 0 < found.low < found.change < found.high
    assert found.n == 5


def test_the_interval_is_student_s_on_logarithms():
    a, b = [1.0, 1.0, 1.0, 1.0], [math.exp(log) for log in (0.1, 0.2, 0.3, 0.4)]
    half = 3.182446305 * math.sqrt(0.05 / 3) / 2  # t for 3 degrees of freedom
    for found in (better(a, b), compare_paired({7: 1.0, **dict(enumerate(a))}, dict(enumerate(b)), higher_is_better=1)):
        assert found.change == pytest.approx(math.expm1(0.25))
        assert found.low == pytest.approx(math.expm1(0.25 - half))
        assert found.high == pytest.approx(math.expm1(0.25 + half))


def test_the_unpaired_interval_is_welch_s_for_groups_of_one_size():
    a, b = [1.0, math.exp(0.2), math.exp(0.4)], [math.exp(log) for log in (0.5, 0.6, 0.7)]
    error = math.sqrt(0.04 / 3 + 0.01 / 3)
    df = (0.05 / 3) ** 2 / ((0.04 / 3) ** 2 / 2 + (0.01 / 3) ** 2 / 2)
    half = student_t_quantile(0.975, df) * error
    found = compare_unpaired(a, b, higher_is_better=True)
    assert found.low == pytest.approx(math.expm1(0.4 - half))
    assert found.high == pytest.approx(math.expm1(0.4 + half))


def test_three_values_do_not_vouch_for_their_own_spread():
    many = [100.0 * math.exp(0.1 * place) for place in range(-10, 11)]
    lucky = [120.0, 120.1, 120.2]
    assert compare_unpaired(many, lucky, higher_is_better=True).verdict == "cannot_tell"


def test_only_rounds_that_both_have_count():
    found = compare_paired({1: 10, 2: 10, 3: 10, 4: 1}, {1: 20, 2: 20, 3: 20, 5: 9}, higher_is_better=False)
    assert found == Comparison("worse", pytest.approx(1.0), pytest.approx(1.0), pytest.approx(1.0), 3)


@given(rounds)
def test_a_cell_is_not_different_from_itself(values):
    found = compare_paired(values, values, higher_is_better=True)
    assert found.verdict == "cannot_tell"
    assert found.change == (0 if values else None)
    assert (found.low, found.high) == ((0, 0) if len(values) >= 3 else (None, None))


@given(st.floats(1e-300, 1e300), st.integers(3, 12))
def test_equal_constants_are_not_different(value, n):
    found = compare_unpaired([value] * n, [value] * (n + 1), higher_is_better=True)
    assert found == Comparison("cannot_tell", 0, 0, 0, n)


def test_rounding_is_not_a_difference():
    assert better([0.3] * 5, [0.1 + 0.2] * 5).verdict == "cannot_tell"


@given(st.floats(1.001, 100), st.lists(st.floats(1e-3, 1e6), min_size=3, max_size=12))
def test_the_same_ratio_in_every_round_is_a_verdict(ratio, values):
    found = better(values, [ratio * value for value in values])
    assert found.verdict == "better"
    assert (found.low, found.change, found.high) == pytest.approx((ratio - 1,) * 3, rel=1e-9)


@LAW
@given(rounds, rounds)
def test_what_is_better_one_way_is_worse_the_other(a, b):
    opposite = {"better": "worse", "worse": "better", "cannot_tell": "cannot_tell"}
    found = compare_paired(a, b, higher_is_better=True)
    assert compare_paired(a, b, higher_is_better=False).verdict == opposite[found.verdict]
    assert compare_paired(b, a, higher_is_better=True).verdict == opposite[found.verdict]


@LAW
@given(rounds, rounds, st.booleans())
def test_a_verdict_is_given_exactly_where_the_interval_excludes_no_change(a, b, higher_is_better):
    for found in (
        compare_paired(a, b, higher_is_better=higher_is_better),
        compare_unpaired(list(a.values()), list(b.values()), higher_is_better=higher_is_better),
    ):
        told = found.low is not None and (found.low > 0 or found.high < 0)
        assert (found.verdict != "cannot_tell") == told
        if told:
            assert (found.verdict == "better") == ((found.change > 0) == higher_is_better)
        if found.low is not None:
            assert found.low <= found.change <= found.high


@LAW
@given(rounds.filter(lambda a: len(a) >= 3), st.floats(1e-3, 1e3), st.data())
def test_what_multiplies_a_whole_round_cancels(a, factor, data):
    b = {key: data.draw(st.floats(1e-3, 1e6)) for key in a}
    key = min(a)
    found = compare_paired(a, b, higher_is_better=True)
    slowed = compare_paired(
        {**a, key: a[key] * factor}, {**b, key: b[key] * factor}, higher_is_better=True, confidence=0.95
    )
    assert (slowed.change, slowed.low) == pytest.approx((found.change, found.low), rel=1e-6, abs=1e-9)


@LAW
@given(rounds.filter(lambda a: len(a) >= 3), st.floats(0.5, 0.9))
def test_more_confidence_takes_a_wider_interval(a, confidence):
    b = {key: value * (1 + 0.01 * key) for key, value in a.items()}
    narrow = compare_paired(a, b, higher_is_better=True, confidence=confidence)
    wide = compare_paired(a, b, higher_is_better=True, confidence=confidence + 0.099)
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


@LAW
@given(st.dictionaries(st.integers(0, 5), any_number), st.dictionaries(st.integers(0, 5), any_number))
def test_no_comparison_gives_nan_or_infinity(a, b):
    for found in (
        compare_paired(a, b, higher_is_better=True),
        compare_unpaired(list(a.values()), list(b.values()), higher_is_better=True),
        compare_unpaired([abs(value) for value in a.values()], [1.0, 2.0, 3.0], higher_is_better=True),
    ):
        assert finite(found.change, found.low, found.high)


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_rounds_give_a_change_and_no_verdict(n):
    for found in (better([1.0] * n, [2.0] * n), compare_unpaired([1.0] * n, [2.0] * 9, higher_is_better=True)):
        assert found == Comparison("cannot_tell", pytest.approx(1.0), None, None, n)


def test_nothing_in_common_cannot_be_compared():
    assert compare_paired({1: 1.0}, {2: 1.0}, higher_is_better=True) == Comparison("cannot_tell", None, None, None, 0)
    assert compare_unpaired([], [1.0], higher_is_better=True) == Comparison("cannot_tell", None, None, None, 0)


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_a_ratio_to_nothing_means_nothing(bad):
    nothing = Comparison("cannot_tell", None, None, None, 4)
    assert better([1.0, 2.0, 3.0, bad], [1.0, 2.0, 3.0, 4.0]) == nothing
    assert compare_unpaired([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, bad], higher_is_better=True) == nothing


def test_a_round_that_only_one_has_may_hold_anything_finite():
    assert better([1.0, 2.0, 3.0, 0.0], [2.0, 4.0, 6.0]).verdict == "better"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused(bad):
    values = [1.0, 2.0, 3.0, 4.0, 5.0, bad]
    for ask in (
        median_interval,
        outliers,
        trend,
        lambda bad_values: better(bad_values, [1.0] * 6),
        lambda bad_values: better([1.0], bad_values),
        lambda bad_values: compare_unpaired([1.0], bad_values, higher_is_better=True),
        lambda bad_values: compare_unpaired(bad_values, [], higher_is_better=True),
    ):
        with pytest.raises(ValueError, match="a value is"):
            ask(values)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_a_confidence_is_a_share(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        better([1.0], [1.0], confidence=confidence)
    with pytest.raises(ValueError, match="between 0 and 1"):
        compare_unpaired([1.0], [1.0], higher_is_better=True, confidence=confidence)


# --- percentiles -------------------------------------------------------------------------------------------------


@given(sample.map(sorted), st.floats(0, 100))
def test_percentiles_are_linear_between_neighbours_as_in_numpy(ordered, percent):
    found = percentile(ordered, percent)
    assert found == pytest.approx(np.percentile(ordered, percent), abs=1e-6)
    assert ordered[0] <= found <= ordered[-1]


@pytest.mark.parametrize(
    ("percent", "count"), [(50, 5), (90, 30), (95, 60), (99, 300), (99.9, 3000), (10, 30), (1, 300)]
)
def test_a_percentile_takes_three_samples_beyond_it_and_a_median_five(percent, count):
    assert enough_for(percent, count)
    assert not enough_for(percent, count - 1)


@pytest.mark.parametrize("percent", [0, 100])
def test_no_number_of_samples_carries_the_ends(percent):
    assert not enough_for(percent, 10**9)


@pytest.mark.parametrize("percent", [-1, 101, math.nan])
def test_a_percentile_lies_between_0_and_100(percent):
    with pytest.raises(ValueError, match="between 0 and 100"):
        percentile([1.0], percent)
    with pytest.raises(ValueError, match="between 0 and 100"):
        enough_for(percent, 5)


def test_no_values_have_no_percentile():
    with pytest.raises(ValueError, match="at least one value"):
        percentile([], 50)


# --- trends ------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=25))
def test_a_trend_is_the_line_that_numpy_fits(values):
    fitted = np.polynomial.Polynomial.fit(range(len(values)), values, 1)
    assert trend(values).change == pytest.approx(fitted(len(values) - 1) - fitted(0), abs=1e-5)


def test_a_straight_line_is_certain():
    found = trend([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert found.change == pytest.approx(5.0)
    assert found.p_value < 1e-12


def test_the_p_value_of_a_slope_is_student_s():
    found = trend([1.0, 3.0, 2.0, 4.0, 3.0, 5.0])
    assert found.change == pytest.approx(22 / 7)
    t = (22 / 35) / math.sqrt((10 - 17.5 * (22 / 35) ** 2) / 4 / 17.5)
    assert found.p_value == pytest.approx(2 * (1 - student_t_cdf(t, 4)))


@given(any_number, st.integers(6, 20))
def test_equal_values_have_no_trend(value, n):
    found = trend([value] * n)
    assert (found.change, found.p_value) == (0, 1)


@LAW
@given(st.lists(st.integers(-1000, 1000), min_size=6, max_size=20))
def test_a_trend_backwards_is_as_large_and_as_likely(values):
    found, backwards = trend(values), trend(values[::-1])
    assert backwards.change == pytest.approx(-found.change, abs=1e-9)
    assert backwards.p_value == pytest.approx(found.p_value, abs=1e-9)


def test_a_few_values_have_no_trend():
    assert trend([1.0, 2.0, 3.0, 4.0, 5.0]) is None


# --- Student's t -------------------------------------------------------------------------------------------------

# From tables of the distribution; the last ones from its closed forms for 1 and 2 degrees of freedom.
TABLE = [
    (0.975, 1, 12.70620474),
    (0.975, 2, 4.30265273),
    (0.975, 3, 3.18244631),
    (0.975, 4, 2.77644511),
    (0.975, 9, 2.26215716),
    (0.975, 19, 2.09302405),
    (0.95, 5, 2.01504837),
    (0.995, 10, 3.16927267),
    (0.9995, 4, 8.61030158),
    (0.75, 1, 1.0),
    (0.9, 2, 0.8 * math.sqrt(2 / (4 * 0.9 * 0.1))),
]


@pytest.mark.parametrize(("p", "df", "t"), TABLE)
def test_quantiles_are_those_of_the_tables(p, df, t):
    assert student_t_quantile(p, df) == pytest.approx(t, abs=1e-7)
    assert student_t_quantile(1 - p, df) == pytest.approx(-t, abs=1e-7)
    assert student_t_cdf(t, df) == pytest.approx(p, abs=1e-8)


@given(st.floats(-1e6, 1e6))
def test_probabilities_are_the_closed_forms_of_one_and_two_degrees(t):
    assert student_t_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-9)
    assert student_t_cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2) * math.sqrt(1 + t * t / 2)), abs=1e-9)


@given(st.floats(-8, 8), st.floats(1e5, 1e12))
def test_many_degrees_of_freedom_are_the_normal_distribution(t, df):
    assert student_t_cdf(t, df) == pytest.approx(NormalDist().cdf(t), abs=2e-6)


@pytest.mark.parametrize("t", [-3.0, -0.5, 0.1, 2.0])
def test_the_two_ways_to_a_probability_meet(t):
    below, above = statistics.LARGE_DF, statistics.LARGE_DF * (1 + 1e-9)
    assert student_t_cdf(t, below) == pytest.approx(student_t_cdf(t, above), abs=1e-8)


@given(st.floats(1e-12, 1 - 1e-9), st.floats(1, 1e7))
def test_a_quantile_is_the_inverse_of_the_probability(p, df):
    assert student_t_cdf(student_t_quantile(p, df), df) == pytest.approx(p, rel=1e-9)


@given(st.floats(-50, 50), st.floats(0, 10), st.floats(1, 200))
def test_probabilities_rise_and_mirror(t, more, df):
    assert student_t_cdf(t, df) <= student_t_cdf(t + more, df) + 1e-15
    assert student_t_cdf(t, df) + student_t_cdf(-t, df) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("df", [0.0, 0.99, -1.0, math.inf, math.nan])
def test_degrees_of_freedom_are_at_least_one(df):
    with pytest.raises(ValueError, match="degrees of freedom"):
        student_t_cdf(1.0, df)
    with pytest.raises(ValueError, match="degrees of freedom"):
        student_t_quantile(0.5, df)


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, math.nan])
def test_a_quantile_is_asked_for_a_probability(p):
    with pytest.raises(ValueError, match="is not between"):
        student_t_quantile(p, 4)


@pytest.mark.parametrize("t", [math.nan, math.inf])
def test_a_probability_is_asked_at_a_number(t):
    with pytest.raises(ValueError, match="t is"):
        student_t_cdf(t, 4)
