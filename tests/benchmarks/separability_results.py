"""The numbers and figures of docs/separability.md: MNIST, and spoken digits by word and speaker.

    python tests/benchmarks/separability_results.py mnist-mlp FOLDER OUTPUT [SEED ...]
    python tests/benchmarks/separability_results.py mnist-residual FOLDER OUTPUT [SEED ...]
    python tests/benchmarks/separability_results.py speech FOLDER OUTPUT [SEED ...]

FOLDER holds the data sets as `lightning_depth.data` expects them. Three seeds each; those that were
run before are taken from OUTPUT. The measures are those of validation data, which no network was
trained on, and of 2,000 training samples. Prints Markdown and leaves figures in OUTPUT.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import time
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib.figure import Figure
from torch import nn

from lightning_depth.callbacks import LayerSeparabilityProbe
from lightning_depth.data import build_data
from lightning_depth.modules import Classifier, build_optimizer, build_scheduler
from lightning_depth.networks import build_convnet, build_mlp

SEEDS = (0, 1, 2)
CASES: dict[str, dict[str, Any]] = {
    "mnist-mlp": {"data": "mnist", "epochs": 10, "rate": 2e-3},
    "mnist-residual": {"data": "mnist", "epochs": 15, "rate": 4e-3},
    "speech": {"data": "spoken_digits", "epochs": 25, "rate": 2e-3},
}


def build(case: str, data: pl.LightningDataModule) -> nn.Module:
    """Return the network of a case, not yet trained."""
    shape: tuple[int, ...] = data.input_shape  # type: ignore[attr-defined] # the package's own
    if case == "mnist-residual":
        net = build_convnet("residual", depth=14, width=16, num_classes=10, in_channels=1)
        return nn.Sequential(OrderedDict(shrink=nn.AvgPool2d(2), net=net))  # 14 x 14 pixels
    features = int(torch.Size(shape).numel())
    options = {"norm": "batchnorm"}
    return build_mlp("plain", 6, 128, features, num_classes=10, block_options=options)


def run(case: str, folder: str, seed: int) -> dict[str, Any]:
    """Train one network and measure it on validation and on training data."""
    choice = CASES[case]
    pl.seed_everything(seed, verbose=False)
    speech = case == "speech"
    options = {"speaker_label": True} if speech else {}
    data = build_data(choice["data"], root=folder, seed=seed, **options)
    module = Classifier(
        build(case, data),
        build_optimizer("AdamW", lr=choice["rate"]),
        build_scheduler("OneCycleLR", max_lr=choice["rate"]),
    )
    named: dict[str, Any] = {"labels": 1, "nuisance": 2} if speech else {"class_pairs": [(4, 9)]}
    probe = LayerSeparabilityProbe(every_n_epochs=choice["epochs"], **named)
    began = time.perf_counter()
    trainer(probe, choice["epochs"]).fit(module, data)
    found: dict[str, Any] = {
        "seed": seed,
        "seconds": time.perf_counter() - began,
        "val_error": trainer(None, 1).validate(module, data, verbose=False)[0]["val/error"],
        "validation": dict(probe.history),
        "law": probe.laws[-1],
        "pairs": probe.hardest_pairs,
        "findings": [finding.message for finding in probe.findings],
    }
    on_training = LayerSeparabilityProbe(**named)
    loader = data.train_eval_dataloader()  # type: ignore[attr-defined] # the package's own
    scores = trainer(on_training, 1).validate(module, loader, verbose=False)
    found |= {"train_error": scores[0]["val/error"], "training": dict(on_training.history)}
    found["training_law"] = on_training.laws[-1]
    found["figure"] = probe.plot_classes()
    found["profile"] = probe.plot()[0]
    return found


def trainer(probe: pl.Callback | None, epochs: int) -> pl.Trainer:
    """Return a quiet Trainer."""
    return pl.Trainer(
        max_epochs=epochs,
        callbacks=[probe] if probe else [],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def table(runs: list[dict[str, Any]], part: str, columns: list[str]) -> str:
    """Return means over the seeds, layer by layer."""
    lines = ["| layer | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for place, layer in enumerate(runs[0][part]["layer"]):
        values = [[run[part][column][place] for run in runs] for column in columns]
        cells = [
            f"{statistics.fmean(value):.3g} ± {statistics.stdev(value):.2g}" for value in values
        ]
        lines.append(f"| {layer} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_shares(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw the shares of the variance between words and between speakers over depth."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axis = figure.subplots()
    names = {"label_share": "between words", "nuisance_share": "between speakers of a word"}
    for (column, text), color in zip(names.items(), ("tab:blue", "tab:orange"), strict=True):
        for place, run in enumerate(runs):
            depth = run["validation"]["depth"]
            values = run["validation"][column]
            label = text if place == 0 else None
            axis.plot(depth, values, "o-", ms=3, lw=1.2, alpha=0.8, color=color, label=label)
    axis.set_xlabel("depth (0 is the input)")
    axis.set_ylabel("share of the variance")
    axis.set_ylim(0, 1)
    axis.legend(fontsize="small")
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main(case: str, folder: str, output: str, *seeds: str) -> None:
    """Run some seeds of a case and print what the documentation shows, once all are there."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    Path(output).mkdir(parents=True, exist_ok=True)
    stored = Path(output) / f"{case}.json"
    runs = json.loads(stored.read_text()) if stored.exists() else []
    for seed in map(int, seeds or SEEDS):
        found = run(case, folder, seed)
        found.pop("figure").savefig(Path(output) / f"{case}-classes-{seed}.png", dpi=110)
        found.pop("profile").savefig(Path(output) / f"{case}-profile-{seed}.png", dpi=110)
        runs.append(found)
        stored.write_text(json.dumps(runs))
        for name in ("law", "training_law"):
            law = found[name]
            print(
                f"seed {seed}, {name}: decay ratio {law['decay_ratio']:.3f}, "
                f"R² {law['r_squared']:.3f}; error {found['train_error']:.4f} train, "
                f"{found['val_error']:.4f} validation; {found['seconds']:.0f} s"
            )
        print("pairs", found["pairs"], "findings", found["findings"], flush=True)
    if len(runs) < len(SEEDS):
        return
    if case == "speech":
        draw_shares(runs, Path(output) / "speech-shares.png")
    extra = ["label_share", "nuisance_share"] if case == "speech" else ["fisher_4_9"]
    columns = ["separation", "fisher", "linear_probe", *extra]
    for part in ("validation", "training"):
        print(f"\n{part}\n" + table(runs, part, columns))


if __name__ == "__main__":
    main(*sys.argv[1:])
