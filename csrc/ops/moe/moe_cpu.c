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

enum { AHEAD = 1024 };                                  /* elements that are asked for in time */

/* n of 4 VF elements; each has its own chain of terms. Asked for are those of token `soon` from number `ask` on. */
SGK_INLINE void sum_part(sgk_dtype t, const struct moe_sum_args *a, int64_t token, int64_t d, int64_t n, int64_t soon, int64_t ask)
{
    vf sum[4] = { vf_zero(), vf_zero(), vf_zero(), vf_zero() };
    for (int64_t j = 0; j < a->terms; ++j) {
        const int64_t row = term_row(a, token, j) + d;
        const vf      f   = vf_set(a->factors ? load_f32(t, a->factors, token * a->terms + j) : 1);
        if (n == 4 * VF) {
            const int64_t next = term_row(a, soon, j) + ask;
            vf            x[4];
            vf_prefetch2(t, a->input, next), vf_prefetch2(t, a->input, next + 2 * VF);
            vf_load_pairs(t, a->input, row, &x[0], &x[1]), vf_load_pairs(t, a->input, row + 2 * VF, &x[2], &x[3]);
            for (int i = 0; i < 4; ++i) sum[i] = vf_fma(f, x[i], sum[i]);
        } else {
            sum[0] = vf_fma(f, n == VF ? vf_load(t, a->input, row) : vf_load_part(t, a->input, row, n), sum[0]);
        }
    }
    const int64_t out = token * a->output_stride + d;
    const vf      s   = vf_set(a->scale);
    if (n == 4 * VF)
        vf_store_pairs(t, false, a->output, out, vf_mul(s, sum[0]), vf_mul(s, sum[1])), vf_store_pairs(t, false, a->output, out + 2 * VF, vf_mul(s, sum[2]), vf_mul(s, sum[3]));
    else if (n == VF) vf_store(t, a->output, out, vf_mul(s, sum[0]));
    else vf_store_part(t, a->output, out, n, vf_mul(s, sum[0]));
}

SGK_INLINE void moe_sum_blocks(sgk_dtype t, const struct moe_sum_args *a, int64_t begin, int64_t end)
{
    const int64_t blocks = (a->dim + MOE_BLOCK - 1) / MOE_BLOCK;
    for (int64_t n = begin; n < end; ++n) {
        const int64_t token = n / blocks, first = n % blocks * MOE_BLOCK, last = first + MOE_BLOCK < a->dim ? first + MOE_BLOCK : a->dim;
        const int64_t soon = n + 1 < end ? (n + 1) / blocks : token, from = n + 1 < end ? (n + 1) % blocks * MOE_BLOCK : first;   /* the next block */
        int64_t       d = first;
        for (; d + 4 * VF <= last; d += 4 * VF) {
            if (d + AHEAD < last) sum_part(t, a, token, d, 4 * VF, token, d + AHEAD);
            else sum_part(t, a, token, d, 4 * VF, soon, from + (d + AHEAD - last) % MOE_BLOCK);
        }
        for (; d + VF <= last; d += VF) sum_part(t, a, token, d, VF, token, d);
        if (d < last) sum_part(t, a, token, d, last - d, token, d);
    }
}

void SGK_CPU_FN(moe_sum)(const void *args, int64_t begin, int64_t end)
{
    const struct moe_sum_args *a = args;
    if (a->dtype == SGK_F32) moe_sum_blocks(SGK_F32, a, begin, end);
    else if (a->dtype == SGK_F16) moe_sum_blocks(SGK_F16, a, begin, end);
    else moe_sum_blocks(SGK_BF16, a, begin, end);
}
