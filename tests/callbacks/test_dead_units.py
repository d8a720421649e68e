"""A unit is dead if what it does says so, whatever its activation is called."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_depth.callbacks import ActivationMonitor, ActivationSnapshot, measure_activations
from tests.callbacks.toy import Batch, Toy, fit, rows

Function = Callable[[Tensor], Tensor]
DEAD = 10
"""Units of sixteen that are pushed to where the activation is flat."""


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=0)


class Masked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (x > 0)


class Unknown(nn.Module):
    """Arithmetic that no list of activations holds."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + x.abs()) / 2


class Wiped(nn.Module):
    """Works on the memory of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp_(min=0)


def as_module(function: Function) -> nn.Module:
    class Act(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    return Act()


FUNCTIONS: dict[str, Function] = {
    "relu": F.relu,
    "leaky": lambda x: F.leaky_relu(x, 0.0),
    "prelu": lambda x: F.prelu(x, torch.zeros(1)),
    "rrelu": lambda x: F.rrelu(x, 0.0, 0.0, training=True),
    "clamp": lambda x: torch.clamp(x, min=0),
    "clamp_min": lambda x: torch.clamp_min(x, 0),
    "clamp to six": lambda x: torch.clamp(x, 0, 6),
    "maximum": lambda x: torch.maximum(x, torch.zeros(())),
    "product with a mask": lambda x: x * (x > 0),
    "mask times it": lambda x: (x > 0).float() * x,
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, 0.0, 6.0),
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "squared": lambda x: F.relu(x) ** 2,
    "negative": lambda x: -F.relu(x),
    "scaled": lambda x: -1.5 * F.relu(x),
    "shifted": lambda x: F.relu(x) - 1,
    "dropped out": lambda x: F.dropout(F.relu(x), 0.1),
    "in place": lambda x: F.leaky_relu_(x, 0.0),
    "gelu": lambda x: F.gelu(4 * x),
    "silu": lambda x: F.silu(40 * x),
}
MODULES: dict[str, Callable[[], nn.Module]] = {
    "leaky": lambda: nn.LeakyReLU(0.0),
    "leaky in place": lambda: nn.LeakyReLU(0.0, inplace=True),
    "prelu": lambda: nn.PReLU(init=0.0),
    "rrelu": lambda: nn.RReLU(0.0, 0.0),
    "threshold": lambda: nn.Threshold(0.0, 0.0),
    "threshold to five": lambda: nn.Threshold(0.0, 5.0),
    "hardtanh": lambda: nn.Hardtanh(0.0, 6.0),
    "clamp": Clamp,
    "clamp in place": Wiped,
    "product with a mask": Masked,
    "arithmetic": Unknown,
    **{f"wrapped {name}": lambda f=f: as_module(f) for name, f in FUNCTIONS.items()},  # type: ignore[misc]
}


class Net(nn.Module):
    """Two layers of sixteen units with an activation between them."""

    def __init__(self, activation: Function, dead: int = DEAD, bias: float = -10.0) -> None:
        super().__init__()
        self.linear, self.activation = nn.Linear(16, 16), activation
        self.head = nn.Linear(16, 3)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(16))
            self.linear.bias.zero_()
            self.linear.bias[:dead] = bias

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.linear(x)))


def measure(net: nn.Module, x: Tensor) -> ActivationSnapshot:
    return measure_activations(net, lambda: net(x), granularity="leaf")


def worst(seen: ActivationSnapshot) -> float:
    return max((row["dead"] for row in seen.layers if row["dead"] == row["dead"]), default=math.nan)


def constant_units(net: Net, x: Tensor) -> float:
    """By hand: units whose output is the same for all samples."""
    with torch.no_grad():
        made = net.activation(net.linear(x))
    return (made == made[:1]).all(0).float().mean().item()


def kinds(seen: ActivationSnapshot) -> list[str]:
    return [found.kind.value for found in seen.findings]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_kill_units(name: str) -> None:
    net = Net(FUNCTIONS[name])
    seen = measure(net, noise(600, 16))
    assert worst(seen) == DEAD / 16
    assert kinds(seen) == ["DEAD"]


@pytest.mark.parametrize("name", MODULES)
def test_modules_kill_units(name: str) -> None:
    net, x = Net(MODULES[name]()), noise(600, 16)
    if "dropped" not in name:
        assert constant_units(net, x) == DEAD / 16
    seen = measure(net, x)
    assert worst(seen) == DEAD / 16
    assert kinds(seen) == ["DEAD"]


@pytest.mark.parametrize("name", ["leaky", "clamp", "product with a mask", "gelu"])
@pytest.mark.parametrize("form", [FUNCTIONS, MODULES], ids=["function", "module"])
def test_units_that_live_are_not_dead(name: str, form: dict[str, Any]) -> None:
    made = form.get(name, FUNCTIONS.get(name))
    activation = made() if form is MODULES and name in MODULES else made
    seen = measure(Net(activation, bias=-1.0), noise(600, 16))
    assert not worst(seen) > 0
    assert kinds(seen) == []


def test_hardshrink_kills_what_stays_near_zero() -> None:
    class Small(Net):
        def __init__(self, activation: Function) -> None:
            super().__init__(activation, bias=0.0)
            with torch.no_grad():
                self.linear.weight[:DEAD] *= 1e-2

    for activation in (nn.Hardshrink(), nn.Softshrink(), F.hardshrink):
        seen = measure(Small(activation), noise(600, 16))
        assert worst(seen) == DEAD / 16
        assert kinds(seen) == ["DEAD"]


class Gated(nn.Module):
    """A gated unit whose gates are shut for some units."""

    def __init__(self, gate: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.head = nn.Linear(16, 32), nn.Linear(16, 3)
        self.gate = gate
        with torch.no_grad():
            self.linear.bias[16 : 16 + DEAD] = -1e3

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.linear(x).chunk(2, -1)
        return self.head(self.gate(value, gate))


@pytest.mark.parametrize(
    "gate",
    [
        lambda value, gate: F.glu(torch.cat([value, gate], -1)),
        lambda value, gate: nn.GLU()(torch.cat([value, gate], -1)),
        lambda value, gate: value * torch.sigmoid(gate),
        lambda value, gate: F.silu(gate) * value,
        lambda value, gate: F.relu(gate) * value,
    ],
    ids=["function", "module", "product", "swiglu", "reglu"],
)
def test_a_gate_that_is_shut_kills_its_unit(gate: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    seen = measure(Gated(gate), noise(600, 16))
    assert worst(seen) == DEAD / 16
    assert kinds(seen) == ["DEAD"]


def test_a_glu_module_kills_units() -> None:
    net = nn.Sequential(nn.Conv2d(3, 32, 1), nn.GLU(dim=1), nn.Conv2d(16, 3, 1))
    with torch.no_grad():
        net[0].bias[16 : 16 + DEAD] = -1e3  # type: ignore[index,union-attr]
    seen = measure(net, noise(600, 3, 4, 4))
    assert worst(seen) == DEAD / 16


def test_channels_of_pictures_die() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.LeakyReLU(0.0), nn.Conv2d(16, 3, 3)
    )
    with torch.no_grad():
        net[1].bias[:DEAD] = -30.0  # type: ignore[index,union-attr]
    seen = measure(net, noise(32, 3, 8, 8))
    assert worst(seen) == DEAD / 16
    assert kinds(seen) == ["DEAD"]


def test_tokens_have_their_units_last() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3))
    with torch.no_grad():
        net[0].bias[:DEAD] = -50.0  # type: ignore[index,union-attr]
    seen = measure(net, noise(64, 10, 8))
    assert worst(seen) == DEAD / 16
    assert kinds(seen) == ["DEAD"]


DESIGNED: dict[str, Function] = {
    "half of the units hidden": lambda x: x * torch.tensor([0.0] * 10 + [1.0] * 6),
    "hidden by where": lambda x: torch.where(torch.arange(16) < DEAD, 0.0, x),
    "dropout": nn.Dropout(0.9),
    "dropout of units": nn.Dropout1d(0.9),
    "layer norm": nn.LayerNorm(16, elementwise_affine=False),
    "batch norm": nn.BatchNorm1d(16, affine=False),
    "identity": nn.Identity(),
    "nothing": lambda x: x,
    "softmax": nn.Softmax(-1),
    "sum of sines": lambda x: x.sin() + x,
}


@pytest.mark.parametrize("name", DESIGNED)
def test_what_is_no_activation_kills_nothing(name: str) -> None:
    seen = measure(Net(DESIGNED[name], bias=0.5), noise(600, 16))
    assert kinds(seen) == []


def test_a_drop_of_the_same_units_for_a_whole_batch_kills_nothing() -> None:
    class FeatureDrop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (torch.arange(16) < 4)

    assert kinds(measure(Net(FeatureDrop()), noise(600, 16))) == []


def test_units_that_are_given_the_same_are_not_dead() -> None:
    """A layer that starts at zero: what follows it has had nothing to work on."""
    net = Net(nn.LeakyReLU(0.1), dead=0)
    nn.init.zeros_(net.linear.weight)
    seen = measure(net, noise(600, 16))
    assert not worst(seen) > 0


def test_saturated_units_are_not_called_dead() -> None:
    for activation in (torch.tanh, nn.Tanh(), torch.sigmoid, nn.Hardtanh(-1, 1), nn.ReLU6()):
        seen = measure(Net(activation, dead=16, bias=40.0), noise(600, 16))
        assert kinds(seen) == ["SATURATED"]


def test_modules_of_no_effect_do_not_water_down_the_share() -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1.0

    net = Net(nn.Sequential(nn.Flatten(), Same(), nn.ReLU()))
    assert worst(measure(net, noise(600, 16))) == DEAD / 16


def test_a_batch_of_one_sample_kills_nothing() -> None:
    for activation in (nn.LeakyReLU(0.1), lambda x: F.leaky_relu_(x, 0.1), nn.GELU()):
        seen = measure(Net(activation, bias=-1.0), noise(1, 16))
        assert not worst(seen) > 0


class Wide(Toy):
    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        return super().training_step((batch[0].repeat(1, 3)[:, :16], batch[1]), batch_idx)


def test_leaky_units_without_a_slope_die_in_training() -> None:
    """Biases of -10 in every layer: the first that dies is the cause."""
    torch.manual_seed(0)
    parts = [part for _ in range(4) for part in (nn.Linear(16, 16), nn.LeakyReLU(0.0))]
    net = nn.Sequential(*parts, nn.Linear(16, 3))
    for part in net:
        if isinstance(part, nn.Linear):
            nn.init.constant_(part.bias, -10.0)
    seen = ActivationMonitor(every_n_steps=1, min_samples=64, on_finding="log")
    fit(Wide(net, batches=16), seen)
    (found,) = seen.findings
    assert (found.kind.value, found.value) == ("DEAD", 1.0)
    assert found.layers[0] == "net.0"
    assert rows(seen.history, "dead")[-1]["net.0"] == 1.0


def test_collapse_waits_until_enough_samples_tell_whether_units_died() -> None:
    """The output of a block whose units all died is constant, and that is not what is wrong."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.narrow(F.relu(self.wide(x)))

    torch.manual_seed(0)
    net = nn.Sequential(*(Block() for _ in range(4)), nn.Linear(16, 3))
    nn.init.constant_(net[1].wide.bias, -50.0)  # type: ignore[arg-type,union-attr]
    seen = ActivationMonitor(every_n_steps=1, min_samples=80, on_finding="log")
    fit(Wide(net, batches=16), seen)
    assert [(found.kind.value, found.layers) for found in seen.findings] == [("DEAD", ("net.1",))]


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16, torch.float64])
def test_units_die_in_every_precision(precision: torch.dtype) -> None:
    net = Net(nn.LeakyReLU(0.0)).to(precision)
    assert kinds(measure(net, noise(600, 16).to(precision))) == ["DEAD"]
