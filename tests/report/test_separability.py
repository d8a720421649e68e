from __future__ import annotations

from typing import Any

from lightning_depth.callbacks._probe.measures import MEASURES as MEASURED
from lightning_depth.report._panels import styles
from lightning_depth.report._separability import MEASURES, separability_figure


def _trials(**columns: list[Any]) -> dict[str, list[dict[str, Any]]]:
    history = {"epoch": [0, 0, 1, 1], "depth": [0, 1, 0, 1]} | columns
    return {"a": [{"callbacks": {"LayerSeparabilityProbe": {"history": history}}}]}


def test_every_measure_of_the_probe_has_a_name() -> None:
    assert set(MEASURES) == set(MEASURED)


def test_one_panel_for_each_measure_and_epoch() -> None:
    trials = _trials(fisher=[1.0, 2.0, 1.0, 4.0], knn=[0.5, 0.75, 0.5, 1.0], repeated=[0] * 4)
    figure = separability_figure(trials, styles(["a"]))
    assert figure is not None
    assert [panel.name for panel in figure.panels] == [
        "Fisher ratio, first epoch",
        "Fisher ratio, last epoch",
        "Nearest neighbors accuracy, first epoch",
        "Nearest neighbors accuracy, last epoch",
    ]


def test_numbers_lead_from_the_input_to_the_last_layer() -> None:
    figure = separability_figure(_trials(fisher=[1.0, 2.0, 1.5, 4.0]), styles(["a"]))
    assert figure is not None
    assert figure.legend == (("a", "Fisher ratio 1.5 to 4"),)


def test_page_says_what_was_measured_on_what() -> None:
    trials = _trials(
        fisher=[1.0, 2.0, 1.0, 4.0], num_samples=[360] * 4, pool=["flatten", "mean"] * 2
    )
    figure = separability_figure(trials, styles(["a"]))
    assert figure is not None
    assert figure.reading.startswith(
        "Measured on 360 validation samples; maps are reduced to their mean over positions. "
        "Depth 0 is the input."
    )


def test_values_of_both_signs_are_drawn_on_a_straight_axis() -> None:
    figure = separability_figure(_trials(collapse=[-1.0, 2.0, 0.0, 1.0]), styles(["a"]))
    assert figure is not None
    assert len(figure.panels) == 2


def test_no_finite_number_gives_no_figure() -> None:
    assert separability_figure(_trials(fisher=[None] * 4), styles(["a"])) is None


def test_separation_has_one_name() -> None:
    figure = separability_figure(_trials(separation=[9.0, 3.0, 8.0, 1.0]), styles(["a"]))
    assert figure is not None
    assert [panel.name for panel in figure.panels] == [
        "Separation, first epoch",
        "Separation, last epoch",
    ]
    assert figure.legend == (("a", "separation 8 to 1"),)


def test_an_arm_at_chance_is_told_as_such() -> None:
    fisher = [0.02, 0.03, 0.02, 0.03]
    figure = separability_figure(_trials(fisher=fisher, above_chance=[False] * 4), styles(["a"]))
    assert figure is not None
    told = "the last layer does not separate the classes better than chance"
    assert figure.legend == (("a", told),)
    later = _trials(fisher=fisher, above_chance=[False, False, True, True])
    figure = separability_figure(later, styles(["a"]))
    assert figure is not None
    assert figure.legend == (("a", "Fisher ratio 0.02 to 0.03"),)


def test_a_last_layer_without_a_number_is_not_told_by_another_layer() -> None:
    figure = separability_figure(_trials(fisher=[1.0, 2.0, 1.5, None]), styles(["a"]))
    assert figure is not None
    assert figure.legend == (("a", "Fisher ratio 1.5 to no number"),)
