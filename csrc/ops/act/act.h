/* What the activation kernels are given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_ACT_H
#define SGK_ACT_H
#include "base/divisor.h"

struct act_args {
    void              *out;
    const void        *input;
    int64_t            rows, dim;                              /* of out; a gated row of input has 2 dim elements */
    int64_t            out_stride, input_stride;               /* in elements */
    const void        *expert_ids;                             /* NULL: every row is done */
    int64_t            expert_step;
    sgk_dtype          dtype;
    int32_t            wide_ids;                               /* expert_ids is i64, otherwise i32 */
    int32_t            lanes_log2;                             /* GPU: 2^lanes_log2 threads of a block share a row */
    int32_t            stream;                                 /* CPU: out is written around the caches */
    struct sgk_divisor chunks;                          /* GPU: blocks that share a row */
};

/* The CPU cuts rows into blocks, so that one long row is work for several threads. */
enum { ACT_BLOCK = 4096 };

/*
 * gelu(a) = max(a, 0) - |a| / 2 * erfc(|a| / sqrt(2)) loses nothing where 1 + erf would cancel. With t = 1 / (1 + ERFC_P |a|),
 * erfc(|a| / sqrt(2)) = t * e^(-a^2 / 2) * (ERFC_0 + ERFC_1 t + ... + ERFC_8 t^8), within 8e-8 of itself for |a| <= 30 (a least-squares
 * fit at Chebyshev nodes); beyond, it is 0 in f32.
 */
#define ERFC_P 0.27f
#define ERFC_0 0.2154373974f
#define ERFC_1 0.2151754051f
#define ERFC_2 0.2028161138f
#define ERFC_3 0.1478797942f
#define ERFC_4 0.2053554803f
#define ERFC_5 -0.1215891317f
#define ERFC_6 0.3232979178f
#define ERFC_7 -0.2444026470f
#define ERFC_8 0.0560296550f

/* The same with five terms, within 3.1e-5: an eighth of what rounding to f16 may cost. */
#define ERFC_HALF_P 0.375f
#define ERFC_HALF_0 0.2981220170f
#define ERFC_HALF_1 0.3154684161f
#define ERFC_HALF_2 0.1671263490f
#define ERFC_HALF_3 0.4005660128f
#define ERFC_HALF_4 -0.1812870042f

/* a / 2 * (1 + tanh(u)) is a / (1 + e^(-2u)); here -2u = a * (GELU_TANH_1 + GELU_TANH_3 a^2). */
#define GELU_TANH_1 -1.5957691216f                      /* -2 sqrt(2 / pi) */
#define GELU_TANH_3 -0.0713548162f                      /* times 0.044715 */

#endif
