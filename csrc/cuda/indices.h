/*
 * Index tensors where the host can read them, so that one check serves both devices.
 *
 *     sgk_indices host;
 *     SGK_TRY(sgk_indices_read(&host, m.op, m.device, (const DLTensor *[]){ positions }, 1, exec));
 *     SGK_TRY(sgk_indices_done(&host, host.known ? check_positions(&a, host.data[0]) : SGK_OK));
 *
 * On the CPU that is where they lie. Tensors of a GPU stay unknown, unless exec's check_indices is on: then what each of them spans is
 * copied, with the strides it has, in the order of exec->stream, and the host waits for it. A stream under capture cannot be waited
 * for: the tensors stay unknown, and the log says so.
 */
#ifndef SGK_INDICES_H
#define SGK_INDICES_H
#include <stdlib.h>
#include "base/exec.h"
#include "base/match.h"

enum { SGK_INDICES = 10 };

typedef struct {
    bool        known;
    const void *data[SGK_INDICES];      /* element 0 of each, as sgk_data() would say; NULL where there is none */
    void       *memory;                 /* of the copies */
} sgk_indices;

/* The copies; `host` stays as it is where the stream is under capture. */
sgk_status sgk_cuda_read_indices(sgk_indices *host, const char *op, int ordinal, const DLTensor *const *tensors, int count, const sgk_exec *exec);

/* At most SGK_INDICES tensors, which have been matched; any may be NULL. After SGK_OK sgk_indices_done() is due if they are known. */
static inline sgk_status sgk_indices_read(sgk_indices *host, const char *op, DLDevice device, const DLTensor *const *tensors, int count, const sgk_exec *exec)
{
    host->memory = NULL;
    host->known  = device.device_type != kDLCUDA;
    if (!host->known) return sgk_exec_check_indices(exec) ? sgk_cuda_read_indices(host, op, device.device_id, tensors, count, exec) : SGK_OK;
    for (int i = 0; i < count; ++i) host->data[i] = sgk_data(tensors[i]);
    return SGK_OK;
}

/*
 * `count` indices, `stride` elements apart, must be from 0 to limit - 1. An index that is not is told as that of a token, with `what` it
 * should count ("the rows of k_buffer"), or as an element of the tensor where `what` is NULL.
 */
sgk_status sgk_indices_within(const char *op, const char *name, const void *indices, int64_t stride, sgk_dtype dtype, int64_t count, int64_t limit,
                              const char *what);

/* Frees the copies and hands the check's verdict on. */
static inline sgk_status sgk_indices_done(sgk_indices *host, sgk_status verdict)
{
    if (host->memory) free(host->memory);
    host->memory = NULL;
    return verdict;
}

#endif
