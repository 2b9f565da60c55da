/* The definition of fused_qk_norm_rope. */
#include <math.h>
#include "base/convert.h"
#include "cpu/cpu.h"
#include "rope_norm.h"

static double frequency(const struct qk_norm_rope_args *a, int64_t i)
{
    const double f = pow(a->base, -2.0 * (double)i / a->rot_dim);
    if (!a->scaled) return f;
    const double ramp = fmin(fmax(((double)i - a->low) / ((double)a->high - a->low), 0), 1);
    return f / a->factor * ramp + f * (1 - ramp);
}

/* Items are tokens. */
void qk_norm_rope_ref(const void *args, int64_t begin, int64_t end)
{
    const struct qk_norm_rope_args *a    = args;
    const int64_t                   half = a->rot_dim / 2;
    double                          x[QK_NORM_ROPE_MOST];
    for (int64_t t = begin; t < end; ++t)
        for (int64_t n = 0; n < (int64_t)a->q_heads + a->k_heads; ++n) {
            const int64_t at  = t * a->qkv_stride + n * a->head_dim;
            double        sum = 0;
            for (int64_t d = 0; d < a->head_dim; ++d) {
                x[d] = load_as_f64(a->qkv, at + d, SGK_BF16);
                sum += x[d] * x[d];
            }
            for (int64_t d = 0; d < a->head_dim; ++d)
                x[d] *= load_as_f64(n < a->q_heads ? a->q_weight : a->k_weight, d, SGK_BF16) / sqrt(sum / a->head_dim + a->eps);
            for (int64_t i = 0; i < half; ++i) {
                double *const px = &x[a->is_neox ? i : 2 * i], *const py = &x[a->is_neox ? i + half : 2 * i + 1];
                const double angle = a->position_ids[t * a->position_stride] * frequency(a, i), u = *px, v = *py;
                *px = (u * cos(angle) - v * sin(angle)) * a->attention_factor;
                *py = (v * cos(angle) + u * sin(angle)) * a->attention_factor;
            }
            for (int64_t d = 0; d < a->head_dim; ++d) store_f64(a->qkv, at + d, SGK_BF16, x[d]);
        }
}
