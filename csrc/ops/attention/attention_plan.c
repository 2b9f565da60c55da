/* Attention on the CPU: cuts a call into pieces of work and runs them. */
#include <string.h>
#include "attention_call.h"
#include "attention_cpu.h"
#include "cpu/cpu.h"

SGK_CPU_DECL(attention);
static const sgk_cpu_impl attention_cpu[] = SGK_CPU_IMPLS(attention);

static void append_rows(int64_t begin, int64_t end, void *context)
{
    for (int64_t n = begin; n < end; ++n) attention_append_rows(context, (int32_t)n);
}

/* The most key heads that an item takes: their rows fit a block, and four keys of theirs a third of the first-level cache. */
static int32_t most_heads(const struct attention_args *a, int64_t rows)
{
    if (rows < 1 || rows > ATTENTION_FEW_ROWS || a->apart || a->q_v) return 1;
    const int64_t bytes = (int64_t)(a->dim > a->dim_v ? a->dim : a->dim_v) * sgk_dtype_size(a->dtype);
    int64_t       heads = ATTENTION_ROWS / rows;
    if (heads > 4096 / bytes) heads = 4096 / bytes;
    if (heads > a->kv_heads) heads = a->kv_heads;
    return heads > 1 ? (int32_t)heads : 1;
}

/* Cuts the call into items of at most `heads` key heads, and counts what they need. `plan` may be NULL to count alone. */
typedef struct {
    int64_t items, partials, units, bytes;
    int32_t max_rows;
} plan_size;

static int32_t rounded_dim(int32_t dim) { return (dim + 15) / 16 * 16; }

static plan_size make_plan(const struct attention_args *a, int32_t heads, struct attention_plan *plan)
{
    plan_size size = { 0 };
    for (int32_t n = 0; n < a->batch; ++n) {
        const struct attention_sequence s    = attention_sequence_of(a, n);
        const int64_t                   rows = (int64_t)s.sq * a->group;
        struct attention_plan           p    = { .sequence = s, .blocks = (int32_t)((rows + ATTENTION_ROWS - 1) / ATTENTION_ROWS), .spans = 1, .heads = attention_at_most(most_heads(a, rows), heads), .first_item = size.items, .partials = size.partials, .first_unit = size.units };
        if (p.blocks == 1) {
            const int32_t keys = attention_keys_of(a, &s, s.sq - 1).end - attention_keys_of(a, &s, 0).begin;
            if (keys > ATTENTION_SPAN) p.spans = (keys + ATTENTION_SPAN - 1) / ATTENTION_SPAN;
        }
        const int64_t units = (a->kv_heads + p.heads - 1) / p.heads, most = p.heads * (rows < ATTENTION_ROWS ? rows : ATTENTION_ROWS);
        size.items += units * p.blocks * p.spans;
        size.bytes += (int64_t)a->kv_heads * p.blocks * s.sk * (a->dim + a->dim_v) * sgk_dtype_size(a->dtype);
        if (p.spans > 1) {
            size.partials += (int64_t)a->kv_heads * p.spans * rows * (rounded_dim(a->dim_v) + 2);
            size.units += units;
        }
        if (most > size.max_rows) size.max_rows = (int32_t)most;
        if (plan) plan[n] = p;
    }
    return size;
}

static int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

sgk_status attention_run_cpu(attention_call *c)
{
    struct attention_args *a       = &c->a;
    const sgk_exec        *exec    = c->exec;
    const int64_t          rotated = rounded(attention_rotate_queries(c));
    struct attention_work  w       = { .padded_dim = rounded_dim(a->dim), .padded_dim_v = rounded_dim(a->dim_v) };
    int32_t                heads   = ATTENTION_ROWS;
    plan_size              size    = make_plan(a, heads, NULL);
    int64_t                slots   = size.bytes / 262144 + 1;         /* fewer threads where a piece would be over before another thread has woken up */
    if (slots > sgk_num_threads(exec)) slots = sgk_num_threads(exec);
    while (slots > 1 && heads > 1 && size.items < 4 * slots) size = make_plan(a, heads /= 2, NULL);
    if (slots > size.items) slots = size.items;
    w.once         = a->k != a->v && sgk_cpu_streams(a->k, size.bytes, 1, 1);  /* values may be a part of the keys: then they come from the second-level cache */
    w.items        = size.items;
    w.max_rows     = size.max_rows;
    w.buffer_bytes = attention_buffer_floats(&w, a->q_v != NULL) * (int64_t)sizeof(float);

    const int64_t plan_bytes = rounded(a->batch * (int64_t)sizeof(struct attention_plan)), unit_bytes = rounded(size.units * 4);
    const int64_t partial_bytes = rounded(size.partials * 4);
    sgk_scratch   scratch;
    SGK_TRY(sgk_scratch_get(&scratch, c->op, (size_t)(rotated + 64 + plan_bytes + unit_bytes + partial_bytes + slots * w.buffer_bytes), c->m.device, exec));
    if (scratch.query_only) return SGK_OK;

    if (c->prepare) (void)c->prepare(c, NULL);                          /* on the CPU it needs no memory, and cannot fail */
    char *memory = scratch.memory;
    if (rotated) a->q = memory, memory += rotated;
    w.a                         = *a;
    w.next                      = (int64_t *)memory, memory += 64;
    struct attention_plan *plan = (struct attention_plan *)memory;
    w.plan                      = plan, memory += plan_bytes;
    w.left                      = (int32_t *)memory, memory += unit_bytes;
    w.partials                  = (float *)memory, memory += partial_bytes;
    w.buffers                   = memory;
    *w.next                     = 0;
    make_plan(a, heads, plan);
    for (int32_t n = 0; n < a->batch; ++n)
        if (plan[n].spans > 1)
            for (int32_t h = 0; h < a->kv_heads; h += plan[n].heads) w.left[plan[n].first_unit + h / plan[n].heads] = plan[n].spans;

    if ((a->max_new || rotated) && !a->apart) {
        c->before.a = *a;
        sgk_parallel_for(exec, 0, a->batch, sgk_cpu_grain(2 * (int64_t)a->max_new * a->kv_heads * (a->dim + a->dim_v) * sgk_dtype_size(a->dtype)), append_rows, &c->before);
    }
    /* The fast versions deal items out as threads ask for them, one buffer a thread; the reference takes heads. */
    const bool       plain  = sgk_cpu_pick(attention_cpu)->needs == 0;
    const sgk_status status = sgk_cpu_run(c->op, attention_cpu, &w, plain ? (int64_t)a->batch * a->heads : slots, 1, exec);
    sgk_scratch_put(&scratch);
    return status;
}
