"""Modules whose own step tells nothing: classes are counted where they are classes, else not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics import MeanAbsoluteError
from torchmetrics.classification import MultilabelHammingDistance

from lightning_depth.callbacks import EarlyStopping, TrainingErrorMonitor
from tests.callbacks._runs import trainer

CLASSES, WIDTH, NUM = 4, 6, 48

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(NUM, WIDTH, generator=GENERATOR)
Y = torch.randint(CLASSES, (NUM,), generator=GENERATOR)
IMAGES = torch.randn(NUM, 3, 4, 4, generator=GENERATOR)
MASKS = (IMAGES.sum(1) > 0).long()


class Net(pl.LightningModule):
    """A module without validation."""

    def __init__(self, net: nn.Module, compare: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.compare = net, compare

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.net(x)
        return output

    def answer(self, batch: Any) -> tuple[Tensor, Tensor]:
        return self(batch[0]), batch[1]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.compare(*self.answer(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(module: Net, x: Tensor, y: Tensor, **options: Any) -> TrainingErrorMonitor:
    monitor = TrainingErrorMonitor(**options)
    trainer(monitor).fit(module, DataLoader(TensorDataset(x, y), 10, shuffle=True))
    return monitor


def wrong(logits: Tensor, labels: Tensor) -> Any:
    return pytest.approx((logits.argmax(1) != labels).double().mean().item())


def entropy(logits: Tensor, labels: Tensor) -> Any:
    return pytest.approx(functional.cross_entropy(logits.double(), labels).item(), rel=1e-5)


def bits(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits.flatten(), targets.flatten().float())


NOT_CLASSES: dict[str, tuple[nn.Module, Tensor, Tensor, Any, str]] = {
    "one logit, float": (nn.Linear(WIDTH, 1), X, (Y % 2).float()[:, None], bits, "torch.float32"),
    "one logit, flat": (
        nn.Sequential(nn.Linear(WIDTH, 1), nn.Flatten(0)),
        *(X, (Y % 2).float(), bits, "torch.float32"),
    ),
    "one logit, integers": (nn.Linear(WIDTH, 1), X, Y % 2, bits, "there is one logit a sample"),
    "one logit, column": (nn.Linear(WIDTH, 1), X, (Y % 2)[:, None], bits, "no scores (B, C)"),
    "one logit, booleans": (nn.Linear(WIDTH, 1), X, (Y % 2).bool(), bits, "torch.bool"),
    "regression": (nn.Linear(WIDTH, 1), X, X.sum(1, keepdim=True), functional.mse_loss, "float32"),
    "regression of several": (nn.Linear(WIDTH, 3), X, X[:, :3], functional.mse_loss, "float32"),
    "several labels": (nn.Linear(WIDTH, 4), X, (X[:, :4] > 0).float(), bits, "no class numbers"),
    "several labels, integers": (nn.Linear(WIDTH, 4), X, (X[:, :4] > 0).long(), bits, "no scores"),
    "pixels": (nn.Conv2d(3, 2, 1), IMAGES, MASKS, functional.cross_entropy, "no scores (B, C)"),
    "pixels with channels": (
        nn.Conv2d(3, 2, 1),
        IMAGES,
        MASKS[:, None],
        lambda output, target: functional.cross_entropy(output, target[:, 0]),
        "no scores (B, C)",
    ),
    "scores last": (
        nn.Linear(WIDTH, CLASSES),
        X[:, None].repeat(1, 4, 1),
        Y[:, None].repeat(1, 4),
        lambda output, target: functional.cross_entropy(output.flatten(0, 1), target.flatten()),
        "no scores (B, C)",
    ),
    "a label too many": (
        nn.Linear(WIDTH, CLASSES),
        X,
        torch.where(Y == 0, 255, Y),
        lambda output, target: functional.cross_entropy(output, target, ignore_index=255),
        "label 255 is none of the 4 classes",
    ),
}


@pytest.mark.parametrize("kind", NOT_CLASSES)
def test_what_is_no_classification_gets_a_sentence_and_no_number(kind: str) -> None:
    net, x, y, compare, reason = NOT_CLASSES[kind]
    with pytest.warns(UserWarning, match="^TrainingErrorMonitor measures nothing: .*predict=") as w:
        monitor = run(Net(net, compare), x, y)
    assert len([each for each in w if "measures nothing" in str(each.message)]) == 1
    assert reason in monitor._summary()
    assert monitor._summary().startswith("TrainingErrorMonitor measured nothing: the module has no")
    assert monitor.history == {}
    assert monitor.findings == []
    assert (monitor.chance_error, monitor.chance_loss) == (None, None)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integers_of_every_kind_are_class_numbers(dtype: torch.dtype) -> None:
    def compare(output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target.long())

    module = Net(nn.Linear(WIDTH, CLASSES), compare)
    monitor = run(module, X, Y.to(dtype))
    logits = module(X).detach()
    assert monitor.history["error"][-1] == wrong(logits, Y)
    assert monitor.history["loss"][-1] == entropy(logits, Y)


class OwnLoss(Net):
    def __init__(self, ignored: int) -> None:
        loss = nn.CrossEntropyLoss(ignore_index=ignored)
        super().__init__(nn.Linear(WIDTH, CLASSES), loss)


@pytest.mark.parametrize("ignored", [-100, -1, 255])
def test_labels_that_the_modules_loss_ignores_do_not_count(ignored: int) -> None:
    module = OwnLoss(ignored)
    monitor = run(module, X, torch.where(Y == 0, ignored, Y))
    logits, left = module(X).detach()[Y != 0], Y[Y != 0]
    assert monitor.history["error"][-1] == wrong(logits, left)
    assert monitor.history["loss"][-1] == entropy(logits, left)
    assert monitor.chance_error == pytest.approx(1 - float(left.bincount().max()) / len(left))


# A named method answers for what it returns.


class Graphs(Dataset[Any]):
    """Graphs of different sizes: one label a node."""

    def __init__(self) -> None:
        sizes = torch.randint(1, 9, (NUM,), generator=torch.Generator().manual_seed(1)).tolist()
        self.items = [(X[:size], (Y[:size] + size) % CLASSES) for size in sizes]

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.items[index]


def join(items: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {"x": torch.cat([x for x, _ in items]), "y": torch.cat([y for _, y in items])}


class OnGraphs(Net):
    def answer(self, batch: Any) -> tuple[Tensor, Tensor]:
        return self(batch["x"]), batch["y"]


@pytest.mark.parametrize("loss", [None, nn.CrossEntropyLoss()])
def test_every_row_that_a_method_returns_is_an_answer(loss: nn.Module | None) -> None:
    module = OnGraphs(nn.Linear(WIDTH, CLASSES), functional.cross_entropy)
    monitor = TrainingErrorMonitor(predict="answer", loss=loss)
    trainer(monitor).fit(module, DataLoader(Graphs(), 8, shuffle=True, collate_fn=join))
    logits, labels = module.answer(join(Graphs().items))
    history = monitor.history
    assert history["num_samples"] == [NUM, NUM]
    assert history["error"][-1] == wrong(logits, labels)
    assert history["loss"][-1] == entropy(logits, labels)


class Tokens(Net):
    def __init__(self) -> None:
        super().__init__(nn.Embedding(9, 9), functional.cross_entropy)

    def answer(self, batch: Any) -> tuple[Tensor, Tensor]:
        tokens = batch[0]
        return self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()


def test_every_token_is_an_answer() -> None:
    tokens = torch.randint(9, (NUM, 7), generator=torch.Generator().manual_seed(2))
    module, monitor = Tokens(), TrainingErrorMonitor(predict="answer")
    trainer(monitor).fit(module, DataLoader(TensorDataset(tokens), 16))
    logits, labels = module.answer((tokens,))
    assert monitor.history["error"][-1] == wrong(logits, labels)


def test_pixels_are_counted_where_a_method_vouches_for_the_axes() -> None:
    masks = MASKS.clone()
    masks[:, 0] = -100
    module = Net(nn.Conv2d(3, 2, 1), functional.cross_entropy)
    monitor = run(module, IMAGES, masks, predict="answer")
    rows, known = module(IMAGES).movedim(1, -1), masks != -100
    assert monitor.history["error"][-1] == wrong(rows[known], masks[known])
    assert monitor.history["loss"][-1] == entropy(rows[known], masks[known])


def test_a_loss_alone_is_measured_alone() -> None:
    module = Net(nn.Linear(WIDTH, 1), functional.mse_loss)
    targets = X.sum(1, keepdim=True)
    monitor = run(module, X, targets, loss=nn.MSELoss())
    assert "error" not in monitor.history
    expected = functional.mse_loss(module(X), targets).item()
    assert monitor.history["loss"][-1] == pytest.approx(expected, rel=1e-5)
    assert monitor.chance_loss is None


def test_a_metric_alone_is_measured_alone() -> None:
    module, labels = Net(nn.Linear(WIDTH, 3), bits), (X[:, :3] > 0).float()
    monitor = run(module, X, labels.long(), predict="answer", error=MultilabelHammingDistance(3))
    assert "loss" not in monitor.history
    missed = ((module(X) > 0) != labels.bool()).double().mean().item()
    assert monitor.history["error"][-1] == pytest.approx(missed)


def test_a_method_that_gives_no_classes_is_told_what_to_name() -> None:
    module = Net(nn.Linear(WIDTH, 1), functional.mse_loss)
    with pytest.warns(
        UserWarning, match="^TrainingErrorMonitor measures nothing: `answer` does not"
    ):
        monitor = run(module, X, X.sum(1, keepdim=True), predict="answer")
    assert "no class numbers" in monitor._summary()


def test_regression_by_loss_and_metric_of_its_own() -> None:
    module, targets = Net(nn.Linear(WIDTH, 1), functional.mse_loss), X.sum(1, keepdim=True)
    monitor = run(module, X, targets, loss=nn.MSELoss(), error=MeanAbsoluteError())
    distance = (module(X) - targets).abs().mean().item()
    assert monitor.history["error"][-1] == pytest.approx(distance, rel=1e-5)


# Batches that only the module understands.


class OneHot(Net):
    def answer(self, batch: Any) -> tuple[Tensor, Tensor]:
        return self(functional.one_hot(batch[0], CLASSES).float()), batch[1]


def test_what_only_the_module_knows_does_not_end_the_run() -> None:
    module = OneHot(nn.Linear(CLASSES, CLASSES), functional.cross_entropy)
    run_of, monitor = trainer(monitor := TrainingErrorMonitor()), monitor
    with pytest.warns(UserWarning, match="^TrainingErrorMonitor measures nothing"):
        run_of.fit(module, DataLoader(TensorDataset(Y, Y), 8))
    assert run_of.current_epoch == 2
    assert "RuntimeError" in monitor._summary()


class OneHotValidated(OneHot):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("valid_loss", self.compare(*self.answer(batch)))


def test_the_modules_step_knows_what_to_ask_it() -> None:
    module = OneHotValidated(nn.Linear(CLASSES, CLASSES), functional.cross_entropy)
    monitor, data = TrainingErrorMonitor(), DataLoader(TensorDataset(Y, Y), 8)
    trainer(monitor).fit(module, data, data)
    assert monitor.history["loss"] == pytest.approx(monitor.history["val/loss"], rel=1e-5)


class OtherForm(Net):
    """Validates on batches of three."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y, weights = batch
        self.log(
            "val_loss", (functional.cross_entropy(self(x), y, reduction="none") * weights).mean()
        )


def test_training_batches_of_another_form_are_counted_by_class() -> None:
    module = OtherForm(nn.Linear(WIDTH, CLASSES), functional.cross_entropy)
    monitor = TrainingErrorMonitor()
    three = DataLoader(TensorDataset(X, Y, torch.ones(NUM)), 16)
    trainer(monitor).fit(module, DataLoader(TensorDataset(X, Y), 16), three)
    assert monitor.twin_of("val_loss") is None
    wrong = float((module(X).argmax(1) != Y).double().mean())
    assert monitor.history["error"][-1] == pytest.approx(wrong)
    assert (
        "`validation_step` on training batches failed (ValueError: not enough" in monitor._summary()
    )


class Silent(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.answer(batch)


def test_a_step_that_logs_nothing_is_counted_by_class() -> None:
    module, monitor = (
        Silent(nn.Linear(WIDTH, CLASSES), functional.cross_entropy),
        TrainingErrorMonitor(),
    )
    data = DataLoader(TensorDataset(X, Y), 16)
    trainer(monitor).fit(module, data, data)
    assert set(monitor.history) == {"epoch", "step", "error", "loss", "num_samples"}
    assert "logs nothing by `self.log`" in monitor._summary()


class OneLogit(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.compare(*self.answer(batch)))


def test_binary_classification_is_measured_and_judged_by_its_own_loss() -> None:
    module = OneLogit(nn.Linear(WIDTH, 1), bits)
    stopping, monitor = EarlyStopping("val_loss", patience=99), TrainingErrorMonitor()
    data = DataLoader(TensorDataset(X, (Y % 2).float()[:, None]), 16)
    trainer(monitor, stopping, max_epochs=6).fit(module, data, data)
    expected = bits(module(X), Y % 2).item()
    assert monitor.history["loss"][-1] == pytest.approx(expected, rel=1e-5)
    assert "error" not in monitor.history
    assert monitor.chance_loss is None
