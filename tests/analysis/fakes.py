"""A made-up search whose mixing weights, cells and figures differ from epoch to epoch, and a made-up latency table."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from darts_sg.analysis.cost import cell_places, edge_places
from darts_sg.analysis.latency import DerivedShape, FixedPart, LatencyTable, Timing
from darts_sg.derive import derive_cell, num_edges, strengths
from darts_sg.genotype import Genotype
from darts_sg.spaces import Space, parse_space

LATENCY_SHAPE = DerivedShape(channels=4, cells=3, nodes=2, image_size=16, num_classes=10)
LATENCY_SPACE = parse_space("none+skip_connect+sep_conv_3x3")
OPERATIONS = ("none", "skip_connect", "sep_conv_3x3", "sandglass_3x3")


def varied_search(
    folder: Path, epochs: int, nodes: int = 3, edge_weights: bool = False, note: str = "JPEG q75", **options: Any
) -> Path:
    """The folder of a finished search; its metrics.csv lacks the last epoch, as after a kill at the wrong moment."""
    rng = np.random.default_rng(epochs)
    lines = ["epoch,train_loss,train_accuracy,validation_loss,validation_accuracy"]
    config = {
        "job": "search",
        "options": {"space": "darts+sandglass", "epochs": epochs, **options},
        "environment": {"data": {"name": "cifar10", "note": note, "remark": ""}},
    }
    for name in ("alphas", "genotypes"):
        (folder / name).mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for epoch in range(1, epochs + 1):
        count = num_edges(nodes)
        weights = {title: rng.dirichlet(np.ones(len(OPERATIONS)), count) for title in ("normal", "reduce")}
        if edge_weights:
            weights |= {f"edge_{title}": rng.random(count) for title in ("normal", "reduce")}
        np.savez(folder / "alphas" / f"epoch_{epoch:04}.npz", **weights)
        normal, reduce = (derive_cell(table, OPERATIONS) for table in strengths(weights))
        genotype = Genotype("found", "darts+sandglass", OPERATIONS, normal, reduce)
        genotype.save(folder / "genotypes" / f"epoch_{epoch:04}.yaml")
        lines.append(f"{epoch},{2 - epoch / 10},{epoch / 20},{2.5 - epoch / 20},")
    genotype.save(folder / "genotype.yaml")
    (folder / "metrics.csv").write_text("\n".join(lines[:-1]) + "\n")
    return folder


def made_up_latencies(space: Space = LATENCY_SPACE, shape: DerivedShape = LATENCY_SHAPE, seed: int = 0) -> LatencyTable:
    """A latency table of random times."""
    rng = np.random.default_rng(seed)
    sizes = shape.network, shape.channels, shape.cells, shape.nodes, shape.image_size

    def timing(most: float) -> Timing:
        return Timing(round(rng.uniform(1, most), 3), round(rng.uniform(0, 0.05), 4))

    choices = {
        (name, place): timing(900)
        for place in dict.fromkeys(place for _, _, place in edge_places(*sizes))
        for name in space.operations
        if name != "none"
    }
    cells = [FixedPart(f"cell {i}", 1, timing(300)) for i, _ in enumerate(cell_places(*sizes))]
    fixed = (FixedPart("stem", 1, timing(50)), *cells, FixedPart("head", 1, timing(20)))
    machine = {"device": "cpu", "device_name": "Abacus", "threads": 1, "started": "2026-11-28T10:00:00+00:00"}
    return LatencyTable(space.name, space.operations, shape, choices, fixed, 1.25, machine)
