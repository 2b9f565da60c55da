#include "cpu/copy.h"
#include "moe.h"

SGK_INLINE int64_t source_of(const struct shuffle_rows_args *a, int64_t i) { return load_index(a->map, i, a->wide_map ? SGK_I64 : SGK_I32) * a->input_stride; }

SGK_INLINE void shuffle(bool stream, const struct shuffle_rows_args *a, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; ++i)
        copy_row((char *)a->output + i * a->output_stride, (const char *)a->input + source_of(a, i), a->bytes, stream,
                 (const char *)a->input + source_of(a, i + 1 < end ? i + 1 : i));
}

void SGK_CPU_FN(shuffle_rows)(const void *args, int64_t begin, int64_t end)
{
    const struct shuffle_rows_args *a = args;
    if (!sgk_cpu_streams(a->output, a->rows, a->bytes, 1)) {
        shuffle(false, a, begin, end);
        return;
    }
    shuffle(true, a, begin, end);
    vf_stream_end();
}

/* Where term j of a token begins. */
SGK_INLINE int64_t term_row(const struct moe_sum_args *a, int64_t token, int64_t j)
{
    if (!a->permutation) return token * a->token_stride + j * a->term_stride;
    return load_index(a->permutation, token * a->terms + j, a->wide_permutation ? SGK_I64 : SGK_I32) * a->term_stride;
}

enum { WIDE = 8 };                                      /* vectors that are added up side by side */

/* WIDE VF elements; each has its own chain of terms. Those of token `soon` from number `ask` on are asked for. */
SGK_INLINE void sum_wide(sgk_dtype t, bool stream, const struct moe_sum_args *a, int64_t token, int64_t d, int64_t soon, int64_t ask)
{
    const int64_t out = token * a->output_stride + d;
    const vf      s   = vf_set(a->scale);
    vf            sum[WIDE], x, y;
    VF_EACH(i, WIDE)
    sum[i] = vf_zero();
    for (int64_t j = 0; j < a->terms; ++j) {
        const int64_t row = term_row(a, token, j) + d, next = term_row(a, soon, j) + ask;
        const vf      f = vf_set(a->factors ? load_f32(t, a->factors, token * a->terms + j) : 1);
#pragma GCC unroll 4
        for (int i = 0; i < WIDE; i += 2) {
            vf_prefetch2(t, a->input, next + i * VF);
            vf_load_pairs(t, a->input, row + i * VF, &x, &y);
            sum[i] = vf_fma(f, x, sum[i]), sum[i + 1] = vf_fma(f, y, sum[i + 1]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < WIDE; i += 2) vf_store_pairs(t, stream, a->output, out + i * VF, vf_mul(s, sum[i]), vf_mul(s, sum[i + 1]));
}

/* n of VF elements. */
SGK_INLINE void sum_part(sgk_dtype t, const struct moe_sum_args *a, int64_t token, int64_t d, int64_t n)
{
    vf sum = vf_zero();
    for (int64_t j = 0; j < a->terms; ++j) {
        const int64_t row = term_row(a, token, j) + d;
        const vf      f   = vf_set(a->factors ? load_f32(t, a->factors, token * a->terms + j) : 1);
        sum               = vf_fma(f, n == VF ? vf_load(t, a->input, row) : vf_load_part(t, a->input, row, n), sum);
    }
    sum = vf_mul(vf_set(a->scale), sum);
    if (n == VF) vf_store(t, a->output, token * a->output_stride + d, sum);
    else vf_store_part(t, a->output, token * a->output_stride + d, n, sum);
}

/* While a block is added up the next one is asked for. */
SGK_INLINE void moe_sum_blocks(sgk_dtype t, bool stream, const struct moe_sum_args *a, int64_t begin, int64_t end)
{
    const int64_t blocks = (a->dim + MOE_BLOCK - 1) / MOE_BLOCK;
    for (int64_t n = begin; n < end; ++n) {
        const int64_t token = n / blocks, first = n % blocks * MOE_BLOCK, last = first + MOE_BLOCK < a->dim ? first + MOE_BLOCK : a->dim;
        const int64_t soon = n + 1 < end ? (n + 1) / blocks : token, ahead = n + 1 < end ? (n + 1) % blocks * MOE_BLOCK - first : 0;
        int64_t       d = first;
        for (; d + WIDE * VF <= last; d += WIDE * VF) sum_wide(t, stream, a, token, d, soon, d + ahead);
        for (; d < last; d += VF) sum_part(t, a, token, d, last - d < VF ? last - d : VF);
    }
}

SGK_INLINE void moe_sum_of(sgk_dtype t, const struct moe_sum_args *a, int64_t begin, int64_t end)
{
    const int64_t size  = t == SGK_F32 ? 4 : 2;
    const bool    lines = ((uintptr_t)a->output | (uintptr_t)(a->output_stride * size)) % 64 == 0;
    if (!lines || !sgk_cpu_streams(a->output, a->tokens, a->dim * size, size)) {
        moe_sum_blocks(t, false, a, begin, end);
        return;
    }
    moe_sum_blocks(t, true, a, begin, end);
    vf_stream_end();
}

/* No store can change the copy of the arguments. */
void SGK_CPU_FN(moe_sum)(const void *args, int64_t begin, int64_t end)
{
    const struct moe_sum_args a = *(const struct moe_sum_args *)args;
    if (a.dtype == SGK_F32) moe_sum_of(SGK_F32, &a, begin, end);
    else if (a.dtype == SGK_F16) moe_sum_of(SGK_F16, &a, begin, end);
    else moe_sum_of(SGK_BF16, &a, begin, end);
}
