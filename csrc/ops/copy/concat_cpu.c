#include "copy.h"
#include "cpu/copy.h"

SGK_INLINE const char *row_of(const struct concat_part *p, int64_t row, int64_t head)
{
    return (const char *)p->data + row * p->row_stride + head * p->head_stride;
}

SGK_INLINE void heads(bool stream, const struct concat_args *a, int64_t begin, int64_t end)
{
    int64_t row = begin / a->heads, head = begin % a->heads;
    for (int64_t n = begin; n < end; ++n) {
        char       *out   = (char *)a->out + row * a->row_stride + head * a->head_stride;
        const char *first = row_of(&a->a, row, head), *second = row_of(&a->b, row, head);
        if (++head == a->heads) head = 0, ++row;
        if (a->a.bytes) copy_row(out, first, a->a.bytes, stream, row_of(&a->a, row, head));
        if (a->b.bytes) copy_row(out + a->a.bytes, second, a->b.bytes, stream, row_of(&a->b, row, head));
    }
}

void SGK_CPU_FN(concat)(const void *args, int64_t begin, int64_t end)
{
    const struct concat_args *a = args;
    if (!sgk_cpu_streams(a->out, a->rows * a->heads, a->a.bytes + a->b.bytes, 1)) {
        heads(false, a, begin, end);
        return;
    }
    heads(true, a, begin, end);
    vf_stream_end();
}
