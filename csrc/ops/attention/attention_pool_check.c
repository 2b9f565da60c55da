#include "attention_pool.h"
#include <string.h>
#include "check/check.h"

/* What a case is about; lengths are drawn. */
typedef struct {
    sgk_dtype dtype, index;
    int64_t   heads, kv_heads, dim, dim_v;
    int       batch, context, most_new;
    bool      cross, encoder, sinks, write, latent;
    int       window;
    double    cap;
} shape;

enum { BATCH = 8 };

typedef struct {
    check_tensor *req_to_token, *req_pool_indices, *seq_lens, *encoder_lens, *extend_seq_lens, *extend_start_loc, *loc, *sinks;
    int64_t       slots;
    int           total;
} indices;

/* Requests in the pool's rows from the last one down; their tokens in slots that step through the pool. */
static indices make_indices(const shape *s, bool extend)
{
    const int64_t rows = s->batch + 2, width = s->context;
    indices       x = { .slots = rows * width + 3 };
    x.req_to_token  = check_index(s->index, 0, 0, 2, rows, width);
    for (int64_t i = 0; i < rows * width; ++i) check_set(x.req_to_token, i, (double)(i * 5 % x.slots));
    while (x.slots % 5 == 0) ++x.slots;
    for (int64_t i = 0; i < rows * width; ++i) check_set(x.req_to_token, i, (double)(i * 5 % x.slots));
    double pool[BATCH], lens[BATCH], encoder[BATCH], fresh[BATCH], start[BATCH], loc[BATCH];
    for (int b = 0; b < s->batch; ++b) {
        const int most   = s->encoder && !s->cross ? s->context - 10 : s->context;
        pool[b]          = (double)(rows - 1 - b);
        encoder[b]       = s->cross ? check_int(0, s->context) : check_int(0, 10);
        const int before = extend ? check_int(0, most) : 0;
        fresh[b]         = extend ? check_int(0, s->most_new) : 0;
        lens[b]          = extend ? before + fresh[b] : check_int(1, most);
        start[b]         = x.total;
        x.total += (int)fresh[b];
        loc[b] = (double)((int64_t)(pool[b] * (double)width + lens[b] - 1 + (s->encoder && !s->cross ? encoder[b] : 0)) * 5 % x.slots);
    }
    x.req_pool_indices = check_values(SGK_I64, pool, 1, (int64_t)s->batch);
    x.seq_lens         = check_values(SGK_I64, lens, 1, (int64_t)s->batch);
    x.encoder_lens     = s->encoder || s->cross ? check_values(SGK_I64, encoder, 1, (int64_t)s->batch) : NULL;
    x.extend_seq_lens  = check_values(s->index, fresh, 1, (int64_t)s->batch);
    x.extend_start_loc = check_values(s->index, start, 1, (int64_t)s->batch);
    x.loc              = check_values(SGK_I64, loc, 1, (int64_t)s->batch);
    x.sinks            = s->sinks ? check_input(s->dtype, 1, s->heads) : NULL;
    if (x.encoder_lens && !s->cross) check_legal(x.encoder_lens, CHECK_NULL);
    if (x.sinks) check_legal(x.sinks, CHECK_NULL | CHECK_DTYPE);
    check_legal(x.req_to_token, CHECK_SIZE(0) | CHECK_SIZE(1) | (extend ? 0 : CHECK_DTYPE));
    return x;
}

static sgk_attention_pool_options options_of(const shape *s)
{
    sgk_attention_pool_options o = SGK_ATTENTION_POOL_OPTIONS_INIT;
    o.sm_scale = 0.125, o.logit_cap = s->cap, o.is_cross_attn = s->cross, o.sliding_window_size = s->window;
    return o;
}

static double tolerance(sgk_dtype dtype) { return dtype == SGK_F32 ? 4e-5 : 1.5 * check_tolerance(dtype); }

static void check_decode(const shape *s)
{
    if (!check_case("decode_attention_cpu_%s_%s_%dx%d_%lldto%lldx%lldto%lld%s%s%s%s%s%s%s", check_dtype(s->dtype), check_dtype(s->index), s->batch, s->context, (long long)s->heads,
                    (long long)s->kv_heads, (long long)s->dim, (long long)s->dim_v, s->cross ? "_cross" : "", s->encoder ? "_encoder" : "", s->sinks ? "_sinks" : "",
                    s->write ? "_write" : "", s->latent ? "_latent" : "", s->window ? "_window" : "", s->cap != 0 ? "_cap" : "")) return;
    check_switches.keep_arguments              = s->latent;                          /* one memory, two arguments */
    indices       x                            = make_indices(s, false);
    check_tensor *query                        = check_input(s->dtype, 3, (int64_t)s->batch, s->heads, s->dim);
    check_tensor *output                       = check_output(s->dtype, 3, (int64_t)s->batch, s->heads, s->dim_v);
    check_tensor *(*make)(sgk_dtype, int, ...) = s->write ? check_inout : check_input;
    check_tensor *k                            = make(s->dtype, 3, x.slots, s->kv_heads, s->dim);
    check_tensor *v                            = s->latent ? NULL : make(s->dtype, 3, x.slots, s->kv_heads, s->dim_v);
    check_tensor *key                          = s->write ? check_input(s->dtype, 3, (int64_t)s->batch, s->kv_heads, s->dim) : NULL;
    check_tensor *value                        = s->write ? check_input(s->dtype, 3, (int64_t)s->batch, s->kv_heads, s->dim_v) : NULL;

    check_tensor *logits = check_input(SGK_F32, 4, (int64_t)s->batch, s->heads, (int64_t)8, s->dim_v + 1);
    check_legal(logits, CHECK_NULL | CHECK_SIZE(2) | CHECK_SIZE(3));

    sgk_attention_pool_options o = options_of(s);
    DLTensor                   part;                                    /* the first elements of k's rows */
    int64_t                    sizes[3];
#define VALUES (s->latent ? (part = *T(k), memcpy(sizes, part.shape, sizeof sizes), sizes[2] = s->dim_v, part.shape = sizes, (const DLTensor *)&part) : T(v))
    CHECK_CALL((o.encoder_lens = T(x.encoder_lens), o.sinks = T(x.sinks),
                sgk_decode_attention(T(output), T(query), T(k), VALUES, T(key), T(value), T(x.loc), T(logits), T(x.req_to_token), T(x.req_pool_indices), T(x.seq_lens), &o, check_exec)));
    check_close(output, tolerance(s->dtype));
    if (s->write) {
        check_equal(k);
        if (v) check_equal(v);
    }
    check_done(0, 0);
}

static void check_extend(const shape *s)
{
    if (!check_case("extend_attention_cpu_%s_%s_%dx%d_%lldto%lldx%lldto%lld%s%s%s%s%s", check_dtype(s->dtype), check_dtype(s->index), s->batch, s->context, (long long)s->heads,
                    (long long)s->kv_heads, (long long)s->dim, (long long)s->dim_v, s->cross ? "_cross" : "", s->encoder ? "_encoder" : "", s->sinks ? "_sinks" : "",
                    s->window ? "_window" : "", s->cap != 0 ? "_cap" : "")) return;
    indices       x   = make_indices(s, true);
    check_tensor *q   = check_input(s->dtype, 3, (int64_t)x.total, s->heads, s->dim);
    check_tensor *out = check_output(s->dtype, 3, (int64_t)x.total, s->heads, s->dim_v);
    check_tensor *k = s->cross ? NULL : check_input(s->dtype, 3, (int64_t)x.total, s->kv_heads, s->dim), *v = s->cross ? NULL : check_input(s->dtype, 3, (int64_t)x.total, s->kv_heads, s->dim_v);
    check_tensor *k_buffer = check_input(s->dtype, 3, x.slots, s->kv_heads, s->dim), *v_buffer = check_input(s->dtype, 3, x.slots, s->kv_heads, s->dim_v);

    sgk_attention_pool_options o = options_of(s);
    CHECK_CALL((o.encoder_lens = T(x.encoder_lens), o.sinks = T(x.sinks),
                sgk_extend_attention(T(out), T(q), T(k), T(v), T(k_buffer), T(v_buffer), T(x.req_to_token), T(x.req_pool_indices), T(x.seq_lens), T(x.extend_seq_lens), T(x.extend_start_loc),
                                     s->most_new, &o, check_exec)));
    check_close(out, tolerance(s->dtype));
    check_done(0, 0);
}

void check_attention_pool(void)
{
    static const shape shapes[] = {
        { .heads = 4, .kv_heads = 4, .dim = 64, .dim_v = 64, .batch = 2, .context = 130, .most_new = 33, .write = true },
        { .heads = 16, .kv_heads = 2, .dim = 128, .dim_v = 96, .batch = 3, .context = 70, .most_new = 9, .window = 20, .sinks = true, .write = true },
        { .heads = 22, .kv_heads = 1, .dim = 33, .dim_v = 55, .batch = 1, .context = 300, .most_new = 5, .encoder = true, .cap = 10 },
        { .heads = 8, .kv_heads = 2, .dim = 80, .dim_v = 80, .batch = 2, .context = 40, .most_new = 17, .cross = true },
        { .heads = 22, .kv_heads = 1, .dim = 576, .dim_v = 512, .batch = 2, .context = 90, .most_new = 3, .latent = true, .write = true },
    };
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16 };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; ++i)
        for (size_t f = 0; f < 3; ++f) {
            shape s = shapes[i];
            s.dtype = formats[f], s.index = (i + f) % 2 ? SGK_I64 : SGK_I32;
            check_decode(&s);
            check_extend(&s);
        }
}
