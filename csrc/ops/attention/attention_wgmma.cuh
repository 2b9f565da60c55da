/*
 * attention_wgmma: how work is found and described by one warp, queries copied, scores masked and made weights. The macros are the kernel's.
 */
#pragma once
#include "attention_score.cuh"
#include "attention_wgmma.h"
#include "barrier.cuh"
#include "cp_async.cuh"
#include "launch.cuh"
#include "mma.cuh"
#include "ring.cuh"
#include "tma.cuh"

#ifndef E4M3
#define E4M3   0
#define OFFSET 0
#endif

#define ACROSS  (E4M3 ? 128 : 64)       /* elements across a slab: 128 bytes */
#define Q_SLAB  (ROWS * 128)
#define KV_SLAB (KEYS * 128)
#define SLABS   ((DIM + ACROSS - 1) / ACROSS)
#define V_SLABS ((DIM_V + ACROSS - 1) / ACROSS)
#define Q_BYTES (SLABS * Q_SLAB)
#define K_BYTES (SLABS * KV_SLAB)
#define V_BYTES (V_SLABS * KV_SLAB)

#define ROWS    (64 * GROUPS)
#define THREADS (128 * GROUPS)          /* that multiply */
#define WORKS   (4 * Q_PLACES)          /* descriptions in shared memory: at least as many as can be in use */

/* A block begins with as many registers a thread as 65536 allow, in eights: who waits for more than there are then waits for ever. */
static_assert(GIVE + GROUPS * TAKE <= (GROUPS + 1) * (512 / (GROUPS + 1) / 8 * 8), "more registers taken than given");

enum { TURN   = 1,                      /* named barriers: a turn of each warpgroup; another piece of work is wanted */
       WANTED = TURN + GROUPS };

/* A piece of work: queries from `query` to `end` - 1, each with `heads` heads from `head` on, which is one row after the other. Tiles of keys from
 * `high` - 1 down to `low`, part `split` of those that the queries see. */
struct work {
    int n, head, kv_head, heads, inverse, query, end, low, high, sq, sk, q_begin, k_row, batch, split;
#if E4M3
    float    scale, inner, value;           /* attention_wgmma_args' scale and cap_inner, and what values are multiplied by, with the scales of the tensors */
    uint32_t flip;                          /* of four elements of q: the sign bits, where the scale of scores is negative */
#endif
};

__shared__ work     works[WORKS];
__shared__ uint64_t found_work[WORKS];
/* In one place, so that one register finds them all. */
struct barriers {
    uint64_t k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES], q_full[Q_PLACES], q_empty[Q_PLACES], nowhere;
#if E4M3
    uint64_t t_full[STAGES], t_empty[STAGES];       /* transposed values */
#endif
};
enum { at_k_full  = 0,
       at_k_empty = at_k_full + STAGES,
       at_v_full  = at_k_empty + STAGES,
       at_v_empty = at_v_full + STAGES,
       at_q_full  = at_v_empty + STAGES,
       at_q_empty = at_q_full + Q_PLACES,
       at_nowhere = at_q_empty + Q_PLACES,
       at_t_full  = at_nowhere + 1,
       at_t_empty = at_t_full + STAGES };
__shared__ barriers bar;

DEVICE float ex2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE attention_sequence sequence_of(const work *w)
{
    attention_sequence s = { w->sq, w->sk, 0, 0, 0, 0, 0, 0 };
    return s;
}

/* By one thread: all barriers but those of keys and values. */
DEVICE void init_works(void)
{
    #pragma unroll
    for (int i = 0; i < WORKS; ++i) mbarrier_init(shared_address(&found_work[i]), 1);
    #pragma unroll
    for (int i = 0; i < Q_PLACES; ++i) {
        mbarrier_init(shared_address(&bar.q_full[i]), 1);
        mbarrier_init(shared_address(&bar.q_empty[i]), 4 * GROUPS);
    }
}

/* ---- work ---------------------------------------------------------------------------------------------------------------- */

/* Of number `part` of all parts: which tile it belongs to. */
DEVICE int take_part(const attention_wgmma_args *p, work *w, int part)
{
    w->split = part % p->a.splits;
    return part / p->a.splits;
}

/* Pieces of work: joined ones of the list, then all others, those of short sequences included that are none. The parts of a tile's keys stand side
 * by side. */
DEVICE int count_joined(const attention_wgmma_args *p) { return p->order ? p->order_count[0] * p->a.splits * p->a.kv_heads : 0; }
DEVICE int count_tiles(const attention_wgmma_args *p) { return (p->order ? p->order_count[1] - p->order_count[0] : p->row_tiles) * p->a.splits; }
DEVICE int count_works(const attention_wgmma_args *p) { return count_joined(p) + count_tiles(p) * p->units; }

/* Longest first: joined ones with all key heads side by side, as their keys lie in memory and are read once; others among as many units as share L2. */
DEVICE bool describe(const attention_wgmma_args *p, work *w, int id)
{
    const attention_args *a = &p->a;
    if (id < count_joined(p)) {
        const attention_tile *at = &p->order[take_part(p, w, id / a->kv_heads)];
        w->n = at->sequence, w->kv_head = id % a->kv_heads, w->head = -1, w->query = at->tile;
    } else {
        id -= count_joined(p);
        const int tiles = count_tiles(p), first = id / (p->at_once * tiles) * p->at_once, rest = id % (p->at_once * tiles);
        const int here = p->units - first < p->at_once ? p->units - first : p->at_once, unit = first + rest % here;
        if (p->order) {
            const attention_tile *at = &p->order[p->order_count[0] + take_part(p, w, rest / here)];
            w->n = at->sequence, w->kv_head = unit, w->head = at->member, w->query = at->tile;
        } else {
            const int heads = p->joined ? a->kv_heads : a->heads, members = p->joined ? 1 : a->group;
            w->n = unit / heads, w->kv_head = unit % heads / members, w->head = p->joined ? -1 : unit % members, w->query = take_part(p, w, tiles - 1 - rest / here);
        }
    }
    asm volatile("" ::: "memory");              /* registers are few: what has been found is read again */
    {
        const attention_sequence s = attention_sequence_of(a, w->n);
        w->sq = s.sq, w->sk = s.sk, w->q_begin = s.q_begin, w->k_row = s.k_begin + s.leftpad;
    }
    asm volatile("" ::: "memory");
    {
        const int heads = w->head < 0 ? a->group : 1, queries = ROWS / heads;
        w->heads   = heads;
        w->inverse = 0xffff / heads + 1;
        w->head    = w->kv_head * a->group + (w->head < 0 ? 0 : w->head);
        w->query *= queries;
        w->end = w->query + queries < w->sq ? w->query + queries : w->sq;
    }
    asm volatile("" ::: "memory");
    if (w->query >= w->sq) return false;
    const attention_sequence s     = sequence_of(w);
    const int                begin = attention_keys_of(a, &s, w->query).begin, end = attention_keys_of(a, &s, w->end - 1).end;
    w->low  = begin / KEYS;
    w->high = end > begin ? (end + KEYS - 1) / KEYS : w->low;
    if (a->splits > 1) {
        const int each = (w->high - w->low + a->splits - 1) / a->splits;
        w->low         = w->low + w->split * each < w->high ? w->low + w->split * each : w->high;
        w->high        = w->low + each < w->high ? w->low + each : w->high;
    }
    w->batch = a->page_size || a->cu_seqlens_k ? 0 : a->kv_batch_idx ? a->kv_batch_idx[w->n]
                                                                     : w->n;
    if (w->batch < 0 || w->batch >= a->kv_batches) w->batch = a->kv_batches;            /* outside: zeros */
#if E4M3
    float scores = 1;
    if (a->q_descale) scores *= a->q_descale[w->n * a->q_descale_batch_stride + w->kv_head * a->q_descale_head_stride];
    if (a->k_descale) scores *= a->k_descale[w->n * a->k_descale_batch_stride + w->kv_head * a->k_descale_head_stride];
    w->flip  = scores < 0 ? 0x80808080 : 0;
    scores   = fmaxf(fabsf(scores), 1e-30f);            /* not 0, as -inf times it must stay -inf */
    w->scale = p->cap_inner > 0 ? p->scale : p->scale * scores;
    w->inner = p->cap_inner * scores;
    w->value = attention_value_scale(a, w->n, w->kv_head);
#endif
    return true;
}

/* The query and the head of one of a piece's rows; for those that it does not have, the query is `end` or more. The division is exact up to ROWS. */
DEVICE int query_of(const work *w, int row) { return w->query + (row * w->inverse >> 16); }
DEVICE int head_of(const work *w, int row) { return w->head + row - (row * w->inverse >> 16) * w->heads; }

struct place { int row, batch; };

/* Where `slot` keys behind key 0 of the sequence a box begins. Where there is no page: outside, which reads as zeros. */
DEVICE place place_of(const attention_args *a, const work *w, int slot)
{
    place at = { w->k_row + slot, w->batch };
    if (a->page_size) {
        const int page = slot < w->sk ? a->page_table[w->n * a->page_table_stride + at.row / a->page_size] : -1;
        at.row %= a->page_size;
        at.batch = page < 0 || page >= a->kv_batches ? a->kv_batches : page;
    }
    return at;
}

/* The page of a place where lanes look up rows: what (2^32 - 1) / page_size gives is right or one too small. */
DEVICE int page_of(const attention_args *a, uint32_t inverse, int place)
{
    const uint32_t page = __umulhi((uint32_t)place, inverse), size = (uint32_t)a->page_size;
    return (int)((uint32_t)place - page * size >= size ? page + 1 : page);
}

/* The piece of work that follows `id`. With counters a block goes on with the kind it had, joined or not, and takes the other when that kind is
 * used up. Without them forth and back, so that the blocks with the longest work of a round get the shortest of the next. */
DEVICE int id_behind(const attention_wgmma_args *p, int id)
{
    if (!p->next) {
        const int blocks = (int)gridDim.x, round = id / blocks + 1;
        return round * blocks + (round & 1 ? blocks - 1 - (int)blockIdx.x : (int)blockIdx.x);
    }
    int part = id >= count_joined(p);
    #pragma unroll 1
    for (int i = 0; i < 2; ++i, part ^= 1) {
        const int begin = part ? count_joined(p) : 0, end = part ? count_works(p) : count_joined(p), at = begin + atomicAdd(p->next + part, 1);
        if (at < end) return at;
    }
    return count_works(p);
}

/* A block's first. Some begin with joined pieces, which wait for memory, while others do not and wait for the matrix units. */
DEVICE int first_id(const attention_wgmma_args *p)
{
    const int joined = count_joined(p), blocks = joined ? p->joined_blocks : 0, block = (int)blockIdx.x;
    const int id = block < blocks ? block : joined + block - blocks;
    return id < (block < blocks ? joined : count_works(p)) ? id : id_behind(p, block < blocks ? 0 : id);
}

/* Where results of a row over a part of the keys are: what combines them goes over sequences, heads and queries. */
DEVICE int64_t partial_of(const attention_args *a, const work *w, int row)
{
    return (((int64_t)w->split * a->batch + w->n) * a->heads + head_of(w, row)) * a->max_q + query_of(w, row);
}

/* Zeros for a piece of work without keys, by one warp; for a part without keys, that it has none. */
DEVICE void put_none(const attention_wgmma_args *p, const work *w, int lane)
{
    const attention_args *a = &p->a;
    if (a->splits > 1) {
        for (int row = lane; query_of(w, row) < w->end; row += 32) a->partial_lse[partial_of(a, w, row)] = -INF;
        return;
    }
    for (int row = 0; query_of(w, row) < w->end; ++row) {
        asm volatile("" ::: "memory");          /* registers are few: nothing is kept from row to row */
        const int query = query_of(w, row), head = head_of(w, row);
        uint16_t *to = (uint16_t *)a->out + w->n * a->out_batch_stride + (w->q_begin + query) * a->out_row_stride + head * a->out_head_stride;
        for (int column = lane * 8; column < a->dim_v; column += 256) *(uint4 *)(to + column) = make_uint4(0, 0, 0, 0);
        if (lane == 0 && a->softmax_lse) a->softmax_lse[w->n * a->lse_batch_stride + head * a->lse_head_stride + w->q_begin + query] = a->empty_lse;
    }
}

__shared__ int next_id, found;                  /* kept here: registers are few */
DEVICE void start_finding(const attention_wgmma_args *p, int lane)
{
    if (lane == 0) next_id = first_id(p), found = 0;
    __syncwarp();
}

/* Describes one more piece of work; what has no keys is done at once. The last description has n = -1: false. */
DEVICE bool find_next(const attention_wgmma_args *p, int lane)
{
    for (;;) {
        if (lane == 0) {
            bool any = false;
            for (int id; !any && (id = next_id) < count_works(p); next_id = id_behind(p, id)) any = describe(p, &works[found % WORKS], id);
            asm volatile("" ::: "memory");
            if (!any) works[found % WORKS].n = -1;
        }
        __syncwarp();
        const work *w = &works[found % WORKS];
        if (w->n >= 0 && w->low == w->high) {
            put_none(p, w, lane);
            __syncwarp();
            continue;
        }
        if (lane == 0) mbarrier_arrive(shared_address(&found_work[found % WORKS]));
        if (w->n < 0) return false;
        __syncwarp();
        if (lane == 0) ++found;
        return true;
    }
}

/* For warps that copy: piece of work number `count`. */
DEVICE const work *work_of(int count)
{
    mbarrier_wait(shared_address(&found_work[count % WORKS]), count / WORKS & 1);
    return &works[count % WORKS];
}

#if Q_PLACES == 2
/* Whether a piece's results leave as boxes of all its rows. */
DEVICE bool stores_whole(const attention_wgmma_args *p, const work *w) { return p->stores && w->heads == 1 && w->query + ROWS <= w->sq; }

/* From the place of the queries that they are of; done with it when it returns. By one thread. */
DEVICE void store_results(const attention_wgmma_args *p, const work *w, uint32_t from)
{
    for (int s = 0; s < V_SLABS; ++s) tma_store4(&p->out, s * ACROSS, w->q_begin + w->query, w->head, p->a.cu_seqlens_q ? 0 : w->n, from + s * Q_SLAB);
    tma_store_commit();
    tma_store_wait_read(0);
}
#endif

/* Where the queries of a piece lie: rows of one head, or heads of rows. */
struct q_box {
    const sgk_tma_map *map;
    int                y, z, batch;
};
DEVICE q_box q_box_of(const attention_wgmma_args *p, const work *w)
{
    const int   row = w->q_begin + w->query, batch = p->a.cu_seqlens_q ? 0 : w->n;
    const bool  joined = w->heads > 1;
    const q_box at     = { joined ? &p->q_joined : &p->q, joined ? w->head : row, joined ? row : w->head, batch };
    return at;
}

/* By a warp that copies. Queries may have to wait for the last product before them, with two places for the results of the piece before that, which
 * leave from their place. With one place they are asked for into L2 meanwhile, but of e4m3. */
DEVICE void copy_q(const attention_wgmma_args *p, const work *w, uint32_t base, int count, int lane)
{
    const uint32_t full = shared_address(&bar.q_full[count % Q_PLACES]);
#if !E4M3
    if (Q_PLACES == 1 && lane == 0 && count && w->n >= 0) {
        const q_box at = q_box_of(p, w);
        for (int s = 0; s < SLABS; ++s) tma_prefetch4(at.map, s * ACROSS, at.y, at.z, at.batch);
    }
    __syncwarp();
#endif
    mbarrier_wait(shared_address(&bar.q_empty[count % Q_PLACES]), (count / Q_PLACES & 1) ^ 1);
    base += count % Q_PLACES * Q_BYTES;
#if Q_PLACES == 2
    if (lane == 0 && count >= Q_PLACES) {
        const work *before = &works[(count - Q_PLACES) % WORKS];
        if (stores_whole(p, before)) store_results(p, before, base);
    }
    __syncwarp();
#endif
    if (w->n < 0) {
        if (lane == 0) mbarrier_arrive(full);
        return;
    }
    if (lane == 0) {
        const q_box at = q_box_of(p, w);
        mbarrier_expect(full, SLABS * 128 * (ROWS / w->heads * w->heads));
        for (int s = 0; s < SLABS; ++s) tma_load4(base + s * Q_SLAB, at.map, s * ACROSS, at.y, at.z, at.batch, full);
    }
    named_announce(WANTED, 64);
}

/* ---- scores and weights -------------------------------------------------------------------------------------------------- */

/* threadIdx.x, read anew each time: what follows from it is not kept in registers, which are few. */
DEVICE int thread(void)
{
    int t;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
    return t;
}

/* The tiles that all rows of the warpgroup see whole: [from, to). */
struct whole { int from, to; };

DEVICE whole whole_of(const attention_args *a, const work *w)
{
    const attention_sequence s   = sequence_of(w);
    const int                row = thread() / 128 * 64;
    const whole              f   = { (attention_keys_of(a, &s, query_of(w, row + 63)).begin + KEYS - 1) / KEYS, attention_keys_of(a, &s, query_of(w, row)).end / KEYS };
    return f;
}

/* Where the keys that a thread's two rows see begin and end, counted from the first of its columns of a tile. */
struct limits { int before[2], behind[2]; };

DEVICE limits limits_of(const attention_args *a, const work *w, int tile)
{
    const int                t = thread();
    const attention_sequence q = sequence_of(w);
    limits                   m;
    #pragma unroll
    for (int r = 0; r < 2; ++r) {
        const attention_keys sees  = attention_keys_of(a, &q, query_of(w, t / 32 * 16 + t % 32 / 4 + 8 * r));
        const int            first = tile * KEYS + t % 4 * 2;
        m.before[r] = sees.begin - first, m.behind[r] = sees.end - first;
    }
    return m;
}

DEVICE void mask_behind(float (&s)[KEYS / 2], const limits *m)
{
    #pragma unroll
    for (int i = 0; i < KEYS / 2; ++i)
        if (i / 4 * 8 + i % 2 >= m->behind[i >> 1 & 1]) s[i] = -INF;
}

DEVICE void mask_before(float (&s)[KEYS / 2], const limits *m)
{
    #pragma unroll
    for (int i = 0; i < KEYS / 2; ++i)
        if (i / 4 * 8 + i % 2 < m->before[i >> 1 & 1]) s[i] = -INF;
}

/* s = cap * tanh(s * scale / cap), in powers of two. */
DEVICE void cap(float (&s)[KEYS / 2], float inner, float outer)
{
    #pragma unroll
    for (int i = 0; i < KEYS / 2; ++i) {
        float r;
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1 + ex2(s[i] * inner)));
        s[i] = outer - 2 * outer * r;
    }
}

/* What weights of a row are over where this is its largest score: that one's weight is 2^OFFSET. */
DEVICE float base_of(float most, float scale) { return most * scale - OFFSET; }

/* With the scores of a tile: `most`, a row's largest score so far, `base` of its weights, and `factor`, what its earlier sums are to be
 * multiplied with. */
DEVICE void maxima(const float (&s)[KEYS / 2], float (&most)[2], float (&base)[2], float (&factor)[2], float scale)
{
    float now[2][2];
    #pragma unroll
    for (int r = 0; r < 2; ++r) {
        now[r][0] = fmaxf(most[r], s[2 * r]), now[r][1] = s[2 * r + 1];
        #pragma unroll
        for (int j = 1; j < KEYS / 8; ++j) now[r][0] = fmaxf(now[r][0], s[4 * j + 2 * r]), now[r][1] = fmaxf(now[r][1], s[4 * j + 2 * r + 1]);
        now[r][0] = fmaxf(now[r][0], now[r][1]);
        now[r][0] = fmaxf(now[r][0], __shfl_xor_sync(~0u, now[r][0], 1));
        now[r][0] = fmaxf(now[r][0], __shfl_xor_sync(~0u, now[r][0], 2));
        base[r]   = now[r][0] == -INF ? 0 : base_of(now[r][0], scale);    /* no key seen so far: -inf - -inf is no number */
        factor[r] = ex2(base_of(most[r], scale) - base[r]);
        most[r]   = now[r][0];
    }
}

/* Weights of whole tiles may be over a base that is not the largest score: what they, and a thread's sum of them for a row, may come to. */
DEVICE float most_power(const bf16 *) { return 30; }
DEVICE float most_power(const f16 *) { return 8; }
DEVICE float most_sum(const bf16 *) { return 1099511627776.f; }
DEVICE float most_sum(const f16 *) { return 32768.f; }

/*
 * The same, but the base stays where no weight is more than 1 and half of what a thread has had of the row, or above 2^most_power(): a weight that has most of a row's sum is to be a power of two, which
 * is not rounded. Returns whether a base of the warp has moved; `factor` is a power of two here.
 */
DEVICE bool maxima_lazy(const float (&s)[KEYS / 2], const float (&sum)[2], float (&most)[2], float (&base)[2], float (&factor)[2], float scale)
{
    float now[2][2];
    bool  moves[2];
    #pragma unroll
    for (int r = 0; r < 2; ++r) {
        now[r][0] = s[2 * r], now[r][1] = s[2 * r + 1];
        #pragma unroll
        for (int j = 1; j < KEYS / 8; ++j) now[r][0] = fmaxf(now[r][0], s[4 * j + 2 * r]), now[r][1] = fmaxf(now[r][1], s[4 * j + 2 * r + 1]);
        now[r][0] = fmaxf(now[r][0], now[r][1]);
        moves[r]  = now[r][0] * scale > base[r] + fminf(fmaxf(log2_approx(sum[r]) - 1, 0), most_power((const T *)0)) || most[r] == -INF;
    }
    if (!__any_sync(~0u, moves[0] || moves[1])) return false;
    #pragma unroll
    for (int r = 0; r < 2; ++r) {
        now[r][0]          = fmaxf(now[r][0], __shfl_xor_sync(~0u, now[r][0], 1));
        now[r][0]          = fmaxf(now[r][0], __shfl_xor_sync(~0u, now[r][0], 2));
        const float before = base[r], old = most[r];
        if (__ballot_sync(~0u, moves[r]) >> (thread() & 28) & 15) most[r] = fmaxf(old, now[r][0]);
        base[r]   = most[r] == -INF ? 0 : most[r] * scale;
        factor[r] = old == -INF ? -INF : before - base[r];
    }
    return true;
}

/* The same where weights over the base as it is do not fit one of the quad's threads; elsewhere the base stays. */
DEVICE void maxima_where(const float (&s)[KEYS / 2], const bool (&fits)[2], float (&most)[2], float (&base)[2], float (&factor)[2], float scale)
{
    const float old_most[2] = { most[0], most[1] }, old_base[2] = { base[0], base[1] };
    maxima(s, most, base, factor, scale);
    #pragma unroll
    for (int r = 0; r < 2; ++r) {
        uint32_t all = fits[r];
        all &= __shfl_xor_sync(~0u, all, 1);
        all &= __shfl_xor_sync(~0u, all, 2);
        if (all) most[r] = old_most[r], base[r] = old_base[r], factor[r] = 1;
    }
}

/* Weights in place of scores, and their sums. */
DEVICE void weigh(float (&s)[KEYS / 2], float (&sum)[2], const float (&base)[2], const float (&factor)[2], float scale)
{
    #pragma unroll
    for (int r = 0; r < 2; ++r) {
        float add[2] = { 0, 0 };
        #pragma unroll
        for (int j = 0; j < KEYS / 8; ++j)
            #pragma unroll
            for (int e = 0; e < 2; ++e) {
                s[4 * j + 2 * r + e] = ex2(fmaf(s[4 * j + 2 * r + e], scale, -base[r]));
                add[e] += s[4 * j + 2 * r + e];
            }
        sum[r] = sum[r] * factor[r] + (add[0] + add[1]);
    }
}

/* ---- results ------------------------------------------------------------------------------------------------------------- */

/* The sum of a row, from those of the four threads that have it. */
DEVICE float quad_sum(float sum)
{
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    return sum;
}

/* ---- what the loops of warpgroups that multiply share ------------------------------------------------------------------------ */

/* The lower half of an operand's descriptor, which alone differs: an address and what does not depend on it. */
DEVICE uint32_t place_of_k(uint32_t address) { return 1u << 16 | address >> 4; }
#define AT(name, i) (barrier + (uint32_t)(at_##name + (i)) * 8)
#define STAGE(n)    ((n) % STAGES)
#define LAP(n)      ((n) / STAGES & 1)
#define GIVE_BACK(b) \
    do { \
        if (one) mbarrier_arrive(b); \
    } while (0)

/* For warpgroups that multiply: piece of work number `count`, its queries included. */
DEVICE const work *queries_of(int count)
{
    mbarrier_wait(shared_address(&bar.q_full[count % Q_PLACES]), count / Q_PLACES & 1);
    return &works[count % WORKS];
}
