"""Activations that two processes share, held against one process on the union of their batches."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import nn

from lightning_depth.callbacks import ActivationMonitor
from tests.callbacks.toy import Toy, fit, make_net, rows


class Leave(Checkpoint):
    """Ends the process group in order; gloo may abort at exit otherwise. Runs as the last one."""

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def measure(net: nn.Module, **options: Any) -> ActivationMonitor:
    monitor = ActivationMonitor(every_n_steps=1, min_samples=8, on_finding="log")
    fit(Toy(net), monitor, Leave() if options else pl.Callback(), **options)
    return monitor


def in_two_processes(net: nn.Module, strategy: str) -> ActivationMonitor:
    return measure(
        net,
        strategy=strategy,
        devices=2,
        use_distributed_sampler=False,
        enable_checkpointing=True,
    )


START_METHODS = ["ddp_fork", pytest.param("ddp_spawn", marks=pytest.mark.slow)]


@pytest.mark.parametrize("strategy", START_METHODS)
@pytest.mark.parametrize(
    ("activation", "columns"),
    [(nn.ReLU, ("dead", "dormant", "rms")), (nn.Tanh, ("saturated", "rms"))],
    ids=["relu", "tanh"],
)
def test_two_processes_measure_the_union_of_their_batches(
    strategy: str, activation: type[nn.Module], columns: tuple[str, ...]
) -> None:
    def net() -> nn.Module:
        net = make_net(activation=activation)
        with torch.no_grad():
            for block in net[1:5]:
                block.linear.weight.mul_(3)  # type: ignore[union-attr,operator]
        return net

    alone, together = measure(net()), in_two_processes(net(), strategy)
    for column in columns:
        wanted, seen = rows(alone.history, column), rows(together.history, column)
        assert len(seen) == len(wanted) == 4
        for one, other in zip(seen, wanted, strict=True):
            assert one == pytest.approx(other, rel=1e-4, nan_ok=True)
        assert any(value > 0 for row in seen for value in row.values())


@pytest.mark.parametrize("strategy", START_METHODS)
def test_script_is_told_of_dead_units_as_if_it_had_one_process(strategy: str) -> None:
    def net() -> nn.Module:
        net = make_net(activation=nn.ReLU)
        with torch.no_grad():
            net[2].linear.bias[:4] = -1e3  # type: ignore[union-attr,index,operator]
        return net

    wanted = [finding.to_dict() for finding in measure(net()).findings]
    assert ("DEAD", "net.2") in {(told["kind"], told["layers"][0]) for told in wanted}
    seen = [finding.to_dict() for finding in in_two_processes(net(), strategy).findings]
    assert [told.pop("value") for told in seen] == pytest.approx(
        [told.pop("value") for told in wanted], rel=1e-4
    )
    assert seen == wanted
