"""Operators of mixture-of-experts models."""
from __future__ import annotations

from typing import Optional

from sgl_kernel._ops import operator, provided_by, torch

_fused_qk_norm_rope = operator("fused_qk_norm_rope")


@provided_by("rope")
def fused_qk_norm_rope(
    qkv: torch.Tensor, num_heads_q: int, num_heads_k: int, num_heads_v: int, head_dim: int, eps: float, q_weight: torch.Tensor,
    k_weight: torch.Tensor, base: float, is_neox: bool, position_ids: torch.Tensor, factor: float, low: float, high: float,
    attention_factor: float, rotary_dim: Optional[int] = None,
) -> None:
    """Normalises and rotates the heads of q and k in place; rotary_dim is head_dim unless given."""
    _fused_qk_norm_rope(qkv, num_heads_q, num_heads_k, num_heads_v, head_dim, eps, q_weight, k_weight, base, is_neox, position_ids, factor, low,
                        high, attention_factor, head_dim if rotary_dim is None else rotary_dim)
