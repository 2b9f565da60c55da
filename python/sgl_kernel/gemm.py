"""Matrix products, and the rows that go into them."""
from __future__ import annotations

from typing import Optional

from sgl_kernel._ops import operator, provided_by, torch

_linear = operator("linear")
_shuffle_rows = operator("shuffle_rows")


@provided_by("gemm")
def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor] = None, out: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """out = input @ weight.T + bias, sums in float32. Not part of the released package."""
    if out is None:
        out = torch.empty(input.shape[:-1] + (weight.shape[0],), dtype=input.dtype, device=input.device)
    _linear(out, input, weight, bias)
    return out


@provided_by("moe")
def shuffle_rows(input_tensor, dst2src_map, output_tensor_shape):
    """A new tensor of that shape: row i is row dst2src_map[i] of input_tensor."""
    output = torch.empty(output_tensor_shape, dtype=input_tensor.dtype, device=input_tensor.device)
    _shuffle_rows(input_tensor, dst2src_map, output)
    return output
