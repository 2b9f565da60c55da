/* The definition. */
#include "base/convert.h"
#include "cpu/cpu.h"
#include "grammar.h"

static void fill(const struct token_bitmask_args *a, int64_t first, int64_t count)
{
    if (a->size == 4)
        for (int64_t i = 0; i < count; ++i) ((uint32_t *)a->logits)[first + i] = a->fill;
    else
        for (int64_t i = 0; i < count; ++i) ((uint16_t *)a->logits)[first + i] = (uint16_t)a->fill;
}

/* Item n is block n % blocks of the row that place n / blocks of indices names. */
void token_bitmask_ref(const void *args, int64_t begin, int64_t end)
{
    const struct token_bitmask_args *a      = args;
    const int64_t                    blocks = (a->columns + GRAMMAR_BLOCK - 1) / GRAMMAR_BLOCK;
    for (int64_t n = begin; n < end; ++n) {
        const int64_t row = a->indices ? a->indices[n / blocks] : n / blocks, first = n % blocks * GRAMMAR_BLOCK;
        const int64_t last = first + GRAMMAR_BLOCK < a->columns ? first + GRAMMAR_BLOCK : a->columns;
        for (int64_t j = first; j < last; j += 32) {
            const uint32_t allowed = (uint32_t)a->bitmask[row * a->bitmask_stride + j / 32];
            const int64_t  some    = last - j < 32 ? last - j : 32;
            if (allowed == 0) fill(a, row * a->logits_stride + j, some);
            else
                for (int64_t i = 0; i < some; ++i)
                    if (!(allowed >> i & 1)) fill(a, row * a->logits_stride + j + i, 1);
        }
    }
}
