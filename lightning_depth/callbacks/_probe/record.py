"""What is kept of the passes beside the history: all that the verdict and the figures need."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from lightning_depth.callbacks._probe.verdicts import Evidence

__all__ = ["ProbeRecord"]


@dataclass
class ProbeRecord:
    """What the probe remembers.

    Args:
        laws: The law of data separation of each pass, with its epoch and step.
        pairs: The hardest pairs of classes of the last pass.
        names: Layers of the last pass, in order of execution.
        blocks: Those of the layers that may be called idle.
        evidence: What the last pass says about each layer.
        panels: Classes of the last pass in the plane, for some layers.
        standing: How the last layer of the last pass stands against chance.
        moves: Standard error of the change of each measure from the first layer to the last.
        notes: What a reader of the last pass must know, by the kind of trouble.
        reason: Why the last pass could not be measured, None where it could.
    """

    laws: list[dict[str, float]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    evidence: dict[str, Evidence] = field(default_factory=dict)
    panels: dict[str, Any] = field(default_factory=dict)
    standing: dict[str, Any] = field(default_factory=dict)
    moves: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    reason: str | None = None

    @property
    def law(self) -> dict[str, float]:
        """The law of the last pass, empty where there was none."""
        return self.laws[-1] if self.laws else {}

    def keep(self, when: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Take over what ``summarise`` says of a pass, and of the last one what ``weigh`` does."""
        self.laws.append({**when, **result["law"]})
        self.standing = result["standing"]
        self.pairs = result["pairs"]
        self.names = result["rows"]["layer"]
        self.notes = result["notes"]
        self.reason = None
        self.weighed(result.get("weighed", {"evidence": {}, "moves": {}, "panels": {}}))

    def weighed(self, found: Mapping[str, Any]) -> None:
        """Take over what ``weigh`` says of the last pass."""
        self.evidence, self.moves = found["evidence"], found["moves"]
        self.panels = found["panels"]

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain containers."""
        return {
            "laws": [dict(law) for law in self.laws],
            "pairs": [dict(pair) for pair in self.pairs],
            "names": list(self.names),
            "blocks": list(self.blocks),
            "evidence": {name: [item.logs, item.probe] for name, item in self.evidence.items()},
            "panels": self.panels,
            "standing": dict(self.standing),
            "moves": dict(self.moves),
            "notes": dict(self.notes),
            "reason": self.reason,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ProbeRecord:
        """Return what ``state_dict`` wrote; the state itself may be loaded again."""
        state = deepcopy(dict(state))
        evidence = {name: Evidence(*item) for name, item in state["evidence"].items()}
        return cls(**{**state, "evidence": evidence})
