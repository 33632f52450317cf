"""The best genotype of a search within bounds on its parameters, MACs and skips."""

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from darts_sg.analysis.cost import choice_costs
from darts_sg.analysis.run_folder import read_run, read_search_epoch
from darts_sg.derive import Bound, derive_bounded, kept_weight, strengths
from darts_sg.genotype import Genotype
from darts_sg.networks.derived import NetworkShape


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
    """Derive from the folder of a search, finished or not, the cells with the largest sum of mixing weights.

    Parameters and MACs are those of the network of that shape (by default the papers'), skips those of the normal
    cell; `epoch` is by default the last, or the one that a search which was stopped early went back to. The bounds,
    and the share of the mixing weight that they leave, are written into the provenance; what the search measured at
    its end stays in it where these are the cells that it ended with. Raises UsageError if `run_dir` is no search, or
    nothing keeps the bounds.
    """
    record = read_search_epoch(run_dir, epoch)
    found, weights = record.genotype, strengths(record.weights)
    params, macs = choice_costs(found.operations, network, channels, cells, num_nodes=found.normal.num_nodes)
    asked = {"params": (params, max_params), "MACs": (macs, max_macs)}
    bounds = [Bound(title, costs, most) for title, (costs, most) in asked.items() if most is not None]
    bounded = derive_bounded(*weights, found.operations, bounds, max_skips)
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
