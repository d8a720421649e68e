"""What is asked for instead of guessed, how labels of positions are told, which is the input."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lightning_depth.callbacks._probe.batches import NoLabelsError, as_classes, pick, read_batch

X = torch.randn(8, 3, 4, 4)
V = torch.randn(8, 10)
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
GROUP = torch.tensor([5, 5, 3, 3, 1, 1, 4, 4])
IDS = torch.randint(2, 50, (8, 12))
PADDING = (torch.arange(12) < torch.arange(4, 12)[:, None]).long()
BOXES = torch.tensor([[4, 8, 15, 16]] * 8)
WEIGHT = torch.rand(8)
TAGS = torch.tensor([[0, 1, 1, 0, 1]] * 8)
STRIPES = (torch.arange(12) % 2).expand(8, 12)
PICTURES = torch.randint(256, (8, 3, 4, 4))
ONE_TAG = torch.tensor([[0, 0, 1, 0, 0]] * 8)
TOKENS = torch.randn(8, 5, 6)
MASKS = torch.arange(8 * 4 * 4).reshape(8, 4, 4) % 3

SEVERAL = "more than one element of a batch could be the labels; name one by `labels`"
UNSURE = "no element of a batch is surely the labels; name one by `labels`"
ONE_HOT = (
    "the labels could be one-hot rows or one a position; a callable as `labels` can return "
    "class numbers (`argmax(1)`) or labels of positions"
)
NO_GRID = (
    "the labels are several numbers a sample and the input has no such positions; "
    "a callable as `labels` can return class numbers or labels of positions"
)
UNREADABLE = (
    "`labels` gives a tensor that cannot be read: sparse, nested, complex, quantized, "
    "without values or of 8-bit floats"
)

ASKED = [
    pytest.param((V, (Y, GROUP)), SEVERAL, id="pair-of-labels"),
    pytest.param((V, GROUP, torch.rand(8)), SEVERAL, id="group-float-target"),
    pytest.param((V, Y, WEIGHT), SEVERAL, id="label-weight"),
    pytest.param((V, torch.randn(8, 4), Y), SEVERAL, id="float-features"),
    pytest.param((X, (torch.rand(8, 5) < 0.5).long(), Y), SEVERAL, id="multi-label-group"),
    pytest.param((IDS, IDS[:, :7], Y), SEVERAL, id="translation-language"),
    pytest.param((V, Y, torch.randperm(8, generator=torch.Generator().manual_seed(1))), SEVERAL,
                 id="shuffled-indices"),
    pytest.param((V[:3], Y[1:4], torch.arange(3)), SEVERAL, id="indices-of-few"),
    pytest.param((IDS, STRIPES, Y), SEVERAL, id="binary-tags-language"),
    pytest.param([[V, Y], {"label": Y}], SEVERAL, id="two-kinds-of-loaders"),
    pytest.param([X, [X + 1, Y]], SEVERAL, id="unlabelled-and-labelled-pictures"),
    pytest.param((torch.randn(8, 12, 4), BOXES), UNSURE, id="boxes-as-long-as-features"),
    pytest.param((PICTURES, PICTURES // 2), UNSURE, id="picture-to-picture"),
    pytest.param((IDS[:5], IDS % 3), UNSURE, id="tokens-of-other-samples"),
    pytest.param([[V, Y], [V + 1, Y]], SEVERAL, id="two-loaders"),
    pytest.param([[X, Y], [X + 1, Y]], SEVERAL, id="two-loaders-of-pictures"),
    pytest.param([{"image": X, "label": Y}, {"image": X, "label": Y}], SEVERAL,
                 id="two-loaders-of-dicts"),
    pytest.param([V, [V + 1, Y]], SEVERAL, id="unlabelled-and-labelled"),
    pytest.param([X, {"image": X, "label": Y}], SEVERAL, id="unlabelled-and-dict"),
    pytest.param((V, BOXES), UNSURE, id="boxes"),
    pytest.param((V, BOXES[:, :1, None]), UNSURE, id="no-positions"),
    pytest.param((IDS, IDS[:, :7]), UNSURE, id="translation"),
    pytest.param((IDS, PADDING[:, :7], IDS[:, :7]), UNSURE, id="translation-mask"),
    pytest.param((TOKENS, TAGS), UNSURE, id="binary-tags"),
    pytest.param((TOKENS, ONE_TAG), UNSURE, id="one-binary-tag"),
    pytest.param((V[:, :5], TAGS + 1), UNSURE, id="features-are-no-positions"),
    pytest.param((V, Y.float()), UNSURE, id="whole-floats"),
    pytest.param((IDS, PADDING), UNSURE, id="only-a-mask"),
    pytest.param((V, Y.to_sparse()), UNSURE, id="sparse-labels"),
    pytest.param((V, [{"boxes": torch.rand(2, 4), "labels": Y[:2]}] * 8), UNSURE,
                 id="detection"),
    pytest.param({"a": [V, Y], "b": [V, Y]},
                 "a batch has no field with a usual name for labels; name one by `labels`",
                 id="two-named-loaders"),
    pytest.param({"x": V, "label": Y, "target": GROUP},
                 "more than one field of a batch could be the labels ('label', 'target'); "
                 "name one by `labels`", id="two-fields"),
    pytest.param({"x": V, "label": Y.to_sparse()}, "'label' of a batch holds no class numbers",
                 id="sparse-field"),
    pytest.param({"x": V, "label": Y[0]}, "'label' of a batch holds no class numbers",
                 id="field-of-one-number"),
    pytest.param({"image": X, "labels": TAGS}, NO_GRID, id="multi-label-field"),
    pytest.param({"input_ids": IDS, "decoder_input_ids": IDS[:, :7], "labels": IDS[:, :7]},
                 NO_GRID, id="translation-fields"),
]  # fmt: skip


@pytest.mark.parametrize(("batch", "sentence"), ASKED)
def test_what_could_be_something_else_is_asked_for(batch: Any, sentence: str) -> None:
    with pytest.raises(NoLabelsError, match=f"^{re.escape(sentence)}$"):
        read_batch(batch, None)


FOUND = [
    pytest.param((IDS, PADDING, Y), id="padding"),
    pytest.param((IDS, PADDING.bool(), Y), id="boolean-padding"),
    pytest.param((IDS, PADDING.flip(1), Y), id="left-padding"),
    pytest.param((V, [Y]), id="list-of-one"),
    pytest.param((IDS, (PADDING, Y)), id="padding-beside"),
    pytest.param((V, (Y, ["a.png"] * 8)), id="file-names"),
    pytest.param((V.to_sparse(), Y), id="sparse-input"),
    pytest.param((V, one_hot(Y).bool()), id="boolean-one-hot"),
    pytest.param((V, one_hot(Y).to(torch.uint16)), id="uint16-one-hot"),
]


@pytest.mark.parametrize("batch", FOUND)
def test_labels_beside_masks_and_lists_are_found(batch: Any) -> None:
    assert read_batch(batch, None).labels.tolist() == Y.tolist()


# One a position


POSITIONS = [
    pytest.param((IDS, IDS % 3), None, IDS % 3, id="tokens"),
    pytest.param((IDS, PADDING, IDS % 3), None, IDS % 3, id="tokens-mask"),
    pytest.param((TOKENS, TAGS + 1), None, TAGS + 1, id="features-last"),
    pytest.param((X, MASKS), None, MASKS, id="pixels"),
    pytest.param((X, MASKS[:, None]), None, MASKS, id="pixels-with-channel"),
    pytest.param((X[:, :1], MASKS[:, None]), None, MASKS, id="grey-pixels-with-channel"),
    pytest.param((X[:, 0], MASKS[:, None]), None, MASKS, id="pixels-without-input-channel"),
    pytest.param({"x": X, "labels": MASKS[:, None]}, "labels", MASKS, id="named-with-channel"),
    pytest.param({"x": TOKENS, "tags": TAGS}, "tags", TAGS, id="binary"),
    pytest.param({"input_ids": TAGS + 7, "labels": TAGS}, None, TAGS, id="binary-usual-name"),
    pytest.param((TOKENS.mT, TAGS), 1, TAGS, id="channels-first"),
    pytest.param((V[:, :5], TAGS), 1, TAGS, id="signal"),
    pytest.param((TOKENS, ONE_TAG), lambda batch: batch[1], ONE_TAG, id="callable"),
    pytest.param((X, TAGS), lambda batch: batch[1], TAGS, id="callable-other-grid"),
]  # fmt: skip


@pytest.mark.parametrize(("batch", "where", "expected"), POSITIONS)
def test_labels_of_positions(batch: Any, where: Any, expected: Tensor) -> None:
    assert torch.equal(read_batch(batch, where).labels, expected)


UNCLEAR = [
    pytest.param({"x": TOKENS, "tags": ONE_TAG}, "tags", ONE_HOT, id="one-hot-or-tags"),
    pytest.param({"x": V[:, :5], "y": ONE_TAG}, None, ONE_HOT, id="one-hot-or-signal"),
    pytest.param((X, TAGS), 1, NO_GRID, id="multi-label"),
    pytest.param((V, BOXES), 1, NO_GRID, id="boxes"),
    pytest.param((IDS, IDS[:, :7]), 1, NO_GRID, id="translation"),
]


@pytest.mark.parametrize(("batch", "where", "sentence"), UNCLEAR)
def test_a_name_does_not_say_what_rows_of_numbers_are(
    batch: Any, where: Any, sentence: str
) -> None:
    with pytest.raises(NoLabelsError, match=f"^{re.escape(sentence)}$"):
        read_batch(batch, where)


def test_tags_stay_tags_where_each_row_happens_to_hold_one() -> None:
    first = read_batch({"x": TOKENS, "tags": TAGS}, "tags")
    later = read_batch({"x": TOKENS, "tags": ONE_TAG}, "tags", first.path)
    assert torch.equal(later.labels, ONE_TAG)


def test_tags_of_one_token_stay_tags() -> None:
    first = read_batch((IDS, IDS % 3), None)
    later = read_batch((IDS[:, :1], IDS[:, :1] % 3), None, first.path)
    assert torch.equal(later.labels, IDS[:, :1] % 3)


CHANGED = [
    pytest.param((V, one_hot(Y, 5)), (V, TAGS), "the labels were one-hot rows in an earlier batch "
                 "and no longer are", id="one-hot"),
    pytest.param((V, Y), (V, one_hot(Y, 5)), "the labels were one a sample in an earlier batch "
                 "and no longer are", id="classes"),
    pytest.param((IDS, IDS % 3), (IDS, IDS[:, :7]), "the labels were one a position in an earlier "
                 "batch and no longer are", id="positions"),
    pytest.param((V, Y), (V,), "a batch has no labels where an earlier one has them", id="shorter"),
    pytest.param((V, Y), {"x": V}, "a batch has no labels where an earlier one has them",
                 id="dict"),
    pytest.param({"y": Y}, {"z": Y}, "a batch has no labels where an earlier one has them",
                 id="field"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "later", "sentence"), CHANGED)
def test_batches_that_change_are_said(first: Any, later: Any, sentence: str) -> None:
    with pytest.raises(NoLabelsError, match=f"^{re.escape(sentence)}$"):
        read_batch(later, None, read_batch(first, None).path)


# What a user may name


def fail(batch: Any) -> Tensor:
    raise KeyError("speaker")


MISNAMED = [
    pytest.param(["y"], "`labels` must be a key, a place or a callable, but is ['y']", id="list"),
    pytest.param(True, "`labels` must be a key, a place or a callable, but is True", id="bool"),
    pytest.param(lambda batch: batch[1][0], "`labels` gives a single number, not one a sample",
                 id="scalar"),
    pytest.param(lambda batch: batch[1].to_sparse(), UNREADABLE, id="sparse"),
    pytest.param(lambda batch: batch[1] * 1j, UNREADABLE, id="complex"),
    pytest.param(lambda batch: batch[1].to("meta"), UNREADABLE, id="without-values"),
    pytest.param(lambda batch: batch[1].to(torch.float8_e4m3fn), UNREADABLE, id="float8"),
    pytest.param(fail, "`labels` cannot read a batch (KeyError: 'speaker')", id="error"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "sentence"), MISNAMED)
def test_what_cannot_be_a_name_gets_one_sentence(where: Any, sentence: str) -> None:
    with pytest.raises(NoLabelsError, match=f"^{re.escape(sentence)}$"):
        read_batch((V, Y), where)


def test_a_list_as_nuisance_gets_one_sentence() -> None:
    where: Any = [1]
    sentence = "`nuisance` must be a key, a place or a callable, but is [1]"
    with pytest.raises(NoLabelsError, match=f"^{re.escape(sentence)}$"):
        pick((V, Y), where, "nuisance")


def test_class_numbers_of_boolean_rows() -> None:
    assert as_classes(one_hot(Y).bool()).tolist() == Y.tolist()


EMPTY = [
    pytest.param((V[:0], Y[:0]), None, id="pair"),
    pytest.param((V[:0], one_hot(Y)[:0]), 1, id="one-hot"),
    pytest.param({"x": TOKENS[:0], "tags": TAGS[:0]}, "tags", id="tags"),
    pytest.param((V, Y[:0]), None, id="only-labels"),
]


@pytest.mark.parametrize(("batch", "where"), EMPTY)
def test_an_empty_batch_has_no_labels_and_decides_nothing(batch: Any, where: Any) -> None:
    found = read_batch(batch, where)
    assert found.labels.shape == (0,)
    assert found.labels.dtype == torch.long
    assert found.path == ()


class Knot:
    """An object that refers to itself, as graphs and enumerations do."""

    def __init__(self) -> None:
        self.me, self.kind, self.module = self, type(self), torch
        self.x, self.y = V, Y


def test_objects_that_refer_to_themselves_are_read() -> None:
    found = read_batch(Knot(), None)
    assert found.labels is Y
    assert found.inputs is V


# The input


INPUTS = [
    pytest.param({"weight": WEIGHT, "image": X, "label": Y}, None, X, id="weight-first"),
    pytest.param({"bbox": torch.rand(8, 4), "image": V, "label": Y}, None, V, id="box-first"),
    pytest.param({"bbox": torch.rand(8, 40), "image": V, "label": Y}, None, V, id="large-box"),
    pytest.param({"box": torch.rand(8, 4), "scan": V, "label": Y}, None, V, id="largest"),
    pytest.param({"box": torch.rand(8, 4), "scan": X, "label": Y}, None, X, id="most-dimensions"),
    pytest.param({"input_ids": IDS, "weight": WEIGHT, "labels": Y}, None, IDS, id="tokens-weight"),
    pytest.param({"position": V, "x": WEIGHT, "label": Y}, None, V, id="named-x-of-one-number"),
    pytest.param((IDS, WEIGHT, Y), 2, IDS, id="tuple-tokens-weight"),
    pytest.param((WEIGHT[:, None], V, Y), 2, V, id="tuple-weight-first"),
    pytest.param((torch.rand(8, 4), X, Y), 2, X, id="tuple-box-first"),
    pytest.param((V, torch.rand(8, 40), Y), 2, V, id="tuple-first"),
    pytest.param((WEIGHT, Y), None, WEIGHT[:, None], id="one-number"),
    pytest.param({"x": WEIGHT, "y": Y}, None, WEIGHT[:, None], id="one-named-number"),
    pytest.param(({"bbox": torch.rand(8, 40), "image": V}, Y), None, V, id="nested"),
    pytest.param((V, {"label": Y, "box": torch.rand(8, 40)}), None, V, id="aside"),
    pytest.param((V, one_hot(Y, 40).float()), lambda b: b[1].argmax(1), V, id="callable"),
    pytest.param(
        {"scan": V, "code": one_hot(Y, 40).float()},
        lambda b: b["code"].argmax(1),
        V,
        id="callable-of-field",
    ),
    pytest.param(
        {"group": GROUP, "scan": V, "target": torch.rand(8, 40)},
        "group",
        V,
        id="target-is-no-input",
    ),
    pytest.param((V, {"box": torch.rand(8, 40)}, Y), 2, V, id="first-of-two-kinds"),
    pytest.param([X, [WEIGHT, Y]], lambda b: b[1][1], X, id="weight-beside-labels"),
    pytest.param([[V, Y], [V + 1, Y + 0]], lambda b: b[0][1], V, id="first-loader"),
    pytest.param([[V + 1, Y + 0], [V, Y]], lambda b: b[1][1], V, id="second-loader"),
    pytest.param(
        {"a": {"z": V, "x": X}, "b": {"x": V, "y": Y}},
        lambda b: b["b"]["y"],
        V,
        id="loader-of-fields",
    ),
    pytest.param({"mask": V > 0, "scan": V, "label": Y}, None, V, id="boolean-mask"),
    pytest.param({"group": GROUP, "label": Y}, None, None, id="no-input"),
    pytest.param((V.to_sparse(), Y), None, None, id="sparse"),
    pytest.param((V.to_sparse(), WEIGHT, Y), 2, None, id="sparse-weight"),
    pytest.param({"x": V.to_sparse(), "box": V, "y": Y}, None, None, id="sparse-box"),
    pytest.param((torch.complex(V, V), Y), None, None, id="complex"),
    pytest.param([[V, Y], [V + 1, Y]], lambda b: b[0][1] + 1, None, id="loader-not-told"),
    pytest.param((X, (torch.rand(8, 4), Y)), lambda b: b[1][1], None, id="input-or-second-target"),
    pytest.param(torch.cat([V, Y[:, None]], 1), lambda b: b[:, -1], None, id="labels-inside"),
]


@pytest.mark.parametrize(("batch", "where", "expected"), INPUTS)
def test_the_input_of_a_batch(batch: Any, where: Any, expected: Tensor | None) -> None:
    inputs = read_batch(batch, where).inputs
    if expected is None:
        assert inputs is None
    else:
        assert inputs is not None
        assert torch.equal(inputs, expected)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_input_is_left_out(layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([V[row, : 5 + row % 3] for row in range(8)], layout=layout)
    found = read_batch((nested, Y), None)
    assert found.labels is Y
    assert found.inputs is None
