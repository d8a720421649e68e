"""Layers, steps, names and state of the monitors while the run around them changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_depth.callbacks import (
    ActivationMonitor,
    GradientFlowMonitor,
    LayerSeparabilityProbe,
    measure_activations,
    measure_gradients,
)
from lightning_depth.findings import FindingKind
from tests.callbacks.toy import (
    Batch,
    Block,
    Toy,
    fit,
    fixed_init,
    make_batches,
    make_net,
    rows,
)

Change = Callable[["Changing"], None]


class Changing(Toy):
    """A network that is rebuilt when its second epoch begins, as a user would write it."""

    def __init__(self, change: Change, net: nn.Module | None = None, **options: Any) -> None:
        super().__init__(net, **options)
        self.change = change
        self.norms: list[float] = []

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.change(self)

    @property
    def own_optimizer(self) -> torch.optim.Optimizer:
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        return optimizer  # type: ignore[no-any-return]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        self.norms.append(torch.nn.utils.get_total_norm(grads).item())


def replace_block(module: Changing, place: int = 2, *, hand_over: bool = True) -> None:
    """Put a new block of the same shape in place of an old one; its optimizer may be told."""
    old, new = module.net[place], Block(6, nn.Tanh())  # type: ignore[index]
    fixed_init(new)
    module.net[place] = new  # type: ignore[index,operator]
    if hand_over:
        swap = dict(zip(map(id, old.parameters()), new.parameters(), strict=True))
        for group in module.own_optimizer.param_groups:
            group["params"] = [swap.get(id(p), p) for p in group["params"]]


def grow(module: Changing) -> None:
    block = Block(6, nn.Tanh())
    fixed_init(block)
    module.net.insert(3, block)  # type: ignore[operator]
    module.own_optimizer.add_param_group({"params": list(block.parameters())})


def shrink(module: Changing) -> None:
    gone = {id(p) for p in module.net[2].parameters()}  # type: ignore[index]
    del module.net[2]  # type: ignore[attr-defined]
    for group in module.own_optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in gone]


def renew_optimizer(module: Changing) -> None:
    module.trainer.strategy.optimizers = [torch.optim.Adam(module.parameters(), lr=0.01)]


def layers_by_epoch(monitor: pl.Callback) -> list[list[str]]:
    history: dict[str, list[Any]] = monitor.history  # type: ignore[attr-defined]
    pairs = list(zip(history["epoch"], history["layer"], strict=True))
    return [
        list(dict.fromkeys(layer for at, layer in pairs if at == epoch))
        for epoch in sorted({at for at, _ in pairs})
    ]


def test_a_replaced_block_is_measured_and_the_old_one_is_not_judged() -> None:
    monitor = GradientFlowMonitor(every_n_steps=1)
    module = Changing(replace_block)
    fit(module, monitor, max_epochs=2)
    assert monitor.totals["norm"] == pytest.approx(module.norms, rel=1e-5)
    last = rows(monitor.history, "grad_rms")[-1]
    gradient = module.net[2].linear.weight.grad  # type: ignore[index]
    assert last["net.2"] == pytest.approx(gradient.square().mean().sqrt().item(), rel=1e-5)
    assert monitor.findings == []
    updates = rows(monitor.history, "update_to_weight")
    assert all(math.isfinite(value) for row in updates for value in row.values())


def test_a_replaced_block_that_no_optimizer_has_is_named_and_not_judged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    monitor = GradientFlowMonitor(every_n_steps=1)
    fit(
        Changing(lambda module: replace_block(module, hand_over=False)),
        *(monitor, ActivationMonitor(every_n_steps=1)),
        max_epochs=3,
    )
    assert monitor.findings == []
    told = "No optimizer holds what came during training: net.2."
    assert told in " ".join(capsys.readouterr().out.replace("|", " ").split())
    assert "net.2" in layers_by_epoch(monitor)[0]
    assert "net.2" not in layers_by_epoch(monitor)[-1]


def test_the_weights_of_a_new_block_are_read_at_once() -> None:
    """Without the change of the weights they are read at every tenth measurement only."""

    def enlarge(module: Changing) -> None:
        replace_block(module)
        with torch.no_grad():
            module.net[2].linear.weight.mul_(5.0)  # type: ignore[index]

    monitor = GradientFlowMonitor(every_n_steps=1, update_ratio=False)
    fit(Changing(enlarge), monitor, max_epochs=2)
    weights = [row["net.2"] for row in rows(monitor.history, "weight_rms")]
    new = Block(6, nn.Tanh())
    fixed_init(new)
    wanted = 5 * new.linear.weight.square().mean().sqrt().item()
    assert weights[4:] == pytest.approx([wanted] * 4, rel=1e-5)


@pytest.mark.parametrize("signal", ["weights", "activations"])
def test_a_new_block_is_watched_where_it_runs(signal: Any) -> None:
    monitors = (
        GradientFlowMonitor(every_n_steps=1, signal=signal),
        ActivationMonitor(every_n_steps=1),
    )
    module = Changing(grow)
    fit(module, *monitors, max_epochs=2)
    before = [f"net.{place}" for place in range(6)]
    after = [f"net.{place}" for place in range(7)]
    for monitor in monitors:
        assert layers_by_epoch(monitor) == [before, after]
        depths = dict(zip(monitor.history["layer"], monitor.history["depth"], strict=True))
        assert [depths[name] for name in after] == [1, 2, 3, 4, 5, 6, 7]
        assert monitor.findings == []
    assert monitors[0].totals["norm"] == pytest.approx(module.norms, rel=1e-5)
    if signal == "activations":
        outputs = rows(monitors[0].history, "output_grad_rms")[4]
        assert all(value > 0 for value in outputs.values())
    assert not any(part._forward_hooks for part in module.modules())
    assert not any(part._forward_pre_hooks for part in module.modules())


def test_what_never_had_a_gradient_is_dated_from_when_it_came() -> None:
    class Cut(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + super().forward(x).detach()

    def grow_cut(module: Changing) -> None:
        module.net.insert(3, Cut(6, nn.Tanh()))  # type: ignore[operator]
        parameters = list(module.net[3].parameters())  # type: ignore[index]
        module.own_optimizer.add_param_group({"params": parameters})

    monitor = GradientFlowMonitor(every_n_steps=1, on_finding="log")
    module = Changing(grow_cut)
    fit(module, monitor, max_epochs=3)
    (finding,) = monitor.findings
    assert finding.kind is FindingKind.NO_GRADIENT
    assert finding.step == module.trainer.global_step // 3


def test_a_removed_block_leaves_no_finding() -> None:
    monitors = (GradientFlowMonitor(every_n_steps=1), ActivationMonitor(every_n_steps=1))
    fit(Changing(shrink), *monitors, max_epochs=2)
    for monitor in monitors:
        assert [len(names) for names in layers_by_epoch(monitor)] == [6, 5]
        assert monitor.findings == []


def test_the_probe_chooses_its_layers_at_each_pass() -> None:
    class Validated(Changing):
        def validation_step(self, batch: Batch, batch_idx: int) -> None:
            self.net(batch[0])

        def val_dataloader(self) -> DataLoader[Batch]:
            return DataLoader(make_batches(4, 32), batch_size=None)  # type: ignore[arg-type]

    probe = LayerSeparabilityProbe()
    fit(Validated(grow), probe, max_epochs=2, num_sanity_val_steps=0)
    assert [len(names) for names in layers_by_epoch(probe)] == [7, 8]


def test_a_new_optimizer_is_read_and_the_old_one_let_go() -> None:
    monitor = GradientFlowMonitor(every_n_steps=1)
    module = Changing(renew_optimizer)
    fit(module, monitor, max_epochs=2)
    assert monitor.totals["norm"] == pytest.approx(module.norms, rel=1e-5)
    assert monitor.totals["optimizer"] == ["SGD"] * 4 + ["Adam"] * 4
    assert monitor.findings == []


def test_a_replacement_within_the_batch_is_seen_by_the_same_step() -> None:
    class Late(Changing):
        def on_train_epoch_start(self) -> None:
            pass

        def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
            if batch_idx == 2:
                self.change(self)

    monitors = (GradientFlowMonitor(every_n_steps=1), ActivationMonitor(every_n_steps=1))
    module = Late(grow)
    fit(module, *monitors)
    assert monitors[0].totals["norm"] == pytest.approx(module.norms, rel=1e-5)
    assert [len(row) for row in rows(monitors[0].history, "grad_rms")] == [6, 6, 7, 7]
    last = rows(monitors[0].history, "depth")[-1]
    assert list(last.values()) == [1, 2, 3, 4, 5, 6, 7]
    assert [len(row) for row in rows(monitors[1].history, "rms")] == [6, 6, 6, 7]


def test_what_lasted_in_a_layer_that_is_gone_is_forgotten() -> None:
    """Two measurements without a gradient before the exchange, one by bad luck after it."""

    class Unlucky(Changing):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            x = self.net[1](self.net[0](batch[0]))  # type: ignore[index]
            if (self.current_epoch, batch_idx) in {(0, 2), (0, 3), (1, 0)}:
                return nn.functional.cross_entropy(self.net[3:](x), batch[1])  # type: ignore[index]
            x = self.net[2](x)  # type: ignore[index]
            return nn.functional.cross_entropy(self.net[3:](x), batch[1])  # type: ignore[index]

    monitor = GradientFlowMonitor(every_n_steps=1, patience=3)
    fit(Unlucky(replace_block), monitor, max_epochs=2)
    assert monitor.findings == []


# Pace.


class Endless(IterableDataset[Batch]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Batch]:
        yield from make_batches(self.count)


class Streamed(Toy):
    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(Endless(self.batches), batch_size=None)


def steps(monitor: Any) -> list[int]:
    return sorted(set(monitor.history["step"]))


PACES: dict[str, tuple[type[Toy], int, dict[str, Any], list[int]]] = {
    "one epoch": (Toy, 40, {}, [0, 1, 2, 3, 39]),
    "short epochs": (Toy, 10, {"max_epochs": 4}, [0, 1, 2, 3, 19, 29, 39]),
    "a row falls into the epoch": (Toy, 30, {"max_epochs": 3}, [0, 1, 2, 3, 49, 89]),
    "max_steps": (Toy, 40, {"max_epochs": -1, "max_steps": 27}, [0, 1, 2, 3, 26]),
    "max_steps in a later epoch": (
        *(Toy, 10, {"max_epochs": None, "max_steps": 24}),
        [0, 1, 2, 3, 19, 23],
    ),
    "limited batches": (Toy, 40, {"limit_train_batches": 12}, [0, 1, 2, 3, 11]),
    "accumulated": (
        *(Toy, 41, {"accumulate_grad_batches": 4, "max_epochs": 2}),
        [0, 1, 2, 3, 21],
    ),
    "unknown length": (Streamed, 20, {"max_epochs": 3}, [0, 1, 2, 3, 20, 40, 49]),
    "unknown length, max_steps": (
        *(Streamed, 20, {"max_epochs": None, "max_steps": 33}),
        [0, 1, 2, 3, 20, 32],
    ),
    "time is over": (Toy, 10, {"max_epochs": 2, "max_time": {"days": 1}}, [0, 1, 2, 3, 19]),
    "validation within the epoch": (Toy, 16, {"val_check_interval": 4}, [0, 1, 2, 3, 15]),
}


@pytest.mark.parametrize("case", PACES)
def test_every_epoch_and_the_last_step_are_measured(case: str) -> None:
    kind, batches, options, wanted = PACES[case]
    monitors = (GradientFlowMonitor(), ActivationMonitor())
    fit(kind(batches=batches), *monitors, **options)
    for monitor in monitors:
        assert steps(monitor) == wanted


def test_steps_that_were_asked_for_are_kept() -> None:
    monitors = (GradientFlowMonitor(every_n_steps=7), ActivationMonitor(every_n_steps=7))
    fit(Toy(batches=10), *monitors, max_epochs=3)
    for monitor in monitors:
        assert steps(monitor) == [0, 1, 2, 3, 6, 13, 20, 27, 29]


def test_training_that_is_stopped_was_measured_in_its_last_epoch() -> None:
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.should_stop = trainer.current_epoch == 2

    monitor = GradientFlowMonitor()
    fit(Toy(batches=5), monitor, Stop(), max_epochs=9)
    assert steps(monitor) == [0, 1, 2, 3, 9, 14]


class TakingTurns(pl.LightningModule):
    """Two networks, of which the second steps at every fourth batch only."""

    batches = 10

    def __init__(self, first: nn.Module | None = None, every: int = 4) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = first or make_net(), make_net()
        self.every = every

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        for place, net in enumerate((self.generator, self.critic)):
            if place and batch_idx % self.every != 1:
                continue
            optimizer: Any = self.optimizers()[place]  # type: ignore[index]
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(net(batch[0]), batch[1]))
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def train_dataloader(self) -> Any:
        return Toy.train_dataloader(self)  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.generator.parameters(), lr=0.01),
            torch.optim.Adam(self.critic.parameters(), lr=0.01),
        ]


def test_each_of_several_optimizers_is_measured_in_every_epoch() -> None:
    monitor = GradientFlowMonitor()
    fit(TakingTurns(), monitor, max_epochs=3)
    pairs = set(zip(monitor.totals["epoch"], monitor.totals["optimizer"], strict=True))
    assert pairs == {(epoch, name) for epoch in range(3) for name in ("generator", "critic")}


def test_a_run_that_goes_on_in_the_middle_of_an_epoch_is_measured_at_its_end() -> None:
    class Lost(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step == 6:
                trainer.save_checkpoint("lost.ckpt")
                raise RuntimeError("lost")

    whole, first, second = (GradientFlowMonitor() for _ in range(3))
    fit(Toy(batches=10), whole)
    with pytest.raises(RuntimeError, match=r"^lost$"):
        fit(Toy(batches=10), first, Lost())
    trainer = pl.Trainer(
        callbacks=[second], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, max_epochs=1,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="resuming from a checkpoint that ended before"):
        trainer.fit(Toy(batches=10), ckpt_path="lost.ckpt", weights_only=True)
    assert steps(second) == steps(whole) == [0, 1, 2, 3, 9]


# Names of optimizers.


def test_a_single_optimizer_has_the_name_of_its_class() -> None:
    monitor = GradientFlowMonitor(every_n_steps=1)
    trainer = fit(Toy(), monitor)
    assert set(monitor.totals["optimizer"]) == set(monitor.history["optimizer"]) == {"SGD"}
    assert "grad_flow/norm" in trainer.callback_metrics


def test_several_optimizers_are_named_after_what_they_train() -> None:
    monitor = GradientFlowMonitor(every_n_steps=1)
    trainer = fit(TakingTurns(every=2), monitor)
    assert set(monitor.history["optimizer"]) == {"generator", "critic"}
    assert {"grad_flow/norm/generator", "grad_flow/norm/critic"} <= set(trainer.callback_metrics)


def test_a_network_within_a_network_is_named_as_far_as_needed() -> None:
    class Nested(TakingTurns):
        def configure_optimizers(self) -> Any:
            net: Any = self.generator
            return [
                torch.optim.Adam(net.left.parameters(), lr=0.01),
                torch.optim.SGD([*net.right.parameters(), *self.critic.parameters()], lr=0.01),
            ]

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = make_net(), make_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.left(x) + self.right(x)

    monitor = GradientFlowMonitor(every_n_steps=1, on_finding="log")
    fit(Nested(Pair(), every=2), monitor)
    assert set(monitor.totals["optimizer"]) == {"generator.left", "SGD"}


def test_optimizers_that_share_a_network_are_told_apart_by_number() -> None:
    class Split(TakingTurns):
        def configure_optimizers(self) -> Any:
            parameters = list(self.parameters())
            return [
                torch.optim.Adam([p for p in parameters if p.ndim > 1], lr=0.01),
                torch.optim.Adam([p for p in parameters if p.ndim < 2], lr=0.01),
            ]

    monitor = GradientFlowMonitor(every_n_steps=1, on_finding="log")
    fit(Split(every=2), monitor)
    assert set(monitor.totals["optimizer"]) == {"Adam", "Adam-1"}


# 64 bits.


@pytest.mark.parametrize("kind", [GradientFlowMonitor, ActivationMonitor])
@pytest.mark.filterwarnings("ignore:.*GradScaler:UserWarning")
@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_monitors_complete_in_every_true_precision(kind: Any, precision: str) -> None:
    monitor = kind(every_n_steps=1)
    fit(Toy(), monitor, precision=precision)
    assert steps(monitor) == [0, 1, 2, 3]


def test_snapshots_of_a_network_in_float64() -> None:
    net = make_net().double()
    x, y = make_batches(1)[0]
    seen: list[Tensor] = []

    def run() -> None:
        hook = net[0].register_forward_hook(lambda module, args, output: seen.append(output))
        nn.functional.cross_entropy(net(1e100 * x.double()), y).backward()
        hook.remove()

    rms = measure_activations(net, run).layers[0]["rms"]
    assert rms == pytest.approx(seen[0].square().mean().sqrt().item(), rel=1e-6)
    gradient = net[0].weight.grad
    assert isinstance(gradient, Tensor)
    wanted = gradient.square().mean().sqrt().item()
    assert measure_gradients(net).layers[0]["grad_rms"] == pytest.approx(wanted, rel=1e-12)


# State.


class Milestones(LearningRateFinder):
    """Looks for a learning rate when an epoch begins, as Lightning's documentation shows."""

    def on_fit_start(self, *args: Any, **kwargs: Any) -> None:
        pass

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch in (1, 2):
            self.lr_find(trainer, pl_module)


@pytest.mark.filterwarnings("ignore:The .* does not have many workers")
@pytest.mark.parametrize("place", [0, -1], ids=["before", "behind"])
def test_an_excursion_leaves_no_trace(place: int, tmp_path: Any) -> None:
    def monitors() -> list[Any]:
        return [GradientFlowMonitor(every_n_steps=3), ActivationMonitor(every_n_steps=3)]

    plain, around = monitors(), monitors()
    fit(Toy(batches=6), *plain, max_epochs=4, default_root_dir=tmp_path)
    finder = Milestones(num_training_steps=5, update_attr=False, early_stop_threshold=None)
    callbacks = [finder, *around] if place == 0 else [*around, finder]
    fit(Toy(batches=6), *callbacks, max_epochs=4, default_root_dir=tmp_path)
    for wanted, seen in zip(plain, around, strict=True):
        assert seen.history["step"] == wanted.history["step"]
        assert seen.history["layer"] == wanted.history["layer"]
        assert seen._extra_state()["streaks"] == wanted._extra_state()["streaks"]
    counts = [each._extra_state()["counts"] for each in (around[0], plain[0])]
    assert repr(counts[0]) == repr(counts[1])  # not-a-numbers are equal as words
    assert around[1]._measured == plain[1]._measured


@pytest.mark.filterwarnings("ignore:The .* does not have many workers")
def test_an_excursion_leaves_no_trace_in_the_probe(tmp_path: Any) -> None:
    class Validated(Toy):
        def validation_step(self, batch: Batch, batch_idx: int) -> None:
            self.net(batch[0])

        def val_dataloader(self) -> DataLoader[Batch]:
            return DataLoader(make_batches(4, 32), batch_size=None)  # type: ignore[arg-type]

    plain, around = LayerSeparabilityProbe(), LayerSeparabilityProbe()
    options: dict[str, Any] = {"max_epochs": 3, "default_root_dir": tmp_path}
    fit(Validated(), plain, **options)
    finder = Milestones(num_training_steps=5, update_attr=False, early_stop_threshold=None)
    fit(Validated(), finder, around, **options)
    pd.testing.assert_frame_equal(pd.DataFrame(around.history), pd.DataFrame(plain.history))
    assert around.laws == plain.laws


class Sized(Toy):
    """Its batches are as large as Lightning's finder makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_size = 4

    def train_dataloader(self) -> DataLoader[Any]:
        x, y = (torch.cat(parts) for parts in zip(*make_batches(8), strict=True))
        return DataLoader(TensorDataset(x, y), self.batch_size)


@pytest.mark.filterwarnings("ignore:The .* does not have many workers")
@pytest.mark.parametrize("place", [0, -1], ids=["before", "behind"])
def test_a_search_for_the_batch_size_leaves_no_trace(place: int, tmp_path: Any) -> None:
    monitors: list[Any] = [GradientFlowMonitor(every_n_steps=1), ActivationMonitor(every_n_steps=1)]
    finder = BatchSizeFinder(init_val=4, steps_per_trial=2, max_trials=2, max_val=16)
    callbacks = [finder, *monitors] if place == 0 else [*monitors, finder]
    module = Sized()
    fit(module, *callbacks, default_root_dir=tmp_path)
    for monitor in monitors:
        assert steps(monitor) == list(range(64 // module.batch_size))


def test_going_back_to_a_checkpoint_during_a_run_goes_back_wholly() -> None:
    class Back(pl.Callback):
        """After the fourth epoch the run is set back, once, to where the second ended."""

        gone_back = False

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 2:
                trainer.save_checkpoint("back.ckpt")
            if trainer.current_epoch == 4 and not self.gone_back:
                self.gone_back = True
                self.kept = [each.history["step"][:] for each in monitors]
                state = torch.load("back.ckpt", weights_only=True)["callbacks"]
                for each in monitors:
                    each.load_state_dict(state[each.state_key])
                self.left = [each.state_dict() for each in monitors]

    monitors: list[Any] = [GradientFlowMonitor(every_n_steps=1), ActivationMonitor(every_n_steps=1)]
    back = Back()
    fit(Toy(), *monitors, back, max_epochs=5)
    for monitor, before, left in zip(monitors, back.kept, back.left, strict=True):
        assert max(before) == 15
        assert max(left["lightning_depth"]["history"]["cells"]["step"]) == 7
        assert steps(monitor) == [*range(8), *range(16, 20)]
    assert monitors[0]._extra_state()["counts"]["SGD"]["measured"] == monitors[1]._measured == 12
