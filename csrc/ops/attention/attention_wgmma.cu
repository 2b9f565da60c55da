/*
 * Attention on the matrix units of sm_90a, f16 and bf16: persistent blocks of one warpgroup that starts the copies (TMA) and GROUPS that
 * multiply (wgmma), 64 rows each: queries of one head, or of all heads that share a key head where a sequence has few queries. They go over
 * the keys in tiles from the last to the first, keep a running maximum and sum for each row, and never store a score.
 *
 *     moved        q and out once; k and v once for each 64 GROUPS rows, mostly from L2
 *     operations   2 (DIM + DIM_V) a query and key: bound by the matrix units
 *
 *   T             f16 or bf16
 *   DIM, DIM_V    head sizes up to here, multiples of 32; smaller ones are filled up with zeros
 *   GROUPS        2 or 3 warpgroups
 *   KEYS          keys in a tile, a multiple of 16
 *   HOLD_Q        1: q stays in registers; 0: the matrix units read it from shared memory
 *   STAGES        tiles of keys, and of values, on their way
 *   GATHER        1: keys and values row by row (cp.async), for pages that have no whole boxes; 0: in boxes (TMA)
 *   PARTS         1: keys are cut into parts, whose results another kernel combines
 *   GIVE, TAKE    registers of a thread that copies, and of one that multiplies
 *
 * What a warpgroup does is one chain over all tiles of all its pieces of work: the product with the keys of the next tile comes before that
 * with the values of this one, which runs while the weights of the next are made; both are started before either is waited for. The
 * warpgroups take turns in starting products, so that one's weights meet the others' products.
 *
 * Shared memory, in slabs of [rows][64] with the 128-byte swizzle: q [SLABS][64 GROUPS], k [STAGES][SLABS][KEYS],
 * v [STAGES][V_SLABS][KEYS].
 */
#include "attention_wgmma.cuh"
#include "wgmma.cuh"
#if GATHER
#include "attention_wgmma_rows.cuh"
#else
#include "attention_wgmma_boxes.cuh"
#endif

/* ---- the warpgroups that multiply -------------------------------------------------------------------------------------- */

DEVICE void pack(uint32_t (&weight)[KEYS / 16][4], const float (&s)[KEYS / 2])
{
    #pragma unroll
    for (int i = 0; i < KEYS / 16; ++i)
        #pragma unroll
        for (int e = 0; e < 4; ++e) weight[i][e] = pack2(s[8 * i + 2 * e], s[8 * i + 2 * e + 1], (const T *)0);
}

#if PARTS
/* Results of 64 rows over a part of the keys; rows without a key there have a sum of 0. */
DEVICE void put(const attention_wgmma_args *p, const work *w, float (&o)[DIM_V / 2], const float (&most)[2], const float (&sums)[2], float scale)
{
    const int             t = thread();
    const attention_args *a = &p->a;
    #pragma unroll
    for (int r = 0; r < 2; ++r) {
        float sum = sums[r];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const int row = t / 32 * 16 + t % 32 / 4 + 8 * r;
        if (query_of(w, row) < w->end) {
            const int64_t at      = partial_of(a, w, row);
            const float   inverse = sum == 0 ? 0 : 1 / sum;
            float        *to      = a->partial_out + at * attention_partial_dim(a) + t % 4 * 2;
            if (t % 4 == 0) a->partial_lse[at] = sum == 0 ? -INF : (most[r] * scale + log2f(sum)) * 0.6931471805599453f;
            #pragma unroll
            for (int j = 0; j < DIM_V / 8; ++j)
                if (8 * j < a->dim_v) *(float2 *)(to + 8 * j) = make_float2(o[4 * j + 2 * r] * inverse, o[4 * j + 2 * r + 1] * inverse);
        }
        __syncwarp();
    }
}
#else
/* Four registers of each lane of a quad, transposed among them. */
DEVICE void transpose4(uint32_t x[4], int t)
{
    const bool odd = t & 1, high = t & 2;
    #pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t other = __shfl_xor_sync(~0u, odd ? x[i] : x[i + 1], 1);
        if (odd) x[i] = other;
        else x[i + 1] = other;
    }
    #pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint32_t other = __shfl_xor_sync(~0u, high ? x[i] : x[i + 2], 2);
        if (high) x[i] = other;
        else x[i + 2] = other;
    }
}

/* Results of 64 rows; rows without a key have a sum of 0. */
DEVICE void put(const attention_wgmma_args *p, const work *w, float (&o)[DIM_V / 2], const float (&most)[2], const float (&sums)[2], float scale)
{
    const int             t = thread();
    const attention_args *a = &p->a;
    #pragma unroll
    for (int r = 0; r < 2; ++r) {
        float sum = sums[r];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const int  row = t / 32 * 16 + t % 32 / 4 + 8 * r, query = query_of(w, row), head = head_of(w, row);
        const bool inside = query < w->end;
        float      top = most[r] * scale, inverse = 1;
        if (a->sinks && sum > 0) {
            const float sink = sink_of(a, head) * 1.4426950408889634f, both = fmaxf(top, sink);
            inverse = ex2(top - both);
            sum = sum * inverse + ex2(sink - both), top = both;
        }
        inverse = sum == 0 ? 0 : inverse / sum;
        if (inside && t % 4 == 0 && a->softmax_lse)
            a->softmax_lse[w->n * a->lse_batch_stride + head * a->lse_head_stride + w->q_begin + query] =
                sum == 0 ? a->empty_lse : (top + log2f(sum)) * 0.6931471805599453f;
        T *to = (T *)a->out + w->n * a->out_batch_stride + (w->q_begin + query) * a->out_row_stride + head * a->out_head_stride + t % 4 * 8;
        #pragma unroll
        for (int j = 0; j < DIM_V / 32; ++j) {
            uint32_t x[4];
            #pragma unroll
            for (int i = 0; i < 4; ++i) x[i] = pack2(o[16 * j + 4 * i + 2 * r] * inverse, o[16 * j + 4 * i + 2 * r + 1] * inverse, (const T *)0);
            transpose4(x, t);
            if (inside && 32 * j + t % 4 * 8 < a->dim_v) *(uint4 *)(to + 32 * j) = make_uint4(x[0], x[1], x[2], x[3]);
        }
    }
}
#endif

DEVICE void multiply(const attention_wgmma_args *p, uint32_t memory, int t)
{
    const attention_args *a      = &p->a;
    const uint32_t        k_base = memory + Q_BYTES, v_base = k_base + STAGES * K_BYTES, q_base = uniform(memory + t / 128 * 8192);
    const bool            one  = t % 32 == 0;
    const int             turn = TURN + t / 128;
    float                 o[DIM_V / 2], s[KEYS / 2], most[2], sum[2], base[2], factor[2];
    uint32_t              weight[KEYS / 16][4];
#if HOLD_Q
    uint32_t q[DIM / 16][4];
#endif
    ring k     = { 0, 0 };
    int  count = 0;

#if HOLD_Q
#define TAKE_Q() \
    do { \
        _Pragma("unroll") for (int d = 0; d < DIM / 16; ++d) \
            ldmatrix_x4(q[d], q_base + d / 4 * Q_SLAB + (t / 32 % 4 * 16 + t % 16) * 128 + (((d % 4 * 2 + t % 32 / 16) ^ (t & 7)) << 4)); \
        __syncwarp(); \
        if (one) mbarrier_arrive(shared_address(&q_empty)); \
    } while (0)
#define TIMES_K(d) wgmma_held(s, q[d], wgmma_operand(keys + d / 4 * KV_SLAB) + d % 4 * WGMMA_STEP, d > 0, (const T *)0)
#define FIND_Q()   (void)0
#define LEAVE_Q()  (void)0
#else
#define TAKE_Q()   (void)0
/* Uniform registers do not hold descriptors of many slabs from tile to tile: elsewhere they would be kept, and each product waits for its own. */
#define FIND_Q()   const uint32_t queries = SLABS > 2 ? uniform(q_base) : q_base
#define TIMES_K(d) wgmma(s, wgmma_operand(queries + d / 4 * Q_SLAB) + d % 4 * WGMMA_STEP, wgmma_operand(keys + d / 4 * KV_SLAB) + d % 4 * WGMMA_STEP, d > 0, (const T *)0)
#define LEAVE_Q() \
    do { \
        if (one) mbarrier_arrive(shared_address(&q_empty)); \
    } while (0)
#endif

#define TIMES_V(i) wgmma_held_t(o, weight[i], wgmma_operand_t(values, KV_SLAB) + (i) * WGMMA_STEP_T, add || i > 0, (const T *)0)

    const work *w = queries_of(count);
    if (w->n < 0) return;
    whole f    = whole_of(a, w);
    int   tile = w->high - 1, low = w->low;
    if (turn == GROUPS) named_announce(TURN, 256);

    TAKE_Q();
    mbarrier_wait(shared_address(&k_full[k.stage]), k.lap);
    {
        const uint32_t keys = uniform(k_base + k.stage * K_BYTES);
        FIND_Q();
        if (GATHER) async_fence();
        wgmma_fence();
        #pragma unroll
        for (int d = 0; d < DIM / 16; ++d) TIMES_K(d);
        wgmma_commit();
        wgmma_wait(0);
        wgmma_pin(s);
    }
    if (one) mbarrier_arrive(shared_address(&k_empty[k.stage]));
    advance(&k);
    if (tile == low) LEAVE_Q();
    if (p->cap_inner > 0) cap(s, p->cap_inner, p->cap_outer);
    if (tile < f.from || tile >= f.to) mask(s, a, w, tile);
    most[0] = most[1] = -INF, sum[0] = sum[1] = 0;
    maxima(s, most, base, factor, p->scale);
    weigh(s, sum, base, factor, p->scale);
    pack(weight, s);

    bool add = false;
    for (;;) {
        const bool  ends = tile == low;
        const work *done = w;
        if (ends) {
            ++count;
            w = queries_of(count);
            if (w->n < 0) {
                w = done;
                break;
            }
            f    = whole_of(a, w);
            tile = w->high, low = w->low;
            TAKE_Q();
        }
        --tile;

        mbarrier_wait(shared_address(&k_full[k.stage]), k.lap);
        named_sync(turn, 256);
        const ring     v    = before(k);
        const uint32_t keys = uniform(k_base + k.stage * K_BYTES);
        FIND_Q();
        if (GATHER) async_fence();
        wgmma_fence();
        #pragma unroll
        for (int d = 0; d < DIM / 16; ++d) TIMES_K(d);
        wgmma_commit();
        mbarrier_wait(shared_address(&v_full[v.stage]), v.lap);
        const uint32_t values = uniform(v_base + v.stage * V_BYTES);
        if (GATHER) async_fence();
        wgmma_fence();
        #pragma unroll
        for (int i = 0; i < KEYS / 16; ++i) TIMES_V(i);
        wgmma_commit();
        named_announce(turn == GROUPS ? TURN : turn + 1, 256);
        wgmma_wait(1);
        wgmma_pin(s);
        if (one) mbarrier_arrive(shared_address(&k_empty[k.stage]));
        if (tile == low) LEAVE_Q();
        if (p->cap_inner > 0) cap(s, p->cap_inner, p->cap_outer);
        if (tile < f.from || tile >= f.to) mask(s, a, w, tile);
        const float old_most[2] = { most[0], most[1] }, old_sum[2] = { sum[0], sum[1] };
        if (ends) most[0] = most[1] = -INF, sum[0] = sum[1] = 0;
        maxima(s, most, base, factor, p->scale);
        asm volatile("" : "+f"(base[0]), "+f"(base[1])::"memory");
        weigh(s, sum, base, factor, p->scale);
        wgmma_pin(s);
        /* The wait stands behind a branch: the assembler would move it up, in front of the exponentials that are to run beside the product. */
        if (ends) {
            wgmma_wait(0);
            wgmma_pin(o);
            if (one) mbarrier_arrive(shared_address(&v_empty[v.stage]));
            put(p, done, o, old_most, old_sum, p->scale);
        } else {
            wgmma_wait(0);
            wgmma_pin(o);
            if (one) mbarrier_arrive(shared_address(&v_empty[v.stage]));
            #pragma unroll
            for (int i = 0; i < DIM_V / 2; ++i) o[i] *= factor[i >> 1 & 1];
        }
        advance(&k);
        add = !ends;
        pack(weight, s);
    }

    const ring v = before(k);
    mbarrier_wait(shared_address(&v_full[v.stage]), v.lap);
    const uint32_t values = uniform(v_base + v.stage * V_BYTES);
    if (GATHER) async_fence();
    wgmma_fence();
    #pragma unroll
    for (int i = 0; i < KEYS / 16; ++i) TIMES_V(i);
    wgmma_commit();
    wgmma_wait(0);
    wgmma_pin(o);
    put(p, w, o, most, sum, p->scale);
}

extern "C" __global__ __launch_bounds__(THREADS + 128, 1) void attention_wgmma(const __grid_constant__ attention_wgmma_args p)
{
    extern __shared__ uint8_t memory[];
    const uint32_t            base  = (shared_address(memory) + 1023) & ~1023u;
    const int                 group = __shfl_sync(~0u, threadIdx.x / 128, 0), t = threadIdx.x % 128;
    if (threadIdx.x == 0) {
        init_works();
        #pragma unroll
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(shared_address(&k_full[s]), ARRIVALS);
            mbarrier_init(shared_address(&v_full[s]), ARRIVALS);
            mbarrier_init(shared_address(&k_empty[s]), 4 * GROUPS);
            mbarrier_init(shared_address(&v_empty[s]), 4 * GROUPS);
        }
        mbarrier_init_done();
    }
    __syncthreads();
    pdl_wait();
    if (group == GROUPS) {
        registers_give(GIVE);
        if (t == 0) tma_prefetch_map(&p.q), tma_prefetch_map(&p.k), tma_prefetch_map(&p.v);
        copy(&p, base, t / 32, t % 32);
    } else {
        registers_take(TAKE);
        multiply(&p, base, (int)threadIdx.x);
    }
}
