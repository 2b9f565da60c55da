"""Softmax with temperature, and sampling from probabilities."""
from __future__ import annotations

from typing import Optional, Union

from sgl_kernel._ops import operator, provided_by, torch
from sgl_kernel.utils import _to_tensor_scalar_tuple

_softmax = operator("softmax")
_top_k_top_p = operator("top_k_top_p_sampling_from_probs_seeded")


@provided_by("sampling")
def softmax(
    logits: torch.Tensor, temperature: Union[torch.Tensor, float] = 1.0, out: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """softmax(logits / temperature) of each row, in float32; a temperature of 0 gives 1 at the first maximum. Not part of the
    released package."""
    if out is None:
        out = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    temperature_arr, temperature_val = _to_tensor_scalar_tuple(temperature)
    _softmax(out, logits, temperature_arr if temperature_arr is None else temperature_arr.float(), temperature_val)
    return out


@provided_by("sampling")
def top_k_top_p_sampling_from_probs(
    probs: torch.Tensor, top_k: Union[torch.Tensor, int], top_p: Union[torch.Tensor, float],
    indices: Optional[torch.Tensor] = None, filter_apply_order: str = "top_k_first", deterministic: bool = True,
    generator: Optional[torch.Generator] = None, check_nan: bool = False, *, seed: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Draws an index from each row of probs (or from rows `indices`), among its top_k largest entries and, of these or with
    filter_apply_order="joint" of all, the largest that make up top_p of the sum.

    `seed`, our addition, is an int64 tensor of one seed or of one for each draw; the same seed draws the same index on every
    device. Without it a seed comes from `generator`, or torch's default one. Draws are always `deterministic`.
    """
    if filter_apply_order not in ("top_k_first", "joint"):
        raise ValueError(f"Invalid filter_apply_order: {filter_apply_order}")
    probs = probs.float()
    if check_nan and torch.any(torch.isnan(probs)):
        raise ValueError("Input probs contains NaN.")
    top_k_arr, top_k_val = _to_tensor_scalar_tuple(top_k)
    top_p_arr, top_p_val = _to_tensor_scalar_tuple(top_p)
    if seed is None:
        seed = torch.randint(0, 2**63 - 1, (1,), dtype=torch.int64, device=probs.device, generator=generator)
    output = torch.empty(probs.shape[0] if indices is None else indices.shape[0], dtype=torch.int32, device=probs.device)
    _top_k_top_p(
        probs, output, indices, top_k_arr if top_k_arr is None else top_k_arr.int(), int(top_k_val),
        top_p_arr if top_p_arr is None else top_p_arr.float(), top_p_val, filter_apply_order == "joint", seed)
    return output
