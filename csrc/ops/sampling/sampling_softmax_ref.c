/* The definition. Everything else in this folder is a faster way to get these numbers. */
#include <math.h>
#include "base/convert.h"
#include "cpu/cpu.h"
#include "sampling.h"

static void softmax_row(const struct softmax_args *a, int64_t in, float *out, double temperature)
{
    double  max = -INFINITY, sum = 0;
    int64_t first = -1;
    bool    nan   = false;
    for (int64_t i = 0; i < a->dim; ++i) {
        const double x = load_as_f64(a->logits, in + i, a->dtype);
        nan |= isnan(x);
        if (x > max) max = x, first = i;
    }
    for (int64_t i = 0; i < a->dim; ++i) sum += exp((load_as_f64(a->logits, in + i, a->dtype) - max) / temperature);
    for (int64_t i = 0; i < a->dim; ++i) {
        const double x = load_as_f64(a->logits, in + i, a->dtype);
        if (nan) out[i] = NAN;
        else if (max == -INFINITY) out[i] = 0;
        else if (temperature == 0) out[i] = i == first;
        else out[i] = (float)(exp((x - max) / temperature) / sum);
    }
}

void softmax_ref(const void *args, int64_t begin, int64_t end)
{
    const struct softmax_args *a = args;
    for (int64_t i = begin; i < end; ++i)
        softmax_row(a, i * a->logits_stride, a->out + i * a->out_stride, a->temperature_arr ? a->temperature_arr[i] : a->temperature);
}
