"""Reads the experiment of results/sg_darts from run folders."""

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from darts_sg.analysis.cost import derived_counts
from darts_sg.analysis.deriving import derive_genotype
from darts_sg.analysis.measured import machines, runs_in, setting, wiring
from darts_sg.analysis.run_folder import Run, search_epochs
from darts_sg.genotype import Genotype, load_genotype
from darts_sg.study.protocol import (
    BOUND,
    DARTS,
    FULL_SEARCH,
    FULL_TRAINING,
    IR,
    MAX_SKIPS,
    NAMES,
    OURS,
    PUBLISHED,
    SANDGLASS,
    SPACES,
    steered_name,
)
from darts_sg.study.records import Experiment, Found, Search, Setting, Trained

SEARCHED_ALIKE = (
    "batch_size", "learning_rate", "alpha_learning_rate", "alpha_frozen_epochs",
    "hypergradient", "relaxation", "partial_channels", "edge_normalization", "penalty", "target_params", "target_macs",
    "nodes", "cutout_length",
)  # fmt: skip
"""Options that searches must share to be compared, beside their size and data."""
RECIPE = {
    "batch_size": "batch", "learning_rate": "learning rate", "weight_decay": "weight decay",
    "auxiliary_weight": "auxiliary head",
}  # fmt: skip


def read_experiment(folder: Path) -> Experiment:
    """What the run folders in `folder` hold of the experiment: CIFAR-10, networks of the shape for its images.

    Of searches those of one scale: the one at which the most spaces were searched, and of such the largest. Raises
    UsageError if there is no such folder, or if a file of a run is damaged.
    """
    runs = [run for run in runs_in(folder) if _is_of_cifar10(run)]
    everywhere = [run for run in runs if run.job == "search" and _genotype(run).space in SPACES]
    here = _one_scale(everywhere)
    remarks: list[str] = []
    searches = _searches(_one_a_seed(here, lambda run: (_genotype(run).space, _search_seed(run)), remarks))
    trainings: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if run.job == "augment" and not run.options.get("finetune"):
            trainings.setdefault(setting(run), []).append(run)
    names = _Names(searches, remarks)
    settings = [_setting(group, names, remarks) for group in trainings.values() if any(map(names.knows, group))]
    return Experiment(
        searches=tuple(searches),
        full_searches=bool(here) and all(_has(_search_size(_genotype(run)), FULL_SEARCH) for run in here),
        left_out=len(everywhere) - len(here),
        settings=tuple(sorted(settings, key=_weight, reverse=True)),
        remarks=tuple(dict.fromkeys(remarks)),
    )


def search_scale(genotype: Genotype) -> tuple[Any, ...]:
    """What searches must have in common to be compared: the values of _search_size, data and other options."""
    known = genotype.provenance
    options = known.get("options") or {}
    return (*_search_size(genotype).values(), known.get("data"), *(options.get(key) or None for key in SEARCHED_ALIKE))


def _search_size(genotype: Genotype) -> dict[str, Any]:
    known = genotype.provenance
    size = {key: (known.get("options") or {}).get(key) for key in ("epochs", "channels", "cells")}
    return size | {key: known.get(key) for key in ("train_images", "validation_images")}


def _has(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(values.get(key) == value for key, value in wanted.items())


def _is_of_cifar10(run: Run) -> bool:
    data = run.environment.get("data") or {}
    network = run.options.get("network") or "cifar"
    return run.genotype is not None and network == "cifar" and data.get("name", run.options.get("dataset")) == "cifar10"


def _genotype(run: Run) -> Genotype:
    assert run.genotype is not None  # _is_of_cifar10 asks for one
    return run.genotype


def _search_seed(run: Run) -> int:
    return int(_genotype(run).provenance.get("seed") or run.options.get("seed") or 0)


def _training_seed(run: Run) -> int:
    return int(run.options.get("seed") or 0)


def _one_scale(runs: Sequence[Run]) -> list[Run]:
    """The searches of the scale that is reported."""
    spaces_at: dict[tuple[Any, ...], set[str]] = {}
    for run in runs:
        spaces_at.setdefault(search_scale(_genotype(run)), set()).add(_genotype(run).space)
    if not spaces_at:
        return []
    best = max(spaces_at, key=lambda key: (len(spaces_at[key]), [float(x or 0) for x in key[:5]]))
    return [run for run in runs if search_scale(_genotype(run)) == best]


def _one_a_seed(runs: Iterable[Run], key: Callable[[Run], Hashable], remarks: list[str]) -> list[Run]:
    """The first run of each key; another one of the same key that is no copy of it is remarked."""
    found: dict[Hashable, Run] = {}
    for run in runs:
        first = found.setdefault(key(run), run)
        errors = [(one.result or {}).get("test_error_last") for one in (first, run)]
        if errors[0] != errors[1] or wiring(_genotype(first)) != wiring(_genotype(run)):
            remarks.append(f"{run.shown_path} is left out: {first.shown_path} is of the same setting and seed.")
    return list(found.values())


def _searches(runs: Sequence[Run]) -> list[Search]:
    """The searches with all genotypes that the protocol derives from them, by space and seed; one a space is named."""
    kinds = [_derived(run) for run in runs]
    genotypes = [genotype for each in kinds for genotype in each.values()]
    counts = zip(derived_counts(genotypes), derived_counts(genotypes, "imagenet"), strict=True)
    searches = []
    for run, each in zip(runs, kinds, strict=True):
        found = [Found(genotype, kind, *itertools.chain(*next(counts))) for kind, genotype in each.items()]
        plain = each["plain"]
        accuracy = (plain.provenance.get("measured") or {}).get("validation_accuracy_percent")
        searches.append(Search(run.folder, plain.space, _search_seed(run), accuracy, tuple(found)))
    searches.sort(key=lambda search: (SPACES.index(search.space), search.seed))
    for space in SPACES:
        if (best := _best([search for search in searches if search.space == space])) is not None:
            searches[searches.index(best)] = replace(best, name=NAMES[space])
    return searches


def _derived(run: Run) -> dict[str, Genotype]:
    """By kind, what the protocol derives from a search: the plain one only where the last mixing weights are gone."""
    plain, weights = _genotype(run), search_epochs(run.folder)
    found = {"plain": plain}
    if weights and weights[-1] == run.options.get("epochs"):
        found["steered"] = derive_genotype(run.folder, max_params=BOUND)
        if plain.count("skip_connect")[0] > MAX_SKIPS:
            found["few skips"] = derive_genotype(run.folder, max_skips=MAX_SKIPS)
    return found


def _best(searches: Sequence[Search]) -> Search | None:
    """The search whose genotypes stand for the space: of the highest accuracy, of several such the lowest seed."""
    if len(searches) > 1 and any(search.accuracy is None for search in searches):
        return None
    return max(searches, key=lambda search: (search.accuracy or 0.0, -search.seed), default=None)


class _Names:
    """What the experiment calls a trained genotype: it is known by its cells.

    Only where there is no search to tell, a genotype is believed to be what it is called.
    """

    def __init__(self, searches: Iterable[Search], remarks: list[str]) -> None:
        self.remarks = remarks
        self._by_cells: dict[tuple[Any, ...], list[tuple[str, str]]] = {}  # (title, group)s
        for search in searches:
            for found in search.found:
                self._add(search.title(found.kind), search.space, found.genotype)
        for name in PUBLISHED:
            self._add(name, "published", load_genotype(name))
        self._titles = {title for titles in self._by_cells.values() for title, _ in titles}

    def _add(self, title: str, group: str, genotype: Genotype) -> None:
        self._by_cells.setdefault(wiring(genotype), []).append((title, group))

    def of(self, run: Run) -> tuple[tuple[str, ...], str]:
        """(titles, group) of what a run trained."""
        genotype, known = _genotype(run), self._by_cells.get(wiring(_genotype(run)), [])
        titles = tuple(title for title, _ in known)
        if genotype.name in self._titles and genotype.name not in titles:
            text = f"{run.shown_path}: what it calls {genotype.name} has other cells than {genotype.name}."
            self.remarks.append(text)
        elif not known and genotype.name in {*NAMES.values(), *map(steered_name, NAMES.values())}:
            return (genotype.name,), next(space for space in SPACES if genotype.name.startswith(NAMES[space]))
        if known:
            return titles, known[0][1]
        is_random = genotype.provenance.get("kind") == "random" and genotype.space in SPACES
        return (genotype.name,), f"random {genotype.space}" if is_random else "other"

    def knows(self, run: Run) -> bool:
        """Whether a run trained something of the experiment."""
        return self.of(run)[1] != "other"


def _setting(runs: Sequence[Run], names: _Names, remarks: list[str]) -> Setting:
    """The trainings of one setting, a row for each genotype, in the order of their groups."""
    first, groups = runs[0], dict[tuple[Any, ...], list[Run]]()
    for run in runs:
        groups.setdefault(wiring(_genotype(run)), []).append(run)
    full_counts = derived_counts([_genotype(group[0]) for group in groups.values()])
    rows = []
    for group, (full_params, _) in zip(groups.values(), full_counts, strict=True):
        titles, stands_for = min(map(names.of, group), key=lambda known: known[1] == "other")
        kept = _one_a_seed(group, _training_seed, remarks)
        errors = {_training_seed(run): float((run.result or {})["test_error_last"]) for run in kept}
        params = int((group[0].result or {})["params"])
        rows.append(Trained(titles, stands_for, dict(sorted(errors.items())), params, full_params))
    data, options = first.environment.get("data") or {}, first.options
    size = {**options, "train_images": data.get("train_images")}
    recipe = [f"{word} {options[key]:g}" for key, word in RECIPE.items() if options.get(key) is not None]
    order = [SANDGLASS, DARTS, IR, "published", *(f"random {space}" for space in SPACES), "other"]
    rows.sort(key=lambda row: (order.index(row.group), ", " in row.title, row.title))
    return Setting(
        data=first.data,
        scale=setting(first)[1],
        full=_has(size, FULL_TRAINING),
        recipe=", ".join(recipe),
        machines=machines(runs),
        rows=tuple(rows),
    )


def _weight(setting: Setting) -> tuple[Any, ...]:
    """How much a setting says of the claim."""
    pairs = setting.difference(OURS, NAMES[DARTS])
    trainings = sum(len(row.errors) for row in setting.rows)
    return pairs is not None, setting.full, len(pairs.seeds if pairs else ()), trainings
