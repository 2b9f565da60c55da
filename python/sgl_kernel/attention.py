"""Operators beside attention itself."""
from __future__ import annotations

from typing import Optional, Tuple

from sgl_kernel._ops import operator, provided_by, torch

_lightning_attention_decode = operator("lightning_attention_decode")
_merge_state = operator("merge_state")
_merge_state_v2 = operator("merge_state_v2")


def _merge(op, v_a, s_a, v_b, s_b, v_merged, s_merged):
    s_a, s_b = s_a.to(torch.float32), s_b.to(torch.float32)
    if v_merged is None:
        v_merged = torch.empty_like(v_a)
    if s_merged is None:
        s_merged = torch.empty_like(s_a)
    op(v_a, s_a, v_b, s_b, v_merged, s_merged)
    return v_merged, s_merged


@provided_by("attention")
def merge_state(
    v_a: torch.Tensor, s_a: torch.Tensor, v_b: torch.Tensor, s_b: torch.Tensor, v_merged: Optional[torch.Tensor] = None,
    s_merged: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Merges attention over two sets of keys, given the binary logarithms s_a and s_b of their sums."""
    return _merge(_merge_state, v_a, s_a, v_b, s_b, v_merged, s_merged)


@provided_by("attention")
def merge_state_v2(
    v_a: torch.Tensor, s_a: torch.Tensor, v_b: torch.Tensor, s_b: torch.Tensor, v_merged: Optional[torch.Tensor] = None,
    s_merged: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Merges attention over two sets of keys, given the natural logarithms s_a and s_b of their sums."""
    return _merge(_merge_state_v2, v_a, s_a, v_b, s_b, v_merged, s_merged)


@provided_by("attention")
def lightning_attention_decode(q, k, v, past_kv, slope, output, new_kv):
    """new_kv = e^-slope past_kv + k v', output = q new_kv: one step of lightning attention, for each sequence and head."""
    _lightning_attention_decode(q, k, v, past_kv, slope, output, new_kv)
