#include "cuda/tensor_map.h"
#include <string.h>
#include "base/dtype.h"
#include "cuda/cuda.h"
#include "sgk_config.h"

#if SGK_HAVE_CUDA

/* CU_TENSOR_MAP_DATA_TYPE_*. The 8-bit floats travel as bytes. */
static const int data_type[SGK_DTYPES] = {
    [SGK_F32]  = 7,
    [SGK_F64]  = 8,
    [SGK_F16]  = 6,
    [SGK_BF16] = 9,
    [SGK_E4M3] = 0,
    [SGK_E5M2] = 0,
    [SGK_I8]   = 0,
    [SGK_U8]   = 0,
    [SGK_I32]  = 3,
    [SGK_I64]  = 5,
    [SGK_BOOL] = 0,
};

sgk_status sgk_cuda_tensor_map(const char *op, const char *name, const sgk_tensor_map *s, CUtensorMap *map)
{
    SGK_REQUIRE(s->rank >= 1 && s->rank <= 5, SGK_BAD_ARG, "%s: the tensor map of %s has %d dimensions, expected 1 to 5", op, name, s->rank);
    SGK_REQUIRE((uintptr_t)s->data % 16 == 0, SGK_BAD_ARG, "%s: %s is at %p, expected a multiple of 16 bytes", op, name, s->data);
    const int width = sgk_dtype_size(s->dtype), span = s->swizzle ? 16 << s->swizzle : 0;
    SGK_REQUIRE(!s->nan_outside || data_type[s->dtype] >= 6, SGK_BAD_ARG, "%s: %s is %s, which has no NaN to read outside of it", op, name,
                sgk_dtypes[s->dtype].name);
    uint64_t size[5], stride[4];
    uint32_t box[5], step[5];
    for (int i = 0; i < s->rank; ++i) {
        SGK_REQUIRE(s->size[i] >= 1 && s->size[i] <= INT64_C(1) << 32, SGK_BAD_ARG, "%s: %s has %lld elements in dimension %d, expected 1 to 2^32",
                    op, name, (long long)s->size[i], i);
        SGK_REQUIRE(s->box[i] >= 1 && s->box[i] <= 256, SGK_BAD_ARG, "%s: the box of %s has %d elements in dimension %d, expected 1 to 256",
                    op, name, s->box[i], i);
        size[i] = (uint64_t)s->size[i], box[i] = (uint32_t)s->box[i], step[i] = 1;
        if (i == 0) continue;
        SGK_REQUIRE(s->stride[i] >= 0 && s->stride[i] < (INT64_C(1) << 40) / width && s->stride[i] * width % 16 == 0, SGK_BAD_ARG,
                    "%s: %s has stride %lld in dimension %d, expected a multiple of 16 bytes below 2^40", op, name, (long long)s->stride[i], i);
        stride[i - 1] = (uint64_t)(s->stride[i] * width);
    }
    SGK_REQUIRE(s->box[0] * width % 16 == 0, SGK_BAD_ARG, "%s: a row of the box of %s has %d bytes, expected a multiple of 16", op, name,
                s->box[0] * width);
    SGK_REQUIRE(!span || s->box[0] * width <= span, SGK_BAD_ARG, "%s: a row of the box of %s has %d bytes, expected at most the swizzle's %d",
                op, name, s->box[0] * width, span);
    SGK_REQUIRE(sgk_cuda_count() > 0, SGK_NO_DEVICE, "%s: %s", op, sgk_cuda_absence());
    SGK_DRIVER(op, cuTensorMapEncodeTiled(map, data_type[s->dtype], (uint32_t)s->rank, (void *)(uintptr_t)s->data, size, stride, box, step, 0,
                                          (int)s->swizzle, (int)s->promotion, s->nan_outside));
    return SGK_OK;
}

#endif
