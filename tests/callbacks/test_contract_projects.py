"""Every callback in projects as they are: their configurations and their modules."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from omegaconf import OmegaConf
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import lightning_depth.callbacks
from lightning_depth.errors import ConfigurationError
from tests.callbacks._runs import (
    OPTIONS,
    Block,
    Toy,
    every_callback,
    every_layer_watcher,
    fit,
    make,
    network,
    public_callbacks,
    table,
    watched,
)


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
        seed_everything_default=1,
        args=["--config", str(tmp_path / "config.yaml")],
    )
    callbacks: list[Any] = cli.trainer.callbacks  # type: ignore[attr-defined]
    assert type(callbacks[0]) is getattr(lightning_depth.callbacks, name)


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
        LightningCLI(
            Toy,
            run=False,
            seed_everything_default=1,
            args=["--config", str(tmp_path / "config.yaml")],
        )
    assert "on_finding" in capsys.readouterr().err


@every_layer_watcher
def test_lists_may_be_those_of_omegaconf(name: str) -> None:
    lists = OmegaConf.create({"include": ["net.*"], "exclude": ["net.0"]})
    callback = make(name, include=lists.include, exclude=lists.exclude)
    fit(callback)
    assert watched(callback) == {"net.1", "net.2", "net.3", "net.5"}
    pickle.dumps(callback.state_dict())


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
    assert {layer.split(".")[0] for layer in watched(callback)} == {"net"}


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


class Crossed(nn.Module):
    """Registers its last layer first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.stem = nn.Linear(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in reversed(self.blocks):
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


@every_layer_watcher
def test_layers_are_numbered_in_order_of_execution(name: str) -> None:
    callback = make(name)
    fit(callback, module=Toy(Crossed()))
    rows = table(callback)
    last = rows[(rows["step"] == rows["step"].max()) & (rows["layer"] != "input")]
    order = last.sort_values("depth")["layer"].tolist()
    assert order == ["net.stem", "net.blocks.1", "net.blocks.0", "net.head"]


@every_layer_watcher
def test_names_of_checkpointed_layers_are_clean(name: str) -> None:
    net = network(dropout=0.0)
    callback, plain = make(name), make(name)
    fit(callback, module=Toy(nn.Sequential(*(checkpoint_wrapper(part) for part in net))))
    fit(plain, module=Toy(net))
    assert watched(callback) == watched(plain)


@every_layer_watcher
def test_compiled_layers_have_clean_names_or_are_said_not_to_be_measured(
    name: str, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    callback, plain = make(name), make(name)
    compiled: Any = torch.compile(network(dropout=0.0), backend="eager")
    fit(callback, module=Toy(compiled))
    told = capsys.readouterr().out + str([str(warning.message) for warning in recwarn])
    fit(plain, module=Toy(network(dropout=0.0)))
    assert watched(callback) == watched(plain) or "compile" in told


@every_layer_watcher
@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_pattern_that_matches_nothing_is_refused_before_training(name: str, argument: str) -> None:
    sentence = f"^`{argument}` must hold patterns that match a layer, but 'nets.*' matches none; "
    with pytest.raises(ConfigurationError, match=sentence):
        fit(make(name, **{argument: ["nets.*"]}))
