"""Matrix products."""
from __future__ import annotations

from typing import Optional

from sgl_kernel._ops import operator, provided_by, torch

_linear = operator("linear")


@provided_by("gemm")
def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor] = None, out: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """out = input @ weight.T + bias, sums in float32. Not part of the released package."""
    if out is None:
        out = torch.empty(input.shape[:-1] + (weight.shape[0],), dtype=input.dtype, device=input.device)
    _linear(out, input, weight, bias)
    return out
