/*
 * A draw from the likeliest entries of a row, one block a row. Thresholds come from histograms over the key's bits, 11 then 10 then 10 of
 * them; all sums are integers, so the order in which threads add makes no difference.
 *
 * The row is read once for its maximum. Mostly few of its entries matter: under a top_k the threads' own maxima give a bound that the k-th
 * largest entry cannot lie under, and without one a bound that many a top_p does not go under either. What reaches the bound is listed
 * in shared memory and is the row from there on. Where there is no such bound, where ties overflow the list, or where the share goes on
 * behind it, the row is read three times for each threshold asked for and once to draw, from the second-level cache; bound by that, and
 * by additions in shared memory where many entries fall into one bin.
 */
#include "sampling.h"
#include "sampling_draw.h"
#include "launch.cuh"
#include "types.cuh"

#define WARPS   16
#define THREADS (32 * WARPS)
#define STEPS   8                                       /* loads in flight in a thread, of four entries each */
#define BINS    2048
#define EACH    (BINS / THREADS)                        /* bins of a thread */
#define TILE    (4 * THREADS)                           /* entries the block takes at once */
#define STRETCH (1 << 20)                               /* entries whose halves of 12 bits a 32-bit counter can hold */

typedef struct {
    const uint32_t *probs;
    uint32_t        dim;                                /* below 2^31: no index of the loops leaves 32 bits */
    uint32_t        top_key;
    int32_t         weight_bits;
    bool            vectors;                            /* the row starts at a multiple of 16 bytes */
} row_t;

typedef struct {
    uint32_t key[THREADS];                              /* the threads' maxima, then the list */
    int32_t  index[THREADS];                            /* which entries of the row are listed */
    uint32_t low[BINS], high[BINS];                     /* weights cut in halves of 12 bits; zeros between uses */
    uint64_t warp_sum[WARPS];
    uint64_t above;                                     /* what the bins above the one found hold */
    uint32_t bin, listed;
} shared_t;

/* Four keys from entry i on; 0 behind `end`. */
DEVICE void load_keys(uint32_t key[4], const row_t *r, uint32_t i, uint32_t end)
{
    if (r->vectors && i + 4 <= end) {
        const uint4 u = *(const uint4 *)(r->probs + i);
        key[0] = key_of(u.x), key[1] = key_of(u.y), key[2] = key_of(u.z), key[3] = key_of(u.w);
        return;
    }
    #pragma unroll
    for (int j = 0; j < 4; ++j) key[j] = i + j < end ? key_of(r->probs[i + j]) : 0;
}

/* An inclusive sum over the threads before and with this one, and over all of them. */
DEVICE uint64_t block_scan(uint64_t v, shared_t *s, uint64_t *total)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    #pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
        const uint64_t before = __shfl_up_sync(~0u, v, o);
        if (lane >= o) v += before;
    }
    __syncthreads();                                    /* warp_sum may still be read for the scan before */
    if (lane == 31) s->warp_sum[warp] = v;
    __syncthreads();
    *total = 0;
    for (int w = 0; w < WARPS; ++w) {
        if (w == warp) v += *total;
        *total += s->warp_sum[w];
    }
    return v;
}

/* Leaves each thread's own in s->key. */
DEVICE uint32_t largest_key(const row_t *r, shared_t *s)
{
    uint32_t most = 0;
    for (uint32_t i = 4 * threadIdx.x; i < r->dim; i += STEPS * TILE) {
        uint32_t key[STEPS][4];
        #pragma unroll
        for (int n = 0; n < STEPS; ++n) load_keys(key[n], r, i + n * TILE, r->dim);
        #pragma unroll
        for (int n = 0; n < STEPS; ++n)
            most = max(most, max(max(key[n][0], key[n][1]), max(key[n][2], key[n][3])));
    }
    s->key[threadIdx.x] = most;
    most                = __reduce_max_sync(~0u, most);
    if (threadIdx.x % 32 == 0) s->warp_sum[threadIdx.x / 32] = most;
    __syncthreads();
    for (int w = 0; w < WARPS; ++w) most = max(most, (uint32_t)s->warp_sum[w]);
    return most;
}

DEVICE void add_to_bin(shared_t *s, uint32_t bin, uint32_t amount)
{
    atomicAdd(&s->low[bin], amount & 0xfff);
    if (amount >> 12) atomicAdd(&s->high[bin], amount >> 12);
}

DEVICE uint64_t empty_bin(shared_t *s, uint32_t bin)
{
    const uint64_t sum = ((uint64_t)s->high[bin] << 12) + s->low[bin];
    s->low[bin] = s->high[bin] = 0;
    return sum;
}

/*
 * The largest key from which on the positive entries number `need` or more (0 where there are fewer); with by_weight: from which on they
 * weigh `need`, or where that is 0 a share top_p of all from `floor` on. Only entries >= floor are looked at. All keys of a bin have one exponent, so a bin
 * adds small weights, and the shift comes last.
 */
DEVICE uint32_t threshold(const row_t *r, shared_t *s, bool by_weight, uint32_t floor, uint64_t need, float top_p)
{
    uint32_t prefix = 0;
    int      known  = 31;
    for (int level = 0; level < 3; ++level) {
        const int bits = level == 0 ? 11 : 10, shift = known - bits;
        uint64_t  v[EACH] = { 0 }, mine = 0, total;     /* thread t has bins EACH t to EACH t + EACH - 1, counted from the top */
        __syncthreads();                                /* the result of the level before has been read */
        if (threadIdx.x == 0) s->bin = ~0u;
        for (uint32_t begin = 0; begin < r->dim; begin += STRETCH) {
            const uint32_t end = min(begin + STRETCH, r->dim);
            for (uint32_t i = begin + 4 * threadIdx.x; i < end; i += STEPS * TILE) {
                uint32_t key[STEPS][4];
                #pragma unroll
                for (int n = 0; n < STEPS; ++n) load_keys(key[n], r, i + n * TILE, end);
                #pragma unroll
                for (int n = 0; n < 4 * STEPS; ++n) {
                    const uint32_t k = key[n / 4][n % 4];
                    if (k == 0 || k < floor || k >> known != prefix) continue;
                    const uint32_t amount = by_weight ? small_weight(k, weight_shift(k, r->top_key, r->weight_bits)) : 1;
                    if (amount) add_to_bin(s, k >> shift & ((1u << bits) - 1), amount);
                }
            }
            __syncthreads();
            #pragma unroll
            for (int j = 0; j < EACH; ++j) v[j] += empty_bin(s, BINS - 1 - EACH * threadIdx.x - j);
            __syncthreads();
        }
        #pragma unroll
        for (int j = 0; j < EACH; ++j) {
            const uint32_t bin = BINS - 1 - EACH * threadIdx.x - j;
            const int      up  = by_weight ? weight_shift((prefix << bits | bin) << shift, r->top_key, r->weight_bits) : 0;
            v[j]               = v[j] ? v[j] << max(up, 0) : 0;       /* the shift means nothing above the largest key */
            mine += v[j];
        }
        uint64_t upto = block_scan(mine, s, &total) - mine;
        if (by_weight && level == 0 && need == 0) need = share_of(total, top_p);
        #pragma unroll
        for (int j = 0; j < EACH; ++j) {
            if (upto < need && need <= upto + v[j]) {   /* in one thread, or none */
                s->bin   = BINS - 1 - EACH * threadIdx.x - j;
                s->above = upto;
            }
            upto += v[j];
        }
        __syncthreads();
        if (s->bin == ~0u) return 0;                    /* fewer positive entries than asked for */
        prefix = prefix << bits | s->bin;
        need -= s->above;
        known = shift;
    }
    return prefix;
}

DEVICE uint64_t weight_from(const row_t *r, const uint32_t key[4], uint32_t least)
{
    uint64_t sum = 0;
    #pragma unroll
    for (int j = 0; j < 4; ++j)
        if (key[j] >= least) sum += weight_of(key[j], r->top_key, r->weight_bits);
    return sum;
}

/* Each warp sums a stretch of the row; the block then searches the stretch in which the draw falls, tile by tile. `names` are the
 * entries' numbers where those are not 0, 1, ... */
DEVICE void draw(const row_t *r, shared_t *s, const int32_t *names, uint32_t least, uint64_t seed, uint64_t counter, int32_t *output)
{
    const uint32_t stretch = (r->dim + TILE - 1) / TILE * (TILE / WARPS);
    const uint32_t begin = threadIdx.x / 32 * stretch, end = min(begin + stretch, r->dim);
    uint64_t       sum = 0;
    for (uint32_t i = begin + 4 * (threadIdx.x % 32); i < end; i += STEPS * 128) {
        uint32_t key[STEPS][4];
        #pragma unroll
        for (int n = 0; n < STEPS; ++n) load_keys(key[n], r, i + n * 128, end);
        #pragma unroll
        for (int n = 0; n < STEPS; ++n) sum += weight_from(r, key[n], least);
    }
    #pragma unroll
    for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
    __syncthreads();
    if (threadIdx.x % 32 == 0) s->warp_sum[threadIdx.x / 32] = sum;
    __syncthreads();

    uint64_t kept = 0;
    for (int w = 0; w < WARPS; ++w) kept += s->warp_sum[w];
    uint64_t place = draw_below(kept, seed, counter);
    uint32_t w     = 0;
    while (place >= s->warp_sum[w]) place -= s->warp_sum[w++];      /* ends: place < kept */

    for (uint32_t tile = w * stretch;; tile += TILE) {
        const uint32_t i = tile + 4 * threadIdx.x;
        uint32_t       key[4];
        load_keys(key, r, i, min((w + 1) * stretch, r->dim));
        uint64_t       total;
        const uint64_t mine = weight_from(r, key, least), before = block_scan(mine, s, &total) - mine;
        if (place >= before && place - before < mine) { /* one thread of the block */
            uint64_t left = place - before;
            int      j    = 0;
            #pragma unroll
            for (int n = 0; n < 3; ++n) {
                const uint64_t weight = key[n] >= least ? weight_of(key[n], r->top_key, r->weight_bits) : 0;
                if (j == n && left >= weight) left -= weight, ++j;
            }
            *output = names ? names[i + j] : (int32_t)(i + j);
        }
        if (place < total) break;
        place -= total;
    }
}

/* Lists the entries >= floor > 0 in their order; false where they are more than the list holds. The row's weight if that is asked for. */
DEVICE bool list_entries(const row_t *r, shared_t *s, uint32_t floor, bool weigh, uint64_t *weight)
{
    uint64_t sum = 0;
    if (threadIdx.x == 0) s->listed = 0;
    __syncthreads();                                    /* and nobody reads the maxima any more */
    for (uint32_t i = 4 * threadIdx.x; i < r->dim; i += STEPS * TILE) {
        uint32_t key[STEPS][4];
        #pragma unroll
        for (int n = 0; n < STEPS; ++n) load_keys(key[n], r, i + n * TILE, r->dim);
        #pragma unroll
        for (int n = 0; n < STEPS; ++n)
            if (weigh) sum += weight_from(r, key[n], 1);
        #pragma unroll
        for (int n = 0; n < 4 * STEPS; ++n) {
            if (key[n / 4][n % 4] < floor) continue;
            const uint32_t place = atomicAdd(&s->listed, 1);
            if (place < THREADS) s->key[place] = key[n / 4][n % 4], s->index[place] = (int32_t)(i + n / 4 * TILE + n % 4);
        }
    }
    if (weigh) block_scan(sum, s, weight);
    __syncthreads();
    const uint32_t listed = s->listed;
    if (listed > THREADS) return false;

    const uint32_t key   = s->key[threadIdx.x];
    const int32_t  index = s->index[threadIdx.x];
    uint32_t       place = 0;
    for (uint32_t j = 0; j < listed; ++j) place += s->index[j] < index;
    __syncthreads();
    if (threadIdx.x < listed) s->key[place] = key, s->index[place] = index;
    __syncthreads();
    return true;
}

extern "C" __global__ __launch_bounds__(THREADS, 1) void top_k_top_p(const __grid_constant__ top_k_top_p_args a)
{
    __shared__ __align__(16) shared_t s;
    const int64_t                     i = blockIdx.x;

    for (int b = threadIdx.x; b < BINS; b += THREADS) s.low[b] = s.high[b] = 0;     /* everybody knows by the time of the first threshold */
    pdl_wait();
    const int64_t at = a.indices ? load_index(a.indices, i, a.indices_wide) : i;
    const int64_t k  = a.top_k_arr ? load_index(a.top_k_arr, i, a.top_k_wide) : a.top_k;
    const float   p  = a.top_p_arr ? a.top_p_arr[i] : a.top_p;
    if (at < 0 || at >= a.rows) {
        if (threadIdx.x == 0) a.output[i] = -1;
        return;
    }
    row_t r   = { a.probs + at * a.probs_stride, (uint32_t)a.dim, 0, a.weight_bits, false };
    r.vectors = (uint64_t)r.probs % 16 == 0;
    r.top_key = largest_key(&r, &s);
    if (r.top_key == 0) {
        if (threadIdx.x == 0) a.output[i] = 0;
        return;
    }

    /* k = 1 leaves nothing to drop, and a joint share is one of the whole row. */
    const bool     some = k > 1 && k < a.dim, share = p < 1 && k != 1, whole = share && (a.joint || !some);
    const int32_t *names = 0;
    row_t          row   = r;
    uint32_t       least = k == 1 ? r.top_key : 0;
    uint64_t       need  = 0;
    if (some ? k <= THREADS : share) {
        row.probs = s.key, row.dim = THREADS, row.vectors = true;
        const uint32_t floor = threshold(&row, &s, false, 0, some ? (uint64_t)k : THREADS / 2, 0);
        uint64_t       total = 0;
        row                  = r;
        if (floor && list_entries(&r, &s, floor, whole, &total)) {
            row.probs = s.key, row.dim = s.listed, row.vectors = true;
            names = s.index;
            if (whole) need = share_of(total, p);
        }
    }
    if (some) least = threshold(&row, &s, false, 0, (uint64_t)k, 0);
    if (share) {
        uint32_t from = threshold(&row, &s, true, whole ? 0 : least, need, p);
        if (from == 0 && need && !some) row = r, names = 0, from = threshold(&r, &s, true, 0, need, p);     /* the share goes on behind the list */
        least = max(least, from);
    }
    draw(&row, &s, names, least, (uint64_t)a.seed[a.one_seed ? 0 : i], (uint64_t)(a.one_seed ? i : 0), &a.output[i]);
    pdl_release();
}
