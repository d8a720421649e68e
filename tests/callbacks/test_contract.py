"""What holds for every public callback, in every kind of run."""

from __future__ import annotations

import copy
import csv
import gc
import pickle
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from omegaconf import OmegaConf
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

import lightning_depth.callbacks
from lightning_depth.callbacks._base import DepthCallback
from lightning_depth.errors import MisuseError
from tests.callbacks._runs import (
    BATCH_SIZE,
    FOR_UNKNOWN_BATCHES,
    NUM_BATCHES,
    OPTIONS,
    Endless,
    Toy,
    as_batch,
    fit,
    loader,
    make,
    network,
    num_hooks,
    observers,
    public_callbacks,
    samples,
    toy_of,
    trainer,
)

every_callback = pytest.mark.parametrize("name", public_callbacks())
every_observer = pytest.mark.parametrize("name", observers())
WATCHING_LAYERS = [name for name in observers() if name != "TrainingErrorMonitor"]
every_layer_watcher = pytest.mark.parametrize("name", WATCHING_LAYERS)


def _table(callback: DepthCallback) -> pd.DataFrame:
    return pd.DataFrame(callback.history)


def _watched(callback: DepthCallback) -> set[str]:
    """Names of the layers; the probe has the network's input as layer 0."""
    return set(callback.history["layer"]) - {"input"}


def test_every_public_callback_is_tried_here() -> None:
    assert set(public_callbacks()) == set(OPTIONS)


# Any Trainer


@every_callback
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_works_under_both_names_of_lightning(name: str, package: str) -> None:
    pl, toy = toy_of(package)
    callback = make(name)
    trainer(callback, package=pl).fit(toy, loader(), loader())
    if name != "EarlyStopping":
        assert len(_table(callback)) > 0


RUNS: dict[str, dict[str, Any]] = {
    "barebones": {"barebones": True},
    "fast_dev_run": {"fast_dev_run": True},
    "overfit_batches": {"overfit_batches": 1},
    "limited": {"limit_train_batches": 2, "limit_val_batches": 1},
    "no training": {"limit_train_batches": 0},
    "no validation": {"limit_val_batches": 0},
    "validation within the epoch": {"val_check_interval": 0.5},
    "validation by steps": {"val_check_interval": 4, "check_val_every_n_epoch": None},
    "validation now and then": {"check_val_every_n_epoch": 2},
    "max_time": {"max_time": "00:00:01:00"},
    "max_steps": {"max_steps": 3},
    "no sanity check": {"num_sanity_val_steps": 0},
    "accumulation": {"accumulate_grad_batches": 4, "gradient_clip_val": 0.1},
    "bf16": {"precision": "bf16-mixed"},
}


def _tolerates(name: str) -> dict[str, Any]:
    """EarlyStopping is Lightning's: without its metric the run ends, unless told otherwise."""
    return {"strict": False} if name == "EarlyStopping" else {}


@every_callback
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.filterwarnings("ignore:Early stopping conditioned on metric:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.*overfit:UserWarning")
def test_works_in_runs_of_every_kind(name: str, run: str) -> None:
    callback = make(name, **_tolerates(name))
    toy = fit(callback, **RUNS[run])
    assert isinstance(callback.findings, list)
    assert isinstance(callback.history, dict)
    assert num_hooks(toy) == 0


@every_callback
def test_works_with_several_loggers(name: str, tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path / "a"), TensorBoardLogger(tmp_path / "b"), CSVLogger(tmp_path)]
    fit(make(name), logger=loggers)
    assert (tmp_path / "a" / "lightning_logs" / "version_0" / "findings.json").exists()


@every_callback
def test_works_with_data_without_a_length(name: str) -> None:
    callback = make(name)
    toy = Toy()
    train, val = (DataLoader(Endless(), batch_size=BATCH_SIZE) for _ in range(2))
    trainer(callback).fit(toy, train, val)
    assert num_hooks(toy) == 0


@every_callback
def test_works_with_batches_of_an_unknown_type(name: str) -> None:
    callback = make(name, **FOR_UNKNOWN_BATCHES.get(name, {}))
    data = samples()
    loaders = [DataLoader(data, BATCH_SIZE, collate_fn=as_batch) for _ in range(2)]
    trainer(callback).fit(Toy(), *loaders)
    if name != "EarlyStopping":
        assert len(_table(callback)) > 0


@every_callback
@pytest.mark.filterwarnings("ignore:Early stopping conditioned on metric:RuntimeWarning")
def test_works_without_validation_at_all(name: str) -> None:
    toy = SilentToy()
    trainer(make(name, **_tolerates(name))).fit(toy, loader())
    assert num_hooks(toy) == 0


class SilentToy(LightningModule):
    """A module that neither validates nor logs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@every_callback
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_works_outside_fit(name: str, stage: str) -> None:
    callback, toy = make(name), Toy()
    toy.test_step = toy.validation_step  # type: ignore[method-assign]
    toy.predict_step = lambda batch, batch_idx: toy(batch[0])  # type: ignore[method-assign]
    getattr(trainer(callback), stage)(toy, loader())
    assert num_hooks(toy) == 0


# The user's run is not disturbed


def _random_state() -> tuple[Any, ...]:
    return (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))


@every_observer
def test_weights_and_random_numbers_are_those_of_a_run_without(name: str, tmp_path: Path) -> None:
    bare = fit(logger=CSVLogger(tmp_path / "bare"))
    state = _random_state()
    watched = fit(make(name), logger=CSVLogger(tmp_path / "watched"))
    assert _random_state() == state
    assert watched.state_dict().keys() == bare.state_dict().keys()
    for key, value in bare.state_dict().items():
        assert torch.equal(value, watched.state_dict()[key]), key


def test_all_observers_together_disturb_nothing(tmp_path: Path) -> None:
    bare = fit(logger=TensorBoardLogger(tmp_path / "bare"), val_check_interval=0.5)
    state = _random_state()
    callbacks = [make(name) for name in observers()]
    watched = fit(*callbacks, logger=TensorBoardLogger(tmp_path / "on"), val_check_interval=0.5)
    assert _random_state() == state
    assert all(
        torch.equal(value, watched.state_dict()[key]) for key, value in bare.state_dict().items()
    )


class Saboteur(Callback):
    """Breaks off a run in its second epoch."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == NUM_BATCHES + 2:
            raise self.error


class SaboteurInValidation(Callback):
    def on_validation_batch_end(self, *arguments: Any) -> None:
        raise RuntimeError("out of luck")


BREAKS: dict[str, tuple[Callable[[], Callback], type[BaseException]]] = {
    "exception": (lambda: Saboteur(RuntimeError("out of luck")), RuntimeError),
    "Ctrl-C": (lambda: Saboteur(KeyboardInterrupt()), SystemExit),
    "out of memory": (lambda: Saboteur(torch.OutOfMemoryError()), torch.OutOfMemoryError),
    "in the sanity check": (SaboteurInValidation, RuntimeError),
}


def _open_files() -> set[str]:
    links = Path("/proc/self/fd").glob("*")  # only Linux has it
    return {str(link.readlink()) for link in links if link.is_file()}


@every_callback
@pytest.mark.parametrize("how", [None, *BREAKS])
def test_nothing_is_left_after_a_run(name: str, how: str | None, tmp_path: Path) -> None:
    files, threads, toy = _open_files(), threading.active_count(), Toy()
    callback = make(name)
    modes = [module.training for module in toy.modules()]
    if how is None:
        fit(callback, module=toy)
    else:
        build, error = BREAKS[how]
        with pytest.raises(error):
            fit(callback, build(), module=toy)
    assert num_hooks(toy) == 0
    assert threading.active_count() == threads
    assert _open_files() == files
    if how is None:
        assert [module.training for module in toy.modules()] == modes


@every_observer
def test_nothing_of_the_graph_is_kept(name: str) -> None:
    callback = make(name)
    fit(callback)
    gc.collect()
    held = [value for value in gc.get_objects() if issubclass(type(value), torch.Tensor)]
    assert not [value.shape for value in held if value.grad_fn is not None]


# Quiet


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def _deep_toy() -> Toy:
    return Toy(
        nn.Sequential(nn.Linear(6, 8), *(nn.Linear(8, 8) for _ in range(198)), nn.Linear(8, 3))
    )


@every_callback
def test_at_most_ten_scalars_however_deep_the_model(name: str, tmp_path: Path) -> None:
    fit(make(name), module=_deep_toy(), logger=CSVLogger(tmp_path, "", ""), max_epochs=1)
    own = {key for row in _rows(tmp_path) for key in row} - {"epoch", "step", "val/loss"}
    assert len(own) <= 10
    assert all("/" in key for key in own)


@every_observer
def test_scalars_are_on_lightnings_own_step_axis(name: str, tmp_path: Path) -> None:
    fit(make(name), logger=CSVLogger(tmp_path, "", ""))
    rows = _rows(tmp_path)
    last_of_epoch = {str(NUM_BATCHES - 1), str(2 * NUM_BATCHES - 1)}
    steps = {row["step"] for row in rows}
    assert steps <= {str(step) for step in range(2 * NUM_BATCHES)}
    assert last_of_epoch <= steps


@every_observer
def test_one_figure_an_epoch(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = TensorBoardLogger(tmp_path)
    shown: list[int] = []
    monkeypatch.setattr(
        logger.experiment, "add_figure", lambda key, figure, global_step: shown.append(global_step)
    )
    fit(make(name), logger=logger)
    assert shown == [NUM_BATCHES - 1, 2 * NUM_BATCHES - 1]


@every_callback
@pytest.mark.parametrize("run", [{"fast_dev_run": True}, {"max_epochs": 0}])
def test_nothing_is_logged_in_a_sanity_check_or_a_trial_run(
    name: str, run: dict[str, Any], tmp_path: Path
) -> None:
    fit(make(name), logger=CSVLogger(tmp_path, "", ""), **run)
    assert not (tmp_path / "metrics.csv").exists()
    assert not list(tmp_path.rglob("*.png"))


# State


class Alike(Toy):
    """Every batch is the same, so that a resumed run sees what it would have seen."""

    def __init__(self) -> None:
        super().__init__(network(dropout=0.0))


def _alike_loader() -> DataLoader[Any]:
    x, y = samples(1).tensors
    return DataLoader(TensorDataset(x.repeat(NUM_BATCHES, 1), y.repeat(NUM_BATCHES)), BATCH_SIZE)


def _fit_alike(*callbacks: Callback, ckpt_path: str | None = None) -> None:
    torch.manual_seed(0)
    saves = isinstance(callbacks[-1], Checkpoint)
    run = trainer(*callbacks, max_epochs=3, enable_checkpointing=saves)
    run.fit(Alike(), _alike_loader(), _alike_loader(), ckpt_path=ckpt_path, weights_only=True)


class Crash(Checkpoint):
    """Saves a checkpoint, after all other callbacks, and ends the run like a lost machine does."""

    def __init__(self, step: int | None = None, epoch: int | None = None) -> None:
        self.step, self.epoch = step, epoch

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            self._crash(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            self._crash(trainer)

    def _crash(self, trainer: Trainer) -> None:
        trainer.save_checkpoint("crash.ckpt")
        raise RuntimeError("lost")


@every_callback
@pytest.mark.parametrize("when", [{"step": 4}, {"epoch": 0}, {"step": NUM_BATCHES + 3}])
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
def test_resumed_run_ends_like_an_uninterrupted_one(name: str, when: dict[str, int]) -> None:
    whole, first, second = (make(name) for _ in range(3))
    _fit_alike(whole)
    with pytest.raises(RuntimeError, match=r"^lost$"):
        _fit_alike(first, Crash(**when))
    _fit_alike(second, ckpt_path="crash.ckpt")
    pd.testing.assert_frame_equal(_table(second), _table(whole))
    assert second.findings == whole.findings


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "cloudpickle": lambda value: cloudpickle.loads(cloudpickle.dumps(value)),
}


@every_callback
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("after_fit", [False, True])
def test_copies_can_be_used(name: str, how: str, after_fit: bool) -> None:
    callback = make(name)
    if after_fit:
        fit(callback)
    other = COPIES[how](callback)
    if after_fit:
        pd.testing.assert_frame_equal(_table(other), _table(callback))
        assert other.findings == callback.findings
    fit(other)
    assert num_hooks(fit(other)) == 0


@every_callback
def test_copies_do_not_take_the_module_along(name: str) -> None:
    callback, toy = make(name), Toy()
    toy.ballast = torch.zeros(1_000_000)  # type: ignore[assignment]
    fit(callback, module=toy)
    assert len(pickle.dumps(callback)) < 1_000_000


@every_callback
def test_module_can_be_copied_during_the_run(name: str) -> None:
    class Copier(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            copy.deepcopy(pl_module.net)
            torch.save(pl_module.net, "net.pt")

    fit(make(name), Copier())


@every_callback
def test_one_callback_in_two_trainers(name: str) -> None:
    callback, alone = make(name), make(name)
    fit(callback, seed=1)
    fit(callback, seed=2)
    fit(alone, seed=2)
    pd.testing.assert_frame_equal(_table(callback), _table(alone))
    assert callback.findings == alone.findings


@every_callback
def test_fit_twice_goes_on(name: str) -> None:
    callback, toy = make(name), Toy()
    run = trainer(callback, max_epochs=1)
    run.fit(toy, loader(), loader())
    before = _table(callback)
    run.fit_loop.max_epochs = 2
    run.fit(toy, loader(), loader())
    after = _table(callback)
    assert len(after) >= len(before)
    pd.testing.assert_frame_equal(after.iloc[: len(before)], before)
    assert num_hooks(toy) == 0


@every_callback
def test_reading_before_a_run_is_refused(name: str) -> None:
    callback = make(name)
    for what in ("findings", "history"):
        sentence = f"^`{name}.{what}` cannot be read because no run has reached this object"
        with pytest.raises(MisuseError, match=sentence):
            getattr(callback, what)


@every_observer
def test_history_is_a_tidy_table_and_can_be_drawn(name: str) -> None:
    callback = make(name)
    fit(callback)
    table = _table(callback)
    assert {"step", "epoch"} <= set(table.columns)
    assert not table.duplicated(["step", "layer"] if "layer" in table else ["step"]).any()
    figure, axes = callback.plot()
    assert axes is not None
    figure.savefig("figure.png")


# Arguments


@pytest.fixture
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])


@every_callback
@pytest.mark.usefixtures("no_arguments")
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_can_be_made_from_yaml(name: str, tmp_path: Path) -> None:
    options = OPTIONS[name]
    config = {
        "trainer": {
            "callbacks": [
                {"class_path": f"lightning_depth.callbacks.{name}", "init_args": options}
            ],
            "logger": False,
        }
    }
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    cli = LightningCLI(
        Toy,
        run=False,
        save_config_callback=None,
        args=["--config", str(tmp_path / "config.yaml")],
    )
    assert type(cli.trainer.callbacks[0]) is getattr(lightning_depth.callbacks, name)


@every_callback
@pytest.mark.usefixtures("no_arguments")
@pytest.mark.parametrize("target", ["os.system", "subprocess.call"])
def test_yaml_cannot_name_an_arbitrary_callable(
    name: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**OPTIONS[name], "on_finding": target}
    callback = {"class_path": f"lightning_depth.callbacks.{name}", "init_args": options}
    config = OmegaConf.create({"trainer": {"callbacks": [callback]}})
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config))
    with pytest.raises(SystemExit):
        LightningCLI(Toy, run=False, args=["--config", str(tmp_path / "config.yaml")])
    assert "on_finding" in capsys.readouterr().err


@every_layer_watcher
def test_lists_may_be_those_of_omegaconf(name: str) -> None:
    lists = OmegaConf.create({"include": ["net.*"], "exclude": ["net.0"]})
    callback = make(name, include=lists.include, exclude=lists.exclude)
    fit(callback)
    assert _watched(callback) == {"net.1", "net.2", "net.3", "net.5"}
    pickle.dumps(callback.state_dict())


# Projects as they are


class Momentum(Toy):
    """A student, its momentum copies, and things that are no layers."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)
        self.average = AveragedModel(self.net)
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(3))


@every_layer_watcher
def test_momentum_copies_and_losses_are_left_out(name: str) -> None:
    callback = make(name)
    fit(callback, module=Momentum())
    assert {layer.split(".")[0] for layer in _watched(callback)} == {"net"}


class Siamese(Toy):
    """Runs its network on two views in every step."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.add(self.net(x), self.net(x + 0.1))


@every_layer_watcher
def test_network_that_runs_twice_in_a_step_is_one(name: str) -> None:
    callback, alone = make(name), make(name)
    fit(callback, module=Siamese())
    fit(alone, module=Toy())
    assert callback.history["layer"] == alone.history["layer"]


@every_callback
def test_run_without_loggers_is_no_failure(name: str, tmp_path: Path) -> None:
    fit(make(name), logger=False, default_root_dir=tmp_path)
    assert (tmp_path / "findings.json").exists()


def test_all_callbacks_print_one_box(capsys: pytest.CaptureFixture[str]) -> None:
    fit(*(make(name) for name in public_callbacks()))
    assert capsys.readouterr().out.count("+-- depth verdict") == 1
