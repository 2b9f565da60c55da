/* A word of the mask at a time: stores under its bits where the CPU has them, otherwise the 32 logits with some of them replaced. */
#include "cpu/simd.h"
#include "grammar.h"

enum { AHEAD = 8192 };                                  /* bytes that are asked for in time */

/* size is a constant at every call. */
SGK_INLINE void store_under(int size, void *logits, uint32_t masked, uint32_t fill)
{
#if defined(__AVX512F__)
    if (size == 4) {
        _mm512_mask_storeu_ps(logits, (__mmask16)masked, _mm512_castsi512_ps(_mm512_set1_epi32((int)fill)));
        _mm512_mask_storeu_ps((float *)logits + 16, (__mmask16)(masked >> 16), _mm512_castsi512_ps(_mm512_set1_epi32((int)fill)));
    } else {
        _mm512_mask_storeu_epi16(logits, masked, _mm512_set1_epi32((int)fill));
    }
#else
    for (int i = 0; i < 32; ++i) {
        if (size == 4) ((uint32_t *)logits)[i] = masked >> i & 1 ? fill : ((uint32_t *)logits)[i];
        else ((uint16_t *)logits)[i] = masked >> i & 1 ? (uint16_t)fill : ((uint16_t *)logits)[i];
    }
#endif
}

SGK_INLINE void blocks_of(int size, const struct token_bitmask_args *a, int64_t begin, int64_t end)
{
    const int64_t blocks = (a->columns + GRAMMAR_BLOCK - 1) / GRAMMAR_BLOCK;
    for (int64_t n = begin; n < end; ++n) {
        const int64_t  row = a->indices ? a->indices[n / blocks] : n / blocks, first = n % blocks * GRAMMAR_BLOCK;
        const int64_t  last  = first + GRAMMAR_BLOCK < a->columns ? first + GRAMMAR_BLOCK : a->columns;
        const int32_t *words = a->bitmask + row * a->bitmask_stride;
        char          *line  = (char *)a->logits + row * a->logits_stride * size;
        int64_t        j     = first;
        for (; j + 32 <= last; j += 32) {
            const uint32_t masked = ~(uint32_t)words[j / 32];
            if (!masked) continue;
            for (int i = 0; i < 32 * size; i += 64) __builtin_prefetch(line + j * size + AHEAD + i);        /* masked words are seldom alone */
            store_under(size, line + j * size, masked, a->fill);
        }
        for (; j < last; ++j) {
            if ((uint32_t)words[j / 32] >> j % 32 & 1) continue;
            if (size == 4) ((uint32_t *)line)[j] = a->fill;
            else ((uint16_t *)line)[j] = (uint16_t)a->fill;
        }
    }
}

void SGK_CPU_FN(token_bitmask)(const void *args, int64_t begin, int64_t end)
{
    const struct token_bitmask_args *a = args;
    if (a->size == 4) blocks_of(4, a, begin, end);
    else blocks_of(2, a, begin, end);
}
