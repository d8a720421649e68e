"""Reading a recipe file: safe YAML, and checks that know in which file and key they are."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lightning_depth.errors import ConfigurationError, check_name, invalid

__all__ = ["Place", "read_yaml"]

T = TypeVar("T")
_MAX_VALUES = 100_000


@dataclass(frozen=True)
class Place:
    """Where in which recipe a value stands, so that every complaint can say so.

    Args:
        source: The file as the user named it.
        keys: The keys that lead to the value, outermost first.
    """

    source: str
    keys: tuple[str, ...] = ()

    def at(self, *keys: object) -> Place:
        """Return the place below this one."""
        return Place(self.source, (*self.keys, *map(str, keys)))

    @contextmanager
    def named(self) -> Iterator[None]:
        """Put file and key in front of every refusal raised inside."""
        try:
            yield
        except ConfigurationError as error:
            where = ", ".join([self.source, ".".join(self.keys)]) if self.keys else self.source
            raise ConfigurationError(f"{where}: {error}") from error

    def check(self, check: Callable[..., T], *arguments: Any) -> T:
        """Return what a check returns for this place's key and the arguments."""
        with self.named():
            return check(self.keys[-1], *arguments)

    def mapping(self, value: object) -> dict[str, Any]:
        """Return a mapping whose keys are texts, or refuse."""
        with self.named():
            name = self.keys[-1] if self.keys else "recipe"
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                raise invalid(name, "a mapping of names to values", value)
            return dict(value)

    def keyed(
        self, value: object, known: Iterable[str], required: Iterable[str] = ()
    ) -> dict[str, Any]:
        """Return a mapping that has no key but the known ones and all the required ones."""
        found, names = self.mapping(value), list(known)
        with self.named():
            for key in found:
                check_name("key", key, names)
            for key in required:
                if key not in found:
                    raise ConfigurationError(
                        f"The key {key!r} is missing. Known: {', '.join(names)}."
                    )
        return found

    def sequence(self, value: object) -> list[Any]:
        """Return a list, or refuse."""
        with self.named():
            if not isinstance(value, list | tuple):
                raise invalid(self.keys[-1], "a list", value)
            return list(value)

    def text(self, value: object) -> str:
        """Return a text that is not empty, or refuse."""
        with self.named():
            if not isinstance(value, str) or not value.strip():
                raise invalid(self.keys[-1], "a text that is not empty", value)
            return value.strip()


def read_yaml(path: Path, source: str) -> dict[str, Any]:
    """Return the mapping that a recipe file holds, executing nothing that stands in it.

    Args:
        path: The file.
        source: The file as the user named it.

    Returns:
        Plain containers, texts, numbers and bools.

    Raises:
        ConfigurationError: The file cannot be read, is not YAML, is empty, has a Python tag in
            it, a key twice, or holds something else than a mapping.
    """
    if path.is_dir():
        raise ConfigurationError(f"{source}: A recipe must be a file, but this is a directory.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
        _check_plain(content, Place(source), count(1))
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{source}: A recipe must be UTF-8 text, but this is not."
        ) from error
    except OSError as error:
        raise ConfigurationError(f"{source}: The file cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{source}: This is not a YAML recipe: {_told(error)}.") from error
    except RecursionError as error:
        raise ConfigurationError(f"{source}: The recipe is nested too deeply.") from error
    if content is None:
        raise ConfigurationError(f"{source}: The recipe is empty.")
    return Place(source).mapping(content)


def _check_plain(value: object, place: Place, visits: Iterator[int]) -> None:
    """Refuse what is no plain data, naming its key; aliases of aliases cannot make it endless."""
    if next(visits) > _MAX_VALUES:
        raise ConfigurationError(f"{place.source}: A recipe holds at most {_MAX_VALUES:,} values.")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_plain(inner, place.at(key), visits)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check_plain(inner, place.at(number), visits)
    elif not isinstance(value, str | int | float | None) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        with place.named():
            name = place.keys[-1] if place.keys else "recipe"
            raise invalid(name, "a text, a finite number, a bool, a list or a mapping", value)


def _told(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error).splitlines()[0]
    line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
    if error.problem and (tag := re.search(r"constructor for the tag (\S+)", error.problem)):
        return f"the tag {tag[1]} is not allowed, since a recipe is data and runs nothing{line}"
    return f"{error.problem}{line}"


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice and reads 1e-3 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as a text, since it has no point; every user means the number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)
