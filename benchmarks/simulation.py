"""How often the lab's statistics are right: coverage, false differences and power, from samples whose truth is known.

    python -m benchmarks.simulation

Prints the tables of docs/statistics.md: the same ones every time, as each row has a seed of its own. Uses all cores.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from knee.lab.statistics import (
    Comparison,
    compare_paired,
    compare_unpaired,
    median_interval,
    outliers,
    student_t_quantile,
    trend,
)

Array = NDArray[np.float64]
Row = list[str]


# --- what is drawn -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Noise:
    """A distribution of times around 100 ms, and its median."""

    name: str
    draw: Callable[[np.random.Generator, tuple[int, ...]], Array]
    median: float


def normal(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """3 %, as after a careful warm-up."""
    return 100 + 3 * random.standard_normal(shape)


def lognormal(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Wide and skewed: sigma 0.3."""
    return 100 * np.exp(0.3 * random.standard_normal(shape))


def laplace(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Heavier tails than the normal's."""
    return 100 + 3 * random.laplace(size=shape)


def student(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Much heavier tails: 3 degrees of freedom."""
    return 100 + 3 * random.standard_t(3, size=shape)


def exponential(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """A floor that is never undercut, and delays above it."""
    return 100 + 30 * random.exponential(size=shape)


def contaminated(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """One in ten is three standard deviations slower."""
    return normal(random, shape) + 9 * (random.random(shape) < 0.1)


def uniform(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """No tails at all: what small samples are worst at."""
    return 95 + 10 * random.random(shape)


def two_modes(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Three in ten run in another mode, 15 % slower."""
    return 100 + random.standard_normal(shape) + 15 * (random.random(shape) < 0.3)


NOISES = (
    Noise("normal, 3 %", normal, 100.0),
    Noise("lognormal, sigma 0.3", lognormal, 100.0),
    Noise("Laplace", laplace, 100.0),
    Noise("Student t, 3 df", student, 100.0),
    Noise("floor + exponential", exponential, 100 + 30 * float(np.log(2))),
    Noise("10 % slower by 3 sigma", contaminated, 100.417349),  # 0.9 Φ(z) + 0.1 Φ(z - 3) = ½
)
HARD = (
    Noise("uniform", uniform, 100.0),
    Noise("two modes, 70 : 30", two_modes, 100.565949),  # 0.7 Φ(z) = ½
)


# --- what is counted ---------------------------------------------------------------------------------------------


def covered(noise: Noise, n: int, trials: int, seed: int) -> float:
    """Share of the median's intervals that hold the true median."""
    return held(noise.draw(np.random.default_rng(seed), (trials, n)), noise.median)


def held(samples: Array, truth: float) -> float:
    """Share of the samples (rows) whose interval holds the truth."""
    return sum(_holds(sample, truth) for sample in samples) / len(samples)


def _holds(sample: Array, truth: float) -> bool:
    found = median_interval(sample.tolist())
    return found.low is not None and found.high is not None and found.low <= truth <= found.high


def paired(a: Array, b: Array) -> Comparison:
    """Samples as rounds."""
    return compare_paired(dict(enumerate(a.tolist())), dict(enumerate(b.tolist())), higher_is_better=False)


def unpaired(a: Array, b: Array) -> Comparison:
    """Samples as groups."""
    return compare_unpaired(a.tolist(), b.tolist(), higher_is_better=False)


def different(compare: Callable[[Array, Array], Comparison], a: Array, b: Array) -> float:
    """Share of the trials (rows) with a verdict."""
    return sum(compare(a[trial], b[trial]).verdict != "cannot_tell" for trial in range(len(a))) / len(a)


def equal_cells(
    noise: Noise, n: int, trials: int, seed: int, delay: float = 0.0, m: int | None = None
) -> tuple[Array, Array]:
    """Two cells that are the same; each round delays both by one exponential time of mean `delay` ms."""
    random = np.random.default_rng(seed)
    a, b = noise.draw(random, (trials, n)), noise.draw(random, (trials, m or n))
    shared = delay * random.exponential(size=(trials, max(n, m or n)))
    return a + shared[:, :n], b + shared[:, : m or n]


# --- tables ------------------------------------------------------------------------------------------------------


def coverage_row(noise: Noise, trials: int) -> Row:
    """The name, and coverage at 5, 7, 10 and 20 repeats."""
    return [noise.name, *(percent(covered(noise, n, trials, seed=n)) for n in (5, 7, 10, 20))]


def false_row(noise: Noise, trials: int) -> Row:
    """The name, and false differences: paired, paired in disturbed rounds, unpaired."""
    sizes = (3, 5, 10)
    return [
        noise.name,
        *(percent(different(paired, *equal_cells(noise, n, trials, seed=n))) for n in sizes),
        *(percent(different(paired, *equal_cells(noise, n, trials, seed=n, delay=20))) for n in sizes),
        *(percent(different(unpaired, *equal_cells(noise, n, trials, seed=n))) for n in sizes),
        percent(different(unpaired, *equal_cells(noise, 3, trials, seed=20, m=20))),
    ]


def power_row(change: float, trials: int) -> Row:
    """The change, and how often 5 repeats with 3 % noise find it: paired and not, in calm and in disturbed rounds."""
    row = [f"{change:.0%}"]
    a, b = equal_cells(NOISES[0], 5, trials, seed=5)
    slowdown = np.exp(0.1 * np.random.default_rng(6).standard_normal(a.shape))
    for factor in (np.ones_like(slowdown), slowdown):
        slower = b * factor * (1 + change)
        row += [percent(different(compare, a * factor, slower)) for compare in (paired, unpaired)]
    return row


def smallest_row(noise: float, trials: int) -> Row:
    """The noise, and the change that is found four times in five at 3, 5, 10 and 20 rounds."""
    return [f"{noise:.0%}", *(f"{smallest(noise, n, trials):.1%}" for n in (3, 5, 10, 20))]


def smallest(noise: float, n: int, trials: int) -> float:
    """The least increase that four in five paired comparisons call different (lognormal noise)."""
    logs = noise * np.sqrt(2) * np.random.default_rng(n).standard_normal((trials, n))
    reach = student_t_quantile(0.975, n - 1) * logs.std(axis=1, ddof=1) / np.sqrt(n)
    return float(np.expm1(np.quantile(reach - logs.mean(axis=1), 0.8)))


def order_row(n: int, trials: int) -> Row:
    """Repeats, and false differences where whichever cell goes second in a round is 5 % slower, at random."""
    random = np.random.default_rng(n)
    a, b = (100 + 0.5 * random.standard_normal((2, trials, n))).astype(np.float64)
    first = random.random((trials, n)) < 0.5
    return [str(n), percent(different(paired, np.where(first, a, a * 1.05), np.where(first, b * 1.05, b)))]


def outlier_row(noise: Noise, trials: int) -> Row:
    """The name, and the share of samples of 5, 10 and 20 repeats in which any gets a label."""
    row = [noise.name]
    for n in (5, 10, 20):
        samples = noise.draw(np.random.default_rng(n), (trials, n))
        row.append(percent(sum(any(outliers(sample.tolist())) for sample in samples) / trials))
    return row


def trend_row(noise: Noise, trials: int) -> Row:
    """The name, and how often a trend is found at p < 0.05: of 0 % at 6, 10 and 20 values, and of 10 % at the same."""
    row = [noise.name]
    for drift in (0.0, 0.1):
        for n in (6, 10, 20):
            samples = noise.draw(np.random.default_rng(n), (trials, n)) * (1 + drift * np.linspace(0, 1, n))
            row.append(percent(sum(_trends(np.log(np.maximum(sample, 1))) for sample in samples) / trials))
    return row


def neighbours_row(correlation: float, trials: int) -> Row:
    """The correlation of a repeat with the next, and what is left of the promises: coverage, and trends in nothing."""
    samples = {n: correlated(np.random.default_rng(n), trials, n, correlation) for n in (5, 10, 20)}
    return [
        str(correlation),
        *(percent(held(samples[n], 100)) for n in (5, 10, 20)),
        *(percent(sum(_trends(np.log(sample)) for sample in samples[n]) / trials) for n in (10, 20)),
    ]


def correlated(random: np.random.Generator, trials: int, n: int, correlation: float) -> Array:
    """Normal noise of 3 % that remembers the repeat before (autoregressive of order 1)."""
    noise = random.standard_normal((trials, n))
    for place in range(1, n):
        noise[:, place] *= np.sqrt(1 - correlation**2)
        noise[:, place] += correlation * noise[:, place - 1]
    return 100 + 3 * noise


def _trends(sample: Array) -> bool:
    found = trend(sample.tolist())
    return found is not None and found.p_value < 0.05


def percent(share: float) -> str:
    """0.0512 is 5.1 %."""
    return f"{share:.1%}"


def table(title: str, heads: Sequence[str], rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return f"{title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


@dataclass(frozen=True, slots=True)
class Study:
    """One table: its title, heads, and what makes a row of each case."""

    title: str
    heads: tuple[str, ...]
    row: Callable[..., Row]
    cases: tuple[object, ...]


STUDIES = (
    Study(
        "Median: 95 % intervals that hold the true median",
        ("noise", "n = 5", "7", "10", "20"),
        coverage_row,
        (*NOISES, *HARD),
    ),
    Study(
        "Equal cells called different (should be 5 % or less)",
        (
            "noise",
            "paired, n = 3",
            "5",
            "10",
            "same, rounds disturbed, 3",
            "5",
            "10",
            "unpaired, 3",
            "5",
            "10",
            "3 : 20",
        ),
        false_row,
        (*NOISES, *HARD),
    ),
    Study(
        "True differences found: 5 repeats, 3 % noise",
        ("difference", "paired", "unpaired", "rounds disturbed: paired", "unpaired"),
        power_row,
        (0.05, 0.1, 0.2),
    ),
    Study(
        "Smallest difference that is found four times in five, paired",
        ("noise of a repeat", "3 rounds", "5", "10", "20"),
        smallest_row,
        (0.01, 0.03, 0.1),
    ),
    Study(
        "Equal cells called different, whichever goes second is 5 % slower", ("rounds", "paired"), order_row, (3, 5, 10)
    ),
    Study(
        "Repeats that resemble the one before: intervals that hold the true median, trends found in nothing",
        ("correlation", "interval, n = 5", "10", "20", "trend, n = 10", "20"),
        neighbours_row,
        (0.0, 0.3, 0.5),
    ),
    Study(
        "Samples in which a value is labelled an outlier", ("noise", "n = 5", "10", "20"), outlier_row, (*NOISES, *HARD)
    ),
    Study(
        "Trends found at p < 0.05",
        ("noise", "no trend, n = 6", "10", "20", "10 % more at the end, 6", "10", "20"),
        trend_row,
        (*NOISES, *HARD),
    ),
)


def main() -> None:
    """All tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4000, help="samples for each figure (default: 4000)")
    trials = parser.parse_args().trials
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        pending = [(study, pool.map(partial(study.row, trials=trials), study.cases)) for study in STUDIES]
        for study, rows in pending:
            print(table(study.title, study.heads, list(rows)), flush=True)


if __name__ == "__main__":
    main()
