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

enum { WIDE  = 8,                                       /* vectors that are added up side by side */
       AHEAD = 1024 };                                  /* bytes of a row that are asked for in time */

/*
 * WIDE VF elements; each has its own chain of terms. As many of what comes later are asked for: of each row what is next or, `in_order`, of token `soon` in the
 * order in which its rows lie in memory, though the sums go through them side by side.
 */
SGK_INLINE void sum_wide(sgk_dtype t, bool stream, bool in_order, const struct moe_sum_args *a, int64_t token, int64_t d, int64_t soon)
{
    const int64_t out = token * a->output_stride + d, pieces = a->dim / (WIDE * VF), first = d / (WIDE * VF) * a->terms;
    const int64_t most = AHEAD / (t == SGK_F32 ? 4 : 2), far = most < a->dim ? most : a->dim;
    const vf      s    = vf_set(a->scale);
    int64_t       term = first / pieces, piece = first % pieces;
    vf            sum[WIDE], x, y;
    VF_EACH(i, WIDE)
    sum[i] = vf_zero();
    for (int64_t j = 0; j < a->terms; ++j) {
        const int64_t row = term_row(a, token, j) + d;
        const vf      f   = vf_set(a->factors ? load_f32(t, a->factors, token * a->terms + j) : 1);
        int64_t       next;
        if (in_order) {
            next = term_row(a, soon, term) + piece * (WIDE * VF);
            if (++piece == pieces) ++term, piece = 0;
        } else {
            next = d + far < a->dim ? row + far : term_row(a, soon, j) + d + far - a->dim;
        }
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

SGK_INLINE void moe_sum_blocks(sgk_dtype t, bool stream, bool in_order, const struct moe_sum_args *a, int64_t begin, int64_t end)
{
    const int64_t blocks = (a->dim + MOE_BLOCK - 1) / MOE_BLOCK;
    for (int64_t n = begin; n < end; ++n) {
        const int64_t token = n / blocks, first = n % blocks * MOE_BLOCK, last = first + MOE_BLOCK < a->dim ? first + MOE_BLOCK : a->dim;
        const int64_t soon = token + 1 < a->tokens ? token + 1 : token;
        int64_t       d    = first;
        for (; d + WIDE * VF <= last; d += WIDE * VF) sum_wide(t, stream, in_order, a, token, d, soon);
        for (; d < last; d += VF) sum_part(t, a, token, d, last - d < VF ? last - d : VF);
    }
}

SGK_INLINE void moe_sum_of(sgk_dtype t, const struct moe_sum_args *a, int64_t begin, int64_t end)
{
    const int64_t size     = t == SGK_F32 ? 4 : 2;
    const bool    lines    = ((uintptr_t)a->output | (uintptr_t)(a->output_stride * size)) % 64 == 0;
    const bool    in_order = !a->permutation && sgk_cpu_streams(a->input, a->tokens * a->terms, a->dim * size, 1);
    const bool    stream   = lines && sgk_cpu_streams(a->output, a->tokens, a->dim * size, size);
    if (stream && in_order) moe_sum_blocks(t, true, true, a, begin, end);
    else if (stream) moe_sum_blocks(t, true, false, a, begin, end);
    else if (in_order) moe_sum_blocks(t, false, true, a, begin, end);
    else moe_sum_blocks(t, false, false, a, begin, end);
    if (stream) vf_stream_end();
}

/* No store can change the copy of the arguments. */
void SGK_CPU_FN(moe_sum)(const void *args, int64_t begin, int64_t end)
{
    const struct moe_sum_args a = *(const struct moe_sum_args *)args;
    if (a.dtype == SGK_F32) moe_sum_of(SGK_F32, &a, begin, end);
    else if (a.dtype == SGK_F16) moe_sum_of(SGK_F16, &a, begin, end);
    else moe_sum_of(SGK_BF16, &a, begin, end);
}
