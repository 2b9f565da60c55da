/*
 * Products of groups of rows with a matrix each, on the CPU. An item is a piece of the output; K is walked in chunks: GROUPED_CPU_COLUMNS rows of b and the
 * item's rows of a are brought to f32, times their scales, and stay in the first- and second-level caches. Lanes run along K.
 *
 *     sum(m, n) = the sum over chunks of K, in order, of the sum over lanes (a fixed tree) of the sum over steps of the chunk, in order
 *
 * An output's bits depend on its row of a, its column and the CPU level alone.
 */
#include "cpu/simd.h"
#include "grouped.h"
#include "grouped_cpu.h"

enum { CHUNK = 256,                                          /* elements of K; a multiple of every block with one scale */
       TILE_ROWS = VF == 8 ? 3 : 6,
       TILE_COLUMNS = 4 };

typedef uint32_t words __attribute__((vector_size(VF * 4)));
typedef uint8_t  codes __attribute__((vector_size(VF)));

/* VF codes to f32, exactly: sign, exponent and fraction move to f32's places, and 2^120 makes up for its bias; subnormal codes come out too. */
SGK_INLINE vf load_e4m3(const uint8_t *p)
{
    codes c;
    memcpy(&c, p, sizeof c);
    const words w = __builtin_convertvector(c, words), magnitude = w & 0x7f, bits = magnitude << 20;
    vf          v;
    memcpy(&v, &bits, sizeof v);
    v = vf_mul(v, vf_set(0x1p120f));
    words u;
    memcpy(&u, &v, sizeof u);
    u |= (w & 0x80) << 24 | ((words)(magnitude == 0x7f) & 0x7fc00000);
    memcpy(&v, &u, sizeof v);
    return v;
}

/* to[0 .. n) = from * scale, and zeros up to the next whole vector. */
SGK_INLINE void pack(sgk_dtype t, float *to, const void *from, int64_t at, int64_t n, float scale)
{
    const vf s = vf_set(scale);
    int64_t  k = 0;
    for (; k + VF <= n; k += VF) vf_store_f32(to + k, vf_mul(t == SGK_E4M3 ? load_e4m3((const uint8_t *)from + at + k) : vf_load(t, from, at + k), s));
    if (k == n) return;
    uint8_t rest[VF * 4] = { 0 };
    memcpy(rest, (const char *)from + (at + k) * (t == SGK_E4M3 ? 1 : 2), (size_t)(n - k) * (t == SGK_E4M3 ? 1 : 2));
    vf_store_f32(to + k, vf_mul(t == SGK_E4M3 ? load_e4m3(rest) : vf_load(t, rest, 0), s));
}

/* n elements from k on of a row of a (`row`, of matrix `matrix`) or of b. */
static void pack_row(const struct grouped_args *a, bool of_b, int64_t group, int64_t row, int64_t k, int64_t n, float *to)
{
    const int64_t matrix = of_b ? group : a->form == GROUPED_MASKED ? group
                                                                    : 0;
    const void   *from   = of_b ? a->b : a->a;
    const int64_t at     = matrix * (of_b ? a->b_group : a->a_group) + row * (of_b ? a->b_stride : a->a_stride);
    if (a->scaling == GROUPED_PLAIN) {
        if (a->dtype == SGK_BF16) pack(SGK_BF16, to, from, at + k, n, 1);
        else pack(SGK_F16, to, from, at + k, n, 1);
        return;
    }
    const int64_t every = a->scaling == GROUPED_MX ? GROUPED_MX_BLOCK : GROUPED_BLOCK;
    for (int64_t e = 0; e < n; e += every) {
        float scale;
        if (a->scaling == GROUPED_MX) scale = of_b ? grouped_mx_b(a, group, row, k + e) : grouped_mx_a(a, group, row, k + e);
        else if (of_b) scale = ((const float *)a->sb)[group * a->sb_group + row / GROUPED_BLOCK * a->sb_block + (k + e) / GROUPED_BLOCK * a->sb_step];
        else scale = ((const float *)a->sa)[matrix * a->sa_group + row * a->sa_row + (k + e) / GROUPED_BLOCK * a->sa_step];
        pack(SGK_E4M3, to + e, from, at + k + e, n - e < every ? n - e : every, scale);
    }
}

/* sums[r][0 .. 4) += rows of x by four rows of w, n elements: a multiple of VF. */
SGK_INLINE void tile(int rows, const float *x, const float *w, int64_t n, float *sums)
{
    vf sum[TILE_ROWS][TILE_COLUMNS];
    #pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
        #pragma GCC unroll 4
        for (int c = 0; c < TILE_COLUMNS; ++c) sum[r][c] = vf_zero();
    for (int64_t k = 0; k < n; k += VF) {
        vf v[TILE_ROWS];
        #pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) v[r] = vf_load_f32(x + r * CHUNK + k);
        #pragma GCC unroll 4
        for (int c = 0; c < TILE_COLUMNS; ++c) {
            const vf u = vf_load_f32(w + c * CHUNK + k);
            #pragma GCC unroll 6
            for (int r = 0; r < rows; ++r) sum[r][c] = vf_fma(v[r], u, sum[r][c]);
        }
    }
    #pragma GCC unroll 6
    for (int r = 0; r < rows; ++r) {
        float *to = sums + r * GROUPED_CPU_COLUMNS;
        v4_store(to, v4_load(to) + vf_sums4(sum[r][0], sum[r][1], sum[r][2], sum[r][3]));
    }
}

static void tile_any(int64_t rows, const float *x, const float *w, int64_t n, float *sums)
{
    switch (rows) {
    case 1: tile(1, x, w, n, sums); break;
    case 2: tile(2, x, w, n, sums); break;
    case 3: tile(3, x, w, n, sums); break;
#if !defined(__AVX2__) || defined(__AVX512F__)
    case 4: tile(4, x, w, n, sums); break;
    case 5: tile(5, x, w, n, sums); break;
    case 6: tile(6, x, w, n, sums); break;
#endif
    }
}

/* Rows of one group, or of none. */
static void piece(const struct grouped_args *a, struct grouped_item t)
{
    if (t.group < 0) return;
    float w[GROUPED_CPU_COLUMNS * CHUNK], x[GROUPED_CPU_ROWS * CHUNK], sums[GROUPED_CPU_ROWS * GROUPED_CPU_COLUMNS];
    memset(sums, 0, sizeof sums);
    for (int64_t k = 0; k < a->depth; k += CHUNK) {
        const int64_t n = a->depth - k < CHUNK ? a->depth - k : CHUNK, whole = (n + VF - 1) / VF * VF;
        for (int64_t r = 0; r < t.rows; ++r) pack_row(a, false, t.group, t.row + r, k, n, x + r * CHUNK);
        for (int64_t c = 0; c < t.columns; ++c) pack_row(a, true, t.group, t.column + c, k, n, w + c * CHUNK);
        for (int64_t c = t.columns; c % TILE_COLUMNS; ++c) memset(w + c * CHUNK, 0, sizeof(float) * CHUNK);
        for (int64_t c = 0; c < t.columns; c += TILE_COLUMNS)
            for (int64_t r = 0; r < t.rows; r += TILE_ROWS)
                tile_any(t.rows - r < TILE_ROWS ? t.rows - r : TILE_ROWS, x + r * CHUNK, w + c * CHUNK, whole, sums + r * GROUPED_CPU_COLUMNS + c);
    }
    for (int64_t r = 0; r < t.rows; ++r)
        for (int64_t c = 0; c < t.columns; ++c)
            store_f32(a->out_dtype, a->out, (a->form == GROUPED_MASKED ? t.group * a->out_group : 0) + (t.row + r) * a->out_stride + t.column + c, sums[r * GROUPED_CPU_COLUMNS + c]);
}

void SGK_CPU_FN(grouped)(const void *args, int64_t begin, int64_t end)
{
    const struct grouped_cpu_args *cpu = args;
    const struct grouped_args     *a   = &cpu->a;
    for (int64_t i = begin; i < end; ++i) {
        struct grouped_item t = grouped_item_of(cpu, i);
        if (a->form != GROUPED_INDICES) {
            piece(a, t);
            continue;
        }
        for (const int64_t behind = t.row + t.rows; t.row < behind; t.row += t.rows) {      /* runs with one index */
            t.group = a->layout[t.row];
            for (t.rows = 1; t.row + t.rows < behind && a->layout[t.row + t.rows] == t.group;) ++t.rows;
            piece(a, t);
        }
    }
}
