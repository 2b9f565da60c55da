/*
 * Attention on the matrix units of sm_90a, e4m3 with bf16 results: attention_wgmma, with products of 8-bit elements. Scores are multiplied by the scales
 * of queries and keys, results by that of values. Weights are rounded to e4m3 as well; the base that they are over is chosen so that the largest
 * is 2^OFFSET: numbers below 2^-6 have fewer bits, and above it is room up to 448, so that a base seldom moves. Their sum is that of the weights before
 * they are rounded.
 *
 * The matrix units' sums of 8-bit products keep 14 bits, and cut what is small beside a sum that has grown: values of a mean other than 0 would come out
 * too small by 7 % for 4096 keys. So products with values start anew in each tile, in the registers where its scores were, and are added up in f32. One
 * warpgroup's products meet the other's weights.
 *
 *     moved        q, k, v and out as in attention_wgmma; values once more within shared memory, where they are transposed
 *     operations   2 (DIM + DIM_V) a query and key, of 8 bits: exponentials are the limit as much as the matrix units
 *
 *   T             bf16: of the results
 *   DIM, DIM_V    head sizes up to here, a multiple of 32; 64 or 128
 *   KEYS          keys in a tile: 128 or 192, at least DIM_V
 *   V_STAGES      places for values as they come
 *   OFFSET        at most 8
 *   SHARE         a weight is much where it is more than one in so many of its row's sum
 *   EARLY         1: a tile's values and the next one's keys are waited for before its weights are made; 0: behind them
 *   others        as in attention_wgmma
 *
 * Weights of tiles that all rows see whole are made over the base as it is, without maxima. Where one of a row's is too large for e4m3, or would be much of the
 * row's whole sum, the row's base moves and they are made anew: the largest is a power of two then, which is not rounded, and what rounding costs is that of
 * the others. That is asked of codes, with what a thread knew when it asked last: no instruction more where nothing is large. After a tile whose largest weight
 * was much, the next one's maxima are looked for at once. The next piece's first scores start before a piece's results leave.
 *
 * Shared memory, in slabs of [rows][128] with the 128-byte swizzle: q [SLABS][64 GROUPS], k [STAGES][SLABS][KEYS], v as it comes [V_STAGES][KEYS], v transposed
 * [STAGES][DIM_V], of 192 keys [STAGES][3][DIM_V][64] with the 64-byte swizzle. Queries are kept in registers.
 */
#include "attention_wgmma.cuh"
#include "quantise.cuh"
#include "wgmma8_held.cuh"
#include "attention_wgmma_transpose.cuh"

DEVICE void pack(uint32_t (&weight)[KEYS / 32][4], const float (&s)[KEYS / 2])
{
    #pragma unroll
    for (int i = 0; i < KEYS / 32; ++i)
        #pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int   first = 16 * i + 8 * (e / 2) + 2 * (e % 2);
            const float x[4]  = { s[first], s[first + 1], s[first + 4], s[first + 5] };
            weight[i][e]      = e4m3x4(x);
        }
}

/*
 * How much of a thread's sum of a row, with a weight in it, that weight may be. A row's whole sum is guessed: a thread has a quarter of the columns, and `tile` is
 * the last of those seen, so the other weights come to 4 all / seen times what the thread has of them.
 *
 *     SHARE weight = weight + (sum - weight) 4 all / seen     <=>     weight = sum 4 all / ((SHARE - 1) seen + 4 all)
 */
DEVICE float share_of(const work *w, int tile)
{
    const float all = 4.f / (SHARE - 1) * (float)(w->high - w->low), seen = (float)(w->high - tile);
    float       inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(seen + all));
    return all * inverse;
}

/* What makes four codes negative that are larger than a row's weights may be. The largest of all saturates, so it is none of them. */
DEVICE uint32_t room_of(float sum, float share) { return 0x7f7f7f7f - (e4m3x2(fminf(sum * share, 416.f), 0) & 0xff) * 0x01010101; }
DEVICE bool fit(const uint32_t (&weight)[KEYS / 32][4], int r, uint32_t room)
{
    uint32_t over = 0;
    #pragma unroll
    for (int i = 0; i < KEYS / 32; ++i) over |= (weight[i][r] + room) | (weight[i][r + 2] + room);
    return !(over & 0x80808080);
}

/* Results of 64 rows over a part of the keys; rows without a key there have a sum of 0. A thread has four neighbouring columns of each 16. */
DEVICE void put_part(const attention_wgmma_args *p, const work *w, const float (&o)[DIM_V / 2], const float (&most)[2], const float (&sums)[2])
{
    const int             t = thread();
    const attention_args *a = &p->a;
    #pragma unroll
    for (int r = 0; r < 2; ++r) {
        float     sum = quad_sum(sums[r]);
        const int row = t / 32 * 16 + t % 32 / 4 + 8 * r;
        if (query_of(w, row) < w->end) {
            const int64_t at      = partial_of(a, w, row);
            const float   inverse = sum == 0 ? 0 : w->value / sum;
            float        *to      = a->partial_out + at * attention_partial_dim(a) + t % 4 * 4;
            if (t % 4 == 0) a->partial_lse[at] = sum == 0 ? -INF : (base_of(most[r], w->scale) + log2f(sum)) * 0.6931471805599453f;
            #pragma unroll
            for (int c = 0; c < DIM_V / 16; ++c) {
                const float *x = o + 8 * c + 2 * r;
                if (16 * c + t % 4 * 4 < a->dim_v) *(float4 *)(to + 16 * c) = make_float4(x[0] * inverse, x[4] * inverse, x[1] * inverse, x[5] * inverse);
            }
        }
        __syncwarp();
    }
}

/* Four neighbouring columns of a row. */
#define PIECE(x) make_uint2(pack2((x)[0] * inverse, (x)[4] * inverse, (const T *)0), pack2((x)[1] * inverse, (x)[5] * inverse, (const T *)0))

/* Results of 64 rows; rows without a key have a sum of 0. By all threads of a warp. */
DEVICE void put(const attention_wgmma_args *p, const work *w, const float (&o)[DIM_V / 2], const float (&most)[2], const float (&sums)[2])
{
    const int             t = thread();
    const attention_args *a = &p->a;
    #pragma unroll
    for (int r = 0; r < 2; ++r) {
        float      sum = quad_sum(sums[r]);
        const int  row = t / 32 * 16 + t % 32 / 4 + 8 * r, query = query_of(w, row), head = head_of(w, row);
        const bool inside = query < w->end;
        float      top = base_of(most[r], w->scale), inverse = 1;
        if (a->sinks && sum > 0) {
            const float sink = sink_of(a, head) * 1.4426950408889634f, both = fmaxf(top, sink);
            inverse = ex2(top - both);
            sum = sum * inverse + ex2(sink - both), top = both;
        }
        inverse = sum == 0 ? 0 : inverse / sum * w->value;
        if (inside && t % 4 == 0 && a->softmax_lse)
            a->softmax_lse[w->n * a->lse_batch_stride + head * a->lse_head_stride + w->q_begin + query] =
                sum == 0 ? a->empty_lse : (top + log2f(sum)) * 0.6931471805599453f;
        T *to = (T *)a->out + w->n * a->out_batch_stride + (w->q_begin + query) * a->out_row_stride + head * a->out_head_stride;
        /* Two threads exchange pieces of neighbouring chunks, so that each has 16 bytes of one: half as many stores. */
        #pragma unroll
        for (int c = 0; c < DIM_V / 16; c += 2) {
            uint2 own[2];
            #pragma unroll
            for (int e = 0; e < 2; ++e) {
                const float *x = o + 8 * (c + e) + 2 * r;
                own[e]         = PIECE(x);
            }
            const int   odd = t & 1, column = 16 * (c + odd) + t % 4 / 2 * 8;
            const uint2 sent = odd ? own[0] : own[1], kept = odd ? own[1] : own[0];
            const uint2 got = make_uint2(__shfl_xor_sync(~0u, sent.x, 1), __shfl_xor_sync(~0u, sent.y, 1));
            if (inside && column < a->dim_v) *(uint4 *)(to + column) = odd ? make_uint4(got.x, got.y, kept.x, kept.y) : make_uint4(kept.x, kept.y, got.x, got.y);
        }
    }
}

/* What lies where a piece has no rows is of other sequences or of earlier pieces, and the rows of a warp decide together when bases are looked at: zeros
 * instead. By a warp, for its own rows; seldom, and written so that it takes few registers. */
DEVICE void clear_rows(const work *w, uint32_t q_memory)
{
    const int  row     = thread() / 32 * 16 + thread() % 16;
    const bool nowhere = query_of(w, row) >= w->end;
    if (__any_sync(~0u, nowhere)) {
        const uint32_t to = q_memory + row % 64 * 128 + thread() % 32 / 16 * 64;        /* half of a row */
        #pragma unroll 1
        for (int s = 0; s < SLABS && nowhere; ++s)
            #pragma unroll
            for (int i = 0; i < 4; ++i) asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to + s * Q_SLAB + 16 * i), "r"(0) : "memory");
        async_fence();
    }
    __syncwarp();
}

#define TAKE_UP() \
    do { \
        clear_rows(w, q_memory); \
        const whole    f_    = whole_of(a, w); \
        const uint32_t flip_ = w->flip; \
        from = (int)uniform((uint32_t)f_.from), to = (int)uniform((uint32_t)f_.to); \
        tile = (int)uniform((uint32_t)w->high), low = (int)uniform((uint32_t)w->low); \
        scale = w->scale; \
        _Pragma("unroll") for (int d = 0; d < DIM / 32; ++d) \
        { \
            ldmatrix_x4(q[d], q_memory + d / 4 * Q_SLAB + (t / 32 % 4 * 16 + t % 16) * 128 + (((d % 4 * 2 + t % 32 / 16) ^ (t & 7)) << 4)); \
            _Pragma("unroll") for (int e = 0; e < 4; ++e) q[d][e] ^= flip_; \
        } \
        __syncwarp(); \
        GIVE_BACK(AT(q_empty, 0)); \
    } while (0)

typedef float half_scores[KEYS / 4];
typedef float product_sums[DIM_V / 2];
DEVICE half_scores &half_of(float (&x)[KEYS / 2], int h) { return *(half_scores *)(x + KEYS / 4 * h); }
DEVICE product_sums &product_of(float (&x)[KEYS / 2]) { return *(product_sums *)x; }

DEVICE void multiply(const attention_wgmma_args *p, uint32_t memory, int t)
{
    static_assert(KEYS >= DIM_V, "products with values lie where scores were");
    const attention_args *a        = &p->a;
    const uint32_t        k_memory = memory + Q_BYTES, q_memory = uniform(memory + t / 128 * 8192), barrier = uniform(shared_address(&bar));
    const uint32_t        k_places = uniform(place_of_k(k_memory)), v_places = uniform(place_of_k(k_memory + STAGES * K_BYTES + V_STAGES * V_BYTES));
    const bool            one = t % 32 == 0, capped = p->cap_inner > 0;
    const int             turn = TURN + t / 128, next_turn = turn == GROUPS ? TURN : turn + 1;
    float                 o[DIM_V / 2], s[KEYS / 2];
    uint32_t              q[DIM / 32][4], weight[KEYS / 32][4];
    uint32_t              n = 0;                            /* tiles before this one */

#define START_KEYS(n) \
    do { \
        const uint32_t keys_ = k_places + STAGE(n) * (K_BYTES / 16); \
        wgmma_fence(); \
        _Pragma("unroll") for (int d = 0; d < DIM / 32; ++d) wgmma_held(s, q[d], wgmma_operand_of(keys_ + d / 4 * (KV_SLAB / 16) + d % 4 * WGMMA_STEP), d > 0, (const e4m3 *)0); \
        wgmma_commit(); \
    } while (0)
#define START_VALUES() \
    do { \
        const uint32_t values_ = v_places + STAGE(n) * (T_BYTES / 16); \
        wgmma_fence(); \
        _Pragma("unroll") for (int i = 0; i < KEYS / 32; ++i) wgmma_held(product_of(s), weight[i], values_operand(values_, i), i > 0, (const e4m3 *)0); \
        wgmma_commit(); \
    } while (0)
#define ADD_VALUES() \
    do { \
        wgmma_pin(product_of(s)); \
        _Pragma("unroll") for (int i = 0; i < DIM_V / 2; ++i) o[i] += product_of(s)[i]; \
    } while (0)
#define WEIGH(h) \
    do { \
        _Pragma("unroll") for (int i = KEYS / 16 * (h); i < KEYS / 16 * (h) + KEYS / 16; ++i) \
        { \
            const int r = i & 1, first = i / 2 * 8 + 2 * r; \
            float     x[4]; \
            _Pragma("unroll") for (int e = 0; e < 4; ++e) \
            { \
                x[e] = ex2(fmaf(s[first + e / 2 * 4 + e % 2], scale, -from_base[r])); \
                more[r][e & 1] += x[e]; \
            } \
            weight[i / 4][i % 4] = e4m3x4(x); \
            over[r] |= weight[i / 4][i % 4] + room[r]; \
        } \
    } while (0)

    if (turn == GROUPS) named_announce(TURN, 256);
    const work *w = queries_of(0);
    int         from, to, tile, low;
    float       scale;
    if (uniform((uint32_t)w->n) >> 31) return;
    TAKE_UP();
    mbarrier_wait(AT(k_full, STAGE(n)), LAP(n));
    START_KEYS(n);
    wgmma_wait(0);
    wgmma_pin(s);
    for (int count = 0;; ++count) {
        float    most[2] = { -INF, -INF }, sum[2] = { 0, 0 }, base[2] = { 0, 0 }, factor[2];
        uint32_t room[2]    = { 0x80808080, 0x80808080 };   /* no base: no code fits */
        bool     speculates = false;                        /* there is a base, and the last tile's weights were not much */
        #pragma unroll
        for (int i = 0; i < DIM_V / 2; ++i) o[i] = 0;
        #pragma unroll 1
        for (;;) {
            --tile;
            if (EARLY) {
                mbarrier_wait(AT(t_full, STAGE(n)), LAP(n));
                if (tile != low) mbarrier_wait(AT(k_full, STAGE(n + 1)), LAP(n + 1));
            }
            bool fits[2] = { false, false }, all = false;
            if (speculates && !capped && tile >= from && tile < to) {
                float    more[2][2] = { { 0, 0 }, { 0, 0 } };
                uint32_t over[2]    = { 0, 0 };
                /* Copies: with the sum, the assembler starts exponentials when fewer of their arguments are there. */
                const float from_base[2] = { base[0] + 0.f, base[1] + 0.f };
                wgmma_wait(0);
                wgmma_pin(half_of(s, 0));
                WEIGH(0);
                wgmma_pin(half_of(s, 1));
                GIVE_BACK(AT(k_empty, STAGE(n)));
                WEIGH(1);
                all = __all_sync(~0u, !((over[0] | over[1]) & 0x80808080));
                if (all) sum[0] += more[0][0] + more[0][1], sum[1] += more[1][0] + more[1][1];
                else {
                    const float share = share_of(w, tile);
                    #pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        if (most[r] != -INF) room[r] = room_of(sum[r] + (more[r][0] + more[r][1]), share);
                        fits[r] = fit(weight, r, room[r]);
                    }
                    all = __all_sync(~0u, fits[0] && fits[1]);
                    if (all) sum[0] += more[0][0] + more[0][1], sum[1] += more[1][0] + more[1][1];
                }
            } else {
                wgmma_wait(0);
                wgmma_pin(s);
                GIVE_BACK(AT(k_empty, STAGE(n)));
                if (capped) cap(s, w->inner, p->cap_outer);
                if (tile < from || tile >= to) {
                    const limits m = limits_of(a, w, tile);
                    if (tile >= to) mask_behind(s, &m);
                    if (tile < from) mask_before(s, &m);
                }
            }
            if (!all) {
                maxima_where(s, fits, most, base, factor, scale);
                weigh(s, sum, base, factor, scale);
                #pragma unroll
                for (int i = 0; i < DIM_V / 2; ++i) o[i] *= factor[i >> 1 & 1];
                pack(weight, s);
                bool        much  = false;
                const float share = share_of(w, tile);
                #pragma unroll
                for (int r = 0; r < 2; ++r)
                    if (most[r] != -INF) room[r] = room_of(sum[r], share), much |= factor[r] < 1 && (room[r] + ((OFFSET + 7) << 3) & 0x80);
                speculates = !__any_sync(~0u, much);
            }
            if (!EARLY) mbarrier_wait(AT(t_full, STAGE(n)), LAP(n));
            if (tile == low) break;
            if (!EARLY) mbarrier_wait(AT(k_full, STAGE(n + 1)), LAP(n + 1));
            named_sync(turn, 256);
            START_VALUES();
            wgmma_wait(0);
            ADD_VALUES();
            START_KEYS(n + 1);
            GIVE_BACK(AT(t_empty, STAGE(n)));
            named_announce(next_turn, 256);
            ++n;
        }
        named_sync(turn, 256);
        START_VALUES();
        named_announce(next_turn, 256);
        wgmma_wait(0);
        ADD_VALUES();
        GIVE_BACK(AT(t_empty, STAGE(n)));
        ++n;
        /* The next piece's first scores start before the results leave; behind the last piece of anything, for nothing. */
        const work *done   = w;
        w                  = queries_of(count + 1);
        const bool goes_on = !(uniform((uint32_t)w->n) >> 31);
        if (goes_on) {
            TAKE_UP();
            mbarrier_wait(AT(k_full, STAGE(n)), LAP(n));
        }
        START_KEYS(n);
        if (a->splits > 1) put_part(p, done, o, most, sum);
        else put(p, done, o, most, sum);
        wgmma_wait(0);
        wgmma_pin(s);
        if (!goes_on) return;
    }
}

extern "C" __global__ __launch_bounds__(THREADS + 128, 1) void attention_wgmma_e4m3(const __grid_constant__ attention_wgmma_args p)
{
    extern __shared__ uint8_t memory[];
    const uint32_t            base  = (shared_address(memory) + 1023) & ~1023u;
    const int                 group = __shfl_sync(~0u, threadIdx.x / 128, 0), t = threadIdx.x % 128;
    if (threadIdx.x == 0) {
        init_works();
        #pragma unroll
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(shared_address(&bar.k_full[s]), 1);
            mbarrier_init(shared_address(&bar.v_full[s]), 1);
            mbarrier_init(shared_address(&bar.t_full[s]), TRANSPOSERS);
            mbarrier_init(shared_address(&bar.k_empty[s]), 4 * GROUPS);
            mbarrier_init(shared_address(&bar.v_empty[s]), TRANSPOSERS);
            mbarrier_init(shared_address(&bar.t_empty[s]), 4 * GROUPS);
        }
        mbarrier_init_done();
    }
    __syncthreads();
    pdl_wait();
    if (group == GROUPS) {
        registers_give(GIVE);
        if (t == 0) tma_prefetch_map(&p.q), tma_prefetch_map(&p.k), tma_prefetch_map(&p.v);
        copy_and_transpose(&p, base, t / 32, t % 32);
    } else {
        registers_take(TAKE);
        multiply(&p, base, (int)threadIdx.x);
    }
}
