"""Rotary embedding as modules: in plain torch, and by either of the operators that do the same in place."""
from __future__ import annotations

from typing import Optional, Tuple, Union

import torch

from sgl_kernel.elementwise import FusedSetKVBufferArg, apply_rope_with_cos_sin_cache_inplace, rotary_embedding


class RotaryEmbedding(torch.nn.Module):
    """Rotates the first rotary_dim elements of every head by the angles position * base ** (-2 i / rotary_dim), in torch."""
    cache_dtype: Optional[torch.dtype] = None       # None: that of the heads

    def __init__(self, head_size: int, rotary_dim: int, max_position_embeddings: int, base: int, is_neox_style: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.head_size, self.rotary_dim, self.is_neox_style = head_size, rotary_dim, is_neox_style
        self.max_position_embeddings, self.base, self.dtype = max_position_embeddings, base, dtype
        frequency = float(base) ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
        angle = torch.outer(torch.arange(max_position_embeddings, dtype=torch.float64), frequency)
        cache = torch.cat((angle.cos(), angle.sin()), dim=-1)
        self.register_buffer("cos_sin_cache", cache.to(self.cache_dtype or dtype), persistent=False)

    def _rotated(self, positions: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        split = heads.reshape(positions.numel(), -1, self.head_size)
        cos, sin = (part.unsqueeze(1) for part in self.cos_sin_cache[positions.flatten()].float().chunk(2, dim=-1))
        turning, rest = split[..., :self.rotary_dim].float(), split[..., self.rotary_dim:]
        x, y = turning.chunk(2, dim=-1) if self.is_neox_style else (turning[..., 0::2], turning[..., 1::2])
        pairs = (x * cos - y * sin, y * cos + x * sin)
        turned = torch.cat(pairs, dim=-1) if self.is_neox_style else torch.stack(pairs, dim=-1).flatten(-2)
        return torch.cat((turned.to(heads.dtype), rest), dim=-1).reshape(heads.shape)

    def forward_native(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor, offsets: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """New tensors; query and key stay as they are."""
        if offsets is not None:
            positions = positions + offsets
        return self._rotated(positions, query), self._rotated(positions, key)

    def forward(self, *arguments, **options):
        return self.forward_native(*arguments, **options)


class FlashInferRotaryEmbedding(RotaryEmbedding):
    """By apply_rope_with_cos_sin_cache_inplace: a cache in float32, and keys and values stored on the way where that is asked for."""
    cache_dtype = torch.float32

    def forward_cuda(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor, offsets: Optional[torch.Tensor] = None,
        fused_set_kv_buffer_arg: Optional[FusedSetKVBufferArg] = None,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """In place, on the tensors' device."""
        if offsets is not None:
            positions = positions + offsets
        apply_rope_with_cos_sin_cache_inplace(positions, query, key, self.head_size, self.cos_sin_cache, self.is_neox_style,
                                              fused_set_kv_buffer_arg=fused_set_kv_buffer_arg)
        return query, key


class SglKernelRotaryEmbedding(RotaryEmbedding):
    """By rotary_embedding: a cache in the format of the heads."""

    def forward_cuda(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor, offsets: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """In place, on the tensors' device."""
        if offsets is not None:
            positions = positions + offsets
        rotary_embedding(positions, query, key, self.head_size, self.cos_sin_cache, self.is_neox_style)
        return query, key


class MHATokenToKVPool:
    """The keys and values of one layer, a row a token."""
    KV_POOL_SIZE = 16384

    def __init__(self, head_num: int, head_dim: int, device: Optional[Union[str, torch.device]] = None, dtype: torch.dtype = torch.bfloat16):
        self.head_num, self.head_dim, self.size, self.dtype = head_num, head_dim, self.KV_POOL_SIZE, dtype
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        shape = (self.size, head_num, head_dim)
        self.k_buffer, self.v_buffer = ([torch.zeros(shape, dtype=dtype, device=self.device)] for _ in range(2))

    def get_key_buffer(self, layer_id: int = 0) -> torch.Tensor:
        return self.k_buffer[layer_id]

    def get_value_buffer(self, layer_id: int = 0) -> torch.Tensor:
        return self.v_buffer[layer_id]

    def set_kv_buffer(self, loc: torch.Tensor, cache_k: torch.Tensor, cache_v: torch.Tensor, layer_id: int = 0) -> None:
        for buffer, rows in ((self.k_buffer[layer_id], cache_k), (self.v_buffer[layer_id], cache_v)):
            buffer[loc] = rows.reshape(-1, self.head_num, self.head_dim).to(self.dtype)


def create_inputs(head_size: int, batch_size: int, seq_len: int, device, dtype: torch.dtype, num_q_heads: int, num_kv_heads: int):
    """Random heads of batch_size sequences of seq_len tokens, packed, with their positions and a row of the pool for each."""
    tokens = batch_size * seq_len
    query, key, value = (torch.randn(tokens, heads * head_size, dtype=dtype, device=device) for heads in (num_q_heads, num_kv_heads, num_kv_heads))
    return {
        "pos_ids": torch.arange(seq_len, device=device).repeat(batch_size),
        "query": query,
        "key": key,
        "value": value,
        "out_cache_loc": torch.randperm(MHATokenToKVPool.KV_POOL_SIZE, device=device)[:tokens].clone(),
    }
