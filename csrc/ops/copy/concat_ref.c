/* The definition. Everything else is a faster way to get these bytes. */
#include <string.h>
#include "copy.h"
#include "cpu/cpu.h"

static const void *row_of(const struct concat_part *p, int64_t row, int64_t head)
{
    return (const char *)p->data + row * p->row_stride + head * p->head_stride;
}

/* Item n is head n % heads of row n / heads. */
void concat_ref(const void *args, int64_t begin, int64_t end)
{
    const struct concat_args *a = args;
    for (int64_t n = begin; n < end; ++n) {
        const int64_t row = n / a->heads, head = n % a->heads;
        char         *out = (char *)a->out + row * a->row_stride + head * a->head_stride;
        if (a->a.bytes) memcpy(out, row_of(&a->a, row, head), (size_t)a->a.bytes);
        if (a->b.bytes) memcpy(out + a->a.bytes, row_of(&a->b, row, head), (size_t)a->b.bytes);
    }
}
