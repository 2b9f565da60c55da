/* Hadamard transforms in memory, in Sylvester's order: element i meets element i ^ 2^b in step b, from the nearest to the furthest. */
#ifndef SGK_BUTTERFLY_H
#define SGK_BUTTERFLY_H
#include "cpu/simd.h"

/* The steps inside of a vector: the sum of two, or the first less the second, is the one that is there plus or minus this one. */
SGK_INLINE vf butterfly_lanes(vf x)
{
#if defined(__AVX512F__)
    const vf step1 = _mm512_castsi512_ps(_mm512_set1_epi64((int64_t)0xbf8000003f800000)), step2 = _mm512_setr4_ps(1, 1, -1, -1);
    const vf step4 = _mm512_setr_ps(1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1);
    const vf step8 = _mm512_setr_ps(1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1);
    x              = vf_fma(x, step1, _mm512_permute_ps(x, 0xb1));
    x              = vf_fma(x, step2, _mm512_permute_ps(x, 0x4e));
    x              = vf_fma(x, step4, _mm512_shuffle_f32x4(x, x, 0xb1));
    return vf_fma(x, step8, _mm512_shuffle_f32x4(x, x, 0x4e));
#elif defined(__AVX2__)
    x = vf_fma(x, _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), _mm256_permute_ps(x, 0xb1));
    x = vf_fma(x, _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1), _mm256_permute_ps(x, 0x4e));
    return vf_fma(x, _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1), _mm256_permute2f128_ps(x, x, 1));
#else
    x = vf_fma(x, (vf){ 1, -1, 1, -1 }, vrev64q_f32(x));
    return vf_fma(x, (vf){ 1, 1, -1, -1 }, vextq_f32(x, x, 2));
#endif
}

/* a - b; AVX-512 CPUs of one make add in other units than they multiply in, and this one is done in those. */
SGK_INLINE vf butterfly_less(vf a, vf b)
{
#if defined(__AVX512F__)
    return _mm512_fnmadd_ps(b, vf_set(1), a);
#else
    return vf_sub(a, b);
#endif
}

/* One step across `count` vectors, a power of two: v[j] meets v[j + h]. */
SGK_INLINE void butterfly_step(int count, vf *v, int h)
{
#pragma GCC unroll 8
    for (int k = 0; k < count / 2; ++k) {
        const int j = k / h * 2 * h + k % h;
        const vf  a = v[j], b = v[j + h];
        v[j] = vf_add(a, b), v[j + h] = butterfly_less(a, b);
    }
}

#if defined(__AVX512F__)
enum { BUTTERFLY_ORDERS = true };                       /* pairs come out one half of 2 VF elements behind the other */

/*
 * The same of the evens and the odds of 2 VF elements, which have met. Half of one and half of the other change places in each step, so that what meets lies
 * in two vectors: sums and differences go into all units, where a product with a sign goes into two, which shuffles between quarters need. At the end they are in order.
 */
SGK_INLINE void butterfly_lanes_of_pair(vf *a, vf *b)
{
#pragma GCC unroll 4
    for (int step = 0; step < 4; ++step) {
        const vf first  = step < 2 ? _mm512_shuffle_ps(*a, *b, 0x88) : _mm512_shuffle_f32x4(*a, *b, 0x88);
        const vf second = step < 2 ? _mm512_shuffle_ps(*a, *b, 0xdd) : _mm512_shuffle_f32x4(*a, *b, 0xdd);
        *a = vf_add(first, second), *b = vf_sub(first, second);
    }
}
#else
enum { BUTTERFLY_ORDERS = false };
SGK_INLINE void butterfly_lanes_of_pair(vf *a, vf *b) { *a = butterfly_lanes(*a), *b = butterfly_lanes(*b); }
#endif

/*
 * `count` vectors meet; `lanes`: after the steps inside of them. With `pairs` two vectors that lie side by side are the evens and the odds of 2 VF elements: these meet first,
 * and with BUTTERFLY_ORDERS they are halves afterwards.
 */
SGK_INLINE void butterfly_vectors(int count, bool lanes, bool pairs, vf *v)
{
    if (pairs) butterfly_step(count, v, 1);
#pragma GCC unroll 16
    for (int k = 0; k < count; k += 1 + pairs) {
        if (lanes && pairs) butterfly_lanes_of_pair(&v[k], &v[k + 1]);
        else if (lanes) v[k] = butterfly_lanes(v[k]);
    }
    if (count > 1 && !pairs) butterfly_step(count, v, 1);
    if (count > 2) butterfly_step(count, v, 2);
    if (count > 4) butterfly_step(count, v, 4);
    if (count > 8) butterfly_step(count, v, 8);
    if (count > 16) butterfly_step(count, v, 16);
}

enum { BUTTERFLY_VECTORS = VF == 8 ? 8 : 16 };          /* that meet in registers at once */

/* `count` vectors at from[at], h elements apart, or with `pairs` two and two as vf_load_pairs has them, meet. */
SGK_INLINE void butterfly(int count, bool lanes, bool pairs, sgk_dtype t, const void *from, int64_t at, int64_t h, vf *v)
{
#pragma GCC unroll 16
    for (int k = 0; k < count; k += 1 + pairs) {
        if (pairs) vf_load_pairs(t, from, at + k * h, &v[k], &v[k + 1]);
        else v[k] = vf_load(t, from, at + k * h);
    }
    butterfly_vectors(count, lanes, pairs, v);
}

/* Elements [0, n) at from[at] to x: in each part of count * h. */
SGK_INLINE void butterfly_pass(int count, bool lanes, bool pairs, sgk_dtype t, const void *from, int64_t at, float *x, int64_t n, int64_t h)
{
    for (int64_t i = 0; i < n; i += count * h)
        for (int64_t j = i; j < i + h; j += VF) {
            vf v[BUTTERFLY_VECTORS];
            butterfly(count, lanes, pairs, t, from, at + j, h, v);
#pragma GCC unroll 16
            for (int k = 0; k < count; ++k) vf_store_f32(x + j + k * h, v[k]);
        }
}

SGK_INLINE int butterfly_count(int64_t vectors) { return vectors < BUTTERFLY_VECTORS ? (int)vectors : BUTTERFLY_VECTORS; }

/* What the first pass over parts of `size` has left to do, with `but_one` without the last pass of it; returns the distance of what would meet next. */
static __attribute__((noinline, unused)) int64_t butterflies_rest(bool but_one, float *x, int64_t n, int64_t size)
{
    int64_t at = butterfly_count(size / VF) * VF;
    for (int64_t count; at < size; at *= count) {
        count = butterfly_count(size / at);
        if (but_one && at * count == size) break;
        switch (count) {
        case 2:  butterfly_pass(2, false, false, SGK_F32, x, 0, x, n, at); break;
        case 4:  butterfly_pass(4, false, false, SGK_F32, x, 0, x, n, at); break;
        case 8:  butterfly_pass(8, false, false, SGK_F32, x, 0, x, n, at); break;
        default: butterfly_pass(BUTTERFLY_VECTORS, false, false, SGK_F32, x, 0, x, n, at); break;
        }
    }
    return at;
}

/*
 * Elements [0, n) at from[at] to x, which may be where they are, in parts of `size`, a power of two from VF on: every part is transformed. `pairs`, for parts
 * from 2 VF on and formats that vf_splits: without BUTTERFLY_ORDERS x has the evens of every 2 VF elements, then the odds.
 */
SGK_INLINE void butterflies(bool pairs, sgk_dtype t, const void *from, int64_t at, float *x, int64_t n, int64_t size)
{
    switch (butterfly_count(size / VF)) {
    case 1:  butterfly_pass(1, true, false, t, from, at, x, n, VF); break;
    case 2:  butterfly_pass(2, true, pairs, t, from, at, x, n, VF); break;
    case 4:  butterfly_pass(4, true, pairs, t, from, at, x, n, VF); break;
    case 8:  butterfly_pass(8, true, pairs, t, from, at, x, n, VF); break;
    default: butterfly_pass(BUTTERFLY_VECTORS, true, pairs, t, from, at, x, n, VF); break;
    }
    if (size > BUTTERFLY_VECTORS * VF) butterflies_rest(false, x, n, size);
}

#endif
