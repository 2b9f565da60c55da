#include <math.h>
#include "attention_lightning.h"
#include "base/convert.h"
#include "cpu/cpu.h"

/* Items are heads of sequences. The state is f32 by its definition: it is summed as it is stored. */
void lightning_ref(const void *args, int64_t begin, int64_t end)
{
    const struct lightning_args *a = args;
    for (int64_t i = begin; i < end; ++i) {
        const double decay = exp(-(double)a->slope[i % a->heads]);
        for (int32_t e = 0; e < a->dim_v; ++e) {
            const double v   = load_as_f64(a->v, i * a->dim_v + e, a->dtype);
            double       sum = 0;
            for (int32_t d = 0; d < a->dim; ++d) {
                const int64_t at = (i * a->dim + d) * a->dim_v + e;
                const double  kv = decay * a->past_kv[at] + load_as_f64(a->k, i * a->dim + d, a->dtype) * v;
                a->new_kv[at]    = (float)kv;
                sum += load_as_f64(a->q, i * a->dim + d, a->dtype) * kv;
            }
            store_f64(a->output, i * a->dim_v + e, a->dtype, sum);
        }
    }
}
