"""What a Classifier logs, steps and shrinks, against torch and torchmetrics."""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed
import torchvision
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional import accuracy

from lightning_depth.callbacks import TrainingErrorMonitor
from lightning_depth.data import Digits
from lightning_depth.errors import ConfigurationError
from lightning_depth.modules import Classifier, build_optimizer

NUM_TRAIN, NUM_VAL = 40, 13
sgd = build_optimizer("SGD", lr=0.1)


def samples(num_samples: int, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_samples, 6, generator=generator)
    return TensorDataset(inputs, torch.randint(3, (num_samples,), generator=generator))


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def quiet_trainer(**options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        **{"max_epochs": 2, "accelerator": "cpu", "logger": False, "num_sanity_val_steps": 0},
        **{"enable_checkpointing": False, "enable_progress_bar": False},
        **{"enable_model_summary": False},
    }
    return Trainer(**{**defaults, **options})


def fit(model: Classifier, **options: Any) -> Trainer:
    trainer = quiet_trainer(**options)
    trainer.fit(model, DataLoader(samples(NUM_TRAIN), 8), DataLoader(samples(NUM_VAL, 1), 4))
    return trainer


def test_logged_means_are_those_of_all_samples() -> None:
    model = Classifier(network(), build_optimizer("SGD", lr=0.0))
    logged = fit(model, max_epochs=1).callback_metrics
    for stage, data in (("train", samples(NUM_TRAIN)), ("val", samples(NUM_VAL, 1))):
        inputs, targets = data.tensors
        logits = network()(inputs)
        right = accuracy(logits, targets, task="multiclass", num_classes=3)
        torch.testing.assert_close(logged[f"{stage}/loss"], cross_entropy(logits, targets))
        torch.testing.assert_close(logged[f"{stage}/accuracy"], right)
        torch.testing.assert_close(logged[f"{stage}/error"], 1 - right)


def test_test_pass_logs_and_predict_returns_scores() -> None:
    model = Classifier(network(), sgd)
    trainer = quiet_trainer()
    (logged,) = trainer.test(model, DataLoader(samples(NUM_VAL), 4), verbose=False)
    assert set(logged) == {"test/loss", "test/error", "test/accuracy"}
    scores = trainer.predict(model, DataLoader(samples(NUM_VAL), 4))
    assert scores is not None
    torch.testing.assert_close(torch.cat(scores), network()(samples(NUM_VAL).tensors[0]))  # type: ignore[arg-type]


def test_training_steps_are_those_of_a_plain_loop() -> None:
    model = Classifier(network(), build_optimizer("SGD", lr=0.1, momentum=0.9))
    logged = fit(model, num_sanity_val_steps=2).callback_metrics
    twin = network()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        losses = []
        for inputs, targets in DataLoader(samples(NUM_TRAIN), 8):
            optimizer.zero_grad()
            losses.append(cross_entropy(twin(inputs), targets))
            losses[-1].backward()
            optimizer.step()
    for trained, expected in zip(model.network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(trained, expected)
    # of the second epoch alone, and of its validation alone
    torch.testing.assert_close(logged["train/loss"], torch.stack(losses).mean().detach())
    inputs, targets = samples(NUM_VAL, 1).tensors
    torch.testing.assert_close(logged["val/loss"], cross_entropy(twin(inputs), targets).detach())


def test_second_label_of_a_batch_is_left_alone() -> None:
    with_two = TensorDataset(*samples(NUM_TRAIN).tensors, torch.zeros(NUM_TRAIN))
    loader, monitor = DataLoader(with_two, 8), TrainingErrorMonitor(predict="predict_batch")
    model = Classifier(network(), build_optimizer("SGD", lr=0.0))
    trainer = quiet_trainer(max_epochs=1, callbacks=[monitor])
    trainer.fit(model, loader, loader)
    error = float(trainer.callback_metrics["train/error"])
    assert monitor.history["error"] == pytest.approx([error])


def test_label_smoothing_enters_the_loss() -> None:
    model = Classifier(network(), build_optimizer("SGD", lr=0.0), label_smoothing=0.3)
    logged = fit(model, max_epochs=1).callback_metrics["val/loss"]
    inputs, targets = samples(NUM_VAL, 1).tensors
    expected = cross_entropy(network()(inputs), targets, label_smoothing=0.3)
    torch.testing.assert_close(logged, expected.detach())


def test_bf16_mixed_tallies_in_full_precision() -> None:
    data = Digits(batch_size=256)
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), sgd)
    trainer = quiet_trainer(precision="bf16-mixed", max_epochs=1)
    trainer.fit(model, data)
    logged = trainer.callback_metrics
    inputs, targets = data.splits.val.tensors
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.network(inputs)
    right = (logits.argmax(1) == targets).sum()
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logged["val/accuracy"], right / len(targets))
    torch.testing.assert_close(logged["val/loss"], cross_entropy(logits.float(), targets))


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_sums_do_not_round_to_half(precision: Any) -> None:
    data = TensorDataset(torch.zeros(2000, 6), torch.zeros(2000, dtype=torch.long))
    with torch.random.fork_rng():
        model = Classifier(nn.Linear(6, 3), build_optimizer("SGD", lr=0.0))
    nn.init.zeros_(model.network.bias)  # type: ignore[arg-type]
    trainer = quiet_trainer(precision=precision, max_epochs=1)
    trainer.fit(model, DataLoader(data, 10), DataLoader(data, 10))
    # 200 batches of log 3: bfloat16 would stop growing long before
    torch.testing.assert_close(trainer.callback_metrics["train/loss"], torch.tensor(3.0).log())


class WriteAndLeave(Callback):
    """Writes what rank zero logged, then takes the process group down in good order."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.path.with_suffix(f".{trainer.global_rank}").write_text(json.dumps(values))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()


class Sharded(Classifier):
    """A Classifier with its own loaders, so that no sample is seen twice."""

    def _loader(self, data: TensorDataset, batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
        rank, size = self.trainer.global_rank, self.trainer.world_size
        return DataLoader(data, batch_size // size, sampler=range(rank, len(data), size))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self._loader(samples(NUM_TRAIN), 8)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self._loader(samples(NUM_VAL, 1), 4)


def test_two_processes_log_what_one_does(tmp_path: Path) -> None:
    for name, devices, strategy in (("one", 1, "auto"), ("two", 2, "ddp_fork")):
        trainer = quiet_trainer(
            strategy=strategy,
            devices=devices,
            use_distributed_sampler=False,
            callbacks=[WriteAndLeave(tmp_path / name)],
        )
        trainer.fit(Sharded(network(), build_optimizer("SGD", lr=0.1, momentum=0.9)))
    one, *two = (json.loads((tmp_path / name).read_text()) for name in ("one.0", "two.0", "two.1"))
    assert set(one) == {f"{s}/{k}" for s in ("train", "val") for k in ("loss", "error", "accuracy")}
    for logged in two:
        assert logged == pytest.approx(one, rel=1e-6)


def learning_rates(model: Classifier, **options: Any) -> list[float]:
    rates: list[float] = []

    class Record(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(model, callbacks=[Record()], **options)
    return rates


def expected_rates(make: Any, num_steps: int, per_epoch: int = 1) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler, rates = make(optimizer), []
    for step in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % per_epoch == 0 and step + 1 < num_steps:
            scheduler.step()
    return rates


def test_one_cycle_learns_its_length_from_the_trainer() -> None:
    cycle = partial(OneCycleLR, max_lr=0.5)
    rates = learning_rates(Classifier(network(), sgd, cycle))
    assert rates == expected_rates(partial(cycle, total_steps=10), 10)


def test_length_counts_accumulated_steps() -> None:
    model = Classifier(network(), sgd, partial(OneCycleLR, max_lr=0.5))
    rates = learning_rates(model, accumulate_grad_batches=5)
    expected = expected_rates(partial(OneCycleLR, max_lr=0.5, total_steps=2), 2)
    assert rates == [expected[0]] * 5 + [expected[1]] * 5


def test_other_schedulers_step_each_epoch_or_as_told() -> None:
    steps = partial(StepLR, step_size=1, gamma=0.5)
    assert learning_rates(Classifier(network(), sgd, steps)) == [0.1] * 5 + [0.05] * 5
    rates = learning_rates(Classifier(network(), sgd, steps, interval="step"))
    assert rates == expected_rates(steps, 10)


def test_length_is_in_epochs_where_the_scheduler_steps_each_epoch() -> None:
    def cosine(optimizer: torch.optim.Optimizer, total_steps: int) -> CosineAnnealingLR:
        return CosineAnnealingLR(optimizer, total_steps)

    rates = learning_rates(Classifier(network(), sgd, cosine, interval="epoch"))  # type: ignore[arg-type]
    assert rates == expected_rates(partial(CosineAnnealingLR, T_max=2), 10, per_epoch=5)


def test_plateau_scheduler_looks_at_the_monitored_value() -> None:
    plateau = partial(ReduceLROnPlateau, patience=0, factor=0.1, mode="max", threshold=10.0)
    model = Classifier(network(), sgd, plateau, monitor="val/accuracy")
    assert learning_rates(model, max_epochs=3)[-1] == pytest.approx(0.01)


def test_run_without_end_is_refused_by_a_scheduler_that_needs_one() -> None:
    model = Classifier(network(), sgd, partial(OneCycleLR, max_lr=0.5), interval="epoch")
    sentence = (
        "The scheduler needs the length of the run, but the Trainer does not know it: "
        "give it `max_epochs`."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        fit(model, max_epochs=-1, max_steps=5)


def test_gradients_are_clipped_by_the_trainer() -> None:
    norms: list[Tensor] = []

    class Norm(Callback):
        def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norms.extend([torch.stack([g.norm() for g in grads]).norm()] if grads else [])

    fit(Classifier(network(), sgd), gradient_clip_val=0.01, callbacks=[Norm()], max_epochs=1)
    assert len(norms) == 4
    torch.testing.assert_close(torch.stack(norms), torch.full((4,), 0.01), rtol=1e-3, atol=0)


# facts.md 1.6: theta = (3, -.5, .02), gradient 0, learning rate .1, strength .5
def shrunk(**options: Any) -> Tensor:
    layer = nn.Linear(3, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, -0.5, 0.02]]))
        layer.bias.fill_(7.0)
    model = Classifier(layer, sgd, **options)
    data = TensorDataset(torch.ones(1, 3), torch.zeros(1, dtype=torch.long))
    # one class only: the gradient of the cross-entropy is zero
    quiet_trainer(max_epochs=1).fit(model, DataLoader(data), DataLoader(data))
    assert layer.bias.item() == 7.0
    return layer.weight.detach()[0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"l2": 0.5}, (2.85, -0.475, 0.019)),
        ({"l1": 0.5, "l1_mode": "subgradient"}, (2.95, -0.45, -0.03)),
        ({"l1": 0.5}, (2.95, -0.45, 0.0)),
        ({}, (3.0, -0.5, 0.02)),
    ],
    ids=["l2", "subgradient oversteps zero", "proximal stops at zero", "nothing"],
)
def test_penalties_do_what_they_say(options: dict[str, Any], expected: tuple[float, ...]) -> None:
    torch.testing.assert_close(shrunk(**options), torch.tensor(expected), rtol=1e-6, atol=1e-8)


def test_proximal_zeros_are_exact() -> None:
    assert shrunk(l1=0.5)[2].item() == 0.0
    model = Classifier(network(), sgd, l1=0.3)
    fit(model, max_epochs=4)
    zeros = sum(int((p == 0).sum()) for p in model.network.parameters() if p.ndim > 1)
    assert zeros > 20


def test_l2_spares_biases_and_takes_the_place_of_the_optimizers_own() -> None:
    model = Classifier(network(), build_optimizer("SGD", lr=0.1, weight_decay=0.7), l2=0.5)
    optimizer = model.configure_optimizers()
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decay[p] for p in model.network.parameters()] == [0.5, 0.0, 0.5, 0.0]


def test_l2_needs_an_optimizer_that_decays_weights() -> None:
    sentence = "`l2` needs an optimizer with weight decay, but Rprop has none."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        Classifier(network(), build_optimizer("Rprop"), l2=0.5).configure_optimizers()


def deep() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)), nn.Linear(6, 3))


def rates_by_parameter(optimizer: torch.optim.Optimizer) -> dict[Tensor, float]:
    return {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("l2", [0.0, 0.01])
def test_learning_rate_halves_with_each_layer_towards_the_input(l2: float) -> None:
    model = Classifier(deep(), sgd, layer_decay=0.5, l2=l2)
    rates = rates_by_parameter(model.configure_optimizers())
    by_layer = [[rates[p] for p in layer.parameters()] for layer in model.network]  # type: ignore[attr-defined]
    assert by_layer == [[0.0125] * 2, [0.025] * 2, [0.05] * 2, [0.1] * 2]


def test_networks_that_know_their_groups_are_grouped_as_timm_does() -> None:
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3)
    rates = rates_by_parameter(Classifier(network, sgd, layer_decay=0.5).configure_optimizers())
    groups = param_groups_layer_decay(network, layer_decay=0.5)
    expected = {p: 0.1 * group["lr_scale"] for group in groups for p in group["params"]}
    assert rates == expected


def test_every_trained_parameter_has_one_learning_rate() -> None:
    network = torchvision.models.densenet121()  # with parts between the blocks
    network.features.conv0.requires_grad_(False)  # type: ignore[operator,union-attr]
    optimizer = Classifier(network, sgd, layer_decay=0.9, l2=0.1).configure_optimizers()
    trained = {p for p in network.parameters() if p.requires_grad}
    assert set(rates_by_parameter(optimizer)) == trained
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)


@pytest.mark.parametrize(
    "scheduler",
    [partial(OneCycleLR, max_lr=0.5), partial(LinearLR, start_factor=0.1, total_iters=5)],
    ids=["one cycle", "linear"],
)
def test_schedules_keep_the_rates_apart(scheduler: Any) -> None:
    ratios = []

    class Ratio(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            rates = rates_by_parameter(trainer.optimizers[0])
            first, last = (rates[model.network[i].weight] for i in (0, 3))  # type: ignore[index,union-attr]
            ratios.append(last / first)

    model = Classifier(deep(), sgd, scheduler, layer_decay=0.5)
    fit(model, callbacks=[Ratio()])
    assert ratios == pytest.approx([8.0] * 10)


def test_scheduler_that_sets_one_rate_for_all_is_refused() -> None:
    cyclic = partial(CyclicLR, base_lr=0.01, max_lr=0.1)
    sentence = (
        "`layer_decay` cannot be kept by CyclicLR, which sets one learning rate for all layers."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        Classifier(deep(), sgd, cyclic, layer_decay=0.5).configure_optimizers()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"l1": -1}, "`l1` must be a finite number of at least 0, but got -1."),
        ({"l2": float("nan")}, "`l2` must be a finite number of at least 0, but got nan."),
        (
            {"layer_decay": 1.5},
            "`layer_decay` must be a finite number of at least 0 and at most 1, but got 1.5.",
        ),
        (
            {"label_smoothing": 2},
            "`label_smoothing` must be a finite number of at least 0 and at most 1, but got 2.",
        ),
        (
            {"l1_mode": "proximate"},
            "`l1_mode` must be one of 'proximal', 'subgradient', but got 'proximate'. "
            "Did you mean 'proximal'?",
        ),
        (
            {"interval": "steps"},
            "`interval` must be one of 'step', 'epoch', but got 'steps'. Did you mean 'step'?",
        ),
    ],
    ids=str,
)
def test_option_out_of_bounds_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        Classifier(network(), sgd, **options)


def test_checkpoint_holds_the_network_alone_and_loads_safely(tmp_path: Path) -> None:
    model = Classifier(network(), sgd, partial(OneCycleLR, max_lr=0.5))
    trainer = fit(model)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert set(model.state_dict()) == {f"network.{name}" for name in network().state_dict()}
    loaded = Classifier.load_from_checkpoint(
        tmp_path / "last.ckpt", network=network(), optimizer=sgd, weights_only=True
    )
    for trained, expected in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(trained, expected)


class Perceptron(nn.Sequential):
    """A network that a configuration file can name."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LightningCLI and newer jsonargparse
def test_lightning_cli_trains_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program"])
    config = {
        "model": {
            "network": {"class_path": f"{__name__}.Perceptron", "init_args": {"width": 16}},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
            "scheduler": {
                "class_path": "torch.optim.lr_scheduler.OneCycleLR",
                "init_args": {"max_lr": 0.5},
            },
        },
        "data": {"class_path": "lightning_depth.data.Digits", "init_args": {"batch_size": 128}},
        "trainer": {
            **{"max_epochs": 3, "accelerator": "cpu", "logger": False},
            **{"enable_checkpointing": False, "enable_progress_bar": False},
            **{"enable_model_summary": False},
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config))
    cli = LightningCLI(
        Classifier,
        LightningDataModule,
        subclass_mode_data=True,
        save_config_callback=None,
        seed_everything_default=0,
        args=["fit", "--config", str(path)],
    )
    assert cli.trainer.global_step == 3 * 12
    assert cli.trainer.callback_metrics["val/error"] < 0.3
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] < 0.01
