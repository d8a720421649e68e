"""What a study is: arms, seeds, training and claims, read from a recipe and checked.

Nothing here imports torch, so that a stored study is shown again at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from lightning_depth.errors import (
    ConfigurationError,
    check_choice,
    check_count,
    check_name,
    check_real,
)
from lightning_depth.study._reading import Place, read_yaml
from lightning_depth.study.recipes import find_recipe

__all__ = [
    "METRICS",
    "TIMINGS",
    "Arm",
    "Claim",
    "Match",
    "Study",
    "fingerprint",
]

METRICS = ("train_error", "train_loss", "val_error", "val_loss")
TIMINGS = ("train_step_s", "inference_batch_s")
Budget = Literal["params", "multiply_adds", "activation_bytes"]
Rounding = Literal["nearest", "floor", "ceil"]
_OPTIMIZER = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}
_CALLBACKS: dict[str, dict[str, Any]] = {
    "GradientFlowMonitor": {},
    "LayerSeparabilityProbe": {},
    "TrainingErrorMonitor": {},
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Match:
    """Which arm's cost sets the width of an arm.

    Args:
        arm: Name of the arm whose cost is the target.
        by: What is made equal: ``params``, ``multiply_adds`` or ``activation_bytes``.
        rounding: Which whole width is taken: ``nearest``, ``floor`` or ``ceil``.
        count_bias: Whether biases of linear and convolution layers count.
        multiple_of: The width is a multiple of this.

    Example:
        >>> Match("deep").by
        'params'
    """

    arm: str
    by: Budget = "params"
    rounding: Rounding = "nearest"
    count_bias: bool = True
    multiple_of: int = 1


@dataclass(frozen=True)
class Arm:
    """One architecture under comparison.

    Args:
        name: What tables and claims call it.
        network: The network as the recipe states it.
        match: Which arm's cost sets its width; None where the recipe states the width.

    Example:
        >>> Arm("plain-20", {"block": "plain", "depth": 20, "width": 8}).match is None
        True
    """

    name: str
    network: Mapping[str, Any]
    match: Match | None = None


@dataclass(frozen=True)
class Claim:
    """A statement that a study tests.

    Args:
        text: The statement in words.
        arm: The arm it is about.
        than: The arm it is compared with.
        kind: ``comparison`` of a measured quantity, or ``faster``.
        metric: The quantity compared.
        direction: Whether the arm's quantity is said to be ``higher`` or ``lower``.
        margin: The least difference that counts, in the metric's unit; for ``faster`` the least
            share of time saved.

    Example:
        >>> Claim("a is worse than b", "a", "b").metric
        'train_error'
    """

    text: str
    arm: str
    than: str
    kind: str = "comparison"
    metric: str = "train_error"
    direction: str = "higher"
    margin: float = 0.0


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
        return _read_study(dict(content), Place(source))

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


def _read_study(content: dict[str, Any], place: Place) -> Study:
    known = [name for name in Study.__dataclass_fields__ if name != "source"]
    found = place.keyed(content, known, required=("name", "arms", "epochs"))
    arms = _read_arms(found["arms"], place.at("arms"))
    defaults: dict[str, Any] = {}
    for key, read in _READERS.items():
        if key in found:
            defaults[key] = read(found[key], place.at(key))
    if "claims" in found:
        defaults["claims"] = _read_claims(found["claims"], place.at("claims"), arms)
    return Study(
        name=_read_name(found["name"], place.at("name")),
        question=str(found.get("question") or "").strip(),
        arms=arms,
        epochs=place.at("epochs").check(check_count, found["epochs"]),
        source=place.source,
        **defaults,
    )


def _read_name(value: object, place: Place) -> str:
    name = place.text(value)
    with place.named():
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"A name holds letters, digits, '.', '_' and '-' only, since it names the output "
                f"folder, but got {name!r}."
            )
    return name


def _read_arms(value: object, place: Place) -> tuple[Arm, ...]:
    found = place.mapping(value)
    with place.named():
        if not found:
            raise ConfigurationError("A study needs at least one arm, but there is none.")
    arms = tuple(_read_arm(name, found[name], place.at(name)) for name in found)
    for arm in arms:
        if arm.match is not None:
            _check_match(arm, {other.name: other for other in arms}, place.at(arm.name, "match"))
    return arms


def _read_arm(name: str, value: object, place: Place) -> Arm:
    found = place.keyed(value, ("network", "match"), required=("network",))
    network = _read_network(found["network"], place.at("network"))
    match = _read_match(found["match"], place.at("match")) if "match" in found else None
    stated = network.get("init_args", network)
    with place.at("network").named():
        if match is not None and "width" in stated:
            raise ConfigurationError("The width is set by `match`, so it cannot be given here.")
        if match is None and "width" not in network and "block" in network:
            raise ConfigurationError("The key 'width' is missing; give it, or `match` an arm.")
    return Arm(name, network, match)


def _read_network(value: object, place: Place) -> dict[str, Any]:
    found = place.mapping(value)
    if "class_path" in found:
        return _read_class(found, place)
    known = ("block", "depth", "hidden_layers", "width", "stem", "stem_width", "block_options")
    found = place.keyed(found, known, required=("block",))
    place.at("block").text(found["block"])
    with place.named():
        if ("depth" in found) == ("hidden_layers" in found):
            raise ConfigurationError(
                "A network needs either 'depth' (convolutional) or 'hidden_layers' (MLP)."
            )
        for key in ("stem", "stem_width"):
            if key in found and "depth" not in found:
                raise ConfigurationError(
                    f"{key!r} belongs to a network with 'depth', not to an MLP."
                )
    for key in ("depth", "hidden_layers", "width", "stem_width"):
        if key in found:
            place.at(key).check(check_count, found[key])
    if "block_options" in found:
        place.at("block_options").mapping(found["block_options"])
    return found


def _read_class(value: object, place: Place) -> dict[str, Any]:
    found = place.keyed(value, ("class_path", "init_args"), required=("class_path",))
    return {
        "class_path": place.at("class_path").text(found["class_path"]),
        "init_args": place.at("init_args").mapping(found.get("init_args", {})),
    }


def _read_match(value: object, place: Place) -> Match:
    found = place.keyed(value, Match.__dataclass_fields__, required=("arm",))
    place.at("arm").text(found["arm"])
    if "by" in found:
        place.at("by").check(check_choice, found["by"], get_args(Budget))
    if "rounding" in found:
        place.at("rounding").check(check_choice, found["rounding"], get_args(Rounding))
    if "count_bias" in found:
        place.at("count_bias").check(_check_bool, found["count_bias"])
    if "multiple_of" in found:
        place.at("multiple_of").check(check_count, found["multiple_of"])
    return Match(**found)


def _check_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"`{name}` must be true or false, but got {value!r}.")
    return value


def _check_match(arm: Arm, arms: Mapping[str, Arm], place: Place) -> None:
    followed = [arm.name]
    target: Arm = arm
    while target.match is not None:
        with place.at("arm").named():
            target = arms[check_name("arm", target.match.arm, arms)]
            followed.append(target.name)
            if target.name in followed[:-1]:
                raise ConfigurationError(
                    f"`match` goes in a circle: {' -> '.join(followed)}. One arm needs a width."
                )


def _read_data(value: object, place: Place) -> dict[str, Any]:
    found = {"name": value} if isinstance(value, str) else place.mapping(value)
    if "name" not in found:
        return place.keyed(found, ("name", *found), required=("name",))
    place.at("name").text(found["name"])
    return found


def _read_scheduler(value: object, place: Place) -> dict[str, Any] | None:
    return None if value is None else _read_class(value, place)


def _read_seeds(value: object, place: Place) -> tuple[int, ...]:
    seeds = place.sequence(value)
    for seed in seeds:
        place.check(check_count, seed, 0)
    with place.named():
        if not seeds or len(set(seeds)) < len(seeds):
            raise ConfigurationError(
                f"`seeds` must be a list of different whole numbers, but got {seeds!r}."
            )
    return tuple(seeds)


def _read_callbacks(value: object, place: Place) -> dict[str, dict[str, Any]]:
    if isinstance(value, list):
        value = dict.fromkeys(value)
    found = place.mapping(value)
    return {
        name: {} if options is None else place.at(name).mapping(options)
        for name, options in found.items()
    }


def _read_claims(value: object, place: Place, arms: tuple[Arm, ...]) -> tuple[Claim, ...]:
    claims = place.sequence(value)
    names = [arm.name for arm in arms]
    return tuple(_read_claim(claim, place.at(n), names) for n, claim in enumerate(claims))


def _read_claim(value: object, place: Place, arms: list[str]) -> Claim:
    found = place.keyed(value, Claim.__dataclass_fields__, required=("arm", "than"))
    for key in ("arm", "than"):
        with place.at(key).named():
            check_name("arm", found[key], arms)
    with place.at("than").named():
        if found["arm"] == found["than"]:
            raise ConfigurationError(
                f"An arm is compared with another, not with itself: {found['arm']!r}."
            )
    kind = place.at("kind").check(
        check_choice, found.get("kind", "comparison"), ("comparison", "faster")
    )
    faster = kind == "faster"
    known = TIMINGS if faster else METRICS
    with place.at("metric").named():
        metric = check_name("metric", found.get("metric", known[0]), known)
    directions = ("lower",) if faster else ("higher", "lower")
    direction = place.at("direction").check(
        check_choice, found.get("direction", directions[0]), directions
    )
    words = "is faster than" if faster else f"has a {direction} {_WORDS[metric]} than"
    return Claim(
        text=place.at("text").text(found.get("text", f"{found['arm']} {words} {found['than']}")),
        arm=found["arm"],
        than=found["than"],
        kind=kind,
        metric=metric,
        direction=direction,
        margin=place.at("margin").check(check_real, found.get("margin", 0.0), 0.0),
    )


_WORDS = {
    "train_error": "training error",
    "train_loss": "training loss",
    "val_error": "validation error",
    "val_loss": "validation loss",
}
_READERS: dict[str, Any] = {
    "seeds": _read_seeds,
    "data": _read_data,
    "optimizer": _read_class,
    "scheduler": _read_scheduler,
    "callbacks": _read_callbacks,
    "threads": lambda value, place: place.check(check_count, value),
}
