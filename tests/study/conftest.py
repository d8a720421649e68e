"""Recipes that train in a moment."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

TINY: dict[str, Any] = {
    "name": "tiny",
    "question": "Does it run?",
    "data": {"name": "digits", "batch_size": 256},
    "seeds": [0, 1],
    "epochs": 1,
    "optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1}},
    "callbacks": ["TrainingErrorMonitor"],
    "arms": {
        "thin": {"network": {"block": "plain", "hidden_layers": 1, "width": 4}},
        "deep": {"network": {"block": "plain", "hidden_layers": 3, "width": 4}},
    },
    "claims": [{"arm": "deep", "than": "thin"}],
}


@pytest.fixture
def tiny() -> dict[str, Any]:
    """Return a recipe that may be changed."""
    return copy.deepcopy(TINY)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Any], Path]:
    """Return a function that writes a recipe to a file: a text as it is, anything else as YAML."""

    def write(content: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        path.write_text(text, encoding="utf-8")
        return path

    return write
