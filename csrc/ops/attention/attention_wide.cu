/*
 * Attention on the matrix units for what attention_mma.cu leaves out: head sizes up to 512, q_v, e4m3, rows that are not in 16-byte pieces.
 * Keys and values stream through shared memory in slabs of 64 rows by 64 columns, so that no head size needs more of it; the sums of a
 * row are spread over the registers of four warps.
 *
 *   T       f16 or bf16: what is multiplied; out is written in a.out_dtype
 *   CODE    1: q, k and v are e4m3, and become f16 on their way to shared memory, exactly
 *   SPARSE  1: attention_sparse. The keys of 64 queries are those that a list of blocks and columns names, in its order; a block is a tile,
 *         and rows are those of one query head
 *
 * A block takes 32 rows under one key head, and goes over its part of the keys in tiles of 64. Warp (m, n) of 2 x 4 has rows 16 m .. of
 * 32; of a tile's scores keys 16 n .., of each slab of values columns 16 n ... The softmax meets in shared memory:
 *
 *     q [slabs of q and q_v][32] | slab [2][64] | p [32]        in rows of 128 bytes whose 16-byte pieces are swizzled
 *
 * One slab is multiplied while the next is in flight to registers. A tile needs the slabs of k, with q_v those of v, and then those of v.
 */
#define TILE 64
#include "attention_sparse.h"
#include "attention_tile.cuh"
#include "cp_async.cuh"
#include "launch.cuh"
#include "mma.cuh"

#define THREADS    256
#define ROWS       32
#define SLAB_BYTES (TILE * 128)
#define MOST_SLABS 8                            /* 512 columns */

extern __shared__ __align__(128) unsigned char memory[];

DEVICE uint32_t piece_at(uint32_t base, int row, int piece) { return base + row * 128 + ((piece ^ (row & 7)) << 4); }

DEVICE void store_shared16(uint32_t to, uint4 x)
{
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}

DEVICE void store_shared4(uint32_t to, uint32_t x) { asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(x) : "memory"); }

#if CODE
typedef uint8_t element;
typedef uint2   piece8;                        /* eight elements as they lie */
#define ZERO8 make_uint2(0, 0)

/* Four codes as f16: the bits of a code are those of an f16 with a bias 8 larger, except NaN. */
DEVICE uint2 widened(uint32_t codes)
{
    uint32_t r[2];
    #pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint32_t lo = codes >> 16 * i & 0xff, hi = codes >> (16 * i + 8) & 0xff;
        const uint32_t pair = (lo & 0x80) << 8 | (lo & 0x7f) << 7 | (hi & 0x80) << 24 | (hi & 0x7f) << 23;
        asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r[i]) : "r"(pair), "r"(0x5c005c00));       /* 2^8 */
        if ((lo & 0x7f) == 0x7f) r[i] |= 0x7fff;
        if ((hi & 0x7f) == 0x7f) r[i] |= 0x7fff0000;
    }
    return make_uint2(r[0], r[1]);
}

DEVICE uint4 as_t(piece8 x)
{
    const uint2 lo = widened(x.x), hi = widened(x.y);
    return make_uint4(lo.x, lo.y, hi.x, hi.y);
}
#else
typedef uint16_t element;
typedef uint4    piece8;
#define ZERO8 make_uint4(0, 0, 0, 0)
DEVICE uint4 as_t(piece8 x) { return x; }
#endif

/* Eight elements at once, or one by one where they do not lie in a piece; zeros instead of all but the first `count`. */
DEVICE piece8 load8(const element *p, int count, bool pieces)
{
    if (pieces && count >= 8) return *(const piece8 *)p;
    union {
        element e[8];
        piece8  all;
    } x;
    #pragma unroll
    for (int i = 0; i < 8; ++i) x.e[i] = i < count ? p[i] : (element)0;
    return x.all;
}

DEVICE bool in_pieces(const void *p, int64_t x, int64_t y, int64_t z)
{
    return (((uint64_t)p | (uint64_t)(x | y | z) * sizeof(element)) & (8 * sizeof(element) - 1)) == 0;
}

/* This thread's two pieces of a slab that begins at `column`. */
DEVICE void fetch(piece8 x[2], const element *from, const int64_t *at, int column, int dim, bool pieces)
{
    #pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int row = (int)threadIdx.x / 8 + 32 * i, d = column + (int)threadIdx.x % 8 * 8;
        x[i] = at[row] != ATTENTION_NOWHERE && d < dim ? load8(from + at[row] + d, dim - d, pieces) : ZERO8;
    }
}

DEVICE void put(uint32_t slab, const piece8 x[2])
{
    #pragma unroll
    for (int i = 0; i < 2; ++i) store_shared16(piece_at(slab, (int)threadIdx.x / 8 + 32 * i, (int)threadIdx.x % 8), as_t(x[i]));
}

#if SPARSE
/* As tile_rows; key_of is the key, or one that nobody sees. */
DEVICE void listed_rows(const attention_sparse_args *x, const attention_sequence *s, int64_t list, int n, int h, int64_t *key_at, int64_t *value_at, int *key_of, int tile)
{
    if ((int)threadIdx.x >= TILE) return;
    const int           blocks = x->block_count[list] < x->nnz_s ? x->block_count[list] : x->nnz_s, columns = x->column_count[list] < x->nnz_v ? x->column_count[list] : x->nnz_v;
    const int           column = (tile - blocks) * TILE + (int)threadIdx.x;
    const int           key    = tile < blocks ? x->block_offset[list * x->nnz_s + tile] + (int)threadIdx.x : column < columns ? x->column_index[list * x->nnz_v + column]
                                                                                                                               : -1;
    const bool          inside = key >= 0 && key < s->sk;
    const attention_row r      = attention_row_of(&x->a, s, n, h / x->group, inside ? key : 0);
    key_at[threadIdx.x]        = inside ? r.k : ATTENTION_NOWHERE;
    value_at[threadIdx.x]      = inside && r.k != ATTENTION_NOWHERE ? r.v : ATTENTION_NOWHERE;
    key_of[threadIdx.x]        = inside ? key : 0x7fffffff;
}
#endif

#if SPARSE
extern "C" __global__ __launch_bounds__(THREADS, 1) void attention_sparse(const __grid_constant__ attention_sparse_args x)
{
    const attention_args &a = x.a;
    __shared__ int        key_of[2][TILE];
#else
extern "C" __global__ __launch_bounds__(THREADS, 1) void attention_wide(const __grid_constant__ attention_args a)
{
#endif
    __shared__ int64_t key_at[2][TILE], value_at[2][TILE];
    __shared__ float   warp_most[4][ROWS];

    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, m = warp & 1, wn = warp >> 1;
    const int g = lane / 4, t = lane % 4;                               /* as in mma.cuh */

    const tile_part part  = tile_part_of(&a, blockIdx.x);
    const int       split = part.split, kv_head = part.kv_head, n = part.n;

    pdl_wait();
    const attention_sequence s    = attention_own_sequence(&a, n);
    const int                rows = s.sq * a.group, row0 = part.row_block * ROWS;
    if (row0 >= rows) return;
#if SPARSE
    const int64_t        list  = ((int64_t)n * a.heads + kv_head) * x.row_blocks + row0 / 64;
    const attention_keys keys  = { 0, s.sk };
    const int            tiles = max(min(x.block_count[list], x.nnz_s), 0) + (max(min(x.column_count[list], x.nnz_v), 0) + TILE - 1) / TILE;
#else
    const int            row_end = row0 + ROWS < rows ? row0 + ROWS : rows;
    const attention_keys keys    = attention_part_of(&a, &s, row0 / a.group, (row_end - 1) / a.group, split);
    const int            tiles   = keys.end > keys.begin ? (keys.end - keys.begin + TILE - 1) / TILE : 0;
#endif

    const element *k = (const element *)a.k, *v = (const element *)a.v;
    const int      k_slabs = (a.dim + 63) / 64, v_slabs = (a.dim_v + 63) / 64, q_slabs = k_slabs + (a.q_v ? v_slabs : 0);
    const uint32_t q_base = shared_address(memory), slabs = q_base + q_slabs * (ROWS * 128), p_base = slabs + 2 * SLAB_BYTES;
    const bool     apart_in_pieces = !a.apart || (in_pieces(a.k_new, a.k_new_batch_stride, a.k_new_row_stride, a.k_new_head_stride) &&
                                                  in_pieces(a.v_new, a.v_new_batch_stride, a.v_new_row_stride, a.v_new_head_stride));
    const bool     k_pieces        = apart_in_pieces && in_pieces(a.k, a.k_batch_stride, a.k_row_stride, a.k_head_stride);
    const bool     v_pieces        = apart_in_pieces && in_pieces(a.v, a.v_batch_stride, a.v_row_stride, a.v_head_stride);

#if SPARSE
    listed_rows(&x, &s, list, n, kv_head, key_at[0], value_at[0], key_of[0], 0);
#else
    tile_rows(&a, &s, n, kv_head, key_at[0], value_at[0], tile_page(&a, &s, n, keys.begin, keys.end), keys.begin, keys.end);
#endif
    {
        const bool q_pieces = in_pieces(a.q, a.q_batch_stride, a.q_row_stride, a.q_head_stride), q_v_pieces = in_pieces(a.q_v, a.q_v_batch_stride, a.q_v_row_stride, a.q_v_head_stride);
        for (int i = (int)threadIdx.x; i < q_slabs * ROWS * 8; i += THREADS) {
            const int      slab = i / (ROWS * 8), row = i / 8 % ROWS, piece = i % 8, r = row0 + row;
            const bool     second = slab >= k_slabs;
            const int      d = (second ? slab - k_slabs : slab) * 64 + piece * 8, query = s.q_begin + r / a.group, h = kv_head * a.group + r % a.group;
            const int64_t  at   = second ? n * a.q_v_batch_stride + query * a.q_v_row_stride + h * a.q_v_head_stride : n * a.q_batch_stride + query * a.q_row_stride + h * a.q_head_stride;
            const element *from = (const element *)(second ? a.q_v : a.q);
            const piece8   x    = r < rows && d < (second ? a.dim_v : a.dim) ? load8(from + at + d, (second ? a.dim_v : a.dim) - d, second ? q_v_pieces : q_pieces) : ZERO8;
            store_shared16(piece_at(q_base + slab * (ROWS * 128), row, piece), as_t(x));
        }
    }
    __syncthreads();

    /* This thread's two rows, and the keys they see. */
    int least[2], behind[2];
    #pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int            r    = row0 + 16 * m + g + 8 * i;
        const attention_keys sees = attention_keys_of(&a, &s, r / a.group);
        least[i] = sees.begin, behind[i] = r >= rows ? 0 : sees.end < keys.end ? sees.end
                                                                               : keys.end;
    }
    const float scale = attention_score_scale(&a, n, kv_head);

    float out[MOST_SLABS][2][4], most[2] = { -INF, -INF }, sum[2] = { 0, 0 };
    #pragma unroll
    for (int c = 0; c < MOST_SLABS; ++c) {
        #pragma unroll
        for (int e = 0; e < 4; ++e) out[c][0][e] = out[c][1][e] = 0;
    }

    const int matrix = lane / 8, line = lane % 8;                       /* of an ldmatrix: whose address this lane gives */
    piece8    next[2];
    uint32_t  half = 0;                                                 /* which slab is being multiplied */
    if (tiles > 0) {
        fetch(next, k, key_at[0], 0, a.dim, k_pieces);
        put(slabs, next);
    }
    __syncthreads();

    for (int tile = 0; tile < tiles; ++tile) {
        const int64_t *keys_at = key_at[tile & 1], *values_at = value_at[tile & 1];
#if !SPARSE
        const int after = keys.begin + (tile + 1) * TILE, page = tile_page(&a, &s, n, after, keys.end);
#endif

        float score[2][4] = { { 0, 0, 0, 0 }, { 0, 0, 0, 0 } };
        for (int slab = 0; slab < q_slabs; ++slab) {
            const int to = slab + 1;
            if (to < k_slabs) fetch(next, k, keys_at, to * 64, a.dim, k_pieces);
            else fetch(next, v, values_at, to < q_slabs ? (to - k_slabs) * 64 : 0, a.dim_v, v_pieces);
            #pragma unroll
            for (int d = 0; d < 4; ++d) {
                uint32_t x[4], y[4];
                ldmatrix_x4(x, piece_at(q_base + slab * (ROWS * 128), 16 * m + (matrix & 1) * 8 + line, 2 * d + (matrix >> 1)));
                ldmatrix_x4(y, piece_at(slabs + half, 16 * wn + (matrix >> 1) * 8 + line, 2 * d + (matrix & 1)));
                mma_m16n8k16(score[0], x, y, (const T *)0);
                mma_m16n8k16(score[1], x, y + 2, (const T *)0);
            }
            half ^= SLAB_BYTES;
            put(slabs + half, next);
            __syncthreads();
        }

        /* Scores in powers of two, and each row's largest so far over all four warps. */
        float now[2] = { -INF, -INF };
        #pragma unroll
        for (int j = 0; j < 2; ++j) {
            #pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int at = 16 * wn + 8 * j + 2 * t + (e & 1);
#if SPARSE
                const int key = key_of[tile & 1][at];
#else
                const int key = keys.begin + tile * TILE + at;
#endif
                float y = score[j][e] * scale;
                if (a.softcap != 0) y = soft_capped(y, a.softcap);
                score[j][e] = key < least[e >> 1] || key >= behind[e >> 1] ? -INF : y * LOG2_E;
                now[e >> 1] = fmaxf(now[e >> 1], score[j][e]);
            }
        }
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            now[i] = fmaxf(now[i], __shfl_xor_sync(~0u, now[i], 1));
            now[i] = fmaxf(now[i], __shfl_xor_sync(~0u, now[i], 2));
            if (t == 0) warp_most[wn][16 * m + g + 8 * i] = now[i];
        }
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int   row  = 16 * m + g + 8 * i;
            const float all  = fmaxf(fmaxf(fmaxf(warp_most[0][row], warp_most[1][row]), fmaxf(warp_most[2][row], warp_most[3][row])), most[i]);
            const float base = all == -INF ? 0 : all, alpha = exp2_approx(most[i] - base);
            most[i] = all;
            sum[i] *= alpha;
            #pragma unroll
            for (int c = 0; c < MOST_SLABS; ++c) {
                #pragma unroll
                for (int j = 0; j < 2; ++j) out[c][j][2 * i] *= alpha, out[c][j][2 * i + 1] *= alpha;
            }
            #pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float x = exp2_approx(score[j][2 * i] - base), y = exp2_approx(score[j][2 * i + 1] - base);
                sum[i] += x + y;
                store_shared4(piece_at(p_base, row, 2 * wn + j) + 4 * t, pack2(x, y, (const T *)0));
            }
        }
#if SPARSE
        listed_rows(&x, &s, list, n, kv_head, key_at[(tile + 1) & 1], value_at[(tile + 1) & 1], key_of[(tile + 1) & 1], tile + 1);
#else
        tile_rows(&a, &s, n, kv_head, key_at[(tile + 1) & 1], value_at[(tile + 1) & 1], page, after, keys.end);
#endif
        __syncthreads();                                                /* p is there, and where the next tile's rows are */
        uint32_t p[4][4];
        #pragma unroll
        for (int j = 0; j < 4; ++j) ldmatrix_x4(p[j], piece_at(p_base, 16 * m + (matrix & 1) * 8 + line, 2 * j + (matrix >> 1)));

        #pragma unroll
        for (int c = 0; c < MOST_SLABS; ++c) {
            if (c >= v_slabs) break;
            if (c + 1 < v_slabs) fetch(next, v, values_at, (c + 1) * 64, a.dim_v, v_pieces);
            else fetch(next, k, key_at[(tile + 1) & 1], 0, a.dim, k_pieces);
            #pragma unroll
            for (int j = 0; j < 4; ++j) {
                uint32_t y[4];
                ldmatrix_x4_trans(y, piece_at(slabs + half, 16 * j + (matrix & 1) * 8 + line, 2 * wn + (matrix >> 1)));
                mma_m16n8k16(out[c][0], p[j], y, (const T *)0);
                mma_m16n8k16(out[c][1], p[j], y + 2, (const T *)0);
            }
            half ^= SLAB_BYTES;
            put(slabs + half, next);
            __syncthreads();
        }
    }

    /* Sums of the four warps, in their order. */
    #pragma unroll
    for (int i = 0; i < 2; ++i) {
        sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
        sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
        if (t == 0) warp_most[wn][16 * m + g + 8 * i] = sum[i];
    }
    __syncthreads();
    const float value_scale = attention_value_scale(&a, n, kv_head);
    const bool  in_pairs    = (((uint64_t)a.out | (uint64_t)(a.out_batch_stride | a.out_row_stride | a.out_head_stride) * 2) & 3) == 0;
    #pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int row = 16 * m + g + 8 * i, r = row0 + row, query = r / a.group, h = kv_head * a.group + r % a.group;
        if (r >= rows) continue;
        const row_result end   = end_of_row(&a, h, most[i] * 0.6931471805599453f, warp_most[0][row] + warp_most[1][row] + warp_most[2][row] + warp_most[3][row]);
        const float      times = end.scale * value_scale;
        const int64_t    at    = (((int64_t)split * a.batch + n) * a.heads + h) * a.max_q + query;
        uint16_t        *to    = (uint16_t *)a.out + n * a.out_batch_stride + (s.q_begin + query) * a.out_row_stride + h * a.out_head_stride;
        #pragma unroll
        for (int c = 0; c < MOST_SLABS; ++c) {
            #pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int d = 64 * c + 16 * wn + 8 * j + 2 * t;
                if (d >= a.dim_v) continue;
                const float x = out[c][j][2 * i] * times, y = out[c][j][2 * i + 1] * times;
                if (a.splits > 1) *(float2 *)(a.partial_out + at * attention_partial_dim(&a) + d) = make_float2(x, y);      /* its rows are even */
                else {
                    const uint32_t pair = a.out_dtype == SGK_BF16 ? pack_bf16x2(x, y) : pack_f16x2(x, y);
                    if (in_pairs && d + 1 < a.dim_v) {
                        *(uint32_t *)(to + d) = pair;
                    } else {
                        to[d] = (uint16_t)pair;
                        if (d + 1 < a.dim_v) to[d + 1] = (uint16_t)(pair >> 16);
                    }
                }
            }
        }
        if (wn == 0 && t == 0 && a.splits > 1) a.partial_lse[at] = end.lse;
        else if (wn == 0 && t == 0 && a.softmax_lse) a.softmax_lse[n * a.lse_batch_stride + h * a.lse_head_stride + s.q_begin + query] = end.lse;
    }
    pdl_release();
}
