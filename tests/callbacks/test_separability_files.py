"""The probe's figures and scalars as loggers wrote them, read back from their files."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.callbacks._runs import NUM_BATCHES, fit, make

EPOCH_ENDS = [NUM_BATCHES - 1, 2 * NUM_BATCHES - 1]
MEASURES = ("separation", "fisher", "linear_probe")


def test_tensorboard_holds_the_figure_and_the_measures_of_every_pass(tmp_path: Path) -> None:
    probe = make("LayerSeparabilityProbe")
    fit(probe, logger=TensorBoardLogger(tmp_path, name="", version=""))
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    assert events.Tags()["images"] == ["separability/profile"]
    pictures = events.Images("separability/profile")
    assert [picture.step for picture in pictures] == EPOCH_ENDS[-1:]  # short epochs: one at the end
    for picture in pictures:
        pixels = imread(io.BytesIO(picture.encoded_image_string))
        assert pixels.shape[:2] == (picture.height, picture.width)
        assert pixels[..., :3].std() > 0.02  # something is drawn on it
    history = probe.history
    for name in MEASURES:
        logged = events.Scalars(f"separability/{name}")
        last = dict(zip(history["step"], history[name], strict=True))
        assert [event.value for event in logged] == pytest.approx(list(last.values()), rel=1e-6)
        assert [event.step for event in logged] == EPOCH_ENDS


def test_other_loggers_get_the_figure_as_a_file_beside_their_scalars(tmp_path: Path) -> None:
    probe = make("LayerSeparabilityProbe")
    fit(probe, logger=CSVLogger(tmp_path, name="", version=""))
    assert [path.name for path in tmp_path.glob("*.png")] == ["separability-profile.png"]
    assert imread(tmp_path / "separability-profile.png")[..., :3].std() > 0.02
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["separability/fisher"]]
    assert [int(row["step"]) for row in rows] == EPOCH_ENDS
    history = probe.history
    last = dict(zip(history["step"], history["fisher"], strict=True))
    found = [float(row["separability/fisher"]) for row in rows]
    assert found == pytest.approx(list(last.values()), rel=1e-6)
