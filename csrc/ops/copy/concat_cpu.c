#include "copy.h"
#include "cpu/copy.h"

SGK_INLINE const char *row_of(const struct concat_part *p, int64_t row, int64_t head)
{
    return (const char *)p->data + row * p->row_stride + head * p->head_stride;
}

enum { AHEAD = 16 };                                    /* heads that are asked for in time */

/* A part that all heads share is asked for a row ahead. */
SGK_INLINE const char *soon(const struct concat_part *p, const char *head) { return head + (p->head_stride ? AHEAD * p->head_stride : p->row_stride); }

/* a_bytes and b_bytes, the sizes of the parts, are constants where they are usual. What is not streamed is in a cache as a rule. */
SGK_INLINE void heads(bool stream, int64_t a_bytes, int64_t b_bytes, const struct concat_args *a, int64_t begin, int64_t end)
{
    for (int64_t n = begin; n < end;) {
        const int64_t row = n / a->heads, from = n - row * a->heads, to = end - row * a->heads < a->heads ? end - row * a->heads : a->heads;
        char         *out   = (char *)a->out + row * a->row_stride + from * a->head_stride;
        const char   *first = row_of(&a->a, row, from), *second = row_of(&a->b, row, from);
        n += to - from;
        for (int64_t head = from; head < to; ++head) {
            if (a_bytes) copy_row(out, first, a_bytes, stream, stream ? soon(&a->a, first) : NULL);
            if (b_bytes) copy_row(out + a_bytes, second, b_bytes, stream, stream ? soon(&a->b, second) : NULL);
            out += a->head_stride, first += a->a.head_stride, second += a->b.head_stride;
        }
    }
}

SGK_INLINE void of_size(bool stream, const struct concat_args *a, int64_t begin, int64_t end)
{
    if (a->a.bytes == 256 && a->b.bytes == 128) heads(stream, 256, 128, a, begin, end);
    else heads(stream, a->a.bytes, a->b.bytes, a, begin, end);
}

/* No store can change the copy of the arguments. */
void SGK_CPU_FN(concat)(const void *args, int64_t begin, int64_t end)
{
    const struct concat_args a = *(const struct concat_args *)args;
    if (!sgk_cpu_streams(a.out, a.rows * a.heads, a.a.bytes + a.b.bytes, 1)) {
        of_size(false, &a, begin, end);
        return;
    }
    of_size(true, &a, begin, end);
    vf_stream_end();
}
