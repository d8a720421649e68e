"""The package as a whole: what an import costs, and that docstrings and errors keep their form."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lightning_depth

ROOT = Path(lightning_depth.__file__).parent
HEAVY = {
    *("timm", "torchvision", "pandas", "matplotlib", "sklearn", "scipy", "wandb", "ray", "rich"),
    *("jinja2", "jsonargparse"),
}
PUBLIC_ROOMS = (
    *("errors", "findings", "layers", "functional", "metrics", "blocks", "networks", "budget"),
    *("callbacks", "data", "modules", "study", "report"),
)


def _loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys, json\nprint(json.dumps(list(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(run.stdout.splitlines()[-1])}


def test_callbacks_bring_in_nothing_heavy() -> None:
    bare = "import lightning.pytorch, torchmetrics"
    added = _loaded_after(f"{bare}\nimport lightning_depth.callbacks") - _loaded_after(bare)
    assert added & HEAVY == set()


def test_face_of_the_package_imports_nothing_until_asked() -> None:
    assert "torch" not in _loaded_after("import lightning_depth")


def test_face_hands_names_on() -> None:
    from lightning_depth.callbacks import GradientFlowMonitor

    assert lightning_depth.GradientFlowMonitor is GradientFlowMonitor
    assert set(lightning_depth.__all__) <= set(dir(lightning_depth))


def test_face_refuses_an_unknown_name() -> None:
    sentence = "module 'lightning_depth' has no attribute 'Nothing'"
    with pytest.raises(AttributeError, match=f"^{sentence}$"):
        lightning_depth.Nothing  # noqa: B018 - the access is what is tested


def _public_objects() -> list[tuple[str, Any]]:
    found = {}
    for room in PUBLIC_ROOMS:
        module = importlib.import_module(f"lightning_depth.{room}")
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found[f"{room}.{name}"] = value
    return sorted(found.items())


def _documented_arguments(docstring: str) -> list[str]:
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n|\n)+)", f"{docstring}\n", re.MULTILINE)
    return re.findall(r"^    \*{0,2}(\w+):", section.group(1), re.MULTILINE) if section else []


def _signature_arguments(value: Any) -> list[str]:
    hidden = {"self", "cls"}
    return [name for name in inspect.signature(value).parameters if name not in hidden]


OBJECTS = _public_objects()


@pytest.mark.parametrize(
    "value", [value for _, value in OBJECTS], ids=[name for name, _ in OBJECTS]
)
def test_docstring_describes_the_arguments_of_the_signature(value: Any) -> None:
    documentation = inspect.getdoc(value) or ""
    assert documentation, "no docstring"
    without_arguments = inspect.isclass(value) and (
        issubclass(value, Exception) or hasattr(value, "__members__")
    )
    if not without_arguments:
        assert _documented_arguments(documentation) == _signature_arguments(value)


@pytest.mark.parametrize(
    "value", [value for _, value in OBJECTS], ids=[name for name, _ in OBJECTS]
)
def test_docstring_has_a_runnable_example(value: Any) -> None:
    assert ">>>" in (inspect.getdoc(value) or "")


def _sources() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_error_message_is_a_tuple(path: Path) -> None:
    calls = [
        node.exc
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
    ]
    words = (ast.Constant, ast.JoinedStr)
    assert not [
        ast.unparse(call)
        for call in calls
        if len(call.args) > 1 and all(isinstance(argument, words) for argument in call.args)
    ]


def test_every_module_can_be_imported() -> None:
    for module in pkgutil.walk_packages(lightning_depth.__path__, "lightning_depth."):
        importlib.import_module(module.name)
