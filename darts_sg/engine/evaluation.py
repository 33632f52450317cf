"""The test of trained weights: the reported error, repeated from their file alone."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from darts_sg.analysis.run_folder import described_data
from darts_sg.config import AugmentConfig
from darts_sg.engine.augment import AugmentJob, percent_wrong
from darts_sg.engine.setup import prepare
from darts_sg.engine.weights import read_weights
from darts_sg.errors import UsageError


@dataclass(frozen=True)
class Evaluated:
    """The test of a weights file; errors in percent."""

    test_error: float
    recorded_error: float
    """Test error that the training recorded in the file."""
    same_data: bool
    """Whether it was recorded on these images."""
    num_images: int


def run_evaluation(config: AugmentConfig, path: Path) -> Evaluated:
    """Test the weights in `path` on the data that `config` says, and print whether the error is the recorded one.

    Network and normalisation are those of the file. Raises UsageError if it is no weights file, or the data are not
    there or have other classes.
    """
    weights = read_weights(path)
    m = weights.metadata
    setting = prepare(config, {})
    data = setting.data
    weights.refuse_other_channels(data.spec)
    if data.spec.num_classes != m.num_classes:
        raise UsageError(
            f"{path} tells {m.num_classes} classes apart ({m.dataset}), {config.dataset} has {data.spec.num_classes}: "
            f"choose other data with --dataset and --data, or train on these with --finetune {path}"
        )
    same_data = data.fingerprint() == m.data_fingerprint
    note = config.data_note or (m.data_note if same_data else "")
    spec = dataclasses.replace(data.spec, mean=m.mean, std=m.std)
    job = AugmentJob(config, weights.trained, dataclasses.replace(setting, data=dataclasses.replace(data, spec=spec)))
    weights.load(job.network)
    accuracy = job.evaluate("test", job.test_images)["test_accuracy"]
    error, recorded = percent_wrong(accuracy), f"{m.test_error:.2f}%"
    print(f"weights: {weights.title}, {weights.history}")
    damaged = job.test_images.num_damaged
    left_out = f" ({damaged:,} damaged left out)" if damaged else ""
    print(
        f"test error on {described_data(config.dataset, note, data.remark)}, {job.num_tested:,} images{left_out}: "
        f"{error:.2f}%"
    )
    if not same_data:
        print(f"not compared with the recorded {recorded}: that is of other images, {weights.data}")
        if data.spec.class_names != m.class_names:
            print("warning: the classes have other names than those of the weights; they are compared by their order")
    elif error == m.test_error:
        print(f"equals the recorded {recorded}")
    else:
        print(
            f"differs from the recorded {recorded} by {error - m.test_error:+.4f} points on the same images; the last "
            f"bits change with the device, PyTorch (recorded: {m.torch}), --batch-size, --kernels and --compile"
        )
    return Evaluated(error, m.test_error, same_data, job.num_tested)
