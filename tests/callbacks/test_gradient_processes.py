"""Gradients that two processes share, held against one process in float32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers.multiprocessing import (
    _MultiProcessingLauncher,
    _WorkerOutput,
)
from torch import Tensor, nn

from lightning_depth.callbacks import GradientFlowMonitor
from tests.callbacks.test_gradient_precision import HALF, fused, scaled
from tests.callbacks.toy import (
    BLOCKS,
    MakeOptimizer,
    Toy,
    compare,
    fit,
    fixed_init,
    make_batches,
    make_net,
    reference,
    sgd,
)


def summary(monitor: GradientFlowMonitor) -> dict[str, Any]:
    found = [finding.kind.value for finding in monitor.findings]
    return {"history": monitor.history, "totals": monitor.totals, "findings": found}


class Leave(Checkpoint):
    """Writes what each rank knows, and ends the process group in order. Runs as the last one."""

    def __init__(self, monitor: GradientFlowMonitor, folder: Path) -> None:
        self.monitor = monitor
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        seen = {**summary(self.monitor), "metrics": metrics}
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(seen))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def run(
    module: pl.LightningModule,
    folder: Path,
    strategy: Any,
    signal: Literal["weights", "activations"] = "weights",
    **options: Any,
) -> dict[str, Any]:
    """Fit in two processes, and return what both of them and the script's own object know."""
    monitor = GradientFlowMonitor(every_n_steps=1, on_finding="log", signal=signal)
    fit(
        module,
        monitor,
        Leave(monitor, folder),
        strategy=strategy,
        devices=2,
        use_distributed_sampler=False,
        enable_checkpointing=True,
        **options,
    )
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    assert json.dumps(first) == json.dumps(second)
    assert json.dumps({**first, **summary(monitor)}) == json.dumps(first)
    return first  # type: ignore[no-any-return]


def windows(count: int = 4) -> list[list[Any]]:
    return [[batch] for batch in make_batches(count)]


def test_ddp(tmp_path: Path) -> None:
    seen = run(Toy(), tmp_path, "ddp_fork")
    compare(seen["history"], seen["totals"], list(reference(make_net(), windows())))


def test_gradients_of_outputs_under_ddp(tmp_path: Path) -> None:
    alone = GradientFlowMonitor(every_n_steps=1, signal="activations")
    fit(Toy(), alone)
    seen = run(Toy(), tmp_path, "ddp_fork", signal="activations")
    wanted = alone.history["output_grad_rms"]
    assert seen["history"]["output_grad_rms"] == pytest.approx(wanted, rel=1e-5)
    assert seen["totals"]["norm"] == pytest.approx(alone.totals["norm"], rel=1e-5)


def test_ddp_with_accumulation_and_a_short_last_window(tmp_path: Path) -> None:
    seen = run(Toy(batches=5), tmp_path, "ddp_fork", accumulate_grad_batches=2)
    batches = make_batches(5)
    expected = list(reference(make_net(), [batches[:2], batches[2:4], batches[4:]], divisor=2))
    compare(seen["history"], seen["totals"], expected)


@pytest.mark.parametrize("optimizer", [sgd, fused], ids=["sgd", "fused"])
def test_ddp_with_a_grad_scaler(tmp_path: Path, optimizer: MakeOptimizer) -> None:
    seen = run(Toy(optimizer=optimizer), tmp_path, "ddp_fork", **scaled(2.0**12))
    expected = list(reference(make_net(), windows(), optimizer))
    assert seen["totals"]["skipped"] == [False] * 4
    compare(seen["history"], seen["totals"], expected, rel=HALF)


class Forgetful(nn.Module):
    """A network with a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net()
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


SCRIPT = """
from pathlib import Path
from tests.callbacks.test_gradient_processes import Forgetful, Toy, run

run(Toy(Forgetful()), Path(), "ddp_find_unused_parameters_true")
"""


def run_script(folder: Path) -> dict[str, Any]:
    """Fit in the process of a script, and in another one that runs the script again."""
    (folder / "train.py").write_text(SCRIPT)
    subprocess.run(
        [sys.executable, "-W", "ignore", "train.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
    )
    return json.loads((folder / "0.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "method",
    ["fork", *(pytest.param(slow, marks=pytest.mark.slow) for slow in ("spawn", "popen"))],
)
def test_norms_and_findings_by_every_start_method(tmp_path: Path, method: str) -> None:
    if method == "popen":
        seen = run_script(tmp_path)
    else:
        strategy = f"ddp_{method}_find_unused_parameters_true"
        seen = run(Toy(Forgetful()), tmp_path, strategy)
    paths = {name.replace("net.", "net.net.", 1): path for name, path in BLOCKS.items()}
    history = {
        column: [
            value
            for value, layer in zip(values, seen["history"]["layer"], strict=True)
            if layer != "net.unused"
        ]
        for column, values in seen["history"].items()
    }
    compare(history, seen["totals"], list(reference(make_net(), windows())), paths=paths)
    assert seen["findings"] == ["NO_GRADIENT"]


class ShardedOnCpu(FSDPStrategy):
    """FSDP1 without an accelerator: Lightning refuses the class itself, torch a missing device."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(  # type: ignore[no-any-return]
            module=model,
            device_id=torch.device("cpu"),
            use_orig_params=True,
            auto_wrap_policy=self.kwargs.get("auto_wrap_policy"),
        )


class Fork(_MultiProcessingLauncher):
    """Forks, and leaves the sharded weights in the children: only files count here."""

    def _collect_rank_zero_results(self, trainer: pl.Trainer, results: Any) -> _WorkerOutput:
        return _WorkerOutput("", None, trainer.state, results, {})

    def _recover_results_in_main_process(self, *args: Any) -> None:
        pass


class ForkedSharded(ShardedOnCpu):
    def _configure_launcher(self) -> None:
        self._launcher = Fork(self, start_method="fork")


class ForkedModelParallel(ModelParallelStrategy):
    def _configure_launcher(self) -> None:
        self._launcher = Fork(self, start_method="fork")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_fsdp1(tmp_path: Path) -> None:
    strategy = ForkedSharded(
        process_group_backend="gloo", auto_wrap_policy={type(make_net()[1])}, state_dict_type="full"
    )
    seen = run(Toy(), tmp_path, strategy)
    compare(seen["history"], seen["totals"], list(reference(make_net(), windows())))


class FullySharded(Toy):
    """FSDP2 on every block and on the whole."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
        for part in self.net:  # type: ignore[union-attr]
            fully_shard(part, mesh=mesh)
        fully_shard(self.net, mesh=mesh)


def two_sharded() -> ModelParallelStrategy:
    return ForkedModelParallel(
        data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_fsdp2(tmp_path: Path) -> None:
    seen = run(FullySharded(), tmp_path, two_sharded(), gradient_clip_val=10.0)
    compare(seen["history"], seen["totals"], list(reference(make_net(), windows())))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_fsdp2_with_empty_shards(tmp_path: Path) -> None:
    def tiny() -> nn.Sequential:
        net = nn.Sequential(nn.Linear(6, 1), nn.Linear(1, 6), nn.Linear(6, 1), nn.Linear(1, 3))
        fixed_init(net)
        return net

    seen = run(FullySharded(tiny()), tmp_path, two_sharded())
    expected = list(reference(tiny(), windows()))
    paths = {f"net.{place}": str(place) for place in range(4)}
    compare(seen["history"], seen["totals"], expected, paths=paths)
