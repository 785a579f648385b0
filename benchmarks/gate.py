"""How often the gate's verdicts are wrong and how often they are right: 1,000 simulated pairs of runs for each design.

    python benchmarks/gate.py [--pairs 1000]

Beside the gate's figures stand those of the plain way in the same pairs of runs: a percentile bootstrap of the mean
difference, the questions drawn one by one or by passage, with the same one-sided 95%.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from ctxaware.noninferiority import p_values
from ctxaware.report.compare import Pairs

ALPHA = 0.05
N_RESAMPLES = 1000


@dataclass(frozen=True)
class Design:
    """Pairs of runs to simulate.

    Attributes:
        name: in the table.
        n: questions.
        size: questions of a passage.
        worse, better: true shares of questions that the second run loses and gains; their difference is the true drop.
        max_drop: the gate's limit.
        within: correlation of two questions of one passage in what decides whether they flip.
        steps: scores are multiples of 1 / steps, and a flip moves one by a random number of steps; 1 for 0/1 scores.
    """

    name: str
    n: int
    size: int
    worse: float
    better: float
    max_drop: float = 0.0
    within: float = 0.0
    steps: int = 1

    def pairs(self, rng: np.random.Generator) -> Pairs:
        """One pair of runs."""
        n_passages = -(-self.n // self.size)
        passage = np.repeat(rng.normal(size=n_passages), self.size)[: self.n]
        latent = np.sqrt(self.within) * passage + np.sqrt(1 - self.within) * rng.normal(size=self.n)
        direction = (latent > ndtri(1 - self.better)).astype(float) - (latent < ndtri(self.worse))
        move = direction if self.steps == 1 else direction * rng.integers(1, self.steps + 1, self.n) / self.steps
        before = np.where(move < 0, 1.0, 0.0)
        names = [str(index // self.size) for index in range(self.n)]
        return Pairs(self.name, [({}, {})] * self.n, before, before + move, names, "passage", [])


# 9% of questions flip, as between a model before and after tuning (benchmarks/README.md); the real pairs of runs there
# showed no correlation within passages: 0.05 to 0.3 would be harder
DESIGNS = (
    Design("no drop, 400 questions", 400, 1, 0.045, 0.045),
    Design("no drop, 400 questions of 40 passages, correlation 0.05", 400, 10, 0.045, 0.045, within=0.05),
    Design("no drop, 400 questions of 40 passages, correlation 0.3", 400, 10, 0.045, 0.045, within=0.3),
    Design("no drop, 400 questions of 5 passages, correlation 0.1", 400, 80, 0.045, 0.045, within=0.1),
    Design("no drop, 400 questions, 1% flip", 400, 1, 0.005, 0.005),
    Design("no drop, 400 needles, recall in steps of 1/19", 400, 1, 0.2, 0.2, steps=19),
    Design("no drop, 9 questions, 40% flip", 9, 1, 0.2, 0.2),
    Design("no drop, 9 needles, recall in steps of 1/19", 9, 1, 0.3, 0.3, steps=19),
    Design("5 points, 400 questions", 400, 1, 0.07, 0.02),
    Design("5 points, 400 questions of 40 passages, no correlation", 400, 10, 0.07, 0.02),
    Design("5 points, 400 questions of 40 passages, correlation 0.05", 400, 10, 0.07, 0.02, within=0.05),
    Design("5 points, 400 questions of 40 passages, correlation 0.1", 400, 10, 0.07, 0.02, within=0.1),
    Design("5 points, 400 questions of 40 passages, correlation 0.3", 400, 10, 0.07, 0.02, within=0.3),
    Design("5 points, 400 questions, 15% flip", 400, 1, 0.1, 0.05),
    Design("5 points, 400 needles, recall in steps of 1/19", 400, 1, 0.145, 0.05, steps=19),
    Design("2 points, limit 2 points, 400 questions", 400, 1, 0.055, 0.035, max_drop=0.02),
    Design("2 points, limit 2 points, losses only", 400, 1, 0.02, 1e-9, max_drop=0.02),
    Design("2 points, limit 2 points, 40 passages, correlation 0.1", 400, 10, 0.055, 0.035, max_drop=0.02, within=0.1),
    Design("2 points, limit 2 points, 9 questions", 9, 1, 0.1, 0.08, max_drop=0.02),
    Design("no drop, limit 2 points, 2,000 questions", 2000, 1, 0.045, 0.045, max_drop=0.02),
)


def simulate(design: Design, n_pairs: int, seed: int = 0) -> Iterator[tuple[Pairs, float, float]]:
    """Pairs of runs with the gate's two p-values: of *fail* and of *pass*."""
    rng = np.random.default_rng(seed)
    for _ in range(n_pairs):
        pairs = design.pairs(rng)
        (p_fail,), (p_pass,) = p_values([pairs.differences], [pairs.clusters], design.max_drop)
        yield pairs, p_fail, p_pass


def verdicts(design: Design, n_pairs: int, seed: int = 0) -> tuple[float, float]:
    """Shares of pairs of runs that fail and that pass."""
    p = np.array([each[1:] for each in simulate(design, n_pairs, seed)])
    return tuple((p < ALPHA).mean(axis=0))


def bootstrap_verdicts(pairs: Pairs, max_drop: float, by_passage: bool, rng: np.random.Generator) -> tuple[bool, bool]:
    """Fail and pass by the percentiles of resampled means."""
    groups = np.array(pairs.clusters if by_passage else range(len(pairs.rows)))
    _, group = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(group, weights=pairs.differences), np.bincount(group)
    drawn = rng.integers(len(sums), size=(N_RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [ALPHA, 1 - ALPHA])
    return bool(high < -max_drop), bool(low > -max_drop)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    n_pairs = parser.parse_args().pairs
    print(f"{n_pairs} pairs of runs a line; shares of *fail* / *pass*\n")
    print("| true drop, limit 0 | gate | bootstrap by passage | bootstrap by question |\n|---|---|---|---|")
    for design in DESIGNS:
        rng, counts = np.random.default_rng(1), np.zeros((3, 2))
        for pairs, *p in simulate(design, n_pairs):
            counts[0] += np.array(p) < ALPHA
            for row, by_passage in ((1, True), (2, False)):
                counts[row] += bootstrap_verdicts(pairs, design.max_drop, by_passage, rng)
        print(f"| {design.name} | {' | '.join(f'{f:.1%} / {p:.1%}' for f, p in counts / n_pairs)} |", flush=True)


if __name__ == "__main__":
    main()
