/* The definition: in f64, rounded once. */
#include "hadamard.h"
#include "base/convert.h"
#include "cpu/cpu.h"

static void transform(double *x, int64_t n)
{
    for (int64_t h = 1; h < n; h *= 2)
        for (int64_t i = 0; i < n; ++i)
            if (!(i & h)) {
                const double a = x[i], b = x[i + h];
                x[i] = a + b, x[i + h] = a - b;
            }
}

void hadamard_ref(const void *args, int64_t begin, int64_t end)
{
    const struct hadamard_args *a     = args;
    const int64_t               chunk = (int64_t)1 << a->log2;
    double                      x[HADAMARD_MOST], sign[40][40];
    for (int i = 0; i < a->order; ++i)
        for (int c = 0; c < a->order; ++c) sign[i][c] = a->order > 1 && hadamard_negative(a->order, i, c) ? -1 : 1;
    for (int64_t row = begin; row < end; ++row) {
        for (int64_t i = 0; i < a->order * chunk; ++i) x[i] = i < a->dim ? load_as_f64(a->x, row * a->x_stride + i, a->dtype) : 0;
        for (int c = 0; c < a->order; ++c) transform(x + c * chunk, chunk);
        for (int64_t i = 0; i < a->dim; ++i) {
            double sum = 0;
            for (int c = 0; c < a->order; ++c) sum += sign[i / chunk][c] * x[c * chunk + i % chunk];
            store_f64(a->out, row * a->out_stride + i, a->dtype, sum * a->scale);
        }
    }
}
