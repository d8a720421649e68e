"""What the monitors cost a training step, beside peers, in one process.

    python -m tests.benchmarks.monitor_cost mlp50-64
    python -m tests.benchmarks.monitor_cost resnet18-64 --seconds 240
    python -m tests.benchmarks.monitor_cost mlp50-64 --peers

Timed is the span from one batch's start to its end within `Trainer.fit`, CPU time of the process.
Variants take turns within one run, a few steps each, on the same model, optimizer and data: what
slows the machine slows all of them. The first step of each turn is left out, since caches belong
to the variant before. A ratio divides a variant's median of a round by that of the bare steps of
the same round; the bare steps appear twice a round, and their ratio is the A/A line.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import timm
import torch
from lightning.pytorch.utilities import grad_norm
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_depth.callbacks import ActivationMonitor, GradientFlowMonitor
from tests.benchmarks._paired import HEADER, summarise

_TURN = 5
"""Steps of a variant in a round; the first is not timed."""


def _mlp(layers: int = 50, width: int = 256) -> nn.Module:
    parts = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
    net = nn.Sequential(*parts, nn.Linear(width, 10))
    for part in net:
        if isinstance(part, nn.Linear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
    return net


def _resnet() -> nn.Module:
    return timm.create_model("resnet18", num_classes=10)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp50-64": (_mlp, (64, 256)),
    "mlp50-128": (_mlp, (128, 256)),
    "resnet18-64": (_resnet, (64, 3, 32, 32)),
    "resnet18-128": (_resnet, (128, 3, 32, 32)),
}


class Bench(pl.LightningModule):
    """Cross-entropy on random numbers; the same batch again and again."""

    def __init__(self, net: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.net = net
        self.shape = shape

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4, momentum=0.9)

    def train_dataloader(self) -> DataLoader[Any]:
        batch = (torch.randn(self.shape), torch.randint(0, 10, self.shape[:1]))
        return DataLoader([batch] * 100_000, batch_size=None)  # type: ignore[arg-type]


class LightningGradNorm(pl.Callback):
    """What Lightning's documentation says to do."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        pl_module.log_dict(grad_norm(pl_module, norm_type=2))


class GradNormAlone(pl.Callback):
    """The numbers of Lightning's `grad_norm`, which are not logged."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        grad_norm(pl_module, norm_type=2)


class Peer(pl.Callback):
    """Another tool, which hangs on the model while its turn lasts."""

    def begin_turn(self, net: nn.Module) -> None:
        """Hang it on the model."""

    def end_turn(self, net: nn.Module) -> None:
        """Take it off."""


class Watch(Peer):
    """`wandb.watch` in an offline run, and the row that W&B's logger writes for it."""

    def __init__(self, log_freq: int) -> None:
        self.log_freq = log_freq

    def begin_turn(self, net: nn.Module) -> None:
        import wandb

        if wandb.run is None:
            folder = tempfile.mkdtemp()
            wandb.init(mode="offline", dir=folder, settings=wandb.Settings(silent=True))
        wandb.watch(net, log_freq=self.log_freq)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        import wandb

        wandb.log({"step": trainer.global_step})

    def end_turn(self, net: nn.Module) -> None:
        import wandb

        wandb.unwatch(net)


class Delve(Peer):
    """delve's saturation of all layers, as its hooks gather it; the spectra are not computed."""

    def begin_turn(self, net: nn.Module) -> None:
        from delve import SaturationTracker

        with contextlib.redirect_stdout(io.StringIO()):
            self.tracker = SaturationTracker(
                tempfile.mkdtemp(), "csv", net, device="cpu", nosave=True
            )

    def end_turn(self, net: nn.Module) -> None:
        self.tracker.close()
        for module in net.modules():
            module._forward_hooks.clear()


class Turns(pl.Callback):
    """Gives each variant its turn: only its callback sees the hooks of these batches."""

    def __init__(self, variants: dict[str, list[pl.Callback]], seconds: float) -> None:
        self.names = list(variants)
        self.variants = variants
        self.seconds = seconds
        self.times: dict[str, list[list[float]]] = {name: [] for name in variants}
        self.batch = 0
        self.begun = time.perf_counter()

    @property
    def turn(self) -> str:
        rounds, place = divmod(self.batch // _TURN, len(self.names))
        return self.names[(place + rounds) % len(self.names)]

    def setup(self, *args: Any, **kwargs: Any) -> None:
        self._pass("setup", *args, **kwargs)

    def on_fit_start(self, *args: Any) -> None:
        self._pass("on_fit_start", *args)

    def on_train_start(self, *args: Any) -> None:
        self._pass("on_train_start", *args)

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if self.batch % _TURN == 0:
            self.times[self.turn].append([])
            for peer in self._peers():
                peer.begin_turn(args[0].net)
        self.clock = time.process_time()
        self._now("on_train_batch_start", trainer, *args)

    def on_before_backward(self, *args: Any) -> None:
        self._now("on_before_backward", *args)

    def on_before_optimizer_step(self, *args: Any) -> None:
        self._now("on_before_optimizer_step", *args)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self._now("on_train_batch_end", trainer, *args)
        if self.batch % _TURN:
            self.times[self.turn][-1].append(time.process_time() - self.clock)
        if self.batch % _TURN == _TURN - 1:
            for peer in self._peers():
                peer.end_turn(args[0].net)
        self.batch += 1
        if self.batch % (_TURN * len(self.names)) == 0:
            trainer.should_stop = time.perf_counter() - self.begun > self.seconds

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        self._pass("teardown", *args, **kwargs)

    def _peers(self) -> list[Peer]:
        return [callback for callback in self.variants[self.turn] if isinstance(callback, Peer)]

    def _now(self, hook: str, *args: Any) -> None:
        for callback in self.variants[self.turn]:
            getattr(callback, hook)(*args)

    def _pass(self, hook: str, *args: Any, **kwargs: Any) -> None:
        for callbacks in self.variants.values():
            for callback in callbacks:
                getattr(callback, hook)(*args, **kwargs)


def _variants() -> dict[str, list[pl.Callback]]:
    def quiet(**options: Any) -> GradientFlowMonitor:
        return GradientFlowMonitor(every_n_steps=1, on_finding=_ignore, **options)

    def activations() -> ActivationMonitor:
        return ActivationMonitor(every_n_steps=1, on_finding=_ignore)

    never = 10**9
    return {
        "bare": [],
        "bare again (A/A)": [],
        "both monitors, not measuring": [
            GradientFlowMonitor(every_n_steps=never, patience=1),
            ActivationMonitor(every_n_steps=never, patience=1),
        ],
        "gradient norms every step": [quiet(update_ratio=False)],
        "gradient monitor every step": [quiet()],
        "activation monitor every step": [activations()],
        "both monitors every step": [quiet(), activations()],
    }


def _peers() -> dict[str, list[pl.Callback]]:
    peers: dict[str, list[pl.Callback]] = {
        "Lightning's grad_norm, not logged, every step": [GradNormAlone()],
        "Lightning's grad_norm, logged, every step": [LightningGradNorm()],
        "wandb.watch every step": [Watch(1)],
        "wandb.watch, not measuring": [Watch(10**9)],
    }
    if importlib.util.find_spec("delve") is not None:
        peers["delve every step"] = [Delve()]
    return peers


def _ignore(finding: Any) -> None:
    """A finding is not what is measured here."""


def measure(name: str, seconds: float, peers: bool) -> list[str]:
    """Return the lines of the table for one model."""
    build, shape = MODELS[name]
    bare: dict[str, list[pl.Callback]] = {"bare": [], "bare again (A/A)": []}
    turns = Turns(bare | _peers() if peers else _variants(), seconds)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[turns], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Bench(build(), shape))
    rounds = range(1, min(map(len, turns.times.values())))  # the first round warms up
    median = {n: [statistics.median(t[r]) for r in rounds] for n, t in turns.times.items()}
    lines = [f"{name}: bare step {statistics.median(median['bare']) * 1e3:.1f} ms", "", HEADER]
    for variant in turns.names[1:]:
        pairs = zip(median[variant], median["bare"], strict=True)
        lines.append(str(summarise(variant, [own / bare for own, bare in pairs])))
    for variant, pace in (("both monitors every step", 50), ("wandb.watch every step", 100)):
        if variant in median:
            pairs = zip(median[variant], median["bare"], strict=True)
            found = [1 + (own / bare - 1) / pace for own, bare in pairs]
            lines.append(str(summarise(f"{variant.rsplit(' every')[0]} at every {pace}th", found)))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--peers", action="store_true", help="other tools instead of ours")
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("\n".join(measure(options.model, options.seconds, options.peers)))


if __name__ == "__main__":
    main()
