"""Helpers of the wrappers: caches, and what the current GPU can do."""
from __future__ import annotations

import functools

from sgl_kernel._ops import torch


def cache_once(fn):
    """Remembers the result of each call by its arguments. Under torch.compile the result is a constant."""
    results = {}

    @functools.wraps(fn)
    def cached(*args, **kwargs):
        key = (args, tuple(sorted(kwargs.items())))
        if key not in results:
            results[key] = fn(*args, **kwargs)
        return results[key]

    return torch.compiler.assume_constant_result(cached) if torch else cached


def _capability_major():
    if torch is None or torch.version.cuda is None or not torch.cuda.is_available():
        return 0
    return torch.cuda.get_device_capability()[0]


@cache_once
def is_arch_support_pdl() -> bool:
    return _capability_major() >= 9


@cache_once
def is_hopper_arch() -> bool:
    return _capability_major() == 9


def get_cuda_stream() -> int:
    return torch.cuda.current_stream().cuda_stream


_cache_buf = {}


def _get_cache_buf(name: str, bytes: int, device: torch.device) -> torch.Tensor:
    """One uint8 buffer for each name and device; the first size asked for is the size it has."""
    key = (name, device)
    if key not in _cache_buf:
        _cache_buf[key] = torch.empty(bytes, dtype=torch.uint8, device=device)
    return _cache_buf[key]


def _to_tensor_scalar_tuple(x):
    return (x, 0) if isinstance(x, torch.Tensor) else (None, x)
