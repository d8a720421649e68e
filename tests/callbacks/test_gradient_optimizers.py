from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from lightning_depth.callbacks import GradientFlowMonitor
from lightning_depth.callbacks._sharding import Sharding
from lightning_depth.callbacks._sources import choose_source
from tests.callbacks.toy import (
    Batch,
    Block,
    Toy,
    assert_equals_reference,
    fit,
    fixed_init,
    make_batches,
    make_net,
    reference,
)


class Adversaries(pl.LightningModule):
    """Two networks that take turns, written out as GANs are."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.first, self.second = make_net(), make_net()
        self.seen: list[tuple[float, float]] = []

    def train_dataloader(self) -> Any:
        return Toy.train_dataloader(self)  # type: ignore[arg-type]

    batches = 3

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        norms = []
        for optimizer, net in zip(self.optimizers(), (self.first, self.second), strict=True):  # type: ignore[arg-type]
            self.toggle_optimizer(optimizer)
            loss = nn.functional.cross_entropy(net(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in net.parameters()]).item())
            optimizer.step()
            self.untoggle_optimizer(optimizer)
            optimizer.zero_grad()
        self.seen.append((norms[0], norms[1]))

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.first.parameters(), lr=0.1),
            torch.optim.SGD(self.second.parameters(), lr=0.2),
        ]


def test_several_optimizers_in_manual_optimization() -> None:
    module = Adversaries()
    monitor = GradientFlowMonitor(every_n_steps=1)
    trainer = fit(module, monitor)
    totals = monitor.totals
    assert [list(row) for row in zip(totals["step"], totals["optimizer"], strict=True)] == [
        [step, name] for step in range(3) for name in ("first", "second")
    ]
    assert totals["norm"] == pytest.approx([norm for pair in module.seen for norm in pair])
    places = zip(monitor.history["optimizer"], monitor.history["layer"], strict=True)
    assert all(layer.startswith(name) for name, layer in places)
    assert all(math.isfinite(update) for update in monitor.history["update_to_weight"])
    assert {"grad_flow/norm/first", "grad_flow/norm/second"} <= set(trainer.callback_metrics)
    assert monitor.findings == []


def test_lbfgs_gives_one_record_a_step() -> None:
    def lbfgs(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)

    monitor = GradientFlowMonitor(every_n_steps=1)
    fit(Toy(optimizer=lbfgs), monitor)
    assert monitor.totals["step"] == [0, 1, 2, 3]
    (seen,) = reference(make_net(), [make_batches(1)])
    assert monitor.totals["norm"][0] == pytest.approx(seen["norm"], rel=1e-5)
    assert all(update > 0 for update in monitor.totals["update_to_weight"])


def test_a_training_step_that_returns_none_leaves_no_record() -> None:
    class Skipping(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    monitor = GradientFlowMonitor(every_n_steps=1)
    with pytest.warns(UserWarning, match="`training_step` returned `None`"):
        fit(Skipping(), monitor)
    assert monitor.totals["step"] == [0, 2, 3]
    assert monitor.findings == []


def test_a_run_without_any_gradient_is_told_once_and_gives_no_zeros() -> None:
    class Silent(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> None:
            return None

    monitor = GradientFlowMonitor(every_n_steps=1)
    with pytest.warns(UserWarning, match="found no gradient") as caught:
        fit(Silent(batches=5), monitor)
    told = [str(w.message) for w in caught if "found no gradient" in str(w.message)]
    assert told == [
        "GradientFlowMonitor found no gradient in 3 steps: either SingleDeviceStrategy keeps them "
        "to itself or `training_step` returns None. Gradient flow is not measured until there is "
        "one."
    ]
    assert (monitor.totals, monitor.findings) == ({}, [])


class Odd(nn.Module):
    """A network with every kind of parameter that a monitor may stumble over."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 6, sparse=True)
        self.lazy = nn.LazyLinear(6)
        self.blocks = nn.ModuleList(Block(6, nn.Tanh()) for _ in range(3))
        self.phase = nn.Parameter(torch.full((2, 6), 0.5 + 0.5j))
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.codes = nn.Parameter(torch.arange(4), requires_grad=False)
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(6, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.lazy(x) + nn.functional.embedding(x[:, 0].long().clamp(0, 4), self.head.weight)
        for block in self.blocks:
            x = block(x)
        return (self.head(x) + self.phase.abs().sum() + self.empty.sum())[:, :3]


def test_parameters_of_every_kind() -> None:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(list(parameters), lr=0.01)

    net = Odd()
    seen: list[float] = []

    class Seen(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            seen.append(math.sqrt(sum(float((g.abs() ** 2).sum()) for g in grads)))

    monitor = GradientFlowMonitor(every_n_steps=1, on_finding="log")
    fit(Toy(net, optimizer), monitor, Seen())
    assert monitor.totals["norm"] == pytest.approx(seen, rel=1e-5)
    (finding,) = monitor.findings
    assert finding.kind.value == "NO_GRADIENT"
    assert finding.layers == ("net.unused",)
    assert "net.unused.weight, net.unused.bias" in finding.message


def test_sparse_gradients_are_summed_over_repeated_rows() -> None:
    class Words(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            rows = self.net[0](torch.tensor([1, 1, 3]))
            return nn.functional.cross_entropy(self.net[1](rows), torch.tensor([0, 1, 2]))

    net = nn.Sequential(nn.Embedding(5, 6, sparse=True), nn.Linear(6, 3))
    fixed_init(net)
    dense = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 3))
    dense.load_state_dict(net.state_dict())
    Words.training_step(SimpleNamespace(net=dense), (torch.empty(0), torch.empty(0)), 0).backward()  # type: ignore[arg-type]
    monitor = GradientFlowMonitor(every_n_steps=1)
    fit(Words(net, batches=1), monitor)
    wanted = dense[0].weight.grad.square().mean().sqrt().item()
    assert monitor.history["grad_rms"][0] == pytest.approx(wanted, rel=1e-5)


def test_execution_order_is_depth() -> None:
    class Backward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block(6, nn.Tanh()) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for block in reversed(self.blocks):
                x = block(x)
            return x

    monitor = GradientFlowMonitor(every_n_steps=1)
    module = Toy(Backward(), batches=1)
    fit(module, monitor)
    assert monitor.history["layer"] == [f"net.blocks.{place}" for place in (3, 2, 1, 0)]
    assert not any(part._forward_pre_hooks for part in module.modules())


# torch.compile itself looks at `.grad` of what flows into a compiled submodule
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("way", ["module", "submodule", "in place"])
def test_compiled(way: str) -> None:
    net = make_net()
    module: Any = Toy(net)
    if way == "module":
        module = torch.compile(module, backend="eager")
    elif way == "submodule":
        module.net[2] = torch.compile(net[2], backend="eager")
    else:
        module.net.compile(backend="eager")
    monitor = GradientFlowMonitor(every_n_steps=1)
    fit(module, monitor)
    assert_equals_reference(
        monitor, list(reference(make_net(), [[batch] for batch in make_batches()]))
    )


def deepspeed(trainer: Any, **engine: Any) -> Any:
    class DeepSpeedStrategy:
        model = SimpleNamespace(
            fp16_enabled=lambda: engine.get("fp16", False),
            is_gradient_accumulation_boundary=lambda: engine.get("boundary", True),
        )

    return SimpleNamespace(strategy=DeepSpeedStrategy())


def test_deepspeed_without_a_way_in_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "deepspeed.utils", raising=False)
    assert choose_source(deepspeed(None)) == "this version has no `safe_get_full_grad`"


def test_deepspeed_with_its_own_scaling_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    access = SimpleNamespace(safe_get_full_grad=None, safe_get_full_fp32_param=None)
    access.safe_get_full_grad = access.safe_get_full_fp32_param = lambda parameter: parameter
    monkeypatch.setitem(sys.modules, "deepspeed.utils", access)  # type: ignore[arg-type]
    reason = choose_source(deepspeed(None, fp16=True))
    assert isinstance(reason, str)
    assert reason.startswith("with its own loss scaling")


def test_deepspeed_is_read_through_its_own_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    access = SimpleNamespace(
        safe_get_full_grad=lambda parameter: parameter.hidden,
        safe_get_full_fp32_param=lambda parameter: parameter * 2,
    )
    monkeypatch.setitem(sys.modules, "deepspeed.utils", access)  # type: ignore[arg-type]
    source = choose_source(deepspeed(None, boundary=False))
    assert not isinstance(source, str)
    parameter: Any = nn.Parameter(torch.ones(2))
    parameter.hidden = torch.zeros(2)
    assert source.gradient(parameter) is parameter.hidden
    assert source.weight(parameter).tolist() == [2.0, 2.0]  # type: ignore[union-attr]
    assert (source.is_ready(), source.in_place) == (False, False)


def test_a_partitioned_parameter_has_the_shape_of_the_whole() -> None:
    parameter: Any = nn.Parameter(torch.empty(0))
    parameter.ds_shape = torch.Size([3, 4])
    assert Sharding().shape(parameter) == (3, 4)


def test_a_strategy_that_hides_gradients_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "lightning_depth.callbacks.gradient_flow.choose_source", lambda trainer: "it is closed"
    )
    monitor = GradientFlowMonitor(every_n_steps=1)
    message = (
        r"^GradientFlowMonitor measures nothing in this run because DeepSpeed keeps the gradients "
        r"to itself, and it is closed\.$"
    )
    with pytest.warns(UserWarning, match=message):
        fit(Toy(), monitor)
    assert (monitor.totals, monitor.findings) == ({}, [])
    told = "measured nothing: DeepSpeed keeps the gradients to itself, and it is closed."
    assert told in " ".join(capsys.readouterr().out.replace("|", " ").split())
