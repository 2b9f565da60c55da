/*
 * Attention of few queries over many keys, f16 and bf16, on the matrix units of sm_80 and later: bound by reading k and v. The work is dealt
 * out as attention_decode.h says, so that every block reads as many bytes whatever the lengths are.
 *
 * A warp has one key head and, where key_warps > 1, a share of the keys: 16 at a time, through a ring of its own in shared memory, which it
 * fills with cp.async and no other warp touches. No barrier is met but at the end of a unit. The up to 16 rows (queries under the group's
 * heads) are the 16 rows of a matrix instruction.
 *
 *     moved        each key and value once
 *     operations   64 * DIM a key and head, of which rows / 16 are of use
 *
 *   T       f16, bf16 or e4m3; e4m3 is multiplied as f16, which holds it exactly, and out is then bf16
 *   DIM     head sizes up to here: 64, 128 or 256; smaller ones are filled up with zeros
 *   EIGHT   1 where T is e4m3
 *   WARPS   in a block
 *   STAGES  steps of 16 keys in a warp's ring
 *
 * Shared memory: a ring for each warp, [STAGES] of k [16][DIM] and v [16][DIM], 16-byte pieces swizzled so that the 8 rows of an ldmatrix touch
 * all banks. At the end of a unit the ring holds the warp's f32 sums. Where head sizes are above 128, q lies behind the rings.
 */
#include "attention_decode.h"
#include "attention_score.cuh"
#include "cp_async.cuh"
#include "launch.cuh"
#include "math.cuh"
#include "mma.cuh"

#define THREADS      (32 * WARPS)
#define WIDE         (16 / (int)sizeof(T))            /* elements of a 16-byte piece */
#define PIECES       (DIM / WIDE)                 /* in a row */
#define ROW_BYTES    (16 * PIECES)
#define HALF         (16 * ROW_BYTES)             /* bytes of a step's keys, and of its values */
#define RING         (STAGES * 2 * HALF)
#define HOLD_Q       (DIM <= 128)                 /* q stays in registers; else behind the rings, [head_warps][16][DIM] */
#define SUM_ROW      (DIM + 8)
#define SWIZZLE(row) (PIECES == 4 ? (row) >> 1 & 3 : (row) & 7)

#if EIGHT
struct e4m3 { uint8_t code; };
typedef f16  F;                                 /* of products */
typedef bf16 R;                                 /* of results */
#else
typedef T F, R;
#endif

enum { COPIES = HOLD_Q ? 16 : 4 };              /* that are written out: more take more registers */

extern __shared__ __align__(128) unsigned char memory[];

DEVICE uint32_t piece_at(uint32_t base, int row, int piece) { return base + row * ROW_BYTES + ((piece ^ SWIZZLE(row)) << 4); }

/* This block's first sequence, and the granules before it. Returns all granules. */
DEVICE int find_begin(const attention_decode_args *d, int *first, int *before)
{
    if (d->a.batch == 1) {
        *first = *before = 0;
        return attention_decode_granules_of(d, 0);
    }
    __shared__ int32_t warp_sum[WARPS], found[2];
    const int          each = (d->a.batch + THREADS - 1) / THREADS, t = (int)threadIdx.x, lane = t % 32;
    const int          from = min(t * each, d->a.batch), to = min(from + each, d->a.batch);
    int                mine = 0;
    for (int n = from; n < to; ++n) mine += attention_decode_granules_of(d, n);
    int upto = mine;
    #pragma unroll
    for (int i = 1; i < 32; i *= 2) {
        const int left = __shfl_up_sync(~0u, upto, i);
        if (lane >= i) upto += left;
    }
    if (lane == 31) warp_sum[t / 32] = upto;
    __syncthreads();
    int earlier = 0, all = 0;
    #pragma unroll
    for (int w = 0; w < WARPS; ++w) {
        if (w < t / 32) earlier += warp_sum[w];
        all += warp_sum[w];
    }
    const int begin = attention_decode_begin(d, all, (int)blockIdx.x);
    int       here  = earlier + upto - mine;
    if (here <= begin && begin < here + mine) {
        int n = from;
        if (each > 1)
            for (int size = attention_decode_granules_of(d, n); begin >= here + size; size = attention_decode_granules_of(d, n)) here += size, ++n;
        found[0] = n, found[1] = here;
    }
    __syncthreads();
    *first  = found[0];
    *before = found[1];
    return all;
}

/* ---- a warp's share of one unit ---------------------------------------------------------------------------------------- */

#if EIGHT
DEVICE uint32_t f16x2_of(uint32_t codes)        /* two e4m3 in the low half */
{
    uint32_t r;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"((uint16_t)codes));
    return r;
}
DEVICE float score_scale(const attention_args *a, int n, int h) { return attention_score_scale(a, n, h); }
DEVICE float value_scale(const attention_args *a, int n, int h) { return attention_value_scale(a, n, h); }
#else
DEVICE float score_scale(const attention_args *a, int, int) { return a->scale; }
DEVICE float value_scale(const attention_args *, int, int) { return 1; }
#endif

struct rows_of_keys { int64_t k, v; };          /* offsets in elements; negative: no such key */

struct share {
    const T *k, *v;                             /* of this key head */
    int      n, first, stride, end;             /* step i has the keys first + i * stride + 0 .. 15, of them those before end */
    int      steps;
};

/* Lanes look up the keys of two steps, 2 * pair and 2 * pair + 1: the page is asked for early and used when it has come. */
DEVICE int key_of(const share *w, int pair, int lane) { return w->first + (2 * pair + lane / 16) * w->stride + lane % 16; }
DEVICE int page_of(const attention_args *a, const attention_sequence *s, const share *w, int pair, int lane)
{
    const int key = key_of(w, pair, lane);
    return 2 * pair + lane / 16 < w->steps && key < w->end ? attention_page_of(a, w->n, s->leftpad + key) : -1;
}
DEVICE rows_of_keys rows_of(const attention_args *a, const attention_sequence *s, const share *w, int pair, int lane, int page)
{
    const int             key    = key_of(w, pair, lane);
    const attention_place p      = attention_place_in(a, s, page, s->leftpad + key);
    const bool            inside = 2 * pair + lane / 16 < w->steps && key < w->end && p.batch >= 0;
    return { inside ? p.batch * a->k_batch_stride + p.row * a->k_row_stride : -1, inside ? p.batch * a->v_batch_stride + p.row * a->v_row_stride : -1 };
}

DEVICE void copy_step(const attention_args *a, const share *w, const rows_of_keys *at, int step, uint32_t to, int lane)
{
    #pragma unroll
    for (int half = 0; half < 2; ++half) {
        const T      *from   = half ? w->v : w->k;
        const int64_t offset = half ? at->v : at->k;
        #pragma unroll COPIES
        for (int i = 0; i < 16 * PIECES / 32; ++i) {
            const int     row = (i * 32 + lane) / PIECES, piece = (i * 32 + lane) % PIECES;
            const int64_t o      = __shfl_sync(~0u, offset, (step & 1) * 16 + row);
            const bool    inside = o >= 0 && piece * WIDE < a->dim;
            cp_async16(piece_at(to + half * HALF, row, piece), inside ? from + o + piece * WIDE : from, inside);
        }
    }
}

extern "C" __global__ __launch_bounds__(THREADS, DIM > 128 || WARPS > 4 ? 1 : 2) void attention_decode(const __grid_constant__ attention_decode_args d)
{
    __shared__ float warp_most[WARPS][16], warp_total[WARPS][16];

    const attention_args &a    = d.a;
    const int             warp = __shfl_sync(~0u, (int)threadIdx.x / 32, 0), lane = (int)threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int             head_warp = warp % d.head_warps, key_warp = warp / d.head_warps;
    const uint32_t        ring   = shared_address(memory) + warp * RING;
    float                *sums   = (float *)(memory + warp * RING);
    const bool            capped = a.softcap != 0;

    pdl_wait();
    int       n, before;
    const int all = find_begin(&d, &n, &before), end = attention_decode_begin(&d, all, (int)blockIdx.x + 1);
    int       at = attention_decode_begin(&d, all, (int)blockIdx.x);
    pdl_release();

    /* Where this lane's line of an ldmatrix lies; the swizzle turns with 16 columns at a time, and repeats after 64. */
    const int matrix = lane / 8, line = lane % 8;
    uint32_t  k_at[4], v_at[4];
#if !HOLD_Q
    uint32_t q_at[4];
#endif
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
#if !HOLD_Q
        q_at[i] = piece_at(shared_address(memory) + WARPS * RING + head_warp * HALF, (matrix & 1) * 8 + line, 2 * i + (matrix >> 1));
#endif
        k_at[i] = piece_at(ring, (matrix >> 1) * 8 + line, 2 * i + (matrix & 1));
        v_at[i] = piece_at(ring + HALF, (matrix & 1) * 8 + line, 2 * i + (matrix >> 1));
    }

    while (at < end) {
        const attention_sequence s        = attention_sequence_of(&a, n);
        const int                granules = attention_decode_granules(&d, &s);
        if (at >= before + d.units * granules) {
            before += d.units * granules, ++n;
            continue;
        }
        const int            unit = (at - before) / granules, from = at - before - unit * granules, to = min(granules, from + end - at);
        const int            rows = s.sq * a.group, kv_head = unit * d.head_warps + head_warp;
        const attention_keys keys = attention_decode_keys(&a, &s);
        const int            each = 16 * d.key_warps;
        const share          w    = { (const T *)a.k + kv_head * a.k_head_stride, (const T *)a.v + kv_head * a.v_head_stride, n, keys.begin + from * each + 16 * key_warp, each,
                                      keys.end, key_warp < d.key_warps ? to - from : 0 };

        /* The ring's first steps. Groups of copies are counted, so an empty one is closed where no step is left. */
        int          page = page_of(&a, &s, &w, 0, lane), page_after = page_of(&a, &s, &w, 1, lane);
        rows_of_keys where = rows_of(&a, &s, &w, 0, lane, page);
        #pragma unroll
        for (int i = 0; i < STAGES; ++i) {
            if (i > 0 && i % 2 == 0) {
                where      = rows_of(&a, &s, &w, i / 2, lane, page_after);
                page_after = page_of(&a, &s, &w, i / 2 + 1, lane);
            }
            if (i < w.steps) copy_step(&a, &w, &where, i, ring + i * 2 * HALF, lane);
            cp_async_commit();
        }

#if HOLD_Q
        uint32_t held[DIM / 16][4];
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int r      = g + 8 * i;
            const T  *source = (const T *)a.q + n * a.q_batch_stride + (s.q_begin + r / a.group) * a.q_row_stride + (kv_head * a.group + r % a.group) * a.q_head_stride;
#if EIGHT
            #pragma unroll
            for (int c = 0; c < DIM / 16; ++c) {
                const int      column = 16 * c + 4 * t;
                const uint32_t codes  = r < rows && column < a.dim ? *(const uint32_t *)(source + column) : 0;
                held[c][i] = f16x2_of(codes), held[c][2 + i] = f16x2_of(codes >> 16);
            }
#else
            #pragma unroll
            for (int c = 0; c < DIM / 8; ++c) {
                const int column           = 8 * c + 2 * t;
                held[c / 2][c % 2 * 2 + i] = r < rows && column < a.dim ? *(const uint32_t *)(source + column) : 0;
            }
#endif
        }
#else
        for (int i = (int)threadIdx.x; i < d.head_warps * 16 * PIECES; i += THREADS) {
            const int  piece = i % PIECES, r = i / PIECES % 16, h = (unit * d.head_warps + i / PIECES / 16) * a.group + r % a.group;
            const T   *source                                                  = (const T *)a.q + n * a.q_batch_stride + (s.q_begin + r / a.group) * a.q_row_stride + h * a.q_head_stride + WIDE * piece;
            const bool inside                                                  = r < rows && WIDE * piece < a.dim;
            *(uint4 *)(memory + WARPS * RING + piece_at(0, i / PIECES, piece)) = inside ? *(const uint4 *)source : make_uint4(0, 0, 0, 0);
        }
        __syncthreads();
#endif
        const float scale = capped ? score_scale(&a, n, kv_head) : score_scale(&a, n, kv_head) * LOG2_E;      /* scores in powers of two, in the end */
        int         least[2], behind[2];                                            /* this lane's two rows, and the keys they see */
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int            r    = g + 8 * i;
            const attention_keys sees = attention_keys_of(&a, &s, r / a.group);
            least[i] = sees.begin, behind[i] = r < rows ? sees.end : 0;
        }

        float out[DIM / 8][4], most[2] = { -INF, -INF }, sum[2] = { 0, 0 };
        #pragma unroll
        for (int c = 0; c < DIM / 8; ++c) out[c][0] = out[c][1] = out[c][2] = out[c][3] = 0;

        int slot = 0;
        for (int step = 0; step < w.steps; ++step) {
            cp_async_wait(STAGES - 1);
            __syncwarp();                                                   /* this step is there */
            const uint32_t here = slot * 2 * HALF;
            float          score[2][4], other[2][4];                        /* two chains of products, one where registers are short */
            #pragma unroll
            for (int j = 0; j < 2; ++j)
                #pragma unroll
                for (int e = 0; e < 4; ++e) score[j][e] = other[j][e] = 0;
#if EIGHT
            #pragma unroll
            for (int c = 0; c < DIM / 32; ++c) {
                uint32_t b[4];
                ldmatrix_x4(b, k_at[c % 4] + here + c / 4 * 128);
                #pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const uint32_t halves[2] = { f16x2_of(b[j]), f16x2_of(b[j] >> 16) };
                    mma_m16n8k16(HOLD_Q && j % 2 ? other[j / 2] : score[j / 2], held[2 * c + j % 2], halves, (const F *)0);
                }
            }
#else
            #pragma unroll
            for (int c = 0; c < DIM / 16; ++c) {
#if HOLD_Q
                const uint32_t *q = held[c];
#else
                uint32_t q[4];
                ldmatrix_x4(q, q_at[c % 4] + c / 4 * 128);
#endif
                uint32_t b[4];
                ldmatrix_x4(b, k_at[c % 4] + here + c / 4 * 128);
                mma_m16n8k16(HOLD_Q && c % 2 ? other[0] : score[0], q, b, (const F *)0);
                mma_m16n8k16(HOLD_Q && c % 2 ? other[1] : score[1], q, b + 2, (const F *)0);
            }
#endif

            const int  first   = w.first + step * w.stride;
            const bool partial = first < max(least[0], least[1]) || first + 16 > min(behind[0], behind[1]);
            float      now[2]  = { most[0], most[1] };
            #pragma unroll
            for (int j = 0; j < 2; ++j) {
                #pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int key = first + 8 * j + 2 * t + (e & 1);
                    score[j][e]   = (HOLD_Q ? score[j][e] + other[j][e] : score[j][e]) * scale;
                    if (capped) score[j][e] = soft_capped(score[j][e], a.softcap) * LOG2_E;
                    if (partial && (key < least[e >> 1] || key >= behind[e >> 1])) score[j][e] = -INF;
                    now[e >> 1] = fmaxf(now[e >> 1], score[j][e]);
                }
            }
            float base[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i) {
                now[i]  = fmaxf(now[i], __shfl_xor_sync(~0u, now[i], 1));
                now[i]  = fmaxf(now[i], __shfl_xor_sync(~0u, now[i], 2));
                base[i] = now[i] == -INF ? 0 : now[i];                      /* no key seen so far: -inf - -inf is no number */
            }
            if (__any_sync(~0u, now[0] != most[0] || now[1] != most[1])) {
                #pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const float alpha = exp2_approx(most[i] - base[i]);
                    most[i]           = now[i];
                    sum[i] *= alpha;
                    #pragma unroll
                    for (int c = 0; c < DIM / 8; ++c) out[c][2 * i] *= alpha, out[c][2 * i + 1] *= alpha;
                }
            }
            #pragma unroll
            for (int j = 0; j < 2; ++j)
                #pragma unroll
                for (int e = 0; e < 4; ++e) {
                    score[j][e] = exp2_approx(score[j][e] - base[e >> 1]);
                    sum[e >> 1] += score[j][e];
                }
            const uint32_t p[4] = { pack2(score[0][0], score[0][1], (const F *)0), pack2(score[0][2], score[0][3], (const F *)0),
                                    pack2(score[1][0], score[1][1], (const F *)0), pack2(score[1][2], score[1][3], (const F *)0) };
#if EIGHT
            #pragma unroll
            for (int c = 0; c < DIM / 32; ++c) {
                uint32_t b[4];                                              /* two keys' codes of columns 2g and 2g + 1 in each */
                ldmatrix_x4_trans(b, v_at[c % 4] + here + c / 4 * 128);
                #pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const uint32_t pick = j % 2 ? 0x7531 : 0x6420, codes = __byte_perm(b[j / 2 * 2], b[j / 2 * 2 + 1], pick);
                    const uint32_t halves[2] = { f16x2_of(codes), f16x2_of(codes >> 16) };
                    mma_m16n8k16(out[4 * c + j], p, halves, (const F *)0);
                }
            }
#else
            #pragma unroll
            for (int c = 0; c < DIM / 16; ++c) {
                uint32_t b[4];
                ldmatrix_x4_trans(b, v_at[c % 4] + here + c / 4 * 128);
                mma_m16n8k16(out[2 * c], p, b, (const F *)0);
                mma_m16n8k16(out[2 * c + 1], p, b + 2, (const F *)0);
            }
#endif
            __syncwarp();                                                   /* and all lanes are done with it */
            const int next = step + STAGES;
            if (next < w.steps) {
                if (next % 2 == 0) {
                    where      = rows_of(&a, &s, &w, next / 2, lane, page_after);
                    page_after = page_of(&a, &s, &w, next / 2 + 1, lane);
                }
                copy_step(&a, &w, &where, next, ring + here, lane);
            }
            cp_async_commit();
            slot = slot + 1 == STAGES ? 0 : slot + 1;
        }
        cp_async_wait(0);
        __syncwarp();

        /* Sums to shared memory; then each thread takes 8 columns of a row, over all warps that have a share in it. */
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = g + 8 * i;
            sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
            sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
            if (t == 0) warp_most[warp][row] = most[i], warp_total[warp][row] = sum[i];
            if (row < rows) {
#if EIGHT                                                                       /* even and odd columns of 16 were multiplied apart */
                #pragma unroll
                for (int c = 0; c < DIM / 16; ++c)
                    *(float4 *)&sums[row * SUM_ROW + 16 * c + 4 * t] = make_float4(out[2 * c][2 * i], out[2 * c + 1][2 * i], out[2 * c][2 * i + 1], out[2 * c + 1][2 * i + 1]);
#else
                #pragma unroll
                for (int c = 0; c < DIM / 8; ++c) *(float2 *)&sums[row * SUM_ROW + 8 * c + 2 * t] = make_float2(out[c][2 * i], out[c][2 * i + 1]);
#endif
            }
        }
        __syncthreads();
        const bool whole = from == 0 && to == granules;
        const int  part  = 2 * (int)blockIdx.x + (from == 0);
        for (int i = (int)threadIdx.x; i < d.head_warps * rows * (DIM / 8); i += THREADS) {
            const int column = i % (DIM / 8) * 8, row = i / (DIM / 8) % rows, head = i / (DIM / 8) / rows;
            if (column >= a.dim) continue;
            float all_most = -INF, all_sum = 0, total[8] = { 0, 0, 0, 0, 0, 0, 0, 0 };
            for (int k = 0; k < d.key_warps; ++k) all_most = fmaxf(all_most, warp_most[k * d.head_warps + head][row]);
            for (int k = 0; k < d.key_warps; ++k) {
                const int     from_warp = k * d.head_warps + head;
                const float   weight    = warp_most[from_warp][row] == -INF ? 0 : exp2_approx(warp_most[from_warp][row] - all_most);
                const float4 *source    = (const float4 *)((const float *)(memory + from_warp * RING) + row * SUM_ROW + column);
                const float4  x = source[0], y = source[1];
                if (weight == 0) continue;
                all_sum += weight * warp_total[from_warp][row];
                total[0] += weight * x.x, total[1] += weight * x.y, total[2] += weight * x.z, total[3] += weight * x.w;
                total[4] += weight * y.x, total[5] += weight * y.y, total[6] += weight * y.z, total[7] += weight * y.w;
            }
            const int query = row / a.group, h = (unit * d.head_warps + head) * a.group + row % a.group;
            if (whole && a.sinks && all_sum != 0) {
                const float sink = sink_of(&a, h) * LOG2_E, more = fmaxf(all_most, sink), shrink = exp2_approx(all_most - more);
                #pragma unroll
                for (int e = 0; e < 8; ++e) total[e] *= shrink;
                all_sum  = all_sum * shrink + exp2_approx(sink - more);
                all_most = more;
            }
            const float inverse = all_sum == 0 ? 0 : value_scale(&a, n, unit * d.head_warps + head) / all_sum, lse = (all_most + log2f(all_sum)) * 0.6931471805599453f;
            #pragma unroll
            for (int e = 0; e < 8; ++e) total[e] *= inverse;
            if (whole) {
                R *target        = (R *)a.out + n * a.out_batch_stride + (s.q_begin + query) * a.out_row_stride + h * a.out_head_stride + column;
                *(uint4 *)target = pack16(total, (const R *)0);
                if (column == 0 && a.softmax_lse)
                    a.softmax_lse[n * a.lse_batch_stride + h * a.lse_head_stride + s.q_begin + query] = all_sum == 0 ? a.empty_lse : lse;
            } else {
                const int64_t place  = ((int64_t)part * d.head_warps + head) * d.rows + row;
                float4       *target = (float4 *)(d.partial_out + place * a.dim + column);
                target[0]            = make_float4(total[0], total[1], total[2], total[3]);
                target[1]            = make_float4(total[4], total[5], total[6], total[7]);
                if (column == 0) d.partial_lse[place] = all_sum == 0 ? -INF : lse;
            }
        }
        __syncthreads();                                                    /* the rings may be filled again */
        at += to - from;
    }
}
