from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_depth.callbacks import (
    FindingError,
    FindingWarning,
    GradientFlowMonitor,
    measure_gradients,
)
from lightning_depth.errors import ConfigurationError, MisuseError
from lightning_depth.findings import FindingKind
from tests.callbacks.toy import (
    BLOCKS,
    Batch,
    Toy,
    assert_equals_reference,
    fit,
    make_batches,
    make_net,
    reference,
    rows,
)

EVERY = 1


def test_numbers_equal_a_loop_without_lightning() -> None:
    monitor = GradientFlowMonitor(every_n_steps=EVERY)
    fit(Toy(), monitor)
    assert_equals_reference(monitor, list(reference(make_net(), [[b] for b in make_batches()])))


def test_momentum_and_decay_are_in_the_update() -> None:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)

    monitor = GradientFlowMonitor(every_n_steps=EVERY)
    fit(Toy(optimizer=optimizer), monitor)
    batches = [[batch] for batch in make_batches()]
    assert_equals_reference(monitor, list(reference(make_net(), batches, optimizer)))


def test_accumulation_with_a_short_last_window() -> None:
    monitor = GradientFlowMonitor(every_n_steps=EVERY)
    fit(Toy(batches=5), monitor, accumulate_grad_batches=2)
    batches = make_batches(5)
    windows = [batches[:2], batches[2:4], batches[4:]]
    assert monitor.totals["step"] == [0, 1, 2]
    assert_equals_reference(monitor, list(reference(make_net(), windows, divisor=2)))


def test_first_steps_then_every_n(tmp_path: Any) -> None:
    monitor = GradientFlowMonitor(every_n_steps=5, patience=2)
    fit(Toy(batches=17), monitor)
    assert monitor.totals["step"] == [0, 1, 2, 4, 9, 14, 16]


def test_default_pace_is_that_of_the_logger() -> None:
    monitor = GradientFlowMonitor(patience=1)
    fit(Toy(batches=9), monitor, log_every_n_steps=4)
    assert monitor.totals["step"] == [0, 1, 3, 7, 8]


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_norm_after_clipping_is_that_of_the_gradient_that_was_used(algorithm: str) -> None:
    after: list[float] = []

    class Seen(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            grads = [p.grad for p in pl_module.parameters()]
            after.append(math.sqrt(sum(g.double().square().sum() for g in grads)))

    monitor = GradientFlowMonitor(every_n_steps=EVERY)
    fit(Toy(), monitor, Seen(), gradient_clip_val=0.02, gradient_clip_algorithm=algorithm)
    assert monitor.totals["clipped_norm"] == pytest.approx(after, rel=1e-5)
    assert all(a < b for a, b in zip(after, monitor.totals["norm"], strict=True))
    assert monitor.totals["clipped_fraction"][-1] == 1.0


def test_clipping_of_the_users_own_is_measured() -> None:
    class Halving(Toy):
        def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            for parameter in self.parameters():
                parameter.grad.mul_(0.5)  # type: ignore[union-attr]

    monitor = GradientFlowMonitor(every_n_steps=EVERY, update_ratio=False)
    fit(Halving(), monitor)
    halved = [norm / 2 for norm in monitor.totals["norm"]]
    assert monitor.totals["clipped_norm"] == pytest.approx(halved, rel=1e-6)


def test_without_clipping_both_norms_are_one() -> None:
    monitor = GradientFlowMonitor(every_n_steps=EVERY)
    fit(Toy(), monitor)
    assert monitor.totals["clipped_norm"] == monitor.totals["norm"]
    assert monitor.totals["clipped_fraction"] == [0.0] * 4


def test_update_ratio_can_be_left_out() -> None:
    monitor = GradientFlowMonitor(every_n_steps=EVERY, update_ratio=False)
    trainer = fit(Toy(), monitor)
    assert all(math.isnan(value) for value in monitor.history["update_to_weight"])
    assert "grad_flow/update_to_weight" not in trainer.callback_metrics


def test_scalars_are_few_and_named() -> None:
    trainer = fit(Toy(), GradientFlowMonitor(every_n_steps=EVERY), gradient_clip_val=1.0)
    assert sorted(trainer.callback_metrics) == [
        f"grad_flow/{key}"
        for key in (
            "clipped_fraction",
            "clipped_norm",
            "first_to_last",
            "nonfinite",
            "norm",
            "shrink_per_layer",
            "update_to_weight",
        )
    ]


def test_rows_of_the_logger_hold_fresh_measurements(tmp_path: Path) -> None:
    monitor = GradientFlowMonitor(patience=1)
    logger = CSVLogger(tmp_path)
    fit(Toy(batches=9), monitor, logger=logger, log_every_n_steps=4)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        written = {int(row["step"]): float(row["grad_flow/norm"]) for row in csv.DictReader(file)}
    norms = dict(zip(monitor.totals["step"], monitor.totals["norm"], strict=True))
    assert sorted(written) == [3, 7, 8]
    assert [written[3], written[7], written[8]] == pytest.approx([norms[3], norms[7], norms[8]])


def test_layers_are_logged_on_request() -> None:
    monitor = GradientFlowMonitor(
        include=["net.[12]"], every_n_steps=EVERY, log_layers=True, prefix="flow"
    )
    trainer = fit(Toy(), monitor)
    assert "flow/grad_to_weight/net.1" in trainer.callback_metrics
    assert set(monitor.history["layer"]) == {"net.1", "net.2"}


def test_the_total_norm_covers_layers_that_are_not_watched() -> None:
    monitor = GradientFlowMonitor(exclude="net.5", every_n_steps=EVERY)
    fit(Toy(batches=1), monitor)
    (expected,) = reference(make_net(), [make_batches(1)])
    assert monitor.totals["norm"] == pytest.approx([expected["norm"]], rel=1e-5)


def sigmoid_net() -> nn.Sequential:
    return make_net(depth=12, activation=nn.Sigmoid)


def test_sigmoids_vanish() -> None:
    monitor = GradientFlowMonitor(every_n_steps=EVERY)
    with pytest.warns(FindingWarning, match="VANISHING: The gradient, held against the weights"):
        fit(Toy(sigmoid_net()), monitor)
    (finding,) = monitor.findings
    assert finding.kind is FindingKind.VANISHING
    assert (finding.step, finding.layers[0]) == (
        0,
        "net.0" if "net.0" in finding.layers else "net.1",
    )


def test_nothing_is_found_in_a_healthy_net() -> None:
    monitor = GradientFlowMonitor(every_n_steps=EVERY)
    fit(Toy(batches=8), monitor)
    assert monitor.findings == []


def test_a_finding_waits_for_patience() -> None:
    monitor = GradientFlowMonitor(every_n_steps=EVERY, patience=5)
    fit(Toy(sigmoid_net(), batches=4), monitor)
    assert monitor.findings == []


def test_stop_ends_training() -> None:
    monitor = GradientFlowMonitor(every_n_steps=EVERY, on_finding="stop")
    trainer = fit(Toy(sigmoid_net(), batches=9), monitor)
    assert trainer.global_step == 3


def test_raise_ends_with_an_error() -> None:
    monitor = GradientFlowMonitor(every_n_steps=EVERY, on_finding="raise")
    with pytest.raises(FindingError, match="VANISHING"):
        fit(Toy(sigmoid_net()), monitor)
    assert [finding.kind.value for finding in monitor.findings] == ["VANISHING"]


def test_nan_names_the_step_and_the_layer_it_comes_from() -> None:
    class Poison(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                x.register_hook(lambda grad: grad * math.nan)
            return x

    net = make_net()
    net[3] = nn.Sequential(Poison(), net[3])
    monitor = GradientFlowMonitor(every_n_steps=EVERY, on_finding="log", granularity="leaf")
    fit(Toy(net), monitor)
    finding = monitor.findings[0]
    assert (finding.kind, finding.step) == (FindingKind.NON_FINITE, 0)
    assert finding.layers == ("net.0", "net.1.linear", "net.2.linear")
    assert "it comes from net.2.linear and goes on toward the input" in finding.message
    assert finding.value == 3 * (36 + 6)


def test_a_nan_at_the_last_step_is_found_without_waiting() -> None:
    class Late(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            assert loss is not None
            return loss * (math.nan if batch_idx == 3 else 1.0)

    monitor = GradientFlowMonitor(every_n_steps=EVERY)
    fit(Late(), monitor)
    (finding,) = monitor.findings
    assert (finding.kind, finding.step) == (FindingKind.NON_FINITE, 3)
    assert "so the loss itself is not finite" in finding.message


def test_detached_parameters_are_named() -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    net = make_net()
    net[2] = nn.Sequential(net[2], Cut())
    monitor = GradientFlowMonitor(every_n_steps=EVERY, on_finding="log", granularity="leaf")
    fit(Toy(net), monitor)
    finding = monitor.findings[0]
    assert finding.kind is FindingKind.NO_GRADIENT
    assert finding.layers == ("net.0", "net.1.linear", "net.2.0.linear")
    assert "net.0.weight, net.0.bias, net.1.linear.weight and 3 more" in finding.message


def test_frozen_parameters_are_no_finding() -> None:
    net = make_net()
    net[0].requires_grad_(False)
    net[1].requires_grad_(False)
    monitor = GradientFlowMonitor(every_n_steps=EVERY)
    fit(Toy(net), monitor)
    assert monitor.findings == []
    assert math.isnan(rows(monitor.history, "grad_rms")[0]["net.0"])


def test_reading_needs_a_run() -> None:
    with pytest.raises(
        MisuseError, match=r"^`GradientFlowMonitor.totals` cannot be read because no run"
    ):
        _ = GradientFlowMonitor().totals


@pytest.mark.parametrize("argument", ["every_n_steps", "patience"])
def test_counts_are_checked(argument: str) -> None:
    message = rf"^`{argument}` must be a whole number of at least 1, but got 0\.$"
    with pytest.raises(ConfigurationError, match=message):
        GradientFlowMonitor(**{argument: 0})  # type: ignore[arg-type]


def test_a_pattern_that_matches_nothing_is_told_before_training() -> None:
    with pytest.raises(ConfigurationError, match=r"'net\.9' matches none"):
        fit(Toy(), GradientFlowMonitor(include="net.9"))


def test_plot_shows_depth_and_step() -> None:
    monitor = GradientFlowMonitor(every_n_steps=EVERY)
    fit(Toy(), monitor)
    _, axes = monitor.plot()
    assert [text.get_text() for text in axes.get_yticklabels()] == list(BLOCKS)
    assert axes.collections[0].get_array().shape == (6, 4)


@pytest.mark.parametrize(
    ("signal", "column"), [("weights", "grad_to_weight"), ("activations", "output_grad_rms")]
)
def test_plot_shows_what_findings_are_about(signal: Any, column: str) -> None:
    monitor = GradientFlowMonitor(every_n_steps=EVERY, signal=signal)
    fit(Toy(), monitor)
    _, axes = monitor.plot()
    drawn = axes.collections[0].get_array()
    wanted = np.array(monitor.history[column]).reshape(4, 6).T
    np.testing.assert_allclose(drawn, wanted / np.median(wanted, axis=0))  # over the step's median


def test_gradients_of_outputs_equal_autograd() -> None:
    monitor = GradientFlowMonitor(every_n_steps=1, signal="activations")
    module = Toy(batches=1)
    ((x, y),) = make_batches(1)
    outputs = [x]
    net = make_net()
    for part in net:
        outputs.append(part(outputs[-1]))
        outputs[-1].retain_grad()
    nn.functional.cross_entropy(outputs[-1], y).backward()
    fit(module, monitor)
    wanted = [output.grad.square().mean().sqrt().item() for output in outputs[1:]]  # type: ignore[union-attr]
    assert monitor.history["output_grad_rms"] == pytest.approx(wanted, rel=1e-5)
    assert not any(part._forward_hooks for part in module.modules())


def test_gradients_of_outputs_survive_activations_in_place() -> None:
    net = make_net(activation=lambda: nn.ReLU(inplace=True))
    monitor = GradientFlowMonitor(every_n_steps=2, patience=1, signal="activations")
    fit(Toy(net, batches=6), monitor)
    assert all(value > 0 for value in monitor.history["output_grad_rms"])


def test_signal_is_checked() -> None:
    message = r"^`signal` must be one of 'weights', 'activations', but got 'weight'\."
    with pytest.raises(ConfigurationError, match=message):
        GradientFlowMonitor(signal="weight")  # type: ignore[arg-type]


class Scaled(nn.Module):
    """A residual branch times a factor that starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.factor = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * self.linear(x)


def test_a_branch_that_starts_at_zero_is_not_cut_off() -> None:
    net = nn.Sequential(nn.Linear(6, 6), *(Scaled(6) for _ in range(6)), nn.Linear(6, 3))
    cross_entropy(net(torch.randn(8, 6)), torch.zeros(8, dtype=torch.long)).backward()
    seen = measure_gradients(net)
    assert [row["grad_rms"] for row in seen.layers[1:-1]] == [0.0] * 6
    assert seen.findings == ()


def test_a_layer_without_any_gradient_is_cut_off() -> None:
    net = nn.Sequential(nn.Linear(6, 6), *(Scaled(6) for _ in range(6)), nn.Linear(6, 3))
    with torch.no_grad():
        net[-1].weight.zero_()  # type: ignore[union-attr,operator]
    cross_entropy(net(torch.randn(8, 6)), torch.zeros(8, dtype=torch.long)).backward()
    assert [finding.kind for finding in measure_gradients(net).findings] == [FindingKind.VANISHING]
