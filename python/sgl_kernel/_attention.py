"""What torch.compile is told of attention's operators; imported with the package, whichever of its modules is used."""
from sgl_kernel._ops import operator, register_decomposition, register_fake, torch

_flash_attn = operator("flash_attn")
_flash_attn_append = operator("flash_attn_append")
_sparse_attention = operator("fwd_sparse_out")


def outputs(q, head_dim_v, cu_seqlens_q, return_softmax_lse, out):
    if out is None:
        dtype = torch.bfloat16 if q.element_size() == 1 else q.dtype
        out = torch.empty(q.shape[:-1] + (head_dim_v,), dtype=dtype, device=q.device)
    lse = None
    if return_softmax_lse:
        shape = (q.shape[0], q.shape[2], q.shape[1]) if cu_seqlens_q is None else (q.shape[1], q.shape[0])
        lse = torch.empty(shape, dtype=torch.float32, device=q.device)
    return out, lse


@register_fake("get_scheduler_metadata")
def _get_scheduler_metadata_fake(batch_size, max_seqlen_q, max_seqlen_k, num_heads, num_heads_k, headdim, headdim_v, qkv_dtype, seqused_k, *_, **__):
    return seqused_k.new_empty(batch_size + 1)


@register_fake("flash_attn_varlen_func")
def _flash_attn_varlen_func_fake(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal):
    return q.new_empty(q.shape[:-1] + (v.shape[-1],))


@register_decomposition("fwd")
def _fwd(
    q, k, v, k_new, v_new, q_v, out, cu_seqlens_q, cu_seqlens_k, cu_seqlens_k_new, seqused_q, seqused_k, max_seqlen_q, max_seqlen_k, page_table,
    kv_batch_idx, leftpad_k, rotary_cos, rotary_sin, seqlens_rotary, q_descale, k_descale, v_descale, softmax_scale, is_causal, window_size_left,
    window_size_right, attention_chunk, softcap, is_rotary_interleaved, scheduler_metadata, num_splits, pack_gqa, sm_margin, sinks,
):
    out, lse = outputs(q, v.shape[-1], cu_seqlens_q, True, out)
    if k_new is None and v_new is None and rotary_cos is None and rotary_sin is None:
        _flash_attn(
            out, lse, q, k, v, q_v, cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, max_seqlen_q, max_seqlen_k, page_table, kv_batch_idx, leftpad_k,
            q_descale, k_descale, v_descale, softmax_scale, is_causal, window_size_left, window_size_right, attention_chunk, softcap, num_splits, sinks,
            sm_margin)
    else:
        _flash_attn_append(
            out, lse, q, k, v, k_new, v_new, q_v, cu_seqlens_q, cu_seqlens_k_new, seqused_q, seqused_k, max_seqlen_q, page_table, kv_batch_idx, leftpad_k,
            rotary_cos, rotary_sin, seqlens_rotary, q_descale, k_descale, v_descale, softmax_scale, is_causal, window_size_left, window_size_right,
            attention_chunk, softcap, is_rotary_interleaved, num_splits, sinks, sm_margin)
    return out, lse, lse.new_empty(0), lse.new_empty(0)


@register_decomposition("fwd", "v0_1_8")
def _fwd_v0_1_8(*arguments):
    *before, softcap, interleaved, metadata, num_splits, pack_gqa, sm_margin = arguments
    return list(_fwd(*before, 0, softcap, interleaved, metadata, num_splits, pack_gqa, sm_margin, None)[:2])


@register_decomposition("fwd_sparse")
def _fwd_sparse(
    q, k, v, block_count, block_offset, column_count, column_index, out, alibi_slopes, p_dropout, softmax_scale, is_causal, softcap, return_softmax, gen,
):
    out, lse = outputs(q, v.shape[-1], None, True, out)
    _sparse_attention(
        out, lse, q, k, v, block_count, block_offset, column_count, column_index, None, None, None, alibi_slopes, -1, -1, p_dropout, softmax_scale, is_causal,
        softcap)
    return [out, lse]


@register_decomposition("varlen_fwd_sparse")
def _varlen_fwd_sparse(
    q, k, v, block_count, block_offset, column_count, column_index, out, cu_seqlens_q, cu_seqlens_k, seqused_k, alibi_slopes, max_seqlen_q, max_seqlen_k,
    p_dropout, softmax_scale, zero_tensors, is_causal, softcap, return_softmax, gen,
):
    out, lse = outputs(q, v.shape[-1], cu_seqlens_q, True, out)
    _sparse_attention(
        out, lse, q, k, v, block_count, block_offset, column_count, column_index, cu_seqlens_q, cu_seqlens_k, seqused_k, alibi_slopes, max_seqlen_q,
        max_seqlen_k, p_dropout, softmax_scale, is_causal, softcap)
    return [out, lse]
