/*
 * Attention on the 8-bit matrix units of sm_90a: q, k and v of e4m3, out of bf16. As attention_wgmma.cu, with three differences.
 *
 * The product with the values needs them with keys along their rows, which memory does not have: two warps turn each tile, 16-bit pairs by
 * ldmatrix, bytes by prmt. Keys come out of it in the order in which the sums of the first product lie in registers, and columns of v in the
 * order that meets all banks; both are only numbers of a loop, and out puts the columns right.
 *
 * The matrix units keep 14 bits of an 8-bit product's sum, so that each tile has sums of its own, which are added to those of all tiles in f32.
 *
 * Weights are at most 1, half of e4m3's range unused: they are made 2^8 times as large.
 *
 *   GROUPS        2 warpgroups that multiply
 *   KEYS          keys in a tile, 96 or 128
 *   STAGES        tiles of keys, and of values, on their way
 *   GIVE, TAKE    registers of a thread that copies, and of one that multiplies
 *
 * Head sizes up to 128. Shared memory, rows of 128 bytes with the 128-byte swizzle: q [64 GROUPS], k [STAGES][KEYS], v [STAGES][KEYS],
 * v turned [STAGES][128].
 */
#define WEIGHT_BITS 8
#include "attention_wgmma.cuh"
#include "quantise.cuh"
#include "wgmma8.cuh"

#define Q_BYTES    (ROWS * 128)
#define TILE_BYTES (KEYS * 128)
#define K_AT       Q_BYTES
#define V_AT       (K_AT + STAGES * TILE_BYTES)
#define TURNED_AT  (V_AT + STAGES * TILE_BYTES)
#define TURNED     (128 * 128)

__shared__ uint64_t turned_full[STAGES], turned_empty[STAGES];

/* ---- the warps that copy and turn -------------------------------------------------------------------------------------- */

/* A tile of keys or values in boxes; lanes share them. */
DEVICE void load_boxes(const attention_wgmma_args *p, const sgk_tma_map *map, const work *w, int tile, uint32_t to, uint32_t arrived, int lane)
{
    for (int i = lane * p->box_rows; i < KEYS; i += 32 * p->box_rows) {
        const place at = place_of(&p->a, w, tile * KEYS + i);
        tma_load4(to + i * 128, map, 0, at.row, w->head / p->a.group, at.batch, arrived);
    }
}

/* Values behind the end of the sequence must be zeros: see attention_wgmma.cu. */
DEVICE void load_end(const attention_wgmma_args *p, const work *w, int tile, uint32_t to, uint32_t arrived, int lane)
{
    const int   kv_head = w->head / p->a.group, first = tile * KEYS, slot = first + 8 * lane, single = (w->sk & ~7) + lane;
    const place outside = { 0, p->a.kv_batches };
    if (lane < KEYS / 8 && (slot + 8 <= w->sk || slot >= w->sk)) {
        const place at = slot < w->sk ? place_of(&p->a, w, slot) : outside;
        tma_load4(to + lane * 1024, &p->v8, 0, at.row, kv_head, at.batch, arrived);
    }
    if (w->sk & 7 && lane < 8) {
        const place at = single < w->sk ? place_of(&p->a, w, single) : outside;
        tma_load4(to + (single - first) * 128, &p->v1, 0, at.row, kv_head, at.batch, arrived);
    }
}

DEVICE void copy(const attention_wgmma_args *p, uint32_t base, int lane)
{
    ring r = { 0, 0 };
    for (int count = 0;; ++count) {
        const work *w = work_of(count);
        if (w->n < 0) {
            mbarrier_wait(shared_address(&q_empty), (count & 1) ^ 1);
            if (lane == 0) mbarrier_arrive(shared_address(&q_full));
            return;
        }
        for (int tile = w->high - 1; tile >= w->low; --tile) {
            const uint32_t k_arrived = shared_address(&k_full[r.stage]), v_arrived = shared_address(&v_full[r.stage]), v = base + V_AT + r.stage * TILE_BYTES;
            mbarrier_wait(shared_address(&k_empty[r.stage]), r.lap ^ 1);
            if (lane == 0) mbarrier_expect(k_arrived, TILE_BYTES);
            __syncwarp();
            load_boxes(p, &p->k, w, tile, base + K_AT + r.stage * TILE_BYTES, k_arrived, lane);
            if (tile == w->high - 1) {
                mbarrier_wait(shared_address(&q_empty), (count & 1) ^ 1);
                if (lane == 0) {
                    mbarrier_expect(shared_address(&q_full), Q_BYTES);
                    tma_load4(base, &p->q, 0, w->q_begin + w->row, w->head, p->a.cu_seqlens_q ? 0 : w->n, shared_address(&q_full));
                }
                named_announce(WANTED, 64);
            }
            mbarrier_wait(shared_address(&v_empty[r.stage]), r.lap ^ 1);
            if (lane == 0) mbarrier_expect(v_arrived, TILE_BYTES);
            __syncwarp();
            if (tile * KEYS + KEYS <= w->sk) load_boxes(p, &p->v, w, tile, v, v_arrived, lane);
            else load_end(p, w, tile, v, v_arrived, lane);
            advance(&r);
        }
    }
}

/* Columns 64 half .. 64 half + 63 of a tile of values. In 16 keys and 16 columns, byte 4 i + e of row c is key 2 i + e, or 2 i + e + 6 for e
 * of 2 and 3; row c is column 2 c, or 2 c - 15 for c of 8 and more. */
DEVICE void turn_tile(uint32_t from, uint32_t to, int half, int lane)
{
    const int row = lane % 16;                  /* of ldmatrix: key in 16; of stmatrix: row in 32 */
    #pragma unroll 1
    for (int block = 2 * half; block < 2 * half + 2; ++block) {         /* of 32 columns */
        #pragma unroll 2
        for (int u = 0; u < KEYS / 16; ++u) {
            uint32_t  x[4];
            const int key = 16 * u + row, column = 32 * block + lane;
            ldmatrix_x4_trans(x, from + key * 128 + (((2 * block + lane / 16) ^ (key & 7)) << 4));
            stmatrix_x4(to + column * 128 + ((u ^ (column & 7)) << 4), __byte_perm(x[0], x[1], 0x6420), __byte_perm(x[0], x[1], 0x7531),
                        __byte_perm(x[2], x[3], 0x6420), __byte_perm(x[2], x[3], 0x7531));
        }
    }
}

DEVICE void turn_values(const attention_wgmma_args *p, uint32_t base, int half, int lane)
{
    ring r = { 0, 0 };
    for (int count = 0;; ++count) {
        const work *w = work_of(count);
        if (w->n < 0) return;
        for (int tiles = w->high - w->low; tiles > 0; --tiles) {
            mbarrier_wait(shared_address(&v_full[r.stage]), r.lap);
            mbarrier_wait(shared_address(&turned_empty[r.stage]), r.lap ^ 1);
            turn_tile(base + V_AT + r.stage * TILE_BYTES, base + TURNED_AT + r.stage * TURNED, half, lane);
            async_fence();
            __syncwarp();
            if (lane == 0) {
                mbarrier_arrive(shared_address(&turned_full[r.stage]));
                mbarrier_arrive(shared_address(&v_empty[r.stage]));
            }
            advance(&r);
        }
    }
}

/* ---- the warpgroups that multiply -------------------------------------------------------------------------------------- */

DEVICE void pack(uint32_t (&weight)[KEYS / 32][4], const float (&s)[KEYS / 2])
{
    #pragma unroll
    for (int i = 0; i < KEYS / 32; ++i)
        #pragma unroll
        for (int e = 0; e < 4; ++e) {
            const float *x = s + 16 * i + e / 2 * 8 + e % 2 * 2;
            weight[i][e]   = e4m3x2(x[0], x[1]) | e4m3x2(x[4], x[5]) << 16;
        }
}

/* What products of q and k are multiplied with. */
DEVICE float descale_of(const attention_args *a, const work *w)
{
    const int h = w->head / a->group;
    float     d = 1;
    if (a->q_descale) d *= a->q_descale[w->n * a->q_descale_batch_stride + h * a->q_descale_head_stride];
    if (a->k_descale) d *= a->k_descale[w->n * a->k_descale_batch_stride + h * a->k_descale_head_stride];
    return d;
}

DEVICE void put(const attention_wgmma_args *p, const work *w, float (&o)[64], const float (&most)[2], const float (&sums)[2], float scale)
{
    const attention_args *a     = &p->a;
    const int             t     = thread();
    const float           value = attention_value_scale(a, w->n, w->head / a->group);
    #pragma unroll
    for (int r = 0; r < 2; ++r) {
        float sum = sums[r];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const int  row    = w->row + t / 32 * 16 + t % 32 / 4 + 8 * r;
        const bool inside = row < w->sq;
        float      top = most[r] * scale - WEIGHT_BITS, inverse = 1;          /* the sum, too, is 2^WEIGHT_BITS times as large */
        if (a->sinks && sum > 0) {
            const float sink = sink_of(a, w->head) * 1.4426950408889634f, both = fmaxf(top, sink);
            inverse = ex2(top - both);
            sum     = sum * inverse + ex2(sink - both), top = both;
        }
        inverse = sum == 0 ? 0 : inverse * value / sum;
        if (inside && t % 4 == 0 && a->softmax_lse)
            a->softmax_lse[w->n * a->lse_batch_stride + w->head * a->lse_head_stride + w->q_begin + row] =
                sum == 0 ? a->empty_lse : (top + log2f(sum)) * 0.6931471805599453f;
        bf16 *to = (bf16 *)a->out + w->n * a->out_batch_stride + (w->q_begin + row) * a->out_row_stride + w->head * a->out_head_stride + t % 4 * 4;
        #pragma unroll
        for (int j = 0; j < 8; ++j) {           /* 16 columns, four of them here */
            const float *x = o + 8 * j + 2 * r;
            if (inside && 16 * j + t % 4 * 4 < a->dim_v)
                *(uint2 *)(to + 16 * j) = make_uint2(pack2(x[0] * inverse, x[4] * inverse, (const bf16 *)0), pack2(x[1] * inverse, x[5] * inverse, (const bf16 *)0));
        }
    }
}

#define TIMES_K() \
    do { \
        wgmma_fence(); \
        _Pragma("unroll") for (int d = 0; d < 4; ++d) \
            wgmma(s, wgmma_operand(q_base) + d * WGMMA_STEP, wgmma_operand(keys) + d * WGMMA_STEP, d > 0, (const e4m3 *)0, (const e4m3 *)0); \
        wgmma_commit(); \
    } while (0)
#define TIMES_V() \
    do { \
        wgmma_fence(); \
        _Pragma("unroll") for (int i = 0; i < KEYS / 32; ++i) \
            wgmma_held(part, weight[i], wgmma_operand(values) + i * WGMMA_STEP, i > 0, (const e4m3 *)0, (const e4m3 *)0); \
        wgmma_commit(); \
    } while (0)
#define SCORES() \
    do { \
        if (p->cap_inner > 0) cap(s, p->cap_inner * descale_of(a, w), p->cap_outer); \
        if (tile < f.from || tile >= f.to) mask(s, a, w, tile); \
    } while (0)
/* Sums of a tile to those of the tiles before, whose weights have become `older` times as large. */
#define ADD_UP() \
    do { \
        wgmma_wait(0); \
        wgmma_pin(part); \
        if (one) mbarrier_arrive(shared_address(&turned_empty[v.stage])); \
        if (add) { \
            _Pragma("unroll") for (int i = 0; i < 64; ++i) o[i] = fmaf(o[i], older[i >> 1 & 1], part[i]); \
        } else { \
            _Pragma("unroll") for (int i = 0; i < 64; ++i) o[i] = part[i]; \
        } \
    } while (0)

DEVICE void multiply(const attention_wgmma_args *p, uint32_t memory, int t)
{
    const attention_args *a      = &p->a;
    const uint32_t        q_base = uniform(memory + t / 128 * 8192);
    const bool            one    = t % 32 == 0;
    const int             turn   = TURN + t / 128;
    float                 o[64], part[64], s[KEYS / 2], most[2], sum[2], base[2], older[2], factor[2];
    uint32_t              weight[KEYS / 32][4];
    ring                  k = { 0, 0 };
    int                   count = 0;

    const work *w = queries_of(count);
    if (w->n < 0) return;
    whole f     = whole_of(a, w);
    int   tile  = w->high - 1, low = w->low;
    float scale = p->cap_inner > 0 ? p->scale : p->scale * descale_of(a, w);
    if (turn == GROUPS) named_announce(TURN, 256);

    mbarrier_wait(shared_address(&k_full[k.stage]), k.lap);
    {
        const uint32_t keys = uniform(memory + K_AT + k.stage * TILE_BYTES);
        TIMES_K();
        wgmma_wait(0);
        wgmma_pin(s);
    }
    if (one) mbarrier_arrive(shared_address(&k_empty[k.stage]));
    advance(&k);
    if (tile == low && one) mbarrier_arrive(shared_address(&q_empty));
    SCORES();
    most[0] = most[1] = -INF, sum[0] = sum[1] = 0;
    maxima(s, most, base, older, scale);
    weigh(s, sum, base, older, scale);
    pack(weight, s);

    bool add = false;
    for (;;) {
        const bool  ends = tile == low;
        const work *done = w;
        const float done_scale = scale;
        if (ends) {
            ++count;
            w = queries_of(count);
            if (w->n < 0) {
                w = done;
                break;
            }
            f    = whole_of(a, w);
            tile = w->high, low = w->low;
            scale = p->cap_inner > 0 ? p->scale : p->scale * descale_of(a, w);
        }
        --tile;

        const ring v = before(k);
        mbarrier_wait(shared_address(&k_full[k.stage]), k.lap);
        named_sync(turn, 256);
        const uint32_t keys = uniform(memory + K_AT + k.stage * TILE_BYTES);
        TIMES_K();
        mbarrier_wait(shared_address(&turned_full[v.stage]), v.lap);
        const uint32_t values = uniform(memory + TURNED_AT + v.stage * TURNED);
        TIMES_V();
        named_announce(turn == GROUPS ? TURN : turn + 1, 256);

        wgmma_wait(1);
        wgmma_pin(s);
        if (one) mbarrier_arrive(shared_address(&k_empty[k.stage]));
        if (tile == low && one) mbarrier_arrive(shared_address(&q_empty));
        SCORES();
        const float old_most[2] = { most[0], most[1] }, old_sum[2] = { sum[0], sum[1] };
        if (ends) most[0] = most[1] = -INF, sum[0] = sum[1] = 0;
        maxima(s, most, base, factor, scale);
        weigh(s, sum, base, factor, scale);
        wgmma_pin(s);
        /* The wait stands behind a branch: see attention_wgmma.cu. */
        if (ends) {
            ADD_UP();
            put(p, done, o, old_most, old_sum, done_scale);
        } else {
            ADD_UP();
        }
        older[0] = factor[0], older[1] = factor[1];
        advance(&k);
        add = !ends;
        pack(weight, s);
    }

    const ring v = before(k);
    mbarrier_wait(shared_address(&turned_full[v.stage]), v.lap);
    const uint32_t values = uniform(memory + TURNED_AT + v.stage * TURNED);
    TIMES_V();
    ADD_UP();
    put(p, w, o, most, sum, scale);
}

extern "C" __global__ __launch_bounds__(THREADS + 128, 1) void attention_wgmma8(const __grid_constant__ attention_wgmma_args p)
{
    extern __shared__ uint8_t memory[];
    const uint32_t            base  = (shared_address(memory) + 1023) & ~1023u;
    const int                 group = __shfl_sync(~0u, threadIdx.x / 128, 0), t = threadIdx.x % 128;
    if (threadIdx.x == 0) {
        init_works();
        #pragma unroll
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(shared_address(&k_full[s]), 1);
            mbarrier_init(shared_address(&v_full[s]), 1);
            mbarrier_init(shared_address(&turned_full[s]), 2);
            mbarrier_init(shared_address(&k_empty[s]), 4 * GROUPS);
            mbarrier_init(shared_address(&v_empty[s]), 2);
            mbarrier_init(shared_address(&turned_empty[s]), 4 * GROUPS);
        }
        mbarrier_init_done();
    }
    __syncthreads();
    pdl_wait();
    if (group == GROUPS) {
        registers_give(GIVE);
        if (t < 32) {
            if (t == 0) tma_prefetch_map(&p.q), tma_prefetch_map(&p.k), tma_prefetch_map(&p.v);
            copy(&p, base, t);
            pdl_release();
        } else if (t < 64) {
            find(&p, t - 32);
        } else {
            turn_values(&p, base, t / 96, t % 32);
        }
    } else {
        registers_take(TAKE);
        multiply(&p, base, (int)threadIdx.x);
    }
}
