"""What every preset must do; those above 30 million parameters are named and left out here."""

from __future__ import annotations

import pickle

import pytest
import timm
import torch
from torch import Tensor, nn

import lightning_depth.networks  # noqa: F401 - registers the presets
from tests.networks.test_presets import PARAMETERS

# run with `-m slow`: too large, or too deep, for the default run
LARGE = {
    *("depth_alexnet", "depth_alexnet_groups", "depth_vgg19", "depth_vgg19_bn"),
    *("depth_plain101", "depth_plain152", "depth_resnet101", "depth_resnet152"),
    *("depth_preact_resnet101", "depth_preact_resnet152", "depth_wide_resnet50_2"),
    "depth_cifar_wrn_28_10",
}
DEEP = {
    *("depth_cifar_resnet1202", "depth_cifar_resnet1202_b", "depth_cifar_preact_resnet1001"),
    *("depth_cifar_densenet_100_24", "depth_cifar_densenet_bc_190_40"),
    *("depth_cifar_densenet_bc_250_24", "depth_densenet161", "depth_cifar_wrn_22_8"),
}
# members of a family whose smaller sibling goes through the same code
SIBLINGS = {
    *(f"depth_cifar_{kind}{depth}" for kind in ("plain", "resnet") for depth in (32, 44, 110)),
    *(f"depth_cifar_resnet{depth}_b" for depth in (32, 44, 56, 110)),
    *(f"depth_allconv6_{number}" for number in range(1, 9)),
    *("depth_cifar_preact_resnet110", "depth_cifar_wrn_16_8", "depth_cifar_wrn_40_4"),
    *("depth_cifar_wrn_40_2", "depth_resnet34_b", "depth_resnet18_b", "depth_densenet201"),
}
SLOW = LARGE | DEEP | SIBLINGS
NAMES = timm.list_models("depth_*")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in NAMES],
)
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(request.param, num_classes=7)


def images(network: nn.Module, batch: int = 4) -> Tensor:
    channels, side, _ = network.default_cfg["input_size"]
    if not network.default_cfg["fixed_input_size"]:
        side = max(network.min_size, 8 if side < 100 else 32)
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(0))


def test_shape_gradients_and_no_nan(network: nn.Module) -> None:
    network.train()
    output = network(images(network))
    nn.functional.cross_entropy(output, torch.arange(4)).backward()
    missing = [name for name, p in network.named_parameters() if p.grad is None]
    assert output.shape == (4, 7)
    assert output.isfinite().all()
    assert not missing
    assert all(p.grad.isfinite().all() for p in network.parameters())
    network.zero_grad()


def test_fresh_network_is_finite_in_evaluation(network: nn.Module) -> None:
    network.eval()
    with torch.no_grad():
        assert network(images(network, batch=1)).isfinite().all()


def test_pickles_and_returns_its_state(network: nn.Module) -> None:
    network.eval()
    copy = pickle.loads(pickle.dumps(network))
    copy.load_state_dict(network.state_dict(), strict=True)
    x = images(network, batch=1)
    with torch.no_grad():
        assert torch.equal(copy(x), network(x))


BESIDE_THE_MAIN_PATH = ("shortcut", "gate", "branch1", "branch3", "branch4")


def test_depth_counts_the_weight_layers_of_the_main_path(network: nn.Module) -> None:
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        and not any(part in name for part in BESIDE_THE_MAIN_PATH)
    ]
    hidden = getattr(network, "hidden_layers", None)
    assert len(layers) == (network.depth if hidden is None else hidden + 1)


def test_head_and_classifier_as_timm_has_them(network: nn.Module) -> None:
    network.eval()
    x = images(network, batch=1)
    with torch.no_grad():
        features = network.forward_features(x)
        pre_logits = network.forward_head(features, pre_logits=True)
        logits = network.forward_head(features)
        assert torch.equal(network.get_classifier()(pre_logits), logits)
        assert pre_logits.shape == (1, network.head_hidden_size)
        assert features.shape[1] == network.num_features


def test_large_presets_are_those_above_30_million() -> None:
    assert {name for name, count in PARAMETERS.items() if count > 30_000_000} == LARGE
