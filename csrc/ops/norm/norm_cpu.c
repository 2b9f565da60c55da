#include <math.h>
#include "cpu/simd.h"
#include "norm.h"

/* The elements of a row are taken in steps of two vectors, whose results are stored together. */
enum { STEP = 2 * VF };

SGK_INLINE int64_t place(const struct norm_args *a, const int64_t *stride, int64_t row)
{
    if (a->middle == 1 && a->last == 1) return row * stride[0];
    return row / (a->middle * a->last) * stride[0] + row / a->last % a->middle * stride[1] + row % a->last * stride[2];
}

typedef struct { int64_t in, out, other; } places;

SGK_INLINE places places_of(const struct norm_args *a, int64_t row)
{
    return (places){ place(a, a->input_stride, row), place(a, a->output_stride, row), place(a, a->other_stride, row) };
}

/* The first n of VF elements; n is VF but at the end of a row. */
SGK_INLINE vf load(sgk_dtype t, const void *p, int64_t i, int64_t n) { return n == VF ? vf_load(t, p, i) : vf_load_part(t, p, i, n); }
SGK_INLINE void store(sgk_dtype t, void *p, int64_t i, int64_t n, vf v)
{
    if (n == VF) vf_store(t, p, i, v);
    else vf_store_part(t, p, i, n, v);
}

#define ADDS(form)   ((form) == NORM_RMS_ADD || (form) == NORM_LAYER_ADD)
#define LAYERS(form) ((form) == NORM_LAYER || (form) == NORM_LAYER_ADD)

/* n of VF elements of x, in f32: with an addition the unrounded sum. It is made in every pass rather than kept: the row is in the first-level cache by then. */
SGK_INLINE vf value(sgk_dtype t, int form, const struct norm_args *a, places at, int64_t d, int64_t n)
{
    const vf x = load(t, a->input, at.in + d, n);
    return ADDS(form) ? vf_add(x, load(t, a->other, at.other + d, n)) : x;
}

/* A step of x. */
SGK_INLINE void values(sgk_dtype t, int form, const struct norm_args *a, places at, int64_t d, vf *x, vf *y)
{
    vf u, v;
    vf_load_pairs(t, a->input, at.in + d, x, y);
    if (!ADDS(form)) return;
    vf_load_pairs(t, a->other, at.other + d, &u, &v);
    *x = vf_add(*x, u), *y = vf_add(*y, v);
}

/* Of a row: of x for layer norms, of its squares otherwise. Two chains, so that the additions overlap. */
typedef struct { vf a, b; } sums;

SGK_INLINE void add_step(sgk_dtype t, int form, const struct norm_args *a, places at, int64_t d, sums *s)
{
    vf x, y;
    values(t, form, a, at, d, &x, &y);
    if (LAYERS(form)) s->a = vf_add(s->a, x), s->b = vf_add(s->b, y);
    else s->a = vf_fma(x, x, s->a), s->b = vf_fma(y, y, s->b);
}
SGK_INLINE void add_part(sgk_dtype t, int form, const struct norm_args *a, places at, int64_t d, sums *s)
{
    const vf x = value(t, form, a, at, d, a->dim - d < VF ? a->dim - d : VF);
    s->a       = LAYERS(form) ? vf_add(s->a, x) : vf_fma(x, x, s->a);
}
SGK_INLINE sums sums_of(sgk_dtype t, int form, const struct norm_args *a, places at)
{
    sums    s = { vf_zero(), vf_zero() };
    int64_t d = 0;
    for (; d + STEP <= a->dim; d += STEP) add_step(t, form, a, at, d, &s);
    for (; d < a->dim; d += VF) add_part(t, form, a, at, d, &s);
    return s;
}

/* The same of squares of x - mean. */
SGK_INLINE void add_square_step(sgk_dtype t, int form, const struct norm_args *a, places at, int64_t d, vf mean, sums *s)
{
    vf x, y;
    values(t, form, a, at, d, &x, &y);
    x = vf_sub(x, mean), y = vf_sub(y, mean);
    s->a = vf_fma(x, x, s->a), s->b = vf_fma(y, y, s->b);
}
/* The lanes behind the row are 0 and must stay so. */
SGK_INLINE void add_square_part(sgk_dtype t, int form, const struct norm_args *a, places at, int64_t d, vf mean, sums *s)
{
    const int64_t n = a->dim - d < VF ? a->dim - d : VF;
    float         means[VF];
    vf_store_f32(means, mean);
    const vf x = vf_sub(value(t, form, a, at, d, n), load(SGK_F32, means, 0, n));
    s->a       = vf_fma(x, x, s->a);
}
SGK_INLINE sums squares_of(sgk_dtype t, int form, const struct norm_args *a, places at, vf mean)
{
    sums    s = { vf_zero(), vf_zero() };
    int64_t d = 0;
    for (; d + STEP <= a->dim; d += STEP) add_square_step(t, form, a, at, d, mean, &s);
    for (; d < a->dim; d += VF) add_square_part(t, form, a, at, d, mean, &s);
    return s;
}

/* n vectors of g, a weight, times silu of the gate. */
SGK_INLINE void gated(sgk_dtype t, int n, vf *g, const vf *gate)
{
    vf over[2];
    for (int i = 0; i < n; ++i) over[i] = vf_mul(gate[i], vf_set(-1.44269504f));
    vf_one_plus_exp2(t, n, over);
    for (int i = 0; i < n; ++i) g[i] = vf_mul(g[i], vf_div(gate[i], over[i]));
}

/* n of VF elements. Each is written behind its own last use, so in-place is safe. */
SGK_INLINE void write_part(sgk_dtype t, int form, const struct norm_args *a, places at, int64_t d, int64_t n, vf mean, vf scale)
{
    const vf x = value(t, form, a, at, d, n);
    vf       u;
    if (LAYERS(form)) {
        u = vf_mul(vf_mul(vf_sub(x, mean), scale), load(t, a->weight, d, n));
        if (a->bias) u = vf_add(u, load(t, a->bias, d, n));
    } else {
        vf g = a->weight ? vf_add(vf_set(a->shift), load(t, a->weight, d, n)) : vf_set(a->shift);
        if (form == NORM_RMS_GATED) {
            const vf gate = load(t, a->other, at.other + d, n);
            gated(t, 1, &g, &gate);
        }
        u = vf_mul(vf_mul(x, scale), g);
    }
    if (ADDS(form)) store(t, a->other, at.other + d, n, x);
    store(t, a->output, at.out + d, n, u);
}

SGK_INLINE void write_step(sgk_dtype t, int form, bool flushed, bool stream, const struct norm_args *a, places at, int64_t d, vf mean, vf scale)
{
    vf x, y, u, v, g, h;
    values(t, form, a, at, d, &x, &y);
    if (LAYERS(form)) {
        vf_load_pairs(t, a->weight, d, &g, &h);
        u = vf_mul(vf_mul(vf_sub(x, mean), scale), g), v = vf_mul(vf_mul(vf_sub(y, mean), scale), h);
        if (a->bias) {
            vf_load_pairs(t, a->bias, d, &g, &h);
            u = vf_add(u, g), v = vf_add(v, h);
        }
    } else {
        const vf shift = vf_set(a->shift);
        g = h = shift;
        if (a->weight) {
            vf_load_pairs(t, a->weight, d, &g, &h);
            g = vf_add(shift, g), h = vf_add(shift, h);
        }
        if (form == NORM_RMS_GATED) {
            vf both[2] = { g, h }, gate[2];
            vf_load_pairs(t, a->other, at.other + d, &gate[0], &gate[1]);
            gated(t, 2, both, gate);
            g = both[0], h = both[1];
        }
        u = vf_mul(vf_mul(x, scale), g), v = vf_mul(vf_mul(y, scale), h);
    }
    if (ADDS(form)) vf_store_pairs(t, false, a->other, at.other + d, x, y);
    vf_store_pairs_of(flushed, t, stream, a->output, at.out + d, u, v);
}

enum { AHEAD = 8192 };                                  /* bytes that are asked for in time */

/* Layer norms of one input go two rows ahead. With an addition rows would no longer stay in the first-level cache. */
#define TWO_AHEAD(form) ((form) == NORM_LAYER)

/* Where rows begin: the one that is written, the next one, the one that is added up, and two of which the end and the begin are asked for. */
typedef struct { places now, next, ahead, later[2]; } rows_under_way;

/* Steps [first, last) of write_row(); what is asked for begins at `soon`. */
SGK_INLINE void write_steps(sgk_dtype t, int form, bool flushed, bool stream, bool more, const struct norm_args *a, const rows_under_way *r, places soon, int64_t first, int64_t last, vf mean, vf scale,
                            vf next_mean, sums *s, sums *squares)
{
    for (int64_t d = first; d < last; d += STEP) {
        if (more) {
            vf_prefetch2_once(t, stream && !ADDS(form), a->input, soon.in + d);
            if (ADDS(form) || form == NORM_RMS_GATED) vf_prefetch2_once(t, stream && !ADDS(form), a->other, soon.other + d);
            add_step(t, form, a, r->ahead, d, s);
            if (TWO_AHEAD(form)) add_square_step(t, form, a, r->next, d, next_mean, squares);
        }
        write_step(t, form, flushed, stream, a, r->now, d, mean, scale);
    }
}

/*
 * Writes a row and, with `more`, adds up the next one, or the one behind it and the squares of the next one: so memory is read and written all the time, and each element once.
 */
SGK_INLINE void write_row(sgk_dtype t, int form, bool flushed, bool stream, bool more, const struct norm_args *a, const rows_under_way *r, vf mean, vf scale, vf next_mean, sums *s, sums *squares)
{
    const int64_t far = AHEAD / (t == SGK_F32 ? 4 : 2) % a->dim, whole = a->dim - a->dim % STEP, turn = more ? (a->dim - far) / STEP * STEP : 0;
    const places  soon[2] = { { r->later[0].in + far, 0, r->later[0].other + far }, { r->later[1].in + far - a->dim, 0, r->later[1].other + far - a->dim } };
    *s = *squares = (sums){ vf_zero(), vf_zero() };
    if (turn) write_steps(t, form, flushed, stream, more, a, r, soon[0], 0, turn, mean, scale, next_mean, s, squares);
    if (turn < whole) write_steps(t, form, flushed, stream, more, a, r, soon[1], turn, whole, mean, scale, next_mean, s, squares);
    for (int64_t d = whole; d < a->dim; d += VF) {
        if (more) {
            add_part(t, form, a, r->ahead, d, s);
            if (TWO_AHEAD(form)) add_square_part(t, form, a, r->next, d, next_mean, squares);
        }
        write_part(t, form, a, r->now, d, a->dim - d < VF ? a->dim - d : VF, mean, scale);
    }
}

SGK_INLINE float mean_of(const struct norm_args *a, sums s) { return vf_sum(vf_add(s.a, s.b)) / (float)a->dim; }
SGK_INLINE float scale_of(const struct norm_args *a, sums squares) { return 1 / sqrtf(mean_of(a, squares) + a->eps); }

SGK_INLINE void rows(sgk_dtype t, int form, bool flushed, const struct norm_args *a, int64_t begin, int64_t end)
{
    const int64_t  size = t == SGK_F32 ? 4 : 2, far = 1 + TWO_AHEAD(form) + AHEAD / size / a->dim, last = end - 1;
    const bool     lines  = ((uintptr_t)a->output | (uintptr_t)(a->output_stride[0] * size)) % 64 == 0 && a->middle == 1 && a->last == 1;
    const bool     stream = a->stream && lines;
    rows_under_way r      = { .next = places_of(a, begin) };
    sums           s = sums_of(t, form, a, r.next), squares = s;
    r.ahead = begin < last ? places_of(a, begin + 1) : r.next, r.later[1] = begin + far < end ? places_of(a, begin + far) : r.next;
    float next_mean = LAYERS(form) ? mean_of(a, s) : 0;
    if (TWO_AHEAD(form)) squares = squares_of(t, form, a, r.next, vf_set(next_mean));
    if (TWO_AHEAD(form) && begin < last) s = sums_of(t, form, a, r.ahead);
    for (int64_t i = begin; i < end; ++i) {
        const int64_t ahead = i + 1 + TWO_AHEAD(form);
        r.now = r.next, r.later[0] = r.later[1];
        r.next = TWO_AHEAD(form) ? r.ahead : r.next;
        if (ahead < end) r.ahead = places_of(a, ahead);
        if (!TWO_AHEAD(form)) r.next = r.ahead;
        if (i + far + 1 < end) r.later[1] = places_of(a, i + far + 1);
        const float mean = next_mean;
        if (LAYERS(form) && !TWO_AHEAD(form)) squares = squares_of(t, form, a, r.now, vf_set(mean));
        const float scale = scale_of(a, LAYERS(form) ? squares : s);
        if (TWO_AHEAD(form)) next_mean = mean_of(a, s);
        if (i == last) write_row(t, form, flushed, false, false, a, &r, vf_set(mean), vf_set(scale), vf_set(next_mean), &s, &squares);
        else if (stream) write_row(t, form, flushed, true, true, a, &r, vf_set(mean), vf_set(scale), vf_set(next_mean), &s, &squares);
        else write_row(t, form, flushed, false, true, a, &r, vf_set(mean), vf_set(scale), vf_set(next_mean), &s, &squares);
        if (LAYERS(form) && !TWO_AHEAD(form)) next_mean = mean_of(a, s);
    }
    if (stream) vf_stream_end();
}

/*
 * Rows of bf16 that are written elsewhere go without a look at what is subnormal, SOME at a time, and once more where something was. A gate's exponential would be. As a begin costs
 * some microseconds, fewer at a time are slower.
 */
#if defined(VF_FLUSHES)
enum { SOME = 4096 };
#define FLUSHED_ROWS(name, form) \
    static __attribute__((noinline)) void name##_rows(bool flushed, const struct norm_args *args, int64_t begin, int64_t end) \
    { \
        const struct norm_args a = *args; \
        flushed ? rows(SGK_BF16, form, true, &a, begin, end) : rows(SGK_BF16, form, false, &a, begin, end); \
    } \
    SGK_INLINE bool name##_flushed(const struct norm_args *a, int64_t begin, int64_t end) \
    { \
        if (a->dtype != SGK_BF16 || a->output == a->input) return false; \
        for (int64_t first = begin, last; first < end; first = last) { \
            last                  = end - first < 2 * SOME ? end : first + SOME; \
            const unsigned before = vf_flush_begin(); \
            name##_rows(true, a, first, last); \
            if (!vf_flush_end(before)) name##_rows(false, a, first, last); \
        } \
        return true; \
    }
#else
#define FLUSHED_ROWS(name, form) \
    SGK_INLINE bool name##_flushed(const struct norm_args *a, int64_t begin, int64_t end) \
    { \
        (void)a, (void)begin, (void)end; \
        return false; \
    }
#endif
FLUSHED_ROWS(rms, NORM_RMS)
FLUSHED_ROWS(layer, NORM_LAYER)

/* One tight loop for each format; a head of 128 as a constant. No store can change the copy of the arguments. */
#define FORM(name, form) \
    void SGK_CPU_FN(name)(const void *args, int64_t begin, int64_t end) \
    { \
        struct norm_args a = *(const struct norm_args *)args; \
        if (form == NORM_RMS && rms_flushed(&a, begin, end)) return; \
        if (form == NORM_LAYER && layer_flushed(&a, begin, end)) return; \
        if (form == NORM_RMS_GATED && a.dtype == SGK_BF16 && a.dim == 128) a.dim = 128, rows(SGK_BF16, form, false, &a, begin, end); \
        else if (a.dtype == SGK_F32) rows(SGK_F32, form, false, &a, begin, end); \
        else if (a.dtype == SGK_F16) rows(SGK_F16, form, false, &a, begin, end); \
        else rows(SGK_BF16, form, false, &a, begin, end); \
    }
FORM(rmsnorm, NORM_RMS)
FORM(fused_add_rmsnorm, NORM_RMS_ADD)
FORM(fused_rmsnorm_gated, NORM_RMS_GATED)
FORM(layernorm, NORM_LAYER)
FORM(fused_add_layernorm, NORM_LAYER_ADD)
