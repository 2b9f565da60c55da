/*
 * Root mean square and layer norms. The row stays in registers between the passes, so each element is read once and written once:
 * bound by memory. Narrow rows share a block: LANES threads a row, whose sums need shuffles only.
 *
 *   T      f32, f16 or bf16
 *   FORM   what is computed: NORM_..., in norm.h
 *   LANES  threads a row: 8, 16 or 32, or a whole block of as many
 *   VECS   16-byte pieces a thread keeps; 0 keeps none, reads the row again in each pass, and takes any length and alignment, with
 *          LANES threads a row at most
 *   EARLY  1: the weights come with the row, their latency hidden in the row's; 0: after the sums, which saves registers
 *   RESIDENT   threads that a multiprocessor should hold at once, which bounds their registers; 0: as the compiler likes
 */
#include "norm.h"
#include "launch.cuh"
#include "math.cuh"
#include "reduce.cuh"

#define THREADS (LANES > 32 ? LANES : 128)
#define WARPS   (THREADS / 32)
#define TEAMS   (THREADS / LANES)                       /* rows a block */
#define PIECE   (16 / (int)sizeof(T))                   /* elements in a piece */
#define ADD     (FORM == NORM_RMS_ADD || FORM == NORM_LAYER_ADD)
#define LAYER   (FORM == NORM_LAYER || FORM == NORM_LAYER_ADD)
#define GATED   (FORM == NORM_RMS_GATED)
#if RESIDENT
#define RESIDENCE __launch_bounds__(THREADS, RESIDENT / THREADS)
#else
#define RESIDENCE __launch_bounds__(THREADS)
#endif

struct places { int64_t output, input, other; };

/* A division of 32 bits costs a fraction of one of 64: rows that stay in registers and have odd strides are fewer than 2^32. */
#if VECS == 0
typedef int64_t row_index;
#else
typedef uint32_t row_index;
#endif

DEVICE places place(const norm_args &a, int64_t row)
{
    if (__builtin_expect(a.middle == 1 && a.last == 1, 1)) return { row * a.output_stride[0], row * a.input_stride[0], row * a.other_stride[0] };
    const row_index r = (row_index)row, last = (row_index)a.last, middle = (row_index)a.middle, q = r / last;
    const int64_t   i = q / middle, j = q % middle, k = r % last;
    return { i * a.output_stride[0] + j * a.output_stride[1] + k * a.output_stride[2],
             i * a.input_stride[0] + j * a.input_stride[1] + k * a.input_stride[2],
             i * a.other_stride[0] + j * a.other_stride[1] + k * a.other_stride[2] };
}

#if VECS == 0

DEVICE float value(const T *x, const T *other, int64_t d) { return ADD ? to_f32(x[d]) + to_f32(other[d]) : to_f32(x[d]); }

/* Element d and the next ones of this thread, BATCH loads in flight; 0 behind the row. */
#define BATCH 8
DEVICE void values(float *v, const T *x, const T *other, int64_t d, int64_t step, int64_t dim)
{
    #pragma unroll
    for (int i = 0; i < BATCH; ++i) v[i] = d + i * step < dim ? value(x, other, d + i * step) : 0;
}

extern "C" __global__ __launch_bounds__(THREADS) void norm_rows(const __grid_constant__ norm_args a)
{
    __shared__ float scratch[2][WARPS];
    const T         *w = (const T *)a.weight, *b = (const T *)a.bias;
    const int64_t    step = blockDim.x;

    pdl_wait();
    pdl_release();
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
        const places at    = place(a, row);
        const T     *x     = (const T *)a.input + at.input;
        T           *other = (T *)a.other + at.other, *y = (T *)a.output + at.output;
        float        v[BATCH], mean = 0, sum = 0;
        if (LAYER) {
            for (int64_t d = threadIdx.x; d < a.dim; d += BATCH * step) {
                values(v, x, other, d, step, a.dim);
                #pragma unroll
                for (int i = 0; i < BATCH; ++i) sum += v[i];
            }
            mean = block_sum(sum, scratch[0], step / 32) * a.inverse_dim;
            sum  = 0;
        }
        for (int64_t d = threadIdx.x; d < a.dim; d += BATCH * step) {
            values(v, x, other, d, step, a.dim);
            #pragma unroll
            for (int i = 0; i < BATCH; ++i) sum += d + i * step < a.dim ? (v[i] - mean) * (v[i] - mean) : 0;
        }
        const float scale = rsqrtf(block_sum(sum, scratch[1], step / 32) * a.inverse_dim + a.eps);
        for (int64_t d = threadIdx.x; d < a.dim; d += BATCH * step) {        /* a thread writes only what it alone reads */
            values(v, x, other, d, step, a.dim);
            #pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                const int64_t e = d + i * step;
                if (e >= a.dim) break;
                float u = (v[i] - mean) * scale * (w ? a.shift + to_f32(w[e]) : a.shift);
                if (GATED) u *= silu_approx(to_f32(other[e]));
                if (LAYER && b) u += to_f32(b[e]);
                if (ADD) from_f32(&other[e], v[i]);
                from_f32(&y[e], u);
            }
        }
        __syncthreads();                                /* scratch is free again */
    }
}

#else

/* Over the threads of a row, the same value in each of them. `scratch` is used once. */
DEVICE float row_sum(float v, float *scratch)
{
#if LANES > 32
    return block_sum(v, scratch, WARPS);
#else
    #pragma unroll
    for (int o = LANES / 2; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    return v;
#endif
}

/* What a thread keeps of a row: the pieces as they came, or the unrounded sums in f32. */
#if ADD
typedef struct { float v[PIECE]; } kept;
DEVICE void keep(kept *k, uint4 x, uint4 other)
{
    float u[PIECE];
    unpack16(k->v, x, (const T *)0);
    unpack16(u, other, (const T *)0);
    #pragma unroll
    for (int j = 0; j < PIECE; ++j) k->v[j] += u[j];
}
DEVICE void values(float *v, const kept *k)
{
    #pragma unroll
    for (int j = 0; j < PIECE; ++j) v[j] = k->v[j];
}
#else
typedef uint4 kept;
DEVICE void keep(kept *k, uint4 x, uint4) { *k = x; }
DEVICE void values(float *v, const kept *k) { unpack16(v, *k, (const T *)0); }
#endif

extern "C" __global__ RESIDENCE void norm_rows(const __grid_constant__ norm_args a)
{
    __shared__ float scratch[2][WARPS];
    const int        lane   = (int)threadIdx.x % LANES;
    const int64_t    row    = (int64_t)blockIdx.x * TEAMS + threadIdx.x / LANES;
    const int        pieces = row < a.rows ? (int)(a.dim / PIECE) : 0;  /* behind the last row: nothing, but its lanes join the shuffles */
    const places     at     = place(a, row);
    const uint4     *x = (const uint4 *)((const T *)a.input + at.input), *w = (const uint4 *)a.weight, *b = (const uint4 *)a.bias;
    uint4           *other = (uint4 *)((T *)a.other + at.other), *y = (uint4 *)((T *)a.output + at.output);
    const uint4      zero = make_uint4(0, 0, 0, 0);

    pdl_wait();
    pdl_release();
    uint4 first[VECS], second[VECS], weight[VECS];
    #pragma unroll
    for (int i = 0; i < VECS; ++i) {                                /* all loads first: VECS of each in flight */
        const int c = lane + i * LANES;
        first[i]    = c < pieces ? x[c] : zero;
        second[i]   = (ADD || GATED) && c < pieces ? other[c] : zero;
    }
    if (EARLY) {
        #pragma unroll
        for (int i = 0; i < VECS; ++i) weight[i] = w && lane + i * LANES < pieces ? w[lane + i * LANES] : zero;
    }

    kept  part[VECS];
    float mean = 0, sum = 0;
    #pragma unroll
    for (int i = 0; i < VECS; ++i) {
        keep(&part[i], first[i], second[i]);
        float v[PIECE];
        values(v, &part[i]);
        if (ADD && lane + i * LANES < pieces) other[lane + i * LANES] = pack16(v, (const T *)0);
        #pragma unroll
        for (int j = 0; j < PIECE; ++j) sum += LAYER ? v[j] : v[j] * v[j];
    }
    sum = row_sum(sum, scratch[0]);
    if (LAYER) {
        mean = sum * a.inverse_dim;
        sum  = 0;
        #pragma unroll
        for (int i = 0; i < VECS; ++i) {
            if (lane + i * LANES >= pieces) continue;
            float v[PIECE];
            values(v, &part[i]);
            #pragma unroll
            for (int j = 0; j < PIECE; ++j) sum += (v[j] - mean) * (v[j] - mean);
        }
        sum = row_sum(sum, scratch[1]);
    }
    const float scale = rsqrtf(sum * a.inverse_dim + a.eps);

    #pragma unroll
    for (int i = 0; i < VECS; ++i) {
        const int c = lane + i * LANES;
        if (c >= pieces) continue;
        float v[PIECE], g[PIECE];
        values(v, &part[i]);
        if (!EARLY) weight[i] = w ? w[c] : zero;
        unpack16(g, weight[i], (const T *)0);
        #pragma unroll
        for (int j = 0; j < PIECE; ++j) v[j] = (v[j] - mean) * scale * (a.shift + g[j]);
        if (GATED) {
            unpack16(g, second[i], (const T *)0);
            #pragma unroll
            for (int j = 0; j < PIECE; ++j) v[j] *= silu_approx(g[j]);
        }
        if (LAYER && b) {
            unpack16(g, b[c], (const T *)0);
            #pragma unroll
            for (int j = 0; j < PIECE; ++j) v[j] += g[j];
        }
        y[c] = pack16(v, (const T *)0);
    }
}

#endif
