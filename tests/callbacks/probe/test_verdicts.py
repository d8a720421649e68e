"""Which blocks are called idle, by evidence that is written down."""

from __future__ import annotations

import pytest

from lightning_depth.callbacks._probe.verdicts import Evidence, find_idle

NAMES = ["stem", "block.1", "block.2", "block.3", "block.4", "block.5"]


def _evidence(worse: float) -> dict[str, Evidence]:
    """Each block gains by e, but for the third, which loses by a power of e."""
    levels = [0.0, 1.0, 2.0, 2.0 - worse, 3.0, 4.0]
    shares = [0.0, *(0.001 * (group % 3 - 1) for group in range(10))]  # all, then without a group
    return {
        name: Evidence(
            {
                "separation": [share - level for share in shares],
                "fisher": [level - share for share in shares],
            },
            probe=0.9,
        )
        for name, level in zip(NAMES, levels, strict=True)
    }


@pytest.mark.parametrize(
    ("worse", "idle"),
    [(0.0, [("block.3",)]), (0.3, [("block.3",)]), (1.0, []), (6.0, [])],
    ids=["does nothing", "a little worse", "much worse", "a branch beside"],
)
def test_a_block_that_changes_much_is_not_idle(worse: float, idle: list[tuple[str, ...]]) -> None:
    found = find_idle(_evidence(worse), NAMES, NAMES[1:])
    assert [finding.layers for finding in found] == idle
