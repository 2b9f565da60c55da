"""Inputs and comparisons for tests of the quantisers."""
from __future__ import annotations

from sgl_kernel._ops import torch

GLOBAL_EXPERTS, TOKENS_PER_RANK = 288, 768      # as DeepEP's low-latency dispatch lays them out


def create_per_token_group_quant_test_data(num_tokens, hidden_dim, num_ranks, flags):
    """(x, masked_m): bf16 rows with a few outliers, on the GPU where there is one.

    flags: `fuse_silu_and_mul` doubles the rows' length; `masked_layout_mode` None gives [num_tokens, H] and no mask, otherwise
    [local experts, 768 * num_ranks, H] with num_tokens tokens shared out "balanced", "imbalanced" (at random) or "extreme" (all to one)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(num_tokens * 10000 + hidden_dim)
    width = hidden_dim * (2 if flags["fuse_silu_and_mul"] else 1)
    mode = flags["masked_layout_mode"]
    experts = GLOBAL_EXPERTS // num_ranks
    shape = (num_tokens, width) if mode is None else (experts, TOKENS_PER_RANK * num_ranks, width)
    x = torch.randn(shape, dtype=torch.bfloat16, device=device, generator=generator)
    x[torch.rand(shape, device=device, generator=generator) < 0.001] *= 10
    if mode is None:
        return x, None

    shares = {"balanced": torch.ones(experts), "imbalanced": torch.rand(experts, generator=torch.Generator().manual_seed(num_tokens)) ** 3,
              "extreme": torch.eye(experts)[0]}
    if mode not in shares:
        raise NotImplementedError(f"masked_layout_mode is {mode}, expected one of {', '.join(shares)}")
    ends = (shares[mode].double().cumsum(0) / shares[mode].double().sum() * num_tokens).round().int()
    masked_m = ends.diff(prepend=ends.new_zeros(1))
    assert masked_m.sum() == num_tokens and masked_m.max() <= x.shape[1], f"{num_tokens} tokens do not fit into {x.shape[1]} rows an expert"
    return x, masked_m.to(device)


def assert_all_close_or_tiny_diff(a: torch.Tensor, b: torch.Tensor):
    """Two tensors of e4m3 or int8 whose codes are equal but for less than 0.5 % that are neighbours; 4 % in tensors of 4096 elements or fewer."""
    assert a.shape == b.shape and a.dtype == b.dtype, f"{a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}"
    if a.dtype not in (torch.float8_e4m3fn, torch.int8):
        raise NotImplementedError(f"codes of {a.dtype}, expected float8_e4m3fn or int8")
    codes = torch.uint8 if a.dtype == torch.float8_e4m3fn else torch.int8
    difference = (a.view(codes).int() - b.view(codes).int()).abs()
    near, far = (difference == 1).sum().item(), (difference > 1).sum().item()
    allowed = (0.04 if a.numel() <= 4096 else 0.005) * a.numel()
    assert far == 0 and (near == 0 or near < allowed), f"of {a.numel()} codes {near} differ by one and {far} by more"
