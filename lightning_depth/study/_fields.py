"""From a recipe's content to the fields of a study: what may stand where, and what it must be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from lightning_depth.errors import (
    ConfigurationError,
    check_choice,
    check_count,
    check_name,
    check_real,
    invalid,
)
from lightning_depth.study._reading import Place
from lightning_depth.study.parts import METRICS, TIMINGS, Arm, Budget, Claim, Match, Rounding

__all__ = ["read_fields"]

_MAX_SEED = 2**32 - 1  # NumPy takes no larger one
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def read_fields(content: dict[str, Any], place: Place, known: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a study that a recipe's content states, every one checked.

    Args:
        content: What the recipe's YAML holds, and its name.
        place: Where in which file it stands.
        known: The fields that there are.

    Returns:
        The fields by name; those left to their defaults are missing.
    """
    found = place.keyed(content, known, required=("name", "arms", "epochs"))
    arms = _read_arms(found["arms"], place.at("arms"))
    stated: dict[str, Any] = {}
    for key, read in _READERS.items():
        if key in found:
            stated[key] = read(found[key], place.at(key))
    if "claims" in found:
        stated["claims"] = _read_claims(found["claims"], place.at("claims"), arms)
    return {
        "name": _read_name(found["name"], place.at("name")),
        "question": str(found.get("question") or "").strip(),
        "arms": arms,
        "epochs": place.at("epochs").check(check_count, found["epochs"]),
        **stated,
    }


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
        with place.named():
            if check_count("seeds", seed, 0) > _MAX_SEED:
                raise invalid("seeds", f"whole numbers from 0 to {_MAX_SEED}", seed)
    with place.named():
        if not seeds or len(set(seeds)) < len(seeds):
            raise ConfigurationError(
                f"`seeds` must be a list of different whole numbers, but got {seeds!r}."
            )
    return tuple(seeds)


def _read_callbacks(value: object, place: Place) -> dict[str, dict[str, Any]]:
    found = _read_callback_list(value, place) if isinstance(value, list) else place.mapping(value)
    return {
        name: {} if options is None else place.at(name).mapping(options)
        for name, options in found.items()
    }


def _read_callback_list(value: list[Any], place: Place) -> dict[str, Any]:
    """Read names, or names with their options, from a list."""
    found: dict[str, Any] = {}
    for entry in value:
        with place.named():
            if not isinstance(entry, str | Mapping):
                raise invalid("callbacks", "a list of names, or of names with options", value)
        found |= {entry: None} if isinstance(entry, str) else place.mapping(entry)
    return found


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
