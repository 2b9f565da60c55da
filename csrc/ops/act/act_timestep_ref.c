/* The definition. */
#include <math.h>
#include "act_timestep.h"
#include "base/convert.h"
#include "cpu/cpu.h"

/* Items are rows. */
void timestep_ref(const void *args, int64_t begin, int64_t end)
{
    const struct timestep_args *a     = args;
    const int64_t               sines = a->cos_first ? a->half : 0, cosines = a->half - sines;
    for (int64_t r = begin; r < end; ++r) {
        const double t = load_as_f64(a->input, r * a->input_stride, a->input_dtype);
        for (int64_t i = 0; i < a->half; ++i) {
            const double angle = a->scale * t * exp(a->step * (double)i);
            store_f64(a->output, r * a->output_stride + sines + i, a->dtype, sin(angle));
            store_f64(a->output, r * a->output_stride + cosines + i, a->dtype, cos(angle));
        }
    }
}
