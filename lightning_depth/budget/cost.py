"""Cost of a network: parameters, multiply-adds and bytes of activations kept for backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from lightning_depth.budget._attention import FUSED_ATTENTION, FusedAttention, attention_flops
from lightning_depth.budget._meta import copy_to_meta
from lightning_depth.errors import ConfigurationError, check_count, invalid

__all__ = ["Cost", "measure_cost"]

_BATCH = 2  # of one, BatchNorm refuses to train on a map of one pixel


@dataclass(frozen=True)
class Cost:
    """What a network costs to hold and to train.

    Args:
        params: Number of parameters, frozen ones too, shared ones once.
        multiply_adds: Multiplications with an addition in one forward pass of one sample.
        activation_bytes: Bytes that one sample keeps from forward for backward, in float32,
            without the parameters, the buffers and the sample itself.

    Example:
        >>> Cost(params=51, multiply_adds=48, activation_bytes=0).params
        51
    """

    params: int
    multiply_adds: int
    activation_bytes: int


def measure_cost(model: nn.Module, input_shape: Sequence[int]) -> Cost:
    """Measure what a network costs per sample, without running it on data or allocating memory.

    A copy on the meta device does one forward pass in training mode and float32 on a batch of two,
    and the result is halved. The model handed in is not touched. Equal to a real run on the
    processor with saved-tensor hooks, except for recurrent layers, which bring a workspace of
    their own there.

    Shape:
        - One input of ``(2, *input_shape)``.

    Args:
        model: The network; its forward takes one tensor of floating-point numbers.
        input_shape: Shape of one sample without the batch, channels first, as in `(3, 224, 224)`.

    Returns:
        Parameters, multiply-adds and activation bytes.

    Raises:
        ConfigurationError: The shape is none, or the network does not run on it.

    Example:
        >>> measure_cost(nn.Linear(16, 3), (16,))
        Cost(params=51, multiply_adds=48, activation_bytes=0)
    """
    shape = _check_shape(input_shape)
    with torch.inference_mode(False):
        twin = copy_to_meta(model).train()
        sample = torch.empty(_BATCH, *shape, device="meta")
    saved = _SavedStorages()
    counter = FlopCounterMode(display=False, custom_mapping={FUSED_ATTENTION: attention_flops})
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng(devices=[]),
            torch.device("meta"),
            saved_tensors_hooks(saved.pack, _unpack),
            FusedAttention(),
            counter,
        ):
            twin(sample)
    except Exception as error:
        raise ConfigurationError(
            f"The network {type(model).__name__} cannot be measured with `input_shape` "
            f"{shape}: {error}"
        ) from error
    own = [*twin.parameters(), *twin.buffers(), sample]
    return Cost(
        params=sum(parameter.numel() for parameter in twin.parameters()),
        multiply_adds=counter.get_total_flops() // 2 // _BATCH,
        activation_bytes=saved.num_bytes(without=own) // _BATCH,
    )


class _SavedStorages:
    """Collects each storage that is kept for backward once, however many tensors look at it."""

    def __init__(self) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage  # kept alive, so that no address comes twice
        return tensor

    def num_bytes(self, without: Sequence[Tensor]) -> int:
        excluded = {tensor.untyped_storage()._cdata for tensor in without}
        return sum(
            storage.nbytes()
            for address, storage in self._storages.items()
            if address not in excluded
        )


def _unpack(tensor: Tensor) -> Tensor:
    return tensor


def _check_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(check_count("input_shape", length) for length in input_shape)
    except (TypeError, ConfigurationError):
        condition = "the lengths of one sample's axes, each at least 1"
        raise invalid("input_shape", condition, input_shape) from None
