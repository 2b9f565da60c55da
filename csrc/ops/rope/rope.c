#include "rope.h"
#include "base/convert.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "rope_norm.h"

SGK_CPU_DECL(rope);
static const sgk_cpu_impl rope_cpu[] = SGK_CPU_IMPLS(rope);

/* Of a pair of formats, best first; the last takes any heads. */
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype, angles;
    int        piece, heads;
} rope_build;

#define BUILD(t, c, dtype, angles, piece, heads) \
    { SGK_KERNEL("rope/rope.cu", "rope", "-DT=" t " -DC=" c " -DPIECE=" #piece " -DHEADS=" #heads, SGK_GENERAL), dtype, angles, piece, heads }
#define BUILDS(t, c, dtype, angles, piece) \
    BUILD(t, c, dtype, angles, piece, 2), BUILD(t, c, dtype, angles, piece, 1), BUILD(t, c, dtype, angles, 1, 1)

static rope_build rope_builds[] = {
    BUILDS("f32", "f32", SGK_F32, SGK_F32, 4),
    BUILDS("f16", "f16", SGK_F16, SGK_F16, 8),
    BUILDS("f16", "f32", SGK_F16, SGK_F32, 8),
    BUILDS("bf16", "bf16", SGK_BF16, SGK_BF16, 8),
    BUILDS("bf16", "f32", SGK_BF16, SGK_F32, 8),
};

const sgk_kernel_table rope_kernels[] = { SGK_KERNEL_TABLE(rope_builds), SGK_KERNEL_TABLE(qk_norm_rope_builds), { 0 } };

/* From so many tokens on a thread has several heads: with fewer, more threads are faster. */
enum { MANY_TOKENS = 256 };

static bool heads_in_pieces(const struct rope_heads *h, sgk_dtype dtype)
{
    return sgk_in_pieces(h->data, h->outer_stride, dtype) && sgk_in_pieces(NULL, h->inner_stride, dtype) && sgk_in_pieces(NULL, h->head_stride, dtype);
}

static bool all_in_pieces(const struct rope_args *a, int piece)
{
    const struct rope_heads *const all[] = { &a->q, &a->k, &a->v, &a->q_out, &a->k_out, &a->k_buffer, &a->v_buffer };
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i)
        if (!heads_in_pieces(all[i], a->dtype)) return false;
    return a->rot_dim / 2 % piece == 0 && (a->rest == 0 || a->head_size % piece == 0) &&
           (a->sections || (sgk_in_pieces(a->cosines, a->cosine_stride, a->angles) && sgk_in_pieces(a->sines, a->sine_stride, a->angles)));
}

static rope_build *choose(const struct rope_args *a)
{
    rope_build *b = rope_builds;
    while (b->dtype != a->dtype || b->angles != a->angles) ++b;
    if (!all_in_pieces(a, b->piece)) return b + 2;
    return a->second || a->tokens < MANY_TOKENS ? b + 1 : b;
}

static int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step; }

static sgk_status rope_cuda(struct rope_args *a, const char *op, int ordinal, const sgk_exec *exec)
{
    const rope_build *b      = choose(a);
    const int64_t     groups = up(a->q_heads, b->heads) + up(a->k_heads, b->heads) * (a->v_buffer.data ? 2 : 1);
    const int64_t     each   = a->rot_dim / 2 / b->piece + up(a->rest, 2 * (int64_t)b->piece);
    a->q_groups = (int32_t)up(a->q_heads, b->heads), a->groups = (int32_t)groups, a->each = (int32_t)each;
    if (groups == 0 || each == 0) return SGK_OK;

    SGK_LOG_BUILD(exec, op, &b->kernel, b->piece > 1 ? "" : " (heads, or cosines and sines, are not in 16-byte pieces)");
    const int64_t    x = each < 128 ? each : 128, y = groups < 256 / x ? groups : 256 / x, z = 256 / (x * y) < 64 ? 256 / (x * y) : 64;
    const sgk_launch shape = { .grid = { up(a->tokens, z), up(groups, y), up(each, x) }, .block = { (unsigned)x, (unsigned)y, (unsigned)z } };
    return sgk_cuda_launch(op, (sgk_kernel *)&b->kernel, &shape, ordinal, exec, a, sizeof *a);
}

sgk_status rope_check_positions(const struct rope_args *a, const char *op, const char *name, const char *rows, const void *positions, int planes)
{
    for (int64_t t = 0; t < planes * a->tokens; ++t) {
        const int64_t plane = t / a->tokens, token = t % a->tokens;
        const int64_t at       = plane * a->plane_stride + token / a->inner * a->positions_outer_stride + token % a->inner * a->positions_inner_stride;
        const int64_t position = load_index(positions, at, a->positions_wide ? SGK_I64 : SGK_I32);
        SGK_REQUIRE(position >= 0 && position < a->max_position, SGK_BAD_ARG, "%s: %s has %lld for token %lld, expected 0 to %lld, the rows of %s", op, name,
                    (long long)position, (long long)token, (long long)a->max_position - 1, rows);
    }
    return SGK_OK;
}

sgk_status rope_run(struct rope_args *a, const char *op, DLDevice device, const sgk_exec *exec)
{
    if (device.device_type == kDLCUDA) return rope_cuda(a, op, device.device_id, exec);
    const int64_t heads = (int64_t)a->q_heads + a->k_heads * (a->v_buffer.data ? 2 : 1);
    return sgk_cpu_run(op, rope_cpu, a, a->tokens, sgk_cpu_grain(2 * heads * (a->rot_dim + a->rest) * sgk_dtype_size(a->dtype)), exec);
}
