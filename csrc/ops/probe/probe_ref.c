#include <math.h>
#include "base/convert.h"
#include "cpu/cpu.h"
#include "probe.h"

void probe_copy_ref(const void *args, int64_t begin, int64_t end)
{
    const struct probe_args *a = args;
    for (int64_t i = begin; i < end; ++i) ((uint32_t *)a->output)[i] = ((const uint32_t *)a->input)[i];
}

void probe_read_ref(const void *args, int64_t begin, int64_t end)
{
    const struct probe_args *a = args;
    for (int64_t b = begin; b < end; ++b) {
        uint32_t all = 0;
        for (int64_t i = 0; i < PROBE_BLOCK; ++i) all ^= ((const uint32_t *)a->input)[b * PROBE_BLOCK + i];
        ((uint32_t *)a->output)[b] = all;
    }
}

void probe_load_ref(const void *args, int64_t begin, int64_t end)
{
    const struct probe_args *a = args;
    for (int64_t i = begin; i < end; ++i) ((float *)a->output)[i] = load_f32(a->dtype, a->input, i);
}

void probe_store_ref(const void *args, int64_t begin, int64_t end)
{
    const struct probe_args *a = args;
    for (int64_t i = begin; i < end; ++i) store_f32(a->dtype, a->output, i, ((const float *)a->input)[i]);
}

void probe_exp_ref(const void *args, int64_t begin, int64_t end)
{
    const struct probe_args *a = args;
    for (int64_t i = begin; i < end; ++i) ((float *)a->output)[i] = (float)exp((double)((const float *)a->input)[i]);
}
