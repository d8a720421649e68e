"""An error in a callback that only observes never ends a run."""

from __future__ import annotations

import inspect
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

import lightning_depth.callbacks
from lightning_depth.callbacks import FindingError, ObserverWarning
from lightning_depth.callbacks._base import DepthCallback
from lightning_depth.errors import ConfigurationError
from lightning_depth.findings import Finding, FindingKind, Severity
from tests.callbacks._runs import Toy, every_observer, loader, make, observers, trainer

DEAD = Finding(FindingKind.DEAD, Severity.WARNING, ("net.1",), 0.5, 0.1, "Dead.", "Revive.")

HOOKS = sorted(
    (name, hook)
    for name in observers()
    for hook in {
        attribute
        for base in getattr(lightning_depth.callbacks, name).__mro__
        if issubclass(base, DepthCallback)
        for attribute in vars(base)
        if attribute in ("setup", "teardown") or attribute.startswith("on_")
    }
    - {"on_exception"}
)


@pytest.fixture(autouse=True)
def _as_users_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_DEPTH_STRICT")


@contextmanager
def told() -> Iterator[list[str]]:
    """Collect what observers warn of; every other warning stays an error."""
    sentences: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ObserverWarning)
        yield sentences
    sentences += [str(w.message) for w in caught if w.category is ObserverWarning]


def run_with(*callbacks: DepthCallback, **options: Any) -> dict[str, torch.Tensor]:
    """Train the toy to its end, and return its weights."""
    seed_everything(3, verbose=False)
    module = Toy()
    trainer(*callbacks, **options).fit(module, loader(), loader())
    assert not any(
        getattr(part, hooks)
        for part in module.modules()
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    )
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def bare() -> dict[str, torch.Tensor]:
    return run_with()


def assert_same(weights: dict[str, torch.Tensor], bare: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(weights[name], bare[name]) for name in bare)


def broken_in(callback: DepthCallback, hook: str) -> DepthCallback:
    """Return the callback with one hook that fails after it has done its work."""
    original = getattr(type(callback), hook)

    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        raise RuntimeError("out of luck")

    callback.__class__ = type(type(callback).__name__, (type(callback),), {hook: fail})
    return callback


@pytest.mark.parametrize(("name", "hook"), HOOKS)
def test_error_in_a_hook_is_told_once_and_training_goes_on(
    name: str, hook: str, bare: dict[str, torch.Tensor]
) -> None:
    with told() as sentences:
        weights = run_with(broken_in(make(name), hook))
    assert_same(weights, bare)
    assert len(sentences) == 1
    assert sentences[0].startswith(f"{name} met an error")
    assert f"(`{hook}`): RuntimeError: out of luck (test_guard.py:" in sentences[0]
    over = hook in ("on_fit_end", "teardown")
    after = "Training is not affected" if over else "It measures no more in this run, and training"
    assert f". {after}" in sentences[0]
    assert sentences[0].endswith(
        "set LIGHTNING_DEPTH_STRICT=1 in the environment to make this an error."
    )


@every_observer
def test_switch_in_the_environment_makes_it_an_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_DEPTH_STRICT", "1")
    with pytest.raises(RuntimeError, match=r"^out of luck$"):
        run_with(broken_in(make(name), "on_train_epoch_end"))


@every_observer
@pytest.mark.parametrize("method", ["state_dict", "load_state_dict"])
def test_error_with_the_state_costs_no_checkpoint(name: str, method: str, tmp_path: Path) -> None:
    good = make(name)
    run = trainer(good, max_epochs=1)
    run.fit(Toy(), loader(), loader())
    run.save_checkpoint(tmp_path / "run.ckpt")
    callback = broken_in(make(name), method)
    with told() as sentences:
        again = trainer(callback, max_epochs=2)
        again.fit(Toy(), loader(), loader(), ckpt_path=tmp_path / "run.ckpt", weights_only=True)
        again.save_checkpoint(tmp_path / "again.ckpt")
    assert again.current_epoch == 2
    assert (tmp_path / "again.ckpt").exists()
    assert len(sentences) == 1


@every_observer
@pytest.mark.parametrize("seed", range(4))
def test_error_anywhere_leaves_the_run_as_it_is(
    name: str, seed: int, bare: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    _fail_anywhere(name, seed, bare, tmp_path)


@pytest.mark.slow
@every_observer
@pytest.mark.parametrize("seed", range(100, 130))
def test_error_anywhere_leaves_the_run_as_it_is_at_length(
    name: str, seed: int, bare: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    _fail_anywhere(name, seed, bare, tmp_path)


def _fail_anywhere(name: str, seed: int, bare: dict[str, torch.Tensor], folder: Path) -> None:
    calls = _Faults()
    with calls, told():
        run_with(make(name), logger=CSVLogger(folder / "count"))
    faults = _Faults(at=random.Random(seed).randrange(calls.count))
    with faults, told() as sentences:
        weights = run_with(make(name), logger=CSVLogger(folder / "fail"))
    assert_same(weights, bare)
    assert faults.raised, calls.count
    assert len(sentences) <= 1


class _Faults:
    """Raises an error when the n-th function of the callbacks' room is called during a run."""

    spared = ("_guard.py", "_base.py", "_memory.py", "__init__.py")
    """What catches errors and what puts things back is not made to fail itself."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.count, self.raised = at, 0, ""

    def __enter__(self) -> None:
        sys.setprofile(self._watch)

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def _watch(self, frame: FrameType, event: str, argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event != "call" or "callbacks" not in path.parts or path.name in self.spared:
            return
        if "lightning_depth" not in path.parts or not _in_a_hook(frame):
            return
        if frame.f_code.co_flags & inspect.CO_GENERATOR:
            return  # one that is closed would be called too
        self.count += 1
        if self.at is not None and self.count > self.at and not self.raised:
            self.raised = f"{path.name}:{frame.f_code.co_name}"
            raise RuntimeError("out of luck")


def _in_a_hook(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.endswith("_guard.py") and frame.f_code.co_name == "run":
            return True
        frame = frame.f_back
    return False


# Errors that are wanted.


class Finder(DepthCallback):
    """Finds the same thing at every step."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._add_finding(trainer, DEAD)


def test_finding_that_is_to_raise_still_raises() -> None:
    with pytest.raises(FindingError, match=r"^DEAD: Dead. Revive.$"):
        run_with(Finder("finder", on_finding="raise"))


def test_error_of_the_users_own_action_is_raised() -> None:
    def refuse(finding: Finding) -> None:
        raise KeyError(finding.kind.value)

    with pytest.raises(KeyError, match=r"^'DEAD'$"):
        run_with(Finder("finder", on_finding=refuse))


def test_warning_that_the_user_made_an_error_is_raised() -> None:
    with pytest.raises(UserWarning, match=r"^DEAD: Dead. Revive.$"):
        run_with(Finder("finder", on_finding="warn"))


@pytest.mark.parametrize("name", ["GradientFlowMonitor", "LayerSeparabilityProbe"])
def test_pattern_that_matches_no_layer_is_still_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^`include` must hold patterns that match"):
        run_with(make(name, include="no_such_layer"))


def test_metric_that_is_not_there_still_ends_the_run() -> None:
    with pytest.raises(RuntimeError, match="no_such_metric"):
        run_with(make("EarlyStopping", monitor="no_such_metric"))


def test_warnings_as_errors_do_not_let_the_guard_end_a_run(bare: dict[str, torch.Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ObserverWarning)
        weights = run_with(broken_in(make("GradientFlowMonitor"), "on_train_batch_end"))
    assert_same(weights, bare)


# What is said at the end.


def test_box_says_that_a_callback_stopped_and_what_the_others_saw(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with told():
        run_with(
            broken_in(make("GradientFlowMonitor"), "on_train_epoch_end"),
            make("ActivationMonitor"),
        )
    text = " ".join(capsys.readouterr().out.replace("|", " ").split())
    assert "- GradientFlowMonitor met an error at step 6, while measuring (`on_train" in text
    assert "out of luck (test_guard.py:" in text
    assert ") and measured no more." in text
    assert "- ActivationMonitor took 12 measurements." in text


def test_next_run_measures_again() -> None:
    callback = broken_in(make("GradientFlowMonitor"), "on_train_epoch_end")
    with told():
        run_with(callback)
    callback.__class__ = type(make("GradientFlowMonitor"))
    run_with(callback)
    assert len(set(callback.history["step"])) == 12


def test_early_stopping_goes_on_stopping_where_its_verdict_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    callback = make("EarlyStopping", stopping_threshold=100.0)

    def fail(trainer: Trainer) -> list[Finding]:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(callback, "_conclude", fail)
    with told() as sentences:
        run_with(callback, max_epochs=5)
    assert callback.stopped_epoch == 0  # type: ignore[attr-defined]
    assert callback.wait_count == 0  # type: ignore[attr-defined]
    assert len(sentences) == 1
    assert "while judging the run: ZeroDivisionError: division by zero" in sentences[0]
