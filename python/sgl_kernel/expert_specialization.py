"""Grouped products of 8-bit floats: each expert has rows from an offset on, and a matrix."""
from __future__ import annotations

from sgl_kernel._ops import operator, provided_by, torch  # noqa: F401

_es_fp8_blockwise_scaled_grouped_mm = operator("es_fp8_blockwise_scaled_grouped_mm")
_es_sm100_mxfp8_blockscaled_grouped_mm = operator("es_sm100_mxfp8_blockscaled_grouped_mm")
_es_sm100_mxfp8_blockscaled_grouped_quant = operator("es_sm100_mxfp8_blockscaled_grouped_quant")


@provided_by("grouped")
def es_fp8_blockwise_scaled_grouped_mm(
    output, a, b, scales_a, scales_b, stride_a, stride_b, stride_d, problem_sizes, expert_offsets, workspace,
):
    """output[rows of expert e] = a[rows of e] @ b[e]. Strides are read from the tensors, and no workspace is needed."""
    _es_fp8_blockwise_scaled_grouped_mm(
        output, a, b, scales_a, scales_b, stride_a, stride_b, stride_d, problem_sizes, expert_offsets, workspace)


@provided_by("grouped")
def es_sm100_mxfp8_blockscaled_grouped_mm(output, a, b, sfa, sfb, problem_sizes, expert_offsets, blockscale_offsets):
    """The same with a power of two for each 32 elements of K of both operands; on any device."""
    _es_sm100_mxfp8_blockscaled_grouped_mm(a, b, sfa, sfb, output, problem_sizes, expert_offsets, blockscale_offsets)


@provided_by("grouped")
def es_sm100_mxfp8_blockscaled_grouped_quant(input, problem_sizes, expert_offsets, blockscale_offsets, quant_output, scale_factor):
    """Rows to codes and the scales that es_sm100_mxfp8_blockscaled_grouped_mm takes."""
    _es_sm100_mxfp8_blockscaled_grouped_quant(input, problem_sizes, expert_offsets, blockscale_offsets, quant_output, scale_factor)
