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
 *   STAGES        tiles of keys, and of values, on their way
 *   Q_PLACES      pieces of work whose queries have a place in shared memory: 2 where the next ones come while these are in use, and results leave
 *                 through the place; 1 where there is no room for that: a piece's last product is done before the next one's first is started
 *   PAGES         0: keys and values in boxes (TMA); 1: in boxes of calls with a page table, looked up for many tiles at once; 2: row by row (cp.async),
 *                 for pages that have no whole boxes, by four warps that share each tile; 3: so too, by two for keys and two for values
 *   SPECULATE     1: weights of tiles that all rows see whole are made over the base as it is, without maxima, and anew where they do not fit;
 *                 0: with maxima, but the base moves only where weights would be large
 *   TURNS         1: the warpgroups take turns in starting products, so that one's weights meet the others' products; 0: they start as they come
 *   GIVE, TAKE    registers of a thread that copies, and of one that multiplies
 *
 * What a warpgroup does is one chain over all tiles of all its pieces of work: the product with the keys of the next tile comes before that
 * with the values of this one, which runs while the weights of the next are made; both are started before either is waited for.
 *
 * Shared memory, in slabs of [rows][64] with the 128-byte swizzle: q [Q_PLACES][SLABS][64 GROUPS], k [STAGES][SLABS][KEYS],
 * v [STAGES][V_SLABS][KEYS].
 */
#include "attention_wgmma.cuh"
#include "wgmma.cuh"
#if PAGES == 3
#include "attention_wgmma_pairs.cuh"
#elif PAGES == 2
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

/* Results of 64 rows over a part of the keys; rows without a key there have a sum of 0. */
DEVICE void put_part(const attention_wgmma_args *p, const work *w, float (&o)[DIM_V / 2], const float (&most)[2], const float (&sums)[2], float scale)
{
    const int             t = thread();
    const attention_args *a = &p->a;
    #pragma unroll
    for (int r = 0; r < 2; ++r) {
        float     sum = quad_sum(sums[r]);
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

/* What the sums of a row are to be multiplied with; writes the logarithm of its sum of weights where that is asked for. */
DEVICE float end_of_sums(const attention_args *a, const work *w, int query, int head, bool writes, float top, float sum)
{
    float weight = 1;
    if (__builtin_expect(a->sinks != nullptr, 0) && sum > 0) {
        const float sink = sink_of(a, head) * 1.4426950408889634f, both = fmaxf(top, sink);
        weight = ex2(top - both);
        sum = sum * weight + ex2(sink - both), top = both;
    }
    if (writes && __builtin_expect(a->softmax_lse != nullptr, 0))
        a->softmax_lse[w->n * a->lse_batch_stride + head * a->lse_head_stride + w->q_begin + query] =
            sum == 0 ? a->empty_lse : (top + log2_approx(sum)) * 0.6931471805599453f;
    return sum == 0 ? 0 : weight * reciprocal_approx(sum);
}

#if Q_PLACES == 2
/* Results of 64 rows of one head into the place of their queries, from where the warp that brings queries stores them (store_results). */
DEVICE void leave(const attention_wgmma_args *p, const work *w, float (&o)[DIM_V / 2], const float (&most)[2], const float (&sums)[2], float scale, uint32_t place)
{
    const int t = thread(), lane = t % 32;
    float     inverse[2];
    #pragma unroll
    for (int r = 0; r < 2; ++r)
        inverse[r] = end_of_sums(&p->a, w, w->query + t / 32 * 16 + lane / 4 + 8 * r, w->head, lane % 4 == 0, most[r] * scale, quad_sum(sums[r]));
    place += (t / 32 % 4 * 16 + lane % 16) * 128 + ((lane / 16 ^ lane % 8) << 4);
    #pragma unroll
    for (int i = 0; i < DIM_V / 16; ++i) {
        const float *x = &o[8 * i];
        stmatrix_x4((place ^ i % 4 << 5) + i / 4 * Q_SLAB, pack2(x[0] * inverse[0], x[1] * inverse[0], (const T *)0), pack2(x[2] * inverse[1], x[3] * inverse[1], (const T *)0),
                    pack2(x[4] * inverse[0], x[5] * inverse[0], (const T *)0), pack2(x[6] * inverse[1], x[7] * inverse[1], (const T *)0));
    }
    async_fence();
    __syncwarp();
}
#endif

/* Results of 64 rows; rows without a key have a sum of 0. */
DEVICE void put(const attention_wgmma_args *p, const work *w, float (&o)[DIM_V / 2], const float (&most)[2], const float (&sums)[2], float scale)
{
    const int             t = thread();
    const attention_args *a = &p->a;
    #pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int   row = t / 32 * 16 + t % 32 / 4 + 8 * r, query = query_of(w, row), head = head_of(w, row);
        const bool  inside  = query < w->end;
        const float inverse = end_of_sums(a, w, query, head, inside && t % 4 == 0, most[r] * scale, quad_sum(sums[r]));
        T          *to      = (T *)a->out + w->n * a->out_batch_stride + (w->q_begin + query) * a->out_row_stride + head * a->out_head_stride + t % 4 * 8;
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

/* As place_of_k, for values. */
DEVICE uint32_t place_of_v(uint32_t address) { return (uint32_t)(KV_SLAB >> 4) << 16 | address >> 4; }

DEVICE void multiply(const attention_wgmma_args *p, uint32_t memory, int t)
{
    const attention_args *a        = &p->a;
    const uint32_t        k_memory = memory + Q_PLACES * Q_BYTES, q_memory = uniform(memory + t / 128 * 8192), barrier = uniform(shared_address(&bar));
    const uint32_t        k_places = uniform(place_of_k(k_memory)), v_places = uniform(place_of_v(k_memory + STAGES * K_BYTES));
    const bool            one = t % 32 == 0, capped = p->cap_inner > 0;
    const int             turn = TURN + t / 128, next_turn = turn == GROUPS ? TURN : turn + 1;
    const float           scale = p->scale;
    float                 o[DIM_V / 2], s[KEYS / 2], most[2], sum[2], base[2], factor[2];
    uint32_t              weight[KEYS / 16][4];
    uint32_t              n = 0, count = 0;                 /* tiles of keys and pieces of work before this one */

#define Q_PLACE(c) (q_memory + (c) % Q_PLACES * Q_BYTES)
/* With one place for queries it is given back with the last product, with two there is time until the piece ends. */
#define LEAVE_Q() \
    do { \
        if (Q_PLACES == 1 && tile == low) GIVE_BACK(AT(q_empty, 0)); \
    } while (0)
#define PUT_RESULT(work, most, sum) \
    do { \
        if (__builtin_expect(a->splits > 1, 0)) put_part(p, work, o, most, sum, scale); \
        else put(p, work, o, most, sum, scale); \
    } while (0)
#define TIMES_K(d)         wgmma(s, wgmma_operand_of(queries + d / 4 * (Q_SLAB / 16) + d % 4 * WGMMA_STEP), wgmma_operand_of(keys + d / 4 * (KV_SLAB / 16) + d % 4 * WGMMA_STEP), d > 0, (const T *)0)
#define TIMES_V(weight, i) wgmma_held_t(o, (weight)[i], wgmma_operand_of(values + (i) * WGMMA_STEP_T), true, (const T *)0)
/* Waits for tile n of keys and the values before it; all that the first product needs is there before the turn comes. */
#define PRODUCTS(weight) \
    do { \
        mbarrier_wait(AT(k_full, STAGE(n)), LAP(n)); \
        mbarrier_wait(AT(v_full, STAGE(n - 1)), LAP(n - 1)); \
        if (PAGES == 2) async_fence(); \
        wgmma_fence(); \
        if (TURNS) named_sync(turn, 256); \
        _Pragma("unroll") for (int d = 0; d < DIM / 16; ++d) TIMES_K(d); \
        wgmma_commit(); \
        _Pragma("unroll") for (int i = 0; i < KEYS / 16; ++i) TIMES_V(weight, i); \
        wgmma_commit(); \
        if (TURNS) named_announce(next_turn, 256); \
        keys = k_places + STAGE(n + 1) * (K_BYTES / 16), values = v_places + STAGE(n) * (V_BYTES / 16); \
    } while (0)
#if SPECULATE
/* A tile that all rows see whole; its weights are made while the matrix units still read the last ones. */
#define WHOLE(in, made) \
    do { \
        PRODUCTS(in); \
        wgmma_wait(1); \
        wgmma_pin(s); \
        GIVE_BACK(AT(k_empty, STAGE(n))); \
        --tile; \
        LEAVE_Q(); \
        float more[2][2] = { { 0, 0 }, { 0, 0 } }; \
        _Pragma("unroll") for (int i = 0; i < KEYS / 2; i += 2) \
        { \
            const float x = fmaf(s[i], scale, -base[i >> 1 & 1]), y = fmaf(s[i + 1], scale, -base[i >> 1 & 1]); \
            const float e = ex2(x), g = ex2(y); \
            more[i >> 1 & 1][0] += e, more[i >> 1 & 1][1] += g; \
            made[i / 8][i / 2 % 4] = pack2(e, g, (const T *)0); \
        } \
        const float added[2] = { more[0][0] + more[0][1], more[1][0] + more[1][1] }; \
        const bool  fits[2]  = { added[0] <= most_sum((const T *)0) && most[0] != -INF, added[1] <= most_sum((const T *)0) && most[1] != -INF }; \
        if (__all_sync(~0u, fits[0] && fits[1])) { \
            wgmma_wait(0); \
            wgmma_pin(o); \
            GIVE_BACK(AT(v_empty, STAGE(n - 1))); \
            sum[0] += added[0], sum[1] += added[1]; \
        } else { \
            wgmma_wait(0); \
            wgmma_pin(o); \
            GIVE_BACK(AT(v_empty, STAGE(n - 1))); \
            maxima_where(s, fits, most, base, factor, scale); \
            weigh(s, sum, base, factor, scale); \
            _Pragma("unroll") for (int i = 0; i < DIM_V / 2; ++i) o[i] *= factor[i >> 1 & 1]; \
            pack(made, s); \
        } \
        ++n; \
    } while (0)
#endif
#define TAKE_UP() \
    do { \
        const whole f_ = whole_of(a, w); \
        from = (int)uniform((uint32_t)f_.from), to = (int)uniform((uint32_t)f_.to); \
        tile = (int)uniform((uint32_t)w->high), low = (int)uniform((uint32_t)w->low); \
    } while (0)
/* Of keys that not all rows see; limits `m` have been worked out before the scores are there. */
#define MASK(m) \
    do { \
        if (tile >= to) mask_behind(s, m); \
        if (tile < from) mask_before(s, m); \
    } while (0)

    const work *w = queries_of(0);
    if (w->n < 0) return;
    int      from, to, tile, low;
    uint32_t queries, keys = k_places, values = v_places;
    limits   m;
    TAKE_UP();
    queries = place_of_k(Q_PLACE(0));
    if (TURNS && turn == GROUPS) named_announce(TURN, 256);
    mbarrier_wait(AT(k_full, 0), 0);
    if (PAGES == 2) async_fence();
    wgmma_fence();
    #pragma unroll
    for (int d = 0; d < DIM / 16; ++d) TIMES_K(d);
    wgmma_commit();
    if (--tile < from || tile >= to) m = limits_of(a, w, tile);
    wgmma_wait(0);
    wgmma_pin(s);
    GIVE_BACK(AT(k_empty, 0));
    n = 1, keys = k_places + STAGE(1) * (K_BYTES / 16);
    LEAVE_Q();
    if (__builtin_expect(capped, 0)) cap(s, p->cap_inner, p->cap_outer);
    MASK(&m);
    most[0] = most[1] = -INF, sum[0] = sum[1] = 0;
    maxima(s, most, base, factor, scale);
    weigh(s, sum, base, factor, scale);
    pack(weight, s);
    #pragma unroll
    for (int i = 0; i < DIM_V / 2; ++i) o[i] = 0;

    for (;;) {
        /* Tiles that all rows see whole, as far as the next that not. */
        const int whole_low = max(low, from), steps = capped || tile > to || tile < whole_low ? 0 : tile - whole_low;
#if SPECULATE
        uint32_t other[KEYS / 16][4];
        if (steps & 1) {
            /* A copy that the assembler does not see through: it would have the new weights in place of those that the matrix units still read. */
            const uint32_t nothing = barrier & 7;
            #pragma unroll
            for (int i = 0; i < KEYS / 16; ++i)
                #pragma unroll
                for (int e = 0; e < 4; ++e) other[i][e] = weight[i][e] ^ nothing;
            WHOLE(other, weight);
        }
        #pragma unroll 1
        for (int step = 0; step < steps / 2; ++step) {
            WHOLE(weight, other);
            WHOLE(other, weight);
        }
#else
        #pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            PRODUCTS(weight);
            wgmma_wait(1);
            wgmma_pin(s);
            GIVE_BACK(AT(k_empty, STAGE(n)));
            --tile;
            LEAVE_Q();
            const bool moves = maxima_lazy(s, sum, most, base, factor, scale);
            #pragma unroll
            for (int i = 0; i < KEYS / 2; ++i) s[i] = ex2(fmaf(s[i], scale, -base[i >> 1 & 1]));
            float more[2][2] = { { 0, 0 }, { 0, 0 } };
            #pragma unroll
            for (int i = 0; i < KEYS / 4; ++i) more[i >> 1 & 1][i & 1] += s[i];
            /* Never done: it holds the wait back until these weights are there, where the assembler would move it up, in front of the exponentials that are to
             * run beside the product. */
            asm volatile("{\n.reg .pred p;\nsetp.gt.f32 p, %0, 0f7f000000;\n@p st.shared.f32 [%1], %0;\n}" ::"f"((more[0][0] + more[0][1]) + (more[1][0] + more[1][1])), "r"(AT(nowhere, 0)) : "memory");
            wgmma_wait(0);
            wgmma_pin(o);
            GIVE_BACK(AT(v_empty, STAGE(n - 1)));
            #pragma unroll
            for (int i = KEYS / 4; i < KEYS / 2; ++i) more[i >> 1 & 1][i & 1] += s[i];
            pack(weight, s);
            if (moves) {
                factor[0] = ex2(factor[0]), factor[1] = ex2(factor[1]);
                #pragma unroll
                for (int i = 0; i < DIM_V / 2; ++i) o[i] *= factor[i >> 1 & 1];
                sum[0] *= factor[0], sum[1] *= factor[1];
            }
            sum[0] += more[0][0] + more[0][1], sum[1] += more[1][0] + more[1][1];
            ++n;
        }
#endif
        const bool  ends = tile == low;
        const work *done = w;
#if Q_PLACES == 1
        /* The only place for queries is not filled again before the last product with them is done: results leave meanwhile. */
        if (ends) {
            mbarrier_wait(AT(v_full, STAGE(n - 1)), LAP(n - 1));
            if (PAGES == 2) async_fence();
            wgmma_fence();
            #pragma unroll
            for (int i = 0; i < KEYS / 16; ++i) TIMES_V(weight, i);
            wgmma_commit();
            ++count;
            wgmma_wait(0);
            wgmma_pin(o);
            GIVE_BACK(AT(v_empty, STAGE(n - 1)));
            PUT_RESULT(done, most, sum);
            w       = queries_of((int)count);
            queries = uniform(queries);                 /* or descriptors would be held all the time, in registers that are few */
            if (uniform((uint32_t)w->n) >> 31) {
                w = done;
                break;
            }
            mbarrier_wait(AT(k_full, STAGE(n)), LAP(n));
            if (PAGES == 2) async_fence();
            wgmma_fence();
            #pragma unroll
            for (int d = 0; d < DIM / 16; ++d) TIMES_K(d);
            wgmma_commit();
            keys = k_places + STAGE(n + 1) * (K_BYTES / 16), values = v_places + STAGE(n) * (V_BYTES / 16);
            #pragma unroll
            for (int i = 0; i < DIM_V / 2; ++i) o[i] = 0;
            TAKE_UP();
            if (--tile < from || tile >= to) m = limits_of(a, w, tile);
            wgmma_wait(0);
            wgmma_pin(s);
            GIVE_BACK(AT(k_empty, STAGE(n)));
            LEAVE_Q();
            if (__builtin_expect(capped, 0)) cap(s, p->cap_inner, p->cap_outer);
            MASK(&m);
            most[0] = most[1] = -INF, sum[0] = sum[1] = 0;
            maxima(s, most, base, factor, scale);
            weigh(s, sum, base, factor, scale);
        } else {
            --tile;
            PRODUCTS(weight);
            if (tile < from || tile >= to) m = limits_of(a, w, tile);
            wgmma_wait(1);
            wgmma_pin(s);
            GIVE_BACK(AT(k_empty, STAGE(n)));
            LEAVE_Q();
            if (__builtin_expect(capped, 0)) cap(s, p->cap_inner, p->cap_outer);
            MASK(&m);
            maxima(s, most, base, factor, scale);
            weigh(s, sum, base, factor, scale);
            wgmma_pin(s);
            /* The wait stands behind a branch: the assembler would move it up, in front of the exponentials that are to run beside the product. */
            if (barrier) {
                wgmma_wait(0);
                wgmma_pin(o);
                GIVE_BACK(AT(v_empty, STAGE(n - 1)));
                #pragma unroll
                for (int i = 0; i < DIM_V / 2; ++i) o[i] *= factor[i >> 1 & 1];
            }
        }
#else
        if (ends) {
            ++count;
            w = queries_of((int)count);
            if (uniform((uint32_t)w->n) >> 31) {
                w = done;
                break;
            }
            queries = place_of_k(Q_PLACE(count));
        }
        /* What else is to be known of the next piece is read while the first product runs. */
        PRODUCTS(weight);
        if (ends) TAKE_UP();
        --tile;
        if (tile < from || tile >= to) m = limits_of(a, w, tile);
        wgmma_wait(1);
        wgmma_pin(s);
        GIVE_BACK(AT(k_empty, STAGE(n)));
        if (__builtin_expect(capped, 0)) cap(s, p->cap_inner, p->cap_outer);
        MASK(&m);
        const float old_most[2] = { most[0], most[1] }, old_sum[2] = { sum[0], sum[1] };
        if (ends) most[0] = most[1] = -INF, sum[0] = sum[1] = 0;
        maxima(s, most, base, factor, scale);
        weigh(s, sum, base, factor, scale);
        wgmma_pin(s);
        /* The wait stands behind a branch: the assembler would move it up, in front of the exponentials that are to run beside the product. */
        if (ends) {
            wgmma_wait(0);
            wgmma_pin(o);
            GIVE_BACK(AT(v_empty, STAGE(n - 1)));
            if (__builtin_expect(stores_whole(p, done), 1)) leave(p, done, o, old_most, old_sum, scale, Q_PLACE(count - 1));
            else PUT_RESULT(done, old_most, old_sum);
            GIVE_BACK(AT(q_empty, (count - 1) % Q_PLACES));
            #pragma unroll
            for (int i = 0; i < DIM_V / 2; ++i) o[i] = 0;
        } else {
            wgmma_wait(0);
            wgmma_pin(o);
            GIVE_BACK(AT(v_empty, STAGE(n - 1)));
            #pragma unroll
            for (int i = 0; i < DIM_V / 2; ++i) o[i] *= factor[i >> 1 & 1];
        }
#endif
        ++n;
        pack(weight, s);
    }
#if Q_PLACES == 2
    mbarrier_wait(AT(v_full, STAGE(n - 1)), LAP(n - 1));
    if (PAGES == 2) async_fence();
    wgmma_fence();
    #pragma unroll
    for (int i = 0; i < KEYS / 16; ++i) TIMES_V(weight, i);
    wgmma_commit();
    wgmma_wait(0);
    wgmma_pin(o);
    PUT_RESULT(w, most, sum);
#endif
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
            mbarrier_init(shared_address(&bar.k_full[s]), ARRIVALS);
            mbarrier_init(shared_address(&bar.v_full[s]), ARRIVALS);
            mbarrier_init(shared_address(&bar.k_empty[s]), 4 * GROUPS);
            mbarrier_init(shared_address(&bar.v_empty[s]), 4 * GROUPS);
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
