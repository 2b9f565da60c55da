"""Attention to listed blocks and columns of keys, and the lists."""
from __future__ import annotations

from sgl_kernel._attention import outputs
from sgl_kernel._ops import operator, provided_by, torch

_sparse_attention = operator("fwd_sparse_out")
_convert = operator("convert_vertical_slash_indexes")
_convert_mergehead = operator("convert_vertical_slash_indexes_mergehead")


def maybe_contiguous(x):
    return x.contiguous() if x is not None and x.stride(-1) != 1 else x


@provided_by("attention")
def convert_vertical_slash_indexes(
    q_seqlens: torch.Tensor, kv_seqlens: torch.Tensor, vertical_indexes: torch.Tensor, slash_indexes: torch.Tensor, context_size: int, block_size_M: int,
    block_size_N: int, causal: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lists for sparse_attn_func of the keys that vertical lines and slashes name: block_count, block_offset, column_count, column_index."""
    lists = _lists(torch.zeros, vertical_indexes, slash_indexes, context_size, block_size_M)
    _convert(*lists, q_seqlens, kv_seqlens, vertical_indexes, slash_indexes, context_size, block_size_M, block_size_N, causal)
    return lists


@provided_by("attention")
def convert_vertical_slash_indexes_mergehead(
    q_seqlens: torch.Tensor, kv_seqlens: torch.Tensor, vertical_indexes: torch.Tensor, slash_indexes: torch.Tensor, vertical_indices_count: torch.Tensor,
    slash_indices_count: torch.Tensor, context_size: int, block_size_M: int, block_size_N: int, causal: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same where each head has its own number of lines and slashes. What lies behind the counts is undefined."""
    lists = _lists(torch.empty, vertical_indexes, slash_indexes, context_size, block_size_M)
    _convert_mergehead(
        *lists, q_seqlens, kv_seqlens, vertical_indexes, slash_indexes, vertical_indices_count, slash_indices_count, context_size, block_size_M, block_size_N,
        causal)
    return lists


def _lists(make, vertical_indexes, slash_indexes, context_size, block_size_M):
    if context_size < 0 or block_size_M < 1:
        raise ValueError(f"convert_vertical_slash_indexes: context_size is {context_size} and block_size_M {block_size_M}, expected at least 0 and 1")
    batch, heads, rows = *vertical_indexes.shape[:2], (context_size + block_size_M - 1) // block_size_M
    shapes = (batch, heads, rows), (batch, heads, rows, slash_indexes.shape[2]), (batch, heads, rows), (batch, heads, rows, vertical_indexes.shape[2])
    return tuple(make(shape, dtype=torch.int32, device=vertical_indexes.device) for shape in shapes)


@provided_by("attention")
def sparse_attn_func(
    q, k, v, block_count, block_offset, column_count, column_index, dropout_p=0.0, softmax_scale=None, causal=False, softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False, *, return_softmax_lse=False, out=None,
):
    """Attention of q [batch, queries, heads, head size] to the keys that block_offset (64 each) and column_index list for every 64 queries of a
    head. Returns out, or (out, softmax_lse) with return_softmax_lse."""
    q, k, v = maybe_contiguous(q), maybe_contiguous(k), maybe_contiguous(v)
    out, lse = outputs(q, v.shape[-1], None, return_softmax_lse, out)
    _sparse_attention(
        out, lse, q, k, v, block_count, block_offset, column_count, column_index, None, None, None, alibi_slopes, -1, -1, dropout_p, softmax_scale or 0.0, causal,
        softcap)
    return (out, lse) if return_softmax_lse else out


@provided_by("attention")
def sparse_attn_varlen_func(
    q, k, v, block_count, block_offset, column_count, column_index, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
    softmax_scale=None, causal=False, softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False, *, return_softmax_lse=False, out=None,
):
    """The same of sequences that lie packed behind each other, told apart by cu_seqlens_q and cu_seqlens_k."""
    q, k, v = maybe_contiguous(q), maybe_contiguous(k), maybe_contiguous(v)
    out, lse = outputs(q, v.shape[-1], cu_seqlens_q, return_softmax_lse, out)
    _sparse_attention(
        out, lse, q, k, v, block_count, block_offset, column_count, column_index, cu_seqlens_q, cu_seqlens_k, None, alibi_slopes, max_seqlen_q, max_seqlen_k,
        dropout_p, softmax_scale or 0.0, causal, softcap)
    return (out, lse) if return_softmax_lse else out
