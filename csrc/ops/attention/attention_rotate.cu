/*
 * Writes k_new and v_new into the cache and rotates k_new and q on the way: a block a token and one a query. Bound by memory.
 *
 *   T  f32, f16, bf16 or uint8_t, which stands for e4m3
 */
#include "attention.h"
#include "launch.cuh"
#include "quantise.cuh"

DEVICE float to_f32(uint8_t code)
{
    if ((code & 0x7f) == 0x7f) return __uint_as_float(0x7fffffff);
    const float magnitude = __uint_as_float((uint32_t)(code & 0x7f) << 20) * __uint_as_float(0x7b800000);       /* times 2^120, the difference of the biases */
    return code & 0x80 ? -magnitude : magnitude;
}
DEVICE void from_f32(uint8_t *x, float v) { *x = (uint8_t)(e4m3x2(v, 0) & 0xff); }

/* `heads` heads of one token; thread i takes pairs and what lies behind them in turn. */
DEVICE void rotate(const attention_append_args &b, T *to, int64_t to_head, const T *from, int64_t from_head, int heads, int position)
{
    const int pairs = b.rotary_dim / 2, work = b.a.dim - pairs;         /* of a head: pairs, then single elements */
    if (position >= b.rotary_rows) position = b.rotary_rows - 1;
    if (position < 0) position = 0;
    const T *cosines = (const T *)b.rotary_cos + position * b.cos_stride, *sines = (const T *)b.rotary_sin + position * b.sin_stride;
    for (int item = (int)threadIdx.x; item < heads * work; item += 128) {
        const int h = item / work, i = item % work;
        if (i >= pairs) {
            to[h * to_head + pairs + i] = from[h * from_head + pairs + i];
            continue;
        }
        const int   x = b.interleaved ? 2 * i : i, y = b.interleaved ? 2 * i + 1 : i + pairs;
        const float c = to_f32(cosines[i]), s = to_f32(sines[i]), u = to_f32(from[h * from_head + x]), v = to_f32(from[h * from_head + y]);
        from_f32(&to[h * to_head + x], u * c - v * s);
        from_f32(&to[h * to_head + y], u * s + v * c);
    }
}

extern "C" __global__ __launch_bounds__(128, 8)        /* told how many blocks to fit, the assembler spills nothing to fit more */
    void attention_rotate(const __grid_constant__ attention_append_args b)
{
    const attention_args &a    = b.a;
    const unsigned        each = (unsigned)(a.max_new + a.max_q);
    const int             n = (int)(blockIdx.x / each), token = (int)(blockIdx.x % each);
    pdl_wait();
    const attention_sequence s     = attention_sequence_of(&a, n);
    const int                first = b.seqlens_rotary ? b.seqlens_rotary[n] : s.used, i = token - a.max_new;
    if (i >= 0) {
        if (i >= s.sq) return;
        const int row = s.q_begin + i;
        rotate(b, (T *)a.q + n * a.q_batch_stride + row * a.q_row_stride, a.q_head_stride, (const T *)b.q + n * b.q_batch_stride + row * b.q_row_stride, b.q_head_stride, a.heads,
               b.q_moves ? first + i : first);
    } else {
        if (token >= s.fresh) return;
        const int             row = s.fresh_begin + token;
        const attention_place p   = attention_place_of(&a, &s, n, s.used + token);
        if (p.batch < 0) return;                                        /* a page that does not exist */
        rotate(b, (T *)a.k + p.batch * a.k_batch_stride + p.row * a.k_row_stride, a.k_head_stride, (const T *)a.k_new + n * a.k_new_batch_stride + row * a.k_new_row_stride,
               a.k_new_head_stride, a.kv_heads, first + token);
        T       *v     = (T *)a.v + p.batch * a.v_batch_stride + p.row * a.v_row_stride;
        const T *v_new = (const T *)a.v_new + n * a.v_new_batch_stride + row * a.v_new_row_stride;
        for (int item = (int)threadIdx.x; item < a.kv_heads * a.dim_v; item += 128) {
            const int h = item / a.dim_v, d = item % a.dim_v;
            v[h * a.v_head_stride + d] = v_new[h * a.v_new_head_stride + d];
        }
    }
    pdl_release();
}
