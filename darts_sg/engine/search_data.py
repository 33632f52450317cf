"""The training images of a search: one part for the weights, one for the alphas."""

from darts_sg.config import SearchConfig
from darts_sg.data import ImageFiles, Images, read_split
from darts_sg.engine.setup import Setting, split_training_set
from darts_sg.errors import UsageError


def search_parts(config: SearchConfig, setting: Setting) -> list[Images]:
    """The training images for the weights and for the alphas. UsageError if --split does not list two such parts."""
    train = setting.data.train
    if config.split is None:
        return split_training_set(setting.data, split_sizes(config, len(train)), config)
    if not isinstance(train, ImageFiles):
        raise UsageError(f"--split {config.split} is for --dataset imagenet, not {config.dataset}")
    parts = read_split(config.split, train)
    if len(parts) != 2:
        raise UsageError(
            f"--split {config.split} lists {len(parts)} parts; a search needs two, as --fraction 0.1 0.025"
        )
    return [train.select(indices) for indices in parts]


def split_sizes(config: SearchConfig, total: int) -> tuple[int, int]:
    """Images for the weights and for the alphas: halves of the training set unless the options say otherwise."""
    train, validation = config.train_images, config.validation_images
    if train is None:
        train = total // 2 if validation is None else max(1, total - validation)
    if validation is None:
        validation = min(train, max(1, total - train))
    return train, validation
