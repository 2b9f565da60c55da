#include "cuda/indices.h"
#include <string.h>
#include "base/convert.h"
#include "cuda/driver.h"
#include "sgk_config.h"

sgk_status sgk_indices_within(const char *op, const char *name, const void *indices, int64_t stride, sgk_dtype dtype, int64_t count, int64_t limit,
                              const char *what)
{
    for (int64_t i = 0; i < count; ++i) {
        const int64_t index = load_index(indices, i * stride, dtype);
        if (index >= 0 && index < limit) continue;
        if (!what) return sgk_error(SGK_BAD_ARG, "%s: %s[%lld] is %lld, expected 0 to %lld", op, name, (long long)i, (long long)index, (long long)limit - 1);
        return sgk_error(SGK_BAD_ARG, "%s: %s has %lld for token %lld, expected 0 to %lld, %s", op, name, (long long)index, (long long)i,
                         (long long)limit - 1, what);
    }
    return SGK_OK;
}

#if SGK_HAVE_CUDA

/* Bytes from the first to behind the last element: no stride is negative. */
static size_t span(const DLTensor *t)
{
    if (!sgk_data(t) || sgk_numel(t) == 0) return 0;
    int64_t last = 0;
    for (int d = 0; d < t->ndim; ++d) last += (t->shape[d] - 1) * sgk_stride(t, d);
    return (size_t)(last + 1) * (size_t)sgk_dtype_size(sgk_dtype_at(t));
}

static size_t padded(size_t bytes) { return (bytes + 15) / 16 * 16; }

/* The default stream says CUDA_ERROR_STREAM_CAPTURE_IMPLICIT while a stream that orders itself by it is under capture. */
static sgk_status captures(const char *op, CUstream stream, bool *capturing)
{
    int            state  = CU_STREAM_CAPTURE_STATUS_NONE;
    const CUresult result = sgk_cuda_driver.cuStreamIsCapturing(stream, &state);
    *capturing            = result == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT || state != CU_STREAM_CAPTURE_STATUS_NONE;
    char text[160];
    SGK_REQUIRE(!result || *capturing, sgk_cuda_error_status(result), "%s: cuStreamIsCapturing: %s", op, sgk_cuda_error_text(result, text));
    return SGK_OK;
}

static sgk_status copy(sgk_indices *host, const char *op, CUstream stream, const DLTensor *const *tensors, int count)
{
    char *to = host->memory;
    for (int i = 0; i < count; ++i) {
        const size_t bytes = span(tensors[i]);
        host->data[i]      = sgk_data(tensors[i]) ? to : NULL;
        if (bytes) SGK_DRIVER(op, cuMemcpyAsync((CUdeviceptr)(uintptr_t)to, (CUdeviceptr)(uintptr_t)sgk_data(tensors[i]), bytes, stream));
        to += padded(bytes);
    }
    return SGK_OK;
}

/* A copy that was enqueued is waited for also where a later one failed: it writes to memory that is freed next. */
static sgk_status copy_and_wait(sgk_indices *host, const char *op, CUstream stream, const DLTensor *const *tensors, int count)
{
    const sgk_status status = copy(host, op, stream, tensors, count);
    const CUresult   waited = sgk_cuda_driver.cuStreamSynchronize(stream);
    char             text[160];
    SGK_TRY(status);
    SGK_REQUIRE(!waited, sgk_cuda_error_status(waited), "%s: cuStreamSynchronize: %s", op, sgk_cuda_error_text(waited, text));
    return SGK_OK;
}

static sgk_status read_here(sgk_indices *host, const char *op, const DLTensor *const *tensors, int count, const sgk_exec *exec)
{
    const CUstream stream = SGK_EXEC(exec, stream, NULL);
    bool           capturing;
    SGK_TRY(captures(op, stream, &capturing));
    if (capturing) {
        if (sgk_log_wanted(exec)) sgk_log(exec, "%s: indices are not checked: the stream is being captured", op);
        return SGK_OK;
    }
    size_t bytes = 0;
    for (int i = 0; i < count; ++i) bytes += padded(span(tensors[i]));
    host->memory = malloc(bytes ? bytes : 1);
    SGK_REQUIRE(host->memory, SGK_FAILED, "%s: no memory for %zu bytes of indices to check", op, bytes);

    /* Waiting is forbidden to a thread while any other stream is under a global capture, unless its own mode is relaxed. */
    int              mode      = CU_STREAM_CAPTURE_MODE_RELAXED;
    const CUresult   exchanged = sgk_cuda_driver.cuThreadExchangeStreamCaptureMode(&mode);
    const sgk_status status    = copy_and_wait(host, op, stream, tensors, count);
    if (!exchanged) sgk_cuda_driver.cuThreadExchangeStreamCaptureMode(&mode);
    if (status) return sgk_indices_done(host, status);
    host->known = true;
    return SGK_OK;
}

sgk_status sgk_cuda_read_indices(sgk_indices *host, const char *op, int ordinal, const DLTensor *const *tensors, int count, const sgk_exec *exec)
{
    sgk_cuda_entered entered;
    SGK_TRY(sgk_cuda_enter(op, ordinal, &entered));
    const sgk_status status = read_here(host, op, tensors, count, exec);
    sgk_cuda_leave(&entered);
    return status;
}

#endif
