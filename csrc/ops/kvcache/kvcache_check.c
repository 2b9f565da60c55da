#include <stdio.h>
#include "check/check.h"

/* Places from 0 to slots - 1, none twice. */
static check_tensor *places(sgk_dtype index, int64_t tokens, int64_t slots)
{
    check_tensor *t = check_index(index, 0, 0, 1, tokens);
    for (int64_t i = 0, slot = check_int(0, (int)(slots / (tokens + 1))); i < tokens; ++i, slot += check_int(1, (int)(slots / (tokens + 1)))) check_set(t, tokens - 1 - i, (double)slot);
    return t;
}

static void check_store(sgk_dtype dtype, sgk_dtype index, int64_t tokens, int64_t heads, int64_t dim, int64_t v_dim, bool aligned)
{
    if (!check_case("store_kv_cache_%s_%s_%lldx%lldx%lld_%lld%s", check_dtype(dtype), check_dtype(index), (long long)tokens, (long long)heads, (long long)dim,
                    (long long)v_dim, aligned ? "" : "_unaligned")) return;
    const int64_t slots   = 3 * tokens + 5;
    check_tensor *k_cache = check_inout(dtype, 3, slots, heads, dim), *v_cache = check_inout(dtype, 3, slots, heads, v_dim);
    check_tensor *k = check_input(dtype, 3, tokens, heads, dim), *v = check_input(dtype, 3, tokens, heads, v_dim), *out_loc = places(index, tokens, slots);
    if (!aligned) check_unaligned(v);

    CHECK_CALL(sgk_store_kv_cache(T(k_cache), T(v_cache), T(out_loc), T(k), T(v), check_exec));
    check_equal(k_cache);
    check_equal(v_cache);
    check_done(2 * (double)(tokens * heads * (dim + v_dim)) * sgk_dtype_size(dtype), 0);
}

static void check_store_cache(sgk_dtype dtype, sgk_dtype index, int64_t tokens, int64_t heads, int64_t dim)
{
    if (!check_case("store_cache_cpu_%s_%s_%lldx%lldx%lld", check_dtype(dtype), check_dtype(index), (long long)tokens, (long long)heads, (long long)dim)) return;
    const int64_t slots   = 3 * tokens + 5;
    check_tensor *k_cache = check_inout(dtype, 3, slots, heads, dim), *v_cache = check_inout(dtype, 3, slots, heads, dim);
    check_tensor *k = check_input(dtype, 3, tokens, heads, dim), *v = check_input(dtype, 3, tokens, heads, dim), *indices = places(index, tokens, slots);

    CHECK_CALL(sgk_store_cache(T(k_cache), T(v_cache), T(indices), T(k), T(v), heads * dim, check_exec));
    check_equal(k_cache);
    check_equal(v_cache);
    CHECK_REFUSED(SGK_BAD_ARG, "store_cache_cpu: row_dim is 1, expected", sgk_store_cache(T(k_cache), T(v_cache), T(indices), T(k), T(v), 1, check_exec));
    check_done(0, 0);
}

/* Rows of k with heads apart go to a cache that has them flat, or in other dimensions. */
static void check_store_flat(sgk_dtype dtype)
{
    if (!check_case("store_kv_cache_%s_flat", check_dtype(dtype))) return;
    check_tensor *k_cache = check_inout_dense(dtype, 2, (int64_t)40, (int64_t)48), *v_cache = check_inout_dense(dtype, 4, (int64_t)40, (int64_t)3, (int64_t)4, (int64_t)4);
    check_tensor *k = check_input(dtype, 3, (int64_t)6, (int64_t)3, (int64_t)16), *v = check_input(dtype, 3, (int64_t)6, (int64_t)3, (int64_t)16);
    check_tensor *out_loc = places(SGK_I64, 6, 40);

    CHECK_CALL(sgk_store_kv_cache(T(k_cache), T(v_cache), T(out_loc), T(k), T(v), check_exec));
    check_equal(k_cache);
    check_equal(v_cache);
    check_done(0, 0);
}

/* On the GPU a place is looked at where check_indices asks for it. */
static void check_store_refused(sgk_dtype index, double place)
{
    if (!check_case("store_kv_cache_%s_place_%g", check_dtype(index), place)) return;
    check_switches.check_indices = SGK_ON;
    char words[80];
    snprintf(words, sizeof words, "store_kv_cache: out_loc[2] is %g, expected 0 to 6", place);
    check_tensor *k_cache = check_inout(SGK_F32, 2, (int64_t)7, (int64_t)8), *v_cache = check_inout(SGK_F32, 2, (int64_t)7, (int64_t)8);
    check_tensor *k = check_input(SGK_F32, 2, (int64_t)3, (int64_t)8), *v = check_input(SGK_F32, 2, (int64_t)3, (int64_t)8);
    check_tensor *out_loc = check_values(index, (double[]){ 0, 6, place }, 1, (int64_t)3);
    CHECK_REFUSED(SGK_BAD_ARG, words, sgk_store_kv_cache(T(k_cache), T(v_cache), T(out_loc), T(k), T(v), check_exec));
    check_set(out_loc, 2, 5);                               /* and a call that is right goes on as ever, captured or not */
    CHECK_CALL(sgk_store_kv_cache(T(k_cache), T(v_cache), T(out_loc), T(k), T(v), check_exec));
    check_equal(k_cache);
    check_equal(v_cache);
    check_done(0, 0);
}

void check_kvcache(void)
{
    check_store_refused(SGK_I32, 7);
    check_store_refused(SGK_I64, -1);
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16, SGK_E4M3, SGK_U8 };
    for (size_t f = 0; f < sizeof formats / sizeof *formats; ++f) {
        check_store(formats[f], f % 2 ? SGK_I32 : SGK_I64, check_small ? 3 : check_int(1, 70), 2, 64, 64, true);
        check_store(formats[f], SGK_I32, 5, 1, 576, 512, true);
        check_store(formats[f], SGK_I64, 4, 3, 7, 5, true);
        check_store(formats[f], SGK_I64, 4, 2, 32, 32, false);
        check_store_flat(formats[f]);
        check_store_cache(formats[f], f % 2 ? SGK_I64 : SGK_I32, 7, 3, 64);
    }
    check_store(SGK_BF16, SGK_I64, 0, 2, 64, 64, true);
    check_store(SGK_BF16, SGK_I32, 2051, 2, 8, 16, true);               /* several tokens a block, and a rest */
    if (check_benching) {
        check_store(SGK_BF16, SGK_I64, 1, 8, 128, 128, true);
        check_store(SGK_BF16, SGK_I64, 64, 8, 128, 128, true);
        check_store(SGK_BF16, SGK_I64, 8192, 8, 128, 128, true);
    }
}
