from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from lightning_depth.callbacks import GradientFlowMonitor
from lightning_depth.callbacks._norms import Norms, exact_norms, local_part
from tests.callbacks.toy import (
    BLOCKS,
    Batch,
    Toy,
    assert_equals_reference,
    fit,
    make_batches,
    make_net,
    reference,
)

CPU = torch.device("cpu")
HALF = 0.05  # half precision keeps three digits, and sums of products lose some of them


def expected(optimizer: Any = None) -> list[dict[str, float]]:
    options = {} if optimizer is None else {"optimizer": optimizer}
    return list(reference(make_net(), [[batch] for batch in make_batches()], **options))


def scaled(init_scale: float = 2.0**16) -> dict[str, Any]:
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


def fused(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2, fused=True)


def test_grad_scaler() -> None:
    monitor = GradientFlowMonitor(every_n_steps=1)
    fit(Toy(), monitor, **scaled(2.0**12))
    assert monitor.totals["skipped"] == [False] * 4
    assert_equals_reference(monitor, expected(), rel=HALF)


def test_fused_optimizer_is_unscaled_by_the_monitor() -> None:
    monitor = GradientFlowMonitor(every_n_steps=1)
    fit(Toy(optimizer=fused), monitor, **scaled(2.0**12))
    assert_equals_reference(monitor, expected(fused), rel=HALF)


def test_skipped_steps_are_counted_apart_and_are_no_finding() -> None:
    monitor = GradientFlowMonitor(every_n_steps=1)
    trainer = fit(Toy(batches=12), monitor, **scaled(2.0**22))
    skipped = monitor.totals["skipped"]
    assert skipped[:4] == [True] * 4
    assert not any(skipped[-3:])
    assert trainer.callback_metrics["grad_flow/skipped"] == sum(skipped)
    assert monitor.findings == []


def test_a_skipped_step_changes_nothing() -> None:
    monitor = GradientFlowMonitor(every_n_steps=1)
    fit(Toy(), monitor, **scaled(2.0**40))
    assert monitor.totals["skipped"] == [True] * 4
    assert all(math.isnan(update) for update in monitor.history["update_to_weight"])


def test_a_scaler_that_finds_no_scale_is_a_finding() -> None:
    class Overflowing(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            return self.net(batch[0] * 1e30).float().sum()

    monitor = GradientFlowMonitor(every_n_steps=1, on_finding="log")
    fit(Overflowing(batches=22), monitor, **scaled(2.0**16))
    (finding,) = monitor.findings
    assert finding.kind.value == "NON_FINITE"
    assert "and the loss scale fell to" in finding.message


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true"])
def test_half_precision(precision: str) -> None:
    monitor = GradientFlowMonitor(every_n_steps=1)

    class Casting(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
            dtype = next(self.parameters()).dtype
            return super().training_step((batch[0].to(dtype), batch[1]), batch_idx)

    fit(Casting(batches=1), monitor, precision=precision)
    (seen,) = list(reference(make_net(), [make_batches(1)]))
    assert monitor.totals["norm"] == pytest.approx([seen["norm"]], rel=HALF)
    for layer, path in BLOCKS.items():
        place = monitor.history["layer"].index(layer)
        assert monitor.history["grad_rms"][place] == pytest.approx(
            seen[f"grad/{path}.weight"], rel=HALF
        )


@pytest.mark.parametrize("size", [1e30, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_beyond_the_square_survive(size: float, dtype: torch.dtype) -> None:
    class Sized(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            return (self.net[0].weight * size).sum()

    monitor = GradientFlowMonitor(every_n_steps=1, include="net.0", on_finding="log")
    net = make_net().to(dtype)
    fit(Sized(net, batches=1), monitor)
    one = torch.tensor(size, dtype=dtype).item()
    assert monitor.history["grad_rms"] == pytest.approx([one], rel=1e-5)
    assert monitor.totals["norm"] == pytest.approx([one * 6], rel=1e-5)
    assert monitor.history["nonfinite"] == [0]


def test_non_finite_elements_are_counted() -> None:
    values = torch.tensor([1.0, math.nan, math.inf, -math.inf])
    norms = exact_norms(CPU, [torch.ones(3), values]).read().to_list()
    assert norms[0] == pytest.approx(math.sqrt(3))
    assert norms[2:] == pytest.approx([0.0, math.sqrt(3)])


def sparse_rows() -> Tensor:
    rows = [[1.0, 4.0], [2.0, 0.0]]
    return torch.sparse_coo_tensor([[1, 1]], rows, (4, 2), check_invariants=True)


@pytest.mark.parametrize(
    ("tensor", "norm"),
    [
        (torch.empty(0, 3), 0.0),
        (torch.tensor([3.0 + 4.0j]), 5.0),
        (torch.tensor([3.0, 4.0], dtype=torch.float16), 5.0),
        (torch.tensor([3.0, 4.0], dtype=torch.float64), 5.0),
        # two entries of one row add up to (3, 4)
        (sparse_rows(), 5.0),
        (None, None),
    ],
    ids=["empty", "complex", "half", "double", "sparse", "none"],
)
def test_norms_of_every_kind_of_tensor(tensor: Tensor | None, norm: float | None) -> None:
    norms = Norms(CPU)
    norms.add([torch.tensor([2.0]), local_part(tensor), torch.tensor([1.0])])
    assert norms.read().to_list() == [2.0, norm, 1.0]


def test_norms_of_nothing() -> None:
    assert Norms(CPU).read().to_list() == []


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_sizes_beyond_the_square_survive_clipping_and_at_the_outputs(size: float) -> None:
    class Sized(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            assert loss is not None
            return loss * size

    def run(module: Toy) -> GradientFlowMonitor:
        monitor = GradientFlowMonitor(every_n_steps=1, signal="activations", on_finding=ignore)
        clip = {"gradient_clip_val": 1e30, "gradient_clip_algorithm": "value"}
        fit(module, monitor, **clip)
        return monitor

    def still(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.0)

    plain, sized = run(Toy(optimizer=still)), run(Sized(optimizer=still))
    assert sized.totals["clipped_norm"] == pytest.approx(sized.totals["norm"], rel=1e-6)
    assert sized.totals["clipped_fraction"][-1] == 0.0
    expected = [value * size for value in plain.history["output_grad_rms"]]
    assert sized.history["output_grad_rms"] == pytest.approx(expected, rel=1e-4)


def ignore(finding: Any) -> None:
    """A finding is not what is looked at here."""
