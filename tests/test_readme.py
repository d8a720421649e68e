"""What the README shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_composer_needs_ten_lines(blocks: list[str]) -> None:
    lines = [line for line in blocks[1].splitlines() if line.strip()]
    assert len(lines) <= 10


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_readme_script_prints_a_verdict(
    blocks: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    exec("\n".join(blocks).replace("max_epochs=20", "max_epochs=2"), names)
    told = "".join(capfd.readouterr())
    assert "depth verdict" in told
    assert len(names["callbacks"][0].history["layer"]) > 0
