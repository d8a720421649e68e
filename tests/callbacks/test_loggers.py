"""Figures and findings reach every logger that takes them, in the form in which it takes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_depth.callbacks._loggers import send_file, takes_figures
from tests.callbacks._runs import NUM_BATCHES, fit, make, trainer

ROOT = Path(__file__).parents[2]
LAST_STEP = 2 * NUM_BATCHES - 1
PNG = b"\x89PNG"


class Recording(Logger):
    """A logger of nobody's, which has an experiment."""

    def __init__(self, experiment: Any) -> None:
        super().__init__()
        self._recorded = experiment

    @property
    def experiment(self) -> Any:
        return self._recorded

    name = "recording"
    version = "one"

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class CometExperiment:
    """What Comet's experiment documents of figures and assets."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def log_figure(
        self,
        figure_name: str | None = None,
        figure: Any = None,
        overwrite: bool = False,
        step: int | None = None,
    ) -> None:
        assert isinstance(figure, Figure)
        self.calls.append(("figure", figure_name, step))

    def log_asset(
        self, file_data: Any, file_name: str | None = None, overwrite: bool = False
    ) -> None:
        self.calls.append(("asset", Path(file_data).name, file_name))


class NeptuneField:
    def __init__(self, calls: list[tuple[Any, ...]], key: str) -> None:
        self.calls, self.key = calls, key

    def append(self, value: Any, *, step: float | None = None) -> None:
        assert isinstance(value, Figure)
        self.calls.append(("append", self.key, step))

    def upload(self, value: Any, *, wait: bool = False) -> None:
        self.calls.append(("upload", self.key, Path(value).name))


class NeptuneRun:
    """What Neptune's run documents of series and files."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getitem__(self, key: str) -> NeptuneField:
        return NeptuneField(self.calls, key)


class Neptune(Recording):
    @property
    def run(self) -> Any:
        return self.experiment


class Lit(Recording):
    """What LitLogger has beside an experiment."""

    def log_file(self, path: str) -> None:
        self.experiment.calls.append(("file", Path(path).name))


def _figures_and_files(logger: Recording, tmp_path: Path) -> tuple[list[Any], list[Any]]:
    """What a run sends of figures, and what a file then does."""
    calls = logger.experiment.calls
    fit(make("ActivationMonitor"), logger=logger, default_root_dir=tmp_path)
    figures = [call for call in calls if call[0] in ("figure", "append")]
    calls.clear()
    path = tmp_path / "findings.json"
    path.write_text("{}")
    send_file(trainer(logger=logger), path)
    return figures, calls


def test_comet_gets_figures_and_findings(tmp_path: Path) -> None:
    figures, files = _figures_and_files(Recording(CometExperiment()), tmp_path)
    assert figures == [("figure", "activations/profile", LAST_STEP)]
    assert files == [("asset", "findings.json", "findings.json")]


def test_neptune_gets_figures_and_findings(tmp_path: Path) -> None:
    figures, files = _figures_and_files(Neptune(NeptuneRun()), tmp_path)
    assert figures == [("append", "activations/profile", LAST_STEP)]
    assert files == [("upload", "findings", "findings.json")]


def test_lit_logger_gets_findings_and_the_figure_stays_a_file(tmp_path: Path) -> None:
    logger = Lit(SimpleNamespace(calls=[]))
    figures, files = _figures_and_files(logger, tmp_path)
    assert not takes_figures(logger)
    assert figures == []
    assert files == [("file", "findings.json")]
    assert [path.name for path in tmp_path.rglob("*.png")] == ["activations-profile.png"]


def test_loggers_that_take_nothing_get_nothing(tmp_path: Path) -> None:
    path = tmp_path / "findings.json"
    path.write_text("{}")
    logger = CSVLogger(tmp_path, "csv", "")
    assert not takes_figures(logger)
    send_file(trainer(logger=logger), path)
    send_file(trainer(logger=False), path)


def test_tensorboard_shows_figures_and_findings(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, "", "")
    fit(make("ActivationMonitor"), logger=logger)
    path = tmp_path / "findings.json"
    path.write_text('{\n  "findings": []\n}\n')
    send_file(trainer(logger=logger), path)
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    (image,) = events.Images("activations/profile")
    assert image.step == LAST_STEP
    assert image.encoded_image_string.startswith(PNG)
    text = events.Tensors("findings/text_summary")[-1]
    assert b'"findings": []' in text.tensor_proto.string_val[0]


# MLflow and W&B for real, in a process of their own: their threads would outlive the test

MLFLOW = """
import json, sys
from pathlib import Path
from lightning.pytorch.loggers import MLFlowLogger
from lightning_depth.callbacks._loggers import send_file
from tests.callbacks._runs import fit, make, trainer

logger = MLFlowLogger(tracking_uri="file:./runs")
fit(make("ActivationMonitor"), logger=logger)
Path("findings.json").write_text("{}")
send_file(trainer(logger=logger), Path("findings.json").absolute())
names = [str(path.relative_to("runs")) for path in Path("runs").rglob("artifacts/**/*")
         if path.is_file()]
print(json.dumps({"names": names, "beside": [str(p) for p in Path(".").rglob("*-profile.png")]}))
"""

WANDB = """
import json, wandb
from pathlib import Path
from lightning.pytorch.loggers import WandbLogger
from lightning_depth.callbacks._loggers import send_file
from tests.callbacks._runs import trainer

logger = WandbLogger(save_dir=".", offline=True)
Path("findings.json").write_text("{}")
send_file(trainer(logger=logger), Path("findings.json").absolute())
folder = Path(logger.experiment.dir)
wandb.finish()
Path("findings.json").unlink()
print(json.dumps((folder / "findings.json").read_text()))
"""


def _alone(script: str, folder: Path) -> tuple[Any, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    quiet = {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=folder,
        env={**os.environ, **quiet, "PYTHONPATH": path, "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1]), run.stdout + run.stderr


def test_mlflow_keeps_figures_and_findings_as_artifacts(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    told, _ = _alone(MLFLOW, tmp_path)
    artifacts = {name.split("/artifacts/")[1] for name in told["names"]}
    assert artifacts == {f"activations/profile/{LAST_STEP:06d}.png", "findings.json"}
    assert told["beside"] == []


def test_wandb_keeps_a_copy_of_the_findings_without_a_word(tmp_path: Path) -> None:
    content, said = _alone(WANDB, tmp_path)
    assert content == "{}"
    assert "ymlink" not in said
