"""The bounded table of measurements."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch

from lightning_depth.callbacks._history import History
from lightning_depth.errors import ConfigurationError

LAYERS = ("a", "b")


def _filled(num_records: int, capacity: int = 1000) -> History:
    history = History(floats=("norm",), capacity=capacity)
    for step in range(num_records):
        history.append(step=step, layer=LAYERS, norm=[step + 0.5, step + 0.25])
    return history


def test_table_has_one_row_a_record_and_layer() -> None:
    history = History(floats=("norm",))
    history.append(step=3, epoch=0, layer=LAYERS, depth=[1, 2], norm=torch.tensor([0.5, 2.0]))
    history.append(step=4, epoch=1, layer=LAYERS, depth=[1, 2], norm=(0.25, 1.0))
    expected = pd.DataFrame(
        {
            "step": [3, 3, 4, 4],
            "epoch": [0, 0, 1, 1],
            "layer": ["a", "b", "a", "b"],
            "depth": [1, 2, 1, 2],
            "norm": [0.5, 2.0, 0.25, 1.0],
        }
    )
    pd.testing.assert_frame_equal(pd.DataFrame(history.table()), expected)


def test_record_of_scalars_is_one_row() -> None:
    history = History()
    history.append(step=1, error=0.1)
    assert history.table() == {"step": [1], "error": [0.1]}


def test_records_may_differ_in_rows() -> None:
    history = History(floats=("norm",))
    history.append(step=0, layer=("a",), norm=[1.0])
    history.append(step=1, layer=("a", "b"), norm=[2.0, 4.0])
    table = History(floats=("norm",))
    table.load_state_dict(history.state_dict())
    assert table.table() == {"step": [0, 1, 1], "layer": ["a", "a", "b"], "norm": [1.0, 2.0, 4.0]}


@pytest.mark.parametrize("value", [1e30, 1e-30, float("inf"), 0.0])
def test_extreme_floats_survive(value: float) -> None:
    history = History(floats=("norm",))
    history.append(step=0, norm=[value])
    assert history.table()["norm"] == pytest.approx([value], rel=1e-6)


def test_empty_history_is_an_empty_table() -> None:
    assert pd.DataFrame(History(floats=("norm",)).table()).empty


def test_full_history_keeps_the_newest_whole_and_thins_the_rest_evenly() -> None:
    steps = _filled(5000, capacity=100).table()["step"][::2]
    assert len(steps) <= 100
    assert steps[-25:] == list(range(4975, 5000))
    assert steps[0] == 0
    wide = [after - before for before, after in pairwise(steps) if after - before > 1]
    assert len(wide) > 10
    assert len(set(wide[:-1])) == 1  # the last is the step from the thinned to the newest records


@pytest.mark.parametrize("num_records", [4, 99, 100, 101, 126, 1234])
def test_history_is_bounded(num_records: int) -> None:
    history = _filled(num_records, capacity=100)
    assert min(num_records, 50) <= len(history) <= 100
    assert history.table()["norm"][-2:] == [num_records - 0.5, num_records - 0.75]


@pytest.mark.parametrize("capacity", [3, 0, True, "many"])
def test_capacity_must_be_a_count(capacity: object) -> None:
    sentence = "^`capacity` must be a whole number of at least 4, but got"
    with pytest.raises(ConfigurationError, match=sentence):
        History(capacity=capacity)  # type: ignore[arg-type]


def test_state_survives_a_checkpoint_and_goes_on_alike(tmp_path: Path) -> None:
    first, whole = _filled(150, capacity=100), _filled(300, capacity=100)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = History(floats=("norm",), capacity=100)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(150, 300):
        resumed.append(step=step, layer=LAYERS, norm=[step + 0.5, step + 0.25])
    assert resumed == whole
    assert resumed.table() == whole.table()


def test_columns_that_changed_before_a_resume_are_not_mixed_up() -> None:
    old, new = History(floats=("a", "b")), History(floats=("b", "c"))
    old.append(step=0, kind="x", a=[1.0, 2.0], b=[3.0, 4.0])
    new.load_state_dict(old.state_dict())
    new.append(step=1, place=5, b=[6.0], c=[7.0])
    expected = {
        "step": [0, 0, 1],
        "kind": ["x", "x", None],
        "place": [None, None, 5],
        "b": [3.0, 4.0, 6.0],
        "c": [float("nan"), float("nan"), 7.0],
    }
    pd.testing.assert_frame_equal(pd.DataFrame(new.table()), pd.DataFrame(expected))


def test_empty_state_survives() -> None:
    history = _filled(3)
    history.load_state_dict(History(floats=("norm",)).state_dict())
    assert len(history) == 0
    assert history.table() == {}


@pytest.mark.parametrize("again", [copy.deepcopy, lambda h: pickle.loads(pickle.dumps(h))])
def test_copies_are_equal_and_independent(again: object) -> None:
    history = _filled(3)
    other = again(history)  # type: ignore[operator]
    assert other == history
    other.append(step=9, layer=LAYERS, norm=[0.0, 0.0])
    assert other != history


def test_cleared_history_is_like_a_new_one() -> None:
    history = _filled(3)
    history.clear()
    assert history == History(floats=("norm",))


def test_a_thousand_records_of_a_hundred_layers_take_under_4_mb(tmp_path: Path) -> None:
    columns = [f"column{number}" for number in range(8)]
    history = History(floats=columns)
    layers = tuple(f"layer{number}" for number in range(100))
    values = torch.rand(8, 1000, 100)
    for step in range(1000):
        cells = dict(zip(columns, values[:, step], strict=True))
        history.append(step=step, epoch=0, layer=layers, depth=tuple(range(100)), **cells)
    torch.save(history.state_dict(), tmp_path / "state.pt")
    assert (tmp_path / "state.pt").stat().st_size < 4_000_000
    assert len(pickle.dumps(history)) < 4_000_000
    torch.testing.assert_close(
        torch.tensor(history.table()["column3"]), values[3].flatten(), rtol=0, atol=0
    )


def test_names_of_layers_are_kept_once() -> None:
    history = History()
    for step in range(3):
        history.append(step=step, layer=["a" * 10, "b" * 10])
    cells = history.state_dict()["cells"]["layer"]
    assert all(cell is cells[0] for cell in cells)
