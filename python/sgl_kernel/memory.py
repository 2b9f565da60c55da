"""Stores into the KV cache, and references that own nothing."""
from __future__ import annotations

from sgl_kernel._ops import operator, provided_by, register_fake, torch

_store_kv_cache = operator("store_kv_cache")
_weak_ref_tensor = operator("weak_ref_tensor")


@provided_by("kvcache")
def set_kv_buffer_kernel(
    k_cache: torch.Tensor, v_cache: torch.Tensor, loc: torch.Tensor, k: torch.Tensor, v: torch.Tensor, fallback: bool = False,
):
    """k_cache[loc] = k; v_cache[loc] = v. With `fallback` torch's own indexing does it."""
    if fallback:
        k_cache[loc] = k
        v_cache[loc] = v
    else:
        _store_kv_cache(k_cache, v_cache, loc, k, v)


@provided_by("torch")
def weak_ref_tensor(tensor):
    """A tensor over the same memory, which it does not keep; what is no tensor comes back as it is."""
    return _weak_ref_tensor(tensor) if isinstance(tensor, torch.Tensor) else tensor


@register_fake("weak_ref_tensor")
def _(tensor):
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
