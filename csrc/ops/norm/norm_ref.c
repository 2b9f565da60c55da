/* The definition. Everything else in this folder is a faster way to get these numbers. */
#include <math.h>
#include "base/convert.h"
#include "cpu/cpu.h"
#include "norm.h"

static int64_t place(const struct norm_args *a, const int64_t *stride, int64_t row)
{
    return row / (a->middle * a->last) * stride[0] + row / a->last % a->middle * stride[1] + row % a->last * stride[2];
}

static double weight(const struct norm_args *a, int64_t d) { return a->shift + (a->weight ? load_as_f64(a->weight, d, a->dtype) : 0); }
static double silu(double g) { return g / (1 + exp(-g)); }

/* x, which is input + other when `add`. The norm is taken of the exact sum; only what is stored to other is rounded. */
static double value(const struct norm_args *a, int64_t in, int64_t other, bool add)
{
    const double x = load_as_f64(a->input, in, a->dtype);
    return add ? x + load_as_f64(a->other, other, a->dtype) : x;
}

static void rms(const struct norm_args *a, int64_t row, bool add, bool gated)
{
    const int64_t in = place(a, a->input_stride, row), out = place(a, a->output_stride, row), other = place(a, a->other_stride, row);
    double        sum = 0;
    for (int64_t d = 0; d < a->dim; ++d) {
        const double x = value(a, in + d, other + d, add);
        sum += x * x;
    }
    const double scale = 1 / sqrt(sum / (double)a->dim + a->eps);
    for (int64_t d = 0; d < a->dim; ++d) {
        const double x    = value(a, in + d, other + d, add);
        const double gate = gated ? silu(load_as_f64(a->other, other + d, a->dtype)) : 1;
        if (add) store_f64(a->other, other + d, a->dtype, x);
        store_f64(a->output, out + d, a->dtype, x * scale * weight(a, d) * gate);
    }
}

static void layer(const struct norm_args *a, int64_t row, bool add)
{
    const int64_t in = place(a, a->input_stride, row), out = place(a, a->output_stride, row), other = place(a, a->other_stride, row);
    double        sum = 0, square = 0;
    for (int64_t d = 0; d < a->dim; ++d) sum += value(a, in + d, other + d, add);
    const double mean = sum / (double)a->dim;
    for (int64_t d = 0; d < a->dim; ++d) {
        const double x = value(a, in + d, other + d, add) - mean;
        square += x * x;
    }
    const double scale = 1 / sqrt(square / (double)a->dim + a->eps);
    for (int64_t d = 0; d < a->dim; ++d) {
        const double x = value(a, in + d, other + d, add);
        if (add) store_f64(a->other, other + d, a->dtype, x);
        store_f64(a->output, out + d, a->dtype, (x - mean) * scale * weight(a, d) + (a->bias ? load_as_f64(a->bias, d, a->dtype) : 0));
    }
}

void rmsnorm_ref(const void *args, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; ++i) rms(args, i, false, false);
}
void fused_add_rmsnorm_ref(const void *args, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; ++i) rms(args, i, true, false);
}
void fused_rmsnorm_gated_ref(const void *args, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; ++i) rms(args, i, false, true);
}
void layernorm_ref(const void *args, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; ++i) layer(args, i, false);
}
void fused_add_layernorm_ref(const void *args, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; ++i) layer(args, i, true);
}
