/*
 * Tensors of more than 2^31 and of more than 2^32 elements: one operator of each kind whose rows do not depend on each other.
 *
 * Row r of a large tensor repeats row r % period of the case's small one, a prime number of rows, so that a row found at a wrong address
 * is another row. The reference runs on the small tensors; of the large ones the memory under test holds all, and a row for each of
 * the small tensor's is compared: the first and the last, those beside element 2^31 and 2^32, the others anywhere.
 */
#include <stdlib.h>
#include "cuda/memory.h"
#include "harness.h"
#include "sgk_config.h"

typedef struct {
    check_tensor *tensor;
    bool          grows;            /* along its first dimension */
    char         *memory;
    size_t        row;              /* bytes */
    DLTensor      view;
    int64_t       shape[MAX_DIMS];
} large_tensor;

enum { MOST_ROWS = 1024 };
static large_tensor larges[MAX_TENSORS];
static int          large_count, step;
static int64_t      rows, period, picked[MOST_ROWS];        /* picked[i] % period is i */
static sgk_exec     exec;

/* ---- memory of the level under test ---- */
static bool done(sgk_status status)
{
    if (status) fail("%s", sgk_last_error());
    return !status;
}

static char *take(size_t bytes)
{
    void *memory = NULL;
    if (!level->gpu) return malloc(bytes);
    return sgk_cuda_alloc(0, bytes, &memory) ? NULL : memory;
}

static void give_back(char *memory)
{
    if (!level->gpu) free(memory);
    else done(sgk_cuda_free(0, memory));
}

static bool put(char *to, const char *from, size_t bytes)
{
    if (level->gpu) return done(sgk_cuda_copy_from_host(0, to, from, bytes, gpu_stream()));
    return memcpy(to, from, bytes) != NULL;
}

static bool get(char *to, const char *from, size_t bytes)
{
    if (level->gpu) return done(sgk_cuda_copy_to_host(0, to, from, bytes, gpu_stream()));
    return memcpy(to, from, bytes) != NULL;
}

static bool move(char *to, const char *from, size_t bytes)
{
    if (level->gpu) return done(sgk_cuda_copy(0, to, from, bytes, gpu_stream()));
    return memcpy(to, from, bytes) != NULL;
}

/* ---- a case ---- */
static large_tensor *large_of(check_tensor *t)
{
    for (int i = 0; i < large_count; ++i)
        if (larges[i].tensor == t) return &larges[i];
    large_tensor *l = &larges[large_count++];
    *l              = (large_tensor){ .tensor = t };
    return l;
}

/* This tensor has the case's rows. */
static check_tensor *grown(check_tensor *t)
{
    large_of(t)->grows = true;
    return t;
}

/* A tensor of `row_elements` a row passes `elements`. */
static bool begin(const char *op, int power, int64_t row_elements, int64_t small_rows)
{
    if (!check_case("%s_past_2^%d", op, power)) return false;
    const int64_t border[] = { ((int64_t)1 << 31) / row_elements, ((int64_t)1 << 32) / row_elements };
    rows = ((int64_t)1 << power) / row_elements + 3 * small_rows + 1, period = small_rows, large_count = 0, step = 0;
    for (int64_t i = 0; i < period; ++i) picked[i] = i + period * (int64_t)(((uint64_t)random_bits() << 32 | random_bits()) % (uint64_t)((rows - 1 - i) / period + 1));
    for (int b = 0; b < 2; ++b)
        for (int64_t r = border[b] - 1; r <= border[b] + 1; ++r)
            if (r < rows) picked[r % period] = r;
    picked[0] = 0, picked[(rows - 1) % period] = rows - 1;
    return true;
}

static bool prepare_small(void)
{
    in_reference = true;
    sgk_cpu_mask(0);
    exec = (sgk_exec)SGK_EXEC_INIT;
    for (int i = 0; i < tensor_count; ++i) {
        tensor_restore(&tensors[i], tensors[i].ref, FILL_FIRST);
        tensors[i].legal = 0;
        large_of(&tensors[i]);
    }
    return true;
}

static bool prepare_large(void)
{
    in_reference = false;
    sgk_cpu_mask(level->flags);
    exec = (sgk_exec)SGK_EXEC_INIT;
    if (level->gpu) exec.stream = gpu_stream();
    for (int i = 0; i < large_count; ++i) {
        large_tensor       *l     = &larges[i];
        const check_tensor *t     = l->tensor;
        const size_t        bytes = l->grows ? (size_t)rows * (t->span / (size_t)period) : t->span;
        l->row                    = t->span / (size_t)t->shape[0];
        l->memory                 = take(bytes);
        if (!l->memory) {
            fail("no memory for %zu MB of a test tensor", bytes >> 20);
            return false;
        }
        if (!put(l->memory, t->saved, t->span)) return false;
        for (size_t have = t->span; have < bytes; have *= 2)        /* whole periods until the last copy */
            if (!move(l->memory + have, l->memory, have < bytes - have ? have : bytes - have)) return false;
    }
    return true;
}

static bool next_call(void)
{
    return step < 2 && !case_failed && (step == 0 ? prepare_small() : prepare_large());
}

static void end_call(sgk_status status)
{
    if (!done(status) || step++ == 0) return;
    if (level->gpu && !done(sgk_cuda_sync(0, gpu_stream()))) return;
    for (int i = 0; i < large_count; ++i) {
        const large_tensor *l = &larges[i];
        if (!l->tensor->written) continue;
        for (int64_t r = 0; r < l->tensor->shape[0]; ++r)
            if (!get(l->tensor->first + (size_t)r * l->row, l->memory + (size_t)(l->grows ? picked[r] : r) * l->row, l->row)) return;
    }
    call_succeeded = true;
}

static void end(void)
{
    in_reference = false;
    sgk_cpu_mask(level->flags);
    for (int i = 0; i < large_count; ++i)
        if (larges[i].memory) give_back(larges[i].memory);
    large_count    = 0;
    call_succeeded = false;
    check_done(0, 0);
}

static const DLTensor *view(check_tensor *t)
{
    large_tensor *l = large_of(t);
    memcpy(l->shape, t->shape, sizeof l->shape);
    if (!in_reference && l->grows) l->shape[0] = rows;
    l->view = (DLTensor){
        .data    = in_reference ? tensor_data(t, t->ref) : l->memory,
        .device  = { level->gpu && !in_reference ? kDLCUDA : kDLCPU, 0 },
        .ndim    = t->ndim,
        .dtype   = sgk_dtypes[t->dtype].dl,
        .shape   = l->shape,
        .strides = t->strides,
    };
    return &l->view;
}

#define L(t) view(t)
#define LARGE_CALL(call) \
    while (next_call()) end_call(call)

/* ---- the cases ---- */
static void check_power(int power)
{
    const int64_t few = 257, fewer = 31;
    (void)few, (void)fewer;                                 /* a build may leave out all that uses them */
#if SGK_HAVE_NORM
    if (begin("rmsnorm_bf16", power, 4096, few)) {
        check_tensor *x = grown(check_input_dense(SGK_BF16, 2, few, (int64_t)4096)), *y = grown(check_output_dense(SGK_BF16, 2, few, (int64_t)4096));
        check_tensor *w = check_input_dense(SGK_BF16, 1, (int64_t)4096);
        LARGE_CALL(sgk_rmsnorm(L(y), L(x), L(w), 1e-6, &exec));
        check_close(y, check_tolerance(SGK_BF16));
        end();
    }
    if (begin("fused_add_layernorm_cpu_bf16", power, 1001, few)) {     /* rows not in pieces of 16 bytes */
        check_tensor *x = grown(check_input_dense(SGK_BF16, 2, few, (int64_t)1001)), *y = grown(check_output_dense(SGK_BF16, 2, few, (int64_t)1001));
        check_tensor *r = grown(check_inout_dense(SGK_BF16, 2, few, (int64_t)1001)), *w = check_input_dense(SGK_BF16, 1, (int64_t)1001);
        LARGE_CALL(sgk_fused_add_layernorm(L(y), L(x), L(r), L(w), NULL, 1e-6, &exec));
        check_close(y, check_tolerance(SGK_BF16));
        check_close(r, check_tolerance(SGK_BF16));
        end();
    }
#endif
#if SGK_HAVE_ACT
    if (begin("silu_and_mul_bf16", power, 8192, few)) {
        check_tensor *x = grown(check_input_dense(SGK_BF16, 2, few, (int64_t)8192)), *y = grown(check_output_dense(SGK_BF16, 2, few, (int64_t)4096));
        LARGE_CALL(sgk_silu_and_mul(L(y), L(x), &exec));
        check_close(y, check_tolerance(SGK_BF16));
        end();
    }
#endif
#if SGK_HAVE_ROPE
    if (begin("rotary_embedding_bf16", power, 32 * 128, few)) {
        check_tensor *q = grown(check_inout_dense(SGK_BF16, 2, few, (int64_t)32 * 128)), *k = grown(check_inout_dense(SGK_BF16, 2, few, (int64_t)8 * 128));
        check_tensor *positions = grown(check_index(SGK_I64, 0, 99, 1, few)), *cache = check_input_dense(SGK_BF16, 2, (int64_t)100, (int64_t)128);
        LARGE_CALL(sgk_rotary_embedding(L(q), L(k), L(positions), L(cache), 128, true, &exec));
        check_close(q, check_tolerance(SGK_BF16));
        check_close(k, check_tolerance(SGK_BF16));
        end();
    }
#endif
#if SGK_HAVE_QUANT
    if (begin("sgl_per_token_quant_fp8_bf16", power, 7168, few)) {
        check_tensor *x = grown(check_input_dense(SGK_BF16, 2, few, (int64_t)7168)), *q = grown(check_output_dense(SGK_E4M3, 2, few, (int64_t)7168));
        check_tensor *s = grown(check_output_dense(SGK_F32, 1, few));
        LARGE_CALL(sgk_per_token_quant_fp8(L(q), L(s), L(x), &exec));
        check_close(q, check_tolerance(SGK_E4M3));
        check_close(s, check_tolerance(SGK_F32));
        end();
    }
#endif
#if SGK_HAVE_COPY
    if (begin("concat_mla_k_bf16", power, 128 * 192, few)) {
        check_tensor *k    = grown(check_output_dense(SGK_BF16, 3, few, (int64_t)128, (int64_t)192));
        check_tensor *nope = grown(check_input_dense(SGK_BF16, 3, few, (int64_t)128, (int64_t)128)), *rope = grown(check_input_dense(SGK_BF16, 3, few, (int64_t)1, (int64_t)64));
        LARGE_CALL(sgk_concat_mla_k(L(k), L(nope), L(rope), &exec));
        check_equal(k);
        end();
    }
#endif
#if SGK_HAVE_KVCACHE
    if (begin("store_kv_cache_bf16", power, 8 * 128, few)) {
        check_tensor *k_cache = grown(check_output_dense(SGK_BF16, 2, few, (int64_t)8 * 128)), *v_cache = grown(check_output_dense(SGK_BF16, 2, few, (int64_t)8 * 128));
        check_tensor *k = check_input_dense(SGK_BF16, 2, few, (int64_t)8 * 128), *v = check_input_dense(SGK_BF16, 2, few, (int64_t)8 * 128);
        check_tensor *place = check_index(SGK_I64, 0, 0, 1, few);
        for (int64_t i = 0; i < few; ++i) check_set(place, i, (double)i);
        while (next_call()) {
            if (!in_reference && !put(large_of(place)->memory, (const char *)picked, sizeof *picked * (size_t)few)) break;
            end_call(sgk_store_kv_cache(L(k_cache), L(v_cache), L(place), L(k), L(v), &exec));
        }
        check_equal(k_cache);
        check_equal(v_cache);
        end();
    }
#endif
#if SGK_HAVE_ATTENTION
    if (begin("merge_state_v2_bf16", power, 32 * 128, few)) {
        check_tensor *a = grown(check_input_dense(SGK_BF16, 3, few, (int64_t)32, (int64_t)128)), *b = grown(check_input_dense(SGK_BF16, 3, few, (int64_t)32, (int64_t)128));
        check_tensor *sa = grown(check_input_dense(SGK_F32, 2, few, (int64_t)32)), *sb = grown(check_input_dense(SGK_F32, 2, few, (int64_t)32));
        check_tensor *merged = grown(check_output_dense(SGK_BF16, 3, few, (int64_t)32, (int64_t)128)), *s = grown(check_output_dense(SGK_F32, 2, few, (int64_t)32));
        LARGE_CALL(sgk_merge_state_v2(L(merged), L(s), L(a), L(sa), L(b), L(sb), &exec));
        check_close(merged, check_tolerance(SGK_BF16));
        check_close(s, 1e-5);
        end();
    }
#endif
#if SGK_HAVE_SAMPLING
    if (begin("softmax_bf16", power, 131072, fewer)) {
        check_tensor *x = grown(check_input_dense(SGK_BF16, 2, fewer, (int64_t)131072)), *y = grown(check_output_dense(SGK_F32, 2, fewer, (int64_t)131072));
        LARGE_CALL(sgk_softmax(L(y), L(x), NULL, 1, &exec));
        check_close(y, 1e-5);
        end();
    }
    if (begin("top_k_top_p_sampling_from_probs", power, 131072, fewer)) {
        check_tensor *probs = grown(check_input_dense(SGK_F32, 2, fewer, (int64_t)131072)), *out = grown(check_output_dense(SGK_I32, 1, fewer));
        check_tensor *seed = grown(check_index(SGK_I64, 0, (int64_t)1 << 50, 1, fewer));
        LARGE_CALL(sgk_top_k_top_p_sampling_from_probs(L(probs), L(out), NULL, NULL, 50, NULL, 0.9, true, L(seed), &exec));
        check_equal(out);
        end();
    }
#endif
#if SGK_HAVE_MOE
    if (begin("moe_sum_reduce_bf16", power, 8 * 4096, few)) {
        check_tensor *x = grown(check_input_dense(SGK_BF16, 3, few, (int64_t)8, (int64_t)4096)), *y = grown(check_output_dense(SGK_BF16, 2, few, (int64_t)4096));
        LARGE_CALL(sgk_moe_sum_reduce(L(y), L(x), 2.5, &exec));
        check_close(y, check_tolerance(SGK_BF16));
        end();
    }
#endif
}

void check_large(void)
{
    check_power(31);
    check_power(32);
}
