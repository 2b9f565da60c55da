/*
 * Thresholds by histograms over the key's bits, 11 then 10 then 10 of them; sums in blocks whose loops the compiler turns into vectors.
 */
#include <string.h>
#include "base/convert.h"
#include "cpu/cpu.h"
#include "sampling.h"
#include "sampling_draw.h"

enum { BINS  = 2048,
       BLOCK = 512,
       FEW   = 64 };

typedef struct {
    const uint32_t *probs;
    int64_t         dim;
    uint32_t        top_key;
    int32_t         weight_bits;
} row_t;

SGK_INLINE uint32_t largest_key(const uint32_t *probs, int64_t n)
{
    uint32_t most = 0;
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t key = key_of(probs[i]);
        most               = key > most ? key : most;
    }
    return most;
}

/* The same as weight_of, without a branch: a right shift by 63 gives 0, as does one that is out of range in weight_of. */
SGK_INLINE uint64_t sum_from(const row_t *r, int64_t begin, int64_t end, uint32_t least)
{
    const int32_t offset = r->weight_bits - 24 - exponent_of(r->top_key);
    uint64_t      sum    = 0;
    for (int64_t i = begin; i < end; ++i) {
        const uint32_t key = key_of(r->probs[i]), normal = key >> 23 ? 0x800000u : 0;
        const int32_t  shift    = offset + (int32_t)(key >> 23) + !normal;
        const uint64_t fraction = (key & 0x7fffff) | normal;
        const uint64_t left = shift > 0 ? (uint64_t)shift : 0, right = shift > 0 ? 0 : shift > -63 ? (uint64_t)-shift
                                                                                                   : 63;
        sum += key >= least ? fraction << left >> right : 0;
    }
    return sum;
}

SGK_INLINE bool in_bin(uint32_t key, uint32_t floor, int known, uint32_t prefix) { return (key >= floor) & (key >> known == prefix); }

/* Most blocks have nothing in the bin that is looked into: one vector comparison passes over them. */
SGK_INLINE bool any_in_bin(const uint32_t *probs, uint32_t floor, int known, uint32_t prefix)
{
    uint32_t any = 0;
    for (int i = 0; i < FEW; ++i) any |= in_bin(key_of(probs[i]), floor, known, prefix);
    return any;
}

/* The largest key from which on the entries number, or with by_weight: weigh, `need` or more. Only entries >= floor are looked at. */
SGK_INLINE uint32_t threshold(const row_t *r, bool by_weight, uint32_t floor, uint64_t need)
{
    static const int shifts[] = { 31, 20, 10, 0 };
    uint32_t         prefix   = 0;
    for (int level = 1; level < 4; ++level) {
        const int known = shifts[level - 1], shift = shifts[level], bits = known - shift;
        uint64_t  histogram[BINS];
        memset(histogram, 0, sizeof *histogram << bits);
        for (int64_t block = 0; block < r->dim; block += FEW) {
            const int64_t end = block + FEW < r->dim ? block + FEW : r->dim;
            if (block + FEW == end && !any_in_bin(r->probs + block, floor, known, prefix)) continue;
            for (int64_t i = block; i < end; ++i) {
                const uint32_t key = key_of(r->probs[i]);
                if (in_bin(key, floor, known, prefix))
                    histogram[key >> shift & ((1u << bits) - 1)] += by_weight ? weight_of(key, r->top_key, r->weight_bits) : 1;
            }
        }
        uint32_t bin = (1u << bits) - 1;
        for (; bin > 0 && histogram[bin] < need; --bin) need -= histogram[bin];
        prefix = prefix << bits | bin;
    }
    return prefix;
}

SGK_INLINE int64_t find(const row_t *r, uint32_t least, uint64_t place)
{
    int64_t i = 0;
    for (;; i += BLOCK) {
        const uint64_t sum = sum_from(r, i, i + BLOCK < r->dim ? i + BLOCK : r->dim, least);
        if (sum > place) break;
        place -= sum;
    }
    for (;; ++i) {
        const uint64_t weight = sum_from(r, i, i + 1, least);
        if (weight > place) return i;
        place -= weight;
    }
}

SGK_INLINE int64_t draw(const struct top_k_top_p_args *a, int64_t i)
{
    const int64_t at = a->indices ? load_index(a->indices, i, a->indices_wide ? SGK_I64 : SGK_I32) : i;
    const int64_t k  = a->top_k_arr ? load_index(a->top_k_arr, i, a->top_k_wide ? SGK_I64 : SGK_I32) : a->top_k;
    const float   p  = a->top_p_arr ? a->top_p_arr[i] : a->top_p;

    row_t r   = { .probs = a->probs + at * a->probs_stride, .dim = a->dim, .weight_bits = a->weight_bits };
    r.top_key = largest_key(r.probs, r.dim);
    if (r.top_key == 0) return 0;

    uint32_t least = k == 1 ? r.top_key : k > 0 && k < r.dim ? threshold(&r, false, 0, (uint64_t)k)
                                                             : 0;
    if (p < 1 && k != 1) {                              /* with k = 1 nothing is left to drop */
        const uint32_t floor = a->joint ? 0 : least;
        const uint32_t other = threshold(&r, true, floor, share_of(sum_from(&r, 0, r.dim, floor), p));
        least                = other > least ? other : least;
    }
    const uint64_t kept = sum_from(&r, 0, r.dim, least);
    return find(&r, least, draw_below(kept, (uint64_t)a->seed[a->one_seed ? 0 : i], (uint64_t)(a->one_seed ? i : 0)));
}

void SGK_CPU_FN(top_k_top_p)(const void *args, int64_t begin, int64_t end)
{
    const struct top_k_top_p_args *a = args;
    for (int64_t i = begin; i < end; ++i) a->output[i] = (int32_t)draw(a, i);
}
