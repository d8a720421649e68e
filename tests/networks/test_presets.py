"""Every published integer of the networks that have a name."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import lightning_depth.networks  # noqa: F401 - registers the presets

CIFAR_A = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}
PARAMETERS = {
    **{f"depth_cifar_plain{depth}": count for depth, count in CIFAR_A.items()},
    **{f"depth_cifar_resnet{depth}": count for depth, count in CIFAR_A.items()},
    "depth_cifar_resnet1202": 19_421_274,
    "depth_cifar_resnet20_b": 272_474,
    "depth_cifar_resnet32_b": 466_906,
    "depth_cifar_resnet44_b": 661_338,
    "depth_cifar_resnet56_b": 855_770,
    "depth_cifar_resnet110_b": 1_730_714,
    "depth_cifar_resnet1202_b": 19_424_026,
    "depth_cifar_preact_resnet20": 269_722,
    "depth_cifar_preact_resnet56": 853_018,
    "depth_cifar_preact_resnet110": 1_727_962,
    "depth_cifar_preact_resnet164": 1_703_258,
    "depth_cifar_preact_resnet1001": 10_327_706,
    "depth_cifar_wrn_16_4": 2_748_890,
    "depth_cifar_wrn_16_8": 10_961_370,
    "depth_cifar_wrn_22_8": 17_158_106,
    "depth_cifar_wrn_28_10": 36_479_194,
    "depth_cifar_wrn_40_1": 563_930,
    "depth_cifar_wrn_40_2": 2_243_546,
    "depth_cifar_wrn_40_4": 8_949_210,
    "depth_cifar_densenet_40_12": 1_019_722,
    "depth_cifar_densenet_100_12": 6_979_642,
    "depth_cifar_densenet_100_24": 27_249_082,
    "depth_cifar_densenet_bc_100_12": 769_162,
    "depth_cifar_densenet_bc_190_40": 25_624_430,
    "depth_cifar_densenet_bc_250_24": 15_324_406,
    "depth_cifar_highway19": 2_256_838,
    "depth_mnist_highway10": 151_690,
    "depth_maxout_mnist": 1_233_610,
    "depth_plain18": 11_515_688,
    "depth_plain34": 21_623_848,
    "depth_plain50": 22_780_456,
    "depth_plain101": 41_772_584,
    "depth_plain152": 57_416_232,
    "depth_resnet18": 11_689_512,
    "depth_resnet34": 21_797_672,
    "depth_resnet18_a": 11_515_688,
    "depth_resnet34_a": 21_623_848,
    "depth_resnet18_b": 11_689_512,
    "depth_resnet34_b": 21_797_672,
    "depth_resnet18_c": 12_043_816,
    "depth_resnet34_c": 22_716_840,
    "depth_resnet50": 25_557_032,
    "depth_resnet101": 44_549_160,
    "depth_resnet152": 60_192_808,
    "depth_preact_resnet18": 11_687_720,
    "depth_preact_resnet34": 21_795_880,
    "depth_preact_resnet50": 25_549_352,
    "depth_preact_resnet101": 44_541_480,
    "depth_preact_resnet152": 60_185_128,
    "depth_wide_resnet50_2": 68_883_240,
    "depth_densenet121": 7_978_856,
    "depth_densenet161": 28_681_000,
    "depth_densenet169": 14_149_480,
    "depth_densenet201": 20_013_928,
    "depth_alexnet": 62_378_344,
    "depth_alexnet_groups": 60_965_224,
    "depth_vgg19": 143_667_240,
    "depth_vgg19_bn": 143_678_248,
    "depth_googlenet": 6_624_904,
    "depth_mobilenetv1_100": 4_231_976,
    "depth_mobilenetv1_075": 2_585_560,
    "depth_mobilenetv1_050": 1_331_592,
    "depth_mobilenetv1_025": 470_072,
    "depth_mobilenetv1_shallow": 2_887_976,
    "depth_mobilenetv2_100": 3_504_872,
    "depth_shufflenetv1_g1": 1_531_936,
    "depth_shufflenetv1_g2": 1_733_848,
    "depth_shufflenetv1_g3": 1_865_728,
    "depth_shufflenetv1_g4": 1_968_344,
    "depth_shufflenetv1_g8": 2_434_768,
    "depth_lenet5": 61_706,
    "depth_lenet5_1998": 60_000,
    "depth_allconv6": 560_468,
    "depth_allconv6_1": 36_452,
    "depth_allconv6_2": 48_436,
    "depth_allconv6_3": 87_204,
    "depth_allconv6_4": 56_228,
    "depth_allconv6_5": 142_004,
    "depth_allconv6_6": 189_012,
    "depth_allconv6_7": 344_884,
    "depth_allconv6_8": 218_420,
}
WITH_100_CLASSES = {
    "depth_cifar_resnet20": 275_572,
    "depth_cifar_resnet32": 470_004,
    "depth_cifar_resnet44": 664_436,
    "depth_cifar_resnet56": 858_868,
    "depth_cifar_resnet110": 1_733_812,
    "depth_cifar_resnet1202": 19_427_124,
    "depth_cifar_preact_resnet164": 1_726_388,
    "depth_cifar_preact_resnet1001": 10_350_836,
    "depth_cifar_wrn_16_8": 11_007_540,
    "depth_cifar_wrn_28_10": 36_536_884,
    "depth_cifar_wrn_40_4": 8_972_340,
    "depth_cifar_densenet_40_12": 1_060_132,
    "depth_cifar_densenet_100_12": 7_084_852,
    "depth_cifar_densenet_100_24": 27_457_972,
    "depth_cifar_densenet_bc_100_12": 800_032,
    "depth_cifar_densenet_bc_250_24": 15_480_556,
    "depth_cifar_densenet_bc_190_40": 25_821_620,
    "depth_cifar_highway19": 2_265_928,
}
NOT_PINNED = {"depth_cifar_revnet38", "depth_cifar_revnet110"}
# multiply-adds at 224 pixels (MobileNet, tables 5 and 6)
MULTIPLY_ADDS = {
    "depth_mobilenetv1_100": 568_740_352,
    "depth_mobilenetv1_075": 325_400_448,
    "depth_mobilenetv1_050": 149_497_088,
    "depth_mobilenetv1_025": 41_030_272,
    "depth_mobilenetv1_shallow": 307_323_392,
}


def count(name: str, **changes: int) -> int:
    with torch.device("meta"):
        network = timm.create_model(name, **changes)
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_parameters_as_published(name: str, parameters: int) -> None:
    assert count(name) == parameters


@pytest.mark.parametrize(("name", "parameters"), WITH_100_CLASSES.items())
def test_parameters_with_100_classes(name: str, parameters: int) -> None:
    assert count(name, num_classes=100) == parameters


def test_every_preset_is_pinned() -> None:
    assert {*PARAMETERS, *NOT_PINNED} == set(timm.list_models("depth_*"))


@pytest.mark.parametrize(("name", "expected"), MULTIPLY_ADDS.items())
def test_multiply_adds_as_published(name: str, expected: int) -> None:
    with torch.device("meta"):
        network, x = timm.create_model(name).eval(), torch.empty(1, 3, 224, 224)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(x)
    assert counter.get_total_flops() == 2 * expected


def test_last_map_of_allconv6_has_seven_by_seven_pixels() -> None:
    with torch.device("meta"):
        network, x = timm.create_model("depth_allconv6"), torch.empty(1, 3, 224, 224)
    assert network.forward_features(x).shape == (1, 256, 7, 7)


def test_layers_of_lenet() -> None:
    network = timm.create_model("depth_lenet5")
    weights = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    counts = [sum(p.numel() for p in module.parameters()) for module in weights]
    assert counts == [156, 2_416, 48_120, 10_164, 850]


def test_layers_of_lenet_1998() -> None:
    network = timm.create_model("depth_lenet5_1998")
    c1, (s2, c3), (s4, c5) = network.stem, *network.stages
    layers = [c1, s2, c3, s4, c5, network.head.hidden]
    counts = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    assert counts == [156, 12, 1_516, 32, 48_120, 10_164]
    assert network.get_classifier().weight.numel() == 840
    first = network.get_classifier().weight
    network.reset_classifier(12)
    assert torch.equal(network.get_classifier().weight[:10], first)
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, 12)


def test_layers_of_alexnet_in_two_groups() -> None:
    with torch.device("meta"):
        network = timm.create_model("depth_alexnet_groups")
    weights = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    counts = [sum(p.numel() for p in module.parameters()) for module in weights]
    assert counts == [
        *(34_944, 307_456, 885_120, 663_936, 442_624),
        *(37_752_832, 16_781_312, 4_097_000),
    ]


def test_half_width_mobilenet_v2_counts_as_torchvision() -> None:
    assert count("depth_mobilenetv2_100", width_multiplier=0.5) == 1_968_680
