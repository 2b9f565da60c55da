"""Stores into the KV cache, and tensors that own nothing."""
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


@provided_by("copy")
def weak_ref_tensor(tensor):
    """A tensor of the same memory that does not keep it alive, so that CUDA graphs can share it; what is no tensor comes back as it is."""
    if not isinstance(tensor, torch.Tensor):
        return tensor
    if not tensor.is_cuda:
        raise RuntimeError("weak_ref_tensor expects a CUDA tensor")
    return _weak_ref_tensor(tensor)


@register_fake("weak_ref_tensor")
def _weak_ref_tensor_fake(tensor):
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
