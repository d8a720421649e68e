"""A study runs to the same numbers whatever happens to it on the way."""

from __future__ import annotations

import csv
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_depth.data import build_data
from lightning_depth.errors import ConfigurationError
from lightning_depth.study import (
    Event,
    InProcessExecutor,
    LocalExecutor,
    Study,
    StudyResult,
    choose_folder,
    run,
    run_study,
)
from lightning_depth.study.executors import num_cores
from lightning_depth.study.plan import make_plan
from lightning_depth.study.store import Store
from lightning_depth.study.trial import _plain

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
CLOCKED = {"timing", "started", "finished", "checksum"}


def _numbers(result: StudyResult) -> list[dict[str, Any]]:
    return [{key: trial[key] for key in trial.keys() - CLOCKED} for trial in result.trials]


def _own(name: str, **init_args: Any) -> dict[str, Any]:
    return {"network": {"class_path": f"tests.study.nets.{name}", "init_args": init_args}}


def test_a_trial_keeps_the_trend_that_findings_are_about(tiny: dict[str, Any]) -> None:
    tiny["callbacks"] = [{"GradientFlowMonitor": {"every_n_steps": 1}}]
    trial = run_study(Study.from_dict(tiny), output="out", workers=0).trials[0]
    stored = trial["callbacks"]["GradientFlowMonitor"]
    assert len(stored["totals"]["shrink_per_layer"]) == len(set(stored["history"]["step"]))


@pytest.fixture
def events() -> list[Event]:
    return []


def test_folder_is_named_by_study_and_hash(tiny: dict[str, Any]) -> None:
    study = Study.from_dict(tiny)
    assert str(choose_folder(study)) == f"lightning-depth-runs/tiny-{study.hash[:8]}"
    assert choose_folder(study, "mine") == Path("mine")


def test_result_holds_every_trial_and_the_files_are_there(tiny: dict[str, Any]) -> None:
    result = run_study(Study.from_dict(tiny), output="out", workers=0)
    assert [(trial["arm"], trial["seed"]) for trial in result.trials] == [
        ("thin", 0),
        ("thin", 1),
        ("deep", 0),
        ("deep", 1),
    ]
    assert result.complete
    assert not result.failed
    assert [claim.n for claim in result.claims] == [2]
    assert (result.folder / "report.html").is_file()
    rows = list(csv.DictReader((result.folder / "results.csv").open()))
    assert [row["train_error"] for row in rows] == [
        str(trial["metrics"]["train_error"]) for trial in result.trials
    ]
    assert result.arms["thin"]["cost"]["params"] == 64 * 4 + 4 + 4 * 10 + 10


def test_final_error_is_what_the_monitor_saw_last(tiny: dict[str, Any]) -> None:
    trial = run_study(Study.from_dict(tiny), output="out", workers=0).trials[0]
    last = trial["curves"]["train_error"][-1]  # in single precision, as validation's own
    assert trial["metrics"]["train_error"] == pytest.approx(last, rel=1e-6)
    assert trial["metrics"]["train_loss"] == pytest.approx(trial["curves"]["train_loss"][-1])
    assert trial["metrics"]["val_error"] == pytest.approx(trial["curves"]["val_error"][-1])
    assert trial["samples"] == {"train": 1437, "val": 360}


def test_epochs_are_those_of_the_recipe(tiny: dict[str, Any], events: list[Event]) -> None:
    study = Study.from_dict(tiny | {"epochs": 3, "seeds": [0]})
    trial = run_study(study, output="out", workers=0).trials[0]
    assert trial["curves"]["epoch"] == [0, 1, 2]
    assert len(trial["curves"]["train_error"]) == 3


def test_threads_of_the_process_are_as_before(tiny: dict[str, Any]) -> None:
    run_study(Study.from_dict(tiny | {"threads": 2, "seeds": [0]}), output="out", workers=0)
    assert torch.get_num_threads() == 1


def test_one_worker_two_and_none_give_the_same_numbers(tiny: dict[str, Any]) -> None:
    results = [
        run_study(Study.from_dict(tiny), output=f"out{workers}", workers=workers)
        for workers in (0, 1, 2)
    ]
    assert _numbers(results[0]) == _numbers(results[1]) == _numbers(results[2])
    assert results[0].table[0]["train_error"] == results[2].table[0]["train_error"]
    assert [result.study["workers"] for result in results] == [0, 1, 2]


def test_costliest_trials_begin(tiny: dict[str, Any]) -> None:
    trials = make_plan(Study.from_dict(tiny)).trials
    assert [trial.arm for trial in trials] == ["deep", "deep", "thin", "thin"]


def test_stored_result_is_shown_again_without_a_trial(
    tiny: dict[str, Any], events: list[Event]
) -> None:
    study = Study.from_dict(tiny)
    first = run_study(study, output="out", workers=0)
    again = run_study(study, output="out", workers=0, on_event=events.append)
    assert events == []
    assert again.trials == first.trials


def test_fresh_runs_every_trial_again(tiny: dict[str, Any], events: list[Event]) -> None:
    study = Study.from_dict(tiny)
    first = run_study(study, output="out", workers=0)
    again = run_study(study, output="out", workers=0, fresh=True, on_event=events.append)
    assert [event.kind for event in events].count("finished") == 4
    assert _numbers(again) == _numbers(first)


def test_only_what_is_missing_or_corrupt_runs_again(
    tiny: dict[str, Any], events: list[Event]
) -> None:
    study = Study.from_dict(tiny)
    first = run_study(study, output="out", workers=0)
    files = sorted(Path("out/trials").iterdir())
    files[0].unlink()
    files[1].write_text(files[1].read_text()[:-9])
    again = run_study(study, output="out", workers=0, on_event=events.append)
    ran = {event.trial.key for event in events if event.kind == "finished"}
    assert ran == {files[0].stem, files[1].stem}
    assert _numbers(again) == _numbers(first)


def test_changed_claims_are_judged_without_a_trial(
    tiny: dict[str, Any], events: list[Event]
) -> None:
    run_study(Study.from_dict(tiny), output="out", workers=0)
    tiny["claims"] = [{"arm": "thin", "than": "deep", "metric": "val_loss"}]
    result = run_study(Study.from_dict(tiny), output="out", workers=0, on_event=events.append)
    assert events == []
    assert [claim.metric for claim in result.claims] == ["val_loss"]


def test_folder_of_another_study_is_refused(tiny: dict[str, Any]) -> None:
    run_study(Study.from_dict(tiny | {"seeds": [0]}), output="out", workers=0)
    one, two = Study.from_dict(tiny | {"seeds": [0]}), Study.from_dict(tiny | {"name": "other"})
    sentence = (
        f"The output folder 'out' holds another study, 'tiny' ({one.hash[:8]}), not 'other' "
        f"({two.hash[:8]}). Choose another `--output`."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        run_study(two, output="out", workers=0)


def test_bad_recipe_leaves_no_folder(tiny: dict[str, Any]) -> None:
    tiny["arms"]["deep"]["network"]["block"] = "plian"
    with pytest.raises(ConfigurationError, match="Unknown block 'plian'"):
        run_study(Study.from_dict(tiny), output="out", workers=0)
    assert not Path("out").exists()


def test_unknown_executor_is_refused(tiny: dict[str, Any]) -> None:
    sentence = "`executor` must be one of 'local', but got 'lokal'. Did you mean 'local'?"
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        run_study(Study.from_dict(tiny), "lokal")  # type: ignore[arg-type]  # what is tested


def test_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    sentence = f"The folder {str(tmp_path)!r} holds no study."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        StudyResult.load(tmp_path)


def test_any_executor_will_do(tiny: dict[str, Any]) -> None:
    result = run_study(Study.from_dict(tiny | {"seeds": [0]}), InProcessExecutor(), output="out")
    assert result.complete


def test_workers_fit_the_machine_by_default(tiny: dict[str, Any]) -> None:
    result = run_study(Study.from_dict(tiny | {"seeds": [0]}), output="out")
    assert result.study["workers"] == min(2, num_cores())


@pytest.mark.parametrize("workers", [0, 2], ids=["in process", "workers"])
def test_trial_that_raises_is_a_result_and_the_others_go_on(
    tiny: dict[str, Any], workers: int, events: list[Event]
) -> None:
    tiny["arms"]["bad"] = _own("Raising")
    result = run_study(Study.from_dict(tiny), output="out", workers=workers)
    assert [(trial["arm"], trial["seed"]) for trial in result.failed] == [("bad", 0), ("bad", 1)]
    error = result.failed[0]["error"]
    assert (error["type"], error["message"]) == ("RuntimeError", "the cat sat on the <keyboard>")
    assert "in forward" in error["traceback"]
    assert [row["finished"] for row in result.table] == [2, 2, 0]
    assert result.table[2]["reason"] == "RuntimeError: the cat sat on the <keyboard>"
    run_study(Study.from_dict(tiny), output="out", workers=0, on_event=events.append)
    assert {event.trial.arm for event in events} == {"bad"}  # what failed is tried again


def test_worker_that_dies_is_a_failed_trial(tiny: dict[str, Any]) -> None:
    tiny |= {"arms": {"bad": _own("Dying"), "good": _own("Small")}, "claims": [], "seeds": [0]}
    result = run_study(Study.from_dict(tiny), output="out", workers=1)
    (failed,) = result.failed
    assert failed["error"]["type"] == "WorkerDied"
    log = f"out/logs/{failed['key']}.txt"
    sentence = f"The worker process ended with signal 9; see {log!r}."
    assert failed["error"]["message"] == sentence
    assert [trial["arm"] for trial in result.trials if trial["status"] == "finished"] == ["good"]


def test_numbers_that_are_not_finite_are_null(tiny: dict[str, Any]) -> None:
    tiny |= {"arms": {"bad": _own("Diverging"), "good": _own("Small")}, "claims": [], "seeds": [0]}
    result = run_study(Study.from_dict(tiny), output="out", workers=0)
    assert result.trials[0]["metrics"]["train_loss"] is None
    assert result.table[0]["train_loss"] is None
    assert result.table[1]["train_loss"] is not None


def test_network_that_cannot_be_built_is_refused_before_any_trial(tiny: dict[str, Any]) -> None:
    tiny |= {"arms": {"bad": _own("Unbuildable")}, "claims": []}
    sentence = "recipe, arms.bad.network.init_args: OSError: no such file of weights"
    with pytest.raises(ConfigurationError, match=f"^{sentence}$"):
        run_study(Study.from_dict(tiny), output="out", workers=0)
    assert not Path("out").exists()


def test_match_sets_the_width(tiny: dict[str, Any]) -> None:
    tiny["arms"] = {
        "deep": {"network": {"block": "plain", "hidden_layers": 3, "width": 16}},
        "wide": {
            "network": {"block": "plain", "hidden_layers": 1},
            "match": {"arm": "deep", "by": "params"},
        },
        "own": _own("Small") | {"match": {"arm": "wide"}},
    }
    tiny["claims"] = []
    arms = {arm.name: arm for arm in make_plan(Study.from_dict(tiny)).arms}
    deep = 64 * 16 + 16 + 2 * (16 * 16 + 16) + 16 * 10 + 10
    costs = {width: (64 + 1) * width + (width + 1) * 10 for width in range(1, 99)}
    nearest = min(costs, key=lambda width: abs(costs[width] - deep))
    assert arms["wide"].width == arms["own"].width == nearest
    assert arms["wide"].cost.params == costs[nearest]
    assert arms["wide"].match == {
        "arm": "deep",
        "by": "params",
        "target": deep,
        "relative_error": pytest.approx(costs[nearest] / deep - 1),
    }


def test_seed_of_the_trial_seeds_split_weights_and_batches(tiny: dict[str, Any]) -> None:
    trials = run_study(Study.from_dict(tiny), output="out", workers=0).trials
    assert trials[0]["metrics"] != trials[1]["metrics"]
    splits = []
    for seed in (0, 1):
        data = build_data("digits", seed=seed)
        data.setup("fit")
        splits.append(np.concatenate([labels for _, labels in data.val_dataloader()]))
    assert (splits[0] != splits[1]).any()


def test_results_of_another_version_are_kept_but_named(tiny: dict[str, Any]) -> None:
    study = Study.from_dict(tiny)
    run_study(study, output="out", workers=0)
    store = Store("out")
    record = store.read_trials()[0]
    record["versions"]["torch"] = "1.0"
    store.write_trial(record)
    result = run_study(study, output="out", workers=0)
    assert result.notes == [
        f"1 of 4 trials were run with torch 1.0; installed is {version('torch')}."
    ]


def test_records_are_plain_json(tiny: dict[str, Any]) -> None:
    run_study(Study.from_dict(tiny | {"seeds": [0]}), output="out", workers=0)
    for path in Path("out").rglob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))


def test_events_tell_the_whole_story(tiny: dict[str, Any], events: list[Event]) -> None:
    study = Study.from_dict(tiny | {"epochs": 2, "seeds": [0]})
    run_study(study, LocalExecutor(1), output="out", on_event=events.append)
    kinds = [(event.kind, event.trial.arm, event.epoch) for event in events]
    assert kinds == [
        ("queued", "deep", 0),
        ("queued", "thin", 0),
        ("started", "deep", 0),
        ("epoch", "deep", 1),
        ("epoch", "deep", 2),
        ("finished", "deep", 0),
        ("started", "thin", 0),
        ("epoch", "thin", 1),
        ("epoch", "thin", 2),
        ("finished", "thin", 0),
    ]


def test_timing_is_recorded(tiny: dict[str, Any]) -> None:
    timing = run_study(Study.from_dict(tiny | {"epochs": 2}), output="out", workers=0).trials[0][
        "timing"
    ]
    assert 0 < timing["inference_batch_s"] < timing["fit_s"]
    assert 0 < timing["train_step_s"] < timing["fit_s"]
    assert (timing["device"], timing["threads"]) == ("cpu", 1)


def test_stored_study_imports_and_runs_nothing_that_it_names(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny |= {"arms": {"own": _own("Small")}, "claims": [], "seeds": [0]}
    run_study(Study.from_dict(tiny), output="out", workers=0)
    store = Store("out")
    content = store.read_study()
    assert content is not None
    content["recipe"]["arms"]["own"]["network"]["class_path"] = "tests.study.never_imported.Net"
    store.write_study(content)
    assert StudyResult.load("out").table[0]["arm"] == "own"


@pytest.mark.parametrize(
    ("settings", "offline"),
    [
        pytest.param({}, True, id="no key"),
        pytest.param({"WANDB_API_KEY": "k"}, False, id="key"),
        pytest.param({"WANDB_MODE": "online"}, False, id="mode asked for"),
        pytest.param({"NETRC": "keys"}, False, id="key in netrc"),
        pytest.param({"NETRC": "keys", "WANDB_BASE_URL": "https://own.org"}, True, id="other host"),
        pytest.param({"NETRC": "broken"}, True, id="netrc that cannot be read"),
    ],
)
def test_wandb_is_offline_without_a_key(
    settings: dict[str, str], offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("keys").write_text("machine api.wandb.ai login user password k")
    Path("broken").write_text("what is this")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "none")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert run._is_offline() is offline


def test_tensors_and_arrays_become_plain() -> None:
    value = {"a": torch.tensor([1.0, torch.inf]), "b": np.float64(2), "c": (np.int64(3), "d")}
    assert _plain(value) == {"a": [1.0, None], "b": 2.0, "c": [3, "d"]}
