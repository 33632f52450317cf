"""Test of a weights file: repeats the reported figure from the file and the data alone."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from darts_sg.analysis.run_folder import described_data
from darts_sg.config import AugmentConfig
from darts_sg.engine.augment import AugmentJob
from darts_sg.engine.setup import prepare
from darts_sg.engine.weights import read_weights
from darts_sg.errors import UsageError


@dataclass(frozen=True)
class Evaluated:
    """The test of a weights file."""

    title: str
    """What `value` is: the task's main figure, such as the test error in percent."""
    value: float
    recorded: float
    """The figure that the training recorded in the file."""
    same_data: bool
    """Whether it was recorded on these images."""
    num_images: int


def run_evaluation(config: AugmentConfig, path: Path) -> Evaluated:
    """Test the weights in `path` on the data of `config`, print the task's main figure and compare it with the file's.

    Network, task and normalisation are the file's. Raises UsageError if it is not a weights file, or if the data are
    missing or do not suit the network.
    """
    weights = read_weights(path)
    m, task = weights.metadata, weights.task
    config = dataclasses.replace(config, task=m.task, **(m.task_options or {}))
    setting = prepare(config, {})
    data = setting.data
    weights.refuse_other_channels(data.spec)
    if reason := task.mismatch(weights.spec, dataclasses.replace(data.spec, name=config.dataset)):
        raise UsageError(
            f"{path} {reason}: choose other data with --dataset and --data, or train on these with --finetune {path}"
        )
    same_data = data.fingerprint() == m.data_fingerprint
    note = config.data_note or (m.data_note if same_data else "")
    spec = dataclasses.replace(data.spec, mean=m.mean, std=m.std)
    job = AugmentJob(config, weights.trained, dataclasses.replace(setting, data=dataclasses.replace(data, spec=spec)))
    weights.load(job.network)
    figure = task.headline
    found = figure.of(job.measure(job.test_images)[0].measures)
    recorded = figure.text.format(weights.recorded)
    print(f"weights: {weights.title}, {weights.history}")
    damaged = job.test_images.num_damaged
    left_out = f" ({damaged:,} damaged left out)" if damaged else ""
    print(
        f"{figure.title} on {described_data(config.dataset, note, data.remark)}, {job.num_tested:,} images{left_out}: "
        f"{figure.text.format(found)}"
    )
    if not same_data:
        print(f"not compared with the recorded {recorded}: that is of other images, {weights.data}")
        if data.spec.class_names != m.class_names:
            print("warning: the classes have other names than those of the weights; they are compared by their order")
    elif found == weights.recorded:
        print(f"equals the recorded {recorded}")
    else:
        difference = figure.difference.format(found - weights.recorded)
        print(
            f"differs from the recorded {recorded} by {difference} on the same images; the last bits change with the "
            f"device, PyTorch (recorded: {m.torch}), --batch-size, --kernels and --compile"
        )
    return Evaluated(figure.title, found, weights.recorded, same_data, job.num_tested)
