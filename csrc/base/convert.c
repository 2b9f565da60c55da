#include "base/convert.h"
#include "base/match.h"
#include "base/parallel.h"
#include "sgl_kernel/convert.h"

typedef struct {
    void       *to;
    const void *from;
    sgk_dtype   to_dtype, from_dtype;
} conversion;

/* i64 to f64 so that the next rounding is the only one that counts (as f64_to_f32_odd). */
static double i64_to_f64_odd(int64_t v)
{
    if (v >= -((int64_t)1 << 53) && v <= (int64_t)1 << 53) return (double)v;
    const uint64_t magnitude = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    const int      drop      = 64 - __builtin_clzll(magnitude) - 53;
    const uint64_t kept = magnitude >> drop, lost = magnitude & (((uint64_t)1 << drop) - 1);
    const double   d = ldexp((double)(kept | (lost != 0)), drop);
    return v < 0 ? -d : d;
}

static void convert_range(int64_t begin, int64_t end, void *context)
{
    const conversion *c = context;
    if (c->from_dtype == c->to_dtype && c->to_dtype != SGK_BOOL) {
        const size_t size = (size_t)sgk_dtype_size(c->to_dtype);
        memcpy((char *)c->to + (size_t)begin * size, (const char *)c->from + (size_t)begin * size, (size_t)(end - begin) * size);
        return;
    }
    for (int64_t i = begin; i < end; ++i) {
        const bool wide = c->from_dtype == SGK_I64 && c->to_dtype != SGK_F64;
        store_f64(c->to, i, c->to_dtype, wide ? i64_to_f64_odd(((const int64_t *)c->from)[i]) : load_as_f64(c->from, i, c->from_dtype));
    }
}

sgk_status sgk_convert(const DLTensor *output, const DLTensor *input, const sgk_exec *exec)
{
    const unsigned any = (1u << SGK_DTYPES) - 1;
    sgk_match      m   = { .op = "convert" };
    SGK_MATCH(&m, input, "*N", any);
    SGK_MATCH_OUT(&m, output, "*N", any);
    SGK_REQUIRE(output->ndim == input->ndim, SGK_BAD_ARG, "%s: output has %d dimensions, expected %d like input", m.op, output->ndim, input->ndim);
    for (int d = 0; d < input->ndim; ++d)
        SGK_REQUIRE(output->shape[d] == input->shape[d], SGK_BAD_ARG, "%s: output has size %lld in dimension %d, expected %lld like input", m.op,
                    (long long)output->shape[d], d, (long long)input->shape[d]);
    SGK_MATCH_DENSE(&m, input);
    SGK_MATCH_DENSE(&m, output);
    SGK_TRY(sgk_match_done(&m));
    SGK_REQUIRE(!sgk_on_gpu(&m), SGK_UNSUPPORTED, "%s: input is on a CUDA device, expected the CPU", m.op);
    SGK_NO_SCRATCH(exec);
    conversion c = { sgk_data(output), sgk_data(input), sgk_dtype_at(output), sgk_dtype_at(input) };
    sgk_parallel_for(exec, 0, SGK_DIM(&m, 'N'), 4096, convert_range, &c);
    return SGK_OK;
}
