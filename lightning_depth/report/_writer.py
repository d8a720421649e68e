"""Puts the page into its template and the file into its place."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_depth import __version__, _extras
from lightning_depth.errors import invalid
from lightning_depth.report._page import build_page

if TYPE_CHECKING:
    from lightning_depth.study import StudyResult

__all__ = ["write_report"]


def write_report(result: StudyResult, path: str | Path) -> Path:
    """Write a stored study as one HTML file that opens from disk, without a network.

    The report answers first: the question, the verdict on each claim, the table; then the figures
    and what was run. It is made of stored numbers alone: no model is built and nothing that the
    study names is imported.

    Args:
        result: The study, as ``run_study`` returned it or ``StudyResult.load`` read it.
        path: The file to write; its folder is created, an older file is replaced at once.

    Returns:
        Where the report is.

    Raises:
        ConfigurationError: The path is a folder.
        MissingExtraError: matplotlib or jinja2 is not installed.

    Example:
        >>> import tempfile
        >>> from lightning_depth.study import StudyResult
        >>> study = {"name": "one", "arms": {}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = StudyResult(Path(folder), study, [], [], [])
        ...     write_report(result, f"{folder}/report.html").name
        'report.html'
    """
    target = Path(path)
    if target.is_dir():
        raise invalid("path", "a file, for example report.html", str(path))
    page = build_page(result)
    text = _template().render(page=page, version=__version__)
    target.parent.mkdir(parents=True, exist_ok=True)
    _replace(target, text)
    return target


@cache
def _template() -> Any:
    jinja2 = _extras.jinja2()
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _replace(target: Path, text: str) -> None:
    """Write beside the target and rename, so that no reader ever sees half a report."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
