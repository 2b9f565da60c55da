/*
 * Attention of few queries over many keys, f16 and bf16, on the matrix units of sm_80 and later: bound by reading k and v. The work is dealt
 * out as attention_decode.h says, so that every block reads as many bytes whatever the lengths are. A lone sequence is read by clusters instead,
 * one for each unit, whose blocks take steps in turn and put their sums together in shared memory.
 *
 * A warp has one key head and, where key_warps > 1, a share of the keys: 16 at a time, through a ring of its own in shared memory, which it
 * fills with cp.async and no other warp touches. No barrier is met but at the end of a unit.
 *
 *     moved        each key and value once
 *     operations   4 * ROWS * DIM a key and head, of which rows / ROWS are of use
 *
 *   T       f16, bf16 or e4m3; e4m3 is multiplied as f16, which holds it exactly, and out is then bf16
 *   DIM     head sizes up to here: 64, 128 or 256; smaller ones are filled up with zeros
 *   EIGHT   1 where T is e4m3
 *   WARPS   in a block
 *   STAGES  steps of 16 keys in a warp's ring
 *   ROWS    8 or 16: most rows of a sequence
 *   PLAIN   1, 2: one query a sequence sees all keys, which lie in pages whose size is a power of two, and head sizes are DIM; 2: and a lone sequence,
 *           read by clusters. What the call does not ask for is then no code: a cold start takes as long as its instructions
 *   PARTS   1: blocks take parts of units that are cut at places of their own, whatever else is in the batch; more than ROWS rows are several units
 *
 * Both products are transposed, so that keys and values are the 16 rows of a matrix instruction and the call's rows its 8 columns: scores are
 * k q', sums v' p', and p' is found by turning the scores' 8x8 blocks.
 *
 * Shared memory: a ring for each warp, [STAGES] of k [16][DIM] and v [16][DIM], 16-byte pieces swizzled so that the 8 rows of an ldmatrix touch
 * all banks. At the end of a unit the ring holds the warp's f32 sums. Behind the rings lies q, where it is not in registers, or what the blocks of a
 * cluster have of the columns that this one puts together: [blocks][ROWS][DIM / blocks].
 */
#include "attention_decode.h"
#include "attention_score.cuh"
#include "cluster_push.cuh"
#include "cp_async.cuh"
#include "l2_policy.cuh"
#include "launch.cuh"
#include "math.cuh"
#include "mma.cuh"

#define THREADS      (32 * WARPS)
#define WIDE         (16 / (int)sizeof(T))            /* elements of a 16-byte piece */
#define PIECES       (DIM / WIDE)                 /* in a row */
#define ROW_BYTES    (16 * PIECES)
#define HALF         (16 * ROW_BYTES)             /* bytes of a step's keys, and of its values */
#define RING         (STAGES * 2 * HALF)
#define HOLD_Q       (DIM <= 128 || ROWS == 8)    /* q stays in registers; else behind the rings, [head_warps][16][DIM] */
#define SUM_ROW      (DIM + 4)
#define SWIZZLE(row) (PIECES == 4 ? (row) >> 1 & 3 : (row) & 7)
#define BLOCKS       (ROWS / 8)                   /* of rows: columns of a matrix instruction */
#define JOINS        (__CUDA_ARCH__ == 900 && HOLD_Q && PLAIN != 1 && !PARTS)
#define MOST_JOINED  8                            /* blocks of a cluster */
#define LATE         (EIGHT ? 8 : 2)              /* weights may be up to 2^LATE before their base moves: the largest is 1 otherwise, which rounding leaves as it is */

#if EIGHT
struct e4m3 { uint8_t code; };
typedef f16  F;                                 /* of products */
typedef bf16 R;                                 /* of results */
#else
typedef T F, R;
#endif

/* Of loops written out, because more take more registers: copies, and products of a step's scores. */
enum { COPIES = HOLD_Q ? 16 : 4,
       CHAIN = HOLD_Q ? DIM / 16 : 4,
       COPY_ROWS = 32 / PIECES };               /* rows that a copy of one piece a lane has */

/* Row r of a sequence: its query, and the head of its group. */
#if PLAIN
#define QUERY(r) 0
#define UNDER(r) (r)
#else
#define QUERY(r) ((row0 + (r)) / a.group)
#define UNDER(r) ((row0 + (r)) % a.group)
#endif

extern __shared__ __align__(128) unsigned char memory[];

/* SWIZZLE(x) ^ SWIZZLE(y) is SWIZZLE(x + y) where x is a multiple of COPY_ROWS and y below it. */
DEVICE uint32_t piece_at(uint32_t base, int row, int piece) { return base + row * ROW_BYTES + ((piece ^ SWIZZLE(row)) << 4); }

#if PARTS
DEVICE int size_of(const attention_decode_args *d, int n) { return attention_decode_chunks_of(d, n); }
#else
DEVICE int size_of(const attention_decode_args *d, int n) { return attention_decode_granules_of(d, n); }
#endif

/* This block's first sequence, and the granules (of parts: chunks) before it. Returns all granules. */
DEVICE int find_begin(const attention_decode_args *d, int *first, int *before)
{
    if (d->a.batch == 1) {
        *first = *before = 0;
        return size_of(d, 0);
    }
    __shared__ int32_t warp_sum[WARPS], found[2];
    const int          each = (d->a.batch + THREADS - 1) / THREADS, t = (int)threadIdx.x, lane = t % 32;
    const int          from = min(t * each, d->a.batch), to = min(from + each, d->a.batch);
    int                mine = 0;
    for (int n = from; n < to; ++n) mine += size_of(d, n);
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
            for (int size = size_of(d, n); begin >= here + size; size = size_of(d, n)) here += size, ++n;
        found[0] = n, found[1] = here;
    }
    __syncthreads();
    *first  = found[0];
    *before = found[1];
    return all;
}

/* ---- a warp's share of one unit ---------------------------------------------------------------------------------------- */

#if EIGHT
/* Four e4m3: the first two, the last two. */
DEVICE void widen(uint32_t codes, uint32_t *low, uint32_t *high)
{
    asm("{\n.reg .b16 a, b;\nmov.b32 {a, b}, %2;\ncvt.rn.f16x2.e4m3x2 %0, a;\ncvt.rn.f16x2.e4m3x2 %1, b;\n}" : "=r"(*low), "=r"(*high) : "r"(codes));
}
DEVICE float score_scale(const attention_args *a, int n, int h) { return attention_score_scale(a, n, h); }
DEVICE float value_scale(const attention_args *a, int n, int h) { return attention_value_scale(a, n, h); }
#else
DEVICE float score_scale(const attention_args *a, int, int) { return a->scale; }
DEVICE float value_scale(const attention_args *, int, int) { return 1; }
#endif

struct share {
    const unsigned char *k, *v;                 /* of this key head: the piece of 16 bytes in a row that this lane copies */
    int                  n, leftpad, k_begin;
    int                  first, stride, end;    /* step i has the keys first + i * stride + 0 .. 15, of them those before end */
    int                  steps;
};

struct key_place { int page, row; };            /* page below 0: nowhere */
struct rows_of_keys { uint32_t k, v, inside; }; /* pieces of 16 bytes from k and v; which lanes have a key */

/* Lanes look up the keys of two steps, 2 * pair and 2 * pair + 1: the page is asked for early and used when it has come. */
DEVICE bool has_key(const share *w, int pair, int lane, int *key)
{
    *key = w->first + (2 * pair + lane / 16) * w->stride + lane % 16;
    return 2 * pair + lane / 16 < w->steps && *key < w->end;
}
DEVICE key_place place_of(const attention_decode_args *d, const share *w, int pair, int lane)
{
    const attention_args *a = &d->a;
    int                   key;
    if (!has_key(w, pair, lane, &key)) return { -1, 0 };
    const int slot = w->leftpad + key;
    if (PLAIN || a->page_size) {
        const int page = PLAIN || d->page_shift >= 0 ? slot >> d->page_shift : slot / a->page_size;
        return { a->page_table[w->n * a->page_table_stride + page], slot - page * a->page_size };
    }
    return { a->cu_seqlens_k ? 0 : a->kv_batch_idx ? a->kv_batch_idx[w->n]
                                                   : w->n,
             w->k_begin + slot };
}
DEVICE rows_of_keys rows_of(const attention_decode_args *d, const share *w, int pair, int lane, const key_place *p)
{
    int        key;
    const bool inside = has_key(w, pair, lane, &key) && p->page >= 0 && p->page < d->a.kv_batches;
    return { inside ? p->page * d->k_batch + p->row * d->k_row : 0, inside ? p->page * d->v_batch + p->row * d->v_row : 0, __ballot_sync(~0u, inside) };
}

/* Keys and values are read once: their lines leave the second-level cache before those of what is read in every call. Not where the loop over rows is
 * a loop: for a copy with a policy whose place in shared memory is then partly in a uniform register, ptxas 12.9 assigns no register and takes UR0 and UR1,
 * which is no instruction. */
#define READ_ONCE (__CUDA_ARCH__ == 900 && HOLD_Q)
DEVICE uint64_t read_once(void) { return READ_ONCE ? l2_evict_first() : 0; }
DEVICE void copy16(uint32_t to, const void *from, bool inside, uint64_t policy)
{
#if READ_ONCE
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(__cvta_generic_to_global(from)), "r"(inside ? 16 : 0), "l"(policy) : "memory");
#else
    cp_async16(to, from, inside);
#endif
}

template <bool WHOLE>
DEVICE void copy_rows(const share *w, uint64_t policy, const rows_of_keys *at, int odd, uint32_t to, int lane, bool piece_inside)
{
    #pragma unroll
    for (int half = 0; half < 2; ++half) {
        #pragma unroll COPIES
        for (int i = 0; i < 16 / COPY_ROWS; ++i) {
            const int            row  = i * COPY_ROWS + lane / PIECES;
            const uint32_t       o    = __shfl_sync(~0u, half ? at->v : at->k, 16 * odd + row);
            const unsigned char *from = (half ? w->v : w->k) + (uint64_t)o * 16;
            copy16((to ^ (SWIZZLE(i * COPY_ROWS) << 4)) + half * HALF + i * COPY_ROWS * ROW_BYTES, from, WHOLE || (piece_inside && (at->inside >> (16 * odd + row) & 1)), policy);
        }
    }
}

/* A step's keys and values to a place of the ring; `to` is where this lane's first piece lies. */
DEVICE void copy_step(const attention_args *a, const share *w, uint64_t policy, const rows_of_keys *at, int step, uint32_t to, int lane)
{
    const int odd = step & 1;
    if (HOLD_Q && a->dim == DIM && (at->inside >> 16 * odd & 0xffff) == 0xffff) copy_rows<true>(w, policy, at, odd, to, lane, true);
    else copy_rows<false>(w, policy, at, odd, to, lane, lane % PIECES * WIDE < a->dim);
}

/* Lines of the arguments, all asked for at once: a cold start meets them one behind another otherwise. */
DEVICE void ask_for(const attention_decode_args *given, int warp)
{
    enum { WORDS = 16,
           LINES = (sizeof *given + 4 * WORDS - 1) / (4 * WORDS) };
    uint32_t seen = 0;
    #pragma unroll
    for (int i = 0; i < LINES; i += WARPS)
        if (i + warp < LINES) seen ^= ((const uint32_t *)given)[WORDS * (i + warp)];
    asm volatile("{\n.reg .pred p;\nsetp.eq.u32 p, %0, 0x7ffffff1;\n@p nanosleep.u32 1;\n}" ::"r"(seen));      /* a use, lest they are left out */
}

/* To the second-level cache. */
DEVICE void prefetch(const void *p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(p))); }

/* An 8x8 block of 16-bit elements whose row g and columns 2t and 2t + 1 this lane has, transposed. */
DEVICE uint32_t transposed(uint32_t x)
{
    uint32_t r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(x));
    return r;
}

extern "C" __global__ __launch_bounds__(THREADS, DIM > 128 || WARPS > (PARTS && ROWS == 8 ? 8 : 4) ? 1 : 2) void attention_decode(const __grid_constant__ attention_decode_args given)
{
#if PARTS
    attention_decode_args d = given;                                            /* as it is for parts */
    d.key_warps = WARPS, d.head_warps = 1;
#elif PLAIN
    attention_decode_args d = given;                                            /* as it was found to be on the host */
    d.a.max_q = 1, d.a.dim = d.a.dim_v = DIM, d.a.seqused_q = d.a.cu_seqlens_k = d.a.cu_seqlens_k_new = d.a.kv_batch_idx = d.a.leftpad_k = NULL;
    d.a.max_new = d.a.apart = d.a.chunk = d.a.top_left = 0, d.a.window_left = ATTENTION_NO_LIMIT, d.a.window_right = 0, d.a.softcap = 0;
    if (PLAIN == 2) d.a.batch = 1, d.key_warps = WARPS, d.head_warps = 1;
    d.a.page_size = 1 << d.page_shift;
#else
    const attention_decode_args &d = given;
#endif
    __shared__ float warp_most[WARPS][ROWS], warp_total[WARPS][ROWS];
#if JOINS
    __shared__ float2   block_sum[MOST_JOINED][ROWS];                           /* most and total */
    __shared__ uint64_t sums_come;
    const bool          join = PLAIN == 2 || d.join > 1;
    const int           rank = (int)cluster_rank(), cluster = (int)blockIdx.x * 16 * WARPS >> d.join_shift, width = DIM * 16 * WARPS >> d.join_shift;      /* columns of a block */
#else
    const bool join    = false;
    const int  cluster = 0;
#endif

    const attention_args &a    = d.a;
    const int             warp = __shfl_sync(~0u, (int)threadIdx.x / 32, 0), lane = (int)threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int             head_warp = warp % d.head_warps, key_warp = warp / d.head_warps;
    const uint32_t        ring   = shared_address(memory) + warp * RING;
    const uint32_t        to     = piece_at(ring, lane / PIECES, lane % PIECES);
    float                *sums   = (float *)(memory + warp * RING);
    const bool            capped = a.softcap != 0;

#if __CUDA_ARCH__ == 900
    ask_for(&given, warp);
#endif
    const uint64_t policy = read_once();
    pdl_wait();
    int       n = 0, before = 0, at = 0, end = 1, guess = -1;
    share     w;
    key_place place, place_after;
    bool      ahead = false;                                                    /* the first pages are asked for before lengths are known */
#if JOINS
    if (join) {
        pdl_release();
        if (threadIdx.x == 0) {
            mbarrier_init(shared_address(&sums_come), 1), mbarrier_init_done();
            mbarrier_expect(shared_address(&sums_come), (uint32_t)(d.join * d.rows * (width * 4 + 8)));
        }
        __syncwarp();
        cluster_begin();
        ahead = (PLAIN || a.page_size) && !a.leftpad_k && a.window_left >= ATTENTION_NO_LIMIT && !a.chunk;
        if (ahead) {
            w     = { NULL, NULL, 0, 0, 0, 16 * (key_warp * d.join + rank), 16 * d.key_warps * d.join, a.max_k, 4 };
            place = place_of(&d, &w, 0, lane), place_after = place_of(&d, &w, 1, lane);
        }
        if (threadIdx.x < 2 * ROWS) prefetch((const T *)a.q + (cluster * a.group + (PLAIN ? min((int)threadIdx.x / 2, a.group - 1) : (int)threadIdx.x / 2 % a.group)) * a.q_head_stride + (int)threadIdx.x % 2 * (a.dim / 2));
    } else
#endif
    {
        if (a.batch > 1 && a.page_size) {                                       /* pages on their way to L2 before lengths are known */
            guess           = attention_decode_divided((uint64_t)blockIdx.x * (uint32_t)a.batch, (uint32_t)d.blocks);
            const int entry = 32 * (int)threadIdx.x;
            if ((int64_t)entry * a.page_size < a.max_k) prefetch(a.page_table + guess * a.page_table_stride + entry);
#if PLAIN
            w     = { NULL, NULL, guess, 0, 0, 16 * key_warp, 16 * d.key_warps, a.max_k, key_warp < d.key_warps ? 4 : 0 };      /* and the first ones to registers */
            place = place_of(&d, &w, 0, lane), place_after = place_of(&d, &w, 1, lane);
#endif
        }
        const int all = find_begin(&d, &n, &before);
        end           = attention_decode_begin(&d, all, (int)blockIdx.x + 1);
        at            = attention_decode_begin(&d, all, (int)blockIdx.x);
        pdl_release();
    }

    /* Where this lane's line of the first ldmatrix lies, and of the one c further. */
    #define AT(base, c) (((base) ^ ((c) % 4 << 5)) + (c) / 4 * 128)
    const int      matrix = lane / 8, line = lane % 8;
    const uint32_t k_at = piece_at(ring, (matrix & 1) * 8 + line, matrix >> 1), v_at = piece_at(ring + HALF, (matrix >> 1) * 8 + line, matrix & 1);
#if !HOLD_Q
    const uint32_t q_at = piece_at(shared_address(memory) + WARPS * RING + head_warp * HALF, (matrix >> 1) * 8 + line, matrix & 1);
#endif

    while (at < end) {
#if PARTS
        const attention_sequence   s        = attention_own_sequence(&a, n);
        const attention_decode_cut cut      = attention_decode_cut_of(&d, &s);
        const int                  granules = attention_decode_granules(&d, &s), parts = d.units * cut.blocks * cut.parts, part = (at - before + cut.each - 1) / cut.each;
        if (part >= parts) {
            at = before += parts * cut.each, ++n;
            continue;
        }
        if (before + part * cut.each >= end) break;
        static_assert(ROWS <= ATTENTION_DECODE_ROWS, "units are counted in so many rows; with fewer there is one");
        const int chunk = ATTENTION_DECODE_CHUNK / (16 * WARPS), unit = part / cut.blocks / cut.parts, from = part / cut.blocks % cut.parts * cut.each * chunk;
        const int to_granule = min(granules, from + cut.each * chunk), row0 = part % cut.blocks * ROWS, rows = min(ROWS, s.sq * a.group - row0);
#else
        const int                row0     = 0;
        const attention_sequence s        = attention_sequence_of(&a, n);
        const int                granules = join ? 1 : attention_decode_granules(&d, &s);
#if JOINS
        if (join && s.sq <= 0) {
            cluster_await();
            break;
        }
#endif
        if (!join && at >= before + d.units * granules) {
            before += d.units * granules, ++n;
            continue;
        }
        const int unit = join ? cluster : (at - before) / granules, from = join ? 0 : at - before - unit * granules;
        const int to_granule = join ? 1 : min(granules, from + end - at), rows = s.sq * a.group;
#endif
        const int            kv_head = unit * d.head_warps + head_warp;
        const attention_keys keys    = attention_decode_keys(&a, &s);
        const int            each    = 16 * d.key_warps;
        w                            = { (const unsigned char *)((const T *)a.k + kv_head * a.k_head_stride) + lane % PIECES * 16, (const unsigned char *)((const T *)a.v + kv_head * a.v_head_stride) + lane % PIECES * 16,
                                         n, s.leftpad, s.k_begin, keys.begin + from * each + 16 * key_warp, each, keys.end, key_warp < d.key_warps ? to_granule - from : 0 };
#if JOINS
        if (join) {
            w.first  = keys.begin + 16 * (key_warp * d.join + rank);
            w.stride = each * d.join;
            w.steps  = w.first < w.end ? (w.end - w.first + w.stride - 1) >> d.join_shift : 0;
        }
#endif
        if (PLAIN == 1) ahead = n == guess && from == 0;
        guess = -1;
        if (!ahead) place = place_of(&d, &w, 0, lane), place_after = place_of(&d, &w, 1, lane);

        /* The ring is filled first. Groups of copies are counted, so an empty one is closed where no step is left. */
        rows_of_keys where = rows_of(&d, &w, 0, lane, &place);
        place              = place_after;
        #pragma unroll 1
        for (int i = 0; i < STAGES; ++i) {
            if (i > 0 && i % 2 == 0) {
                where = rows_of(&d, &w, i / 2, lane, &place);
                place = place_of(&d, &w, i / 2 + 1, lane);
            }
            if (i < w.steps) copy_step(&a, &w, policy, &where, i, to + i * 2 * HALF, lane);
            cp_async_commit();
        }

#if HOLD_Q
        uint32_t held[DIM / 16][BLOCKS][2];
        #pragma unroll
        for (int b = 0; b < BLOCKS; ++b) {
            const int r      = g + 8 * b;
            const T  *source = (const T *)a.q + n * a.q_batch_stride + (s.q_begin + QUERY(r)) * a.q_row_stride + (kv_head * a.group + UNDER(r)) * a.q_head_stride;
#if EIGHT
            uint32_t codes[DIM / 16];
            #pragma unroll
            for (int c = 0; c < DIM / 16; ++c) {
                const int column = 16 * c + 4 * t;
                codes[c]         = r < rows && column < a.dim ? *(const uint32_t *)(source + column) : 0;
            }
            #pragma unroll
            for (int c = 0; c < DIM / 16; ++c) widen(codes[c], &held[c][b][0], &held[c][b][1]);
#else
            #pragma unroll
            for (int c = 0; c < DIM / 8; ++c) {
                const int column      = 8 * c + 2 * t;
                held[c / 2][b][c % 2] = r < rows && column < a.dim ? *(const uint32_t *)(source + column) : 0;
            }
#endif
        }
#else
        for (int i = (int)threadIdx.x; i < d.head_warps * 16 * PIECES; i += THREADS) {
            const int  piece = i % PIECES, r = i / PIECES % 16, h = (unit * d.head_warps + i / PIECES / 16) * a.group + UNDER(r);
            const T   *source                                                  = (const T *)a.q + n * a.q_batch_stride + (s.q_begin + QUERY(r)) * a.q_row_stride + h * a.q_head_stride + WIDE * piece;
            const bool inside                                                  = r < rows && WIDE * piece < a.dim;
            *(uint4 *)(memory + WARPS * RING + piece_at(0, i / PIECES, piece)) = inside ? *(const uint4 *)source : make_uint4(0, 0, 0, 0);
        }
        __syncthreads();
#endif
        const float scale = capped ? score_scale(&a, n, kv_head) : score_scale(&a, n, kv_head) * LOG2_E;      /* scores in powers of two, in the end */

        /* Keys between these two are seen by all queries. */
        const int low = attention_keys_of(&a, &s, s.sq - 1).begin, high = attention_keys_of(&a, &s, 0).end;

        float out[DIM / 16][BLOCKS][4], most[BLOCKS][2], sum[BLOCKS][2];
        #pragma unroll
        for (int b = 0; b < BLOCKS; ++b) {
            most[b][0] = most[b][1] = -INF, sum[b][0] = sum[b][1] = 0;
            #pragma unroll
            for (int c = 0; c < DIM / 16; ++c) out[c][b][0] = out[c][b][1] = out[c][b][2] = out[c][b][3] = 0;
        }

        int slot = 0;
        for (int step = 0; step < w.steps; ++step) {
            const uint32_t here = slot * 2 * HALF;
            cp_async_wait(STAGES - 1);
            __syncwarp();                                                   /* this step is there */
            float score[BLOCKS][4], other[BLOCKS][4];                       /* two chains of products, one where registers are short */
            #pragma unroll
            for (int b = 0; b < BLOCKS; ++b)
                #pragma unroll
                for (int e = 0; e < 4; ++e) score[b][e] = other[b][e] = 0;
#if EIGHT
            #pragma unroll
            for (int c = 0; c < DIM / 32; ++c) {
                uint32_t k[4];
                ldmatrix_x4(k, AT(k_at + here, c));
                #pragma unroll
                for (int j = 0; j < 2; ++j) {
                    uint32_t wide[4];
                    widen(k[2 * j], &wide[0], &wide[2]), widen(k[2 * j + 1], &wide[1], &wide[3]);
                    #pragma unroll
                    for (int b = 0; b < BLOCKS; ++b) mma_m16n8k16(j ? other[b] : score[b], wide, held[2 * c + j][b], (const F *)0);
                }
            }
#else
            #pragma unroll CHAIN
            for (int c = 0; c < DIM / 16; ++c) {
                uint32_t k[4];
                ldmatrix_x4(k, AT(k_at + here, c));
#if HOLD_Q
                #pragma unroll
                for (int b = 0; b < BLOCKS; ++b) mma_m16n8k16(c % 2 ? other[b] : score[b], k, held[c][b], (const F *)0);
#else
                uint32_t q[4];
                ldmatrix_x4(q, AT(q_at, c));
                #pragma unroll
                for (int b = 0; b < BLOCKS; ++b) mma_m16n8k16(score[b], k, q + 2 * b, (const F *)0);
#endif
            }
#endif
            const int first = w.first + step * w.stride;
            bool      moves = false;
            #pragma unroll
            for (int b = 0; b < BLOCKS; ++b)
                #pragma unroll
                for (int e = 0; e < 4; ++e) score[b][e] = (HOLD_Q ? score[b][e] + other[b][e] : score[b][e]) * scale;
            if (capped) {
                #pragma unroll
                for (int b = 0; b < BLOCKS; ++b)
                    #pragma unroll
                    for (int e = 0; e < 4; ++e) score[b][e] = soft_capped(score[b][e], a.softcap) * LOG2_E;
            }
            if (first < low || first + 16 > high) {
                #pragma unroll
                for (int b = 0; b < BLOCKS; ++b)
                    #pragma unroll
                    for (int i = 0; i < 2; ++i) {           /* rows of nobody see as much as the last query */
                        const attention_keys sees = attention_keys_of(&a, &s, QUERY(min(8 * b + 2 * t + i, rows - 1)));
                        if (first + g < sees.begin || first + g >= sees.end) score[b][i] = -INF;
                        if (first + 8 + g < sees.begin || first + 8 + g >= sees.end) score[b][2 + i] = -INF;
                    }
            }
            #pragma unroll
            for (int b = 0; b < BLOCKS; ++b)
                #pragma unroll
                for (int i = 0; i < 2; ++i) moves |= fmaxf(score[b][i], score[b][2 + i]) > most[b][i] + LATE;
            if (__any_sync(~0u, moves)) {
                #pragma unroll
                for (int b = 0; b < BLOCKS; ++b)
                    #pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        float now = fmaxf(most[b][i], fmaxf(score[b][i], score[b][2 + i]));
                        #pragma unroll
                        for (int x = 4; x < 32; x *= 2) now = fmaxf(now, __shfl_xor_sync(~0u, now, x));
                        const float alpha = now == -INF ? 1 : exp2_approx(most[b][i] - now);
                        most[b][i]        = now;
                        sum[b][i] *= alpha;
                        #pragma unroll
                        for (int c = 0; c < DIM / 16; ++c) out[c][b][i] *= alpha, out[c][b][2 + i] *= alpha;
                    }
            }
            uint32_t p[BLOCKS][2];
            #pragma unroll
            for (int b = 0; b < BLOCKS; ++b) {
                #pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const float base = most[b][e & 1] == -INF ? 0 : most[b][e & 1];         /* no key seen so far: -inf - -inf is no number */
                    score[b][e]      = exp2_approx(score[b][e] - base);
                    sum[b][e & 1] += score[b][e];
                }
                p[b][0] = transposed(pack2(score[b][0], score[b][1], (const F *)0));
                p[b][1] = transposed(pack2(score[b][2], score[b][3], (const F *)0));
            }
#if EIGHT
            #pragma unroll
            for (int c = 0; c < DIM / 32; ++c) {
                uint32_t v[4];                                              /* two keys' codes of columns 2g and 2g + 1 in each */
                ldmatrix_x4_trans(v, AT(v_at + here, c));
                #pragma unroll
                for (int j = 0; j < 2; ++j) {
                    uint32_t wide[4];
                    widen(__byte_perm(v[j], v[j + 2], 0x6420), &wide[0], &wide[2]), widen(__byte_perm(v[j], v[j + 2], 0x7531), &wide[1], &wide[3]);
                    #pragma unroll
                    for (int b = 0; b < BLOCKS; ++b) mma_m16n8k16(out[2 * c + j][b], wide, p[b], (const F *)0);
                }
            }
#else
            #pragma unroll
            for (int c = 0; c < DIM / 16; ++c) {
                uint32_t v[4];
                ldmatrix_x4_trans(v, AT(v_at + here, c));
                #pragma unroll
                for (int b = 0; b < BLOCKS; ++b) mma_m16n8k16(out[c][b], v, p[b], (const F *)0);
            }
#endif
            __syncwarp();                                                   /* and all lanes are done with it */
            const int next = step + STAGES;
            if (next < w.steps) {
                if (next % 2 == 0) {
                    where = rows_of(&d, &w, next / 2, lane, &place);
                    place = place_of(&d, &w, next / 2 + 1, lane);       /* no copy of what is on its way: that would wait for it */
                }
                copy_step(&a, &w, policy, &where, next, to + here, lane);
            }
            cp_async_commit();
            slot = slot + 1 == STAGES ? 0 : slot + 1;
        }
        cp_async_wait(0);
        __syncwarp();

        /* Sums to shared memory; then each thread takes 8 columns of a row, over all warps that have a share in it. */
        #pragma unroll
        for (int b = 0; b < BLOCKS; ++b)
            #pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int row = 8 * b + 2 * t + i;
                #pragma unroll
                for (int x = 4; x < 32; x *= 2) sum[b][i] += __shfl_xor_sync(~0u, sum[b][i], x);
                if (g == 0) warp_most[warp][row] = most[b][i], warp_total[warp][row] = sum[b][i];
                if (row < rows) {
                    #pragma unroll
                    for (int c = 0; c < DIM / 16; ++c) {
#if EIGHT                                                                       /* rows of the product are even columns, then odd ones */
                        *(float2 *)&sums[row * SUM_ROW + 16 * c + 2 * g] = make_float2(out[c][b][i], out[c][b][2 + i]);
#else
                        sums[row * SUM_ROW + 16 * c + g] = out[c][b][i], sums[row * SUM_ROW + 16 * c + 8 + g] = out[c][b][2 + i];
#endif
                    }
                }
            }
        __syncthreads();
        const bool whole = from == 0 && to_granule == granules;
#if PARTS
        const int64_t place_of_unit = (int64_t)n * d.slots + part;
#else
        const int64_t place_of_unit = 2 * (int)blockIdx.x + (from == 0);
#endif
#if JOINS
        if (join) {
            /* To the block of the cluster that puts these columns together. */
            const float   *here    = (const float *)(memory + WARPS * RING);
            const uint32_t barrier = shared_address(&sums_come);
            cluster_await();
            for (int i = (int)threadIdx.x; i < d.rows * (DIM / 4); i += THREADS) {
                const int column = i % (DIM / 4) * 4, row = i / (DIM / 4);
                float     all_most = -INF, all_sum = 0;
                float4    total = make_float4(0, 0, 0, 0);
                #pragma unroll
                for (int k = 0; k < WARPS; ++k) all_most = fmaxf(all_most, warp_most[k][row]);
                #pragma unroll
                for (int k = 0; k < WARPS; ++k) {
                    const float  weight = warp_most[k][row] == -INF ? 0 : exp2_approx(warp_most[k][row] - all_most);
                    const float4 x      = *(const float4 *)((const float *)(memory + k * RING) + row * SUM_ROW + column);
                    if (weight == 0) continue;
                    all_sum += weight * warp_total[k][row];
                    total.x += weight * x.x, total.y += weight * x.y, total.z += weight * x.z, total.w += weight * x.w;
                }
                cluster_push4(shared_address(here + (rank * ROWS + row) * width + (column & (width - 1))), barrier, column * d.join / DIM, total);
                if (column / 4 < d.join) cluster_push2(shared_address(&block_sum[rank][row]), barrier, column / 4, all_most, all_sum);
            }
            mbarrier_wait(barrier, 0);
            for (int i = (int)threadIdx.x; i < rows * width / 2; i += THREADS) {
                const int row = 2 * i / width, column = 2 * i & (width - 1), query = QUERY(row), h = unit * a.group + UNDER(row);
                float     all_most = -INF, all_sum = 0;
                float2    total = make_float2(0, 0);
                #pragma unroll 8
                for (int z = 0; z < d.join; ++z) all_most = fmaxf(all_most, block_sum[z][row].x);
                #pragma unroll 8
                for (int z = 0; z < d.join; ++z) {
                    const float  weight = block_sum[z][row].x == -INF ? 0 : exp2_approx(block_sum[z][row].x - all_most);
                    const float2 x      = *(const float2 *)(here + (z * ROWS + row) * width + column);
                    if (weight == 0) continue;
                    all_sum += weight * block_sum[z][row].y;
                    total.x += weight * x.x, total.y += weight * x.y;
                }
                float shrink = 1;
                if (a.sinks && all_sum != 0) {
                    const float sink = sink_of(&a, h) * LOG2_E, more = fmaxf(all_most, sink);
                    shrink   = exp2_approx(all_most - more);
                    all_sum  = all_sum * shrink + exp2_approx(sink - more);
                    all_most = more;
                }
                if (rank * width + column >= a.dim) continue;
                const float inverse = all_sum == 0 ? 0 : shrink * value_scale(&a, n, unit) / all_sum;
                R          *target  = (R *)a.out + n * a.out_batch_stride + (s.q_begin + query) * a.out_row_stride + h * a.out_head_stride + rank * width + column;
                *(uint32_t *)target = pack2(total.x * inverse, total.y * inverse, (const R *)0);
                if (rank == 0 && column == 0 && a.softmax_lse)
                    a.softmax_lse[n * a.lse_batch_stride + h * a.lse_head_stride + s.q_begin + query] = all_sum == 0 ? a.empty_lse : (all_most + log2f(all_sum)) * 0.6931471805599453f;
            }
            break;
        }
#endif
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
            const int query = QUERY(row), h = (unit * d.head_warps + head) * a.group + UNDER(row);
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
                const int64_t place_of_part = (place_of_unit * d.head_warps + head) * d.rows + row;
                float4       *target        = (float4 *)(d.partial_out + place_of_part * a.dim + column);
                target[0]                   = make_float4(total[0], total[1], total[2], total[3]);
                target[1]                   = make_float4(total[4], total[5], total[6], total[7]);
                if (column == 0) d.partial_lse[place_of_part] = all_sum == 0 ? -INF : lse;
            }
        }
        __syncthreads();                                                    /* the rings may be filled again */
#if PARTS
        at = before + (part + 1) * cut.each;
#else
        at += to_granule - from;
#endif
    }
}
