"""Writes a study folder of plausible shape without training: what the report has to cope with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_depth.study import Study, StudyResult
from lightning_depth.study.store import Store

ARMS = ("plain-20", "plain-56", "residual-20", "residual-56")
HOSTILE = '<script>alert("x")</script>&amp; $\\frac{'
EPOCHS = 8
STEPS = range(0, 176, 11)


def write_study(
    folder: Path,
    arms: Sequence[str] = ARMS,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    failed: Sequence[tuple[str, int]] = (),
    not_finite: Sequence[tuple[str, int]] = (),
    with_claims: bool = True,
    text: str = "",
) -> StudyResult:
    """Write ``study.json`` and one file a trial, and return what is read back.

    ``text`` is added to everything that comes from outside: messages, layers, versions, command.
    """
    store = Store(folder)
    store.trials.mkdir(parents=True, exist_ok=True)
    keys = {(arm, seed): f"{p:08x}{seed:08x}" for p, arm in enumerate(arms) for seed in seeds}
    recipe = _recipe(arms, seeds, text, with_claims=with_claims and len(arms) >= 2)
    store.write_study(_study(recipe, list(keys.values()), text))
    for (arm, seed), key in keys.items():
        trial = _trial(key, arm, arms.index(arm), seed, text)
        if (arm, seed) in failed:
            trial.update(status="failed", error=_error(text), metrics={}, curves={})
            trial.update(callbacks={}, findings=[], timing={})
        if (arm, seed) in not_finite:
            trial = _without_numbers(trial)
        store.write_trial(trial)
    return StudyResult.load(folder)


def rename_arms(result: StudyResult, text: str) -> StudyResult:
    """Add a text to the names of the arms, as a file that somebody tampered with would have it."""
    arms = {f"{arm}{text}": planned for arm, planned in result.study["arms"].items()}
    claims = [replace(c, arm=f"{c.arm}{text}", than=f"{c.than}{text}") for c in result.claims]
    return replace(
        result,
        study={**result.study, "arms": arms},
        trials=[trial | {"arm": f"{trial['arm']}{text}"} for trial in result.trials],
        table=[row | {"arm": f"{row['arm']}{text}"} for row in result.table],
        claims=claims,
    )


def _recipe(
    arms: Sequence[str], seeds: Sequence[int], text: str, *, with_claims: bool
) -> dict[str, Any]:
    claims = [
        {"text": f"{arms[-1]} has a {direction} training error than {arms[0]}{text}"}
        | {"arm": arms[-1], "than": arms[0], "direction": direction}
        for direction in ("higher", "lower")
        if with_claims
    ]
    networks = {arm: {"network": {"block": "plain", "depth": 20, "width": 8}} for arm in arms}
    content = {"name": "degradation", "epochs": EPOCHS, "seeds": list(seeds), "arms": networks}
    question = f"Does a deeper plain network train worse, and do shortcuts mend it?{text}"
    return Study.from_dict(content | {"question": question, "claims": claims}).to_dict()


def _study(recipe: dict[str, Any], keys: list[str], text: str) -> dict[str, Any]:
    cost = {"params": 269722, "multiply_adds": 2558720, "activation_bytes": 1200000}
    return {
        "schema": 1,
        "name": f"degradation{text}",
        "question": recipe["question"],
        "hash": "0f3a9c1e77aa00bb",
        "command": f"lightning-depth study degradation --workers 2{text}",
        "recipe": recipe,
        "arms": {
            arm: {"cost": cost, "network": {}, "width": 8, "depth": 20, "match": None}
            for arm in recipe["arms"]
        },
        "trials": keys,
        "seeds": recipe["seeds"],
        "versions": {"lightning-depth": f"0.1.0{text}", "python": "3.12.3"},
        "machine": {"platform": f"Linux{text}", "processor": "x86_64", "cpu_count": 2},
        "started": "2026-11-21T03:00:00+00:00",
        "finished": "2026-11-21T03:02:07+00:00",
        "trial_phase_s": 121.5,
        "workers": 2,
    }


def _trial(key: str, arm: str, position: int, seed: int, text: str) -> dict[str, Any]:
    floor = min((0.02, 0.83, 0.001, 0.03)[position % 4] * (1 + 0.1 * seed), 1.0)
    fall = [floor + (0.9 - floor) * math.exp(-epoch) for epoch in range(EPOCHS)]
    val = [min(error + 0.03 + 0.004 * seed, 1.0) for error in fall]
    return {
        "schema": 1,
        "key": key,
        "arm": arm,
        "seed": seed,
        "status": "finished",
        "error": None,
        "metrics": {
            "train_error": fall[-1],
            "train_loss": 2.3 * fall[-1],
            "val_error": val[-1],
            "val_loss": 2.3 * val[-1],
        },
        "curves": {
            "epoch": list(range(EPOCHS)),
            "train_error": fall,
            "train_loss": [2.3 * error for error in fall],
            "val_error": val,
            "val_loss": [2.3 * error for error in val],
        },
        "callbacks": {
            "GradientFlowMonitor": {"history": _gradients(position, seed, text)},
            "LayerSeparabilityProbe": {"history": _separability(position, seed, text)},
        },
        "findings": _findings(position, text),
        "timing": {
            "train_step_s": 0.021,
            "inference_batch_s": 0.004,
            "fit_s": 9.5,
            "device": "cpu",
            "threads": 1,
        },
        "versions": {"python": "3.12.3"},
        "started": "2026-11-21T03:00:00+00:00",
        "finished": "2026-11-21T03:00:10+00:00",
    }


def _layers(position: int) -> int:
    return 29 if position % 2 else 11


def _gradients(position: int, seed: int, text: str) -> dict[str, list[Any]]:
    layers = _layers(position)
    decay = (0.9, 0.55, 0.97, 0.96)[position % 4]
    rows = [(step, depth) for step in STEPS for depth in range(1, layers + 1)]
    sizes = [
        1e-2 * decay ** (layers - depth) * (1 + 0.2 * seed) / (1 + step / 50)
        for step, depth in rows
    ]
    return {
        "step": [step for step, _ in rows],
        "epoch": [step // 22 for step, _ in rows],
        "layer": [f"layer{depth}{text}" for _, depth in rows],
        "depth": [depth for _, depth in rows],
        "grad_rms": sizes,
        "grad_to_weight": [10 * size for size in sizes],
        "output_grad_rms": [None] * len(rows),
        "nonfinite": [0] * len(rows),
    }


def _separability(position: int, seed: int, text: str) -> dict[str, list[Any]]:
    layers = _layers(position)
    rows = [(epoch, depth) for epoch in range(EPOCHS) for depth in range(layers + 1)]
    gain = (0.6, 0.02, 0.7, 0.5)[position % 4]

    def separation(epoch: int, depth: int) -> float:
        return 3 * math.exp(-gain * (epoch + 1) / EPOCHS * 8 * depth / layers) * (1 + 0.1 * seed)

    return {
        "epoch": [epoch for epoch, _ in rows],
        "step": [22 * epoch for epoch, _ in rows],
        "layer": [f"layer{depth}{text}" if depth else "input" for _, depth in rows],
        "depth": [depth for _, depth in rows],
        "pool": ["mean"] * len(rows),
        "num_samples": [400] * len(rows),
        "separation": [separation(*row) for row in rows],
        "fisher": [1 / separation(*row) for row in rows],
        "linear_probe": [1 - 0.3 * math.tanh(separation(*row)) for row in rows],
    }


def _findings(position: int, text: str) -> list[dict[str, Any]]:
    if position % 4 != 1:
        return []
    return [
        {
            "kind": "VANISHING",
            "severity": "warning",
            "layers": [f"blocks.{number}{text}" for number in range(9)],
            "value": 0.55,
            "threshold": 0.8,
            "message": f"The gradient shrinks to 0.55 of itself from layer to layer.{text}",
            "suggestion": f"Add shortcuts.{text}",
            "step": 12,
            "source": "GradientFlowMonitor",
        }
    ]


def _error(text: str) -> dict[str, str]:
    return {
        "type": "RuntimeError",
        "message": f"The loss of batch 3 is not finite.{text}",
        "traceback": f'Traceback (most recent call last):\n  File "train.py", line 3{text}',
    }


def _without_numbers(trial: dict[str, Any]) -> dict[str, Any]:
    """Replace every number of a trial by null, as a run that diverged at once stores it."""
    callbacks = {}
    for name, stored in trial["callbacks"].items():
        history = stored["history"]
        numbers = {"grad_rms", "grad_to_weight", "separation", "fisher", "linear_probe"} & set(
            history
        )
        callbacks[name] = {
            "history": history | {column: [None] * len(history["depth"]) for column in numbers}
        }
    return trial | {
        "metrics": dict.fromkeys(trial["metrics"]),
        "curves": {
            name: values if name == "epoch" else [None] * len(values)
            for name, values in trial["curves"].items()
        },
        "callbacks": callbacks,
    }
