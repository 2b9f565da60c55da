"""Attention over dense, packed and paged keys and values, with the interface of FlashAttention 3."""
from __future__ import annotations

from typing import Optional, Union

from sgl_kernel._attention import outputs
from sgl_kernel._ops import operator, provided_by, torch
from sgl_kernel.debug_utils import maybe_wrap_debug_kernel
from sgl_kernel.utils import cache_once

_flash_attn = operator("flash_attn")
_flash_attn_append = operator("flash_attn_append")
_get_scheduler_metadata = operator("get_scheduler_metadata")


@cache_once
def is_fa3_supported(device=None) -> bool:
    """What engines ask before they choose this module. The released kernels need sm_80 or sm_90; these run on the CPU and on every GPU from
    sm_80 on."""
    if device is not None and torch.device(device).type == "cpu" or not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_capability(device)[0] >= 8


def maybe_contiguous(x):
    return x.contiguous() if x is not None and x.stride(-1) != 1 else x


@maybe_wrap_debug_kernel
@provided_by("attention")
def flash_attn_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None,
    cache_seqlens: Optional[Union[int, torch.Tensor]] = None, cache_batch_idx: Optional[torch.Tensor] = None,
    cache_leftpad: Optional[torch.Tensor] = None, page_table: Optional[torch.Tensor] = None,
    cu_seqlens_q: Optional[torch.Tensor] = None, cu_seqlens_k_new: Optional[torch.Tensor] = None, max_seqlen_q: Optional[int] = None,
    rotary_seqlens: Optional[torch.Tensor] = None, q_descale: Optional[torch.Tensor] = None, k_descale: Optional[torch.Tensor] = None,
    v_descale: Optional[torch.Tensor] = None, softmax_scale=None, causal=False, window_size=(-1, -1), attention_chunk: Optional[int] = None,
    softcap=0.0, rotary_interleaved=True, scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0, return_softmax_lse=False,
    sinks=None, score_mod=None, aux_tensors=None, ver=3, out=None,
):
    """Attention of q to a cache of keys and values, into which k and v are written first where they are given.

    Returns out, or (out, softmax_lse, None, None) with return_softmax_lse. scheduler_metadata, pack_gqa, score_mod, aux_tensors and ver are
    accepted and have no effect."""
    assert k_cache.stride(-1) == 1, "k_cache must have contiguous last dimension"
    assert v_cache.stride(-1) == 1, "v_cache must have contiguous last dimension"
    if cache_seqlens is not None and isinstance(cache_seqlens, int):
        cache_seqlens = torch.full((k_cache.shape[0],), cache_seqlens, dtype=torch.int32, device=k_cache.device)
    q, qv = maybe_contiguous(q), maybe_contiguous(qv)
    cache_seqlens, page_table = maybe_contiguous(cache_seqlens), maybe_contiguous(page_table)
    cu_seqlens_q, cache_batch_idx, cache_leftpad = maybe_contiguous(cu_seqlens_q), maybe_contiguous(cache_batch_idx), maybe_contiguous(cache_leftpad)
    out, lse = outputs(q, v_cache.shape[-1], cu_seqlens_q, return_softmax_lse, out)
    left, right = window_size
    if k is None and v is None and rotary_cos is None and rotary_sin is None:
        _flash_attn(
            out, lse, q, k_cache, v_cache, qv, cu_seqlens_q, None, None, cache_seqlens, max_seqlen_q, None, page_table, cache_batch_idx,
            cache_leftpad, q_descale, k_descale, v_descale, softmax_scale, causal, left, right, attention_chunk or 0, softcap, num_splits, sinks, sm_margin)
    else:
        _flash_attn_append(
            out, lse, q, k_cache, v_cache, maybe_contiguous(k), maybe_contiguous(v), qv, cu_seqlens_q, maybe_contiguous(cu_seqlens_k_new), None,
            cache_seqlens, max_seqlen_q, page_table, cache_batch_idx, cache_leftpad, maybe_contiguous(rotary_cos), maybe_contiguous(rotary_sin),
            maybe_contiguous(rotary_seqlens), q_descale, k_descale, v_descale, softmax_scale, causal, left, right, attention_chunk or 0, softcap,
            rotary_interleaved, num_splits, sinks, sm_margin)
    return (out, lse, None, None) if return_softmax_lse else out


@maybe_wrap_debug_kernel
@provided_by("attention")
def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q=None, max_seqlen_k=None, seqused_q=None, seqused_k=None, page_table=None,
    softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1), attention_chunk=0,
    softcap=0.0, num_splits=1, pack_gqa=None, sm_margin=0, return_softmax_lse=False, sinks=None, score_mod=None, aux_tensors=None, ver=3,
    out=None,
):
    """Attention of sequences that lie packed behind each other, told apart by cu_seqlens_q and cu_seqlens_k.

    With page_table k and v are pages, [pages, page_size, heads, head size], and cu_seqlens_k says how many keys each sequence has.
    Returns out, or (out, softmax_lse, None, None) with return_softmax_lse. pack_gqa, score_mod, aux_tensors and ver are accepted and have no
    effect."""
    if not is_fa3_supported(q.device):
        raise NotImplementedError("flash_attn_varlen_func needs a GPU of sm_80 or newer, or the CPU")
    if max_seqlen_q is None or max_seqlen_k is None:
        raise ValueError("max_seqlen_q and max_seqlen_k are required")
    q, k, v, qv = maybe_contiguous(q), maybe_contiguous(k), maybe_contiguous(v), maybe_contiguous(qv)
    out, lse = outputs(q, v.shape[-1], cu_seqlens_q, return_softmax_lse, out)
    left, right = window_size
    if page_table is not None:
        seqused_k = cu_seqlens_k.diff() if seqused_k is None else seqused_k
        cu_seqlens_k = max_seqlen_k = None
    _flash_attn(
        out, lse, q, k, v, qv, cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, max_seqlen_q, max_seqlen_k, maybe_contiguous(page_table), None, None,
        q_descale, k_descale, v_descale, softmax_scale, causal, left, right, attention_chunk or 0, softcap, num_splits, sinks, sm_margin)
    return (out, lse, None, None) if return_softmax_lse else out


@provided_by("attention")
def get_scheduler_metadata(
    batch_size: int, max_seqlen_q: int, max_seqlen_k: int, num_heads: int, num_heads_k: int, headdim: int, cache_seqlens: torch.Tensor,
    qkv_dtype=torch and torch.bfloat16, headdim_v: Optional[int] = None, cu_seqlens_q: Optional[torch.Tensor] = None,
    cu_seqlens_k: Optional[torch.Tensor] = None, cu_seqlens_k_new: Optional[torch.Tensor] = None, seqused_q: Optional[torch.Tensor] = None,
    leftpad_k: Optional[torch.Tensor] = None, page_size: Optional[int] = None, max_seqlen_k_new: int = 0, causal: bool = False, window_size=(-1, -1),
    attention_chunk: int = 0, has_softcap: bool = False, num_splits: int = 0, pack_gqa: Optional[bool] = None, sm_margin: int = 0,
):
    """What the released interface makes before attention: int32, batch_size + 1 numbers. Attention here plans for itself and does not read it."""
    return _get_scheduler_metadata(
        batch_size, max_seqlen_q, max_seqlen_k, num_heads, num_heads_k, headdim, headdim if headdim_v is None else headdim_v, qkv_dtype,
        maybe_contiguous(cache_seqlens), cu_seqlens_q, cu_seqlens_k, cu_seqlens_k_new, seqused_q, leftpad_k, page_size, max_seqlen_k_new, causal,
        window_size[0], window_size[1], attention_chunk, has_softcap, num_splits, pack_gqa, sm_margin)
