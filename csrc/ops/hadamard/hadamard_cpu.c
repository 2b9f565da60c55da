/* A row is transformed in f32 beside its place: first the power of two in every chunk, then the order across the chunks. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-slp-vectorize")           /* it would take the sums of fours apart: the order 28 is a tenth slower with it */
#endif
#include "hadamard.h"
#include "cpu/butterfly.h"

/*
 * Multiplies the vectors x[0], x[stride], ... by the matrix of an order, a constant at every call: which of the sums of a four each row
 * takes, and with which sign, is known to the compiler. All sums that occur are made once.
 */
SGK_INLINE void multiply(int order, float *x, int64_t stride)
{
    enum { MOST_FOURS = 10 };
    vf sums[MOST_FOURS][8];                             /* entry 0 of the four is +, bit b says that entry b + 1 is - */
    for (int g = 0; g < order / 4; ++g) {
        const vf a = vf_load_f32(x + 4 * g * stride), b = vf_load_f32(x + (4 * g + 1) * stride);
        const vf c = vf_load_f32(x + (4 * g + 2) * stride), d = vf_load_f32(x + (4 * g + 3) * stride);
        const vf sum = vf_add(a, b), difference = vf_sub(a, b), last = vf_add(c, d), other = vf_sub(c, d);
        sums[g][0] = vf_add(sum, last), sums[g][1] = vf_add(difference, last);
        sums[g][2] = vf_sub(sum, other), sums[g][3] = vf_sub(difference, other);
        sums[g][4] = vf_add(sum, other), sums[g][5] = vf_add(difference, other);
        sums[g][6] = vf_sub(sum, last), sums[g][7] = vf_sub(difference, last);
    }
#pragma GCC unroll 40
    for (int i = 0; i < order; ++i) {
        vf total = vf_zero();
#pragma GCC unroll 10
        for (int g = 0; g < order / 4; ++g) {
            const int n = hadamard_negative(order, i, 4 * g), s = (hadamard_negative(order, i, 4 * g + 1) ^ n) | (hadamard_negative(order, i, 4 * g + 2) ^ n) << 1 |
                                                                  (hadamard_negative(order, i, 4 * g + 3) ^ n) << 2;
            total = n ? butterfly_less(total, sums[g][s]) : vf_add(total, sums[g][s]);
        }
        vf_store_f32(x + i * stride, total);
    }
}

static void multiply_12(float *x, int64_t stride) { multiply(12, x, stride); }
static void multiply_20(float *x, int64_t stride) { multiply(20, x, stride); }
static void multiply_28(float *x, int64_t stride) { multiply(28, x, stride); }
static void multiply_40(float *x, int64_t stride) { multiply(40, x, stride); }

SGK_INLINE int64_t at_most(int64_t n, int64_t most) { return n < 0 ? 0 : n > most ? most
                                                                                  : n; }

SGK_INLINE void load(sgk_dtype t, float *x, const void *p, int64_t at, int64_t n, int64_t padded)
{
    int64_t i = 0;
    for (; i + VF <= n; i += VF) vf_store_f32(x + i, vf_load(t, p, at + i));
    for (; i < padded; i += VF) vf_store_f32(x + i, i < n ? vf_load_part(t, p, at + i, n - i) : vf_zero());
}

/* Whether transformed elements lie as vf_load_pairs has them. */
SGK_INLINE bool split(sgk_dtype t) { return vf_splits(t) && !BUTTERFLY_ORDERS; }

SGK_INLINE void store_two(sgk_dtype t, bool stream, bool pairs, void *p, int64_t at, vf a, vf b)
{
    if (pairs) vf_store_pairs(t, stream, p, at, a, b);
    else if (stream) vf_stream2(t, p, at, a, b);
    else vf_store2(t, p, at, a, b);
}

/* While a row is written the one at `next` is asked for. `pairs`: see split(). */
SGK_INLINE void store(sgk_dtype t, bool stream, bool pairs, void *p, int64_t at, const float *x, int64_t n, vf scale, const void *from, int64_t next)
{
    int64_t i = 0;
    for (; i + 2 * VF <= n; i += 2 * VF) {
        vf_prefetch2_once(t, stream, from, next + i);
        const vf a = vf_mul(vf_load_f32(x + i), scale), b = vf_mul(vf_load_f32(x + i + VF), scale);
        store_two(t, stream, pairs, p, at + i, a, b);
    }
    for (; i + VF <= n; i += VF) vf_store(t, p, at + i, vf_mul(vf_load_f32(x + i), scale));
    if (i < n) vf_store_part(t, p, at + i, n - i, vf_mul(vf_load_f32(x + i), scale));
}

/*
 * A piece of the last pass over a row that is one chunk: `count` vectors, h elements apart, meet and are written, two columns of them at a time. As much is asked for, from
 * `next` on.
 */
SGK_INLINE void last_piece(int count, sgk_dtype t, bool stream, void *p, int64_t at, const float *x, int64_t j, int64_t h, vf scale, const void *from, int64_t next)
{
    vf a[BUTTERFLY_VECTORS], b[BUTTERFLY_VECTORS];
    butterfly(count, false, false, SGK_F32, x, j, h, a), butterfly(count, false, false, SGK_F32, x, j + VF, h, b);
#pragma GCC unroll 16
    for (int k = 0; k < count; ++k) {
        const vf u = vf_mul(a[k], scale), v = vf_mul(b[k], scale);
        vf_prefetch2_once(t, stream, from, next + k * 2 * VF);
        store_two(t, stream, split(t), p, at + j + k * h, u, v);
    }
}

SGK_INLINE void last_pass(int count, sgk_dtype t, bool stream, void *p, int64_t at, const float *x, int64_t h, vf scale, const void *from, int64_t next)
{
    for (int64_t j = 0; j < h; j += 2 * VF) last_piece(count, t, stream, p, at, x, j, h, scale, from, next + j * count);
}

/* A whole row that is one chunk, of more vectors than meet in one pass. */
SGK_INLINE void one_chunk(sgk_dtype t, bool stream, const struct hadamard_args *a, int64_t from, int64_t to, float *x, vf scale, int64_t next)
{
    const int64_t first = BUTTERFLY_VECTORS * VF;
    butterfly_pass(BUTTERFLY_VECTORS, true, vf_splits(t), t, a->x, from, x, a->dim, VF);
    const int64_t h = a->dim > first * BUTTERFLY_VECTORS ? butterflies_rest(true, x, a->dim, a->dim) : first;
    switch (a->dim / h) {
    case 2:  last_pass(2, t, stream, a->out, to, x, h, scale, a->x, next); break;
    case 4:  last_pass(4, t, stream, a->out, to, x, h, scale, a->x, next); break;
    case 8:  last_pass(8, t, stream, a->out, to, x, h, scale, a->x, next); break;
    default: last_pass(BUTTERFLY_VECTORS, t, stream, a->out, to, x, h, scale, a->x, next); break;
    }
}

enum { PASS  = BUTTERFLY_VECTORS * VF,                  /* elements of the first pass's parts */
       WHOLE = PASS * BUTTERFLY_VECTORS };              /* of a row that two passes transform */

/* Such rows: a piece of one's last pass, then one of the next one's first, so that memory is read and written all the time. */
SGK_INLINE void whole_rows(sgk_dtype t, bool stream, const struct hadamard_args *a, int64_t begin, int64_t end, vf scale)
{
    enum { PIECES = PASS / (2 * VF),
           PARTS  = WHOLE / PIECES };
    _Alignas(64) float x[2][WHOLE];
    butterfly_pass(BUTTERFLY_VECTORS, true, vf_splits(t), t, a->x, begin * a->x_stride, x[begin % 2], WHOLE, VF);
    for (int64_t row = begin; row < end; ++row) {
        const int64_t from = (row + 1) * a->x_stride, ahead = row + 2 < end ? a->x_stride : 0;
        for (int64_t j = 0; j < PIECES; ++j) {
            last_piece(BUTTERFLY_VECTORS, t, stream, a->out, row * a->out_stride, x[row % 2], j * 2 * VF, PASS, scale, a->x, from + ahead + j * PARTS);
            if (row + 1 < end) butterfly_pass(BUTTERFLY_VECTORS, true, vf_splits(t), t, a->x, from + j * PARTS, x[(row + 1) % 2] + j * PARTS, PARTS, VF);
        }
    }
}

enum { KEPT = 4096 };                                   /* elements of a row of which two stay in the first-level cache */

/* Rows that are an order of whole chunks: the next one is transformed in steps, and behind each of them a part of this one is written, for the same reason. */
SGK_INLINE void order_rows(sgk_dtype t, bool stream, const struct hadamard_args *a, int64_t begin, int64_t end, vf scale, void (*multiply_by)(float *x, int64_t stride))
{
    enum { QUARTERS = 4 };
    const int64_t      part = (int64_t)1 << a->log2, steps = QUARTERS + part / VF, pairs = a->dim / (2 * VF);
    _Alignas(64) float x[2][KEPT];
    for (int64_t row = begin - 1; row < end; ++row) {   /* the first one is nobody's next */
        const int64_t from = (row + 1) * a->x_stride, ahead = row + 2 < end ? from + a->x_stride : from;
        float        *now = x[row & 1], *next = x[(row + 1) & 1];
        for (int64_t i = 0; i < steps; ++i) {
            const int64_t first = a->order * i / QUARTERS * part, last = a->order * (i + 1) / QUARTERS * part, done = pairs * i / steps * 2 * VF;
            if (row + 1 < end && i < QUARTERS) butterflies(vf_splits(t), t, a->x, from + first, next + first, last - first, part);
            else if (row + 1 < end) multiply_by(next + (i - QUARTERS) * VF, part);
            if (row >= begin) store(t, stream, split(t), a->out, row * a->out_stride + done, now + done, pairs * (i + 1) / steps * 2 * VF - done, scale, a->x, ahead + done);
        }
    }
}

/* Chunks shorter than a vector are padded with zeros to one, each by itself. */
SGK_INLINE void rows(sgk_dtype t, const struct hadamard_args *a, int64_t begin, int64_t end)
{
    static void (*const multiplies[])(float *x, int64_t stride) = { [12] = multiply_12, [20] = multiply_20, [28] = multiply_28, [40] = multiply_40 };
    const int64_t      chunk = (int64_t)1 << a->log2, part = chunk < VF ? VF : chunk, n = a->order * part, size = t == SGK_F32 ? 4 : 2;
    const bool         lines  = ((uintptr_t)a->out | (uintptr_t)(a->out_stride * size)) % 64 == 0;
    const bool         stream = part == chunk && lines && a->out != a->x && sgk_cpu_streams(a->out, a->rows, a->dim * size, size);
    const vf           scale  = vf_set(a->scale);
    _Alignas(64) float x[HADAMARD_MOST];
    if (a->order == 1 && a->dim == WHOLE && n == WHOLE) {
        if (stream) whole_rows(t, true, a, begin, end, scale), vf_stream_end();
        else whole_rows(t, false, a, begin, end, scale);
        return;
    }
    if (a->order > 1 && part == chunk && a->dim == n && n <= KEPT && part >= 2 * VF) {
        if (stream) order_rows(t, true, a, begin, end, scale, multiplies[a->order]), vf_stream_end();
        else order_rows(t, false, a, begin, end, scale, multiplies[a->order]);
        return;
    }
    for (int64_t row = begin; row < end; ++row) {
        const int64_t from = row * a->x_stride, to = row * a->out_stride, next = row + 1 < end ? from + a->x_stride : from;
        if (a->order == 1 && a->dim == n && n > BUTTERFLY_VECTORS * VF) {
            if (stream) one_chunk(t, true, a, from, to, x, scale, next);
            else one_chunk(t, false, a, from, to, x, scale, next);
            continue;
        }
        const bool whole = part == chunk && a->dim == n && part > VF;
        if (whole) {
            butterflies(vf_splits(t), t, a->x, from, x, n, part);
        } else {
            if (part == chunk) load(t, x, a->x, from, a->dim, n);
            for (int64_t c = 0; part > chunk && c < a->order; ++c) load(t, x + c * part, a->x, from + c * chunk, at_most(a->dim - c * chunk, chunk), part);
            butterflies(false, SGK_F32, x, 0, x, n, part);
        }
        for (int64_t i = 0; a->order > 1 && i < part; i += VF) multiplies[a->order](x + i, part);
        if (stream && whole) store(t, true, split(t), a->out, to, x, a->dim, scale, a->x, next);
        else if (stream) store(t, true, false, a->out, to, x, a->dim, scale, a->x, next);
        else if (whole) store(t, false, split(t), a->out, to, x, a->dim, scale, a->x, next);
        else if (part == chunk) store(t, false, false, a->out, to, x, a->dim, scale, a->x, next);
        for (int64_t c = 0; part > chunk && c < a->order; ++c)
            store(t, false, false, a->out, to + c * chunk, x + c * part, at_most(a->dim - c * chunk, chunk), scale, a->x, next + c * chunk);
    }
    if (stream) vf_stream_end();
}

void SGK_CPU_FN(hadamard)(const void *args, int64_t begin, int64_t end)
{
    const struct hadamard_args *a = args;
    if (a->dtype == SGK_F32) rows(SGK_F32, a, begin, end);
    else if (a->dtype == SGK_F16) rows(SGK_F16, a, begin, end);
    else rows(SGK_BF16, a, begin, end);
}
