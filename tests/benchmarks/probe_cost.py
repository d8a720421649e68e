"""What the separability probe adds to a validation pass, beside delve and a probe trained by SGD.

    python -m tests.benchmarks.probe_cost time ROUNDS [SECONDS]
    python -m tests.benchmarks.probe_cost peers ROUNDS [SECONDS]
    python -m tests.benchmarks.probe_cost wide ROUNDS [SECONDS]
    python -m tests.benchmarks.probe_cost memory

`time`: ResNet-18, 32 px, 10 classes, 10,000 images, batch 64, inside `trainer.validate`; `peers`
the same with delve and a linear probe trained by SGD on cached features of eight blocks. `wide`:
ResNet-50 with 1,000 classes and `max_features=2048`. `memory`: the same two, peak resident memory
of a process against that of the bare pass. Images are random numbers: what is measured is the time.
One thread, and processor time of the process, which other programs on the machine disturb least.
A round runs every variant once, the bare pass twice, in an order that rotates; ROUNDS is a file to
which rounds are added until SECONDS (120) are over, and of which the table is printed.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_depth.callbacks import LayerSeparabilityProbe
from tests.benchmarks._paired import AGAIN, BASE, HEADER, summarise

IMAGES, WARM_UP, BATCH = 10_000, 640, 64
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "time": ("resnet18", 10, {}),
    "peers": ("resnet18", 10, {}),
    "wide": ("resnet50", 1000, {"max_features": 2048}),
}


class Net(pl.LightningModule):
    """Validates a network of torchvision."""

    def __init__(self, name: str, num_classes: int) -> None:
        super().__init__()
        self.net = getattr(torchvision.models, name)(num_classes=num_classes)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net(batch[0])


def data(num_classes: int, images: int) -> DataLoader[Any]:
    """Return random images of random classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, 3, 32, 32, generator=generator)
    y = torch.randint(num_classes, (images,), generator=generator)
    return DataLoader(TensorDataset(x, y), BATCH)


def validate(
    module: Net, loader: DataLoader[Any], options: dict[str, Any] | None, passes: int = 1
) -> None:
    """Run validation passes of one Trainer, with the probe unless options are None."""
    callbacks = [] if options is None else [LayerSeparabilityProbe(**options)]
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    for _ in range(passes):
        trainer.validate(module, loader, verbose=False)
    if callbacks and not callbacks[0].history:
        raise RuntimeError("the probe measured nothing")


def with_delve(module: Net, loader: DataLoader[Any]) -> None:
    """Run the pass with delve's saturation of all convolutions and linear layers."""
    from delve import SaturationTracker

    tracker = SaturationTracker("delve", "print", module.net, device="cpu", nosave=True)
    try:
        validate(module, loader, None)
        with contextlib.redirect_stdout(io.StringIO()):
            tracker.add_saturations()
    finally:
        tracker.close()
        for part in module.modules():
            part._forward_hooks.clear()


def with_sgd_probe(module: Net, loader: DataLoader[Any], num_classes: int) -> None:
    """Cache pooled features of eight blocks, then train a linear layer on each for 5 epochs."""
    names = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    kept: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str, part: nn.Module, args: Any, output: Tensor) -> None:
        kept[name].append(output.mean((2, 3)))

    handles = [
        module.net.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names
    ]
    validate(module, loader, None)
    for handle in handles:
        handle.remove()
    labels = loader.dataset.tensors[1]  # type: ignore[attr-defined] # a TensorDataset
    for name in names:
        x = torch.cat(kept[name]).clone()
        head = nn.Linear(x.shape[1], num_classes)
        optimizer = torch.optim.SGD(head.parameters(), 0.1, momentum=0.9)
        for _ in range(5):
            for rows in torch.arange(len(x)).split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(head(x[rows]), labels[rows]).backward()
                optimizer.step()


def variants(case: str, images: int = IMAGES, passes: int = 1) -> dict[str, Callable[[], None]]:
    """Return the bare pass, once more, and what is held against it."""
    name, num_classes, options = CASES[case]
    module, loader = Net(name, num_classes).eval(), data(num_classes, images)
    bare = partial(validate, module, loader, None, passes)
    found: dict[str, Callable[[], None]] = {BASE: bare, AGAIN: bare}
    if case != "peers":
        found["probe, default sample"] = partial(validate, module, loader, options, passes)
    if case == "time":
        streaming = {**options, "max_samples": None}
        found["probe, max_samples=None"] = partial(validate, module, loader, streaming, passes)
    if case == "peers":
        found["linear probe by SGD, 5 epochs"] = partial(
            with_sgd_probe, module, loader, num_classes
        )
        if _has_delve():
            found["delve, saturation of all layers"] = partial(with_delve, module, loader)
    return found


def add_rounds(case: str, path: Path, seconds: float) -> None:
    """Run rounds until the time is over and add each to a file, in seconds of the processor."""
    for run in variants(case, WARM_UP).values():
        run()
    runs, begun = variants(case), time.perf_counter()
    names = list(runs)
    turn = len(path.read_text().splitlines()) if path.exists() else 0
    while time.perf_counter() - begun < seconds:
        place = turn % len(names)
        found = {}
        for name in names[place:] + names[:place]:
            gc.collect()
            start = time.process_time()
            runs[name]()
            found[name] = time.process_time() - start
        with path.open("a") as file:
            file.write(json.dumps(found) + "\n")
        turn += 1


def table(path: Path) -> str:
    """Return the rounds of a file as a table of ratios to the bare pass."""
    rounds = [json.loads(line) for line in path.read_text().splitlines()]
    names = [name for name in rounds[0] if name != BASE]
    lines = [summarise(name, [found[name] / found[BASE] for found in rounds]) for name in names]
    return "\n".join([HEADER, *map(str, lines)])


def _has_delve() -> bool:
    try:
        import delve  # noqa: F401 # only whether it is there
    except ImportError:
        return False
    return True


def peak(case: str, which: str) -> None:
    """Print the peak resident memory of this process after two passes, in MB."""
    variants(case, passes=2)[which]()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def memory() -> None:
    """Print what each variant adds to the peak resident memory."""
    for case, names in (("time", ["probe, default sample", "probe, max_samples=None"]),
                        ("wide", ["probe, default sample"])):  # fmt: skip
        sizes = {}
        for name in ["bare", *names]:
            command = [sys.executable, "-m", "tests.benchmarks.probe_cost", "peak", case, name]
            sizes[name] = int(subprocess.run(command, check=True, stdout=-1).stdout.split()[-1])
        for name in names:
            print(f"| {case}: {name} | {sizes[name] - sizes['bare']} MB |", flush=True)


def main(what: str, *rest: str) -> None:
    """Run one of the measurements."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if what == "memory":
        memory()
    elif what == "peak":
        peak(*rest)
    else:
        path = Path(rest[0])
        add_rounds(what, path, float(rest[1]) if len(rest) > 1 else 120.0)
        print(table(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
