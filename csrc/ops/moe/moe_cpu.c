#include "cpu/copy.h"
#include "moe.h"

SGK_INLINE int64_t source_of(const struct shuffle_rows_args *a, int64_t i) { return load_index(a->map, i, a->wide_map ? SGK_I64 : SGK_I32) * a->input_stride; }

enum { PAGES_AHEAD = 4 };                               /* rows whose pages are looked up in time: they lie at random places */

SGK_INLINE void shuffle(bool stream, const struct shuffle_rows_args *a, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; ++i) {
        if (stream) read_page_soon((const char *)a->input + source_of(a, i + PAGES_AHEAD < end ? i + PAGES_AHEAD : i), a->bytes);
        copy_row((char *)a->output + i * a->output_stride, (const char *)a->input + source_of(a, i), a->bytes, stream,
                 (const char *)a->input + source_of(a, i + 1 < end ? i + 1 : i));
    }
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
       AHEAD = 1024,                                    /* bytes of a row that are asked for in time */
       FAR   = 1536 };                                  /* the same of what comes from memory */

/* WIDE VF elements; each has its own chain of terms. As many of what comes next in each row are asked for. */
SGK_INLINE void sum_wide(sgk_dtype t, bool stream, const struct moe_sum_args *a, int64_t token, int64_t d, int64_t soon, int64_t far)
{
    const int64_t out = token * a->output_stride + d;
    const vf      s   = vf_set(a->scale);
    vf            sum[WIDE], x, y;
    VF_EACH(i, WIDE)
    sum[i] = vf_zero();
    for (int64_t j = 0; j < a->terms; ++j) {
        const int64_t row  = term_row(a, token, j) + d;
        const vf      f    = vf_set(a->factors ? load_f32(t, a->factors, token * a->terms + j) : 1);
        const int64_t next = d + far < a->dim ? row + far : term_row(a, soon, j) + d + far - a->dim;
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

SGK_INLINE void moe_sum_blocks(sgk_dtype t, bool stream, const struct moe_sum_args *a, int64_t begin, int64_t end, int64_t ahead)
{
    const int64_t blocks = (a->dim + MOE_BLOCK - 1) / MOE_BLOCK, most = ahead / (t == SGK_F32 ? 4 : 2), far = most < a->dim ? most : a->dim;
    for (int64_t n = begin; n < end; ++n) {
        const int64_t token = n / blocks, first = n % blocks * MOE_BLOCK, last = first + MOE_BLOCK < a->dim ? first + MOE_BLOCK : a->dim;
        const int64_t soon = token + 1 < a->tokens ? token + 1 : token;
        int64_t       d    = first;
        for (; d + WIDE * VF <= last; d += WIDE * VF) sum_wide(t, stream, a, token, d, soon, far);
        for (; d < last; d += VF) sum_part(t, a, token, d, last - d < VF ? last - d : VF);
    }
}

enum { RUN  = 4096,                                    /* elements whose sums are kept beside */
       SOON = 8192 };                                   /* bytes that are asked for in time */

/* Adds n elements of term j, whole vectors, to the sums, which are written with the last one. As many at `next` are asked for behind the end of these. */
SGK_INLINE void add_run(sgk_dtype t, bool stream, bool first, bool last, const struct moe_sum_args *a, int64_t token, int64_t j, int64_t d, int64_t n, int64_t next, float *sums)
{
    const int64_t row = term_row(a, token, j) + d, out = token * a->output_stride + d;
    const vf      f = vf_set(a->factors ? load_f32(t, a->factors, token * a->terms + j) : 1), s = vf_set(a->scale);
    const int64_t most = SOON / (t == SGK_F32 ? 4 : 2), far = most < n ? most : n;
#pragma GCC unroll 2
    for (int64_t i = 0; i < n; i += 2 * VF) {
        vf x, y, u = vf_zero(), v = vf_zero();
        vf_prefetch2(t, a->input, i + far < n ? row + i + far : next + i + far - n);
        vf_load_pairs(t, a->input, row + i, &x, &y);
        if (!first) u = vf_load_f32(sums + i), v = vf_load_f32(sums + i + VF);
        u = vf_fma(f, x, u), v = vf_fma(f, y, v);
        if (last) vf_store_pairs(t, stream, a->output, out + i, vf_mul(s, u), vf_mul(s, v));
        else vf_store_f32(sums + i, u), vf_store_f32(sums + i + VF, v);
    }
}

/* What comes from memory: one term after the other, so that it is read in one run. Rows at random places are faster side by side. */
SGK_INLINE void moe_sum_runs(sgk_dtype t, bool stream, const struct moe_sum_args *a, int64_t begin, int64_t end)
{
    const int64_t      blocks = (a->dim + MOE_BLOCK - 1) / MOE_BLOCK;
    _Alignas(64) float sums[RUN];
    for (int64_t n = begin, stop; n < end; n = stop) {
        const int64_t token = n / blocks, first = n % blocks * MOE_BLOCK;
        stop               = (token + 1) * blocks < end ? (token + 1) * blocks : end;
        const int64_t rest = a->dim - first, all = (stop - n) * MOE_BLOCK < rest ? (stop - n) * MOE_BLOCK : rest, last = first + all;
        for (int64_t d = first; d < last; d += RUN) {
            const int64_t count = last - d < RUN ? last - d : RUN, whole = count - count % (2 * VF);
            const int64_t after = d + RUN < last ? term_row(a, token, 0) + d + RUN : stop < end ? term_row(a, token + 1, 0)
                                                                                                : term_row(a, token, 0) + d;
            for (int64_t j = 0; j < a->terms; ++j) {
                const int64_t next = j + 1 < a->terms ? term_row(a, token, j + 1) + d : after;
                if (j == 0 && a->terms == 1) add_run(t, stream, true, true, a, token, j, d, whole, next, sums);
                else if (j == 0) add_run(t, stream, true, false, a, token, j, d, whole, next, sums);
                else if (j + 1 == a->terms) add_run(t, stream, false, true, a, token, j, d, whole, next, sums);
                else add_run(t, stream, false, false, a, token, j, d, whole, next, sums);
            }
            for (int64_t i = whole; i < count; i += VF) sum_part(t, a, token, d + i, count - i < VF ? count - i : VF);
        }
    }
}

SGK_INLINE void moe_sum_of(sgk_dtype t, const struct moe_sum_args *a, int64_t begin, int64_t end)
{
    const int64_t size  = t == SGK_F32 ? 4 : 2;
    const bool    lines = ((uintptr_t)a->output | (uintptr_t)(a->output_stride * size)) % 64 == 0;
    const bool    far = sgk_cpu_streams(a->input, a->tokens * a->terms, a->dim * size, 1), runs = far && !a->permutation && a->terms > 0;
    const int64_t ahead  = far ? FAR : AHEAD;
    const bool    stream = lines && sgk_cpu_streams(a->output, a->tokens, a->dim * size, size);
    if (stream && runs) moe_sum_runs(t, true, a, begin, end);
    else if (stream) moe_sum_blocks(t, true, a, begin, end, ahead);
    else if (runs) moe_sum_runs(t, false, a, begin, end);
    else moe_sum_blocks(t, false, a, begin, end, ahead);
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
