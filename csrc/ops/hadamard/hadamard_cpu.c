/* A row is transformed in f32 beside its place: first the power of two in every chunk, then the order across the chunks. */
#include "hadamard.h"
#include "cpu/butterfly.h"

enum { MOST_ORDER = 40,
       FOURS      = MOST_ORDER / 4 };

/* Row i of the matrix, four entries at a time: bit b says that entry b of the four is -1. */
typedef struct { uint8_t four[MOST_ORDER][FOURS]; } signs;

static void signs_make(signs *s, int order)
{
    for (int i = 0; i < order; ++i)
        for (int j = 0; j < order; ++j) s->four[i][j / 4] = (uint8_t)((j % 4 ? s->four[i][j / 4] : 0) | hadamard_negative(order, i, j) << j % 4);
}

/* Multiplies the vectors x[0], x[stride], ...; all sums of four that occur are made once. */
SGK_INLINE void multiply(float *x, int64_t stride, int order, const signs *s)
{
    vf sums[FOURS][16];
    for (int g = 0; g < order / 4; ++g) {
        const vf a = vf_load_f32(x + 4 * g * stride), b = vf_load_f32(x + (4 * g + 1) * stride);
        const vf c = vf_load_f32(x + (4 * g + 2) * stride), d = vf_load_f32(x + (4 * g + 3) * stride), zero = vf_zero();
        const vf lo[4] = { vf_add(a, b), vf_sub(b, a), vf_sub(a, b), vf_sub(vf_sub(zero, a), b) };
        const vf hi[4] = { vf_add(c, d), vf_sub(d, c), vf_sub(c, d), vf_sub(vf_sub(zero, c), d) };
        for (int i = 0; i < 16; ++i) sums[g][i] = vf_add(lo[i % 4], hi[i / 4]);
    }
    for (int i = 0; i < order; ++i) {
        vf sum = sums[0][s->four[i][0]];
        for (int g = 1; g < order / 4; ++g) sum = vf_add(sum, sums[g][s->four[i][g]]);
        vf_store_f32(x + i * stride, sum);
    }
}

SGK_INLINE int64_t at_most(int64_t n, int64_t most) { return n < 0 ? 0 : n > most ? most
                                                                                  : n; }

SGK_INLINE void load(sgk_dtype t, float *x, const void *p, int64_t at, int64_t n, int64_t padded)
{
    int64_t i = 0;
    for (; i + VF <= n; i += VF) vf_store_f32(x + i, vf_load(t, p, at + i));
    for (; i < padded; i += VF) vf_store_f32(x + i, i < n ? vf_load_part(t, p, at + i, n - i) : vf_zero());
}

SGK_INLINE void store(sgk_dtype t, void *p, int64_t at, const float *x, int64_t n, vf scale)
{
    int64_t i = 0;
    for (; i + VF <= n; i += VF) vf_store(t, p, at + i, vf_mul(vf_load_f32(x + i), scale));
    if (i < n) vf_store_part(t, p, at + i, n - i, vf_mul(vf_load_f32(x + i), scale));
}

/* Chunks shorter than a vector are padded with zeros to one, each by itself. */
SGK_INLINE void rows(sgk_dtype t, const struct hadamard_args *a, int64_t begin, int64_t end)
{
    const int64_t chunk = (int64_t)1 << a->log2, part = chunk < VF ? VF : chunk, n = a->order * part;
    const vf      scale = vf_set(a->scale);
    float         x[HADAMARD_MOST];
    lane_matrix   matrix;
    signs         order_signs;
    lane_matrix_make(&matrix);
    if (a->order > 1) signs_make(&order_signs, a->order);
    for (int64_t row = begin; row < end; ++row) {
        const int64_t from = row * a->x_stride, to = row * a->out_stride;
        if (part == chunk) load(t, x, a->x, from, a->dim, n);
        for (int64_t c = 0; part > chunk && c < a->order; ++c) load(t, x + c * part, a->x, from + c * chunk, at_most(a->dim - c * chunk, chunk), part);
        butterflies(x, n, part, &matrix);
        for (int64_t i = 0; a->order > 1 && i < part; i += VF) multiply(x + i, part, a->order, &order_signs);
        if (part == chunk) store(t, a->out, to, x, a->dim, scale);
        for (int64_t c = 0; part > chunk && c < a->order; ++c) store(t, a->out, to + c * chunk, x + c * part, at_most(a->dim - c * chunk, chunk), scale);
    }
}

void SGK_CPU_FN(hadamard)(const void *args, int64_t begin, int64_t end)
{
    const struct hadamard_args *a = args;
    if (a->dtype == SGK_F32) rows(SGK_F32, a, begin, end);
    else if (a->dtype == SGK_F16) rows(SGK_F16, a, begin, end);
    else rows(SGK_BF16, a, begin, end);
}
