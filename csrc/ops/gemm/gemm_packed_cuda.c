#include "gemm_packed_cuda.h"
#include "base/dtype.h"

/* clang-format off */
#define MMA(type, dtype, format, scaled) \
    { SGK_KERNEL("gemm/gemm_packed_mma.cu", "packed_mma", "-DT=" type " -DFORMAT=" #format " -DSCALED=" #scaled, SGK_GENERAL), dtype, format }
packed_build packed_mma_builds[PACKED_MMA_BUILDS] = {
    MMA("f16",  SGK_F16,  WEIGHT_F16,  0), MMA("f16",  SGK_F16,  WEIGHT_E4M3, 1), MMA("f16",  SGK_F16,  WEIGHT_MXFP4, 1),
    MMA("bf16", SGK_BF16, WEIGHT_BF16, 0), MMA("bf16", SGK_BF16, WEIGHT_E4M3, 1), MMA("bf16", SGK_BF16, WEIGHT_MXFP4, 1),
};
#define SIMT(type, dtype) { SGK_KERNEL("gemm/gemm_packed_simt.cu", "packed_simt", "-DT=" type, SGK_GENERAL), dtype, 0 }
packed_build packed_simt_builds[PACKED_SIMT_BUILDS] = { SIMT("f32", SGK_F32), SIMT("f16", SGK_F16), SIMT("bf16", SGK_BF16) };

#define I8(format) { SGK_KERNEL("gemm/gemm_packed_i8.cu", "packed_i8", "-DFORMAT=" #format, SGK_GENERAL), SGK_U8, format }
packed_build packed_i8_builds[PACKED_I8_BUILDS] = { I8(WEIGHT_I8), I8(WEIGHT_INT4) };

#define QUANT(type, dtype) { SGK_KERNEL("gemm/gemm_packed_quant.cu", "packed_quant", "-DT=" type, SGK_GENERAL), dtype, 0 }
packed_build packed_quant_builds[PACKED_QUANT_BUILDS] = { QUANT("f32", SGK_F32), QUANT("f16", SGK_F16), QUANT("bf16", SGK_BF16) };

#define SIGMOID(type, dtype) { SGK_KERNEL("gemm/gemm_packed_sigmoid.cu", "linear_sigmoid", "-DT=" type, SGK_GENERAL), dtype, 0 }
packed_build packed_sigmoid_builds[PACKED_SIGMOID_BUILDS] = { SIGMOID("f32", SGK_F32), SIGMOID("f16", SGK_F16), SIGMOID("bf16", SGK_BF16) };

/* By the size of an element, 1, 2, 4; then the sums, the small ones, and four bits. */
#define PACK(piece, sums, small) { SGK_KERNEL("gemm/gemm_pack.cu", "pack", "-DPIECE=" piece " -DSUMS=" #sums " -DSMALL=" #small, SGK_GENERAL), SGK_U8, 0 }
enum { PACK_1, PACK_2, PACK_4, PACK_SUMS, PACK_SMALL, PACK_INT4 };
packed_build pack_builds[PACK_BUILDS] = {
    PACK("uint8_t", 0, 0), PACK("uint16_t", 0, 0), PACK("uint32_t", 0, 0), PACK("uint8_t", 1, 0), PACK("uint32_t", 0, 1),
    { SGK_KERNEL("gemm/gemm_pack_int4.cu", "pack_int4", "", SGK_GENERAL), SGK_U8, 0 },
};
/* clang-format on */

static sgk_status launch(const char *op, sgk_kernel *kernel, int64_t blocks, unsigned threads, DLDevice device, const sgk_exec *exec, const void *args, size_t size)
{
    SGK_LOG_BUILD(exec, op, kernel, "");
    const sgk_launch shape = { .grid = { blocks }, .block = { threads } };
    return sgk_cuda_launch(op, kernel, &shape, device.device_id, exec, args, size);
}

/* The build of a table for a format of input, the last one of it in a table that has several. */
static packed_build *of_dtype(packed_build *b, sgk_dtype dtype)
{
    while (b->dtype != dtype) ++b;
    return b;
}

static packed_build *choose(const struct packed_args *a)
{
    for (int i = 0; i < PACKED_I8_BUILDS; ++i)
        if (packed_i8_builds[i].format == a->format) return &packed_i8_builds[i];
    for (int i = 0; i < PACKED_MMA_BUILDS; ++i)
        if (packed_mma_builds[i].dtype == a->dtype && packed_mma_builds[i].format == a->format) return &packed_mma_builds[i];
    return of_dtype(packed_simt_builds, a->dtype);
}

static int64_t code_bytes(const struct packed_args *a) { return (a->rows * a->depth + 255) / 256 * 256; }

size_t packed_scratch_on_gpu(const struct packed_args *a, bool quantise) { return quantise ? (size_t)(code_bytes(a) + a->rows * 4) : 0; }

sgk_status packed_run_on_gpu(const char *op, const struct packed_args *a, bool quantise, void *memory, DLDevice device, const sgk_exec *exec)
{
    struct packed_args product = *a;
    if (quantise) {
        const struct packed_quant_args q = { memory, (float *)(void *)((char *)memory + code_bytes(a)), a->input, a->rows, a->depth, a->input_stride, a->dtype };
        SGK_TRY(launch(op, &of_dtype(packed_quant_builds, a->dtype)->kernel, a->rows, 256, device, exec, &q, sizeof q));
        product.input = q.q, product.input_scale = q.s, product.input_stride = a->depth, product.dtype = SGK_U8;
    }
    const int64_t tiles = a->batch * packed_ceil(a->rows, 64) * packed_ceil(a->columns, 64);
    return launch(op, &choose(&product)->kernel, tiles, 128, device, exec, &product, sizeof product);
}

sgk_status linear_sigmoid_on_gpu(const char *op, const struct linear_sigmoid_args *a, DLDevice device, const sgk_exec *exec)
{
    return launch(op, &of_dtype(packed_sigmoid_builds, a->dtype)->kernel, a->rows, 256, device, exec, a, sizeof *a);
}

sgk_status pack_on_gpu(const char *op, const struct pack_args *a, DLDevice device, const sgk_exec *exec)
{
    const int     size = sgk_dtype_size(a->dtype), build = a->format == WEIGHT_SMALL ? PACK_SMALL : size == 4 ? PACK_4
                                                                                                : size == 2   ? PACK_2
                                                                                                              : PACK_1;
    const int64_t elements = a->batch * a->columns * a->depth;
    if (elements) SGK_TRY(launch(op, &pack_builds[build].kernel, packed_ceil(elements, 256), 256, device, exec, a, sizeof *a));
    if (a->format != WEIGHT_I8) return SGK_OK;
    return launch(op, &pack_builds[PACK_SUMS].kernel, packed_ceil(a->batch * a->columns, 256), 256, device, exec, a, sizeof *a);
}

sgk_status pack_int4_on_gpu(const char *op, const struct pack_int4_args *a, DLDevice device, const sgk_exec *exec)
{
    const int64_t bytes = a->batch * a->columns / 2 * a->depth;
    return launch(op, &pack_builds[PACK_INT4].kernel, packed_ceil(bytes, 256), 256, device, exec, a, sizeof *a);
}
