"""MobileNeXt and MobileNetV2 against the same networks written out plainly, and against the authors' exact counts."""

import pytest
import torch
from torch import nn

from darts_sg.analysis.cost import model_cost
from darts_sg.errors import UsageError
from darts_sg.networks.mobile import FAMILIES, MobileBlock, MobileNetwork, Stage, find_model, round_width
from tests.reference import mobile, textbook
from tests.reference.transfer import assert_equal_tensors, copy_tensors, gradients, randomize

PIXELS = {"imagenet": 224, "cifar": 32}


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("mobilenext_1.0", 3_535_416, 311_342_592),
        ("mobilenext_1.0_id2", 3_535_416, 311_342_592),
        ("mobilenext_1.4", 6_126_168, 588_319_256),
        ("mobilenext_0.5", 2_152_304, 103_256_448),
        ("mobilenetv2_1.0", 3_504_872, 300_774_272),
    ],
)
def test_counts_are_those_of_the_authors_code_and_of_torchvision(name: str, params: int, macs: int) -> None:
    cost = model_cost(find_model(name))
    assert (cost.params, cost.params_with_auxiliary, cost.macs) == (params, params, macs)


@pytest.mark.parametrize("network", PIXELS)
@pytest.mark.parametrize(
    "name", ["mobilenext_1.4", "mobilenext_0.15", "mobilenetv2_1.4", "mobilenetv2_0.25", "bottleneck_0.9"]
)
def test_cost_is_what_the_plain_network_counts(name: str, network: str) -> None:
    family, width = name.split("_")[:2]
    pixels, classes = PIXELS[network], {"imagenet": 1000, "cifar": 10}[network]
    with torch.device("meta"):
        plain = mobile.Network(family, float(width), 1, pixels, classes)
        expected = textbook.count(plain, (3, pixels, pixels))
    cost = model_cost(find_model(name), network)
    assert (cost.params, cost.macs) == expected


@pytest.mark.parametrize(("network", "size"), [("imagenet", (64, 64)), ("cifar", (32, 32)), ("cifar", (28, 33))])
@pytest.mark.parametrize(("width", "divisor"), [("0.1", 3), ("0.35", 1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_network_is_the_plain_one(family: str, width: str, divisor: int, network: str, size: tuple[int, int]) -> None:
    expected = mobile.Network(family, float(width), divisor, PIXELS[network], 7, in_channels=1).double()
    randomize(expected, seed=1)
    model = find_model(f"{family}_{width}_id{divisor}")
    actual = MobileNetwork(model, network=network, num_classes=7, in_channels=1).double()
    copy_tensors(actual.parameters(), expected.parameters())
    copy_tensors(actual.buffers(), expected.buffers())
    x = torch.randn(3, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    outputs = []
    for run in (lambda: actual(x)[0], lambda: expected(x)):
        torch.manual_seed(3)  # of the dropout
        outputs.append(run())
    assert_equal_tensors(outputs[:1], outputs[1:])
    losses = [logits.logsumexp(1).sum() for logits in outputs]
    assert_equal_tensors(
        gradients(losses[0], actual.parameters()), gradients(losses[1], expected.parameters()), relative=1e-9
    )
    assert_equal_tensors(actual.buffers(), expected.buffers())
    (logits, auxiliary), wanted = actual.eval()(x), expected.eval()(x)
    assert auxiliary is None
    assert_equal_tensors([logits], [wanted])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("C_in", "C_out"), [(24, 24), (24, 40), (40, 24), (8, 160)])
@pytest.mark.parametrize(("num_blocks", "ratio"), [(1, 2), (1, 6), (3, 6), (2, 1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_block_is_the_plain_one(family: str, num_blocks: int, ratio: int, C_in: int, C_out: int, stride: int) -> None:
    if family == "mobilenext":
        expected = mobile.sandglass(C_in, C_out, ratio, stride, 2, keep=num_blocks == 1).double()
    else:
        build = mobile.inverted_residual if family == "mobilenetv2" else mobile.bottleneck
        expected = build(C_in, C_out, ratio, stride, 2).double()
    randomize(expected, seed=1)
    layers, shortcut = FAMILIES[family].block(C_in, C_out, Stage(ratio, C_out, num_blocks, stride), stride)
    actual = MobileBlock(layers, C_in // 2 if shortcut else 0).double()
    copy_tensors(actual.parameters(), expected.parameters())
    x = torch.randn(2, C_in, 5, 6, dtype=torch.float64, requires_grad=True)
    outputs = [actual(x), expected(x)]
    assert outputs[0].shape == (2, C_out, -(-5 // stride), -(-6 // stride))
    assert_equal_tensors(*([y] for y in outputs))
    weight = torch.randn_like(outputs[0])
    found = [
        gradients((weight * y).sum(), [x, *block.parameters()])
        for y, block in zip(outputs, (actual, expected), strict=True)
    ]
    assert_equal_tensors(*found, relative=1e-9)


@pytest.mark.parametrize(("network", "pixels", "side"), [("imagenet", 224, 7), ("cifar", 32, 4), ("cifar", 30, 4)])
@pytest.mark.parametrize("name", ["mobilenext_1.4", "mobilenext_0.35", "mobilenetv2_1.4", "mobilenetv2_0.1"])
def test_shapes(name: str, network: str, pixels: int, side: int) -> None:
    model = find_model(name)
    with torch.device("meta"), torch.no_grad():
        built = MobileNetwork(model, network=network, num_classes=5)
        x = torch.empty(2, 3, pixels, pixels)
        assert built.features(x).shape == (2, max(1280, round_width(1280 * model.width)), side, side)
        assert built(x)[0].shape == (2, 5)


@pytest.mark.parametrize("divisor", [8, 16])
def test_widths_are_close_multiples(divisor: int) -> None:
    for tenth in range(1, 2000):
        width = tenth / 10
        assert round_width(width, divisor) == mobile.multiple(width, divisor)


def test_weights_start_as_in_the_authors_code() -> None:
    torch.manual_seed(0)
    network = MobileNetwork(find_model("mobilenext_1.0"), num_classes=1000)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 5000:
            fan_out = layer.out_channels * layer.weight[0, 0].numel()
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    assert network.classifier[1].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not network.classifier[1].bias.any()


@pytest.mark.parametrize(
    "name", ["mobilenext", "mobilenext_", "mobilenext_0", "mobilenext_1.0_id0", "resnet_1.0", "", "mobilenext_-1"]
)
def test_what_is_no_model_is_answered_with_the_choices(name: str) -> None:
    with pytest.raises(UsageError, match=r"unknown model .*mobilenext_1\.0, .*or another width") as caught:
        find_model(name)
    assert "\n" not in str(caught.value)


def test_a_name_spells_width_and_identity_multiplier() -> None:
    model = find_model("mobilenext_0.9_id6")
    assert (model.width, model.identity_divisor, model.family) == (0.9, 6, FAMILIES["mobilenext"])
    assert find_model("mobilenext_1").channels(32) == find_model("mobilenext_1.0").channels(32)
