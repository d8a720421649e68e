"""What a study is: arms, seeds, training and claims, read from a recipe and checked.

Nothing here imports torch, so that a stored study is shown again at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_depth.study._fields import read_fields
from lightning_depth.study._reading import Place, read_yaml
from lightning_depth.study.parts import Arm, Claim
from lightning_depth.study.recipes import find_recipe

__all__ = ["Study", "fingerprint"]

_OPTIMIZER = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}
_CALLBACKS: dict[str, dict[str, Any]] = {
    "GradientFlowMonitor": {},
    "LayerSeparabilityProbe": {},
    "TrainingErrorMonitor": {},
}


@dataclass(frozen=True)
class Study:
    """All arms, all seeds, how they are trained, and the claims they test.

    Made by ``from_yaml`` or ``from_dict``, which check its form.

    Args:
        name: Names the output folder.
        question: The question in words.
        arms: The architectures, in the order of the table.
        epochs: Passes over the training data in each trial.
        seeds: Random seeds; every arm is trained once with each.
        data: Short name of the data set under ``name``, the rest are its options.
        optimizer: ``class_path`` and ``init_args`` of a torch optimizer.
        scheduler: ``class_path`` and ``init_args`` of a learning-rate scheduler; None for none.
        callbacks: Names of the package's callbacks with their options.
        claims: The statements tested.
        threads: Threads of a trial, so that its numbers do not depend on the number of workers.
        source: The recipe's file as the user named it.

    Example:
        >>> arm = {"network": {"block": "plain", "hidden_layers": 1, "width": 8}}
        >>> study = Study.from_dict({"name": "one", "epochs": 1, "arms": {"a": arm}})
        >>> study.seeds, len(study.hash)
        ((0, 1, 2), 64)
    """

    name: str
    question: str
    arms: tuple[Arm, ...]
    epochs: int
    seeds: tuple[int, ...] = (0, 1, 2)
    data: Mapping[str, Any] = field(default_factory=lambda: {"name": "digits"})
    optimizer: Mapping[str, Any] = field(default_factory=lambda: dict(_OPTIMIZER))
    scheduler: Mapping[str, Any] | None = None
    callbacks: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: dict(_CALLBACKS))
    claims: tuple[Claim, ...] = ()
    threads: int = 1
    source: str = field(default="recipe", compare=False)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Study:
        """Return the study that a recipe describes, its form being checked.

        What it names (blocks, data sets, classes) is built once and checked by ``run_study``,
        before any trial.

        Args:
            path: A recipe file, or the name of a recipe that ships with the package.

        Returns:
            The study.

        Raises:
            ConfigurationError: Something in the recipe is wrong; the message names file and key.
        """
        file = find_recipe(path)
        return cls.from_dict({"name": file.stem} | read_yaml(file, str(path)), str(path))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "recipe") -> Study:
        """Return the study that a recipe's content describes, its form being checked.

        Args:
            content: What the recipe's YAML holds, and its name.
            source: What messages call the recipe.

        Returns:
            The study.

        Raises:
            ConfigurationError: Something in the recipe is wrong; the message names the key.
        """
        known = [name for name in cls.__dataclass_fields__ if name != "source"]
        return cls(source=source, **read_fields(dict(content), Place(source), known))

    def to_dict(self) -> dict[str, Any]:
        """Return the study as the content of a recipe, with every default filled in."""
        content = asdict(self)
        del content["source"]
        content["arms"] = {
            arm.name: {"network": dict(arm.network)}
            | ({"match": asdict(arm.match)} if arm.match else {})
            for arm in self.arms
        }
        plain: dict[str, Any] = json.loads(json.dumps(content))
        return plain

    @property
    def hash(self) -> str:
        """Return a fingerprint of what is trained; question and claims may change freely."""
        content = self.to_dict()
        return fingerprint({key: content[key] for key in content.keys() - {"question", "claims"}})


def fingerprint(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of content written canonically, as 64 hexadecimal characters.

    Args:
        content: Plain containers; the order of keys does not matter.

    Returns:
        The fingerprint.

    Example:
        >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
        True
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
