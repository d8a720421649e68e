"""Attention on the meta device as the processor runs it: fused where it would be fused.

On the meta device torch picks the unfused form of scaled dot-product attention, which keeps every
attention map for backward. A real run fuses, keeps none of them, and so fits longer sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

__all__ = ["FUSED_ATTENTION", "FusedAttention", "attention_flops"]

FUSED_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""The operation; older releases of torch have no count of its multiply-adds."""


def attention_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any
) -> int:
    """Return the operations of fused attention, two to a multiply-add, from the shapes it is given.

    Args:
        query: Shape ``(B, heads, T, D)``.
        key: Shape ``(B, heads, S, D)``.
        value: Shape ``(B, heads, S, D)``.
        *_: Nothing else of the operation counts.
        **__: Nor does this.

    Returns:
        Those of the products of queries with keys and of weights with values.
    """
    *batch, num_queries, num_features = query
    return 2 * math.prod(batch) * num_queries * key[-2] * (num_features + value[-1])


class FusedAttention(TorchFunctionMode):
    """While active, attention on meta tensors is counted in its fused form where one exists."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Send a call on, fused where the processor would fuse it."""
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            return _attend(*args, **kwargs)
        return func(*args, **kwargs)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    same_heads = query.ndim == 4 and query.shape[:2] == key.shape[:2] == value.shape[:2]
    same_width = query.shape[-1] == key.shape[-1] == value.shape[-1]
    learnt_mask = attn_mask is not None and attn_mask.requires_grad
    if not (same_heads and same_width) or learnt_mask or dropout_p > 0 or not query.is_meta:
        return scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    output: Tensor = FUSED_ATTENTION(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return output
