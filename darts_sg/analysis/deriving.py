"""Derives the best genotype of a search within bounds on parameters, MACs, latency and skip connections."""

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from darts_sg.analysis.cost import CELLS, CHANNELS, choice_costs
from darts_sg.analysis.latency import LatencyTable, read_latency_table
from darts_sg.analysis.run_folder import read_run, read_search_epoch
from darts_sg.derive import Bound, derive_bounded, kept_weight, strengths
from darts_sg.errors import UsageError
from darts_sg.genotype import Genotype
from darts_sg.networks.derived import NetworkShape
from darts_sg.quantity import duration_text
from darts_sg.spaces import allowed_in


def derive_genotype(
    run_dir: Path,
    network: NetworkShape = "cifar",
    channels: int | None = None,
    cells: int | None = None,
    *,
    max_params: int | None = None,
    max_macs: int | None = None,
    max_latency: int | None = None,
    latency_table: Path | None = None,
    max_skips: int | None = None,
    epoch: int | None = None,
    name: str | None = None,
) -> Genotype:
    """Derive the cells with the largest sum of mixing weights within the bounds from a search, finished or not.

    `max_params` and `max_macs` bound the network of the given shape (by default the papers'), `max_skips` the skip
    connections of the normal cell. `max_latency` bounds the latency in microseconds by `latency_table`, which must be
    of the same shape. `epoch` defaults to the last one, or to the chosen one of a search that was stopped
    early. The provenance records the bounds and the share of the mixing weight that is kept. It keeps the measurements
    from the end of the search if these are the cells that the search ended with. Raises UsageError if `run_dir` is not
    a search, the table is of another space or shape, or no genotype keeps the bounds.
    """
    if (max_latency is None) != (latency_table is None):
        raise UsageError(
            "--max-latency needs measured operations: add --latency-table FILE (see python -m darts_sg latency-table)"
            if latency_table is None
            else "--latency-table is for a bound on latency: add --max-latency, such as --max-latency 12ms"
        )
    record = read_search_epoch(run_dir, epoch)
    found, weights = record.genotype, strengths(record.weights)
    params, macs = choice_costs(found.operations, network, channels, cells, num_nodes=found.normal.num_nodes)
    asked = {"params": (params, max_params), "MACs": (macs, max_macs)}
    bounds = [Bound(title, costs, most) for title, (costs, most) in asked.items() if most is not None]
    table = None if latency_table is None else read_latency_table(latency_table)
    if table is not None and max_latency is not None:
        refuse_other_shape(table, found.normal.num_nodes, network, channels, cells)
        bounds.append(Bound("latency", table.costs(found.operations), max_latency))
    allowed = allowed_in(found.space, found.operations)
    bounded = derive_bounded(*weights, found.operations, bounds, max_skips, allowed)
    best = derive_bounded(*weights, found.operations)
    share = kept_weight(weights, bounded, found.operations) / kept_weight(weights, best, found.operations)
    given = {"max_params": max_params, "max_macs": max_macs, "max_latency": max_latency, "max_skips": max_skips}
    limits = {key: most for key, most in given.items() if most is not None}
    facts: dict[str, Any] = {**limits, "mixing_weight_kept": round(share, 4), "network": network}
    facts |= {key: value for key, value in (("channels", channels), ("cells", cells)) if value}
    if table is not None:
        known_machine = {key: table.machine.get(key) for key in ("device_name", "threads", "started")}
        facts["latency_table"] = {**known_machine, "batch_size": table.shape.batch_size}
    shown = {k: duration_text(v).replace(" ", "") if k == "max_latency" else v for k, v in limits.items()}
    name = name or "_".join([found.name, *(f"{key[4:]}{value}" for key, value in shown.items())])
    final = read_run(run_dir).genotype
    known = found if final is None or bounded != (final.normal, final.reduce) else final
    provenance = MappingProxyType({**known.provenance, "derived": facts})
    return replace(found, name=name, normal=bounded[0], reduce=bounded[1], provenance=provenance)


def refuse_other_shape(
    table: LatencyTable, nodes: int, network: NetworkShape, channels: int | None, cells: int | None
) -> None:
    """UsageError if the table is of another shape than the options of `genotype derive` ask for."""
    size = table.shape
    way_out = f"give --network {size.network} --channels {size.channels} --cells {size.cells}, or another table"
    table.refuse_other(nodes, network, channels or CHANNELS[network], cells or CELLS[network], way_out=way_out)
