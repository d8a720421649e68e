"""Error and loss on the training data in evaluation mode."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.dummy import DummyClassifier
from sklearn.metrics import log_loss, zero_one_loss
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchmetrics import MeanAbsoluteError

from lightning_depth.callbacks import TrainingErrorMonitor
from lightning_depth.errors import ConfigurationError
from tests.callbacks.stopping_models import QUIET

QUIET_TWO_EPOCHS = {**QUIET, "max_epochs": 2}


def digits(num_samples: int = 300) -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images[:num_samples] / 16).float(), torch.tensor(labels[:num_samples])


def shuffled_loader(dataset: Dataset[Any] | None = None) -> DataLoader[Any]:
    return DataLoader(dataset or TensorDataset(*digits()), 32, shuffle=True)


class DigitsModule(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.net(inputs)
        return output

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: pl.LightningModule, *callbacks: Any, data: Any = None, **options: Any) -> None:
    trainer = pl.Trainer(**{**QUIET_TWO_EPOCHS, "callbacks": list(callbacks), **options})
    trainer.fit(module, data if data is not None else shuffled_loader())


def test_last_row_is_what_sklearn_finds() -> None:
    torch.manual_seed(0)
    module, monitor = DigitsModule(), TrainingErrorMonitor()
    fit(module, monitor)

    inputs, labels = digits()
    module.eval()
    probabilities = module(inputs).detach().double().softmax(1).numpy()
    history = monitor.history
    assert history["epoch"] == [0, 1]
    assert history["step"] == [10, 20]
    assert history["num_samples"] == [300, 300]
    assert history["error"][-1] == pytest.approx(zero_one_loss(labels, probabilities.argmax(1)))
    assert history["loss"][-1] == pytest.approx(log_loss(labels, probabilities), rel=1e-5)


def test_chance_is_that_of_a_dummy_classifier() -> None:
    monitor = TrainingErrorMonitor()
    assert (monitor.chance_error, monitor.chance_loss) == (None, None)
    fit(DigitsModule(), monitor)
    inputs, labels = digits()
    dummy = DummyClassifier(strategy="prior").fit(inputs, labels)
    assert monitor.chance_error == pytest.approx(1 - dummy.score(inputs, labels))
    assert monitor.chance_loss == pytest.approx(log_loss(labels, dummy.predict_proba(inputs)))


def final_state(*callbacks: Any, **options: Any) -> tuple[dict[str, Tensor], list[Any]]:
    pl.seed_everything(7, verbose=False)
    module = DigitsModule()
    module.net[1].eval()  # a frozen BatchNorm stays in evaluation mode
    with pytest.warns(UserWarning, match="in eval mode at the start of training"):
        fit(module, *callbacks, **options)
    flags = [part.training for part in module.modules()]
    rng = [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # type: ignore[index]
    return module.state_dict(), [flags, rng]


def test_training_is_bit_identical_with_and_without() -> None:
    weights, rest = final_state()
    watched_weights, watched_rest = final_state(TrainingErrorMonitor(max_samples=50))
    assert all(torch.equal(weights[name], watched_weights[name]) for name in weights)
    assert rest == watched_rest


class Augmented(Dataset[Any]):
    """Samples with noise from all three generators, as transforms add it."""

    def __init__(self) -> None:
        self.inputs, self.labels = digits()
        self.reads = 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads += 1
        noise = torch.rand(1) + np.random.rand() + random.random()
        return self.inputs[index] + 0.01 * noise.float(), self.labels[index]


def test_random_transforms_do_not_disturb_training_either() -> None:
    weights, rest = final_state(data=shuffled_loader(Augmented()))
    watched, watched_rest = final_state(TrainingErrorMonitor(), data=shuffled_loader(Augmented()))
    assert all(torch.equal(weights[name], watched[name]) for name in weights)
    assert rest == watched_rest


def test_training_data_are_read_by_training_alone() -> None:
    data = Augmented()
    fit(DigitsModule(), TrainingErrorMonitor(max_samples=40), data=shuffled_loader(data))
    assert data.reads == 2 * 300


class WithEvaluationLoader(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return shuffled_loader(Augmented())

    def train_eval_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*digits(64)), 16)


def test_evaluation_loader_of_the_data_module_is_preferred() -> None:
    monitor = TrainingErrorMonitor()
    fit(DigitsModule(), monitor, data=WithEvaluationLoader())
    assert monitor.history["num_samples"] == [64, 64]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(*digits(), strict=True)


def test_data_without_index_is_covered_by_its_first_batches() -> None:
    torch.manual_seed(0)
    module, monitor = DigitsModule(), TrainingErrorMonitor(max_samples=100)
    fit(module, monitor, data=DataLoader(Stream(), 32))
    assert monitor.history["num_samples"] == [128, 128]
    inputs, labels = digits(128)
    wrong = (module.eval()(inputs).argmax(1) != labels).float().mean()
    assert monitor.history["error"][-1] == pytest.approx(float(wrong))


def test_overfit_batches_narrows_the_share() -> None:
    monitor = TrainingErrorMonitor()
    fit(DigitsModule(), monitor, data=DataLoader(TensorDataset(*digits()), 32), overfit_batches=2)
    assert monitor.history["num_samples"] == [64, 64]


def test_every_second_epoch() -> None:
    monitor = TrainingErrorMonitor(every_n_epochs=2)
    fit(DigitsModule(), monitor, max_epochs=5)
    assert monitor.history["epoch"] == [1, 3]


class DictModule(DigitsModule):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits, labels = self.logits(batch)
        return nn.functional.cross_entropy(logits, labels)

    def logits(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self(batch["image"]), batch["label"]


class Dicts(Dataset[Any]):
    def __len__(self) -> int:
        return 300

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        inputs, labels = digits()
        return {"image": inputs[index], "label": labels[index]}


def test_other_batches_go_through_a_named_method() -> None:
    monitor = TrainingErrorMonitor(max_samples=20, predict="logits")
    fit(DictModule(), monitor, data=DataLoader(Dicts(), 100), max_epochs=1)
    assert monitor.history["num_samples"] == [100]  # whole batches, the first is enough


def test_other_batches_without_a_method_are_told_what_would_help() -> None:
    sentence = (
        r"^TrainingErrorMonitor measures nothing: the module has no `validation_step`, and it is "
        r"no classification by `module\(x\)` \(a batch is a dict and not \(x, y\)\): give the "
        r"module a `validation_step` that logs and takes training batches, or name a method that "
        r"returns outputs and targets, as `TrainingErrorMonitor\(predict='my_method', "
        r"loss=\.\.\., error=\.\.\.\)`\.$"
    )
    with pytest.warns(UserWarning, match=sentence):
        fit(DictModule(), TrainingErrorMonitor(), data=DataLoader(Dicts(), 100))


def test_unknown_method_is_refused() -> None:
    sentence = r"^`predict` must be the name of a method of DigitsModule, but got 'logit'\.$"
    with pytest.raises(ConfigurationError, match=sentence):
        fit(DigitsModule(), TrainingErrorMonitor(predict="logit"))


class Regression(DigitsModule):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self(batch[0])[:, 0], batch[1])

    def answer(self, batch: Any) -> tuple[Tensor, Tensor]:
        return self(batch[0])[:, 0], batch[1]


def test_regression_with_its_own_loss_and_error() -> None:
    torch.manual_seed(0)
    inputs, labels = digits()
    module = Regression()
    monitor = TrainingErrorMonitor(predict="answer", loss=nn.MSELoss(), error=MeanAbsoluteError())
    fit(module, monitor, data=DataLoader(TensorDataset(inputs, labels.float()), 32))
    answers = module.eval()(inputs)[:, 0].detach()
    assert monitor.history["loss"][-1] == pytest.approx(
        float(((answers - labels) ** 2).mean()), rel=1e-5
    )
    assert monitor.history["error"][-1] == pytest.approx(
        float((answers - labels).abs().mean()), rel=1e-5
    )


def test_logged_values_can_be_monitored() -> None:
    module = DigitsModule()
    trainer = pl.Trainer(**QUIET_TWO_EPOCHS, callbacks=[monitor := TrainingErrorMonitor()])
    trainer.fit(module, shuffled_loader())
    assert float(trainer.callback_metrics["train_error/error"]) == pytest.approx(
        monitor.history["error"][-1]
    )


def test_compiled_module_is_not_compiled_again() -> None:
    torch._dynamo.reset()
    module: Any = torch.compile(DigitsModule(), backend="eager")
    monitor = TrainingErrorMonitor()
    fit(module, monitor, data=DataLoader(TensorDataset(*digits(256)), 32))
    assert monitor.history["num_samples"] == [256, 256]


def test_figure_has_both_curves() -> None:
    monitor = TrainingErrorMonitor()
    fit(DigitsModule(), monitor)
    _, axes = monitor.plot()
    assert axes.get_ylabel() == "error"
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == monitor.history["error"]
