"""SSDLite against the same network written out plainly, its exact counts, and its prior boxes."""

import pytest
import torch
from torch import Tensor, nn

from darts_sg.analysis.cost import count_macs, count_params, model_cost, uninitialised
from darts_sg.errors import UsageError
from darts_sg.genotype import load_genotype
from darts_sg.networks.build import NetworkPlan, build_network
from darts_sg.networks.mobile import find_model
from darts_sg.networks.ssdlite import SSDLite, decode, encode, map_sides, prior_boxes, to_centres, to_corners
from darts_sg.ops import OPERATIONS
from tests.reference import detection
from tests.reference.transfer import assert_equal_tensors, copy_tensors, gradients, randomize


def plan_of(name: str) -> NetworkPlan:
    return NetworkPlan(trained=find_model(name), shape="imagenet")


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [("mobilenext_1.0", 3_476_308, 708_726_528), ("mobilenetv2_1.0", 3_425_988, 682_447_872)],
)
def test_counts_are_those_of_the_authors_code(name: str, params: int, macs: int) -> None:
    cost = model_cost(find_model(name), "voc")
    assert (cost.params, cost.macs) == (params, macs)


@pytest.mark.parametrize("family", ["mobilenext", "mobilenetv2"])
def test_network_is_the_plain_one(family: str) -> None:
    expected = detection.Detector(family, 0.1, 2).double()
    randomize(expected, seed=1)
    actual = SSDLite(plan_of(f"{family}_0.1"), num_classes=2).double()
    copy_tensors(actual.parameters(), expected.parameters())
    copy_tensors(actual.buffers(), expected.buffers())
    x = torch.randn(3, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    outputs, wanted = actual(x)[0], expected(x)
    assert outputs.offsets.shape == (3, len(prior_boxes("authors", 64)), 4)
    assert_equal_tensors(outputs, wanted)
    losses = [logits.logsumexp(2).sum() + (0.1 * boxes).exp().sum() for logits, boxes in (outputs, wanted)]
    assert_equal_tensors(
        gradients(losses[0], actual.parameters()), gradients(losses[1], expected.parameters()), relative=1e-9
    )
    assert_equal_tensors(actual.buffers(), expected.buffers())


def test_a_derived_network_is_tapped_before_its_last_reduction_and_at_its_end() -> None:
    genotype = load_genotype("DARTS_V2", known=list(OPERATIONS))
    plan = NetworkPlan(trained=genotype, shape="imagenet", channels=48, cells=14, auxiliary=True)
    network = uninitialised(lambda: SSDLite(plan, num_classes=20))
    assert network.backbone.map_channels == (384, 768, 768)
    classifier = uninitialised(lambda: build_network(plan, 1000, 3))
    lost = count_params(classifier.head) + count_params(classifier.auxiliary_head)
    assert count_params(network.backbone) == count_params(classifier) - lost
    sizes = [x.shape[1:] for x in network.backbone.maps(torch.empty(0, 3, 320, 320))]
    assert sizes == [(384, 20, 20), (768, 10, 10), (768, 10, 10)]


def test_maps_of_a_derived_network_are_the_states_that_its_classifier_sees() -> None:
    genotype = load_genotype("DARTS_V1", known=list(OPERATIONS))
    plan = NetworkPlan(trained=genotype, shape="imagenet", channels=4, cells=4)
    classifier, backbone = build_network(plan, 3, 3).eval(), SSDLite(plan, num_classes=2).backbone.eval()
    missing, unexpected = backbone.load_state_dict(classifier.state_dict(), strict=False)
    assert not missing
    assert {name.split(".")[0] for name in unexpected} == {"head"}
    states: list[Tensor] = []
    for cell in classifier.cells:
        cell.register_forward_hook(lambda cell, inputs, output: states.append(output.joined().clone()))
    x = torch.randn(2, 3, 64, 64)
    classifier(x)
    fine, coarse, output = backbone.maps(x)
    assert fine.shape[2:] == (4, 4)
    assert coarse.shape[2:] == (2, 2)
    assert_equal_tensors([fine, coarse], [states[1].relu(), states[3].relu()])
    assert output is coarse


def test_prior_boxes_are_those_of_the_authors() -> None:
    found = prior_boxes("authors")
    expected = torch.tensor(detection.priors())
    assert found.shape == (3234, 4)
    assert [6 * side**2 for side in map_sides(320)] == [2400, 600, 150, 54, 24, 6]
    assert (found - expected).abs().max() < 1e-6
    assert found[3150:3204, 0].unique().tolist() == pytest.approx([0.1875, 0.5625, 0.9375])


def test_priors_of_torchvision_lie_evenly_and_grow_evenly() -> None:
    found = prior_boxes("torchvision")
    assert found[3150:3204, 0].unique().tolist() == pytest.approx([1 / 6, 3 / 6, 5 / 6])
    squares = found[::6][[0, 2400 // 6, 3000 // 6, 3150 // 6, 3204 // 6, 3228 // 6], 2]
    assert squares.tolist() == pytest.approx([0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
    assert found[-5, 2].item() == pytest.approx((0.95 * 1.0) ** 0.5)


def test_styles_differ_in_the_last_heads_and_in_batchnorm() -> None:
    plan = plan_of("mobilenetv2_0.1")
    authors, torchvision = (SSDLite(plan, num_classes=2, style=style) for style in ("authors", "torchvision"))
    assert isinstance(authors.class_heads[-1], nn.Conv2d)
    assert isinstance(torchvision.box_heads[-1], nn.Sequential)
    assert {m.eps for m in torchvision.extras.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    assert {m.eps for m in torchvision.backbone.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}


def test_encoded_boxes_are_decoded_to_themselves() -> None:
    generator = torch.Generator().manual_seed(0)
    priors = prior_boxes("authors").double()
    centres = 0.02 + 0.9 * torch.rand(len(priors), 4, dtype=torch.float64, generator=generator)
    boxes = to_corners(centres)
    assert_equal_tensors([to_centres(boxes), decode(encode(boxes, priors), priors)], [centres, boxes])
    assert decode(torch.full((1, 4), 1e6), priors[:1].float()).isfinite().all()


def test_heads_start_uniform_without_biases_and_extra_levels_like_the_backbone() -> None:
    torch.manual_seed(0)
    network = SSDLite(plan_of("mobilenext_1.0"), num_classes=20)
    pointwise = network.class_heads[1][-1]
    bound = (6 / (1280 + 126)) ** 0.5
    assert pointwise.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert not any(layer.bias.any() for layer in network.box_heads.modules() if isinstance(layer, nn.Conv2d))
    assert network.extras[0][3][0].weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)


def test_what_no_detector_can_be_is_answered_in_one_line() -> None:
    with pytest.raises(UsageError, match="give --network imagenet"):
        SSDLite(NetworkPlan(trained=find_model("mobilenext_0.1"), shape="cifar"), num_classes=2)
    with pytest.raises(UsageError, match="at least 32 pixels"):
        prior_boxes("authors", 31)


def test_macs_grow_with_the_image() -> None:
    network = uninitialised(lambda: SSDLite(plan_of("mobilenext_0.1"), num_classes=2))
    small, large = (count_macs(network, torch.empty(0, 3, size, size)) for size in (64, 128))
    assert 3 * small < large < 4 * small
