"""Regularised evolution (Real et al., AAAI 2019, algorithm 1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from darts_sg.baselines import STRATEGIES, Candidate, CandidateStrategy, Cells, Problem
from darts_sg.baselines.architectures import mutate, random_cells
from darts_sg.errors import UsageError


@dataclass(frozen=True)
class Evolution(CandidateStrategy):
    """Regularised evolution: the best of `sample` of the newest `population` candidates is mutated; the oldest dies.

    The first `population` candidates are random. A tournament draws with replacement. The answer is the best candidate
    ever tried, not the best one alive.
    """

    population: int = 10
    sample: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("population", "sample"):
            if (value := getattr(self, name)) < 1:
                raise UsageError(f"{name} must be at least 1, found {value}")

    def propose(
        self, problem: Problem, tried: Sequence[Candidate], generator: np.random.Generator
    ) -> tuple[Cells, int | None]:
        if len(tried) < self.population:
            return random_cells(problem, generator), None
        oldest = len(tried) - self.population
        drawn = [oldest + int(i) for i in generator.integers(self.population, size=self.sample)]
        parent = max(drawn, key=lambda number: tried[number].score)
        return mutate(problem, tried[parent].cells, generator), parent


STRATEGIES.add("evolution", Evolution)
