/* What the CPU's ways to multiply share: the cut of the work, and the end of a block. */
#ifndef SGK_GEMM_CPU_H
#define SGK_GEMM_CPU_H
#include "cpu/simd.h"
#include "gemm.h"

SGK_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* The p-th of `parts` equal shares of [0, n). */
SGK_INLINE int64_t share(int64_t n, int64_t p, int64_t parts) { return n / parts * p + least(p, n % parts); }

SGK_INLINE void store_rows(sgk_dtype t, const struct linear_args *a, int64_t m, int64_t rows, int64_t n, int64_t columns, const float *sums)
{
    float bias[LINEAR_BLOCK];
    if (a->bias)
        for (int64_t c = 0; c < columns; ++c) bias[c] = load_f32(a->bias_dtype, a->bias, n + c);
    for (int64_t r = 0; r < rows; ++r, sums += LINEAR_BLOCK)
        for (int64_t c = 0; c < columns; c += VF) {
            const int64_t to = (m + r) * a->out_stride + n + c, rest = columns - c;
            vf            v = vf_load_f32(sums + c);                       /* a row of sums is whole */
            if (a->bias) v = vf_add(v, vf_load_f32(bias + c));
            if (rest >= VF) vf_store(t, a->out, to, v);
            else vf_store_part(t, a->out, to, rest, v);
        }
}

/* Adds the bias, rounds, and stores. */
static inline void finish(const struct linear_args *a, int64_t m, int64_t rows, int64_t n, int64_t columns, const float *sums)
{
    if (a->out_dtype == SGK_F32) store_rows(SGK_F32, a, m, rows, n, columns, sums);
    else if (a->out_dtype == SGK_F16) store_rows(SGK_F16, a, m, rows, n, columns, sums);
    else store_rows(SGK_BF16, a, m, rows, n, columns, sums);
}

/* A block of the output: rows [m, m + rows) by columns [n, n + columns), with scratch memory of LINEAR_SCRATCH bytes. */
typedef void linear_block_fn(const struct linear_args *a, int64_t m, int64_t rows, int64_t n, int64_t columns, char *scratch);

/* The blocks of parts [begin, end). */
SGK_INLINE void blocks_of_parts(const struct linear_cpu_args *cpu, int64_t begin, int64_t end, linear_block_fn *block)
{
    const struct linear_args *a      = &cpu->a;
    const int64_t             across = (a->columns + LINEAR_BLOCK - 1) / LINEAR_BLOCK, blocks = across * cpu->row_blocks;
    for (int64_t p = begin; p < end; ++p)
        for (int64_t i = share(blocks, p, cpu->parts); i < share(blocks, p + 1, cpu->parts); ++i) {
            const int64_t n = i % across * LINEAR_BLOCK;
            const int64_t m = share(a->rows, i / across, cpu->row_blocks), behind = share(a->rows, i / across + 1, cpu->row_blocks);
            block(a, m, behind - m, n, least(LINEAR_BLOCK, a->columns - n), (char *)cpu->scratch + p * LINEAR_SCRATCH);
        }
}

#endif
