/* The definition. Everything else in this folder is a faster way to get these numbers. */
#include <math.h>
#include "act.h"
#include "base/convert.h"
#include "cpu/cpu.h"

static double silu(double a) { return a == -INFINITY ? -0.0 : a / (1 + exp(-a)); }
static double gelu(double a) { return a == -INFINITY ? -0.0 : a / 2 * erfc(-a / sqrt(2)); }
static double gelu_quick(double a) { return a == -INFINITY ? -0.0 : a / (1 + exp(-1.702 * a)); }
static double gelu_tanh(double a)
{
    const double u = 0.7978845608028654 * (a + 0.044715 * a * a * a);
    return a == -INFINITY ? -0.0 : a / (1 + exp(-2 * u));           /* a / 2 * (1 + tanh(u)) without its cancellation */
}

/* Item n is block n % blocks of row n / blocks. */
static void act_blocks(double (*act)(double), bool gated, const struct act_args *a, int64_t begin, int64_t end)
{
    const int64_t blocks = (a->dim + ACT_BLOCK - 1) / ACT_BLOCK;
    for (int64_t n = begin; n < end; ++n) {
        const int64_t row = n / blocks, in = row * a->input_stride, out = row * a->out_stride;
        const int64_t first = n % blocks * ACT_BLOCK, last = first + ACT_BLOCK < a->dim ? first + ACT_BLOCK : a->dim;
        if (a->expert_ids && load_index(a->expert_ids, row / a->expert_step, a->wide_ids ? SGK_I64 : SGK_I32) == -1) continue;
        for (int64_t d = first; d < last; ++d)
            store_f64(a->out, out + d, a->dtype,
                      act(load_as_f64(a->input, in + d, a->dtype)) * (gated ? load_as_f64(a->input, in + a->dim + d, a->dtype) : 1));
    }
}

void silu_and_mul_ref(const void *args, int64_t begin, int64_t end) { act_blocks(silu, true, args, begin, end); }
void gelu_and_mul_ref(const void *args, int64_t begin, int64_t end) { act_blocks(gelu, true, args, begin, end); }
void gelu_tanh_and_mul_ref(const void *args, int64_t begin, int64_t end) { act_blocks(gelu_tanh, true, args, begin, end); }
void gelu_quick_ref(const void *args, int64_t begin, int64_t end) { act_blocks(gelu_quick, false, args, begin, end); }
