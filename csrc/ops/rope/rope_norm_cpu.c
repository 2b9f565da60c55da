/* A token's cosines and sines serve all its heads; a head is normalised and rotated in f32 beside its place. */
#include <math.h>
#include "cpu/simd.h"
#include "cpu/turn.h"
#include "rope_norm.h"

enum { PAIRS = QK_NORM_ROPE_MOST / 2 };

/* Returns the largest. */
static double frequencies(const struct qk_norm_rope_args *a, double *f)
{
    double most = 0;
    for (int64_t i = 0; i < a->rot_dim / 2; ++i) {
        const double plain = pow(a->base, -2.0 * (double)i / a->rot_dim);
        const double ramp  = a->scaled ? fmin(fmax(((double)i - a->low) / ((double)a->high - a->low), 0), 1) : 0;
        f[i]               = a->scaled ? plain / a->factor * ramp + plain * (1 - ramp) : plain;
        most               = fmax(most, f[i]);
    }
    return most;
}

/* What is a constant for the usual heads. */
typedef struct {
    int64_t head_dim, rot_dim;
    bool    is_neox;
} shape;

/* Of `count` heads from at on, one beside the other: what makes a head's mean square 1. head_dim is a multiple of 64. */
enum { TOGETHER = 8 };
SGK_INLINE void scales_of(const struct qk_norm_rope_args *a, shape of, int64_t at, int count, float *scale)
{
    vf sum[TOGETHER];
    for (int n = 0; n < TOGETHER; ++n) {
        vf sum0 = vf_zero(), sum1 = vf_zero();
        for (int64_t d = 0; n < count && d < of.head_dim; d += 2 * VF) {
            vf u, v;
            vf_load_pairs(SGK_BF16, a->qkv, at + n * of.head_dim + d, &u, &v);
            sum0 = vf_fma(u, u, sum0), sum1 = vf_fma(v, v, sum1);
        }
        sum[n] = vf_add(sum0, sum1);
    }
    vf_sums8(sum, scale);
    for (int n = 0; n < TOGETHER; ++n) scale[n] = 1 / sqrtf(scale[n] / (float)of.head_dim + a->eps);
}

SGK_INLINE vf normalised(const struct qk_norm_rope_args *a, int64_t at, const void *weight, int64_t d, vf scale)
{
    return vf_mul(vf_mul(vf_load(SGK_BF16, a->qkv, at + d), scale), vf_load(SGK_BF16, weight, d));
}

/* As vf_load_pairs. */
SGK_INLINE void normalised2(const struct qk_norm_rope_args *a, int64_t at, const void *weight, int64_t d, vf scale, vf *x)
{
    vf w[2];
    vf_load_pairs(SGK_BF16, a->qkv, at + d, &x[0], &x[1]), vf_load_pairs(SGK_BF16, weight, d, &w[0], &w[1]);
    x[0] = vf_mul(vf_mul(x[0], scale), w[0]), x[1] = vf_mul(vf_mul(x[1], scale), w[1]);
}

/* Whether c and s lie in the order of vf_load_pairs. */
SGK_INLINE bool takes_pairs(shape of) { return of.is_neox && of.rot_dim / 2 % (2 * VF) == 0; }

/* 2 VF elements, times a factor, in that order. */
SGK_INLINE void in_pairs(const float *from, vf factor, float *to)
{
    vf a = vf_load_f32(from), b = vf_load_f32(from + VF);
    if (vf_splits(SGK_BF16)) vf_unzip(a, b, &a, &b);
    vf_store_f32(to, vf_mul(a, factor)), vf_store_f32(to + VF, vf_mul(b, factor));
}

/* x in place; neighbours: c has each cosine twice, s each sine as -s, +s. */
SGK_INLINE void rotate(shape of, float *x, const float *c, const float *s)
{
    const int64_t half = of.rot_dim / 2;
    int64_t       i    = 0;
    if (of.is_neox) {
        for (; i + VF <= half; i += VF) {
            const vf u = vf_load_f32(x + i), v = vf_load_f32(x + half + i), ci = vf_load_f32(c + i), si = vf_load_f32(s + i);
            vf_store_f32(x + i, vf_sub(vf_mul(u, ci), vf_mul(v, si)));
            vf_store_f32(x + half + i, vf_add(vf_mul(v, ci), vf_mul(u, si)));
        }
        for (; i < half; ++i) {
            const float u = x[i], v = x[half + i];
            x[i] = u * c[i] - v * s[i], x[half + i] = v * c[i] + u * s[i];
        }
        return;
    }
    for (; i + VF <= 2 * half; i += VF) {
        const vf u = vf_load_f32(x + i);
        vf_store_f32(x + i, vf_add(vf_mul(u, vf_load_f32(c + i)), vf_mul(vf_swap_pairs(u), vf_load_f32(s + i))));
    }
    for (; i < 2 * half; i += 2) {
        const float u = x[i], v = x[i + 1];
        x[i] = u * c[i] + v * s[i], x[i + 1] = v * c[i + 1] + u * s[i + 1];
    }
}

/* A head whose halves, or pairs, fill vectors goes through registers; another one through x. */
SGK_INLINE void head(const struct qk_norm_rope_args *a, shape of, int64_t at, const void *weight, vf scale, const float *c, const float *s)
{
    const int64_t half = of.rot_dim / 2;
    float         x[QK_NORM_ROPE_MOST];
    if (half % VF) {
        for (int64_t d = 0; d < of.head_dim; d += VF) vf_store_f32(x + d, normalised(a, at, weight, d, scale));
        rotate(of, x, c, s);
        for (int64_t d = 0; d < of.head_dim; d += VF) vf_store(SGK_BF16, a->qkv, at + d, vf_load_f32(x + d));
        return;
    }
    if (takes_pairs(of)) {
        for (int64_t i = 0; i < half; i += 2 * VF) {
            vf u[2], v[2];
            normalised2(a, at, weight, i, scale, u), normalised2(a, at, weight, half + i, scale, v);
            const vf c1 = vf_load_f32(c + i), s1 = vf_load_f32(s + i), c2 = vf_load_f32(c + i + VF), s2 = vf_load_f32(s + i + VF);
            vf_store_pairs(SGK_BF16, false, a->qkv, at + i, vf_sub(vf_mul(u[0], c1), vf_mul(v[0], s1)), vf_sub(vf_mul(u[1], c2), vf_mul(v[1], s2)));
            vf_store_pairs(SGK_BF16, false, a->qkv, at + half + i, vf_add(vf_mul(v[0], c1), vf_mul(u[0], s1)), vf_add(vf_mul(v[1], c2), vf_mul(u[1], s2)));
        }
    } else if (of.is_neox) {
        for (int64_t i = 0; i < half; i += VF) {
            const vf u = normalised(a, at, weight, i, scale), v = normalised(a, at, weight, half + i, scale), ci = vf_load_f32(c + i), si = vf_load_f32(s + i);
            vf_store(SGK_BF16, a->qkv, at + i, vf_sub(vf_mul(u, ci), vf_mul(v, si)));
            vf_store(SGK_BF16, a->qkv, at + half + i, vf_add(vf_mul(v, ci), vf_mul(u, si)));
        }
    } else {
        for (int64_t i = 0; i < 2 * half; i += VF) {
            const vf u = normalised(a, at, weight, i, scale);
            vf_store(SGK_BF16, a->qkv, at + i, vf_add(vf_mul(u, vf_load_f32(c + i)), vf_mul(vf_swap_pairs(u), vf_load_f32(s + i))));
        }
    }
    for (int64_t d = 2 * half; d < of.head_dim; d += VF) vf_store(SGK_BF16, a->qkv, at + d, normalised(a, at, weight, d, scale));
}

SGK_INLINE void tokens(const struct qk_norm_rope_args *a, shape of, int64_t begin, int64_t end)
{
    double        f[PAIRS];
    float         c[2 * PAIRS], s[2 * PAIRS], scale[2][TOGETHER], sine[TURN_BLOCK], cosine[TURN_BLOCK];
    int           now         = 0;
    const double  most        = frequencies(a, f);
    const vf      factor      = vf_set(a->attention_factor);
    const int64_t heads       = (int64_t)a->q_heads + a->k_heads;
    const int     first_heads = heads < TOGETHER ? (int)heads : TOGETHER;
    scales_of(a, of, begin * a->qkv_stride, first_heads, scale[now]);
    for (int64_t t = begin; t < end; ++t) {
        for (int64_t first = 0; first < of.rot_dim / 2; first += TURN_BLOCK) {
            const int64_t n = of.rot_dim / 2 - first < TURN_BLOCK ? of.rot_dim / 2 - first : TURN_BLOCK;
            turn(f + first, most, a->position_ids[t * a->position_stride], n, sine, cosine);
            for (int64_t j = 0; takes_pairs(of) && j < n; j += 2 * VF) in_pairs(cosine + j, factor, c + first + j), in_pairs(sine + j, factor, s + first + j);
            for (int64_t j = 0, i = first; !takes_pairs(of) && j < n; ++j, ++i) {
                const float ci = cosine[j] * a->attention_factor, si = sine[j] * a->attention_factor;
                if (of.is_neox) c[i] = ci, s[i] = si;
                else c[2 * i] = c[2 * i + 1] = ci, s[2 * i] = -si, s[2 * i + 1] = si;
            }
        }
        for (int64_t n = 0; n < heads; n += TOGETHER, now = !now) {         /* the next ones' scales first: these do not wait for theirs */
            const int     count = heads - n < TOGETHER ? (int)(heads - n) : TOGETHER;
            const int64_t rest = heads - n - TOGETHER, at = t * a->qkv_stride + n * of.head_dim, next = t + 1 < end ? at + a->qkv_stride : at;
            if (rest > 0) scales_of(a, of, at + TOGETHER * of.head_dim, rest < TOGETHER ? (int)rest : TOGETHER, scale[!now]);
            else if (t + 1 < end) scales_of(a, of, (t + 1) * a->qkv_stride, first_heads, scale[!now]);
            for (int j = 0; j < count; ++j) {
                for (int64_t i = 0; i < of.head_dim; i += 2 * VF) vf_prefetch2(SGK_BF16, a->qkv, next + j * of.head_dim + i);
                head(a, of, at + j * of.head_dim, n + j < a->q_heads ? a->q_weight : a->k_weight, vf_set(scale[now][j]), c, s);
            }
        }
    }
}

/* No store can change the copy of the arguments. */
void SGK_CPU_FN(qk_norm_rope)(const void *args, int64_t begin, int64_t end)
{
    const struct qk_norm_rope_args a = *(const struct qk_norm_rope_args *)args;
    if (a.head_dim == 128 && a.rot_dim == 128 && a.is_neox) tokens(&a, (shape){ 128, 128, true }, begin, end);
    else tokens(&a, (shape){ a.head_dim, a.rot_dim, a.is_neox }, begin, end);
}
