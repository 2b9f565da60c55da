"""Norms, gated activations, rotary embedding."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from sgl_kernel._ops import operator, provided_by, torch
from sgl_kernel.utils import is_arch_support_pdl

_rmsnorm = operator("rmsnorm")
_fused_add_rmsnorm = operator("fused_add_rmsnorm")
_silu_and_mul = operator("silu_and_mul")
_rotary_embedding = operator("rotary_embedding")
_apply_rope = operator("apply_rope_pos_ids_cos_sin_cache")


def _pdl(enable_pdl, tensor):
    """Programmatic dependent launch is on by default where the GPU has it; a CPU tensor must not wake the GPU to find out."""
    return tensor.is_cuda and is_arch_support_pdl() if enable_pdl is None else enable_pdl


@provided_by("norm")
def rmsnorm(
    input: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, out: Optional[torch.Tensor] = None,
    enable_pdl: Optional[bool] = None,
) -> torch.Tensor:
    """out[i] = input[i] * weight / sqrt(mean(input[i] ** 2) + eps)"""
    if out is None:
        out = torch.empty_like(input)
    _rmsnorm(out, input, weight, eps, _pdl(enable_pdl, input))
    return out


@provided_by("norm")
def fused_add_rmsnorm(
    input: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, enable_pdl: Optional[bool] = None,
) -> None:
    """residual += input; input = rmsnorm(residual), the norm taken before the sum is rounded"""
    _fused_add_rmsnorm(input, residual, weight, eps, _pdl(enable_pdl, input))


def _gated_output(input, out):
    if input.shape[-1] * input.dtype.itemsize % 16 != 0:
        raise ValueError("The pointers must be multiple of 16 bytes.")
    if out is None:
        return torch.empty(input.shape[:-1] + (input.shape[-1] // 2,), dtype=input.dtype, device=input.device)
    assert input.ndim == out.ndim, f"{input.ndim} != {out.ndim}"
    assert input.shape[:-1] == out.shape[:-1], f"{input.shape[:-1]} != {out.shape[:-1]}"
    assert input.shape[-1] == 2 * out.shape[-1], f"{input.shape[-1]} != {2 * out.shape[-1]}"
    return out


@provided_by("act")
def silu_and_mul(input: torch.Tensor, out: torch.Tensor = None) -> torch.Tensor:
    """out = silu(first half of input's last dimension) * second half"""
    out = _gated_output(input, out)
    _silu_and_mul(out, input)
    return out


@provided_by("rope")
def rotary_embedding(
    positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor, head_size: int, cos_sin_cache: torch.Tensor,
    is_neox: bool = True,
):
    """Rotates query and key, which may be None, in place by their positions."""
    _rotary_embedding(positions, query, key, head_size, cos_sin_cache, is_neox)


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

    def heads(x):
        return x.view(x.shape[0], -1, head_size)

    fused = fused_set_kv_buffer_arg
    value = k_buffer = v_buffer = cache_loc = None
    if fused is not None:
        assert fused.k_scale is None, "k_scale is not supported"
        assert fused.v_scale is None, "v_scale is not supported"
        assert fused.cache_loc.dtype == torch.int64, f"cache_loc is {fused.cache_loc.dtype}, expected torch.int64"
        value, k_buffer, v_buffer, cache_loc = heads(fused.value), heads(fused.k_buffer), heads(fused.v_buffer), fused.cache_loc
    if enable_pdl is None:
        enable_pdl = fused is not None and _pdl(None, query)
    query, key = heads(query), heads(key)
    _apply_rope(query, key, query, key, cos_sin_cache, positions.long(), not is_neox, enable_pdl, value, k_buffer, v_buffer, cache_loc)
