#include <math.h>
#include <stdio.h>
#include <string.h>
#include "attention_lightning.h"
#include "attention_merge.h"
#include "attention_metadata.h"
#include "attention_pool.h"
#include "attention_slash.h"
#include "attention_sparse.h"
#include "check/check.h"

enum { BATCH = 8 };                         /* the most sequences of a case */

typedef enum { DENSE,
               PACKED,
               PAGED } layout;

/* What a case is about; lengths are drawn. */
typedef struct {
    sgk_dtype dtype;
    int64_t   heads, kv_heads, dim, dim_v;  /* dim_v 0: dim */
    int       batch, queries, keys;         /* lengths up to queries and keys */
    layout    cache;
    int       page_size;
    bool      packed_q, packed_new, append, causal, lse, seqused_q, seqused_k, batch_idx, leftpad;
    int       left, right, splits;
    bool      same_lengths, unaligned, invariant, keep_arguments;
    double    scale, softcap;
    int       chunk, sinks, rotary;         /* sinks: their format + 1; rotary: elements that rotate */
    bool      q_v, descales, top_left, interleaved, seqlens_rotary;
    int       margin, few;                  /* few: so many queries at most in every second sequence, and nearly `queries` in the others */
    bool      mixed;                        /* lengths are those of `mixture`, cut to queries and keys */
} shape;

/* What may be in one batch: queries that decode, some more, chunks, a whole prompt; and keys of one part and of several. */
static const struct {
    int queries, keys;
} mixture[BATCH] = { { 1, 2600 }, { 200, 330 }, { 3, 300 }, { 64, 290 }, { 1, 37 }, { 16, 530 }, { 140, 140 }, { 33, 600 } };

typedef struct {
    shape s;
    void (*spoil)(sgk_flash_attn_options *);                /* what a case does to its options to make them illegal */
    check_tensor *out, *softmax_lse, *q, *k, *v, *k_new, *v_new;
    check_tensor *cu_seqlens_q, *cu_seqlens_k, *cu_seqlens_k_new, *seqused_q, *seqused_k, *page_table, *kv_batch_idx, *leftpad_k;
    check_tensor *q_v, *sinks, *rotary_cos, *rotary_sin, *seqlens_rotary, *q_descale, *k_descale, *v_descale;
    check_tensor *alone_out, *alone_lse, *alone_q, *alone_k;    /* what each sequence gives alone; cumulative lengths of one sequence, [batch, 2] */
    int           queries[BATCH], used[BATCH];
} tensors;

static sgk_status evaluate(tensors *t)
{
    sgk_flash_attn_options o = SGK_FLASH_ATTN_OPTIONS_INIT;
    o.k_new = T(t->k_new), o.v_new = T(t->v_new);
    o.cu_seqlens_q = T(t->cu_seqlens_q), o.cu_seqlens_k = T(t->cu_seqlens_k);
    o.cu_seqlens_k_new = T(t->cu_seqlens_k_new), o.seqused_q = T(t->seqused_q);
    o.seqused_k = T(t->seqused_k), o.page_table = T(t->page_table);
    o.kv_batch_idx = T(t->kv_batch_idx), o.leftpad_k = T(t->leftpad_k);
    o.max_seqlen_q     = t->s.packed_q ? t->s.queries : -1;
    o.max_seqlen_k     = t->s.cache == PACKED ? t->s.keys : -1;
    o.causal           = t->s.causal;
    o.window_size_left = t->s.left, o.window_size_right = t->s.right;
    o.softmax_scale = t->s.scale;
    o.num_splits    = t->s.splits;
    o.sm_margin     = t->s.margin;
    o.q_v = T(t->q_v), o.sinks = T(t->sinks);
    o.rotary_cos = T(t->rotary_cos), o.rotary_sin = T(t->rotary_sin), o.seqlens_rotary = T(t->seqlens_rotary);
    o.q_descale = T(t->q_descale), o.k_descale = T(t->k_descale), o.v_descale = T(t->v_descale);
    o.softcap = t->s.softcap, o.attention_chunk = t->s.chunk, o.top_left = t->s.top_left, o.rotary_interleaved = t->s.interleaved;
    if (t->spoil) t->spoil(&o);
    return sgk_flash_attn(T(t->out), T(t->softmax_lse), T(t->q), T(t->k), T(t->v), &o, check_exec);
}

static int least(int x, int y) { return x < y ? x : y; }

static int length(const shape *s, int most) { return s->same_lengths ? most : check_int(0, 7) ? check_int(0, most)
                                                                                              : 0; }

static check_tensor *cumulative(const int *lengths, int batch)
{
    double values[BATCH + 1] = { 0 };
    for (int n = 0; n < batch; ++n) values[n + 1] = values[n] + lengths[n];
    return check_values(SGK_I32, values, 1, (int64_t)batch + 1);
}

static check_tensor *each(const int *lengths, int batch)
{
    double values[BATCH];
    for (int n = 0; n < batch; ++n) values[n] = lengths[n];
    return check_values(SGK_I32, values, 1, (int64_t)batch);
}

static int sum(const int *lengths, int batch)
{
    int total = 0;
    for (int n = 0; n < batch; ++n) total += lengths[n];
    return total;
}

/* Pages in a shuffled order: a multiplication by a number without a factor in common with their count. Entries that no length reaches name no page. */
static check_tensor *page_table(const shape *s, const int *used, int64_t *pages)
{
    const int64_t width = (s->keys + s->page_size - 1) / s->page_size;
    *pages              = s->batch * width + s->batch + 1;
    int64_t step        = 7;
    while (*pages % step == 0) ++step;
    for (int64_t a = step, b = *pages; b;) {                            /* until they have none */
        const int64_t rest = a % b;
        a = b, b = rest;
        if (b == 0 && a != 1) a = ++step, b = *pages;
    }
    check_tensor *t = check_values(SGK_I32, (double[BATCH * 4096]){ 0 }, 2, (int64_t)s->batch, width);
    for (int n = 0; n < s->batch; ++n)
        for (int64_t p = 0; p < width; ++p)
            check_set(t, n * width + p, p * s->page_size < used[n] ? (double)((n * width + p + 1) * step % *pages) : p % 2 ? -5
                                                                                                                           : 1e9);
    return t;
}

static int64_t dim_v(const shape *s) { return s->dim_v ? s->dim_v : s->dim; }
static sgk_dtype out_dtype(const shape *s) { return s->dtype == SGK_E4M3 ? SGK_BF16 : s->dtype; }

/* Tensors of a case, all but k and v. On the way lengths are drawn; used[n] is what sequence n fills of its cache in the end. */
static void make_queries(tensors *t, int queries[BATCH])
{
    const shape *s = &t->s;
    for (int n = 0; n < s->batch; ++n)
        queries[n] = s->mixed ? least(mixture[n].queries, s->queries) : s->few    ? n % 2 ? check_int(1, s->few) : check_int(s->queries - 9, s->queries)
                                                                    : s->packed_q ? length(s, s->queries)
                                                                                  : s->queries;
    const int64_t total                        = sum(queries, s->batch);
    check_tensor *(*make)(sgk_dtype, int, ...) = s->seqused_q ? check_inout : check_output;     /* what lies behind seqused_q must stay */
    if (s->packed_q) {
        t->q            = check_input(s->dtype, 3, total, s->heads, s->dim);
        t->out          = make(out_dtype(s), 3, total, s->heads, dim_v(s));
        t->q_v          = s->q_v ? check_input(s->dtype, 3, total, s->heads, dim_v(s)) : NULL;
        t->softmax_lse  = s->lse ? make(SGK_F32, 2, s->heads, total) : NULL;
        t->cu_seqlens_q = cumulative(queries, s->batch);
    } else {
        t->q           = check_input(s->dtype, 4, (int64_t)s->batch, (int64_t)s->queries, s->heads, s->dim);
        t->out         = make(out_dtype(s), 4, (int64_t)s->batch, (int64_t)s->queries, s->heads, dim_v(s));
        t->q_v         = s->q_v ? check_input(s->dtype, 4, (int64_t)s->batch, (int64_t)s->queries, s->heads, dim_v(s)) : NULL;
        t->softmax_lse = s->lse ? make(SGK_F32, 3, (int64_t)s->batch, s->heads, (int64_t)s->queries) : NULL;
    }
    if (s->seqused_q) {
        for (int n = 0; n < s->batch; ++n) queries[n] = check_int(0, queries[n]);
        t->seqused_q = each(queries, s->batch);
        check_legal(t->seqused_q, CHECK_NULL);
    }
    if (t->softmax_lse) check_legal(t->softmax_lse, CHECK_NULL);
    if (t->q_v) check_legal(t->q_v, CHECK_NULL);
    if (s->unaligned) check_unaligned(t->q);
    if (s->sinks) {
        t->sinks = check_input((sgk_dtype)(s->sinks - 1), 1, s->heads);
        check_legal(t->sinks, CHECK_NULL | CHECK_DTYPE);
    }
    for (int i = 0; s->descales && i < 3; ++i) {
        check_tensor *d = check_input(SGK_F32, 2, (int64_t)s->batch, s->kv_heads);
        for (int64_t j = 0; j < s->batch * s->kv_heads; ++j) check_set(d, j, 0.2 + 0.1 * check_int(0, 9));
        check_legal(d, CHECK_NULL | CHECK_STRIDE);
        *(check_tensor * *[]){ &t->q_descale, &t->k_descale, &t->v_descale }[i] = d;
    }
}

static void make_cache(tensors *t, int used[BATCH])
{
    const shape *s            = &t->s;
    int          fresh[BATCH] = { 0 };
    for (int n = 0; n < s->batch; ++n) used[n] = s->mixed ? least(mixture[n].keys, s->keys) : length(s, s->keys);
    if (s->append) {
        const int most = s->keys < 9 ? s->keys : 9;
        for (int n = 0; n < s->batch; ++n) {
            fresh[n] = s->packed_new ? check_int(0, most) : most;
            if (used[n] + fresh[n] > s->keys) used[n] = s->keys - fresh[n];
        }
        if (s->packed_new) {
            t->k_new            = check_input(s->dtype, 3, (int64_t)sum(fresh, s->batch), s->kv_heads, s->dim);
            t->v_new            = check_input(s->dtype, 3, (int64_t)sum(fresh, s->batch), s->kv_heads, dim_v(s));
            t->cu_seqlens_k_new = cumulative(fresh, s->batch);
        } else {
            t->k_new = check_input(s->dtype, 4, (int64_t)s->batch, (int64_t)most, s->kv_heads, s->dim);
            t->v_new = check_input(s->dtype, 4, (int64_t)s->batch, (int64_t)most, s->kv_heads, dim_v(s));
        }
        if (s->unaligned) check_unaligned(t->v_new);
        if (s->rotary) {
            const int64_t positions = s->keys + s->queries + 10;        /* queries may be beyond the new keys */
            t->rotary_cos           = check_input(s->dtype, 2, positions, (int64_t)s->rotary / 2);
            t->rotary_sin           = check_input(s->dtype, 2, positions, (int64_t)s->rotary / 2);
            for (int64_t i = 0; i < positions * s->rotary / 2; ++i) {
                const double angle = check_normal() * 3;
                check_set(t->rotary_cos, i, cos(angle));
                check_set(t->rotary_sin, i, sin(angle));
            }
            check_legal(t->rotary_cos, CHECK_SIZE(0)), check_legal(t->rotary_sin, CHECK_SIZE(0));
            if (s->seqlens_rotary) {
                int at[BATCH];
                for (int n = 0; n < s->batch; ++n) at[n] = check_int(0, s->keys);
                t->seqlens_rotary = each(at, s->batch);
                check_legal(t->seqlens_rotary, CHECK_NULL);
            }
        }
    }
    if (s->seqused_k || s->append || s->cache == PAGED) {
        t->seqused_k = each(used, s->batch);
        if (!s->append) check_legal(t->seqused_k, CHECK_NULL);
    } else if (s->cache == DENSE) {
        for (int n = 0; n < s->batch; ++n) used[n] = s->keys;
    }
    for (int n = 0; n < s->batch; ++n) used[n] += fresh[n];
}

static void make_keys(tensors *t, const int used[BATCH])
{
    const shape *s                             = &t->s;
    check_tensor *(*make)(sgk_dtype, int, ...) = s->append ? check_inout : check_input;
    if (s->cache == PACKED) {
        t->k            = make(s->dtype, 3, (int64_t)sum(used, s->batch), s->kv_heads, s->dim);
        t->v            = make(s->dtype, 3, (int64_t)sum(used, s->batch), s->kv_heads, dim_v(s));
        t->cu_seqlens_k = cumulative(used, s->batch);
    } else {
        int64_t rows = s->batch, places = s->keys;
        if (s->cache == PAGED) {
            t->page_table = page_table(s, used, &rows);
            places        = s->page_size;
            check_legal(t->page_table, CHECK_SIZE(1));
        } else if (s->batch_idx) {
            int index[BATCH];
            for (int n = 0; n < s->batch; ++n) index[n] = s->batch - n;
            t->kv_batch_idx = each(index, s->batch);
            rows += 2;
        }
        t->k = make(s->dtype, 4, rows, places, s->kv_heads, s->dim);
        t->v = make(s->dtype, 4, rows, places, s->kv_heads, dim_v(s));
    }
    if (s->leftpad) {
        int pad[BATCH];
        for (int n = 0; n < s->batch; ++n) pad[n] = check_int(0, used[n] < 20 ? used[n] : 20);
        t->leftpad_k = each(pad, s->batch);
        check_legal(t->leftpad_k, CHECK_NULL);
    }
}

/* Scores of d products have an error of some 2^-24 sqrt(d) times their size, which the inputs' large values bring to 100 and more, and
 * exp() hands it on. In f16 and bf16 p is rounded on the GPU, and out everywhere. */
/* f32: a score of 100 (the inputs have some large numbers) is known to 1e-5 before the exponential, and so is the weight after it. */
static double tolerance(sgk_dtype dtype) { return dtype == SGK_F32 ? 4e-5 : 1.5 * check_tolerance(dtype == SGK_E4M3 ? SGK_BF16 : dtype); }

/* Of e4m3 a GPU may round the weights to e4m3 too, and keep 14 bits of scores. */
static bool rounds_weights(const shape *s) { return s->dtype == SGK_E4M3 && s->queries > 32 && check_on_gpu(); }

static void check_shape(const char *name, const shape *s)
{
    static const char *const caches[]    = { "dense", "packed", "paged" };
    char                     windows[40] = "";
    if (s->left >= 0 || s->right >= 0) snprintf(windows, sizeof windows, "_w%d_%d", s->left, s->right);
    char page[16] = "";
    if (s->cache == PAGED) snprintf(page, sizeof page, "%d", s->page_size);
    char rest[80] = "";
    if (s->dim_v) snprintf(rest, sizeof rest, "to%lld", (long long)s->dim_v);
    const size_t n = strlen(rest);
    snprintf(rest + n, sizeof rest - n, "%s%s%s%s%s%s%s", s->q_v ? "_qv" : "", s->softcap != 0 ? "_cap" : "", s->chunk ? "_chunk" : "", s->sinks ? "_sinks" : "", s->descales ? "_scaled" : "",
             s->top_left ? "_topleft" : "", s->rotary ? "_rotary" : "");
    if (!check_case("flash_attn_%s%s_%s_%s%s_%dx%dx%d_%lldto%lldx%lld%s%s%s%s%s%s%s", s->append ? "append_" : "", name, check_dtype(s->dtype), caches[s->cache], page,
                    s->batch, s->queries, s->keys, (long long)s->heads, (long long)s->kv_heads, (long long)s->dim, rest, s->packed_q ? "_packedq" : "",
                    s->causal ? "_causal" : "", windows, s->batch_idx ? "_idx" : "", s->leftpad ? "_pad" : "", s->unaligned ? "_unaligned" : "")) return;
    check_switches.batch_invariant = s->invariant ? SGK_ON : SGK_DEFAULT;
    check_switches.keep_arguments  = s->keep_arguments;
    tensors t                      = { .s = *s };
    int     queries[BATCH], used[BATCH];
    make_queries(&t, queries);
    make_cache(&t, used);
    make_keys(&t, used);

    CHECK_CALL(evaluate(&t));
    check_close(t.out, rounds_weights(s) ? check_tolerance(SGK_E4M3) : tolerance(s->dtype));
    /* Rotated numbers are rounded once; where a rounding falls the other way, a score of large numbers follows it. */
    const double lse = rounds_weights(s) ? 2e-3 : s->rotary && s->dtype != SGK_F32 ? 2 * check_tolerance(s->dtype)
                                                                                   : 5e-6;
    if (t.softmax_lse) check_close_least(t.softmax_lse, lse, 1);
    if (t.k_new) {
        if (s->rotary) check_close(t.k, s->dtype == SGK_E4M3 ? 2e-2 : check_tolerance(s->dtype));
        else check_equal(t.k);
        check_equal(t.v);
    }
    const double size = sgk_dtype_size(s->dtype), keys = sum(used, s->batch);
    double       pairs = 0;
    for (int n = 0; n < s->batch; ++n) pairs += (double)queries[n] * used[n] * (s->causal && queries[n] > 1 ? 0.5 : 1);
    check_done(2 * keys * (double)(s->kv_heads * s->dim) * size + 2 * sum(queries, s->batch) * (double)(s->heads * s->dim) * size,
               4 * pairs * (double)(s->heads * s->dim));
}

/* ---- batch invariant: a sequence's bits are the same whether it comes alone or among others ---------------------------------- */

static DLTensor part_of(const DLTensor *t, int dim, int64_t begin, int64_t count, int64_t shape[4])
{
    DLTensor part = *t;
    memcpy(shape, t->shape, (size_t)t->ndim * sizeof *shape);
    shape[dim] = count;
    part.shape = shape;
    part.byte_offset += (uint64_t)(begin * t->strides[dim] * t->dtype.bits / 8);
    return part;
}

/* What both calls have, and what differs: the first four are those of all, the next four take their places where a sequence is alone. */
enum { OUT,
       LSE,
       CU_Q,
       CU_K,
       ALONE,
       Q = 2 * ALONE,
       K,
       V,
       USED,
       TABLE,
       Q_SCALE,
       K_SCALE,
       V_SCALE,
       SINKS,
       VIEWS };

/* The call of sequence n alone, with sizes of its own; n -1: of all. */
static sgk_status evaluate_of(const tensors *t, const DLTensor *const views[VIEWS], int n, const sgk_exec *own)
{
    const shape           *s = &t->s;
    sgk_flash_attn_options o = SGK_FLASH_ATTN_OPTIONS_INIT;
    const DLTensor        *x[VIEWS];
    DLTensor               parts[VIEWS];
    int64_t                shapes[VIEWS][4], one = 1;
    int                    first_q = 0, first_k = 0;
    for (int i = 0; i < n; ++i) first_q += t->queries[i], first_k += t->used[i];
    for (int i = 0; i < VIEWS; ++i) x[i] = views[n >= 0 && i < ALONE ? i + ALONE : i];
    for (int i = 0; n >= 0 && i < SINKS; ++i) {
        if (!x[i]) continue;
        if (i == OUT || i == Q) parts[i] = part_of(x[i], 0, first_q, t->queries[n], shapes[i]);
        else if (i == LSE) parts[i] = part_of(x[i], 1, first_q, t->queries[n], shapes[i]);
        else if (i == CU_Q || i == CU_K) {
            parts[i]     = part_of(x[i], 0, n, 1, shapes[i]);
            shapes[i][0] = 2, parts[i].ndim = 1, parts[i].strides = &one;
        } else if (i == K || i == V) {
            if (s->cache == PAGED) continue;
            parts[i] = part_of(x[i], 0, s->cache == PACKED ? first_k : n, s->cache == PACKED ? t->used[n] : 1, shapes[i]);
        } else parts[i] = part_of(x[i], 0, n, 1, shapes[i]);
        if (i == TABLE) shapes[i][1] = (t->used[n] + s->page_size - 1) / s->page_size;
        x[i] = &parts[i];
    }
    o.cu_seqlens_q = x[CU_Q], o.cu_seqlens_k = x[CU_K], o.seqused_k = x[USED], o.page_table = x[TABLE];
    o.q_descale = x[Q_SCALE], o.k_descale = x[K_SCALE], o.v_descale = x[V_SCALE], o.sinks = x[SINKS];
    o.max_seqlen_q = n < 0 ? s->queries : t->queries[n];
    o.max_seqlen_k = s->cache != PACKED ? -1 : n < 0 ? s->keys
                                                     : t->used[n];
    o.causal = s->causal, o.window_size_left = s->left, o.window_size_right = s->right, o.softcap = s->softcap, o.num_splits = s->splits;
    return sgk_flash_attn(x[OUT], x[LSE], x[Q], x[K], x[V], &o, own);
}

/* All, then each alone, in the scratch memory of whichever needs most. */
static sgk_status evaluate_all_and_alone(tensors *t)
{
    const DLTensor *views[VIEWS] = { T(t->out), T(t->softmax_lse), T(t->cu_seqlens_q), T(t->cu_seqlens_k), T(t->alone_out), T(t->alone_lse), T(t->alone_q), T(t->alone_k),
                                     T(t->q), T(t->k), T(t->v), T(t->seqused_k), T(t->page_table), T(t->q_descale), T(t->k_descale), T(t->v_descale), T(t->sinks) };
    sgk_exec        own          = *check_exec;
    size_t          most         = 0;
    for (int n = -1; n < t->s.batch; ++n) {
        size_t bytes            = 0;
        own.workspace_query     = &bytes;
        const sgk_status status = evaluate_of(t, views, n, &own);
        if (status != SGK_OK) return status;
        if (bytes > most) most = bytes;
    }
    own.workspace_query = NULL;
    if (check_exec->workspace_query) {
        *check_exec->workspace_query = most;
        return SGK_OK;
    }
    const DLDevice device = views[Q]->device;
    void          *memory = most && !own.workspace && own.allocate ? own.allocate(own.user, most, device) : NULL;
    if (memory) own.workspace = memory, own.workspace_size = most;
    sgk_status status = SGK_OK;
    for (int n = -1; n < t->s.batch && status == SGK_OK; ++n) status = evaluate_of(t, views, n, &own);
    if (memory) own.release(own.user, memory, device);
    return status;
}

static void check_invariant(const char *name, const shape *s)
{
    if (!check_case("flash_attn_invariant_%s_%s_%lldto%lldx%lld_to%lld_%dx%d", name, check_dtype(s->dtype), (long long)s->heads, (long long)s->kv_heads, (long long)s->dim, (long long)dim_v(s), s->queries, s->keys)) return;
    check_switches.batch_invariant = SGK_ON;
    check_switches.keep_arguments  = true;
    tensors t                      = { .s = *s };
    t.s.batch = BATCH, t.s.mixed = t.s.packed_q = t.s.lse = t.s.causal = true, t.s.left = t.s.right = -1;
    make_queries(&t, t.queries);
    make_cache(&t, t.used);
    make_keys(&t, t.used);
    const int64_t total = sum(t.queries, BATCH);
    double        lengths[2][2 * BATCH];
    for (int n = 0; n < BATCH; ++n) lengths[0][2 * n] = lengths[1][2 * n] = 0, lengths[0][2 * n + 1] = t.queries[n], lengths[1][2 * n + 1] = t.used[n];
    t.alone_out = check_output(out_dtype(s), 3, total, s->heads, dim_v(s));
    t.alone_lse = check_output(SGK_F32, 2, s->heads, total);
    t.alone_q   = check_values(SGK_I32, lengths[0], 2, (int64_t)BATCH, (int64_t)2);
    t.alone_k   = s->cache == PACKED ? check_values(SGK_I32, lengths[1], 2, (int64_t)BATCH, (int64_t)2) : NULL;

    CHECK_CALL(evaluate_all_and_alone(&t));
    check_close(t.out, rounds_weights(s) ? check_tolerance(SGK_E4M3) : tolerance(s->dtype));
    check_close_least(t.softmax_lse, rounds_weights(s) ? 2e-3 : 5e-6, 1);
    const int64_t row   = s->heads * dim_v(s);
    int64_t       first = 0, differ = 0;
    for (int n = 0; n < BATCH; first += t.queries[n++]) {
        for (int64_t i = first * row; i < (first + t.queries[n]) * row; ++i) differ += check_result_of(t.out, i) != check_result_of(t.alone_out, i);
        for (int64_t h = 0; h < s->heads; ++h)
            for (int64_t i = h * total + first; i < h * total + first + t.queries[n]; ++i) differ += check_result_of(t.softmax_lse, i) != check_result_of(t.alone_lse, i);
        check_that(differ == 0, "%lld numbers of a sequence of %d queries and %d keys are others than when it is alone", (long long)differ, t.queries[n], t.used[n]);
    }
    check_done(0, 0);
}

/* Each head size that has forms of its own, and each way that keys lie. */
static void check_invariants(sgk_dtype dtype)
{
    static const int64_t sizes[][2] = { { 64, 64 }, { 128, 128 }, { 192, 128 }, { 256, 256 }, { 96, 96 } };
    static const struct {
        const char *name;
        layout      cache;
        int         page;
    } caches[]        = { { "packed", PACKED, 0 }, { "pages64", PAGED, 64 }, { "pages16", PAGED, 16 }, { "pages1", PAGED, 1 }, { "dense", DENSE, 0 } };
    const int queries = check_small ? 70 : 200, keys = check_small ? 700 : 2600;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
        if (!check_on_gpu() && (sizes[i][0] != 96 || dtype == SGK_F16)) continue;           /* the CPU has one version for all of it */
        shape s = { .dtype = dtype, .heads = 4, .kv_heads = 1, .dim = sizes[i][0], .dim_v = sizes[i][1], .queries = queries, .keys = keys, .seqused_k = true, .descales = dtype == SGK_E4M3 };
        for (size_t j = 0; j < sizeof caches / sizeof *caches; ++j) {
            if (sizes[i][0] != 128 && j != i) continue;
            s.cache = caches[j].cache, s.page_size = caches[j].page;
            check_invariant(caches[j].name, &s);
        }
        s.cache = PACKED, s.page_size = 0;
        if (sizes[i][0] != 128) continue;
        s.sinks = SGK_F32 + 1, s.kv_heads = 2;
        check_invariant("sinks", &s);
        s.sinks = 0, s.splits = 3, s.heads = 14;                        /* groups that leave rows of a tile to nobody */
        check_invariant("splits", &s);
        s.splits = 0, s.heads = 6, s.kv_heads = 6;
        check_invariant("apart", &s);
    }
}

static int pick(const int *from, size_t count) { return from[check_int(0, (int)count - 1)]; }
#define PICK(...) pick((const int[]){ __VA_ARGS__ }, sizeof (int[]){ __VA_ARGS__ } / sizeof(int))

/* Any legal set of options. */
static shape random_shape(void)
{
    shape s      = { .dtype = (sgk_dtype[]){ SGK_F32, SGK_F16, SGK_BF16, SGK_E4M3 }[check_int(0, 3)], .kv_heads = PICK(1, 1, 2, 3), .batch = PICK(1, 2, 3, 5), .queries = PICK(0, 1, 1, 1, 2, 5, 17, 40, 70), .keys = PICK(0, 1, 7, 64, 65, 130, 300, 600), .cache = (layout)check_int(0, 2), .page_size = PICK(1, 3, 16, 64), .packed_q = check_int(0, 1), .causal = check_int(0, 1), .lse = check_int(0, 3) > 0, .seqused_k = check_int(0, 1), .left = PICK(-1, -1, -1, 0, 5, 100), .right = PICK(-1, -1, -1, 0, 5, 100), .splits = PICK(0, 0, 1, 3) };
    s.heads      = s.kv_heads * PICK(1, 2, 4, 7, 16);
    s.dim        = PICK(8, 13, 40, 64, 72, 96, 128, 192, 256, 320, 512);
    s.dim_v      = PICK(0, 0, 0, 8, 31, 64, 128, 256, 264, 512);
    s.seqused_q  = check_int(0, 3) == 0;
    s.leftpad    = s.cache != PACKED && check_int(0, 3) == 0;
    s.batch_idx  = s.cache == DENSE && check_int(0, 1);
    s.append     = s.cache != PACKED && s.keys > 0 && s.queries <= s.keys && check_int(0, 2) == 0;
    s.packed_new = s.append && check_int(0, 1);
    s.unaligned  = check_int(0, 7) == 0;
    s.scale      = PICK(0, 0, 0, 1) ? 0.07 : 0;
    s.softcap    = PICK(0, 0, 1, 15);
    s.chunk      = PICK(0, 0, 0, 1, 16, 100);
    s.sinks      = PICK(0, 0, SGK_F32 + 1, SGK_BF16 + 1, SGK_F16 + 1);
    s.q_v        = s.dtype != SGK_E4M3 && check_int(0, 3) == 0;
    s.descales   = check_int(0, 1) && (s.dtype == SGK_E4M3 || check_int(0, 3) == 0);
    s.top_left   = check_int(0, 7) == 0;
    if (s.queries > 5 && s.heads > 6) s.heads = s.kv_heads * 2;         /* the reference has to make it too */
    if (s.queries > 5 && s.keys > 300) s.keys = 300;
    if (s.queries * s.keys * s.heads * s.batch > 100000 && s.dim > 256) s.dim = 128;
    if (s.append && check_int(0, 1) && s.dim >= 16) {
        s.rotary      = 16 * check_int(1, (int)s.dim / 16);
        s.interleaved = check_int(0, 1), s.seqlens_rotary = check_int(0, 1);
    }
    return s;
}

static void check_random(int number)
{
    shape s = random_shape();
    char  name[24];
    snprintf(name, sizeof name, "random%d", number);
    s.keep_arguments = number % 4 != 0;
    check_shape(name, &s);
}

/* Any legal set of options with one mistake in it. */
static void spoil_scale(sgk_flash_attn_options *o) { o->softmax_scale = NAN; }
static void spoil_softcap(sgk_flash_attn_options *o) { o->softcap = o->softcap != 0 ? INFINITY : -1; }
static void spoil_left(sgk_flash_attn_options *o) { o->window_size_left = -2; }
static void spoil_right(sgk_flash_attn_options *o) { o->window_size_right = INT64_MIN; }
static void spoil_chunk(sgk_flash_attn_options *o) { o->attention_chunk = -1; }
static void spoil_splits(sgk_flash_attn_options *o) { o->num_splits = o->num_splits ? 257 : -1; }
static void spoil_margin(sgk_flash_attn_options *o) { o->sm_margin = -1; }
static void spoil_v_new(sgk_flash_attn_options *o) { o->v_new = NULL; }
static void spoil_seqused_k(sgk_flash_attn_options *o) { o->seqused_k = NULL; }
static void spoil_sin(sgk_flash_attn_options *o) { o->rotary_sin = NULL; }
static void spoil_k_new(sgk_flash_attn_options *o) { o->k_new = o->v_new = NULL; }
static void spoil_max_q(sgk_flash_attn_options *o) { o->max_seqlen_q = -1; }
static void spoil_max_k(sgk_flash_attn_options *o) { o->max_seqlen_k = -1; }
static void spoil_idx(sgk_flash_attn_options *o) { o->kv_batch_idx = o->leftpad_k; }
static void spoil_cu_k(sgk_flash_attn_options *o) { o->cu_seqlens_k = NULL; }

static const struct {
    void (*spoil)(sgk_flash_attn_options *);
    const char *words;
    enum { ALWAYS,
           APPEND,
           ROTARY,
           PACKED_Q,
           PACKED_K,
           PAGED_PAD } when;
} mistakes[] = {
    { spoil_scale, "softmax_scale is nan, expected a finite number", ALWAYS },
    { spoil_softcap, "expected a finite number that is not negative", ALWAYS },
    { spoil_left, "window_size_left is -2, expected -1 or more", ALWAYS },
    { spoil_right, "window_size_right is -9223372036854775808, expected -1 or more", ALWAYS },
    { spoil_chunk, "attention_chunk is -1, expected 0 or more", ALWAYS },
    { spoil_splits, "expected 0 to 256", ALWAYS },
    { spoil_margin, "sm_margin is -1, expected 0 or more", ALWAYS },
    { spoil_v_new, "k_new is given alone, expected k_new and v_new together", APPEND },
    { spoil_seqused_k, "k_new is given without seqused_k", APPEND },
    { spoil_sin, "rotary_cos is given alone, expected rotary_cos and rotary_sin together", ROTARY },
    { spoil_k_new, "rotary_cos is given without k_new", ROTARY },
    { spoil_max_q, "max_seqlen_q is not given, expected it with cu_seqlens_q", PACKED_Q },
    { spoil_max_k, "max_seqlen_k is not given, expected it with cu_seqlens_k", PACKED_K },
    { spoil_cu_k, "k has 3 dimensions, expected 4", PACKED_K },
    { spoil_idx, "page_table is given with kv_batch_idx, expected one of them", PAGED_PAD },
};

static void check_illegal(int number)
{
    const shape s = random_shape();
    if (!check_case("flash_attn_%sillegal%d", s.append ? "append_" : "", number)) return;
    int which;
    for (bool fits = false; !fits;) {
        which = check_int(0, (int)(sizeof mistakes / sizeof *mistakes) - 1);
        switch (mistakes[which].when) {
        case ALWAYS:    fits = true; break;
        case APPEND:    fits = s.append; break;
        case ROTARY:    fits = s.rotary; break;
        case PACKED_Q:  fits = s.packed_q; break;
        case PACKED_K:  fits = s.cache == PACKED; break;
        case PAGED_PAD: fits = s.cache == PAGED && s.leftpad; break;
        }
    }
    tensors t = { .s = s, .spoil = mistakes[which].spoil };
    int     queries[BATCH], used[BATCH];
    make_queries(&t, queries);
    make_cache(&t, used);
    make_keys(&t, used);
    CHECK_REFUSED(SGK_BAD_ARG, mistakes[which].words, evaluate(&t));
    check_done(0, 0);
}

/* Every build: each format, head size and row count that chooses another one. */
static void check_builds(sgk_dtype dtype)
{
    static const int64_t dims[] = { 64, 96, 128, 192, 256 };
    for (size_t i = 0; i < sizeof dims / sizeof *dims; ++i) {
        check_shape("few", &(shape){ .dtype = dtype, .heads = 8, .kv_heads = 2, .dim = dims[i], .batch = 2, .queries = 1, .keys = 150, .cache = PAGED, .page_size = 16, .lse = true, .left = -1, .right = -1, .causal = true, .splits = 2 });
        check_shape("many", &(shape){ .dtype = dtype, .heads = 16, .kv_heads = 1, .dim = dims[i], .batch = 2, .queries = 30, .keys = 100, .cache = PACKED, .packed_q = true, .few = 30, .lse = true, .left = -1, .right = -1, .causal = true, .splits = 1, .scale = -0.05 });        /* not for sm_90a's own form */
    }
    /* What the forms for anything take, by its size: head sizes and q_v. */
    static const struct {
        int64_t dim, dim_v;
        bool    q_v;
    } sizes[] = { { 192, 128, false }, { 320, 0, false }, { 512, 512, true }, { 64, 512, true }, { 64, 256, false } };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i)
        for (int many = 0; many < 2; ++many)
            check_shape("wide", &(shape){ .dtype = dtype, .heads = 4, .kv_heads = 2, .dim = sizes[i].dim, .dim_v = sizes[i].dim_v, .q_v = sizes[i].q_v && dtype != SGK_E4M3, .batch = 2, .queries = many ? 37 : 1, .keys = 100, .cache = PAGED, .page_size = 16, .lse = true, .left = -1, .right = -1, .causal = true, .splits = many ? 1 : 2, .descales = dtype == SGK_E4M3, .sinks = SGK_BF16 + 1, .softcap = many ? 20 : 0 });
    check_shape("rotated", &(shape){ .dtype = dtype, .heads = 4, .kv_heads = 2, .dim = 64, .batch = 3, .queries = 3, .keys = 50, .cache = DENSE, .append = true, .rotary = 32, .interleaved = true, .lse = true, .left = -1, .right = -1, .causal = true });
    check_shape("unaligned", &(shape){ .dtype = dtype, .heads = 4, .kv_heads = 2, .dim = 40, .batch = 2, .queries = 9, .keys = 70, .cache = DENSE, .lse = true, .left = 30, .right = -1, .causal = true, .unaligned = true });
    for (int packed = 0; packed < 2; ++packed)
        check_shape("one", &(shape){ .dtype = dtype, .heads = 4, .kv_heads = 2, .dim = 64, .batch = 3, .queries = 3, .keys = 50, .cache = PAGED, .page_size = 3, .append = true, .packed_new = packed, .lse = true, .left = -1, .right = -1, .causal = true, .unaligned = packed });
}

/* Many queries: each head size that chooses another build, and every option with sequences of several tiles. A margin leaves few
 * multiprocessors, so that each has several pieces of work, whole tiles of queries among them. */
static void check_long(sgk_dtype dtype)
{
    if (!check_on_gpu() && (check_small || dtype != SGK_BF16)) return;          /* the CPU has one version for all of it */
    static const int64_t sizes[][2] = { { 64, 64 }, { 96, 96 }, { 128, 128 }, { 192, 128 }, { 256, 256 }, { 72, 40 }, { 168, 120 }, { 232, 200 } };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
        const shape s = { .dtype = dtype, .heads = 2, .kv_heads = 1, .dim = sizes[i][0], .dim_v = sizes[i][1], .batch = 2, .queries = 200, .keys = 203, .lse = true, .left = -1, .right = -1, .margin = 1000, .descales = dtype == SGK_E4M3 };
        shape       t = s;
        t.causal      = true;
        check_shape("long", &t);
        t = s, t.cache = PACKED, t.packed_q = true, t.batch = 5, t.causal = i % 2 == 0;
        check_shape("long", &t);
        t = s, t.cache = PAGED, t.page_size = 16, t.left = 60, t.right = 9;
        check_shape("long", &t);
        t.page_size = i % 2 ? 1 : 12;
        check_shape("long", &t);
        t = s, t.cache = PAGED, t.page_size = 8, t.causal = true, t.keys = 603;         /* more tiles than are looked up at once */
        check_shape("long", &t);
    }
    if (dtype == SGK_F16) return;
    static const int pages[] = { 1, 3, 8, 24, 64, 128, 256 };
    for (size_t i = 0; i < sizeof pages / sizeof *pages; ++i)
        for (int pad = 0; pad < 2; ++pad)
            check_shape("long", &(shape){ .dtype = dtype, .heads = 4, .kv_heads = 2, .dim = 64, .batch = 3, .queries = 70, .keys = 300, .cache = PAGED, .page_size = pages[i], .packed_q = pad == 0, .lse = true, .leftpad = pad, .causal = true, .left = -1, .right = -1, .margin = 130 });
    const shape s = { .dtype = dtype, .heads = 4, .kv_heads = 2, .dim = 64, .batch = 3, .queries = 140, .keys = 270, .lse = true, .left = -1, .right = -1, .causal = true, .margin = 129 };
    shape       t = s;
    if (dtype == SGK_E4M3) {                                            /* tiles that all rows see whole, one and several, and what lies around them */
        for (int keys = 127; keys <= 770; keys += 160)
            for (int more = 0; more < 4; ++more)
                check_shape("long", &(shape){ .dtype = dtype, .heads = 4, .kv_heads = 2, .dim = 128, .batch = 2, .queries = 131, .keys = keys, .lse = true, .left = more == 2 ? 300 : -1, .right = -1, .causal = more > 0, .margin = 129, .descales = true, .softcap = more == 3 ? 20 : 0 });
    }
    t.sinks = SGK_F32 + 1, t.softcap = 10;
    check_shape("long", &t);
    t = s, t.chunk = 50, t.sinks = SGK_BF16 + 1;
    check_shape("long", &t);
    t = s, t.top_left = true, t.sinks = SGK_F16 + 1;
    check_shape("long", &t);
    t = s, t.batch_idx = t.seqused_k = t.seqused_q = true;
    check_shape("long", &t);
    t = s, t.leftpad = t.seqused_k = true;
    check_shape("long", &t);
    t = s, t.append = t.packed_new = true, t.cache = PAGED, t.page_size = 16;
    check_shape("long", &t);
    t = s, t.queries = 260, t.keys = 100;                               /* queries that see no key */
    check_shape("long", &t);
    t = s, t.keys = 0;
    check_shape("long", &t);
    t = s, t.left = 0, t.right = -1, t.lse = false;
    check_shape("long", &t);
    if (!check_small) check_shape("long", &(shape){ .dtype = dtype, .heads = 8, .kv_heads = 2, .dim = 64, .batch = 6, .queries = 300, .keys = 300, .cache = PACKED, .packed_q = true, .lse = true, .left = -1, .right = -1, .causal = true });
}

/* Keys and values that are copied out of their pages first: with few multiprocessors that is so already where sequences are short. */
static void check_gathered(sgk_dtype dtype)
{
    if (!check_on_gpu() && (check_small || dtype != SGK_BF16)) return;
    static const int64_t sizes[][2] = { { 64, 64 }, { 128, 128 }, { 192, 128 }, { 256, 256 } };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
        const shape s = { .dtype = dtype, .heads = 6, .kv_heads = 2, .dim = sizes[i][0], .dim_v = sizes[i][1], .batch = 2, .queries = 300, .keys = 333, .cache = PAGED, .page_size = i % 2 ? 1 : 3, .lse = true, .left = -1, .right = -1, .causal = true, .margin = 1000, .descales = dtype == SGK_E4M3, .keep_arguments = i > 0 };
        shape       t = s;
        check_shape("gathered", &t);
        t.page_size = 16, t.causal = false, t.packed_q = true, t.queries = 400, t.batch = 3;
        check_shape("gathered", &t);
        if (i != 1) continue;
        t = s, t.leftpad = t.seqused_q = true, t.queries = 400, t.keys = 400, t.page_size = 12;
        check_shape("gathered", &t);
        t = s, t.left = 130, t.right = 40, t.causal = false, t.sinks = SGK_F32 + 1;
        check_shape("gathered", &t);
        t = s, t.chunk = 150, t.softcap = 20, t.queries = t.keys = 500;
        check_shape("gathered", &t);
        t = s, t.append = true, t.packed_new = true, t.same_lengths = true;
        check_shape("gathered", &t);
        t = s, t.splits = 3;
        check_shape("gathered", &t);
    }
}

/* Many queries in some sequences and few in others, whose heads are joined; every number of heads a key head, with and without rows left over. */
static void check_joined(sgk_dtype dtype)
{
    if (!check_on_gpu() && (check_small || dtype != SGK_BF16)) return;
    static const struct {
        int     group;
        int64_t dim, dim_v;
        layout  cache;
        int     page_size;
    } calls[] = { { 2, 64, 64, PAGED, 16 }, { 3, 96, 96, PACKED, 0 }, { 4, 128, 128, PAGED, 64 }, { 7, 64, 64, PAGED, 1 }, { 8, 128, 128, PAGED, 3 }, { 5, 192, 128, DENSE, 0 }, { 16, 72, 40, PAGED, 8 }, { 4, 256, 256, PACKED, 0 } };
    for (size_t i = 0; i < sizeof calls / sizeof *calls; ++i) {
        const int   kv_heads = calls[i].group < 5 ? 2 : 1;
        const shape s        = { .dtype = dtype, .heads = kv_heads * calls[i].group, .kv_heads = kv_heads, .dim = calls[i].dim, .dim_v = calls[i].dim_v, .batch = 5, .queries = i < 2 ? 140 : 75, .few = 40, .keys = 200, .cache = calls[i].cache, .page_size = calls[i].page_size, .packed_q = true, .seqused_k = calls[i].cache == DENSE, .lse = true, .left = -1, .right = -1, .causal = true, .margin = i % 2 ? 1000 : 129, .descales = dtype == SGK_E4M3 };
        shape       t        = s;
        check_shape("joined", &t);
        t.few = 1, t.left = 70;
        check_shape("joined_ones", &t);
        t = s, t.causal = false, t.seqused_q = true, t.sinks = SGK_F32 + 1, t.softcap = i % 2 ? 10 : 0;
        check_shape("joined", &t);
        t = s, t.batch = 2, t.queries = 40 + (int)i, t.few = 0, t.cache = DENSE, t.seqused_k = t.packed_q = false;        /* all of one length */
        check_shape("joined", &t);
    }
}

/* Many queries over more keys than fill the GPU one tile of queries at a time: keys cut into parts. Sequences of one length, of lengths that differ, with
 * joined heads among them; parts without keys, and queries that see keys of some parts alone or none. */
static void check_cut(sgk_dtype dtype)
{
    if (!check_on_gpu() && (check_small || dtype != SGK_BF16)) return;
    static const struct {
        int64_t dim, dim_v;
        layout  cache;
        int     page_size;
    } calls[] = { { 64, 64, PAGED, 64 }, { 96, 96, DENSE, 0 }, { 128, 128, PAGED, 16 }, { 192, 128, PACKED, 0 }, { 256, 256, DENSE, 0 }, { 64, 40, PAGED, 1 }, { 128, 128, PAGED, 3 }, { 256, 256, PAGED, 12 }, { 192, 128, PAGED, 1 } };
    for (size_t i = 0; i < sizeof calls / sizeof *calls; ++i) {
        const shape s = { .dtype = dtype, .heads = 2, .kv_heads = 1, .dim = calls[i].dim, .dim_v = calls[i].dim_v, .batch = 1, .queries = i % 2 ? 140 : 70, .keys = 1100, .cache = calls[i].cache, .page_size = calls[i].page_size, .packed_q = calls[i].cache == PACKED, .lse = true, .left = -1, .right = -1, .causal = true, .same_lengths = true, .descales = dtype == SGK_E4M3 };
        shape       t = s;
        check_shape("cut", &t);
        t.queries = 50;                                             /* joined */
        check_shape("cut", &t);
        t = s, t.batch = 3, t.same_lengths = false, t.packed_q = true, t.queries = 100, t.few = 40, t.seqused_k = true, t.sinks = i % 2 ? SGK_F32 + 1 : SGK_BF16 + 1, t.softcap = i % 3 ? 0 : 10;
        check_shape("cut", &t);
        t = s, t.causal = false, t.splits = 2 + (int)i, t.keys = 500, t.batch = 2;
        check_shape("cut_asked", &t);
    }
    if (dtype != SGK_BF16) return;
    const shape s = { .dtype = dtype, .heads = 2, .kv_heads = 1, .dim = 64, .batch = 1, .queries = 140, .keys = 1100, .lse = true, .left = -1, .right = -1, .causal = true, .same_lengths = true };
    shape       t = s;
    t.left = 900, t.right = 20, t.causal = false, t.sinks = SGK_F16 + 1;
    check_shape("cut", &t);
    t = s, t.chunk = 1050, t.lse = false;
    check_shape("cut", &t);
    t = s, t.queries = 260, t.keys = 200, t.splits = 7;             /* queries that see no key */
    check_shape("cut_asked", &t);
    t = s, t.batch = 2, t.same_lengths = false, t.seqused_q = t.seqused_k = t.leftpad = t.batch_idx = true;
    check_shape("cut", &t);
    t = s, t.append = true, t.rotary = 32, t.cache = PAGED, t.page_size = 8, t.margin = 100;
    check_shape("cut", &t);
    t = s, t.heads = 16, t.kv_heads = 4, t.queries = 300, t.splits = 5, t.margin = 125;     /* several rounds */
    check_shape("cut_asked", &t);
}

/* Few queries, keys dealt out over blocks: pieces of sequences, whole ones, several in a block; few and many heads side by side. */
static void check_dealt(sgk_dtype dtype)
{
    if (!check_on_gpu() && (check_small || dtype != SGK_BF16)) return;
    static const int64_t dims[] = { 64, 128, 256 };
    for (size_t i = 0; i < sizeof dims / sizeof *dims; ++i) {
        check_shape("dealt", &(shape){ .dtype = dtype, .heads = 8, .kv_heads = 2, .dim = dims[i], .batch = 3, .queries = 2, .keys = check_small ? 300 : 700, .cache = PAGED, .page_size = 16, .lse = true, .left = -1, .right = -1, .causal = true, .descales = dtype == SGK_E4M3 });
        check_shape("dealt_side_by_side", &(shape){ .dtype = dtype, .heads = 32, .kv_heads = 16, .dim = dims[i], .batch = BATCH, .queries = 1, .keys = 90, .cache = PAGED, .page_size = 1, .lse = true, .left = -1, .right = -1, .causal = true, .sinks = SGK_BF16 + 1 });
    }
    check_shape("dealt_whole", &(shape){ .dtype = dtype, .heads = 64, .kv_heads = 32, .dim = 128, .batch = BATCH, .queries = 1, .keys = 90, .cache = PAGED, .page_size = 16, .lse = true, .left = -1, .right = -1, .causal = true, .descales = dtype == SGK_E4M3 });
    for (int i = 0; i < 4; ++i)                                         /* a lone sequence: clusters of blocks, one for each key head */
        check_shape("dealt_joined", &(shape){ .dtype = dtype, .heads = 32, .kv_heads = 8, .dim = i % 2 ? 128 : 48, .batch = 1, .queries = i < 2 ? 1 : 3, .keys = check_small ? 500 : 3000, .cache = i % 3 ? PAGED : DENSE, .page_size = i % 3 ? 15 + i : 0, .lse = true, .left = i == 2 ? 200 : -1, .right = -1, .causal = true, .sinks = i % 2 ? SGK_F32 + 1 : 0, .softcap = i == 3 ? 20 : 0, .descales = dtype == SGK_E4M3 });
    if (!check_small && check_on_gpu() && dtype == SGK_BF16)           /* too long for clusters */
        check_shape("dealt_long", &(shape){ .dtype = dtype, .heads = 32, .kv_heads = 8, .dim = 128, .batch = 1, .queries = 1, .keys = 30000, .cache = PAGED, .page_size = 64, .lse = true, .left = -1, .right = -1, .causal = true });
    check_shape("dealt_capped", &(shape){ .dtype = dtype, .heads = 12, .kv_heads = 4, .dim = 128, .batch = 5, .queries = 4, .keys = 700, .cache = DENSE, .seqused_k = true, .packed_q = true, .lse = true, .left = 100, .right = -1, .causal = true, .softcap = 20, .sinks = SGK_F32 + 1 });
    for (int64_t dim = 48; dim <= 112; dim += 64)
        check_shape("dealt_one", &(shape){ .dtype = dtype, .heads = 7, .kv_heads = 1, .dim = dim, .batch = 1, .queries = 2, .keys = check_small ? 500 : 2500, .cache = DENSE, .lse = true, .left = -1, .right = -1, .causal = true });
}

static void check_refusals(void)
{
    if (!check_case("flash_attn_refused")) return;
    check_tensor          *q = check_input(SGK_F32, 4, (int64_t)2, (int64_t)3, (int64_t)4, (int64_t)16), *out = check_output(SGK_F32, 4, (int64_t)2, (int64_t)3, (int64_t)4, (int64_t)16);
    check_tensor          *k = check_input(SGK_F32, 4, (int64_t)2, (int64_t)9, (int64_t)2, (int64_t)16), *v = check_input(SGK_F32, 4, (int64_t)2, (int64_t)9, (int64_t)2, (int64_t)16);
    sgk_flash_attn_options o = SGK_FLASH_ATTN_OPTIONS_INIT;
    o.softcap                = -30;
    CHECK_REFUSED(SGK_BAD_ARG, "flash_attn: softcap is -30, expected a finite number that is not negative", sgk_flash_attn(T(out), NULL, T(q), T(k), T(v), &o, check_exec));
    o.softcap = 0, o.window_size_left = -2;
    CHECK_REFUSED(SGK_BAD_ARG, "window_size_left is -2, expected -1 or more", sgk_flash_attn(T(out), NULL, T(q), T(k), T(v), &o, check_exec));
    o.window_size_left = -1, o.softmax_scale = INFINITY;
    CHECK_REFUSED(SGK_BAD_ARG, "softmax_scale is inf, expected a finite number", sgk_flash_attn(T(out), NULL, T(q), T(k), T(v), &o, check_exec));
    check_done(0, 0);
}

/* Two sequences with pages of 4 places, and the one index that a case spoils; the table's rows have a gap behind them that names no page. */
typedef enum { CU_SEQLENS_Q,
               SEQUSED_Q,
               SEQUSED_K,
               PAGE_TABLE,
               LEFTPAD_K,
               RIGHT } spoilt;

static sgk_status evaluate_paged(check_tensor *const *t, check_tensor *cu_seqlens_q, check_tensor *seqused_q, check_tensor *seqused_k, check_tensor *page_table, check_tensor *leftpad_k)
{
    sgk_flash_attn_options o = SGK_FLASH_ATTN_OPTIONS_INIT;
    o.cu_seqlens_q = T(cu_seqlens_q), o.seqused_q = T(seqused_q), o.seqused_k = T(seqused_k), o.page_table = T(page_table), o.leftpad_k = T(leftpad_k);
    o.max_seqlen_q = 2;
    return sgk_flash_attn(T(t[0]), NULL, T(t[1]), T(t[2]), T(t[3]), &o, check_exec);
}

/* On the GPU the host looks at index tensors where check_indices asks for it. */
static void check_spoilt_index(const char *name, spoilt which, const char *words)
{
    if (!check_case("flash_attn_refused_%s", name)) return;
    check_switches.check_indices  = SGK_ON;
    check_switches.keep_arguments = true;
    check_tensor *t[]             = { check_inout(SGK_F16, 3, (int64_t)3, (int64_t)4, (int64_t)16), check_input(SGK_F16, 3, (int64_t)3, (int64_t)4, (int64_t)16),
                                      check_input(SGK_F16, 4, (int64_t)6, (int64_t)4, (int64_t)2, (int64_t)16), check_input(SGK_F16, 4, (int64_t)6, (int64_t)4, (int64_t)2, (int64_t)16) };
    check_tensor *cu_seqlens_q = check_values(SGK_I32, (double[]){ 0, 2, 3 }, 1, (int64_t)3), *seqused_q = check_values(SGK_I32, (double[]){ 2, 1 }, 1, (int64_t)2);
    check_tensor *seqused_k = check_values(SGK_I32, (double[]){ 5, 9 }, 1, (int64_t)2), *leftpad_k = check_values(SGK_I32, (double[]){ 0, 3 }, 1, (int64_t)2);
    check_tensor *page_table = check_input(SGK_I32, 2, (int64_t)2, (int64_t)3);
    for (int i = 0; i < 6; ++i) check_set(page_table, i, i == 2 ? -7 : 5 - i);              /* sequence 0 does not reach its third page */
    if (which == CU_SEQLENS_Q) check_set(cu_seqlens_q, 1, 4);
    if (which == SEQUSED_Q) check_set(seqused_q, 1, 2);
    if (which == SEQUSED_K) check_set(seqused_k, 1, 13);
    if (which == PAGE_TABLE) check_set(page_table, 4, 6);
    if (which == LEFTPAD_K) check_set(leftpad_k, 0, 6);
    if (which == RIGHT) {
        CHECK_CALL(evaluate_paged(t, cu_seqlens_q, seqused_q, seqused_k, page_table, leftpad_k));
        check_close(t[0], tolerance(SGK_F16));
    } else {
        CHECK_REFUSED(SGK_BAD_ARG, words, evaluate_paged(t, cu_seqlens_q, seqused_q, seqused_k, page_table, leftpad_k));
    }
    check_done(0, 0);
}

static void check_spoilt_indices(void)
{
    check_spoilt_index("cu_seqlens_q", CU_SEQLENS_Q, "flash_attn: cu_seqlens_q[2] is 3 after 4, expected lengths of at least 0");
    check_spoilt_index("seqused_q", SEQUSED_Q, "flash_attn: seqused_q gives sequence 1 a length of 2, expected 0 to 1");
    check_spoilt_index("seqused_k", SEQUSED_K, "flash_attn: seqused_k gives sequence 1 a length of 13, expected 0 to 12");
    check_spoilt_index("page_table", PAGE_TABLE, "flash_attn: page_table[1, 1] is 6, expected a page from 0 to 5");
    check_spoilt_index("leftpad_k", LEFTPAD_K, "flash_attn: leftpad_k gives sequence 0 a length of 6, expected 0 to 5");
    check_spoilt_index("nothing", RIGHT, "");
    if (!check_case("flash_attn_refused_kv_batch_idx")) return;
    check_switches.check_indices = SGK_ON;
    check_tensor          *q = check_input(SGK_F32, 4, (int64_t)2, (int64_t)1, (int64_t)2, (int64_t)8), *out = check_output(SGK_F32, 4, (int64_t)2, (int64_t)1, (int64_t)2, (int64_t)8);
    check_tensor          *k = check_input(SGK_F32, 4, (int64_t)3, (int64_t)5, (int64_t)1, (int64_t)8), *v = check_input(SGK_F32, 4, (int64_t)3, (int64_t)5, (int64_t)1, (int64_t)8);
    check_tensor          *kv_batch_idx = check_values(SGK_I32, (double[]){ 2, 3 }, 1, (int64_t)2);
    sgk_flash_attn_options o            = SGK_FLASH_ATTN_OPTIONS_INIT;
    CHECK_REFUSED(SGK_BAD_ARG, "flash_attn: kv_batch_idx[1] is 3, expected 0 to 2",
                  (o.kv_batch_idx = T(kv_batch_idx), sgk_flash_attn(T(out), NULL, T(q), T(k), T(v), &o, check_exec)));
    check_done(0, 0);
}

void check_attention(void)
{
    check_spoilt_indices();
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16, SGK_E4M3 };
    for (size_t f = 0; f < 4; ++f) check_builds(formats[f]);
    for (size_t f = 1; f < 4; ++f) check_dealt(formats[f]);
    const int randoms = check_random_cases ? check_random_cases : check_small ? 12
                                                                              : 100;
    check_long(SGK_F16);
    check_long(SGK_BF16);
    check_long(SGK_E4M3);
    check_gathered(SGK_F16);
    check_gathered(SGK_BF16);
    check_gathered(SGK_E4M3);
    check_joined(SGK_F16);
    check_joined(SGK_BF16);
    check_joined(SGK_E4M3);
    check_cut(SGK_F16);
    check_cut(SGK_BF16);
    check_cut(SGK_E4M3);
    for (size_t f = 0; f < 4; ++f) check_invariants(formats[f]);
    for (int i = 0; i < randoms; ++i) check_random(i);
    for (int i = 0; i < randoms; ++i) check_illegal(i);
    for (int few = 0; few < 2; ++few)                                   /* parts at fixed places, and a second kernel that combines them */
        check_shape("invariant", &(shape){ .dtype = SGK_BF16, .heads = 4, .kv_heads = 2, .dim = 64, .batch = 2, .queries = few ? 1 : 20, .keys = check_small ? 1100 : 2100, .cache = DENSE, .seqused_k = true, .lse = true, .left = -1, .right = -1, .causal = true, .invariant = true });
    check_refusals();
    check_merge_state();
    check_attention_metadata();
    check_attention_pool();
    check_attention_sparse();
    check_attention_slash();
    check_attention_lightning();
    if (!check_benching) return;
    for (size_t f = 0; f < 3; ++f) {
        check_shape("decode", &(shape){ .dtype = formats[f], .heads = 32, .kv_heads = 8, .dim = 128, .batch = 4, .queries = 1, .keys = 4096, .cache = PAGED, .page_size = 1, .left = -1, .right = -1, .causal = true, .same_lengths = true });
        check_shape("decode", &(shape){ .dtype = formats[f], .heads = 8, .kv_heads = 8, .dim = 128, .batch = 1, .queries = 1, .keys = 16384, .cache = DENSE, .left = -1, .right = -1, .causal = true, .same_lengths = true });
        check_shape("tiny", &(shape){ .dtype = formats[f], .heads = 4, .kv_heads = 2, .dim = 64, .batch = 1, .queries = 1, .keys = 32, .cache = PAGED, .page_size = 16, .left = -1, .right = -1, .causal = true, .same_lengths = true });
        check_shape("prefill", &(shape){ .dtype = formats[f], .heads = 8, .kv_heads = 2, .dim = 128, .batch = 1, .queries = 512, .keys = 512, .cache = PACKED, .packed_q = true, .left = -1, .right = -1, .causal = true, .same_lengths = true });
    }
}
