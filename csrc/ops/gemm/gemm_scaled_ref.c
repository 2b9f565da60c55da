/* The definition. Everything else in this folder is a faster way to get these numbers. */
#include "base/convert.h"
#include "cpu/cpu.h"
#include "gemm_scaled.h"

/* The sum of products: exact for integers (up to 32 bits, beyond which it wraps), in double for the 8-bit floats, whose codes have these values. */
static double sum_of_products(const struct scaled_args *a, const double *x_value, const double *w_value, const uint8_t *x, const uint8_t *w)
{
    if (a->input_dtype == SGK_I8) {
        uint32_t sum = 0;
        for (int64_t k = 0; k < a->depth; ++k) sum += (uint32_t)((int8_t)x[k] * (int8_t)w[k]);
        return (int32_t)sum;
    }
    double sum = 0;
    for (int64_t k = 0; k < a->depth; ++k) sum += x_value[x[k]] * w_value[w[k]];
    return sum;
}

void scaled_mm_ref(const void *args, int64_t begin, int64_t end)
{
    const struct scaled_cpu_args *cpu   = args;
    const struct scaled_args     *a     = &cpu->a;
    const int64_t                 first = a->columns * begin / cpu->parts, last = a->columns * end / cpu->parts;
    uint8_t                       codes[256];
    double                        x_value[256], w_value[256];
    for (int c = 0; c < 256; ++c) codes[c] = (uint8_t)c;
    for (int c = 0; c < 256; ++c) x_value[c] = load_as_f64(codes, c, a->input_dtype), w_value[c] = load_as_f64(codes, c, a->weight_dtype);
    for (int64_t b = 0; b < a->batch; ++b)
        for (int64_t m = 0; m < a->rows; ++m)
            for (int64_t n = first; n < last; ++n) {
                const uint8_t *x = (const uint8_t *)a->input + b * a->input_batch + m * a->input_stride;
                const uint8_t *w = (const uint8_t *)a->weight + b * a->weight_batch + n * a->weight_stride;
                double         v = sum_of_products(a, x_value, w_value, x, w);
                v *= a->weight_scales[n * a->weight_scale_step];
                v *= a->input_scales[m * a->input_scale_step];
                if (a->bias) v += load_as_f64(a->bias, n, a->out_dtype);
                store_f64(a->out, b * a->out_batch + m * a->out_stride + n, a->out_dtype, v);
            }
}
