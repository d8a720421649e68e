"""The box is printed once and whole, wherever a run is looked at."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbconvert.preprocessors import ExecutePreprocessor  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys, warnings
warnings.filterwarnings("ignore")
{before}
import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning_depth import EarlyStopping, GradientFlowMonitor
from tests.callbacks._runs import Toy, loader

torch.manual_seed(0)
pl.Trainer(
    max_epochs=2,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    callbacks=[
        GradientFlowMonitor(every_n_steps=1, on_finding="log"),
        EarlyStopping("val/loss", patience=9),
        {bar}(),
    ],
).fit(Toy(), loader(), loader())
"""
HIDE = """
import importlib.metadata
find = importlib.metadata.distribution

def distribution(name):
    if name in ("rich", "ipywidgets"):
        raise importlib.metadata.PackageNotFoundError(name)
    return find(name)

importlib.metadata.distribution = distribution
sys.modules.update({name: None for name in ("rich", "ipywidgets")})
"""


@pytest.fixture(autouse=True)
def _away_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "80")


def _assert_whole(text: str) -> None:
    """One box, all its lines of one width."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert plain.count("+-- depth verdict") == 1
    after = re.split(r"[\r\n]+", plain[plain.index("+-- depth verdict") :])
    lines = after[: next(n for n, line in enumerate(after) if re.match(r"^\+-+\+", line)) + 1]
    assert len(lines) >= 3
    assert {len(line.rstrip()) for line in lines} == {80}
    assert "GradientFlowMonitor took" in plain


@pytest.mark.parametrize(
    ("bar", "before"),
    [("RichProgressBar", ""), ("TQDMProgressBar", ""), ("TQDMProgressBar", HIDE)],
    ids=["rich", "tqdm", "without rich and ipywidgets"],
)
def test_notebook_shows_one_box(bar: str, before: str, tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell(SCRIPT.format(bar=bar, before=before))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    ExecutePreprocessor(timeout=120, kernel_name="python3").preprocess(
        notebook, {"metadata": {"path": str(tmp_path)}}
    )
    shown = [
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for output in notebook.cells[0].outputs
    ]
    _assert_whole("\n".join(shown))
    [html] = [o.data["text/html"] for o in notebook.cells[0].outputs if _is_box(o)]
    assert html.startswith("<pre")


def _is_box(output: nbformat.NotebookNode) -> bool:
    return "depth verdict" in output.get("data", {}).get("text/plain", "")


@pytest.mark.parametrize(
    ("bar", "encoding"), [("RichProgressBar", "utf-8"), ("TQDMProgressBar", "ascii")]
)
def test_piped_log_of_a_module_shows_one_box(bar: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT.format(bar=bar, before=""))
    path = f"{ROOT}{os.pathsep}{tmp_path}"
    run = subprocess.run(
        [sys.executable, "-m", "train"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    )
    _assert_whole(run.stdout.decode(encoding))


@pytest.mark.parametrize("bar", ["RichProgressBar", "TQDMProgressBar"])
def test_terminal_shows_one_box(bar: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT.format(bar=bar, before=""))
    outer, inner = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm"},
        stdout=inner,
        stderr=subprocess.DEVNULL,
    ) as run:
        os.close(inner)
        text = b""
        while chunk := _read(outer):
            text += chunk
    os.close(outer)
    assert run.returncode == 0
    _assert_whole(text.decode())


def _read(descriptor: int) -> bytes:
    """Read what a terminal shows; Linux ends it with an error."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""
