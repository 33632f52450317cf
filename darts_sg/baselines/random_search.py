"""Random search, the baseline that a search has to beat."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from darts_sg.baselines import STRATEGIES, Candidate, CandidateStrategy, Cells, Problem
from darts_sg.baselines.architectures import random_cells


@dataclass(frozen=True)
class RandomSearch(CandidateStrategy):
    """The best of some random architectures, each trained for `epochs`; as many as fit into --epochs by default.

    score: `validation`, the task's score on the images of the alphas, or a proxy such as synflow.
    """

    def propose(
        self, problem: Problem, tried: Sequence[Candidate], generator: np.random.Generator
    ) -> tuple[Cells, int | None]:
        return random_cells(problem, generator), None


STRATEGIES.add("random", RandomSearch)
