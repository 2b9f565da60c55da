"""Norms, activations, rotary embedding, concatenations and small copies."""
from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Optional

from sgl_kernel._ops import operator, provided_by, register_decomposition, register_fake, torch
from sgl_kernel.utils import is_arch_support_pdl

_fused_rmsnorm_quant = operator("fused_rmsnorm_quant")
_fused_add_rmsnorm_quant = operator("fused_add_rmsnorm_quant")
_silu_and_mul = operator("silu_and_mul")
_silu_and_mul_experts = operator("silu_and_mul_experts")
_gelu_and_mul = operator("gelu_and_mul")
_gelu_tanh_and_mul = operator("gelu_tanh_and_mul")
_gelu_quick = operator("gelu_quick")
_timestep_embedding = operator("timestep_embedding_out")
_rotary_embedding = operator("rotary_embedding")
_concat_mla_k = operator("concat_mla_k")
_concat_mla_absorb_q = operator("concat_mla_absorb_q")
_copy_to_gpu_no_ce = operator("copy_to_gpu_no_ce")
_downcast_fp8 = operator("downcast_fp8")
_apply_rope = operator("apply_rope_pos_ids_cos_sin_cache")
_dsv4_q_norm_rope = operator("dsv4_fused_q_norm_rope")
_dsv4_k_norm_rope = operator("dsv4_fused_k_norm_rope_flashmla")
_dsv4_q_indexer = operator("dsv4_fused_q_indexer_rope_hadamard_quant")


_PDL = os.environ.get("TRTLLM_ENABLE_PDL") != "0"


def _pdl(enable_pdl, tensor):
    """Programmatic dependent launch is on by default where the GPU has it; a CPU tensor must not wake the GPU to find out."""
    return _PDL and tensor.is_cuda and is_arch_support_pdl() if enable_pdl is None else enable_pdl


def _norm(name, doc):
    op = operator(name)

    def norm(
        input: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, out: Optional[torch.Tensor] = None,
        enable_pdl: Optional[bool] = None,
    ) -> torch.Tensor:
        if out is None:
            out = torch.empty_like(input)
        op(out, input, weight, eps, _pdl(enable_pdl, input))
        return out

    return _named(norm, name, doc)


def _fused_add_norm(name, doc):
    op = operator(name)

    def fused_add_norm(
        input: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, enable_pdl: Optional[bool] = None,
    ) -> None:
        op(input, residual, weight, eps, _pdl(enable_pdl, input))

    return _named(fused_add_norm, name, doc)


def _named(function, name, doc):
    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return provided_by("norm")(function)


rmsnorm = _norm("rmsnorm", "out[i] = input[i] * weight / sqrt(mean(input[i] ** 2) + eps)")
gemma_rmsnorm = _norm("gemma_rmsnorm", "out[i] = input[i] * (1 + weight) / sqrt(mean(input[i] ** 2) + eps)")
fused_add_rmsnorm = _fused_add_norm(
    "fused_add_rmsnorm", "residual += input; input = rmsnorm(residual), the norm taken before the sum is rounded")
gemma_fused_add_rmsnorm = _fused_add_norm(
    "gemma_fused_add_rmsnorm", "residual += input; input = gemma_rmsnorm(residual), the norm taken before the sum is rounded")


@register_fake("rmsnorm_cpu")
@register_fake("gemma_rmsnorm_cpu")
@register_fake("gemma3_rmsnorm_cpu")
@register_fake("gemma4_rmsnorm_cpu")
@register_fake("l2norm_cpu")
@register_fake("fused_rmsnorm_gated_cpu")
@register_fake("layernorm_cpu")
@register_fake("fused_add_layernorm_cpu")
def _norm_cpu_fake(input, *_):
    return input.new_empty(input.shape)


def _require_pieces(input):
    if input.shape[-1] * input.dtype.itemsize % 16 != 0:
        raise ValueError("The pointers must be multiple of 16 bytes.")


def _gated_output(input, out):
    _require_pieces(input)
    if out is None:
        return input.new_empty(input.shape[:-1] + (input.shape[-1] // 2,))
    assert input.ndim == out.ndim, f"{input.ndim} != {out.ndim}"
    assert input.shape[:-1] == out.shape[:-1], f"{input.shape[:-1]} != {out.shape[:-1]}"
    assert input.shape[-1] == 2 * out.shape[-1], f"{input.shape[-1]} != {2 * out.shape[-1]}"
    return out


@provided_by("quant")
def fused_rmsnorm_quant(
    input: torch.Tensor, output_q: torch.Tensor, output_s: torch.Tensor, weight: torch.Tensor, group_size: int, quant_eps: float,
    fp8_min: float, fp8_max: float, scale_ue8m0: bool, rms_eps: float = 1e-6, enable_pdl: Optional[bool] = None,
) -> None:
    """rmsnorm, then the first version of sgl_per_token_group_quant_8bit, in one pass. The layout of the scales is that of output_s."""
    _fused_rmsnorm_quant(input, output_q, output_s, weight, group_size, rms_eps, quant_eps, fp8_min, fp8_max, scale_ue8m0, _pdl(enable_pdl, input))


@provided_by("quant")
def fused_add_rmsnorm_quant(
    input: torch.Tensor, residual: torch.Tensor, output_q: torch.Tensor, output_s: torch.Tensor, weight: torch.Tensor, group_size: int,
    quant_eps: float, fp8_min: float, fp8_max: float, scale_ue8m0: bool, rms_eps: float = 1e-6, enable_pdl: Optional[bool] = None,
) -> None:
    """residual += input, then fused_rmsnorm_quant of the sum, the norm taken before it is rounded"""
    _fused_add_rmsnorm_quant(
        input, residual, output_q, output_s, weight, group_size, rms_eps, quant_eps, fp8_min, fp8_max, scale_ue8m0, _pdl(enable_pdl, input))


@provided_by("act")
def silu_and_mul(
    input: torch.Tensor, out: torch.Tensor = None, *, expert_ids: Optional[torch.Tensor] = None, expert_step: int = 1,
) -> torch.Tensor:
    """out = silu(first half of input's last dimension) * second half. Row t keeps what it holds where expert_ids[t // expert_step] is -1."""
    out = _gated_output(input, out)
    if expert_ids is None:
        _silu_and_mul(out, input)
    else:
        _silu_and_mul_experts(out, input, expert_ids, expert_step)
    return out


@provided_by("act")
def gelu_tanh_and_mul(input: torch.Tensor, out: torch.Tensor = None) -> torch.Tensor:
    """out = gelu(first half of input's last dimension, by its tanh approximation) * second half"""
    out = _gated_output(input, out)
    _gelu_tanh_and_mul(out, input)
    return out


@provided_by("act")
def gelu_and_mul(input: torch.Tensor, out: torch.Tensor = None) -> torch.Tensor:
    """out = gelu(first half of input's last dimension) * second half"""
    out = _gated_output(input, out)
    _gelu_and_mul(out, input)
    return out


@provided_by("act")
def gelu_quick(input: torch.Tensor, out: torch.Tensor = None) -> torch.Tensor:
    """out = input / (1 + exp(-1.702 * input))"""
    _require_pieces(input)
    if out is None:
        out = torch.empty_like(input)
    assert input.shape == out.shape, f"{input.shape} != {out.shape}"
    _gelu_quick(out, input)
    return out


@provided_by("act")
def timestep_embedding(
    t: torch.Tensor, dim: int, flip_sin_to_cos: bool = False, downscale_freq_shift: float = 0.0, scale: float = 1, max_period: int = 10000,
    dtype: torch.dtype = torch and torch.float32,
):
    """Rows of sines and cosines of t at dim / 2 frequencies from 1 down to 1 / max_period."""
    output = torch.empty((t.shape[0], dim), dtype=dtype, device=t.device)
    _timestep_embedding(output, t, dim, flip_sin_to_cos, downscale_freq_shift, scale, max_period)
    return output


@register_fake("silu_and_mul_cpu")
@register_fake("gelu_and_mul_cpu")
@register_fake("gelu_tanh_and_mul_cpu")
def _gated_cpu_fake(input):
    return input.new_empty(input.shape[:-1] + (input.shape[-1] // 2,))


@provided_by("rope")
def rotary_embedding(
    positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor, head_size: int, cos_sin_cache: torch.Tensor,
    is_neox: bool = True,
):
    """Rotates query and key, which may be None, in place by their positions."""
    _rotary_embedding(positions, query, key, head_size, cos_sin_cache, is_neox)


@register_decomposition("rotary_embedding_cpu")
def _rotary_embedding_cpu(positions, query, key, head_size, cos_sin_cache, is_neox):
    if query.ndim == 3:                 # the one form that leaves its arguments as they are
        query, key = query.clone(), key.clone()
    torch.ops.sgl_kernel.rotary_embedding(positions, query, key, head_size, cos_sin_cache, is_neox)
    return query, key


@register_decomposition("multimodal_rotary_embedding_cpu")
def _multimodal_rotary_embedding_cpu(positions, query, key, *rest):
    torch.ops.sgl_kernel.multimodal_rotary_embedding(positions, query, key, *rest)
    return query, key


@register_decomposition("apply_rotary_pos_emb_cpu")
def _apply_rotary_pos_emb_cpu(query, key, cos, sin):
    torch.ops.sgl_kernel.apply_rotary_pos_emb(query, key, cos, sin)
    return query, key


@provided_by("copy")
def copy_to_gpu_no_ce(input: torch.Tensor, output: torch.Tensor):
    """output = input, int32 from the CPU to the GPU as kernel arguments: no copy engine, no wait."""
    _copy_to_gpu_no_ce(input, output)


@provided_by("copy")
def concat_mla_k(k: torch.Tensor, k_nope: torch.Tensor, k_rope: torch.Tensor):
    """k = (k_nope, k_rope) along the last dimension; k_rope has one head, which all get."""
    _concat_mla_k(k, k_nope, k_rope)


@provided_by("copy")
def concat_mla_absorb_q(a: torch.Tensor, b: torch.Tensor):
    """(a, b) along the last dimension"""
    *sizes, width = a.shape
    out = a.new_empty(*sizes, width + b.shape[-1])
    _concat_mla_absorb_q(a, b, out)
    return out


@provided_by("copy")
def downcast_fp8(
    k: torch.Tensor, v: torch.Tensor, k_out: torch.Tensor, v_out: torch.Tensor, k_scale: torch.Tensor, v_scale: torch.Tensor,
    loc: torch.Tensor, mult: int = 1, offset: int = 0,
) -> None:
    """k_out[loc * mult + offset] = e4m3(k / k_scale), saturating; the same for v."""
    _downcast_fp8(k, v, _rows_like(k, "k_out", k_out), _rows_like(k, "v_out", v_out), k_scale, v_scale, loc, mult, offset)


def _rows_like(k, name, out):
    if math.prod(out.shape[1:]) != math.prod(k.shape[1:]):
        raise ValueError(f"downcast_fp8: {name} has shape {list(out.shape)}, expected rows like k, {list(k.shape)}")
    return out.view(out.shape[:1] + k.shape[1:])


@dataclass
class FusedSetKVBufferArg:
    """Where apply_rope_with_cos_sin_cache_inplace stores keys and values: k_buffer[cache_loc] = rotated key, v_buffer[cache_loc] = value.

    value is [tokens, heads * head_size], the buffers [slots, heads * head_size], cache_loc int64; the scales must be None."""
    value: torch.Tensor
    k_buffer: torch.Tensor
    v_buffer: torch.Tensor
    k_scale: Optional[float]
    v_scale: Optional[float]
    cache_loc: torch.Tensor


@provided_by("rope")
def apply_rope_with_cos_sin_cache_inplace(
    positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor, head_size: int, cos_sin_cache: torch.Tensor, is_neox: bool = True,
    fused_set_kv_buffer_arg: Optional[FusedSetKVBufferArg] = None, enable_pdl: Optional[bool] = None,
) -> None:
    """Rotates query and key in place by a cache in float32, and stores keys and values into their buffers where those are given."""
    if cos_sin_cache.dtype != torch.float32:
        raise ValueError("cos_sin_cache should be float32")

    def heads(name, x):
        width = math.prod(x.shape[1:])
        if head_size < 1 or width % head_size != 0:
            raise ValueError(f"apply_rope_with_cos_sin_cache_inplace: {name} has rows of {width}, expected a multiple of head_size, {head_size}")
        return x.view(x.shape[0], width // head_size, head_size)

    fused = fused_set_kv_buffer_arg
    value = k_buffer = v_buffer = cache_loc = None
    if fused is not None:
        assert fused.k_scale is None, "k_scale is not supported"
        assert fused.v_scale is None, "v_scale is not supported"
        assert fused.cache_loc.dtype == torch.int64, f"cache_loc is {fused.cache_loc.dtype}, expected torch.int64"
        value, k_buffer, v_buffer = heads("value", fused.value), heads("k_buffer", fused.k_buffer), heads("v_buffer", fused.v_buffer)
        cache_loc = fused.cache_loc
    if enable_pdl is None:
        enable_pdl = fused is not None and _pdl(None, query)
    query, key = heads("query", query), heads("key", key)
    _apply_rope(query, key, query, key, cos_sin_cache, positions.long(), not is_neox, enable_pdl, value, k_buffer, v_buffer, cache_loc)


@provided_by("dsv4")
def dsv4_fused_q_norm_rope(
    q_input: torch.Tensor, freqs_cis: torch.Tensor, positions: torch.Tensor, eps: float = 1e-6, q_output: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """q_input normalised to a mean square of 1, its last 64 elements rotated by their positions"""
    if q_output is None:
        q_output = torch.empty_like(q_input)
    _dsv4_q_norm_rope(q_input, q_output, freqs_cis, positions, eps)
    return q_output


@provided_by("dsv4")
def dsv4_fused_k_norm_rope_flashmla(
    kv: torch.Tensor, kv_weight: torch.Tensor, freqs_cis: torch.Tensor, positions: torch.Tensor, out_loc: torch.Tensor, kvcache: torch.Tensor,
    eps: float = 1e-6, page_size: int = 1,
) -> None:
    """Normalises kv, rotates its last 64 elements, quantises the others, and stores rows into FlashMLA's paged cache at out_loc."""
    _dsv4_k_norm_rope(kv, kv_weight, freqs_cis, positions, out_loc, kvcache, eps, page_size)


@provided_by("dsv4")
def dsv4_fused_q_indexer_rope_hadamard_quant(
    q_input: torch.Tensor, q_fp8: torch.Tensor, weight: torch.Tensor, weights_out: torch.Tensor, weight_scale: float, freqs_cis: torch.Tensor,
    positions: torch.Tensor,
) -> None:
    """q_fp8 = e4m3(hadamard(q_input with its last 64 elements rotated) / scale of the head); weights_out = weight * weight_scale * scale"""
    _dsv4_q_indexer(q_input, q_fp8, weight, weights_out, weight_scale, freqs_cis, positions)
