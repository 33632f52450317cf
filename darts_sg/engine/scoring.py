"""Zero-cost proxies of the network of a genotype."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from darts_sg.analysis.cost import CELLS, CHANNELS, IMAGE_SIZE, NUM_CLASSES
from darts_sg.baselines.proxies import Probe, score
from darts_sg.data import DataSpec, load_dataset
from darts_sg.data.generator import keyed_generator, keyed_seed
from darts_sg.engine.subject import network_cost
from darts_sg.errors import UsageError
from darts_sg.genotype import Genotype
from darts_sg.networks.build import NetworkPlan
from darts_sg.networks.derived import NetworkShape
from darts_sg.tasks import Task, task_of


@contextmanager
def seeded(seed: int, purpose: str, number: int) -> Iterator[None]:
    """Within the context PyTorch's CPU generator depends on the arguments alone; then it is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "baseline", purpose, number))
        yield


def probe_of(
    build: Callable[[], nn.Module],
    batch: tuple[Tensor, Any],
    task: Task,
    costs: Mapping[str, int],
    seed: int,
    number: int = 0,
) -> Probe:
    """What the proxies look at: the network that `build` makes, with weights that depend on seed and number alone."""

    def network() -> nn.Module:
        with seeded(seed, "weights", number):
            return build().to(batch[0].device)

    generator = keyed_generator(seed, "baseline", "noise", number)
    return Probe(network, batch[0], batch[1], task.loss, generator, costs)


def score_genotypes(
    genotypes: Sequence[Genotype],
    proxies: Sequence[str],
    shape: tuple[NetworkShape, int | None, int | None],
    *,
    image_size: int | None,
    batch_size: int,
    seed: int,
    dataset: str | None,
    folder: Path,
) -> tuple[list[dict[str, Any]], str]:
    """The scores of each genotype by proxy, all on one batch with one seed, and what the batch is.

    shape: the shape of the networks, their channels and cells (None: the papers'). dataset: the data set in `folder` to
    take the batch from; None for random images. Raises UsageError if there are no such data.
    """
    network, channels, cells = shape
    task, spec, batch, name = _batch(network, image_size, batch_size, seed, dataset, folder)
    rows = []
    for genotype in genotypes:
        plan = NetworkPlan(
            trained=genotype, shape=network, channels=channels or CHANNELS[network], cells=cells or CELLS[network]
        )
        cost = network_cost(task, plan, spec)
        costs = {"params": cost.params, "macs": cost.macs}

        def build(plan: NetworkPlan = plan) -> nn.Module:
            return task.build(plan, spec)

        # a new probe for each proxy: the scores of one do not depend on which others are asked for
        scores = {each: score(each, probe_of(build, batch, task, costs, seed)) for each in proxies}
        rows.append({"name": genotype.name, "scores": scores})
    return rows, name


def _batch(
    network: NetworkShape, image_size: int | None, size: int, seed: int, dataset: str | None, folder: Path
) -> tuple[Task, DataSpec, tuple[Tensor, Any], str]:
    """The task, the data's spec, a batch of `size` images with targets, and its name."""
    task = task_of({})
    if dataset is None:
        side, classes = image_size or IMAGE_SIZE[network], NUM_CLASSES[network]
        names = tuple(str(i) for i in range(classes))
        spec = DataSpec("random images", classes, side, 3, (0.5,) * 3, (0.25,) * 3, names)
        generator = keyed_generator(seed, "baseline", "images", 0)
        images = torch.randn(size, 3, side, side, generator=generator)
        targets = torch.randint(classes, (size,), generator=generator)
        return task, spec, (images, targets), "random images"
    data = load_dataset(dataset, folder, image_size=image_size, seed=seed, split_seed=0)
    if image_size is not None and data.spec.image_size != image_size:
        raise UsageError(
            f"--image-size {image_size}: the images of {dataset} have {data.spec.image_size}; leave it out"
        )
    if size > len(data.train):
        raise UsageError(f"--batch-size {size}: {dataset} has {len(data.train)} training images; lower it")
    batches = task.train_batches(data.train, data.spec, size, seed, "weights")
    return task, data.spec, batches[0], f"training images of {dataset}"
