/* The input projection of multi-head latent attention: products with packed weights, and what lies between them. */
#include "gemm_mla.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/indices.h"
#include "gemm_packed_cuda.h"
#include "gemm_packed_run.h"
#include "sgl_kernel/gemm_packed.h"

sgk_cpu_fn                mla_norm_ref, mla_rope_ref;
static const sgk_cpu_impl mla_norm_cpu[] = { { "ref", 0, mla_norm_ref } }, mla_rope_cpu[] = { { "ref", 0, mla_rope_ref } };

/* clang-format off */
#define MLA(type, dtype, heads) { SGK_KERNEL("gemm/gemm_mla.cu", "mla", "-DT=" type " -DHEADS=" #heads, SGK_GENERAL), dtype, heads }
packed_build mla_builds[MLA_BUILDS] = {
    MLA("f32", SGK_F32, 0), MLA("f16", SGK_F16, 0), MLA("bf16", SGK_BF16, 0),
    MLA("f32", SGK_F32, 1), MLA("f16", SGK_F16, 1), MLA("bf16", SGK_BF16, 1),
};
/* clang-format on */

static sgk_status between(const char *op, const struct mla_args *a, bool heads, DLDevice device, const sgk_exec *exec)
{
    if (device.device_type == kDLCUDA) {
        packed_build *b = mla_builds;
        while (b->dtype != a->dtype || b->format != heads) ++b;
        SGK_LOG_BUILD(exec, op, &b->kernel, "");
        const sgk_launch shape = { .grid = { a->tokens }, .block = { 256 } };
        return sgk_cuda_launch(op, &b->kernel, &shape, device.device_id, exec, a, sizeof *a);
    }
    const int64_t bytes = (a->q_rank + a->kv_rank + a->rope) * sgk_dtype_size(a->dtype);
    return heads ? sgk_cpu_run(op, mla_rope_cpu, a, a->tokens * a->heads, sgk_cpu_grain(a->rope * 16), exec)
                 : sgk_cpu_run(op, mla_norm_cpu, a, a->tokens, sgk_cpu_grain(bytes * 4), exec);
}

enum { PLAIN_KIND,
       INT8_KIND,
       FP8_KIND };

/* The first products' weights one behind the other; the second's. */
typedef struct {
    sgk_match                  *m;
    const sgk_qkv_proj_options *o;
    int                         kind;
} mla_call;

/* The scale of a weight with `rows` rows and `depth` columns. `letters`: two that nothing else has. */
static sgk_status match_scale(const mla_call *c, const DLTensor *scale, const char *name, int64_t rows, int64_t depth, const char *letters)
{
    sgk_match *const m = c->m;
    SGK_REQUIRE(!!scale == (c->kind != PLAIN_KIND), SGK_BAD_ARG, "%s: %s is %s, expected %s", m->op, name, scale ? "given" : "NULL", scale ? "none for weights that are not quantised" : "a tensor");
    if (!scale) return SGK_OK;
    const bool one   = c->kind == INT8_KIND;
    const char any[] = { '*', letters[0], 0 }, blocks[] = { letters[0], ' ', letters[1], 0 };
    SGK_TRY(sgk_match_tensor(m, scale, name, one ? any : blocks, 1u << SGK_F32, false));
    SGK_TRY(sgk_match_dense(m, scale, name));
    const int64_t high = one ? rows : packed_ceil(rows, c->o->block_size[0]), wide = one ? 1 : packed_ceil(depth, c->o->block_size[1]);
    SGK_REQUIRE(SGK_DIM(m, letters[0]) == high && (one || SGK_DIM(m, letters[1]) == wide), SGK_BAD_ARG, "%s: %s has size %lld x %lld, expected %lld x %lld", m->op, name,
                (long long)SGK_DIM(m, letters[0]), (long long)(one ? 1 : SGK_DIM(m, letters[1])), (long long)high, (long long)wide);
    return SGK_OK;
}

/* out[:, first ..] = input weight^T */
static struct packed_args projection(const mla_call *c, void *out, int64_t out_stride, const void *input, int64_t input_stride, int64_t rows, int64_t depth,
                                     const DLTensor *weight, const DLTensor *scale)
{
    const sgk_dtype t = c->m->dtype;
    return (struct packed_args){
        .out          = out,
        .input        = input,
        .weight       = sgk_data(weight),
        .scale        = sgk_data(scale),
        .batch        = 1,
        .rows         = SGK_DIM(c->m, 'T'),
        .columns      = rows,
        .depth        = depth,
        .out_stride   = out_stride,
        .input_stride = input_stride,
        .group_n      = c->kind == FP8_KIND ? c->o->block_size[0] : 0,
        .group_k      = c->kind == FP8_KIND ? c->o->block_size[1] : 0,
        .dtype        = t,
        .out_dtype    = t,
        .bias_dtype   = SGK_F32,
        .format       = c->kind == INT8_KIND ? WEIGHT_I8 : c->kind == FP8_KIND ? WEIGHT_E4M3
                                                       : t == SGK_F32          ? WEIGHT_F32
                                                       : t == SGK_F16          ? WEIGHT_F16
                                                                               : WEIGHT_BF16,
    };
}

static int64_t whole(int64_t bytes) { return (bytes + 255) / 256 * 256; }
static size_t most(size_t a, size_t b) { return a > b ? a : b; }

/* kv_a_proj_weight is NULL where q_a_proj_weight has its rows behind its own. */
static sgk_status project(const char *op, const DLTensor *q_input, const DLTensor *k_input, const DLTensor *hidden_states, const DLTensor *q_a_proj_weight,
                          const char *q_a_name, const DLTensor *q_b_proj_weight, const DLTensor *kv_a_proj_weight, const DLTensor *w_kc, const DLTensor *q_a_layernorm_weight,
                          const DLTensor *kv_a_layernorm_weight, const DLTensor *positions, const DLTensor *cos_sin_cache, const sgk_qkv_proj_options *o, bool fused,
                          const sgk_exec *exec)
{
    sgk_match m = { .op = op };
    SGK_REQUIRE(o && o->size >= sizeof *o, SGK_BAD_ARG, "%s: options are NULL or older than this library's, expected sgk_qkv_proj_options", op);
    SGK_REQUIRE(!(o->use_int8_w8a8 && o->use_fp8_w8a16), SGK_BAD_ARG, "%s: use_int8_w8a8 and use_fp8_w8a16 are both true, expected one at most", op);
    SGK_REQUIRE(o->is_vnni, SGK_BAD_ARG, "%s: is_vnni is false, expected packed weights", op);
    const mla_call c = { &m, o, o->use_int8_w8a8 ? INT8_KIND : o->use_fp8_w8a16 ? FP8_KIND
                                                                                : PLAIN_KIND };
    SGK_REQUIRE(c.kind != FP8_KIND || (o->block_count == 2 && o->block_size && o->block_size[0] > 0 && o->block_size[1] > 0 && o->block_size[1] % 32 == 0), SGK_BAD_ARG,
                "%s: block_size has %lld numbers, expected two for weights in e4m3, the second a multiple of 32", op, (long long)o->block_count);
    SGK_MATCH(&m, hidden_states, "T D", SGK_ANY_FLOAT);
    const unsigned same = 1u << m.dtype, weights = c.kind == INT8_KIND ? 1u << SGK_I8 : c.kind == FP8_KIND ? 1u << SGK_E4M3
                                                                                                           : same;
    const bool     i8 = c.kind == INT8_KIND;
    SGK_MATCH(&m, q_a_layernorm_weight, "Q", same);
    SGK_MATCH(&m, kv_a_layernorm_weight, "R", same);
    SGK_MATCH(&m, cos_sin_cache, "P E", same);
    SGK_MATCH(&m, w_kc, "H R N", same | 1u << SGK_E4M3);
    SGK_TRY(sgk_match_tensor(&m, q_a_proj_weight, q_a_name, i8 ? "A L" : "A D", weights, false));
    if (!fused) SGK_MATCH(&m, kv_a_proj_weight, i8 ? "B L" : "B D", weights);
    SGK_MATCH(&m, q_b_proj_weight, i8 ? "C M" : "C Q", weights);
    SGK_MATCH(&m, positions, "T", 1u << SGK_I64);
    SGK_MATCH_OUT(&m, q_input, "T H F", same);
    SGK_MATCH_OUT(&m, k_input, "T 1 F", same);
    const DLTensor *const    dense[] = { q_a_proj_weight, kv_a_proj_weight, q_b_proj_weight, w_kc };
    static const char *const names[] = { "q_a_proj_weight", "kv_a_proj_weight", "q_b_proj_weight", "w_kc" };
    for (int i = 0; i < 4; ++i)
        if (dense[i]) SGK_TRY(sgk_match_dense(&m, dense[i], i == 0 ? q_a_name : names[i]));
    const int64_t tokens = SGK_DIM(&m, 'T'), depth = SGK_DIM(&m, 'D'), q_rank = SGK_DIM(&m, 'Q'), kv_rank = SGK_DIM(&m, 'R'), rope = SGK_DIM(&m, 'E'), heads = SGK_DIM(&m, 'H');
    const int64_t nope = SGK_DIM(&m, 'N'), wide = q_rank + kv_rank + rope, q_wide = heads * (nope + rope);
    SGK_REQUIRE(SGK_DIM(&m, 'F') == kv_rank + rope && rope % 2 == 0, SGK_BAD_ARG, "%s: q_input has rows of %lld, expected %lld and an even %lld", op, (long long)SGK_DIM(&m, 'F'),
                (long long)kv_rank, (long long)rope);
    SGK_REQUIRE(SGK_DIM(&m, 'A') == (fused ? wide : q_rank) && (fused || SGK_DIM(&m, 'B') == kv_rank + rope) && SGK_DIM(&m, 'C') == q_wide, SGK_BAD_ARG,
                "%s: %s has %lld rows, kv_a_proj_weight %lld and q_b_proj_weight %lld, expected %lld, %lld and %lld", op, q_a_name, (long long)SGK_DIM(&m, 'A'),
                (long long)(fused ? 0 : SGK_DIM(&m, 'B')), (long long)SGK_DIM(&m, 'C'), (long long)(fused ? wide : q_rank), (long long)(fused ? 0 : kv_rank + rope), (long long)q_wide);
    SGK_REQUIRE(!i8 || (SGK_DIM(&m, 'L') == depth + 4 && SGK_DIM(&m, 'M') == q_rank + 4), SGK_BAD_ARG, "%s: %s has rows of %lld and q_b_proj_weight of %lld, expected %lld + 4 and %lld + 4", op,
                q_a_name, (long long)SGK_DIM(&m, 'L'), (long long)SGK_DIM(&m, 'M'), (long long)depth, (long long)q_rank);
    if (fused) {
        SGK_REQUIRE(o->q_lora_rank == q_rank && o->kv_lora_rank == kv_rank && o->qk_rope_head_dim == rope, SGK_BAD_ARG,
                    "%s: q_lora_rank, kv_lora_rank and qk_rope_head_dim are %lld, %lld and %lld, expected %lld, %lld and %lld from the norms and cos_sin_cache", op,
                    (long long)o->q_lora_rank, (long long)o->kv_lora_rank, (long long)o->qk_rope_head_dim, (long long)q_rank, (long long)kv_rank, (long long)rope);
        SGK_TRY(match_scale(&c, o->q_a_proj_scale, "qkv_a_proj_scale", wide, depth, "SU"));
    } else {
        SGK_TRY(match_scale(&c, o->q_a_proj_scale, "q_a_proj_scale", q_rank, depth, "SU"));
        SGK_TRY(match_scale(&c, o->kv_a_proj_scale, "kv_a_proj_scale", kv_rank + rope, depth, "VW"));
    }
    SGK_TRY(match_scale(&c, o->q_b_proj_scale, "q_b_proj_scale", q_wide, q_rank, "XY"));
    const bool      e4m3    = sgk_dtype_at(w_kc) == SGK_E4M3;
    const DLTensor *w_scale = o->w_scale;
    SGK_MATCH_OPT(&m, w_scale, "", 1u << SGK_F32);
    SGK_REQUIRE(e4m3 || !w_scale, SGK_BAD_ARG, "%s: w_scale is given for w_kc in %s, expected w_kc in e4m3", op, sgk_dtypes[m.dtype].name);
    SGK_TRY(sgk_match_done(&m));
    sgk_indices host;
    SGK_TRY(sgk_indices_read(&host, op, m.device, (const DLTensor *[]){ positions }, 1, exec));
    SGK_TRY(sgk_indices_done(&host, host.known ? sgk_indices_within(op, "positions", host.data[0], sgk_stride(positions, 0), SGK_I64, tokens, SGK_DIM(&m, 'P'), "the rows of cos_sin_cache")
                                               : SGK_OK));

    const int64_t      size = sgk_dtype_size(m.dtype), a_bytes = whole(tokens * wide * size), q_bytes = whole(tokens * q_wide * size);
    struct packed_args first  = projection(&c, NULL, wide, sgk_data(hidden_states), sgk_stride(hidden_states, 0), fused ? wide : q_rank, depth, q_a_proj_weight, o->q_a_proj_scale);
    struct packed_args kv     = fused ? first : projection(&c, NULL, wide, first.input, first.input_stride, kv_rank + rope, depth, kv_a_proj_weight, o->kv_a_proj_scale);
    struct packed_args second = projection(&c, NULL, q_wide, NULL, wide, q_wide, q_rank, q_b_proj_weight, o->q_b_proj_scale);
    struct packed_args latent = {
        .out          = sgk_data(q_input),
        .weight       = sgk_data(w_kc),
        .scale        = sgk_data(w_scale),
        .batch        = heads,
        .rows         = tokens,
        .columns      = kv_rank,
        .depth        = nope,
        .out_batch    = sgk_stride(q_input, 1),
        .out_stride   = sgk_stride(q_input, 0),
        .input_batch  = nope + rope,
        .input_stride = q_wide,
        .weight_batch = kv_rank * nope * sgk_dtype_size(sgk_dtype_at(w_kc)),
        .group_n      = kv_rank ? kv_rank : 1,
        .group_k      = nope ? nope : 1,
        .dtype        = m.dtype,
        .out_dtype    = m.dtype,
        .bias_dtype   = SGK_F32,
        .format       = e4m3 ? WEIGHT_E4M3 : m.dtype == SGK_F32 ? WEIGHT_F32
                                         : m.dtype == SGK_F16   ? WEIGHT_F16
                                                                : WEIGHT_BF16,
    };
    const size_t products = most(most(packed_scratch(&first, i8, m.device, exec), packed_scratch(&kv, i8, m.device, exec)),
                                 most(packed_scratch(&second, i8, m.device, exec), packed_scratch(&latent, false, m.device, exec)));
    sgk_scratch  scratch;
    SGK_TRY(sgk_scratch_get(&scratch, op, tokens && heads ? (size_t)(a_bytes + q_bytes) + products : 0, m.device, exec));
    if (scratch.query_only || tokens == 0 || heads == 0) {
        sgk_scratch_put(&scratch);
        return SGK_OK;
    }
    char *const a = scratch.memory, *const q = a + a_bytes, *const room = q + q_bytes;
    first.out = a, kv.out = a + q_rank * size, second.input = a, second.out = q, latent.input = q;
    const struct mla_args middle = {
        .a              = a,
        .q              = q,
        .q_input        = sgk_data(q_input),
        .k_input        = sgk_data(k_input),
        .q_weight       = sgk_data(q_a_layernorm_weight),
        .kv_weight      = sgk_data(kv_a_layernorm_weight),
        .cos_sin        = sgk_data(cos_sin_cache),
        .positions      = sgk_data(positions),
        .tokens         = tokens,
        .heads          = heads,
        .q_rank         = q_rank,
        .kv_rank        = kv_rank,
        .nope           = nope,
        .rope           = rope,
        .q_token        = sgk_stride(q_input, 0),
        .q_head         = sgk_stride(q_input, 1),
        .k_token        = sgk_stride(k_input, 0),
        .cos_sin_stride = sgk_stride(cos_sin_cache, 0),
        .eps            = (float)o->eps,
        .dtype          = m.dtype,
    };
    sgk_status status = packed_run(op, &first, i8, room, m.device, exec);
    if (status == SGK_OK && !fused) status = packed_run(op, &kv, i8, room, m.device, exec);
    if (status == SGK_OK) status = between(op, &middle, false, m.device, exec);
    if (status == SGK_OK) status = packed_run(op, &second, i8, room, m.device, exec);
    if (status == SGK_OK) status = packed_run(op, &latent, false, room, m.device, exec);
    if (status == SGK_OK) status = between(op, &middle, true, m.device, exec);
    sgk_scratch_put(&scratch);
    return status;
}

sgk_status sgk_qkv_proj_with_rope(const DLTensor *q_input, const DLTensor *k_input, const DLTensor *hidden_states, const DLTensor *q_a_proj_weight,
                                  const DLTensor *q_b_proj_weight, const DLTensor *kv_a_proj_weight, const DLTensor *w_kc, const DLTensor *q_a_layernorm_weight,
                                  const DLTensor *kv_a_layernorm_weight, const DLTensor *positions, const DLTensor *cos_sin_cache, const sgk_qkv_proj_options *options,
                                  const sgk_exec *exec)
{
    return project("qkv_proj_with_rope", q_input, k_input, hidden_states, q_a_proj_weight, "q_a_proj_weight", q_b_proj_weight, kv_a_proj_weight, w_kc, q_a_layernorm_weight,
                   kv_a_layernorm_weight, positions, cos_sin_cache, options, false, exec);
}

sgk_status sgk_qkv_proj_with_rope_fused_weight(const DLTensor *q_input, const DLTensor *k_input, const DLTensor *hidden_states, const DLTensor *qkv_a_proj_weight,
                                               const DLTensor *q_b_proj_weight, const DLTensor *w_kc, const DLTensor *q_a_layernorm_weight,
                                               const DLTensor *kv_a_layernorm_weight, const DLTensor *positions, const DLTensor *cos_sin_cache,
                                               const sgk_qkv_proj_options *options, const sgk_exec *exec)
{
    return project("qkv_proj_with_rope_fused_weight", q_input, k_input, hidden_states, qkv_a_proj_weight, "qkv_a_proj_weight", q_b_proj_weight, NULL, w_kc, q_a_layernorm_weight,
                   kv_a_layernorm_weight, positions, cos_sin_cache, options, true, exec);
}
