"""Derives the best genotype of a search within bounds on parameters, MACs and skip connections."""

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from darts_sg.analysis.cost import choice_costs
from darts_sg.analysis.run_folder import read_run, read_search_epoch
from darts_sg.derive import Bound, derive_bounded, kept_weight, strengths
from darts_sg.genotype import Genotype
from darts_sg.networks.derived import NetworkShape
from darts_sg.spaces import allowed_in


def derive_genotype(
    run_dir: Path,
    network: NetworkShape = "cifar",
    channels: int | None = None,
    cells: int | None = None,
    *,
    max_params: int | None = None,
    max_macs: int | None = None,
    max_skips: int | None = None,
    epoch: int | None = None,
    name: str | None = None,
) -> Genotype:
    """Derive the cells with the largest sum of mixing weights within the bounds from a search, finished or not.

    `max_params` and `max_macs` bound the network of the given shape (by default the papers'), `max_skips` the skip
    connections of the normal cell. `epoch` defaults to the last one, or to the chosen one of a search that was stopped
    early. The provenance records the bounds and the share of the mixing weight that is kept. It keeps the measurements
    from the end of the search if these are the cells that the search ended with. Raises UsageError if `run_dir` is not
    a search or no genotype keeps the bounds.
    """
    record = read_search_epoch(run_dir, epoch)
    found, weights = record.genotype, strengths(record.weights)
    params, macs = choice_costs(found.operations, network, channels, cells, num_nodes=found.normal.num_nodes)
    asked = {"params": (params, max_params), "MACs": (macs, max_macs)}
    bounds = [Bound(title, costs, most) for title, (costs, most) in asked.items() if most is not None]
    allowed = allowed_in(found.space, found.operations)
    bounded = derive_bounded(*weights, found.operations, bounds, max_skips, allowed)
    best = derive_bounded(*weights, found.operations)
    share = kept_weight(weights, bounded, found.operations) / kept_weight(weights, best, found.operations)
    given = {"max_params": max_params, "max_macs": max_macs, "max_skips": max_skips}
    limits = {key: most for key, most in given.items() if most is not None}
    facts: dict[str, Any] = {**limits, "mixing_weight_kept": round(share, 4), "network": network}
    facts |= {key: value for key, value in (("channels", channels), ("cells", cells)) if value}
    name = name or "_".join([found.name, *(f"{key[4:]}{value}" for key, value in limits.items())])
    final = read_run(run_dir).genotype
    known = found if final is None or bounded != (final.normal, final.reduce) else final
    provenance = MappingProxyType({**known.provenance, "derived": facts})
    return replace(found, name=name, normal=bounded[0], reduce=bounded[1], provenance=provenance)
