"""Constrained decoding."""
from __future__ import annotations

from typing import List, Optional, Union

from sgl_kernel._ops import operator, provided_by, torch

_apply_token_bitmask = operator("apply_token_bitmask_inplace_cuda")


@provided_by("grammar")
def apply_token_bitmask_inplace_cuda(
    logits: torch.Tensor, bitmask: torch.Tensor, indices: Optional[Union[List[int], torch.Tensor]] = None,
) -> None:
    """logits[r, j] = -inf where bit j of row r of the mask is 0, for all rows or those of `indices`; on the CPU too."""
    if isinstance(indices, list):
        indices = torch.tensor(indices, dtype=torch.int32, device=logits.device)
    elif indices is not None:
        indices = indices.to(logits.device)
    _apply_token_bitmask(logits, bitmask, indices)
