"""Mixture of experts: rows to their experts and back."""
from __future__ import annotations

from sgl_kernel._ops import operator, provided_by, torch

_moe_sum_reduce = operator("moe_sum_reduce")
_moe_sum = operator("moe_sum")
_apply_shuffle_mul_sum = operator("apply_shuffle_mul_sum")


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
