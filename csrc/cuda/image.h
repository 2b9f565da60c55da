/* The code of a row for a device: from its pack, or under SGK_JIT=1 compiled from source. */
#ifndef SGK_IMAGE_H
#define SGK_IMAGE_H
#include "cuda/cuda.h"

/* Memory the caller frees. The caller holds the one lock under which kernels are loaded. */
sgk_status sgk_cuda_image(const char *op, const sgk_kernel *kernel, const sgk_cuda_device *device, const sgk_exec *exec, void **image);

#endif
