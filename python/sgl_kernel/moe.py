"""Operators of mixture-of-experts models."""
from __future__ import annotations

from typing import Optional

from sgl_kernel._ops import operator, provided_by, torch

_moe_sum_reduce = operator("moe_sum_reduce")
_moe_sum = operator("moe_sum")
_apply_shuffle_mul_sum = operator("apply_shuffle_mul_sum")
_fused_qk_norm_rope = operator("fused_qk_norm_rope")
_fp8_blockwise_scaled_grouped_mm = operator("fp8_blockwise_scaled_grouped_mm")


@provided_by("moe")
def moe_sum_reduce(input_tensor, output_tensor, routed_scaling_factor=0):
    """output = routed_scaling_factor * sum of input over its second dimension. The default of 0 really multiplies by 0."""
    _moe_sum_reduce(input_tensor, output_tensor, routed_scaling_factor)


@provided_by("moe")
def moe_sum(input_tensor: torch.Tensor, output_tensor: torch.Tensor):
    """output = sum of input over its second dimension"""
    _moe_sum(input_tensor, output_tensor)


@provided_by("moe")
def apply_shuffle_mul_sum(input, output, permutation, factors):
    """output[i] = sum over j of factors[i, j] * input[permutation[i, j]]; factors may be None."""
    _apply_shuffle_mul_sum(input, output, permutation, factors)


@provided_by("rope")
def fused_qk_norm_rope(
    qkv: torch.Tensor, num_heads_q: int, num_heads_k: int, num_heads_v: int, head_dim: int, eps: float, q_weight: torch.Tensor,
    k_weight: torch.Tensor, base: float, is_neox: bool, position_ids: torch.Tensor, factor: float, low: float, high: float,
    attention_factor: float, rotary_dim: Optional[int] = None,
) -> None:
    """Normalises and rotates the heads of q and k in place; rotary_dim is head_dim unless given."""
    _fused_qk_norm_rope(qkv, num_heads_q, num_heads_k, num_heads_v, head_dim, eps, q_weight, k_weight, base, is_neox, position_ids, factor, low,
                        high, attention_factor, head_dim if rotary_dim is None else rotary_dim)


@provided_by("grouped")
def fp8_blockwise_scaled_grouped_mm(
    output, a_ptrs, b_ptrs, out_ptrs, a_scales_ptrs, b_scales_ptrs, a, b, scales_a, scales_b, stride_a, stride_b, stride_c, layout_sfa, layout_sfb,
    problem_sizes, expert_offsets, workspace,
):
    """output[rows of expert e] = a[rows of e] @ b[e]. Pointers, layouts and workspace of the release are neither read nor written."""
    _fp8_blockwise_scaled_grouped_mm(
        output, a_ptrs, b_ptrs, out_ptrs, a_scales_ptrs, b_scales_ptrs, a, b, scales_a, scales_b, stride_a, stride_b, stride_c, layout_sfa, layout_sfb,
        problem_sizes, expert_offsets, workspace)
