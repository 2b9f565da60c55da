#include <math.h>
#include "check/check.h"

/* words of nothing allowed, of everything, and of some */
static check_tensor *masks(int64_t rows, int64_t words)
{
    check_tensor *t = check_input(SGK_I32, 2, rows, words);
    for (int64_t i = 0; i < rows * words; ++i) {
        const int      kind = check_int(0, 3);
        const uint32_t some = (uint32_t)check_int(0, 0xffff) << 16 | (uint32_t)check_int(0, 0xffff);
        check_set_code(t, i, kind == 0 ? 0 : kind == 1 ? ~0u
                                         : kind == 2   ? some & (some >> 3)
                                                       : some);
    }
    return t;
}

/* What a call must move: the bits, the 32 bytes around every masked logit, and those twice where they hold an allowed one, too. */
static double moved(const check_tensor *bitmask, int64_t words, int size)
{
    const int      span  = 32 / size;                           /* logits in 32 bytes */
    const uint32_t all   = (uint32_t)((1ull << span) - 1);
    double         bytes = 4 * (double)words;
    for (int64_t i = 0; i < words; ++i)
        for (int s = 0; s < 32; s += span) {
            const uint32_t allowed = (uint32_t)(int64_t)check_get(bitmask, i) >> s & all;
            if (allowed != all) bytes += allowed ? 64 : 32;
        }
    return bytes;
}

/* named: 0 for all rows, otherwise how many indices */
static void check_bitmask(sgk_dtype dtype, int64_t rows, int64_t vocabulary, int64_t words, int64_t named, bool aligned)
{
    if (!check_case("apply_token_bitmask_inplace_cuda_%s_%lldx%lld_%lld_%lld%s", check_dtype(dtype), (long long)rows, (long long)vocabulary, (long long)words,
                    (long long)named, aligned ? "" : "_unaligned")) return;
    check_tensor *logits  = check_inout(dtype, 2, rows, vocabulary);
    check_tensor *bitmask = masks(named ? rows + 2 : rows, words);
    check_tensor *indices = named ? check_index(SGK_I32, 0, (int)rows - 1, 1, named) : NULL;
    check_legal(logits, CHECK_DTYPE | CHECK_SIZE(1) | (named ? CHECK_NDIM | CHECK_SIZE(0) : 0));
    check_legal(bitmask, CHECK_SIZE(1) | (named ? CHECK_NDIM | CHECK_SIZE(0) : 0));        /* fewer words; more: below */
    if (named) check_legal(indices, CHECK_SIZE(0));
    if (!aligned) check_unaligned(logits);

    CHECK_CALL(sgk_apply_token_bitmask_inplace(T(logits), T(bitmask), T(indices), check_exec));
    check_equal(logits);
    if (!named)
        for (int64_t i = 0; i < rows * vocabulary; ++i) {
            const int64_t row = i / vocabulary, j = i % vocabulary;
            const bool    masked = j < 32 * words && !((int64_t)check_get(bitmask, row * words + j / 32) >> j % 32 & 1);
            const double  found = check_result_of(logits, i), wanted = masked ? -INFINITY : check_get(logits, i);
            if (!(found == wanted)) {
                check_that(false, "logits[%lld, %lld] is %g, expected %g", (long long)row, (long long)j, found, wanted);
                break;
            }
        }
    check_done(named ? 0 : moved(bitmask, rows * words, sgk_dtype_size(dtype)), 0);
}

static void check_bitmask_one_row(sgk_dtype dtype)
{
    if (!check_case("apply_token_bitmask_inplace_cuda_%s_100", check_dtype(dtype))) return;
    static const double words[] = { 5, -1, 0, 0x7ffffff0 };
    check_tensor       *logits = check_inout(dtype, 1, (int64_t)100), *bitmask = check_values(SGK_I32, words, 1, (int64_t)4);
    check_legal(logits, CHECK_DTYPE | CHECK_NDIM | CHECK_SIZE(0));
    check_legal(bitmask, CHECK_NDIM | CHECK_SIZE(0));
    CHECK_CALL(sgk_apply_token_bitmask_inplace(T(logits), T(bitmask), NULL, check_exec));
    check_equal(logits);
    for (int i = 0; i < 4; ++i)
        check_that(check_result_of(logits, i) == (i % 2 ? -INFINITY : check_get(logits, i)), "logits[%d] is %g", i, check_result_of(logits, i));
    check_done(0, 0);
}

static void check_bitmask_refused(double index)
{
    if (!check_case("apply_token_bitmask_inplace_cuda_index_%g", index)) return;
    const double  indices_[] = { 2, index };
    check_tensor *logits = check_inout(SGK_F32, 2, (int64_t)3, (int64_t)64), *bitmask = masks(3, 2), *indices = check_values(SGK_I32, indices_, 1, (int64_t)2);
    check_switches.check_indices = SGK_ON;
    CHECK_REFUSED(SGK_BAD_ARG, "indices[1] is", sgk_apply_token_bitmask_inplace(T(logits), T(bitmask), T(indices), check_exec));
    check_done(0, 0);
}

static void check_bitmask_too_wide(void)
{
    if (!check_case("apply_token_bitmask_inplace_cuda_too_wide")) return;
    check_tensor *logits = check_inout(SGK_F32, 2, (int64_t)3, (int64_t)64), *bitmask = masks(3, 3);
    CHECK_REFUSED(SGK_BAD_ARG, "expected at most 2", sgk_apply_token_bitmask_inplace(T(logits), T(bitmask), NULL, check_exec));
    check_done(0, 0);
}

void check_grammar(void)
{
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16 };
    for (size_t f = 0; f < 3; ++f) {
        const sgk_dtype t = formats[f];
        check_bitmask(t, 3, 128, 4, 0, true);
        check_bitmask(t, 2, 100, 4, 0, true);
        check_bitmask(t, 3, 101, 3, 0, false);
        check_bitmask(t, 4, 96, 3, 3, true);
        check_bitmask_one_row(t);
        if (check_small) continue;
        check_bitmask(t, 0, 64, 2, 0, true);
        check_bitmask(t, 2, 64, 0, 0, true);
        check_bitmask(t, 2, 1, 1, 0, true);
        check_bitmask(t, 5, 8200, 257, 0, true);
        check_bitmask(t, 3, 20000, 600, 2, true);
        check_bitmask(t, 2, 33000, 1032, 0, false);
    }
    check_bitmask_too_wide();
    check_bitmask_refused(3);
    check_bitmask_refused(-1);
    if (check_benching) {
        check_bitmask(SGK_BF16, 64, 131072, 4096, 0, true);
        check_bitmask(SGK_F32, 256, 128256, 4008, 0, true);
    }
}
