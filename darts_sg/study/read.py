"""Reads what run folders hold of a study."""

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from darts_sg.analysis.cost import derived_counts
from darts_sg.analysis.deriving import derive_genotype
from darts_sg.analysis.measured import distinctions, machines, option_values, runs_in, scale, setting, wiring
from darts_sg.analysis.run_folder import Run, search_epochs
from darts_sg.config import compared_options
from darts_sg.genotype import Genotype, load_genotype
from darts_sg.study.detectors import read_detectors
from darts_sg.study.protocol import FEW_SKIPS, PLAIN, STEERED, Protocol
from darts_sg.study.records import OTHER, PUBLISHED, Experiment, Found, Search, Setting, Trained

SEARCH_OPTIONS = ("epochs", "channels", "cells")
IMAGES = ("train_images", "validation_images")
NAMED_OPTIONS = {
    "batch_size": "batch", "learning_rate": "learning rate", "weight_decay": "weight decay",
    "auxiliary_weight": "auxiliary head",
}  # fmt: skip
"""Options that are named beside the scale of a training, with their words."""


def read_experiment(folder: Path, protocol: Protocol) -> Experiment:
    """Read the runs below `folder` that belong to a study: on its data set, with networks of its shape.

    All searches reported have one scale: the one at which the most spaces were searched, and the largest of these.
    Raises UsageError if `folder` does not exist, or if a file of a run is damaged.
    """
    runs = [run for run in runs_in(folder) if _belongs(run, protocol)]
    everywhere = [run for run in runs if run.job == "search" and _genotype(run).space in protocol.space_names]
    here = _one_scale(everywhere)
    remarks: list[str] = []
    kept = _one_a_seed(here, lambda run: (_genotype(run).space, _search_seed(run)), remarks)
    searches = _searches(kept, protocol)
    compared = compared_options("augment")
    trainings: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if run.job == "augment" and not run.options.get("finetune"):
            trainings.setdefault(setting(run, compared), []).append(run)
    names = _Names(protocol, searches, remarks)
    known = {key: group for key, group in trainings.items() if any(map(names.knows, group))}
    apart = distinctions(known, compared)
    settings = [_setting(group, apart[key], names, remarks) for key, group in known.items()]
    full = protocol.full_scale.search
    return Experiment(
        protocol=protocol,
        searches=tuple(searches),
        full_searches=bool(here) and all(_has(_search_values(_genotype(run)), full) for run in here),
        left_out=len(everywhere) - len(here),
        settings=tuple(sorted(settings, key=lambda one: _weight(one, protocol), reverse=True)),
        detectors=tuple(read_detectors(folder, protocol.detectors, compared, remarks)),
        remarks=tuple(dict.fromkeys(remarks)),
    )


def search_scale(genotype: Genotype) -> tuple[Any, ...]:
    """What searches must share to be compared: size, images, data, and the options that change a result.

    The images are those that the search really used; the space is what differs.
    """
    known, named = genotype.provenance, {"space", *SEARCH_OPTIONS, *IMAGES}
    rest = {name: default for name, default in compared_options("search").items() if name not in named}
    size = _search_size(genotype)
    return *size.values(), known.get("data"), *option_values(known.get("options") or {}, rest)


def _search_size(genotype: Genotype) -> dict[str, Any]:
    known = genotype.provenance
    size = {key: (known.get("options") or {}).get(key) for key in SEARCH_OPTIONS}
    return size | {key: known.get(key) for key in IMAGES}


def _search_values(genotype: Genotype) -> dict[str, Any]:
    """The options of a search, with the images that it really used."""
    return {**(genotype.provenance.get("options") or {}), **_search_size(genotype)}


def _has(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(values.get(key) == value for key, value in wanted.items())


def _belongs(run: Run, protocol: Protocol) -> bool:
    data = run.environment.get("data") or {}
    network = run.options.get("network") or "cifar"
    dataset = data.get("name", run.options.get("dataset"))
    return run.genotype is not None and network == protocol.network and dataset == protocol.dataset


def _genotype(run: Run) -> Genotype:
    assert run.genotype is not None  # see _belongs
    return run.genotype


def _search_seed(run: Run) -> int:
    return int(_genotype(run).provenance.get("seed") or run.options.get("seed") or 0)


def _training_seed(run: Run) -> int:
    return int(run.options.get("seed") or 0)


def _one_scale(runs: Sequence[Run]) -> list[Run]:
    """The searches of the scale that is reported: the one with the most spaces, and among these the largest."""
    spaces_at: dict[tuple[Any, ...], set[str]] = {}
    for run in runs:
        spaces_at.setdefault(search_scale(_genotype(run)), set()).add(_genotype(run).space)
    if not spaces_at:
        return []
    best = max(spaces_at, key=lambda key: (len(spaces_at[key]), [float(x or 0) for x in key[:5]]))
    return [run for run in runs if search_scale(_genotype(run)) == best]


def _one_a_seed(runs: Iterable[Run], key: Callable[[Run], Hashable], remarks: list[str]) -> list[Run]:
    """The first run of each key. A remark names any other run of the same key, unless it is a copy."""
    found: dict[Hashable, Run] = {}
    for run in runs:
        first = found.setdefault(key(run), run)
        errors = [(one.result or {}).get("test_error_last") for one in (first, run)]
        if errors[0] != errors[1] or wiring(_genotype(first)) != wiring(_genotype(run)):
            remarks.append(f"{run.shown_path} is left out: {first.shown_path} is of the same setting and seed.")
    return list(found.values())


def _searches(runs: Sequence[Run], protocol: Protocol) -> list[Search]:
    """The searches, sorted by space and seed, with all genotypes that the protocol derives; one of a space is named."""
    kinds = [_derived(run, protocol) for run in runs]
    genotypes = [genotype for each in kinds for genotype in each.values()]
    # counted all at once: the costs of operations are then looked up in one table
    counts = zip(derived_counts(genotypes), derived_counts(genotypes, "imagenet"), strict=True)
    searches = []
    for run, each in zip(runs, kinds, strict=True):
        found = [Found(genotype, kind, *itertools.chain(*next(counts))) for kind, genotype in each.items()]
        plain = each[PLAIN]
        accuracy = (plain.provenance.get("measured") or {}).get("validation_accuracy_percent")
        searches.append(Search(protocol, run.folder, plain.space, _search_seed(run), accuracy, tuple(found)))
    searches.sort(key=lambda search: (protocol.space_names.index(search.space), search.seed))
    for space in protocol.spaces:
        if (best := _best([search for search in searches if search.space == space.name])) is not None:
            searches[searches.index(best)] = replace(best, name=space.genotype)
    return searches


def _derived(run: Run, protocol: Protocol) -> dict[str, Genotype]:
    """The genotypes of a search by kind; only the plain one where the mixing weights of the last epoch are gone."""
    plain, weights = _genotype(run), search_epochs(run.folder)
    found = {PLAIN: plain}
    if weights and weights[-1] == run.planned:
        if protocol.max_params is not None:
            found[STEERED] = derive_genotype(run.folder, max_params=protocol.max_params)
        if protocol.max_skips is not None and plain.count("skip_connect")[0] > protocol.max_skips:
            found[FEW_SKIPS] = derive_genotype(run.folder, max_skips=protocol.max_skips)
    return found


def _best(searches: Sequence[Search]) -> Search | None:
    """The search that stands for its space: the one of the highest accuracy, at a tie of the lowest seed.

    None if an accuracy is missing: then it is unknown which is the highest.
    """
    if len(searches) > 1 and any(search.accuracy is None for search in searches):
        return None
    return max(searches, key=lambda search: (search.accuracy or 0.0, -search.seed), default=None)


class _Names:
    """Names trained genotypes by their cells.

    A genotype's own name is believed only where no search tells what it stands for.
    """

    def __init__(self, protocol: Protocol, searches: Iterable[Search], remarks: list[str]) -> None:
        self.protocol, self.remarks = protocol, remarks
        self._by_cells: dict[tuple[Any, ...], list[tuple[str, str]]] = {}  # (title, group)s
        for search in searches:
            for found in search.found:
                self._add(search.title(found.kind), search.space, found.genotype)
        for name in protocol.references:
            self._add(name, PUBLISHED, load_genotype(name))
        self._titles = {title for titles in self._by_cells.values() for title, _ in titles}

    def _add(self, title: str, group: str, genotype: Genotype) -> None:
        self._by_cells.setdefault(wiring(genotype), []).append((title, group))

    def of(self, run: Run) -> tuple[tuple[str, ...], str]:
        """(titles, group) of the genotype that a run trained."""
        genotype, known = _genotype(run), self._by_cells.get(wiring(_genotype(run)), [])
        titles = tuple(title for title, _ in known)
        spaces = self.protocol.genotype_names()
        if genotype.name in self._titles and genotype.name not in titles:
            text = f"{run.shown_path}: what it calls {genotype.name} has other cells than {genotype.name}."
            self.remarks.append(text)
        elif not known and genotype.name in spaces:
            return (genotype.name,), spaces[genotype.name]
        if known:
            return titles, known[0][1]
        is_random = genotype.provenance.get("kind") == "random" and genotype.space in self.protocol.space_names
        return (genotype.name,), f"random {genotype.space}" if is_random else OTHER

    def knows(self, run: Run) -> bool:
        """Whether a run trained a genotype of the study."""
        return self.of(run)[1] != OTHER


def _setting(runs: Sequence[Run], apart: str, names: _Names, remarks: list[str]) -> Setting:
    """The trainings of one setting, a row for each genotype, in the order of their groups.

    apart: the options that tell this setting from others of the same data and scale.
    """
    protocol = names.protocol
    first, groups = runs[0], dict[tuple[Any, ...], list[Run]]()
    for run in runs:
        groups.setdefault(wiring(_genotype(run)), []).append(run)
    full_counts = derived_counts([_genotype(group[0]) for group in groups.values()])
    rows = []
    for group, (full_params, _) in zip(groups.values(), full_counts, strict=True):
        titles, stands_for = min(map(names.of, group), key=lambda known: known[1] == OTHER)
        kept = _one_a_seed(group, _training_seed, remarks)
        errors = {_training_seed(run): float((run.result or {})["test_error_last"]) for run in kept}
        params = int((group[0].result or {})["params"])
        rows.append(Trained(titles, stands_for, dict(sorted(errors.items())), params, full_params))
    data, options = first.environment.get("data") or {}, first.options
    size = {**options, "train_images": data.get("train_images")}
    recipe = [f"{word} {options[key]:g}" for key, word in NAMED_OPTIONS.items() if options.get(key) is not None]
    order = [*protocol.by_importance, PUBLISHED, *(f"random {space}" for space in protocol.space_names), OTHER]
    rows.sort(key=lambda row: (order.index(row.group), ", " in row.title, row.title))
    return Setting(
        data=first.data,
        scale=scale(first) + apart,
        full=_has(size, protocol.full_scale.retrain),
        recipe=", ".join(recipe),
        machines=machines(runs),
        rows=tuple(rows),
    )


def _weight(setting: Setting, protocol: Protocol) -> tuple[Any, ...]:
    """How much a setting says about the claim."""
    pairs = setting.difference(protocol.claim.genotype, protocol.claim.baseline)
    trainings = sum(len(row.errors) for row in setting.rows)
    return pairs is not None, setting.full, len(pairs.seeds if pairs else ()), trainings
