#include "dsv4.h"
#include <math.h>
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "cuda/indices.h"
#include "sgl_kernel/dsv4.h"

SGK_CPU_DECL(dsv4_q);
SGK_CPU_DECL(dsv4_k);
SGK_CPU_DECL(dsv4_indexer);
static const sgk_cpu_impl q_cpu[]       = SGK_CPU_IMPLS(dsv4_q);
static const sgk_cpu_impl k_cpu[]       = SGK_CPU_IMPLS(dsv4_k);
static const sgk_cpu_impl indexer_cpu[] = SGK_CPU_IMPLS(dsv4_indexer);

/* The first of a kind is for what lies on 16-byte boundaries. */
#define BUILD(name, options) \
    { SGK_KERNEL("dsv4/" name ".cu", name, options "-DALIGNED=1", SGK_GENERAL) }, { SGK_KERNEL("dsv4/" name ".cu", name, options "-DALIGNED=0", SGK_GENERAL) }
typedef struct { sgk_kernel kernel; } build;
static build q_builds[]       = { BUILD("dsv4_q", "-DDIM=128 "), BUILD("dsv4_q", "-DDIM=192 ") };
static build k_builds[]       = { BUILD("dsv4_k", "") };
static build indexer_builds[] = { BUILD("dsv4_indexer", "") };

const sgk_kernel_table dsv4_kernels[] = { SGK_KERNEL_TABLE(q_builds), SGK_KERNEL_TABLE(k_builds), SGK_KERNEL_TABLE(indexer_builds), { 0 } };

enum { THREADS    = 128,
       HEAD_LANES = 8,
       K_LANES    = 32 };                               /* as in the kernels */

static sgk_status launch(build *b, int64_t teams, int lanes, bool pieces, const sgk_match *m, const sgk_exec *exec, const void *args, size_t size)
{
    if (SGK_DIM(m, 'P') == 0) return SGK_OK;            /* no token has a position */
    SGK_REQUIRE(teams <= INT32_MAX - THREADS, SGK_BAD_ARG, "%s: there are %lld heads of all tokens, expected fewer than 2^31", m->op, (long long)teams);
    sgk_kernel *kernel = &b[!pieces].kernel;
    SGK_LOG_BUILD(exec, m->op, kernel, pieces ? "" : " (not everything is in 16-byte pieces)");
    const sgk_launch shape = { .grid = { (teams * lanes + THREADS - 1) / THREADS }, .block = { THREADS } };
    return sgk_cuda_launch(m->op, kernel, &shape, m->device.device_id, exec, args, size);
}

/* ---- arguments ---- */
static sgk_status match_rope(sgk_match *m, const DLTensor *freqs_cis, const DLTensor *positions, struct dsv4_rope *r)
{
    SGK_MATCH(m, freqs_cis, "P 64", 1u << SGK_F32);
    SGK_MATCH(m, positions, "T~", SGK_ANY_INDEX);
    *r = (struct dsv4_rope){
        .freqs           = sgk_data(freqs_cis),
        .positions       = sgk_data(positions),
        .freqs_stride    = sgk_stride(freqs_cis, 0),
        .position_stride = sgk_stride(positions, 0),
        .max_position    = SGK_DIM(m, 'P'),
        .wide            = sgk_dtype_at(positions) == SGK_I64,
    };
    return SGK_OK;
}

static bool rope_in_pieces(const struct dsv4_rope *r) { return sgk_in_pieces(r->freqs, r->freqs_stride, SGK_F32); }

static sgk_status check_positions(const sgk_match *m, const struct dsv4_rope *r, const void *positions)
{
    return sgk_indices_within(m->op, "positions", positions, r->position_stride, r->wide ? SGK_I64 : SGK_I32, SGK_DIM(m, 'T'), r->max_position, "the rows of freqs_cis");
}

/* ---- the norm and rotation of queries ---- */
sgk_status sgk_dsv4_fused_q_norm_rope(const DLTensor *q_output, const DLTensor *q_input, const DLTensor *freqs_cis, const DLTensor *positions,
                                      double eps, const sgk_exec *exec)
{
    sgk_match          m = { .op = "dsv4_fused_q_norm_rope" };
    struct dsv4_q_args a = { 0 };
    SGK_MATCH(&m, q_input, "T H D", 1u << SGK_BF16);
    SGK_MATCH_OUT(&m, q_output, "T H D", 1u << SGK_BF16);
    SGK_TRY(match_rope(&m, freqs_cis, positions, &a.rope));
    const int64_t dim = SGK_DIM(&m, 'D');
    SGK_REQUIRE(dim == 128 || dim == 192, SGK_BAD_ARG, "%s: q_input has size %lld in dimension 2, expected 128 or 192", m.op, (long long)dim);
    SGK_MATCH_FINITE(&m, eps, 0);
    sgk_match_same(&m, q_output, q_input);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    a.output = sgk_data(q_output), a.input = sgk_data(q_input);
    a.tokens = SGK_DIM(&m, 'T'), a.heads = SGK_DIM(&m, 'H'), a.dim = dim;
    a.output_token = sgk_stride(q_output, 0), a.output_head = sgk_stride(q_output, 1);
    a.input_token = sgk_stride(q_input, 0), a.input_head = sgk_stride(q_input, 1);
    a.eps = (float)eps;
    if (a.tokens == 0 || a.heads == 0) return SGK_OK;
    sgk_indices host;
    SGK_TRY(sgk_indices_read(&host, m.op, m.device, (const DLTensor *[]){ positions }, 1, exec));
    SGK_TRY(sgk_indices_done(&host, host.known ? check_positions(&m, &a.rope, host.data[0]) : SGK_OK));
    if (!sgk_on_gpu(&m)) return sgk_cpu_run(m.op, q_cpu, &a, a.tokens, sgk_cpu_grain(4 * a.heads * dim), exec);

    const bool pieces = rope_in_pieces(&a.rope) && sgk_in_pieces(a.input, a.input_token, SGK_BF16) && sgk_in_pieces(a.input, a.input_head, SGK_BF16) &&
                        sgk_in_pieces(a.output, a.output_token, SGK_BF16) && sgk_in_pieces(a.output, a.output_head, SGK_BF16);
    a.by_heads        = sgk_divisor_of(a.heads);
    return launch(q_builds + 2 * (dim == 192), a.tokens * a.heads, HEAD_LANES, pieces, &m, exec, &a, sizeof a);
}

/* ---- keys into the cache ---- */
static sgk_status check_places(const sgk_match *m, const struct dsv4_k_args *a, const void *places)
{
    return sgk_indices_within(m->op, "out_loc", places, a->place_stride, a->places_wide ? SGK_I64 : SGK_I32, SGK_DIM(m, 'T'), a->slots, "the slots of kvcache");
}

sgk_status sgk_dsv4_fused_k_norm_rope_flashmla(const DLTensor *kvcache, const DLTensor *kv, const DLTensor *kv_weight, const DLTensor *freqs_cis,
                                               const DLTensor *positions, const DLTensor *out_loc, double eps, int64_t page_size, const sgk_exec *exec)
{
    sgk_match          m = { .op = "dsv4_fused_k_norm_rope_flashmla" };
    struct dsv4_k_args a = { 0 };
    SGK_MATCH(&m, kv, "T 512", 1u << SGK_BF16);
    SGK_MATCH(&m, kv_weight, "512", 1u << SGK_BF16);
    SGK_TRY(match_rope(&m, freqs_cis, positions, &a.rope));
    SGK_MATCH(&m, out_loc, "T~", SGK_ANY_INDEX);
    SGK_MATCH_OUT(&m, kvcache, "N B", 1u << SGK_U8 | 1u << SGK_E4M3);
    SGK_REQUIRE(page_size >= 1 && page_size <= 256 && (page_size & (page_size - 1)) == 0, SGK_BAD_ARG,
                "%s: page_size is %lld, expected a power of two from 1 to 256", m.op, (long long)page_size);
    const int64_t whole = (page_size * (DSV4_TOKEN_BYTES + DSV4_SCALE_BYTES) + DSV4_TOKEN_BYTES - 1) / DSV4_TOKEN_BYTES * DSV4_TOKEN_BYTES;
    SGK_REQUIRE(SGK_DIM(&m, 'B') == whole, SGK_BAD_ARG, "%s: kvcache has size %lld in dimension 1, expected %lld, a page of %lld tokens", m.op,
                (long long)SGK_DIM(&m, 'B'), (long long)whole, (long long)page_size);
    SGK_MATCH_FINITE(&m, eps, 0);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    a.cache = sgk_data(kvcache), a.kv = sgk_data(kv), a.weight = sgk_data(kv_weight), a.places = sgk_data(out_loc);
    a.tokens = SGK_DIM(&m, 'T'), a.page_size = page_size, a.slots = SGK_DIM(&m, 'N') * page_size;
    a.page_bytes = sgk_stride(kvcache, 0), a.kv_stride = sgk_stride(kv, 0), a.place_stride = sgk_stride(out_loc, 0);
    a.places_wide = sgk_dtype_at(out_loc) == SGK_I64;
    a.eps         = (float)eps;
    if (a.tokens == 0) return SGK_OK;
    sgk_indices host;
    SGK_TRY(sgk_indices_read(&host, m.op, m.device, (const DLTensor *[]){ positions, out_loc }, 2, exec));
    sgk_status verdict = host.known ? check_positions(&m, &a.rope, host.data[0]) : SGK_OK;
    if (host.known && verdict == SGK_OK) verdict = check_places(&m, &a, host.data[1]);
    SGK_TRY(sgk_indices_done(&host, verdict));
    if (!sgk_on_gpu(&m)) return sgk_cpu_run(m.op, k_cpu, &a, a.tokens, sgk_cpu_grain(4 * DSV4_K), exec);

    const bool pieces = rope_in_pieces(&a.rope) && sgk_in_pieces(a.kv, a.kv_stride, SGK_BF16) && sgk_in_pieces(a.weight, 0, SGK_BF16) &&
                        sgk_in_pieces(a.cache, a.page_bytes, SGK_U8);
    return launch(k_builds, a.tokens, K_LANES, pieces, &m, exec, &a, sizeof a);
}

/* ---- the indexer's queries ---- */
sgk_status sgk_dsv4_fused_q_indexer_rope_hadamard_quant(const DLTensor *q_fp8, const DLTensor *weights_out, const DLTensor *q_input, const DLTensor *weight,
                                                        const DLTensor *freqs_cis, const DLTensor *positions, double weight_scale, const sgk_exec *exec)
{
    sgk_match                m = { .op = "dsv4_fused_q_indexer_rope_hadamard_quant" };
    struct dsv4_indexer_args a = { 0 };
    SGK_MATCH(&m, q_input, "T H 128", 1u << SGK_BF16);
    SGK_MATCH_OUT(&m, q_fp8, "T H 128", 1u << SGK_E4M3 | 1u << SGK_U8 | 1u << SGK_I8);
    SGK_MATCH(&m, weight, "T H~", 1u << SGK_BF16);
    SGK_MATCH_OUT(&m, weights_out, "T H 1~", 1u << SGK_F32);
    SGK_TRY(match_rope(&m, freqs_cis, positions, &a.rope));
    SGK_MATCH_FINITE(&m, weight_scale, -INFINITY);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    a.codes = sgk_data(q_fp8), a.weights_out = sgk_data(weights_out), a.input = sgk_data(q_input), a.weight = sgk_data(weight);
    a.tokens = SGK_DIM(&m, 'T'), a.heads = SGK_DIM(&m, 'H');
    a.codes_token = sgk_stride(q_fp8, 0), a.codes_head = sgk_stride(q_fp8, 1);
    a.out_token = sgk_stride(weights_out, 0), a.out_head = sgk_stride(weights_out, 1);
    a.input_token = sgk_stride(q_input, 0), a.input_head = sgk_stride(q_input, 1);
    a.weight_token = sgk_stride(weight, 0), a.weight_head = sgk_stride(weight, 1);
    a.weight_scale = (float)weight_scale;
    if (a.tokens == 0 || a.heads == 0) return SGK_OK;
    sgk_indices host;
    SGK_TRY(sgk_indices_read(&host, m.op, m.device, (const DLTensor *[]){ positions }, 1, exec));
    SGK_TRY(sgk_indices_done(&host, host.known ? check_positions(&m, &a.rope, host.data[0]) : SGK_OK));
    if (!sgk_on_gpu(&m)) return sgk_cpu_run(m.op, indexer_cpu, &a, a.tokens, sgk_cpu_grain(8 * a.heads * DSV4_INDEXER), exec);

    const bool pieces = rope_in_pieces(&a.rope) && sgk_in_pieces(a.input, a.input_token, SGK_BF16) && sgk_in_pieces(a.input, a.input_head, SGK_BF16) &&
                        sgk_in_pieces(a.codes, a.codes_token, SGK_U8) && sgk_in_pieces(a.codes, a.codes_head, SGK_U8);
    a.by_heads        = sgk_divisor_of(a.heads);
    return launch(indexer_builds, a.tokens * a.heads, HEAD_LANES, pieces, &m, exec, &a, sizeof a);
}
