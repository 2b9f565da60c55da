/* Sines and cosines of many angles: the rest of a quarter turn in double, its polynomials in f32. Plain loops, which the compiler turns into vectors. */
#ifndef SGK_TURN_H
#define SGK_TURN_H
#include <math.h>
#include "cpu/cpu.h"

/* Angles at a time; larger ones than TURN_FAR, and what is no number, go the long way. */
#define TURN_FAR 1e6
enum { TURN_BLOCK = 64 };

/* Of t * frequency[i] for i < n <= TURN_BLOCK, within 2 units in the last place; `most` is the largest frequency. */
SGK_INLINE void turn(const double *restrict frequency, double most, double t, int64_t n, float *restrict sine, float *restrict cosine)
{
    float   rest[TURN_BLOCK];
    int32_t quarter[TURN_BLOCK];
    if (!(fabs(t) * most < TURN_FAR)) {
        for (int64_t i = 0; i < n; ++i) sine[i] = (float)sin(t * frequency[i]), cosine[i] = (float)cos(t * frequency[i]);
        return;
    }
    for (int64_t i = 0; i < n; ++i) {
        const double angle = t * frequency[i], round = 6755399441055744.0;
        const double k = angle * 0.63661977236758134308 + round - round;    /* quarter turns: the sum has no bits behind the point */
        rest[i]        = (float)(angle - k * 1.57079632673412561417 - k * 6.07710050650619224932e-11);
        quarter[i]     = (int32_t)k;
    }
    for (int64_t i = 0; i < n; ++i) {
        const float x = rest[i], z = x * x;
        const float s    = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * x + x;
        const float c    = ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1;
        const bool  swap = quarter[i] & 1;
        const float a = swap ? c : s, b = swap ? s : c;
        sine[i]   = quarter[i] & 2 ? -a : a;
        cosine[i] = (quarter[i] + 1) & 2 ? -b : b;
    }
}

#endif
