"""Stores into the KV cache."""
from __future__ import annotations

from sgl_kernel._ops import operator, provided_by, torch

_store_kv_cache = operator("store_kv_cache")


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
