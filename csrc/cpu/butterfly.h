/* Hadamard transforms in memory, in Sylvester's order: element i meets element i ^ 2^b in step b. */
#ifndef SGK_BUTTERFLY_H
#define SGK_BUTTERFLY_H
#include "cpu/simd.h"

/* The steps inside of a vector are one product with a matrix: row i is element i's signs. */
typedef struct { float sign[VF][VF]; } lane_matrix;

SGK_INLINE void lane_matrix_make(lane_matrix *m)
{
    for (int i = 0; i < VF; ++i)
        for (int j = 0; j < VF; ++j) m->sign[i][j] = __builtin_popcount((unsigned)(i & j)) % 2 ? -1.0f : 1.0f;
}

/* x [n] in parts of `size`, a power of two from VF on: every part is transformed. */
SGK_INLINE void butterflies(float *x, int64_t n, int64_t size, const lane_matrix *m)
{
    for (int64_t i = 0; i < n; i += VF) {
        vf even = vf_zero(), odd = vf_zero();           /* two chains */
        for (int64_t j = 0; j < VF; j += 2) {
            even = vf_fma(vf_set(x[i + j]), vf_load_f32(m->sign[j]), even);
            odd  = vf_fma(vf_set(x[i + j + 1]), vf_load_f32(m->sign[j + 1]), odd);
        }
        vf_store_f32(x + i, vf_add(even, odd));
    }
    int64_t h = VF;
    for (; 2 * h < size; h *= 4)                        /* two steps at once */
        for (int64_t i = 0; i < n; i += 4 * h)
            for (int64_t j = i; j < i + h; j += VF) {
                const vf a = vf_load_f32(x + j), b = vf_load_f32(x + j + h), c = vf_load_f32(x + j + 2 * h), d = vf_load_f32(x + j + 3 * h);
                const vf s = vf_add(a, b), t = vf_sub(a, b), u = vf_add(c, d), v = vf_sub(c, d);
                vf_store_f32(x + j, vf_add(s, u)), vf_store_f32(x + j + h, vf_add(t, v));
                vf_store_f32(x + j + 2 * h, vf_sub(s, u)), vf_store_f32(x + j + 3 * h, vf_sub(t, v));
            }
    for (; h < size; h *= 2)
        for (int64_t i = 0; i < n; i += 2 * h)
            for (int64_t j = i; j < i + h; j += VF) {
                const vf a = vf_load_f32(x + j), b = vf_load_f32(x + j + h);
                vf_store_f32(x + j, vf_add(a, b)), vf_store_f32(x + j + h, vf_sub(a, b));
            }
}

#endif
