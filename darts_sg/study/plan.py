"""The jobs of a study: every search and retraining with its options, ids and dependencies.

Ids are names that stay the same when seeds, methods or spaces are added: a folder then runs only what is new.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from darts_sg.config import JobName
from darts_sg.study.file import GenotypeKind, StudyFile, StudyGenotype

JobKind = Literal["search", "retrain"]
JOB_NAMES: Mapping[JobKind, JobName] = {"search": "search", "retrain": "augment"}
"""The name of a job's kind as configs and run folders have it."""


@dataclass(frozen=True)
class StudyJob:
    """A run of the study, in STUDY/runs/ID."""

    id: str
    """search_SPACE_METHOD_sSEED, or retrain_GENOTYPE_sSEED."""
    kind: JobKind
    space: str
    """The name of its StudySpace; empty for a reference of the zoo or a model."""
    method: str
    """The name of its StudyMethod; empty for random genotypes, references and models."""
    genotype: str
    """The genotype that a search finds by the usual rule, or that a retraining trains: STUDY/genotypes/NAME.yaml. For
    the training of a model its name."""
    seed: int
    """Seed of this run."""
    options: Mapping[str, Any]
    """Options of the run, typed, with the seed; without run_dir, threads and genotype, which the executor adds."""
    depends_on: tuple[str, ...] = ()
    """Ids of the jobs that must be done first."""
    genotype_kind: GenotypeKind = "plain"
    found: StudyGenotype | None = field(default=None, compare=False)
    """The genotype to train; None for a search."""

    @property
    def name(self) -> JobName:
        """search or augment, as run folders call it."""
        return JOB_NAMES[self.kind]


def jobs_of(study: StudyFile) -> tuple[StudyJob, ...]:
    """All jobs in the order in which they are started.

    Seed by seed, so that an early end leaves complete rows: the searches of the first seed, then the retrainings that
    they allow, at their first seed; references and random genotypes come after those of the same retraining seed.
    """
    searches = {}
    for genotype in study.genotypes():
        if genotype.kind == "plain":
            assert genotype.seed is not None
            job = search_job(study, genotype)
            searches[genotype.space, genotype.method, genotype.seed] = job
    retrainings = []
    for genotype in study.genotypes():
        first = searches.get((genotype.space, genotype.method, genotype.seed or 0))
        needs = first.id if first is not None and genotype.kind in ("plain", "bounded") else None
        retrainings += [retrain_job(study, genotype, seed, needs) for seed in study.trained_seeds(genotype)]
    ranks = {seed: i for i, seed in enumerate(study.search_seeds)}
    by_seed = {seed: i for i, seed in enumerate(study.retrain_seeds)}

    def place(job: StudyJob) -> tuple[int, int]:
        """Rounds: a search belongs to that of its seed, a retraining to the later one of both its seeds."""
        if job.kind == "search":
            return ranks[job.seed], 0
        assert job.found is not None
        of_search = ranks.get(job.found.seed or 0, 0) if job.depends_on else 0
        return max(of_search, by_seed[job.seed]), 1

    return tuple(sorted([*searches.values(), *retrainings], key=place))


def search_job(study: StudyFile, genotype: StudyGenotype) -> StudyJob:
    """The search that finds a plain genotype."""
    method, space, seed = study.method(genotype.method), study.space(genotype.space), genotype.seed
    assert seed is not None
    options = {**study.data, **study.search, **method.options, "space": space.space, "seed": seed}
    name = f"search_{space.name}_{method.name}_s{seed}"
    return StudyJob(name, "search", space.name, method.name, genotype.name, seed, options)


def retrain_job(study: StudyFile, genotype: StudyGenotype, seed: int, needs: str | None) -> StudyJob:
    """The training of a genotype at a seed; `needs` is the search that finds it, if one does."""
    options = {**study.data, **(study.retrain or {}), "seed": seed}
    if genotype.kind == "model":
        options["model"] = genotype.name
    return StudyJob(
        f"retrain_{genotype.name}_s{seed}",
        "retrain",
        genotype.space,
        genotype.method,
        genotype.name,
        seed,
        options,
        () if needs is None else (needs,),
        genotype.kind,
        genotype,
    )
