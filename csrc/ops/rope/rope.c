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
    int        bytes;
    bool       plain;
    int        heads, threads;                          /* of a thread and of a block, in rope_in_place.cu; heads 0: rope.cu */
    int64_t    most;                                    /* threads of a call, for which it is good */
} rope_build;

#define BUILD(t, c, dtype, angles, bytes, plain) \
    { SGK_KERNEL("rope/rope.cu", "rope", "-DT=" t " -DC=" c " -DBYTES=" #bytes " -DPLAIN=" #plain, SGK_GENERAL), dtype, angles, bytes, plain, 0, 128, INT64_MAX }
#define IN_PLACE(t, c, dtype, angles, heads, threads, resident, most) \
    { SGK_KERNEL("rope/rope_in_place.cu", "rope_in_place", "-DT=" t " -DC=" c " -DHEADS=" #heads " -DTHREADS=" #threads " -DRESIDENT=" #resident, SGK_GENERAL), \
      dtype, angles, 16, true, heads, threads, most }
/* Few threads end soonest with registers enough for all loads at once; many want as many as fit. */
#define IN_PLACE_BUILDS(t, c, dtype, angles, resident) IN_PLACE(t, c, dtype, angles, 1, 128, 1280, 1 << 19), IN_PLACE(t, c, dtype, angles, 2, 160, resident, INT64_MAX)
#define BUILDS(t, c, dtype, angles, resident) \
    IN_PLACE_BUILDS(t, c, dtype, angles, resident), BUILD(t, c, dtype, angles, 16, 1), BUILD(t, c, dtype, angles, 16, 0), BUILD(t, c, dtype, angles, 8, 0), BUILD(t, c, dtype, angles, 0, 0)

static rope_build rope_builds[] = {
    IN_PLACE_BUILDS("f32", "f32", SGK_F32, SGK_F32, 1120),
    BUILD("f32", "f32", SGK_F32, SGK_F32, 16, 1),
    BUILD("f32", "f32", SGK_F32, SGK_F32, 16, 0),
    BUILD("f32", "f32", SGK_F32, SGK_F32, 0, 0),
    BUILDS("f16", "f16", SGK_F16, SGK_F16, 1120),
    BUILDS("f16", "f32", SGK_F16, SGK_F32, 960),
    BUILDS("bf16", "bf16", SGK_BF16, SGK_BF16, 1120),
    BUILDS("bf16", "f32", SGK_BF16, SGK_F32, 960),
};

const sgk_kernel_table rope_kernels[] = { SGK_KERNEL_TABLE(rope_builds), SGK_KERNEL_TABLE(qk_norm_rope_builds), { 0 } };

static bool same_heads(const struct rope_heads *x, const struct rope_heads *y)
{
    return x->data == y->data && x->outer_stride == y->outer_stride && x->inner_stride == y->inner_stride && x->head_stride == y->head_stride;
}

/* q and k stay where they are, nothing is stored elsewhere, and tokens have one dimension. */
static bool in_place(const struct rope_args *a)
{
    return a->positions && a->inner == a->tokens && a->max_position > 0 && a->rest == 0 && a->rot_dim <= 256 && !a->k_buffer.data && !a->v_buffer.data &&
           same_heads(&a->q, &a->q_out) && same_heads(&a->k, &a->k_out);
}

static bool takes(const rope_build *b, const struct rope_args *a)
{
    if (b->bytes == 0) return true;
    if (b->heads && (!in_place(a) || a->tokens * a->heads * (a->rot_dim / 2 * sgk_dtype_size(a->dtype) / 16) > b->most)) return false;
    const struct rope_heads *const all[] = { &a->q, &a->k, &a->v, &a->q_out, &a->k_out, &a->k_buffer, &a->v_buffer };
    const int                      piece = b->bytes / sgk_dtype_size(a->dtype), row = piece * sgk_dtype_size(a->angles);
    bool                           vector = a->rot_dim / 2 % piece == 0 && (a->rest == 0 || a->head_size % piece == 0);
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i)
        vector = vector && sgk_in_pieces_of(b->bytes, all[i]->data, all[i]->outer_stride, a->dtype) && sgk_in_pieces_of(b->bytes, NULL, all[i]->inner_stride, a->dtype) &&
                 sgk_in_pieces_of(b->bytes, NULL, all[i]->head_stride, a->dtype);
    if (!a->sections) {
        const int bytes = row < 16 ? row : 16;          /* in which cosines and sines are read */
        vector          = vector && sgk_in_pieces_of(bytes, a->cosines, a->cosine_stride, a->angles) && sgk_in_pieces_of(bytes, a->sines, a->sine_stride, a->angles);
    }
    return vector && (!b->plain || (!a->second && !a->sections));
}

static rope_build *choose(const struct rope_args *a)
{
    rope_build *b = rope_builds;
    while (b->dtype != a->dtype || b->angles != a->angles || !takes(b, a)) ++b;
    return b;
}

static int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step; }

/* That a token has in q, k and, where they are stored, v. */
static int64_t heads_in_all(const struct rope_args *a) { return (int64_t)a->q_heads + a->k_heads * (a->v_buffer.data ? 2 : 1); }

/* Tokens in two dimensions that are evenly spaced everywhere are tokens in one. */
static void fold_tokens(struct rope_args *a)
{
    const struct rope_heads *const all[] = { &a->q, &a->k, &a->v, &a->q_out, &a->k_out };
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i)
        if (all[i]->data && all[i]->outer_stride != a->inner * all[i]->inner_stride) return;
    if (a->positions && a->positions_outer_stride != a->inner * a->positions_inner_stride) return;
    a->inner = a->tokens;
}

static sgk_status rope_cuda(struct rope_args *a, const char *op, int ordinal, const sgk_exec *exec)
{
    fold_tokens(a);
    const int64_t heads = heads_in_all(a);
    a->heads            = (int32_t)heads;
    rope_build   *b     = choose(a);
    const int64_t piece = b->bytes ? b->bytes / sgk_dtype_size(a->dtype) : 1, each = a->rot_dim / 2 / piece + up(a->rest, 2 * piece), threads = b->threads;
    a->each = (int32_t)each;

    SGK_LOG_BUILD(exec, op, &b->kernel, b->bytes == 16 ? "" : " (heads, or cosines and sines, are not in 16-byte pieces)");
    /* Blocks that share a token have equal parts of its heads. */
    const int64_t    some = up(heads, b->heads ? b->heads : 1), x = each < threads ? each : threads, y = up(some, up(some, threads / x));
    const int64_t    z     = threads / (x * y) < 64 ? threads / (x * y) : 64;
    const sgk_launch shape = { .grid = { up(a->tokens, z), up(some, y), up(each, x) }, .block = { (unsigned)x, (unsigned)y, (unsigned)z } };
    return sgk_cuda_launch(op, &b->kernel, &shape, ordinal, exec, a, sizeof *a);
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
    return sgk_cpu_run(op, rope_cpu, a, a->tokens, sgk_cpu_grain(2 * heads_in_all(a) * (a->rot_dim + a->rest) * sgk_dtype_size(a->dtype)), exec);
}
