"""From a look at the data and measured steps to every choice of a fit, each with its reason."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from darts_sg.analysis.cost import human
from darts_sg.data.memory import available_memory
from darts_sg.fitting.bench import Bench
from darts_sg.fitting.bounds import LEAST_CELLS, LEAST_CHANNELS, Limits, Size, cost_tables, mean_cost
from darts_sg.fitting.choices import (
    DARTS_DISTANCE,
    LEARNING_RATE,
    MOST_ALPHA_LEARNING_RATE,
    Affordable,
    Choice,
    DataFacts,
    Level,
    Plan,
    Timing,
    alpha_distance,
    alpha_learning_rate,
    chosen_level,
    frozen_epochs,
    ladder,
    least_seconds,
    next_level,
    plan,
    published_alpha_steps,
    refuse_too_short,
    regularisers,
    search_epoch_seconds,
    steps_of,
    train_epoch_seconds,
)
from darts_sg.fitting.options import MINUTES, FitOptions
from darts_sg.options import flag
from darts_sg.spaces import Space
from darts_sg.tasks.columns import clock


class Planned(NamedTuple):
    """All that is decided before a search."""

    level: Level
    timing: Timing
    plan: Plan
    choices: list[Choice]
    search: dict[str, Any]
    """Options of the search."""
    training: dict[str, Any]
    """Options of the training, except its epochs and what depends on them."""


def size_of(level: Level, facts: DataFacts) -> Size:
    """The network of a level, for its costs."""
    return Size(level.network, level.image_size, level.channels, level.cells, facts.classes)


def bounded_ladder(
    options: FitOptions, facts: DataFacts, space: Space, nodes: int, limits: Limits, available: int | None
) -> list[Level]:
    """The levels whose networks keep the bounds, narrowed where they do not. UsageError if no network keeps them."""
    names = ("image_size", "network", "search_channels", "search_cells", "channels", "cells")
    levels = ladder(facts, available, **{name: getattr(options, name) for name in names})
    if not limits:
        return levels
    found: list[Level] = []
    for level in levels:
        size = size_of(level, facts)
        if options.channels is not None:
            width = options.channels if limits.possible(space, nodes, size) else None
        else:
            width = limits.widest(space, nodes, size)
        if width is not None and (narrowed := level._replace(channels=width)) not in found:
            found.append(narrowed)
    if found:
        return found
    smallest = levels[0]._replace(channels=options.channels or LEAST_CHANNELS, cells=options.cells or LEAST_CELLS)
    fixed = any(getattr(options, name) for name in ("image_size", "channels", "cells"))
    limits.refuse_impossible(space, nodes, size_of(smallest, facts), fixed=fixed)
    return [smallest]


def works_of(level: Level, facts: DataFacts, space: Space, nodes: int, partial: int) -> tuple[float, float]:
    """About the MACs of the supernet and of the mean network of a level: their ratios carry measured times over."""
    size = size_of(level, facts)
    supernet = cost_tables(
        space.operations, nodes, size._replace(channels=level.search_channels, cells=level.search_cells)
    )
    every = float(supernet[1].both().sum()) / partial**2 + supernet[1].fixed
    return every, mean_cost(cost_tables(space.operations, nodes, size)[1], space)


def decide(
    options: FitOptions,
    facts: DataFacts,
    limits: Limits,
    bench: Bench,
    spent: Callable[[], float],
    reserve: float,
    say: Callable[[str], None],
) -> Planned:
    """Measure levels until the largest affordable one is known, and choose everything by it.

    spent: seconds since the start of the process. reserve: seconds for test, export and report. UsageError if the
    bounds, the memory or the time allow nothing.
    """
    config, space, nodes = options.search_config(), bench.space, bench.nodes
    levels = bounded_ladder(options, facts, space, nodes, limits, available_memory())
    works = [works_of(level, facts, space, nodes, config.partial_channels) for level in levels]
    precision, precision_reason = options.precision or "float32", "as given"
    budget = options.budget if options.budget is not None else 60 * MINUTES
    frozen = config.alpha_frozen_epochs / config.epochs
    measured: dict[int, Timing | None] = {}
    fits: dict[int, bool] = {}

    def affordable() -> Affordable:
        seconds = budget - spent() - reserve
        return Affordable(seconds, facts, bench.searched, frozen, options.search_epochs, options.epochs)

    # measuring may take a tenth of the time
    until = spent() + max(5.0, budget / 10)
    index: int | None = 0
    while index is not None:
        begun = time.perf_counter()
        timing = measured[index] = bench.level(levels[index], precision)
        fits[index] = timing is not None and affordable()(timing)
        if timing is None:
            say(f"measured: {levels[index].text}: not even two images fit into memory")
        else:
            say(
                f"measured: {levels[index].text}: a search step of {timing.search_batch} images "
                f"{1000 * timing.search_step:.0f} ms, a training step of {timing.train_batch} images "
                f"{1000 * timing.train_step:.0f} ms{'' if fits[index] else '; too slow for enough steps'}"
            )
        took = time.perf_counter() - begun
        index = next_level(measured, works, fits, affordable()) if spent() + took < until else None
    number = chosen_level(measured, fits)
    level, timing = levels[number], measured[number]
    assert timing is not None
    if options.precision is None and bench.device.type == "cuda":
        lower = bench.level(level, "bfloat16")
        faster = lower is not None and timing.train_step / lower.train_step
        if lower is not None and faster and faster > 1.15:
            precision, timing = "bfloat16", lower
            precision_reason = f"a training step takes 1/{faster:.2f} of the time of float32"
        else:
            precision_reason = "bfloat16 is not 15% faster on this GPU"
    elif options.precision is None:
        precision_reason = "a CPU gains nothing by bfloat16"
    seconds = budget - spent() - reserve
    if options.budget is not None:
        least = least_seconds(timing, facts, bench.searched, options.search_epochs, options.epochs)
        refuse_too_short(least, seconds, spent(), budget)
    found = plan(seconds, timing, facts, bench.searched, options.search_epochs, options.epochs)
    return _planned(options, facts, limits, bench, level, timing, found, precision, precision_reason, fits[number])


def _planned(
    options: FitOptions,
    facts: DataFacts,
    limits: Limits,
    bench: Bench,
    level: Level,
    timing: Timing,
    found: Plan,
    precision: str,
    precision_reason: str,
    fits: bool,
) -> Planned:
    """The choices in words, and the options of both runs."""
    config, space = options.search_config(), bench.space
    steps = steps_of(bench.searched, timing.search_batch)
    frozen = frozen_epochs(config, found.search_epochs)
    alpha_steps = steps * (found.search_epochs - frozen)
    rate = options.alpha_learning_rate or float(f"{alpha_learning_rate(config, alpha_steps):.3g}")
    choices: list[Choice] = []

    def add(name: str, value: object, reason: str, *fields: str) -> None:
        given = [flag(field) for field in fields or (name,) if getattr(options, field, None) is not None]
        if fields and len(given) == len(fields):
            reason = f"given by {' and '.join(given)}"
        elif given:
            reason += f"; {' and '.join(given)} as given"
        choices.append(Choice(name.replace("_", " "), str(value), reason))

    why_size = "the largest for which the time is enough" if fits else "the smallest: the time is short"
    sides = f"images have {facts.side} pixels"
    add("image size", f"{level.image_size}×{level.image_size} pixels", f"{sides}; {why_size}", "image_size")
    stem = "leaves the resolution as it is: the images are small"
    if level.network == "imagenet":
        stem = f"reduces by 8, to {-(-level.image_size // 8)}×{-(-level.image_size // 8)}, before the first cell"
    add("stem", level.network, stem, "network")
    text = f"C={level.search_channels}, {level.search_cells} cells"
    add("supernet", text, f"a step takes {1000 * timing.search_step:.0f} ms", "search_channels", "search_cells")
    size = size_of(level, facts)
    params, macs = (mean_cost(costs, space) for costs in cost_tables(space.operations, bench.nodes, size))
    reason = f"about {human(params)} parameters and {human(macs)} MACs; a step takes {1000 * timing.train_step:.0f} ms"
    if limits:
        reason += f"; cells are chosen so that there are {limits.text}"
    add("network", f"C={level.channels}, {level.cells} cells", reason, "channels", "cells")
    batches = f"{timing.search_batch} in the search, {timing.train_batch} in the training"
    reason = f"an epoch has {steps} and {steps_of(facts.images, timing.train_batch)} steps"
    if timing.search_batch < facts.classes:
        reason += f"; fewer images than the {facts.classes} classes, so that a batch has only some of them"
    asked = bench.batches()
    if (timing.search_batch, timing.train_batch) != asked:
        reason += f"; {asked[0]} and {asked[1]} would need more memory than there is"
    add("batch size", batches, reason, "batch_size")
    choices.append(Choice("precision", precision, precision_reason))
    method = "a quarter of the channels is searched, which makes steps cheaper" if options.recipe == "pc-darts" else ""
    choices.append(Choice("search", f"{options.recipe} in {space.name}", method or "as given"))
    of_search, of_train = search_epoch_seconds(timing, bench.searched), train_epoch_seconds(timing, facts)
    reason = f"{of_search:.1f} s each: {clock(found.search_seconds)} with the start"
    if frozen:
        reason += f"; the alphas wait for {frozen} of them"
    add("search epochs", found.search_epochs, reason, "search_epochs")
    own, published = config.alpha_learning_rate, published_alpha_steps(config)
    if rate > own:
        capped = ", but no faster than this" if rate >= MOST_ALPHA_LEARNING_RATE else ""
        distance = alpha_distance(config)
        source = "the 19,550 steps of 3e-4 of the DARTS paper"
        if distance > DARTS_DISTANCE:
            source = f"the {published:,} steps of {own:g} of {options.recipe} on CIFAR-10"
        reason = (
            f"a step of Adam moves an alpha by about the rate, and {alpha_steps:,} steps of it go as far as {source}"
            f"{capped}"
        )
    else:
        reason = f"the recipe's: {alpha_steps:,} steps are no fewer than its {published:,}"
    add("alpha learning rate", f"{rate:g}", reason, "alpha_learning_rate")
    reason = f"{of_train:.1f} s each with the test: {clock(found.train_seconds)}; decided again after the search"
    add("epochs", found.epochs, reason, "epochs")
    add(
        "learning rate",
        f"{options.learning_rate or LEARNING_RATE:g}",
        "as in DARTS; half a cosine to 0",
        "learning_rate",
    )
    common = {
        "dataset": "folder", "image_size": level.image_size, "network": level.network, "seed": options.seed,
        "split_seed": options.split_seed, "precision": precision,
    }  # fmt: skip
    search = common | {
        "recipe": options.recipe, "space": options.space, "channels": level.search_channels,
        "cells": level.search_cells, "batch_size": timing.search_batch, "epochs": found.search_epochs,
        "alpha_learning_rate": rate, "alpha_frozen_epochs": frozen,
        "learning_rate": min(config.learning_rate, LEARNING_RATE),
    }  # fmt: skip
    training = common | {
        "recipe": "darts", "channels": level.channels, "cells": level.cells, "batch_size": timing.train_batch,
        "learning_rate": options.learning_rate or LEARNING_RATE,
    }  # fmt: skip
    return Planned(level, timing, found, choices, search, training)


def schedule(epochs: int, image_size: int) -> tuple[dict[str, Any], Choice]:
    """The options of a training that depend on its number of epochs, and the choice in words."""
    found = regularisers(epochs, image_size)
    text = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in found.items())
    reason = f"for {epochs} epochs; the papers' are for 600"
    return {"epochs": epochs, **found}, Choice("regularisation", text, reason)
