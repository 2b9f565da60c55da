/* The definition. Everything else in this folder is a faster way to get the same index. */
#include "base/convert.h"
#include "cpu/cpu.h"
#include "sampling.h"
#include "sampling_draw.h"

typedef struct {
    const uint32_t *probs;
    int64_t         dim;
    uint32_t        top_key;
    int32_t         weight_bits;
} row_t;

static int64_t count_from(const row_t *r, uint32_t least)
{
    int64_t count = 0;
    for (int64_t i = 0; i < r->dim; ++i) count += key_of(r->probs[i]) >= least;
    return count;
}

static uint64_t weight_from(const row_t *r, uint32_t least)
{
    uint64_t sum = 0;
    for (int64_t i = 0; i < r->dim; ++i)
        if (key_of(r->probs[i]) >= least) sum += weight_of(key_of(r->probs[i]), r->top_key, r->weight_bits);
    return sum;
}

/* The largest key that leaves k entries, bit by bit from the top: the k-th largest entry. */
static uint32_t top_k_key(const row_t *r, int64_t k)
{
    uint32_t key = 0;
    for (uint32_t bit = 1u << 30; bit; bit >>= 1)
        if (count_from(r, key | bit) >= k) key |= bit;
    return key;
}

static uint32_t top_p_key(const row_t *r, uint64_t share)
{
    uint32_t key = 0;
    for (uint32_t bit = 1u << 30; bit; bit >>= 1)
        if (weight_from(r, key | bit) >= share) key |= bit;
    return key;
}

static int64_t draw(const struct top_k_top_p_args *a, int64_t i)
{
    const int64_t at = a->indices ? load_index(a->indices, i, a->indices_wide ? SGK_I64 : SGK_I32) : i;
    const int64_t k  = a->top_k_arr ? load_index(a->top_k_arr, i, a->top_k_wide ? SGK_I64 : SGK_I32) : a->top_k;
    const float   p  = a->top_p_arr ? a->top_p_arr[i] : a->top_p;

    row_t r = { .probs = a->probs + at * a->probs_stride, .dim = a->dim, .weight_bits = a->weight_bits };
    for (int64_t j = 0; j < r.dim; ++j)
        if (key_of(r.probs[j]) > r.top_key) r.top_key = key_of(r.probs[j]);
    if (r.top_key == 0) return 0;

    uint32_t least = k > 0 && k < r.dim ? top_k_key(&r, k) : 0;
    if (p < 1) {
        const uint32_t other = top_p_key(&r, share_of(weight_from(&r, a->joint ? 0 : least), p));
        least                = other > least ? other : least;
    }
    const uint64_t place = draw_below(weight_from(&r, least), (uint64_t)a->seed[a->one_seed ? 0 : i], (uint64_t)(a->one_seed ? i : 0));
    uint64_t       sum   = 0;
    for (int64_t j = 0;; ++j) {
        if (key_of(r.probs[j]) >= least) sum += weight_of(key_of(r.probs[j]), r.top_key, r.weight_bits);
        if (sum > place) return j;
    }
}

void top_k_top_p_ref(const void *args, int64_t begin, int64_t end)
{
    const struct top_k_top_p_args *a = args;
    for (int64_t i = begin; i < end; ++i) a->output[i] = (int32_t)draw(a, i);
}
