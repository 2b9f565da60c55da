/* The GPU's side of packed weights. */
#ifndef SGK_GEMM_PACKED_CUDA_H
#define SGK_GEMM_PACKED_CUDA_H
#include <stdbool.h>
#include "cuda/cuda.h"
#include "gemm_packed.h"

size_t packed_scratch_on_gpu(const struct packed_args *a, bool quantise);
sgk_status packed_run_on_gpu(const char *op, const struct packed_args *a, bool quantise, void *memory, DLDevice device, const sgk_exec *exec);
sgk_status linear_sigmoid_on_gpu(const char *op, const struct linear_sigmoid_args *a, DLDevice device, const sgk_exec *exec);
sgk_status pack_on_gpu(const char *op, const struct pack_args *a, DLDevice device, const sgk_exec *exec);
sgk_status pack_int4_on_gpu(const char *op, const struct pack_int4_args *a, DLDevice device, const sgk_exec *exec);

/* Builds of the kernels; gemm.c lists them. */
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int32_t    format;
} packed_build;
enum { PACKED_MMA_BUILDS     = 6,
       PACKED_SIMT_BUILDS    = 3,
       PACKED_I8_BUILDS      = 2,
       PACKED_QUANT_BUILDS   = 3,
       PACKED_SIGMOID_BUILDS = 3,
       PACK_BUILDS           = 6,
       MLA_BUILDS            = 6 };
extern packed_build packed_mma_builds[PACKED_MMA_BUILDS], packed_simt_builds[PACKED_SIMT_BUILDS], packed_i8_builds[PACKED_I8_BUILDS], packed_quant_builds[PACKED_QUANT_BUILDS],
    packed_sigmoid_builds[PACKED_SIGMOID_BUILDS], pack_builds[PACK_BUILDS], mla_builds[MLA_BUILDS];

#endif
