"""Hadamard transforms of a tensor's last dimension, which counts as padded with zeros to the transform's length."""
from __future__ import annotations

from sgl_kernel._ops import operator, provided_by, register_fake, torch

_transform = operator("fast_hadamard_transform")
_transform_12n = operator("fast_hadamard_transform_12N")
_transform_20n = operator("fast_hadamard_transform_20N")
_transform_28n = operator("fast_hadamard_transform_28N")
_transform_40n = operator("fast_hadamard_transform_40N")


@register_fake("fast_hadamard_transform")
@register_fake("fast_hadamard_transform_12N")
@register_fake("fast_hadamard_transform_20N")
@register_fake("fast_hadamard_transform_28N")
@register_fake("fast_hadamard_transform_40N")
def _transform_fake(x, scale):
    return x.new_empty(x.shape)


def _of_any_layout(transform, x, scale):
    """The operator takes rows that are dense and evenly spaced."""
    rows = x.unsqueeze(0).flatten(0, -2)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    return transform(rows, scale).view(x.shape)


@provided_by("hadamard")
def hadamard_transform(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """scale * x @ H, H the Hadamard matrix of order 2^k in Sylvester's order"""
    return _of_any_layout(_transform, x, scale)


@provided_by("hadamard")
def hadamard_transform_12n(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """The same with the Kronecker product of Paley's matrix of order 12 and H; x is padded to 12 * 2^k elements, k at least 2."""
    return _of_any_layout(_transform_12n, x, scale)


@provided_by("hadamard")
def hadamard_transform_20n(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """The same with Williamson's matrix of order 20."""
    return _of_any_layout(_transform_20n, x, scale)


@provided_by("hadamard")
def hadamard_transform_28n(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """The same with Williamson's matrix of order 28."""
    return _of_any_layout(_transform_28n, x, scale)


@provided_by("hadamard")
def hadamard_transform_40n(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """The same with Paley's matrix of order 20, doubled."""
    return _of_any_layout(_transform_40n, x, scale)
