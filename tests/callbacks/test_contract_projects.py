"""Every callback in projects as they are: their configurations and their modules."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from omegaconf import OmegaConf
from torch import nn
from torch.optim.swa_utils import AveragedModel

import lightning_depth.callbacks
from tests.callbacks._runs import (
    OPTIONS,
    Toy,
    every_callback,
    every_layer_watcher,
    fit,
    make,
    public_callbacks,
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
