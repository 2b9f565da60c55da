#include "rope_norm.h"
#include <math.h>
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "sgl_kernel/rope.h"

SGK_CPU_DECL(qk_norm_rope);
static const sgk_cpu_impl qk_norm_rope_cpu[] = SGK_CPU_IMPLS(qk_norm_rope);

/* Of a size, for more and more heads, of which a thread then takes more; the last takes any alignment and any part of a head that rotates. */
#define BUILD(dim, lanes, heads, most) \
    { SGK_KERNEL("rope/rope_norm.cu", "qk_norm_rope", "-DDIM=" #dim " -DLANES=" #lanes " -DHEADS=" #heads, SGK_GENERAL), dim, lanes, heads, most }
#define BUILDS(dim, few_lanes, lanes) \
    BUILD(dim, few_lanes, 1, 4096), BUILD(dim, lanes, 2, 65536), BUILD(dim, lanes, 4, INT64_MAX), \
    { SGK_KERNEL("rope/rope_norm_any.cu", "qk_norm_rope_any", "-DDIM=" #dim, SGK_GENERAL), dim, 0, 1, INT64_MAX }

norm_build qk_norm_rope_builds[NORM_BUILDS] = { BUILDS(64, 8, 4), BUILDS(128, 16, 8), BUILDS(256, 32, 16) };

enum { THREADS = 160,                                   /* of a block, about; the kernel takes 256 */
       WARPS   = 8 };                                   /* as in rope_norm_any.cu */

static int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step; }

static bool takes(const norm_build *b, const struct qk_norm_rope_args *a, int64_t heads)
{
    if (b->dim != a->head_dim) return false;
    if (b->lanes == 0) return true;
    return sgk_in_pieces(a->qkv, a->qkv_stride, SGK_BF16) && sgk_in_pieces(a->q_weight, 0, SGK_BF16) && sgk_in_pieces(a->k_weight, 0, SGK_BF16) &&
           (!a->is_neox || a->rot_dim % 16 == 0) && a->tokens * heads <= b->most;
}

static sgk_status qk_norm_rope_cuda(const struct qk_norm_rope_args *a, const char *op, int ordinal, const sgk_exec *exec)
{
    const int64_t heads = (int64_t)a->q_heads + a->k_heads;
    norm_build   *b     = qk_norm_rope_builds;
    while (!takes(b, a, heads)) ++b;
    SGK_LOG_BUILD(exec, op, &b->kernel, b->lanes ? "" : " (heads, weights or the pairs of a head are not in 16-byte pieces)");
    /* Blocks that share a token have equal parts of its heads. */
    const int64_t lanes = b->lanes ? b->lanes : 32, each = up(heads, b->heads), parts = up(each, THREADS / lanes), y = up(each, parts);
    const int64_t z     = THREADS / (lanes * y) < 64 ? THREADS / (lanes * y) : 64;
    sgk_launch    shape = { .grid = { up(a->tokens, z), up(each, y) }, .block = { (unsigned)lanes, (unsigned)y, (unsigned)z } };
    if (!b->lanes) shape = (sgk_launch){ .grid = { a->tokens, up(heads, WARPS) }, .block = { 32 * WARPS } };
    return sgk_cuda_launch(op, &b->kernel, &shape, ordinal, exec, a, sizeof *a);
}

sgk_status sgk_fused_qk_norm_rope(const DLTensor *qkv, const DLTensor *q_weight, const DLTensor *k_weight, const DLTensor *position_ids,
                                  const sgk_qk_norm_rope_options *o, const sgk_exec *exec)
{
    sgk_match m = { .op = "fused_qk_norm_rope" };
    SGK_REQUIRE(o && o->size >= sizeof *o, SGK_BAD_ARG, "%s: options are null or of another size, expected %zu bytes", m.op, sizeof *o);
    SGK_MATCH_OUT(&m, qkv, "T W", 1u << SGK_BF16);
    SGK_MATCH(&m, q_weight, "D", 1u << SGK_BF16);
    SGK_MATCH(&m, k_weight, "D", 1u << SGK_BF16);
    SGK_MATCH(&m, position_ids, "T~", 1u << SGK_I32);
    const int64_t dim = o->head_dim, each = dim / 32, most = INT32_MAX / 4 / QK_NORM_ROPE_MOST;
    SGK_REQUIRE(dim == 64 || dim == 128 || dim == 256, SGK_BAD_ARG, "%s: head_dim is %lld, expected 64, 128 or 256: Unsupported head dimension for fusedQKNormRope",
                m.op, (long long)dim);
    SGK_REQUIRE(SGK_DIM(&m, 'D') == dim, SGK_BAD_ARG, "%s: q_weight has size %lld in dimension 0, expected head_dim, %lld", m.op, (long long)SGK_DIM(&m, 'D'), (long long)dim);
    const int64_t counts[] = { o->num_heads_q, o->num_heads_k, o->num_heads_v };
    for (int i = 0; i < 3; ++i)
        SGK_REQUIRE(counts[i] >= 0 && counts[i] <= most, SGK_BAD_ARG, "%s: num_heads_%c is %lld, expected 0 to %lld", m.op, "qkv"[i], (long long)counts[i], (long long)most);
    const int64_t width = (counts[0] + counts[1] + counts[2]) * dim;
    SGK_REQUIRE(SGK_DIM(&m, 'W') == width, SGK_BAD_ARG, "%s: qkv has size %lld in dimension 1, expected %lld, all heads times head_dim", m.op, (long long)SGK_DIM(&m, 'W'),
                (long long)width);
    const int64_t unit = o->is_neox ? 2 * each : each;
    SGK_REQUIRE(o->rotary_dim >= unit && o->rotary_dim <= dim && o->rotary_dim % unit == 0, SGK_BAD_ARG,
                "%s: rotary_dim is %lld, expected a multiple of %lld up to head_dim, %lld", m.op, (long long)o->rotary_dim, (long long)unit, (long long)dim);
    const double eps = o->eps, base = o->base, factor = o->factor, attention_factor = o->attention_factor, low = o->low, high = o->high;
    SGK_MATCH_FINITE(&m, eps, 0);
    SGK_MATCH_FINITE(&m, base, 1e-30);
    SGK_MATCH_FINITE(&m, factor, 1e-30);
    SGK_MATCH_FINITE(&m, attention_factor, -INFINITY);
    SGK_MATCH_FINITE(&m, low, -INFINITY);
    SGK_MATCH_FINITE(&m, high, -INFINITY);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    struct qk_norm_rope_args a = {
        .qkv              = sgk_data(qkv),
        .q_weight         = sgk_data(q_weight),
        .k_weight         = sgk_data(k_weight),
        .position_ids     = sgk_data(position_ids),
        .tokens           = SGK_DIM(&m, 'T'),
        .qkv_stride       = sgk_stride(qkv, 0),
        .position_stride  = sgk_stride(position_ids, 0),
        .q_heads          = (int32_t)counts[0],
        .k_heads          = (int32_t)counts[1],
        .head_dim         = (int32_t)dim,
        .rot_dim          = (int32_t)o->rotary_dim,
        .is_neox          = o->is_neox,
        .scaled           = factor != 1,
        .eps              = (float)eps,
        .base             = (float)base,
        .factor           = (float)factor,
        .low              = (float)low,
        .high             = (float)(fabs(low - high) <= 1e-6 ? high + 0.001 : high),
        .attention_factor = (float)attention_factor,
    };
    a.step              = (float)(-2 * log2(base) / (double)o->rotary_dim);
    a.slope             = 1 / (a.high - a.low);
    a.gain              = (float)(1 / factor - 1);
    const int64_t heads = counts[0] + counts[1];
    if (a.tokens == 0 || heads == 0) return SGK_OK;
    if (sgk_on_gpu(&m)) return qk_norm_rope_cuda(&a, m.op, m.device.device_id, exec);
    return sgk_cpu_run(m.op, qk_norm_rope_cpu, &a, a.tokens, sgk_cpu_grain(4 * heads * dim), exec);
}
