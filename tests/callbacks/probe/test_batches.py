"""Which tensor of a batch is taken for the labels, and which never is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_depth.callbacks._probe.batches import NoLabelsError, pick, read_batch

X = torch.randn(8, 3, 4, 4)
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


class Pair(NamedTuple):
    image: Tensor
    label: Tensor


@dataclass
class Record:
    signal: Tensor
    target: Tensor


FOUND = [
    pytest.param((X, Y), id="tuple"),
    pytest.param([X, Y.to(torch.uint8)], id="list-uint8"),
    pytest.param((X, Y[:, None]), id="column"),
    pytest.param((X, torch.nn.functional.one_hot(Y)), id="one-hot"),
    pytest.param((X, torch.nn.functional.one_hot(Y).float()), id="one-hot-float"),
    pytest.param({"image": X, "label": Y}, id="dict"),
    pytest.param({"pixel_values": X, "Labels": Y, "idx": torch.arange(8)}, id="dict-case"),
    pytest.param({"input": X, "y": Y, "index": torch.arange(8)}, id="dict-index"),
    pytest.param(Pair(X, Y), id="named-tuple"),
    pytest.param(Record(X, Y), id="dataclass"),
    pytest.param(SimpleNamespace(x=X, y=Y), id="object"),
    pytest.param((X, {"label": Y}), id="pair-with-dict"),
    pytest.param((X, Y, torch.arange(100, 108)), id="index-third"),
    pytest.param((X, torch.arange(8), Y), id="index-second"),
    pytest.param((X, X + 1, Y), id="two-views"),
    pytest.param(({"a": X, "b": X}, Y), id="nested-input"),
    pytest.param((X, Y, ["a.png"] * 8), id="file-names"),
]


@pytest.mark.parametrize("batch", FOUND)
def test_labels_are_found(batch: Any) -> None:
    found = read_batch(batch, None)
    assert found.labels.flatten().tolist() == Y.tolist()
    assert found.inputs is not None
    assert found.inputs.shape == X.shape


REFUSED = [
    pytest.param((X, torch.rand(8)), "the second element of a batch holds no class numbers",
                 id="regression"),
    pytest.param((X, torch.rand(8, 2), torch.arange(8)),
                 "the second element of a batch holds no class numbers", id="regression-index"),
    pytest.param((X, torch.rand(8), Y),
                 "more than one element of a batch could be the labels; name one by `labels`",
                 id="regression-group"),
    pytest.param((X, torch.tensor([3, 9, 4, 4, 8, 3, 5, 6]), Y),
                 "more than one element of a batch could be the labels; name one by `labels`",
                 id="lengths"),
    pytest.param(X, "a batch holds no labels", id="input-only"),
    pytest.param((X,), "a batch holds no labels", id="tuple-of-one"),
    pytest.param({"image": X, "group": Y},
                 "a batch has no field with a usual name for labels; name one by `labels`",
                 id="dict-group"),
    pytest.param({"image": X, "index": Y},
                 "a batch has no field with a usual name for labels; name one by `labels`",
                 id="dict-index"),
    pytest.param({"image": X, "target": torch.rand(8)},
                 "'target' of a batch holds no class numbers", id="dict-regression"),
    pytest.param((X, torch.randint(2, (8, 5), generator=torch.Generator().manual_seed(0))),
                 "the second element of a batch holds no class numbers", id="multi-label"),
]  # fmt: skip


@pytest.mark.parametrize(("batch", "sentence"), REFUSED)
def test_what_is_no_label_is_refused(batch: Any, sentence: str) -> None:
    with pytest.raises(NoLabelsError, match=f"^{re.escape(sentence)}$"):
        read_batch(batch, None)


def first_column(batch: Any) -> Tensor:
    column: Tensor = batch[1][:, 0]
    return column


NAMED = [
    pytest.param((X, torch.rand(8), Y), 2, id="place"),
    pytest.param((X, Y.float()), 1, id="whole-floats"),
    pytest.param({"x": X, "speaker": Y}, "speaker", id="field"),
    pytest.param((X, torch.stack([Y, Y], 1)), first_column, id="callable"),
    pytest.param((X, Y, torch.zeros(8)), -2, id="negative-place"),
]


@pytest.mark.parametrize(("batch", "where"), NAMED)
def test_labels_that_are_named_are_taken(batch: Any, where: Any) -> None:
    assert read_batch(batch, where).labels.tolist() == Y.tolist()


MISNAMED = [
    pytest.param((X, Y), 5, "the batch has no element 5, which `labels` names", id="place"),
    pytest.param({"x": X, "y": Y}, "z",
                 "the batch has no field 'z', which `labels` names; fields: 'x', 'y'", id="field"),
    pytest.param((X, Y), "y", "the batch has no field 'y', which `labels` names; fields: none",
                 id="field-of-tuple"),
    pytest.param((X, ["a"]), 1, "`labels` gives a list, not a tensor", id="list"),
    pytest.param((X, torch.rand(8)), 1, "the named labels are not whole numbers", id="floats"),
]  # fmt: skip


@pytest.mark.parametrize(("batch", "where", "sentence"), MISNAMED)
def test_a_wrong_name_gets_one_sentence(batch: Any, where: Any, sentence: str) -> None:
    with pytest.raises(NoLabelsError, match=f"^{re.escape(sentence)}$"):
        read_batch(batch, where)


def test_missing_values_of_named_floats_have_no_class() -> None:
    batch = (X, torch.tensor([1.0, float("nan"), 0.0, 2.0, 1.0, 1.0, 1.0, float("inf")]))
    assert read_batch(batch, 1).labels.tolist() == [1, -1, 0, 2, 1, 1, 1, -1]


def test_a_second_label_is_picked_by_name() -> None:
    assert pick((X, Y, Y + 1), 2, "nuisance").tolist() == (Y + 1).tolist()


def test_a_mask_at_the_second_place_is_no_target() -> None:
    mask = torch.rand(8, 6) > 0.5
    assert read_batch((torch.randn(8, 6, 4), mask, Y), None).labels.tolist() == Y.tolist()


def test_labels_stay_where_they_were_found_first() -> None:
    first = read_batch((X, Y, torch.arange(8)), None)
    later = (X, torch.arange(8), torch.arange(8))
    assert read_batch(later, None, first.path).labels.tolist() == list(range(8))


def test_labels_of_positions_are_found() -> None:
    tokens = torch.randint(2, 50, (8, 6))
    found = read_batch((torch.randint(50, (8, 6)), tokens), None)
    assert torch.equal(found.labels, tokens)
