"""Matrix products, and what prepares the rows that go into them."""
from __future__ import annotations

from typing import Optional

from sgl_kernel._ops import operator, provided_by, register_fake, torch
from sgl_kernel.utils import _get_cache_buf

_linear = operator("linear")
_fp8_scaled_mm = operator("fp8_scaled_mm")
_int8_scaled_mm = operator("int8_scaled_mm")
_bmm_fp8 = operator("bmm_fp8")
_linear_batched = operator("linear_batched")
_dsv3_router_gemm = operator("dsv3_router_gemm")
_dsv3_fused_a_gemm = operator("dsv3_fused_a_gemm")
_shuffle_rows = operator("shuffle_rows")
_fp8_blockwise_scaled_mm = operator("fp8_blockwise_scaled_mm")
_cublas_grouped_gemm = operator("cublas_grouped_gemm")
_per_token_quant_fp8 = operator("sgl_per_token_quant_fp8")
_per_tensor_quant_fp8 = operator("sgl_per_tensor_quant_fp8")
_per_token_group_quant_8bit = operator("sgl_per_token_group_quant_8bit")
_per_token_group_quant_8bit_v2 = operator("sgl_per_token_group_quant_8bit_v2")


@provided_by("gemm")
def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor] = None, out: Optional[torch.Tensor] = None,
    out_dtype: Optional[torch.dtype] = None,
) -> torch.Tensor:
    """out = input @ weight.T + bias, sums in float32; with a weight [B, N, K] one product for each of B. out_dtype, without out: that of
    input, or float32. Not part of the released package."""
    if out is None:
        out = torch.empty(input.shape[:-1] + (weight.shape[-2],), dtype=out_dtype or input.dtype, device=input.device)
    (_linear_batched if weight.dim() == 3 else _linear)(out, input, weight, bias)
    return out


@provided_by("grouped")
def fp8_blockwise_scaled_mm(mat_a, mat_b, scales_a, scales_b, out_dtype):
    """mat_a @ mat_b, with a scale for 1 x 128 elements of mat_a and for 128 x 128 of mat_b."""
    return _fp8_blockwise_scaled_mm(mat_a, mat_b, scales_a, scales_b, out_dtype)


@register_fake("fp8_blockwise_scaled_mm")
def _(mat_a, mat_b, scales_a, scales_b, out_dtype):
    return mat_a.new_empty(mat_a.shape[0], mat_b.shape[1], dtype=out_dtype)


@provided_by("grouped")
def cublas_grouped_gemm(inputs, weights, outputs, out_dtype) -> None:
    """outputs[i] = inputs[i] @ weights[i].T for every i."""
    assert all(t.dtype == out_dtype for t in (*inputs, *weights, *outputs)), "cublas_grouped_gemm: all tensors have the dtype of out_dtype"
    _cublas_grouped_gemm(inputs, weights, outputs, out_dtype, 0, 0)


@provided_by("gemm")
def fp8_scaled_mm(mat_a, mat_b, scales_a, scales_b, out_dtype, bias=None):
    """(mat_a scales_a) @ (mat_b scales_b) + bias: e4m3, mat_b column-major; a scale for each row and column, or one for all. float32 is an out_dtype as well."""
    return _fp8_scaled_mm(mat_a, mat_b, scales_a, scales_b, out_dtype, bias)


@provided_by("gemm")
def int8_scaled_mm(mat_a, mat_b, scales_a, scales_b, out_dtype, bias=None):
    """fp8_scaled_mm of int8 numbers, whose sums are exact."""
    return _int8_scaled_mm(mat_a, mat_b, scales_a, scales_b, out_dtype, bias)


@register_fake("fp8_scaled_mm")
@register_fake("int8_scaled_mm")
def _scaled_mm_fake(mat_a, mat_b, scales_a, scales_b, out_dtype, bias):
    return mat_a.new_empty(mat_a.shape[0], mat_b.shape[1], dtype=out_dtype)


@provided_by("gemm")
def bmm_fp8(
    A: torch.Tensor, B: torch.Tensor, A_scale: torch.Tensor, B_scale: torch.Tensor, dtype: torch.dtype, out: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """A @ B of each of a batch, times both scales: e4m3 or e5m2, B column-major."""
    if out is None:
        out = torch.empty((A.shape[0], A.shape[1], B.shape[2]), device=A.device, dtype=dtype)
    _bmm_fp8(A, B, out, A_scale, B_scale, _get_cache_buf("bmm_fp8_workspace", 0, A.device), 0)        # neither a workspace nor a handle is needed
    return out


@provided_by("gemm")
def dsv3_fused_a_gemm(
    mat_a: torch.Tensor,
    mat_b: torch.Tensor,
    output: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """mat_a @ mat_b; the columns of mat_b are dense, as those of a weight's transpose are."""
    if output is None:
        output = torch.empty((mat_a.shape[0], mat_b.shape[1]), device=mat_a.device, dtype=mat_a.dtype)
    _dsv3_fused_a_gemm(output, mat_a, mat_b)
    return output


@provided_by("gemm")
def dsv3_router_gemm(
    hidden_states: torch.Tensor,
    router_weights: torch.Tensor,
    out_dtype: torch.dtype = torch and torch.bfloat16,
) -> torch.Tensor:
    """hidden_states @ router_weights.T"""
    output = torch.empty(hidden_states.shape[0], router_weights.shape[0], device=hidden_states.device, dtype=out_dtype)
    _dsv3_router_gemm(output, hidden_states, router_weights)
    return output


@provided_by("moe")
def shuffle_rows(input_tensor, dst2src_map, output_tensor_shape):
    """A new tensor of that shape: row i is row dst2src_map[i] of input_tensor."""
    output = torch.empty(output_tensor_shape, dtype=input_tensor.dtype, device=input_tensor.device)
    _shuffle_rows(input_tensor, dst2src_map, output)
    return output


@provided_by("quant")
def sgl_per_token_group_quant_8bit(
    input: torch.Tensor,
    output_q: torch.Tensor,
    output_s: torch.Tensor,
    group_size: int,
    eps: float,
    fp8_min: float,
    fp8_max: float,
    scale_ue8m0: bool = False,
    fuse_silu_and_mul: bool = False,
    masked_m: Optional[torch.Tensor] = None,
    enable_v2: Optional[bool] = None,
) -> None:
    """A scale for each group_size neighbours of a row. The layout of the scales is that of output_s. Without enable_v2 the group size decides."""
    if enable_v2 is None:
        enable_v2 = group_size in (16, 32, 64, 128)
    if enable_v2:
        return _per_token_group_quant_8bit_v2(
            input, output_q, output_s, group_size, eps, fp8_min, fp8_max, scale_ue8m0, fuse_silu_and_mul, masked_m)
    assert not fuse_silu_and_mul, "only v2 support fuse_silu_and_mul"
    assert masked_m is None, "only v2 support masked_m"
    _per_token_group_quant_8bit(input, output_q, output_s, group_size, eps, fp8_min, fp8_max, scale_ue8m0)


sgl_per_token_group_quant_fp8 = sgl_per_token_group_quant_8bit
sgl_per_token_group_quant_int8 = sgl_per_token_group_quant_8bit


@provided_by("quant")
def sgl_per_tensor_quant_fp8(
    input: torch.Tensor,
    output_q: torch.Tensor,
    output_s: torch.Tensor,
    is_static: bool,
) -> None:
    """Unless is_static, output_s is first raised to the tensor's scale: zero it before."""
    _per_tensor_quant_fp8(input, output_q, output_s, is_static)


@provided_by("quant")
def sgl_per_token_quant_fp8(
    input: torch.Tensor,
    output_q: torch.Tensor,
    output_s: torch.Tensor,
) -> None:
    _per_token_quant_fp8(input, output_q, output_s)


@register_fake("per_token_quant_int8_cpu")
def _(A):
    return torch.empty_like(A, dtype=torch.uint8, memory_format=torch.contiguous_format), A.new_empty(A.shape[0], dtype=torch.float32)


@register_fake("conv3d_embed_cpu")
def _(input, weight, bias, is_vnni):
    return input.new_empty(input.shape[0], weight.shape[0])


@register_fake("conv3d_embed_weight_pack")
def _(weight):
    return weight.new_empty(weight.shape)


@register_fake("convert_weight_packed")
def _(weight):
    if weight.ndim == 2 and weight.shape[0] < 16:
        return weight.new_empty(weight.shape[1], weight.shape[0], dtype=torch.float32)
    return weight.new_empty(*weight.shape[:-1], weight.shape[-1] + (4 if weight.dtype == torch.int8 else 0))


@register_fake("convert_scale_packed")
def _(scale):
    return scale.new_empty(scale.shape)


@register_fake("convert_weight_packed_scale_zp")
def _(weight, qzeros, scales, quant_method_4bit):
    depth = weight.shape[-2] * (8 if quant_method_4bit == 1 else 1)
    groups, blocks, leading = scales.shape[-2], scales.shape[-1] // 32, weight.shape[:-2]
    part = min(depth // groups, 128)
    return (weight.new_empty(*leading, blocks, depth // part, 16 * part + 128, dtype=torch.uint8),
            weight.new_empty(*leading, blocks, groups, 32, dtype=torch.int8),
            weight.new_empty(*leading, blocks, groups, 32, dtype=torch.float32))


@register_fake("weight_packed_linear")
def _(mat1, mat2, bias, is_vnni):
    small = is_vnni and mat2.dtype == torch.float32 and mat2.shape[1] < 16 and mat2.shape[0] == mat1.shape[-1]
    return mat1.new_empty(*mat1.shape[:-1], mat2.shape[1 if small else 0])


@register_fake("fused_linear_sigmoid_mul")
def _(mat1, mat2, bias, is_vnni, post_mul_mat):
    return post_mul_mat.new_empty(post_mul_mat.shape)


@register_fake("int8_scaled_mm_cpu")
def _(mat1, mat2, scales1, scales2, bias, out_dtype, is_vnni):
    return mat1.new_empty(mat1.shape[0], mat2.shape[0], dtype=out_dtype)


@register_fake("int8_scaled_mm_with_quant")
def _(mat1, mat2, scales2, bias, out_dtype, is_vnni):
    return mat1.new_empty(mat1.shape[0], mat2.shape[0], dtype=out_dtype)


@register_fake("fp8_scaled_mm_cpu")
def _(mat1, mat2, scales2, block_size, bias, out_dtype, is_vnni):
    return mat1.new_empty(mat1.shape[0], mat2.shape[0], dtype=out_dtype)


@register_fake("mxfp4_scaled_mm_cpu")
def _(mat1, mat2, scales2, bias, is_vnni):
    return mat1.new_empty(mat1.shape[0], mat2.shape[0])


@register_fake("int4_scaled_mm_cpu")
def _(x, w, w_zeros, w_scales, bias):
    return x.new_empty(x.shape[0], w.shape[0] * 32)


def _queries_and_keys(hidden_states, w_kc, cos_sin_cache):
    heads, rank, _ = w_kc.shape
    q = hidden_states.new_empty(hidden_states.shape[0], heads, rank + cos_sin_cache.shape[1])
    k = hidden_states.new_empty(hidden_states.shape[0], 1, rank + cos_sin_cache.shape[1])
    return q, k, k.new_empty(k.shape[:-1] + (rank,))


@register_fake("qkv_proj_with_rope")
def _(hidden_states, q_a_proj_weight, q_b_proj_weight, kv_a_proj_weight, w_kc, q_a_layernorm_weight, kv_a_layernorm_weight, positions, cos_sin_cache, eps,
      use_int8_w8a8, use_fp8_w8a16, q_a_proj_scale, q_b_proj_scale, kv_a_proj_scale, w_scale, is_vnni, block_size):
    return _queries_and_keys(hidden_states, w_kc, cos_sin_cache)


@register_fake("qkv_proj_with_rope_fused_weight")
def _(hidden_states, qkv_a_proj_weight, q_b_proj_weight, w_kc, q_a_layernorm_weight, kv_a_layernorm_weight, positions, cos_sin_cache, eps, use_int8_w8a8,
      use_fp8_w8a16, qkv_a_proj_scale, q_b_proj_scale, w_scale, is_vnni, block_size, q_lora_rank, kv_lora_rank, qk_rope_head_dim):
    return _queries_and_keys(hidden_states, w_kc, cos_sin_cache)
