#include "cpu/simd.h"
#include "probe.h"

void SGK_CPU_FN(probe_copy)(const void *args, int64_t begin, int64_t end)
{
    const struct probe_args *a = args;
    memcpy((uint32_t *)a->output + begin, (const uint32_t *)a->input + begin, (size_t)(end - begin) * 4);
}

void SGK_CPU_FN(probe_read)(const void *args, int64_t begin, int64_t end)
{
    const struct probe_args *a = args;
    for (int64_t b = begin; b < end; ++b) {
        const uint32_t *p         = (const uint32_t *)a->input + b * PROBE_BLOCK;
        uint32_t        lanes[64] = { 0 }, all = 0;
        for (int64_t i = 0; i < PROBE_BLOCK; i += 64)
            for (int64_t l = 0; l < 64; ++l) lanes[l] ^= p[i + l];
        for (int64_t l = 0; l < 64; ++l) all ^= lanes[l];
        ((uint32_t *)a->output)[b] = all;
    }
}

SGK_INLINE void load(sgk_dtype t, const struct probe_args *a, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i += VF) {
        if (end - i >= VF) vf_store(SGK_F32, a->output, i, vf_load(t, a->input, i));
        else vf_store_part(SGK_F32, a->output, i, end - i, vf_load_part(t, a->input, i, end - i));
    }
}

/* Two vectors at once and one, in turn. */
SGK_INLINE void store(sgk_dtype t, const struct probe_args *a, int64_t begin, int64_t end)
{
    int64_t i = begin;
    for (; i + 3 * VF <= end; i += 3 * VF) {
        vf_store2(t, a->output, i, vf_load(SGK_F32, a->input, i), vf_load(SGK_F32, a->input, i + VF));
        vf_store(t, a->output, i + 2 * VF, vf_load(SGK_F32, a->input, i + 2 * VF));
    }
    for (; i < end; i += VF) {
        if (end - i >= VF) vf_store(t, a->output, i, vf_load(SGK_F32, a->input, i));
        else vf_store_part(t, a->output, i, end - i, vf_load_part(SGK_F32, a->input, i, end - i));
    }
}

void SGK_CPU_FN(probe_load)(const void *args, int64_t begin, int64_t end)
{
    const struct probe_args *a = args;
    if (a->dtype == SGK_F32) load(SGK_F32, a, begin, end);
    else if (a->dtype == SGK_F16) load(SGK_F16, a, begin, end);
    else load(SGK_BF16, a, begin, end);
}

void SGK_CPU_FN(probe_store)(const void *args, int64_t begin, int64_t end)
{
    const struct probe_args *a = args;
    if (a->dtype == SGK_F32) store(SGK_F32, a, begin, end);
    else if (a->dtype == SGK_F16) store(SGK_F16, a, begin, end);
    else store(SGK_BF16, a, begin, end);
}

void SGK_CPU_FN(probe_exp)(const void *args, int64_t begin, int64_t end)
{
    const struct probe_args *a = args;
    for (int64_t i = begin; i < end; i += VF) {
        if (end - i >= VF) vf_store(SGK_F32, a->output, i, vf_exp(vf_load(SGK_F32, a->input, i)));
        else vf_store_part(SGK_F32, a->output, i, end - i, vf_exp(vf_load_part(SGK_F32, a->input, i, end - i)));
    }
}
