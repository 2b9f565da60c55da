#include <stdio.h>
#include "check/check.h"
#include "rope.h"
#include "rope_norm.h"

typedef struct {
    sgk_dtype dtype, positions;
    int64_t   tokens, query_heads, key_heads, head_size, rot_dim;       /* key_heads 0: there is no key */
    bool      neox, split, unaligned;                                   /* split: [.., H, D], otherwise [.., H D] */
} rope_case;

enum { MAX_POSITION = 97 };

/* The clock is for tensors without gaps, as an engine's are. */
static check_tensor *heads(const rope_case *c, int64_t count)
{
    if (count == 0) return NULL;
    if (check_benching && c->query_heads == 32) return check_inout_dense(c->dtype, 2, c->tokens, count * c->head_size);
    return c->split ? check_inout(c->dtype, 3, c->tokens, count, c->head_size) : check_inout(c->dtype, 2, c->tokens, count * c->head_size);
}

static void check_rotary_embedding(rope_case c)
{
    if (!check_case("rotary_embedding_%s_%s_%lldx%lld+%lldx%lld_%lld%s%s%s", check_dtype(c.dtype), check_dtype(c.positions), (long long)c.tokens,
                    (long long)c.query_heads, (long long)c.key_heads, (long long)c.head_size, (long long)c.rot_dim, c.neox ? "_neox" : "",
                    c.split ? "_split" : "", c.unaligned ? "_unaligned" : "")) return;
    check_tensor *query = heads(&c, c.query_heads), *key = heads(&c, c.key_heads);
    check_tensor *positions = check_index(c.positions, 0, MAX_POSITION - 1, 1, c.tokens);
    check_tensor *cache     = check_input(c.dtype, 2, (int64_t)MAX_POSITION, c.rot_dim);
    check_legal(cache, CHECK_SIZE(0));
    check_legal(positions, CHECK_STRIDE);
    if (key) check_legal(key, CHECK_NULL | (c.split ? CHECK_SIZE(1) : 0));
    if (c.split && c.key_heads < 2) check_legal(query, CHECK_SIZE(1));
    if (c.rot_dim == 0) check_legal(cache, CHECK_ANY_SIZE);
    if (c.unaligned) check_unaligned(key ? key : query);

    CHECK_CALL(sgk_rotary_embedding(T(query), T(key), T(positions), T(cache), c.head_size, c.neox, check_exec));
    check_close(query, check_tolerance(c.dtype));
    if (key) check_close(key, check_tolerance(c.dtype));

    const double n = (double)c.tokens * (double)(c.query_heads + c.key_heads) * (double)c.rot_dim;
    check_done(2 * n * sgk_dtype_size(c.dtype) + 8 * (double)c.tokens, 3 * n);
}

/* positions, query and key of two leading dimensions, and query and key of different ranks */
static void check_rotary_embedding_batch(sgk_dtype dtype, bool neox)
{
    if (!check_case("rotary_embedding_%s_batch%s", check_dtype(dtype), neox ? "_neox" : "")) return;
    check_tensor *query     = check_inout(dtype, 4, (int64_t)3, (int64_t)5, (int64_t)4, (int64_t)32);
    check_tensor *key       = check_inout(dtype, 3, (int64_t)3, (int64_t)5, (int64_t)(2 * 32));
    check_tensor *positions = check_index(SGK_I64, 0, MAX_POSITION - 1, 2, (int64_t)3, (int64_t)5);
    check_tensor *cache     = check_input(dtype, 2, (int64_t)MAX_POSITION, (int64_t)32);
    check_legal(cache, CHECK_SIZE(0));
    check_legal(positions, CHECK_STRIDE);
    check_legal(key, CHECK_NULL);

    CHECK_CALL(sgk_rotary_embedding(T(query), T(key), T(positions), T(cache), 32, neox, check_exec));
    check_close(query, check_tolerance(dtype));
    check_close(key, check_tolerance(dtype));
    check_done(0, 0);
}

/* A position without a row in the cache; on the GPU check_indices asks for the look at it. The gap behind each row of positions has none either. */
static void check_rotary_embedding_out_of_range(double position)
{
    if (!check_case("rotary_embedding_position_%g", position)) return;
    check_switches.check_indices  = SGK_ON;
    check_switches.keep_arguments = true;
    char words[120];
    snprintf(words, sizeof words, "rotary_embedding: positions has %g for token 5, expected 0 to 96, the rows of cos_sin_cache", position);
    check_tensor *query     = check_inout(SGK_F32, 3, (int64_t)2, (int64_t)3, (int64_t)64);
    check_tensor *positions = check_input(SGK_I64, 2, (int64_t)2, (int64_t)3);
    check_tensor *cache     = check_input(SGK_F32, 2, (int64_t)MAX_POSITION, (int64_t)64);
    for (int64_t i = 0; i < 6; ++i) check_set(positions, i, i == 5 ? position : 16.0 * (double)i);
    CHECK_REFUSED(SGK_BAD_ARG, words, sgk_rotary_embedding(T(query), NULL, T(positions), T(cache), 64, true, check_exec));
    check_set(positions, 5, 96);                            /* and a call that is right goes on as ever, captured or not */
    CHECK_CALL(sgk_rotary_embedding(T(query), NULL, T(positions), T(cache), 64, true, check_exec));
    check_close(query, check_tolerance(SGK_F32));
    check_done(0, 0);
}

void check_rope(void)
{
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16 };
    for (size_t f = 0; f < 3; ++f)
        for (int neox = 0; neox < 2; ++neox) {
            const sgk_dtype t = formats[f];
            const bool      n = neox;
            check_rotary_embedding((rope_case){ t, SGK_I64, 3, 4, 2, 64, 64, n, false, false });
            check_rotary_embedding((rope_case){ t, SGK_I32, 2, 3, 1, 128, 128, n, true, false });
            check_rotary_embedding((rope_case){ t, SGK_I64, 3, 2, 0, 128, 64, n, false, false });
            check_rotary_embedding((rope_case){ t, SGK_I64, 5, 4, 2, 80, 40, n, true, false });
            check_rotary_embedding((rope_case){ t, SGK_I64, 3, 4, 2, 64, 64, n, false, true });
            check_rotary_embedding((rope_case){ t, SGK_I32, 2, 3, 3, 11, 6, n, true, false });
            check_rotary_embedding((rope_case){ t, SGK_I64, 4, 2, 2, 2, 2, n, false, false });
            check_rotary_embedding((rope_case){ t, SGK_I64, 300, 3, 1, 64, 32, n, true, false });
            if (check_on_gpu()) check_rotary_embedding((rope_case){ t, SGK_I64, 1640, 32, 8, 128, 128, n, true, false });     /* more than the GPU holds at once */
            check_rotary_embedding_batch(t, n);
            if (check_small) continue;
            check_rotary_embedding((rope_case){ t, SGK_I64, 0, 4, 2, 64, 64, n, false, false });
            check_rotary_embedding((rope_case){ t, SGK_I64, 3, 4, 2, 64, 0, n, false, false });
            check_rotary_embedding((rope_case){ t, SGK_I64, 7, 5, 5, 256, 128, n, true, false });
            check_rotary_embedding((rope_case){ t, SGK_I64, 2, 4, 2, 512, 512, n, false, false });
            check_rotary_embedding((rope_case){ t, SGK_I64, 2, 2, 2, 1200, 1100, n, false, false });
            check_rotary_embedding((rope_case){ t, SGK_I64, check_int(20, 60), 32, 8, 128, 128, n, false, false });
        }
    check_apply_rope();
    check_rope_forms();
    check_qk_norm_rope();
    check_rotary_embedding_out_of_range(97);
    check_rotary_embedding_out_of_range(-1);
    if (check_benching) {
        check_rotary_embedding((rope_case){ SGK_BF16, SGK_I64, 1, 32, 8, 128, 128, true, false, false });
        check_rotary_embedding((rope_case){ SGK_BF16, SGK_I64, 64, 32, 8, 128, 128, true, false, false });
        check_rotary_embedding((rope_case){ SGK_BF16, SGK_I64, 8192, 32, 8, 128, 128, true, false, false });
    }
}
