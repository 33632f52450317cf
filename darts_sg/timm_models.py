"""Registers the networks of the genotype zoo and MobileNeXt with timm when it is imported.

    import timm, darts_sg.timm_models
    timm.create_model("darts_v2_cifar10", checkpoint_path="runs/…/weights.safetensors")

A genotype NAME becomes name_cifar10 (C=36, 20 cells) and name_imagenet (C=48, 14 cells), with the options `channels`,
`cells` and, for training, `drop_path_rate`. MobileNeXt of width 1.0 is mobilenext_100 and mobilenext_100_cifar10.
MobileNetV2 is in timm under this name; ours is darts_sg_mobilenetv2_100. `checkpoint_path` loads weights files of this
package into a network of the same options, and a pretrained network takes its options from one:

    timm.create_model("darts_v2_cifar10", pretrained=True, pretrained_cfg_overlay={"file": "hf://user/name"})
    timm.create_model("mobilenext_100", features_only=True)  # a list of features, the last ones at each stride
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import FeatureInfo, register_model
from torch import Tensor, nn

from darts_sg.analysis.cost import CELLS, CHANNELS, IMAGE_SIZE, NUM_CLASSES
from darts_sg.data.cifar import CIFAR10
from darts_sg.engine.weights import Weights, read_weights
from darts_sg.errors import UsageError
from darts_sg.genotype import load_genotype, zoo_names
from darts_sg.networks.build import is_auxiliary
from darts_sg.networks.derived import DerivedNetwork, NetworkShape
from darts_sg.networks.mobile import MODELS, MobileBlock, MobileNetwork

__all__ = ["TimmFeatures", "TimmNetwork"]

SHAPES: tuple[tuple[str, NetworkShape], ...] = (("cifar10", "cifar"), ("imagenet", "imagenet"))
PREFIX = "network."
LAST_OF_STEM = 2  # convolution, BatchNorm, ReLU6
Build = Callable[..., nn.Module]
"""Builds a network from (num_classes, in_channels, **options); it returns (logits, auxiliary logits or None). With
num_classes None it has no classifier."""


class TimmNetwork(nn.Module):
    """A network with timm's interface: images (N, in_channels, H, W) to logits (N, num_classes).

    With num_classes 0 it returns the classifier's input. `load_state_dict` also reads weights files of this package and
    leaves their auxiliary head out.
    """

    def __init__(self, network: nn.Module, classifier: str, num_classes: int, cfg: Mapping[str, Any]) -> None:
        super().__init__()
        self.network, self.classifier = network, classifier
        last = self.get_classifier()
        assert isinstance(last, nn.Linear)
        self.num_features = self.head_hidden_size = last.in_features
        self.pretrained_cfg = self.default_cfg = dict(cfg)
        self.num_classes = num_classes
        if num_classes == 0:
            self.reset_classifier(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[0]

    def get_classifier(self) -> nn.Module:
        return self.network.get_submodule(self.classifier)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by one for `num_classes`, or remove it for 0. `global_pool` can only be `avg`."""
        if global_pool not in (None, "avg"):
            raise UsageError(f"global_pool {global_pool!r}: these networks end in average pooling; leave it out")
        new = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.network.set_submodule(self.classifier, new)
        self.num_classes = num_classes

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        if not any(name.startswith(PREFIX) for name in state_dict):
            own = {name: t for name, t in state_dict.items() if not name.startswith("auxiliary_head.")}
            state_dict = {PREFIX + name: tensor for name, tensor in own.items()}
        return super().load_state_dict(state_dict, strict, assign)


class TimmFeatures(nn.Module):
    """A backbone with timm's interface of `features_only`: images to a list of features, the last ones at each stride.

    `feature_info` has channels, stride and module of each. Features of cells are after the ReLU that all of their
    readers begin with. Raises UsageError for an index of a feature that there is not.
    """

    def __init__(self, network: nn.Module, images: tuple[int, ...], indices: Sequence[int] | int | None) -> None:
        """images: (in_channels, H, W) that the strides are measured on."""
        super().__init__()
        self.network = network
        probe = copy.deepcopy(network).eval().to("meta")  # shapes only: nothing is computed
        with torch.no_grad():
            found = {
                images[1] // t.shape[2]: (name, t.shape[1])
                for name, t in taps(probe, torch.empty(1, *images, device="meta"))
            }
        self.names = [name for name, _ in found.values()]
        count = len(found)
        wanted = (
            [*range(count)] if indices is None else [*range(-indices, 0)] if isinstance(indices, int) else [*indices]
        )
        if not wanted or not all(-count <= index < count for index in wanted):
            raise UsageError(f"out_indices {indices}: there are features 0 to {count - 1}, at strides {[*found]}")
        self.indices = [index % count for index in wanted]
        info = [{"num_chs": C, "reduction": stride, "module": name} for stride, (name, C) in found.items()]
        self.feature_info = FeatureInfo(info, tuple(self.indices))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = {name: tensor for name, tensor in taps(self.network, x) if name in self.names}
        return [found[self.names[index]] for index in self.indices]


def taps(network: nn.Module, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The features behind the stem and behind each block or cell, with the name of the module."""
    if isinstance(network, MobileNetwork):
        for i, layer in enumerate(network.features):
            x = layer(x)
            if i == LAST_OF_STEM or isinstance(layer, MobileBlock):
                yield f"network.features.{i}", x
        return
    assert isinstance(network, DerivedNetwork)
    s0, s1 = network.stem(x)
    drop_path_prob = network._drops(x)
    is_large = hasattr(network.stem, "stem_1")  # that of ImageNet gives two states of different sizes
    states = [(f"network.stem.stem_{i}" if is_large else "network.stem", state) for i, state in enumerate((s0, s1))]
    for i, cell in enumerate(network.cells):
        s0, s1 = s1, cell(s0, s1, drop_path_prob)
        states.append((f"network.cells.{i}", s1))
    yield from ((name, state.rectified()) for name, state in states)  # computed once, as the next cells do


def derived(name: str, shape: NetworkShape) -> Build:
    def build(
        num_classes: int | None, in_channels: int, channels: int = CHANNELS[shape], cells: int = CELLS[shape],
        drop_path_rate: float = 0.0,
    ) -> nn.Module:  # fmt: skip
        network = DerivedNetwork(
            load_genotype(name), network=shape, channels=channels, cells=cells, num_classes=num_classes,
            in_channels=in_channels,
        )  # fmt: skip
        network.set_drop_path_prob(drop_path_rate)
        return network

    return build


def mobile(name: str, shape: NetworkShape) -> Build:
    return lambda num_classes, in_channels: MobileNetwork(
        MODELS[name], network=shape, num_classes=num_classes, in_channels=in_channels
    )


def add(name: str, build: Build, shape: NetworkShape, classifier: str) -> None:
    """Register the network with timm under `name`."""
    mean, std = (CIFAR10.mean, CIFAR10.std) if shape == "cifar" else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    cfg: dict[str, Any] = {
        "num_classes": NUM_CLASSES[shape],
        "input_size": (3, IMAGE_SIZE[shape], IMAGE_SIZE[shape]),
        "mean": mean,
        "std": std,
        "crop_pct": 1.0 if shape == "cifar" else 0.875,
        "classifier": PREFIX + classifier,
    }

    def create(
        pretrained: bool = False, pretrained_cfg: Any = None, pretrained_cfg_overlay: Any = None, cache_dir: Any = None,
        num_classes: int | None = None, in_chans: int = 3, drop_rate: float | None = None, features_only: bool = False,
        out_indices: Sequence[int] | int | None = None, **options: Any,
    ) -> nn.Module:  # fmt: skip
        own, weights = cfg, None
        if pretrained:
            weights = pretrained_weights(name, pretrained_cfg, pretrained_cfg_overlay)
            own, options = _of_weights(weights, name, shape, in_chans, cfg), _options(weights, options)
        wanted = own["num_classes"] if num_classes is None else num_classes
        network = build(None if features_only else wanted or 1, in_chans, **options)
        dropouts = [module for module in network.modules() if isinstance(module, nn.Dropout)]
        if drop_rate and not dropouts:
            raise UsageError(f"drop_rate {drop_rate}: {name} has no dropout; leave it out")
        for dropout in dropouts:
            dropout.p = dropout.p if drop_rate is None else drop_rate
        if weights is not None:
            load_pretrained(network, weights, classifier)
        if features_only:
            return TimmFeatures(network, (in_chans, *own["input_size"][1:]), out_indices)
        return TimmNetwork(network, classifier, wanted, own)

    create.__name__ = create.__qualname__ = name
    default_cfgs[name] = cfg
    register_model(create)


def pretrained_weights(name: str, cfg: Any, overlay: Any) -> Weights:
    """The weights file that timm's pretrained_cfg, or its overlay, names as `file`; UsageError if none does."""
    file = None
    for given in (cfg, overlay):
        known = asdict(given) if is_dataclass(given) and not isinstance(given, type) else given
        if isinstance(known, Mapping):
            file = known.get("file") or file
    if file is None:
        raise UsageError(
            f"{name} has no pretrained weights of its own; name a file, pretrained_cfg_overlay={{'file': FILE}}, or "
            "give one as checkpoint_path"
        )
    return read_weights(Path(file))


def _options(weights: Weights, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the network that the weights are of; UsageError if others are given."""
    m = weights.metadata
    own = {} if m.model else {"channels": m.channels, "cells": m.cells}
    for option, value in own.items():
        if given.get(option, value) != value:
            raise UsageError(f"{option} {given[option]}: {weights.path} is of {option} {value}; leave it out")
    return {**given, **own}


def _of_weights(
    weights: Weights, name: str, shape: NetworkShape, in_chans: int, cfg: Mapping[str, Any]
) -> dict[str, Any]:
    """timm's facts about the data that the weights were trained on; UsageError if they are of another network."""
    m, spec = weights.metadata, weights.spec
    if (m.task, REGISTERED[name]) != ("classification", (weights.trained.name, m.network)):
        raise UsageError(f"{weights.path} holds {weights.title}, trained for {m.task}, and {name} is another network")
    if in_chans != spec.in_channels:
        raise UsageError(f"{weights.path} takes images of {spec.in_channels} channels, not of {in_chans}")
    size = (spec.in_channels, spec.image_size, spec.image_size)
    return {**cfg, "num_classes": spec.num_classes, "input_size": size, "mean": spec.mean, "std": spec.std}


def load_pretrained(network: nn.Module, weights: Weights, classifier: str) -> None:
    """Load weights; the classifier stays new where it has another number of classes, or is left out."""
    own = network.state_dict()
    tensors = {name: tensor for name, tensor in weights.tensors.items() if not is_auxiliary(name)}
    for name in (f"{classifier}.weight", f"{classifier}.bias"):
        if name not in own:
            del tensors[name]
        elif own[name].shape != tensors[name].shape:
            tensors[name] = own[name]
    network.load_state_dict(tensors)


REGISTERED: dict[str, tuple[str, NetworkShape]] = {}
"""By timm's name: our genotype or model, and the shape."""
default_cfgs: dict[str, dict[str, Any]] = {}  # timm looks up this name in the module
for _suffix, _shape in SHAPES:
    for _name in zoo_names():
        REGISTERED[f"{_name.lower()}_{_suffix}"] = _name, _shape
        add(f"{_name.lower()}_{_suffix}", derived(_name, _shape), _shape, "head.classifier")
    for _name in MODELS:
        _model = MODELS[_name]
        _divisor = f"_id{_model.identity_divisor}" if _model.identity_divisor > 1 else ""
        _timm_name = f"{_name.partition('_')[0]}_{round(100 * _model.width):03d}{_divisor}"
        _timm_name += "_cifar10" if _shape == "cifar" else ""
        if _name.startswith("mobilenetv2"):
            _timm_name = f"darts_sg_{_timm_name}"  # timm has networks of this name
        REGISTERED[_timm_name] = _name, _shape
        add(_timm_name, mobile(_name, _shape), _shape, "classifier.1")
