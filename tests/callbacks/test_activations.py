from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_depth.callbacks import (
    ActivationMonitor,
    FindingWarning,
    measure_activations,
    measure_gradients,
)
from lightning_depth.errors import ConfigurationError, MisuseError
from tests.callbacks.toy import Batch, Block, Toy, fit, make_batches, make_net, rows


def monitor(**options: Any) -> ActivationMonitor:
    return ActivationMonitor(**{"every_n_steps": 1, "min_samples": 8, **options})


class Functional(nn.Module):
    """Activations written as functions, as many projects do."""

    def __init__(self, activation: Any = torch.relu) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, 3)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.head(F.dropout(x, 0.0))


def silence(layer: nn.Linear, units: int) -> None:
    with torch.no_grad():
        layer.bias[:units] = -1e3
        layer.bias[units:] = 9.0  # the others live


def test_dead_units_are_counted_by_layer() -> None:
    net = make_net(activation=nn.ReLU)
    silence(net[2].linear, 4)  # type: ignore[arg-type,union-attr]
    seen = monitor(on_finding="log")
    fit(Toy(net), seen)
    assert rows(seen.history, "dead")[-1]["net.2"] == pytest.approx(4 / 6)


def test_a_net_with_half_of_its_activations_zero_has_no_dead_unit() -> None:
    class Mirror(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block(6, nn.ReLU()) for _ in range(3))
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([x, -x])  # what one sample silences its mirror image excites
            for block in self.blocks:
                block.linear.weight.data = torch.eye(6)
                block.linear.bias.data = torch.zeros(6)
                x = block(x) - block(-x)
            return self.head(x[: len(x) // 2])

    seen = monitor()
    fit(Toy(Mirror()), seen)
    assert set(seen.history["dead"]) - {math.nan} >= {0.0}
    assert all(value == 0.0 or math.isnan(value) for value in seen.history["dead"])


def test_a_unit_is_not_judged_on_fewer_samples_than_asked_for() -> None:
    seen = monitor(min_samples=20)
    fit(Toy(make_net(activation=nn.ReLU)), seen)
    judged = [not math.isnan(row["net.1"]) for row in rows(seen.history, "dead")]
    assert judged == [False, False, True, True]


def test_functions_are_found_without_modules() -> None:
    net = Functional()
    silence(net.layers[1], 3)  # type: ignore[arg-type]
    seen = monitor(on_finding="log")
    fit(Toy(net), seen)
    dead = rows(seen.history, "dead")[-1]
    assert dead["net.layers.1"] == pytest.approx(3 / 6)
    assert math.isnan(dead["net.head"])


@pytest.mark.parametrize("activation", [torch.tanh, torch.sigmoid], ids=["tanh", "sigmoid"])
def test_saturation_of_functions_is_found(activation: Any) -> None:
    net = Functional(activation)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(200)
    seen = monitor()
    with pytest.warns(FindingWarning, match="SATURATED"):
        fit(Toy(net), seen)
    assert seen.findings[0].kind.value == "SATURATED"


def test_relu_and_linear_layers_do_not_saturate() -> None:
    seen = monitor(on_finding="log")
    fit(Toy(make_net(activation=nn.ReLU)), seen)
    assert all(math.isnan(value) for value in seen.history["saturated"])


def test_rms_and_rank_equal_a_pass_by_hand() -> None:
    from lightning_depth.functional.rank import effective_rank

    ((x, _),) = make_batches(1)
    wanted_rms, wanted_rank = [], []
    for part in make_net():
        x = part(x)
        wanted_rms.append(x.square().mean().sqrt().item())
        wanted_rank.append(effective_rank(x.detach()).item())
    seen = monitor()
    fit(Toy(batches=1), seen)
    assert seen.history["rms"] == pytest.approx(wanted_rms, rel=1e-5)
    assert seen.history["effective_rank"] == pytest.approx(wanted_rank, rel=5e-3)


def test_a_constant_layer_is_collapsed() -> None:
    net = nn.Sequential(*(Block(16, nn.Tanh()) for _ in range(4)), nn.Linear(16, 3))
    with torch.no_grad():
        net[1].linear.weight.zero_()  # type: ignore[union-attr,operator]
    net.requires_grad_(False)
    net[-1].requires_grad_(True)

    class Wide(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return super().training_step((batch[0].repeat(1, 3)[:, :16], batch[1]), batch_idx)

    seen = monitor(on_finding="log")
    fit(Wide(net), seen)
    assert seen.findings[0].kind.value == "COLLAPSED"
    assert seen.findings[0].layers[0] == "net.1"
    assert seen.findings[0].value < seen.findings[0].threshold


def test_a_layer_that_runs_twice_in_a_step_is_one_layer() -> None:
    class Views(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            first, second = self.net(batch[0]), self.net(-batch[0])
            return F.cross_entropy(first + second, batch[1])

    net = make_net(activation=nn.ReLU)
    seen = monitor()
    fit(Views(net), seen)
    assert seen.history["layer"] == [f"net.{place}" for place in range(6)] * 4


def test_recomputed_activations_are_not_counted() -> None:
    class Checkpointed(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            hidden = checkpoint(self.net[:-1], batch[0], use_reentrant=False)  # type: ignore[index]
            return F.cross_entropy(self.net[-1](hidden), batch[1])  # type: ignore[index,operator]

    plain, again = monitor(), monitor()
    fit(Toy(make_net(activation=nn.ReLU)), plain)
    fit(Checkpointed(make_net(activation=nn.ReLU)), again)
    assert again.history["rms"] == plain.history["rms"]
    assert rows(again.history, "dead")[-1]["net.2"] == rows(plain.history, "dead")[-1]["net.2"]


def test_images_have_their_units_along_the_channels() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    with torch.no_grad():
        net[0].bias[0] = -1e3  # type: ignore[index,union-attr]
    seen = measure_activations(net, lambda: net(torch.randn(4, 1, 8, 8)))
    assert next(row["dead"] for row in seen.layers) == 0.25


def test_compiled_models_are_told_of() -> None:
    module = Toy()
    module.net.compile(backend="eager")
    with pytest.warns(UserWarning, match=r"^ActivationMonitor measures nothing in this run"):
        fit(module, monitor())


def test_scalars_are_the_worst_of_the_layers() -> None:
    seen = monitor(log_layers=True)
    trainer = fit(Toy(make_net(activation=nn.ReLU)), seen)
    worst = max(value for value in seen.history["dead"][-6:] if not math.isnan(value))
    assert trainer.callback_metrics["activations/dead"] == pytest.approx(worst)
    assert "activations/dead/net.1" in trainer.callback_metrics


def test_plot_shows_depth_and_step() -> None:
    seen = monitor()
    fit(Toy(), seen)
    _, axes = seen.plot()
    assert axes.collections[0].get_array().shape == (6, 4)


@pytest.mark.parametrize("argument", ["every_n_steps", "patience", "min_samples"])
def test_counts_are_checked(argument: str) -> None:
    message = rf"^`{argument}` must be a whole number of at least 1, but got 0\.$"
    with pytest.raises(ConfigurationError, match=message):
        ActivationMonitor(**{argument: 0})  # type: ignore[arg-type]


def test_a_snapshot_needs_a_gradient() -> None:
    with pytest.raises(
        MisuseError, match=r"^No parameter has a gradient: call `backward` on a loss first\.$"
    ):
        measure_gradients(make_net())


def test_a_snapshot_leaves_no_hooks_after_an_error() -> None:
    net = make_net()

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure_activations(net, fail)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
