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
 *   GIVE, TAKE    registers of a thread that copies, and of one that multiplies
 *
 * What a warpgroup does is one chain over all tiles of all its pieces of work: the product with the keys of the next tile comes before that
 * with the values of this one, which runs while the weights of the next are made; both are started before either is waited for. The
 * warpgroups take turns in starting products, so that one's weights meet the others' products.
 *
 * Shared memory, in slabs of [rows][64] with the 128-byte swizzle: q [SLABS][64 GROUPS], k [STAGES][SLABS][KEYS],
 * v [STAGES][V_SLABS][KEYS].
 *
 *   Q_PLACES      pieces of work whose queries have a place in shared memory: 2 where the next ones come while these are in use
 *   LOOP          1: tiles that all rows see whole have a loop of their own
 *   PUT           1: results go through the place of their queries, which is free only then; 0: from lane to lane
 *   MASK          1: one compare for each end of the keys that a row sees, its place known before the scores are; 0: both compares
 *   BEFORE_WAIT   as many of a thread's weights of whole tiles are made before the product with the values before is waited for
 *   AHEAD         1: whether the next tiles are there is asked while weights are made
 *   LAZY          in whole tiles the base of weights moves only where they would be more than 2^LAZY; 0: with every new maximum
 *   SPECULATE     weights of whole tiles are made over the base as it is, without maxima; where a thread's sum for a row is more than this, the row's
 *                 base moves and they are made anew; 0: not
 *   ODD           1: whole tiles of an odd number too (they are gone over in pairs); 0: one of them is treated as if it were not whole
 *   TURNS         0: the warpgroups start products as they come
 *   EXP_FMA       one in so many exponentials of whole tiles by multiply-adds; 0: none
 */
#ifndef Q_PLACES
#define Q_PLACES 1
#endif
#ifndef LOOP
#define LOOP 0
#endif
#ifndef PUT
#define PUT 0
#endif
#ifndef MASK
#define MASK 0
#endif
#ifndef EXP_FMA
#define EXP_FMA 0
#endif
#ifndef BEFORE_WAIT
#define BEFORE_WAIT 0
#endif
#ifndef LAZY
#define LAZY 0
#endif
#ifndef SPECULATE
#define SPECULATE 0
#endif
#ifndef ODD
#define ODD 0
#endif
#ifndef AHEAD
#define AHEAD 0
#endif
#ifndef TURNS
#define TURNS 1
#endif
#ifndef TRACE
#define TRACE 0
#endif
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
DEVICE void put(const attention_wgmma_args *p, const work *w, float (&o)[DIM_V / 2], const float (&most)[2], const float (&sums)[2], float scale, uint32_t place)
{
    const int             t = thread();
    const attention_args *a = &p->a;
#if PUT
    float inverses[2];
    T    *tos[2];
    bool  insides[2];
#endif
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
#if PUT
        inverses[r] = inverse, tos[r] = to, insides[r] = inside;
#else
        #pragma unroll
        for (int j = 0; j < DIM_V / 32; ++j) {
            uint32_t x[4];
            #pragma unroll
            for (int i = 0; i < 4; ++i) x[i] = pack2(o[16 * j + 4 * i + 2 * r] * inverse, o[16 * j + 4 * i + 2 * r + 1] * inverse, (const T *)0);
            transpose4(x, t);
            if (inside && 32 * j + t % 4 * 8 < a->dim_v) *(uint4 *)(to + 32 * j) = make_uint4(x[0], x[1], x[2], x[3]);
        }
#endif
    }
#if PUT
    /* Each warp has the rows of its own queries there. Odd rows are read from the other half of their 128 bytes, so that no two lanes meet in a bank. */
    const uint32_t rows = place + t / 32 % 4 * 2048, at = rows + t % 16 * 128;
    #pragma unroll
    for (int j = 0; j < DIM_V / 16; ++j)
        stmatrix_x4(at + j / 4 * Q_SLAB + (((j % 4 * 2 + t % 32 / 16) ^ (t & 7)) << 4),
                    pack2(o[8 * j] * inverses[0], o[8 * j + 1] * inverses[0], (const T *)0), pack2(o[8 * j + 2] * inverses[1], o[8 * j + 3] * inverses[1], (const T *)0),
                    pack2(o[8 * j + 4] * inverses[0], o[8 * j + 5] * inverses[0], (const T *)0), pack2(o[8 * j + 6] * inverses[1], o[8 * j + 7] * inverses[1], (const T *)0));
    __syncwarp();
    const int odd = t / 4 & 1, row = t % 32 / 4;
    #pragma unroll
    for (int r = 0; r < 2; ++r)
        #pragma unroll
        for (int j = 0; j < DIM_V / 32; ++j) {
            const int piece = (DIM_V % 64 && j == DIM_V / 32 - 1 ? j : j ^ odd) * 4 + t % 4;
            uint4     x;
            asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(rows + (row + 8 * r) * 128 + piece / 8 * Q_SLAB + ((piece % 8 ^ row) << 4)) : "memory");
            if (insides[r] && piece * 8 < a->dim_v) *(uint4 *)(tos[r] + (piece - t % 4) * 8) = x;
        }
#endif
}

#if LOOP
#if TRACE
#define STAMP(i) \
    do { \
        asm volatile("" ::: "memory"); \
        if (t % 128 == 0 && tiles < 64) stamps[t / 128][tiles][i] = clock(); \
        asm volatile("" ::: "memory"); \
    } while (0)
#define COUNT_TILE() ++tiles
__shared__ int stamps[GROUPS][64][8];
#else
#define STAMP(i)     (void)0
#define COUNT_TILE() (void)0
#endif

/* The lower halves of descriptors, which alone differ: an address and what does not depend on it. */
DEVICE uint32_t place_of_k(uint32_t address) { return 1u << 16 | address >> 4; }
DEVICE uint32_t place_of_v(uint32_t address) { return (uint32_t)(KV_SLAB >> 4) << 16 | address >> 4; }
DEVICE uint64_t operand(uint32_t low) { return 0x40000040ull << 32 | low; }

DEVICE void multiply(const attention_wgmma_args *p, uint32_t memory, int t)
{
#if TRACE
    int tiles = 0;
#endif
    const attention_args *a        = &p->a;
    const uint32_t        k_memory = memory + Q_PLACES * Q_BYTES, q_memory = uniform(memory + t / 128 * 8192), barrier = uniform(shared_address(&bar));
    const uint32_t        k_places = uniform(place_of_k(k_memory)), v_places = uniform(place_of_v(k_memory + STAGES * K_BYTES));
    const bool            one = t % 32 == 0, capped = p->cap_inner > 0;
    const int             turn = TURN + t / 128, next_turn = turn == GROUPS ? TURN : turn + 1;
    const float           scale = p->scale;
    float                 o[DIM_V / 2], s[KEYS / 2], most[2], sum[2], base[2], factor[2];
    uint32_t              weight[KEYS / 16][4];
    uint32_t              n = 0, count = 0;                 /* tiles of keys and pieces of work before this one */

#define AT(name, i) (barrier + (uint32_t)(at_##name + (i)) * 8)
#define STAGE(n)    ((n) % STAGES)
#define LAP(n)      ((n) / STAGES & 1)
#define Q_PLACE(c)  (q_memory + (c) % Q_PLACES * Q_BYTES)
#define GIVE_BACK(b) \
    do { \
        if (one) mbarrier_arrive(b); \
    } while (0)
#if HOLD_Q
    uint32_t q[DIM / 16][4];
#define TAKE_Q() \
    do { \
        _Pragma("unroll") for (int d = 0; d < DIM / 16; ++d) \
            ldmatrix_x4(q[d], Q_PLACE(count) + d / 4 * Q_SLAB + (t / 32 % 4 * 16 + t % 16) * 128 + (((d % 4 * 2 + t % 32 / 16) ^ (t & 7)) << 4)); \
        if (!PUT) { \
            __syncwarp(); \
            GIVE_BACK(AT(q_empty, count % Q_PLACES)); \
        } \
    } while (0)
#define TIMES_K(d) wgmma_held(s, q[d], operand(keys + d / 4 * (KV_SLAB / 16) + d % 4 * WGMMA_STEP), d > 0, (const T *)0)
#else
#define TAKE_Q()   (void)0
#define TIMES_K(d) wgmma(s, operand(queries + d / 4 * (Q_SLAB / 16) + d % 4 * WGMMA_STEP), operand(keys + d / 4 * (KV_SLAB / 16) + d % 4 * WGMMA_STEP), d > 0, (const T *)0)
#endif
#define LEAVE_Q() \
    do { \
        if (!HOLD_Q && !PUT) GIVE_BACK(AT(q_empty, count % Q_PLACES)); \
    } while (0)
#define PUT_RESULT(work, number, most, sum) \
    do { \
        put(p, work, o, most, sum, scale, Q_PLACE(number)); \
        if (PUT) { \
            async_fence(); \
            __syncwarp(); \
            GIVE_BACK(AT(q_empty, (number) % Q_PLACES)); \
        } \
    } while (0)
#define TIMES_V(weight, i) wgmma_held_t(o, (weight)[i], operand(values + (i) * WGMMA_STEP_T), true, (const T *)0)
#define ASK_AHEAD() \
    do { \
        const bool k_ = mbarrier_ended(AT(k_full, STAGE(n + 1)), LAP(n + 1)), v_ = mbarrier_ended(AT(v_full, STAGE(n)), LAP(n)); \
        there = __all_sync(~0u, k_ && v_); \
    } while (0)
/* Waits for tile n of keys and the values before it; all that the first product needs is there before the turn comes. */
#define PRODUCTS(weight) \
    do { \
        STAMP(0); \
        if (!there) { \
            mbarrier_wait(AT(k_full, STAGE(n)), LAP(n)); \
            mbarrier_wait(AT(v_full, STAGE(n - 1)), LAP(n - 1)); \
        } \
        STAMP(1); \
        if (GATHER) async_fence(); \
        wgmma_fence(); \
        if (TURNS) named_sync(turn, 256); \
        STAMP(2); \
        _Pragma("unroll") for (int d = 0; d < DIM / 16; ++d) TIMES_K(d); \
        wgmma_commit(); \
        _Pragma("unroll") for (int i = 0; i < KEYS / 16; ++i) TIMES_V(weight, i); \
        wgmma_commit(); \
        if (TURNS) named_announce(next_turn, 256); \
        keys = k_places + STAGE(n + 1) * (K_BYTES / 16), values = v_places + STAGE(n) * (V_BYTES / 16); \
        STAMP(3); \
    } while (0)
/* A tile that all rows see whole; its weights are made while the matrix units still read the last ones. */
#if SPECULATE
#define WHOLE(in, made) \
    do { \
        PRODUCTS(in); \
        wgmma_wait(1); \
        wgmma_pin(s); \
        STAMP(4); \
        GIVE_BACK(AT(k_empty, STAGE(n))); \
        if (--tile == low) LEAVE_Q(); \
        float more[2][2] = { { 0, 0 }, { 0, 0 } }; \
        _Pragma("unroll") for (int i = 0; i < KEYS / 2; i += 2) \
        { \
            const float x = fmaf(s[i], scale, -base[i >> 1 & 1]), y = fmaf(s[i + 1], scale, -base[i >> 1 & 1]); \
            const float e = ex2(x), g = EXP_FMA && i / 2 % (EXP_FMA ? EXP_FMA / 2 : 1) == 1 ? ex2_fma(y) : ex2(y); \
            more[i >> 1 & 1][0] += e, more[i >> 1 & 1][1] += g; \
            made[i / 8][i / 2 % 4] = pack2(e, g, (const T *)0); \
        } \
        const float added[2] = { more[0][0] + more[0][1], more[1][0] + more[1][1] }; \
        const bool  fits[2]  = { added[0] <= SPECULATE && most[0] != -INF, added[1] <= SPECULATE && most[1] != -INF }; \
        if (AHEAD) ASK_AHEAD(); \
        STAMP(5); \
        if (__all_sync(~0u, fits[0] && fits[1])) { \
            wgmma_wait(0); \
            wgmma_pin(o); \
            STAMP(6); \
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
        STAMP(7); \
        COUNT_TILE(); \
    } while (0)
#endif
#define TAKE_UP() \
    do { \
        const whole f_ = whole_of(a, w); \
        from = (int)uniform((uint32_t)f_.from), to = (int)uniform((uint32_t)f_.to); \
        tile = (int)uniform((uint32_t)w->high), low = (int)uniform((uint32_t)w->low); \
        queries = place_of_k(Q_PLACE(count)); \
        TAKE_Q(); \
    } while (0)

    const work *w = queries_of(0);
    if (w->n < 0) return;
    int      from, to, tile, low;
    uint32_t queries, keys = k_places, values = v_places;
    bool     there = false;          /* the next tiles, when that was asked for while weights were made */
    TAKE_UP();
    if (TURNS && turn == GROUPS) named_announce(TURN, 256);
    mbarrier_wait(AT(k_full, 0), 0);
    if (GATHER) async_fence();
    wgmma_fence();
    #pragma unroll
    for (int d = 0; d < DIM / 16; ++d) TIMES_K(d);
    wgmma_commit();
    wgmma_wait(0);
    wgmma_pin(s);
    GIVE_BACK(AT(k_empty, 0));
    n = 1, --tile, keys = k_places + STAGE(1) * (K_BYTES / 16);
    if (tile == low) LEAVE_Q();
    if (capped) cap(s, p->cap_inner, p->cap_outer);
    if (tile < from || tile >= to) mask(s, a, w, tile);
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
#if ODD
        if (steps & 1) {
            /* A copy that the assembler does not see through: it would have the new weights in place of those that the matrix units still read. */
            const uint32_t nothing = barrier & 7;
            #pragma unroll
            for (int i = 0; i < KEYS / 16; ++i)
                #pragma unroll
                for (int e = 0; e < 4; ++e) other[i][e] = weight[i][e] ^ nothing;
            WHOLE(other, weight);
        }
#endif
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
            STAMP(4);
            GIVE_BACK(AT(k_empty, STAGE(n)));
            if (tile - 1 - step == low) LEAVE_Q();
#if LAZY
            const bool moves = maxima_lazy(s, most, base, factor, scale);
#else
            maxima(s, most, base, factor, scale);
#endif
            #pragma unroll
            for (int i = 0; i < KEYS / 2; ++i) {
                const float x = fmaf(s[i], scale, -base[i >> 1 & 1]);
                s[i]          = EXP_FMA && i % (EXP_FMA ? EXP_FMA : 1) == 1 ? ex2_fma(x) : ex2(x);
            }
            float more[2][2] = { { 0, 0 }, { 0, 0 } };
            #pragma unroll
            for (int i = 0; i < BEFORE_WAIT; ++i) more[i >> 1 & 1][i & 1] += s[i];
#if AHEAD
            ASK_AHEAD();
#endif
            /* Never done: it holds the wait back until these weights are there, where the assembler would move it up, in front of the exponentials that are to
             * run beside the product. */
            if (BEFORE_WAIT)
                asm volatile("{\n.reg .pred p;\nsetp.gt.f32 p, %0, 0f7f000000;\n@p st.shared.f32 [%1], %0;\n}" ::"f"((more[0][0] + more[0][1]) + (more[1][0] + more[1][1])), "r"(AT(nowhere, 0)) : "memory");
            STAMP(5);
            wgmma_wait(0);
            wgmma_pin(o);
            STAMP(6);
            GIVE_BACK(AT(v_empty, STAGE(n - 1)));
#if !LAZY
            #pragma unroll
            for (int i = 0; i < DIM_V / 2; ++i) o[i] *= factor[i >> 1 & 1];
#endif
            #pragma unroll
            for (int i = BEFORE_WAIT; i < KEYS / 2; ++i) more[i >> 1 & 1][i & 1] += s[i];
            pack(weight, s);
#if LAZY
            if (moves) {
                factor[0] = ex2(factor[0]), factor[1] = ex2(factor[1]);
                #pragma unroll
                for (int i = 0; i < DIM_V / 2; ++i) o[i] *= factor[i >> 1 & 1];
                sum[0] *= factor[0], sum[1] *= factor[1];
            }
            sum[0] += more[0][0] + more[0][1], sum[1] += more[1][0] + more[1][1];
#else
            #pragma unroll
            for (int r = 0; r < 2; ++r) sum[r] = sum[r] * factor[r] + (more[r][0] + more[r][1]);
#endif
            ++n;
            STAMP(7);
            COUNT_TILE();
        }
        tile -= steps;
#endif
        const bool  ends = tile == low;
        const work *done = w;
        if (ends) {
            ++count;
            w = queries_of((int)count);
            if (uniform((uint32_t)w->n) >> 31) {
                w = done, --count;
                break;
            }
            TAKE_UP();
        }
        --tile;
        PRODUCTS(weight);
        there = false;
#if MASK
        limits m;
        if (tile < from || tile >= to) m = limits_of(a, w, tile);
#endif
        wgmma_wait(1);
        wgmma_pin(s);
        STAMP(4);
        GIVE_BACK(AT(k_empty, STAGE(n)));
        if (tile == low) LEAVE_Q();
        if (capped) cap(s, p->cap_inner, p->cap_outer);
#if MASK
        if (tile >= to) mask_behind(s, &m);
        if (tile < from) mask_before(s, &m);
#else
        if (tile < from || tile >= to) mask(s, a, w, tile);
#endif
        const float old_most[2] = { most[0], most[1] }, old_sum[2] = { sum[0], sum[1] };
        if (ends) most[0] = most[1] = -INF, sum[0] = sum[1] = 0;
        maxima(s, most, base, factor, scale);
        weigh(s, sum, base, factor, scale);
        wgmma_pin(s);
        STAMP(5);
        /* The wait stands behind a branch: the assembler would move it up, in front of the exponentials that are to run beside the product. */
        if (ends) {
            wgmma_wait(0);
            wgmma_pin(o);
            STAMP(6);
            GIVE_BACK(AT(v_empty, STAGE(n - 1)));
            PUT_RESULT(done, count - 1, old_most, old_sum);
            #pragma unroll
            for (int i = 0; i < DIM_V / 2; ++i) o[i] = 0;
        } else {
            wgmma_wait(0);
            wgmma_pin(o);
            STAMP(6);
            GIVE_BACK(AT(v_empty, STAGE(n - 1)));
            #pragma unroll
            for (int i = 0; i < DIM_V / 2; ++i) o[i] *= factor[i >> 1 & 1];
        }
        ++n;
        pack(weight, s);
        STAMP(7);
        COUNT_TILE();
    }
#if TRACE
    if (t % 128 == 0 && blockIdx.x == 5)
        for (int i = 0; i < 64; ++i)
            for (int e = 0; e < 8; ++e) p->a.softmax_lse[(t / 128 * 64 + i) * 8 + e] = (float)(stamps[t / 128][i][e] - stamps[0][0][0]);
#endif
    mbarrier_wait(AT(v_full, STAGE(n - 1)), LAP(n - 1));
    if (GATHER) async_fence();
    wgmma_fence();
    #pragma unroll
    for (int i = 0; i < KEYS / 16; ++i) TIMES_V(weight, i);
    wgmma_commit();
    wgmma_wait(0);
    wgmma_pin(o);
    put(p, w, o, most, sum, scale, Q_PLACE(count));
}
#else
DEVICE void multiply(const attention_wgmma_args *p, uint32_t memory, int t)
{
    const attention_args *a      = &p->a;
    const uint32_t        k_base = memory + Q_PLACES * Q_BYTES, v_base = k_base + STAGES * K_BYTES, q_base = uniform(memory + t / 128 * 8192);
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
        if (one) mbarrier_arrive(shared_address(&bar.q_empty[0])); \
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
        if (one) mbarrier_arrive(shared_address(&bar.q_empty[0])); \
    } while (0)
#endif

#define TIMES_V(weight, i) wgmma_held_t(o, (weight)[i], wgmma_operand_t(values, KV_SLAB) + (i) * WGMMA_STEP_T, add || i > 0, (const T *)0)

    const work *w = queries_of(count);
    if (w->n < 0) return;
    whole f    = whole_of(a, w);
    int   tile = w->high - 1, low = w->low;
    if (turn == GROUPS) named_announce(TURN, 256);

    TAKE_Q();
    mbarrier_wait(shared_address(&bar.k_full[k.stage]), k.lap);
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
    if (one) mbarrier_arrive(shared_address(&bar.k_empty[k.stage]));
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

        mbarrier_wait(shared_address(&bar.k_full[k.stage]), k.lap);
        named_sync(turn, 256);
        const ring     v    = before(k);
        const uint32_t keys = uniform(k_base + k.stage * K_BYTES);
        FIND_Q();
        if (GATHER) async_fence();
        wgmma_fence();
        #pragma unroll
        for (int d = 0; d < DIM / 16; ++d) TIMES_K(d);
        wgmma_commit();
        mbarrier_wait(shared_address(&bar.v_full[v.stage]), v.lap);
        const uint32_t values = uniform(v_base + v.stage * V_BYTES);
        if (GATHER) async_fence();
        wgmma_fence();
        #pragma unroll
        for (int i = 0; i < KEYS / 16; ++i) TIMES_V(weight, i);
        wgmma_commit();
        named_announce(turn == GROUPS ? TURN : turn + 1, 256);
        wgmma_wait(1);
        wgmma_pin(s);
        if (one) mbarrier_arrive(shared_address(&bar.k_empty[k.stage]));
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
            if (one) mbarrier_arrive(shared_address(&bar.v_empty[v.stage]));
            put(p, done, o, old_most, old_sum, p->scale, 0);
        } else {
            wgmma_wait(0);
            wgmma_pin(o);
            if (one) mbarrier_arrive(shared_address(&bar.v_empty[v.stage]));
            #pragma unroll
            for (int i = 0; i < DIM_V / 2; ++i) o[i] *= factor[i >> 1 & 1];
        }
        advance(&k);
        add = !ends;
        pack(weight, s);
    }

    const ring v = before(k);
    mbarrier_wait(shared_address(&bar.v_full[v.stage]), v.lap);
    const uint32_t values = uniform(v_base + v.stage * V_BYTES);
    if (GATHER) async_fence();
    wgmma_fence();
    #pragma unroll
    for (int i = 0; i < KEYS / 16; ++i) TIMES_V(weight, i);
    wgmma_commit();
    wgmma_wait(0);
    wgmma_pin(o);
    put(p, w, o, most, sum, p->scale, 0);
}
#endif

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
