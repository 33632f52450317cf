"""The training images of a search: one part for the weights, one for the alphas."""

from darts_sg.config import SearchConfig
from darts_sg.data import ImageFiles, Images, read_split
from darts_sg.engine.setup import Setting, split_training_set
from darts_sg.errors import UsageError


def search_parts(config: SearchConfig, setting: Setting) -> list[Images]:
    """The training images for the weights and for the alphas; both are the same part where a single-level search holds
    none out. UsageError if --split does not list two parts.
    """
    train = setting.data.train
    if config.split is None:
        split = split_training_set(setting.data, split_sizes(config, len(train)), config)
        return split if len(split) > 1 else split * 2
    if not isinstance(train, ImageFiles):
        raise UsageError(f"--split {config.split} is for --dataset imagenet, not {config.dataset}")
    parts = read_split(config.split, train)
    if len(parts) != 2:
        raise UsageError(
            f"--split {config.split} lists {len(parts)} parts; a search needs two, as --fraction 0.1 0.025"
        )
    return [train.select(indices) for indices in parts]


def split_sizes(config: SearchConfig, total: int) -> tuple[int, ...]:
    """Images for the weights and for the alphas: halves of the training set unless the options say otherwise.

    A single-level search has one part for both, by default all images, unless it is asked to hold some out.
    """
    train, validation = config.train_images, config.validation_images
    if validation is None and config.method().is_single_level:
        return (total if train is None else train,)
    if train is None:
        train = total // 2 if validation is None else max(1, total - validation)
    if validation is None:
        validation = min(train, max(1, total - train))
    return train, validation
