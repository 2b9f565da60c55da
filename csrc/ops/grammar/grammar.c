#include "grammar.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "cuda/indices.h"
#include "sgl_kernel/grammar.h"

SGK_CPU_DECL(token_bitmask);
static const sgk_cpu_impl token_bitmask_cpu[] = SGK_CPU_IMPLS(token_bitmask);

/* Every build of grammar.cu. The last of a size takes any alignment. */
static struct grammar_build {
    sgk_kernel kernel;
    int        size, piece;
} token_bitmask_builds[] = {
    { SGK_KERNEL("grammar/grammar.cu", "token_bitmask", "-DT=uint32_t -DPIECE=4", SGK_GENERAL), 4, 4 },
    { SGK_KERNEL("grammar/grammar.cu", "token_bitmask", "-DT=uint32_t -DPIECE=1", SGK_GENERAL), 4, 1 },
    { SGK_KERNEL("grammar/grammar.cu", "token_bitmask", "-DT=uint16_t -DPIECE=8", SGK_GENERAL), 2, 8 },
    { SGK_KERNEL("grammar/grammar.cu", "token_bitmask", "-DT=uint16_t -DPIECE=1", SGK_GENERAL), 2, 1 },
};

const sgk_kernel_table grammar_kernels[] = { SGK_KERNEL_TABLE(token_bitmask_builds), { 0 } };

enum { THREADS     = 256,
       STEPS       = 2,                    /* as in grammar.cu */
       EARLY_BYTES = 2 << 20 };            /* of logits, up to which latency counts and not what is read */

static sgk_status token_bitmask_cuda(struct token_bitmask_args *a, const char *op, int ordinal, const sgk_exec *exec)
{
    const bool            vectors = (uintptr_t)a->logits % 16 == 0 && (a->count == 1 && !a->indices ? 0 : a->logits_stride * a->size % 16) == 0;
    struct grammar_build *b       = token_bitmask_builds;
    while (b->size != a->size || (b->piece > 1 && !vectors)) ++b;
    const int64_t chunk = THREADS * STEPS * b->piece, chunks = (a->columns + chunk - 1) / chunk;
    a->chunks = sgk_divisor_of(chunks);
    a->early  = a->columns * a->count * a->size <= EARLY_BYTES;

    SGK_LOG_BUILD(exec, op, &b->kernel, b->piece > 1 ? "" : " (rows do not begin at 16 bytes)");
    const sgk_launch shape = { .grid = { chunks * a->count }, .block = { THREADS } };
    return sgk_cuda_launch(op, &b->kernel, &shape, ordinal, exec, a, sizeof *a);
}

static sgk_status check_rows(const sgk_match *m, const struct token_bitmask_args *a, const int32_t *indices)
{
    for (int64_t i = 0; indices && i < a->count; ++i)
        SGK_REQUIRE(indices[i] >= 0 && indices[i] < a->rows, SGK_BAD_ARG, "%s: indices[%lld] is %d, expected 0 to %lld, a row of logits and of bitmask",
                    m->op, (long long)i, indices[i], (long long)a->rows - 1);
    return SGK_OK;
}

sgk_status sgk_apply_token_bitmask_inplace(const DLTensor *logits, const DLTensor *bitmask, const DLTensor *indices, const sgk_exec *exec)
{
    sgk_match m = { .op = "apply_token_bitmask_inplace_cuda" };
    SGK_MATCH_OUT(&m, logits, "*B V", SGK_ANY_FLOAT);
    const sgk_dtype dtype = m.dtype;
    SGK_MATCH(&m, bitmask, "*M W", 1u << SGK_I32);
    SGK_MATCH_OPT(&m, indices, "N", 1u << SGK_I32);
    SGK_REQUIRE(logits->ndim <= 2, SGK_BAD_ARG, "%s: logits has %d dimensions, expected 1 or 2: [B, V]", m.op, logits->ndim);
    SGK_REQUIRE(bitmask->ndim <= 2, SGK_BAD_ARG, "%s: bitmask has %d dimensions, expected 1 or 2: [B, words]", m.op, bitmask->ndim);
    const int64_t rows = SGK_DIM(&m, 'B'), mask_rows = SGK_DIM(&m, 'M'), vocabulary = SGK_DIM(&m, 'V'), words = SGK_DIM(&m, 'W');
    SGK_REQUIRE(words <= vocabulary / 32 + (vocabulary % 32 != 0), SGK_BAD_ARG, "%s: bitmask has size %lld in its last dimension, expected at most %lld, a bit for each logit",
                m.op, (long long)words, (long long)(vocabulary / 32 + (vocabulary % 32 != 0)));
    SGK_REQUIRE(indices || mask_rows == rows, SGK_BAD_ARG, "%s: bitmask has %lld rows, expected %lld like logits, or indices", m.op, (long long)mask_rows, (long long)rows);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    struct token_bitmask_args a = {
        .logits         = sgk_data(logits),
        .bitmask        = sgk_data(bitmask),
        .indices        = sgk_data(indices),
        .count          = indices ? SGK_DIM(&m, 'N') : rows,
        .rows           = rows < mask_rows ? rows : mask_rows,
        .columns        = 32 * words < vocabulary ? 32 * words : vocabulary,
        .logits_stride  = sgk_fold_stride(logits, 1),
        .bitmask_stride = sgk_fold_stride(bitmask, 1),
        .fill           = dtype == SGK_F32 ? 0xff800000u : dtype == SGK_F16 ? 0xfc00fc00u
                                                                            : 0xff80ff80u,
        .size           = sgk_dtype_size(dtype),
    };
    if (a.count == 0 || a.columns == 0) return SGK_OK;
    sgk_indices host;
    SGK_TRY(sgk_indices_read(&host, m.op, m.device, &indices, 1, exec));
    SGK_TRY(sgk_indices_done(&host, host.known ? check_rows(&m, &a, host.data[0]) : SGK_OK));
    if (sgk_on_gpu(&m)) return token_bitmask_cuda(&a, m.op, m.device.device_id, exec);
    const int64_t blocks = (a.columns + GRAMMAR_BLOCK - 1) / GRAMMAR_BLOCK, each = a.columns < GRAMMAR_BLOCK ? a.columns : GRAMMAR_BLOCK;
    return sgk_cpu_run(m.op, token_bitmask_cpu, &a, a.count * blocks, sgk_cpu_grain(each * a.size), exec);
}
