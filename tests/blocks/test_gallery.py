"""The gallery page of the docs: every block is there, and its costs are those that are measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_depth.blocks import block_factory, list_blocks
from lightning_depth.blocks._registry import _BUILDERS
from lightning_depth.budget import measure_cost

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "blocks.md").read_text(encoding="utf-8")
OURS = [name for name in list_blocks() if _BUILDERS[name].__module__.startswith("lightning_depth")]


@pytest.mark.parametrize("name", OURS)
def test_block_is_drawn_and_its_cost_is_what_is_measured(name: str) -> None:
    options, out_channels = ({"growth_rate": 16}, 128) if name == "dense" else ({}, 64)
    cost = measure_cost(block_factory(name, **options)(64, out_channels), (64, 32, 32))
    section = re.search(rf"_static/blocks/{name}\.svg.*?(?=\n## |\Z)", PAGE, re.DOTALL)
    assert section is not None
    assert (DOCS / "_static" / "blocks" / f"{name}.svg").exists()
    assert all(part in section.group() for part in ("Name\n: ", "Paper\n: ", "Use it\n: ", "\n$"))
    numbers = f"{cost.params:,} parameters, {cost.multiply_adds:,} multiply-adds, "
    assert numbers + f"{cost.activation_bytes:,} bytes" in section.group()
