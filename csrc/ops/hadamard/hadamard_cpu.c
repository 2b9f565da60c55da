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

/* The same across chunks that are shorter than a vector: they are laid out with a vector for each. */
SGK_INLINE void multiply_short(float *x, int64_t chunk, int order, const signs *s)
{
    float wide[MOST_ORDER * VF] = { 0 };
    for (int c = 0; c < order; ++c) memcpy(wide + c * VF, x + c * chunk, (size_t)chunk * sizeof *x);
    multiply(wide, VF, order, s);
    for (int c = 0; c < order; ++c) memcpy(x + c * chunk, wide + c * VF, (size_t)chunk * sizeof *x);
}

SGK_INLINE void rows(sgk_dtype t, const struct hadamard_args *a, int64_t begin, int64_t end)
{
    const int64_t chunk = (int64_t)1 << a->log2, part = a->order == 1 && chunk < VF ? VF : chunk, n = a->order * part, whole = a->dim - a->dim % VF;
    float         x[HADAMARD_MOST];
    lane_matrix   matrix;
    signs         order_signs;
    lane_matrix_make(&matrix, part < VF ? part : VF);
    if (a->order > 1) signs_make(&order_signs, a->order);
    for (int64_t row = begin; row < end; ++row) {
        const int64_t from = row * a->x_stride, to = row * a->out_stride;
        for (int64_t i = 0; i < whole; i += VF) vf_store_f32(x + i, vf_load(t, a->x, from + i));
        for (int64_t i = whole; i < n; i += VF) vf_store_f32(x + i, i < a->dim ? vf_load_part(t, a->x, from + i, a->dim - i) : vf_zero());
        butterflies(x, n, part, &matrix);
        if (a->order > 1 && chunk < VF) multiply_short(x, chunk, a->order, &order_signs);
        for (int64_t i = 0; a->order > 1 && chunk >= VF && i < chunk; i += VF) multiply(x + i, chunk, a->order, &order_signs);
        const vf scale = vf_set(a->scale);
        for (int64_t i = 0; i < whole; i += VF) vf_store(t, a->out, to + i, vf_mul(vf_load_f32(x + i), scale));
        if (whole < a->dim) vf_store_part(t, a->out, to + whole, a->dim - whole, vf_mul(vf_load_f32(x + whole), scale));
    }
}

void SGK_CPU_FN(hadamard)(const void *args, int64_t begin, int64_t end)
{
    const struct hadamard_args *a = args;
    if (a->dtype == SGK_F32) rows(SGK_F32, a, begin, end);
    else if (a->dtype == SGK_F16) rows(SGK_F16, a, begin, end);
    else rows(SGK_BF16, a, begin, end);
}
