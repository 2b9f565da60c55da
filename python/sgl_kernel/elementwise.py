"""Norms, activations, rotary embedding, concatenations and small copies."""
from __future__ import annotations

from typing import Optional

from sgl_kernel._ops import operator, provided_by, register_fake, torch
from sgl_kernel.utils import is_arch_support_pdl

_rmsnorm = operator("rmsnorm")
_fused_add_rmsnorm = operator("fused_add_rmsnorm")
_gemma_rmsnorm = operator("gemma_rmsnorm")
_gemma_fused_add_rmsnorm = operator("gemma_fused_add_rmsnorm")
_silu_and_mul = operator("silu_and_mul")
_silu_and_mul_experts = operator("silu_and_mul_experts")
_gelu_and_mul = operator("gelu_and_mul")
_gelu_tanh_and_mul = operator("gelu_tanh_and_mul")
_gelu_quick = operator("gelu_quick")
_rotary_embedding = operator("rotary_embedding")


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


@provided_by("norm")
def gemma_rmsnorm(
    input: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, out: Optional[torch.Tensor] = None,
    enable_pdl: Optional[bool] = None,
) -> torch.Tensor:
    """out[i] = input[i] * (1 + weight) / sqrt(mean(input[i] ** 2) + eps)"""
    if out is None:
        out = torch.empty_like(input)
    _gemma_rmsnorm(out, input, weight, eps, _pdl(enable_pdl, input))
    return out


@provided_by("norm")
def gemma_fused_add_rmsnorm(
    input: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, enable_pdl: Optional[bool] = None,
) -> None:
    """residual += input; input = gemma_rmsnorm(residual), the norm taken before the sum is rounded"""
    _gemma_fused_add_rmsnorm(input, residual, weight, eps, _pdl(enable_pdl, input))


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
        return torch.empty(input.shape[:-1] + (input.shape[-1] // 2,), dtype=input.dtype, device=input.device)
    assert input.ndim == out.ndim, f"{input.ndim} != {out.ndim}"
    assert input.shape[:-1] == out.shape[:-1], f"{input.shape[:-1]} != {out.shape[:-1]}"
    assert input.shape[-1] == 2 * out.shape[-1], f"{input.shape[-1]} != {2 * out.shape[-1]}"
    return out


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
