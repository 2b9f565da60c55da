/* The definition. Everything else in this folder is a faster way to get these numbers. */
#include <string.h>
#include "base/convert.h"
#include "cpu/cpu.h"
#include "moe.h"

void shuffle_rows_ref(const void *args, int64_t begin, int64_t end)
{
    const struct shuffle_rows_args *a = args;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t source = load_index(a->map, i, a->wide_map ? SGK_I64 : SGK_I32);
        memcpy((char *)a->output + i * a->output_stride, (const char *)a->input + source * a->input_stride, (size_t)a->bytes);
    }
}

/* Item n is block n % blocks of token n / blocks. */
void moe_sum_ref(const void *args, int64_t begin, int64_t end)
{
    const struct moe_sum_args *a      = args;
    const int64_t              blocks = (a->dim + MOE_BLOCK - 1) / MOE_BLOCK;
    for (int64_t n = begin; n < end; ++n) {
        const int64_t token = n / blocks, first = n % blocks * MOE_BLOCK, last = first + MOE_BLOCK < a->dim ? first + MOE_BLOCK : a->dim;
        for (int64_t d = first; d < last; ++d) {
            double sum = 0;
            for (int64_t j = 0; j < a->terms; ++j) {
                const int64_t term = token * a->terms + j;
                const int64_t row  = a->permutation ? load_index(a->permutation, term, a->wide_permutation ? SGK_I64 : SGK_I32) * a->term_stride
                                                    : token * a->token_stride + j * a->term_stride;
                sum += (a->factors ? load_as_f64(a->factors, term, a->dtype) : 1) * load_as_f64(a->input, row + d, a->dtype);
            }
            store_f64(a->output, token * a->output_stride + d, a->dtype, a->scale * sum);
        }
    }
}
