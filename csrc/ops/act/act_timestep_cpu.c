#include "act_timestep.h"
#include "cpu/simd.h"
#include "cpu/turn.h"

SGK_INLINE void store_all(sgk_dtype t, void *out, int64_t at, const float *v, int64_t n)
{
    int64_t i = 0;
    for (; i + VF <= n; i += VF) vf_store(t, out, at + i, vf_load_f32(v + i));
    if (i < n) vf_store_part(t, out, at + i, n - i, vf_load_part(SGK_F32, v, i, n - i));
}

SGK_INLINE void rows(sgk_dtype dtype, const struct timestep_args *a, int64_t begin, int64_t end)
{
    const int64_t sines = a->cos_first ? a->half : 0, cosines = a->half - sines;
    double        frequency[TURN_BLOCK];
    float         sine[TURN_BLOCK], cosine[TURN_BLOCK];
    for (int64_t first = 0; first < a->half; first += TURN_BLOCK) {
        const int64_t n    = a->half - first < TURN_BLOCK ? a->half - first : TURN_BLOCK;
        double        most = 0;
        for (int64_t i = 0; i < n; ++i) frequency[i] = exp(a->step * (double)(first + i)), most = fmax(most, frequency[i]);
        for (int64_t r = begin; r < end; ++r) {
            turn(frequency, most, a->scale * load_as_f64(a->input, r * a->input_stride, a->input_dtype), n, sine, cosine);
            store_all(dtype, a->output, r * a->output_stride + sines + first, sine, n);
            store_all(dtype, a->output, r * a->output_stride + cosines + first, cosine, n);
        }
    }
}

void SGK_CPU_FN(timestep)(const void *args, int64_t begin, int64_t end)
{
    const struct timestep_args *a = args;
    if (a->dtype == SGK_F32) rows(SGK_F32, a, begin, end);
    else if (a->dtype == SGK_F16) rows(SGK_F16, a, begin, end);
    else rows(SGK_BF16, a, begin, end);
}
