"""What a trial of a study costs over the bare Trainer, and what each callback adds.

    python -m tests.benchmarks.trial_cost --arm plain-20

The bare run is a LightningModule as users write it, with the same network, data, optimizer,
schedule, epochs and logger. Timed is `Trainer.fit` alone. A study's trials have no logger; with
`--logger csv` each callback also draws its figure, once, when the run ends.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_depth.data import Digits
from lightning_depth.modules import Classifier
from lightning_depth.study import Study
from lightning_depth.study._reading import Place
from lightning_depth.study.building import (
    build_callbacks,
    build_network,
    build_optimizer,
    build_scheduler,
)
from lightning_depth.study.recipes import find_recipe
from lightning_depth.study.trial import _Recorder
from tests.benchmarks._paired import HEADER, compare

PLACE = Place("benchmark")


class Bare(LightningModule):
    """Cross-entropy on a network, as in Lightning's own examples."""

    def __init__(self, network: nn.Module, study: Study) -> None:
        super().__init__()
        self.network = network
        self.study = study

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels = batch
        loss = cross_entropy(self.network(inputs), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, labels = batch
        logits = self.network(inputs)
        self.log("val_loss", cross_entropy(logits, labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.study.optimizer, PLACE)(self.parameters())
        scheduler: Any = build_scheduler(self.study.scheduler, PLACE)
        steps = int(self.trainer.estimated_stepping_batches)
        cycle = scheduler(optimizer, total_steps=steps)
        return [optimizer], [{"scheduler": cycle, "interval": "step"}]


class Fits:
    """Makes runs that differ in the module and its callbacks alone."""

    def __init__(self, recipe: str, arm: str, epochs: int, folder: Path, csv: bool) -> None:
        self.study = Study.from_yaml(find_recipe(recipe))
        self.arm = next(found for found in self.study.arms if found.name == arm)
        self.epochs = epochs or self.study.epochs
        self.folder = folder
        self.csv = csv
        self.data = Digits()
        self.data.setup()

    def run(self, make: Callable[[nn.Module], tuple[LightningModule, list[Any]]]) -> None:
        seed_everything(0, verbose=False)
        data = self.data
        network = build_network(self.arm.network, data.input_shape, data.num_classes, PLACE)
        module, callbacks = make(network)
        trainer = Trainer(
            max_epochs=self.epochs,
            accelerator="cpu",
            logger=CSVLogger(self.folder) if self.csv else False,
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        with contextlib.redirect_stdout(io.StringIO()):  # the verdict box, printed at the end
            trainer.fit(module, datamodule=data)
        shutil.rmtree(self.folder / "lightning_logs", ignore_errors=True)

    def bare(self, network: nn.Module) -> tuple[LightningModule, list[Any]]:
        return Bare(network, self.study), []

    def trial(self, *names: str) -> Callable[[nn.Module], tuple[LightningModule, list[Any]]]:
        def make(network: nn.Module) -> tuple[LightningModule, list[Any]]:
            module = Classifier(
                network,
                build_optimizer(self.study.optimizer, PLACE),
                build_scheduler(self.study.scheduler, PLACE),
            )
            options = {name: dict(self.study.callbacks.get(name, {})) for name in names}
            callbacks = build_callbacks(options, PLACE).values()
            return module, [_Recorder(lambda epochs: None), *callbacks]

        return make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="degradation", help="recipe whose arm is trained")
    parser.add_argument("--arm", default="plain-20", help="arm of the recipe")
    parser.add_argument("--epochs", type=int, default=0, help="epochs; 0 takes the recipe's")
    parser.add_argument("--logger", choices=("none", "csv"), default="none", help="on both sides")
    parser.add_argument("--seconds", type=float, default=600, help="time after which it ends")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, not wall")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning_depth"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        fits = Fits(
            options.recipe, options.arm, options.epochs, Path(folder), options.logger == "csv"
        )
        names = list(fits.study.callbacks)
        sets = {
            "trial, callbacks off": (),
            **{f"trial with {name}": (name,) for name in names},
            "trial, all callbacks": tuple(names),
        }
        lines = compare(
            partial(fits.run, fits.bare),
            {name: partial(fits.run, fits.trial(*chosen)) for name, chosen in sets.items()},
            precision=0.05,  # the nearest bound is 1.05
            max_seconds=options.seconds,
            clock=time.process_time if options.cpu_time else time.perf_counter,
        )
    print(HEADER, *lines, sep="\n")


if __name__ == "__main__":
    main()
