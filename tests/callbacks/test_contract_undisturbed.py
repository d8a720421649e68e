"""No callback disturbs the user's run, and nothing of it is left behind."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from tests.callbacks._runs import (
    NUM_BATCHES,
    Toy,
    every_callback,
    every_observer,
    fit,
    make,
    num_hooks,
    observers,
)


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


def _tensors_with_a_graph() -> dict[int, torch.Tensor]:
    gc.collect()
    tensors = [value for value in gc.get_objects() if issubclass(type(value), torch.Tensor)]
    return {id(tensor): tensor for tensor in tensors if tensor.grad_fn is not None}


@every_observer
def test_nothing_of_the_graph_is_kept(name: str) -> None:
    of_other_tests = _tensors_with_a_graph()
    callback = make(name)
    fit(callback)
    kept = _tensors_with_a_graph().keys() - of_other_tests.keys()
    assert not kept
