/* The cosines and sines of up to PAIRS pairs are widened once for each token and then serve all heads. */
#include "cpu/copy.h"
#include "rope.h"

enum { PAIRS = 256 };

/* With is_neox, of pairs i, in the order that vf_load_pairs gives where 2 VF are there: c[i] for the first and c[PAIRS + i] for the second element. Otherwise as neighbours are multiplied: each
 * cosine twice, each sine as -s, +s. */
typedef struct { float c[2 * PAIRS], s[2 * PAIRS]; } rope_angles;

/* Where pair i of `count` is kept. */
SGK_INLINE int64_t kept_at(sgk_dtype t, int64_t i, int64_t count)
{
    enum { STEP = 2 * VF };
    return vf_splits(t) && i < count - count % STEP ? i - i % STEP + i % 2 * VF + i % STEP / 2 : i;
}

/* Elements [0, count) at p[at] to where they are kept. */
SGK_INLINE void widen_run(sgk_dtype x, sgk_dtype t, const void *p, int64_t at, int64_t count, float *to)
{
    int64_t i = 0;
    for (; i + 2 * VF <= count; i += 2 * VF) {
        vf first, second;
        if (vf_splits(x) && !vf_splits(t)) vf_unzip(vf_load(t, p, at + i), vf_load(t, p, at + i + VF), &first, &second);
        else vf_load_pairs(t, p, at + i, &first, &second);
        vf_store_f32(to + i, first), vf_store_f32(to + i + VF, second);
    }
    for (; i < count; ++i) to[i] = load_f32(t, p, at + i);
}

/* Elements [first, first + count) of a row that is put together from those of three planes. */
SGK_INLINE void join_planes(sgk_dtype t, const struct rope_args *a, const int64_t *row, const void *p, int64_t stride, int64_t first, int64_t count, void *to)
{
    const int64_t size = t == SGK_F32 ? 4 : 2, one = a->section[0], two = one + a->section[1];
    for (int64_t i = 0, n; i < count; i += n) {
        const int64_t at = first + i, end = at < one ? one : at < two ? two
                                                                      : first + count;
        const char   *from = (const char *)p + (row[rope_plane(a, at)] * stride + at) * size;
        n                  = a->sections != ROPE_IN_ORDER ? 1 : end - at < count - i ? end - at
                                                                                     : count - i;
        if (n > 1) memcpy((char *)to + i * size, from, (size_t)(n * size));
        else memcpy((char *)to + i * size, from, t == SGK_F32 ? 4 : 2);
    }
}

SGK_INLINE void widen(sgk_dtype x, sgk_dtype t, const struct rope_args *a, const int64_t *row, int64_t first, int64_t count, rope_angles *w)
{
    if (a->is_neox && !a->sections) {
        const int64_t at_c = row[0] * a->cosine_stride + first, at_s = row[0] * a->sine_stride + first;
        widen_run(x, t, a->cosines, at_c, count, w->c), widen_run(x, t, a->sines, at_s, count, w->s);
        widen_run(x, t, a->cosines, at_c + a->second, count, w->c + PAIRS), widen_run(x, t, a->sines, at_s + a->second, count, w->s + PAIRS);
        return;
    }
    if (a->is_neox && !a->second) {
        float joined[PAIRS];
        join_planes(t, a, row, a->cosines, a->cosine_stride, first, count, joined);
        widen_run(x, t, joined, 0, count, w->c), memcpy(w->c + PAIRS, w->c, (size_t)count * sizeof(float));
        join_planes(t, a, row, a->sines, a->sine_stride, first, count, joined);
        widen_run(x, t, joined, 0, count, w->s), memcpy(w->s + PAIRS, w->s, (size_t)count * sizeof(float));
        return;
    }
    for (int64_t i = 0; i < count; ++i) {
        const int64_t r = a->sections ? row[rope_plane(a, first + i)] : row[0], at_c = r * a->cosine_stride + first + i, at_s = r * a->sine_stride + first + i;
        const float   c1 = load_f32(t, a->cosines, at_c), s1 = load_f32(t, a->sines, at_s);
        if (!a->is_neox) {
            w->c[2 * i] = w->c[2 * i + 1] = c1, w->s[2 * i] = -s1, w->s[2 * i + 1] = s1;
            continue;
        }
        const int64_t k = kept_at(x, i, count);
        w->c[k] = c1, w->s[k] = s1;
        w->c[PAIRS + k] = a->second ? load_f32(t, a->cosines, at_c + a->second) : c1;
        w->s[PAIRS + k] = a->second ? load_f32(t, a->sines, at_s + a->second) : s1;
    }
}

/* Elements i and i + half, for i < count. */
SGK_INLINE void rotate_halves(sgk_dtype t, const void *from, int64_t x, void *to, int64_t out, int64_t count, int64_t half, const rope_angles *w)
{
    const float *c1 = w->c, *s1 = w->s, *c2 = w->c + PAIRS, *s2 = w->s + PAIRS;
    int64_t      i = 0;
    for (; i + 2 * VF <= count; i += 2 * VF) {
        vf u, v, y, z;
        vf_load_pairs(t, from, x + i, &u, &v), vf_load_pairs(t, from, x + half + i, &y, &z);
        const vf u1 = vf_sub(vf_mul(u, vf_load_f32(c1 + i)), vf_mul(y, vf_load_f32(s1 + i))), v1 = vf_sub(vf_mul(v, vf_load_f32(c1 + i + VF)), vf_mul(z, vf_load_f32(s1 + i + VF)));
        const vf u2 = vf_add(vf_mul(y, vf_load_f32(c2 + i)), vf_mul(u, vf_load_f32(s2 + i))), v2 = vf_add(vf_mul(z, vf_load_f32(c2 + i + VF)), vf_mul(v, vf_load_f32(s2 + i + VF)));
        vf_store_pairs(t, false, to, out + i, u1, v1);
        vf_store_pairs(t, false, to, out + half + i, u2, v2);
    }
    for (; i + VF <= count; i += VF) {
        const vf u = vf_load(t, from, x + i), v = vf_load(t, from, x + half + i);
        vf_store(t, to, out + i, vf_sub(vf_mul(u, vf_load_f32(c1 + i)), vf_mul(v, vf_load_f32(s1 + i))));
        vf_store(t, to, out + half + i, vf_add(vf_mul(v, vf_load_f32(c2 + i)), vf_mul(u, vf_load_f32(s2 + i))));
    }
    for (; i < count; ++i) {
        const float u = load_f32(t, from, x + i), v = load_f32(t, from, x + half + i);
        store_f32(t, to, out + i, u * c1[i] - v * s1[i]);
        store_f32(t, to, out + half + i, v * c2[i] + u * s2[i]);
    }
}

SGK_INLINE void rotate_neighbours(sgk_dtype t, const void *from, int64_t x, void *to, int64_t out, int64_t count, const rope_angles *w)
{
    int64_t i = 0;
    for (; i + VF <= 2 * count; i += VF) {
        const vf u = vf_load(t, from, x + i);
        vf_store(t, to, out + i, vf_add(vf_mul(u, vf_load_f32(w->c + i)), vf_mul(vf_swap_pairs(u), vf_load_f32(w->s + i))));
    }
    for (; i < 2 * count; i += 2) {
        const float u = load_f32(t, from, x + i), v = load_f32(t, from, x + i + 1);
        store_f32(t, to, out + i, u * w->c[i] + v * w->s[i]);
        store_f32(t, to, out + i + 1, v * w->c[i + 1] + u * w->s[i + 1]);
    }
}

SGK_INLINE int64_t place(const struct rope_heads *h, int64_t outer, int64_t inner) { return outer * h->outer_stride + inner * h->inner_stride; }

/* Asks for the rotating elements of a head. */
SGK_INLINE void ask_for(sgk_dtype t, int64_t rot_dim, const void *data, int64_t x)
{
    for (int64_t i = 0; i < rot_dim; i += 2 * VF) vf_prefetch2(t, data, x + i);
}

/* A token's keys and values on their way to the buffers: where they begin, and how many heads of first the keys, then the values are stored. */
typedef struct {
    bool    stream;
    int64_t k, v, k_to, v_to;
    int32_t done;
} storing;

SGK_INLINE void store_head(sgk_dtype t, const struct rope_args *a, storing *s)
{
    const int64_t            size = t == SGK_F32 ? 4 : 2;
    const bool               is_k = s->done < a->k_heads;
    const struct rope_heads *from = is_k ? &a->k_out : &a->v, *to = is_k ? &a->k_buffer : &a->v_buffer;
    const int64_t            n    = is_k ? s->done : s->done - a->k_heads;
    const char              *head = (const char *)from->data + ((is_k ? s->k : s->v) + n * from->head_stride) * size;
    copy_row((char *)to->data + ((is_k ? s->k_to : s->v_to) + n * to->head_stride) * size, head, a->head_size * size, s->stream, head + from->inner_stride * size);
    ++s->done;
}

/* Pairs [first, first + count) of every head; those of the token that begins at `next` are asked for. Between the heads a part of what is to be stored is. */
SGK_INLINE void rotate_heads(sgk_dtype t, int64_t rot_dim, bool is_neox, const struct rope_args *a, const struct rope_heads *from, const struct rope_heads *to, int32_t heads,
                             int64_t outer, int64_t inner, int64_t next, int64_t first, int64_t count, const rope_angles *w, storing *beside)
{
    int32_t due = 0;
    for (int64_t n = 0; n < heads; ++n) {
        const int64_t x = place(from, outer, inner) + n * from->head_stride, out = place(to, outer, inner) + n * to->head_stride;
        if (first == 0) ask_for(t, rot_dim, from->data, next + n * from->head_stride);
        if (is_neox) rotate_halves(t, from->data, x + first, to->data, out + first, count, rot_dim / 2, w);
        else rotate_neighbours(t, from->data, x + 2 * first, to->data, out + 2 * first, count, w);
        if (!beside) continue;
        for (due += 2 * a->k_heads; due >= heads; due -= heads) store_head(t, a, beside);
    }
}

/* `count` elements of every head; what is stored twice is computed once. */
SGK_INLINE void copy_heads(sgk_dtype t, bool stream, const struct rope_heads *from, int64_t x, const struct rope_heads *to, int64_t out, int32_t heads,
                           int64_t count)
{
    const int64_t size = t == SGK_F32 ? 4 : 2;
    for (int64_t n = 0; n < heads; ++n) {
        const char *head = (const char *)from->data + (x + n * from->head_stride) * size;
        copy_row((char *)to->data + (out + n * to->head_stride) * size, head, count * size, stream, head + from->inner_stride * size);
    }
}

SGK_INLINE void rope_tokens(sgk_dtype t, sgk_dtype angles, int64_t rot_dim, bool is_neox, const struct rope_args *a, int64_t begin, int64_t end)
{
    const int64_t half = rot_dim / 2, planes = a->sections ? 3 : 1, size = t == SGK_F32 ? 4 : 2, kept = 2 * a->k_heads * a->head_size * size;
    const bool    stores = a->k_buffer.data, stream = stores && kept > 0 && sgk_cpu_streams(a->k_buffer.data, a->tokens, kept, 1);
    storing       s = { .done = 0 };
    rope_angles   w;
    for (int64_t token = begin; token < end; ++token) {
        const int64_t outer = token / a->inner, inner = token % a->inner, next = token + 1 < end ? token + 1 : token;
        const int64_t next_q = place(&a->q, next / a->inner, next % a->inner), next_k = place(&a->k, next / a->inner, next % a->inner);
        int64_t       row[3] = { token };
        for (int64_t p = 0; a->positions && p < planes; ++p)
            row[p] = load_index(a->positions, p * a->plane_stride + outer * a->positions_outer_stride + inner * a->positions_inner_stride,
                                a->positions_wide ? SGK_I64 : SGK_I32);
        if (a->rest && a->k_out.data != a->k.data)
            copy_heads(t, false, &a->k, place(&a->k, outer, inner) + rot_dim, &a->k_out, place(&a->k_out, outer, inner) + rot_dim, a->k_heads, a->rest);
        if (stores) {
            const int64_t slot      = load_index(a->slots, token * a->slot_stride, a->slots_wide ? SGK_I64 : SGK_I32);
            const int64_t next_slot = load_index(a->slots, next * a->slot_stride, a->slots_wide ? SGK_I64 : SGK_I32);
            copy_page_soon((char *)a->k_buffer.data + next_slot * a->k_buffer.inner_stride * size, kept / 2);
            copy_page_soon((char *)a->v_buffer.data + next_slot * a->v_buffer.inner_stride * size, kept / 2);
            s = (storing){ stream, place(&a->k_out, outer, inner), place(&a->v, outer, inner), slot * a->k_buffer.inner_stride, slot * a->v_buffer.inner_stride, 0 };
        }
        for (int64_t first = 0; first < half; first += PAIRS) {
            const int64_t count = half - first < PAIRS ? half - first : PAIRS;
            widen(t, angles, a, row, first, count, &w);
            rotate_heads(t, rot_dim, is_neox, a, &a->k, &a->k_out, a->k_heads, outer, inner, next_k, first, count, &w, NULL);
            rotate_heads(t, rot_dim, is_neox, a, &a->q, &a->q_out, a->q_heads, outer, inner, next_q, first, count, &w, stores && first + count == half ? &s : NULL);
        }
        if (a->rest && a->q_out.data != a->q.data)
            copy_heads(t, false, &a->q, place(&a->q, outer, inner) + rot_dim, &a->q_out, place(&a->q_out, outer, inner) + rot_dim, a->q_heads, a->rest);
        while (stores && s.done < 2 * a->k_heads) store_head(t, a, &s);
    }
    if (stream) vf_stream_end();
}

/* Heads of 128 as a constant. */
SGK_INLINE void rope_of(sgk_dtype t, sgk_dtype angles, const struct rope_args *a, int64_t begin, int64_t end)
{
    if (t == SGK_BF16 && a->rot_dim == 128 && a->is_neox) rope_tokens(t, angles, 128, true, a, begin, end);
    else rope_tokens(t, angles, a->rot_dim, a->is_neox, a, begin, end);
}

/* No store can change the copy of the arguments. */
void SGK_CPU_FN(rope)(const void *args, int64_t begin, int64_t end)
{
    const struct rope_args a = *(const struct rope_args *)args;
    if (a.dtype == SGK_F32) rope_of(SGK_F32, SGK_F32, &a, begin, end);
    else if (a.dtype == SGK_F16 && a.angles == SGK_F16) rope_of(SGK_F16, SGK_F16, &a, begin, end);
    else if (a.dtype == SGK_F16) rope_of(SGK_F16, SGK_F32, &a, begin, end);
    else if (a.angles == SGK_BF16) rope_of(SGK_BF16, SGK_BF16, &a, begin, end);
    else rope_of(SGK_BF16, SGK_F32, &a, begin, end);
}
