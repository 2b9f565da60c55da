#include "torch/test_ops.h"
#include <string.h>
#include "base/match.h"
#include "base/parallel.h"
#include "torch/frame.h"

/* Tells numbers in the dense float64 tensor `out`, which must have room. */
sgk_status test_numbers(const DLTensor *out, int count, const double *numbers)
{
    sgk_match m = { .op = "test" };
    SGK_MATCH_OUT(&m, out, "N", 1u << SGK_F64);
    SGK_REQUIRE(SGK_DIM(&m, 'N') >= count && !sgk_on_gpu(&m), SGK_BAD_ARG, "test: out has size %lld, expected at least %d on the CPU", (long long)SGK_DIM(&m, 'N'), count);
    memcpy(sgk_data(out), numbers, (size_t)count * sizeof *numbers);
    return SGK_OK;
}

/* Data moves nowhere, so it may lie on any device; sizes and strides are told through the CPU's out, where that is what we have. */
sgk_status test_tensors(const DLTensor *out, const DLTensor *x, const DLTensor *y, const DLTensor *z)
{
    sgk_match m = { .op = "tensors" };
    SGK_MATCH_OUT(&m, out, "N", 1u << SGK_F64);
    SGK_MATCH(&m, x, "A B~", SGK_ANY_FLOAT | 1u << SGK_I32);
    SGK_MATCH_OPT(&m, y, "C", SGK_ANY_FLOAT);
    SGK_MATCH_OPT_OUT(&m, z, "D", SGK_ANY_FLOAT);
    SGK_TRY(sgk_match_done(&m));
    if (sgk_on_gpu(&m)) return SGK_OK;
    const double numbers[] = { (double)SGK_DIM(&m, 'A'), (double)SGK_DIM(&m, 'B'), (double)sgk_stride(x, 0), (double)sgk_stride(x, 1),
                               y ? (double)y->shape[0] : -1, z ? (double)z->shape[0] : -1 };
    return test_numbers(out, 6, numbers);
}

sgk_status test_narrow(const DLTensor *out, int n, int m, float x)
{
    return test_numbers(out, 3, (const double[]){ n, m, (double)x });
}

sgk_status test_text(const DLTensor *out, const char *text)
{
    return test_numbers(out, 2, (const double[]){ (double)strlen(text), text[0] });
}

sgk_status test_kinds(const DLTensor *out, int dtype, DLDevice device)
{
    return test_numbers(out, 3, (const double[]){ dtype, device.device_type, device.device_id });
}

static double sum_ints(const int64_t *n, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; ++i) sum += (double)n[i];
    return sum;
}

sgk_status test_lists(const DLTensor *out, const int64_t *n, size_t n_count, const double *x, size_t x_count, const int64_t *s, size_t s_count)
{
    double sum = 0;
    for (size_t i = 0; i < x_count; ++i) sum += x[i];
    return test_numbers(out, 6, (const double[]){ (double)n_count, sum_ints(n, n_count), (double)x_count, sum, (double)s_count, sum_ints(s, s_count) });
}

static double sum_sizes(const DLTensor *const *t, size_t count, int *missing)
{
    double sum = 0;
    for (size_t i = 0; i < count; ++i)
        if (t[i]) sum += (double)sgk_numel(t[i]);
        else ++*missing;
    return sum;
}

sgk_status test_tensor_lists(const DLTensor *out, const DLTensor *const *x, size_t x_count, const DLTensor *const *y, size_t y_count,
                             const DLTensor *const *z, size_t z_count)
{
    int          missing = 0;
    const double sums[]  = { sum_sizes(x, x_count, &missing), sum_sizes(y, y_count, &missing), sum_sizes(z, z_count, &missing) };
    return test_numbers(out, 6, (const double[]){ (double)(x_count + y_count + z_count), sums[0], sums[1], sums[2], missing, 0 });
}

/* The seeds scaled to [0, 1). */
sgk_status test_draw(const DLTensor *out, const DLTensor *seeds)
{
    sgk_match m = { .op = "draw" };
    SGK_MATCH_OUT(&m, out, "N", 1u << SGK_F64);
    SGK_MATCH(&m, seeds, "N", 1u << SGK_I64);
    if (sgk_on_gpu(&m)) return SGK_OK;
    double        *to   = sgk_data(out);
    const int64_t *from = sgk_data(seeds);
    for (int64_t i = 0; i < SGK_DIM(&m, 'N'); ++i) to[i] = (double)from[i] / 9223372036854775808.0;
    return SGK_OK;
}

/* Two blocks from torch's allocator, one of them given back, the other left to the frame. */
sgk_status test_scratch(const DLTensor *out, int64_t bytes, void *frame)
{
    char *a = torch_allocate(frame, (size_t)bytes, out->device), *b = torch_allocate(frame, (size_t)bytes, out->device);
    SGK_REQUIRE(a && b, SGK_FAILED, "scratch: no memory for %lld bytes", (long long)bytes);
    memset(a, 1, (size_t)bytes);
    memset(b, 2, (size_t)bytes);
    const double numbers[] = { a[bytes - 1], b[0], a != b };
    torch_release(frame, a, out->device);
    return test_numbers(out, 3, numbers);
}

static void set_ones(int64_t begin, int64_t end, void *context)
{
    double *out = context;
    for (int64_t i = begin; i < end; ++i) out[i] += 1;
}

sgk_status test_loop(const DLTensor *out, const sgk_exec *exec)
{
    sgk_match m = { .op = "loop" };
    SGK_MATCH_OUT(&m, out, "N", 1u << SGK_F64);
    sgk_parallel_for(exec, 0, SGK_DIM(&m, 'N'), 16, set_ones, sgk_data(out));
    return SGK_OK;
}

sgk_status test_fail(const DLTensor *out, int status)
{
    (void)out;
    return sgk_error((sgk_status)status, "fail: status is %d, as asked for", status);
}

sgk_status test_copy(const DLTensor *out, const DLTensor *x)
{
    sgk_match m = { .op = "one" };
    SGK_MATCH(&m, x, "N", SGK_ANY_FLOAT | SGK_ANY_INDEX);
    SGK_MATCH_OUT(&m, out, "N", 1u << m.dtype);
    memcpy(sgk_data(out), sgk_data(x), (size_t)SGK_DIM(&m, 'N') * (size_t)sgk_dtype_size(m.dtype));
    return SGK_OK;
}

sgk_status test_zero(const DLTensor *out)
{
    SGK_REQUIRE(out, SGK_BAD_ARG, "shaped: out is null, expected a tensor");
    if (sgk_numel(out)) memset(sgk_data(out), 0, (size_t)sgk_numel(out) * out->dtype.bits / 8);
    return SGK_OK;
}

sgk_status test_several(const DLTensor *out, const DLTensor *count, const DLTensor *x)
{
    SGK_TRY(test_copy(out, x));
    if (count) *(double *)sgk_data(count) = (double)sgk_numel(x);
    return SGK_OK;
}

sgk_status test_list_of_ints(int64_t *out, int64_t n)
{
    for (int i = 0; i < 3; ++i) out[i] = n + i;
    return SGK_OK;
}

sgk_status test_plain(int64_t *on, double *ox, bool *ob, int64_t n, double x, bool b)
{
    *on = n, *ox = x, *ob = b;
    return SGK_OK;
}

sgk_status test_described(sgk_dtype *dtype, DLDevice *device, const DLTensor *x)
{
    *dtype  = sgk_dtype_at(x);
    *device = x->device;
    return SGK_OK;
}
