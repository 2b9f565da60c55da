/* As downcast_ref.c, in f32: a product of two numbers of 11 bits is exact there. */
#include "copy.h"
#include "cpu/codes.h"
#include "cpu/copy.h"

enum { PIECE = 256,                                     /* elements */
       MANY  = 1024 };                                  /* from how many on a table of their codes is worth making */

/* t is a constant at every call, stream too. */
SGK_INLINE void rows_of(sgk_dtype t, bool stream, const struct downcast_args *a, int64_t begin, int64_t end)
{
    float      by[2];
    code_table table[2];
    bool       looked_up[2];
    for (int which = 0; which < 2; ++which) {
        float lanes[VF];
        vf_store_f32(lanes, vf_rounded(t, vf_div(vf_set(1), vf_rounded(t, vf_set(*a->rows[which].scale)))));
        by[which] = lanes[0];
        code_table_clear(&table[which]), table[which].long_lived = true;
        looked_up[which] = t == SGK_BF16 && (end - begin) * a->dim >= MANY && code_table_set(&table[which], by[which], true);
    }
    for (int64_t token = begin; token < end; ++token) {
        const int64_t next  = token + 1 < end ? token + 1 : token;
        const int64_t place = load_index(a->loc, token, a->wide_loc ? SGK_I64 : SGK_I32) * a->mult + a->offset;
        const int64_t soon  = load_index(a->loc, next, a->wide_loc ? SGK_I64 : SGK_I32) * a->mult + a->offset;
        for (int which = 0; which < 2; ++which) {
            const struct downcast_rows *r = &a->rows[which];
            const code_scale            k = { by[which], -448, 448, false, CODES_ENDS, true };
            copy_page_soon((uint8_t *)r->out + soon * r->out_stride, a->dim);
            for (int64_t d = 0; d < a->dim; d += PIECE) {
                const int64_t n = a->dim - d < PIECE ? a->dim - d : PIECE;
                for (int64_t i = d; i < d + n; i += 2 * VF) vf_prefetch2(t, r->x, next * r->stride + i);
                uint8_t *out = (uint8_t *)r->out + place * r->out_stride + d;
                if (looked_up[which]) codes_looked_up(stream, &table[which], &k, out, r->x, token * r->stride + d, n);
                else codes_run(t, SGK_E4M3, stream, &k, out, r->x, token * r->stride + d, n);
            }
        }
    }
    if (stream) vf_stream_end();
}

SGK_INLINE void tokens(sgk_dtype t, const struct downcast_args *a, int64_t begin, int64_t end)
{
    if (a->dim && sgk_cpu_streams(a->rows[0].out, a->tokens, 2 * a->dim, 1)) rows_of(t, true, a, begin, end);
    else rows_of(t, false, a, begin, end);
}

void SGK_CPU_FN(downcast)(const void *args, int64_t begin, int64_t end)
{
    const struct downcast_args *a = args;
    if (a->dtype == SGK_F16) tokens(SGK_F16, a, begin, end);
    else tokens(SGK_BF16, a, begin, end);
}
