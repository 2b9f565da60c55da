#include <stdio.h>
#include "check/check.h"
#include "rope.h"

enum { ROWS = 97 };

/* Out of place, tokens in one dimension or two. */
static void check_out(sgk_dtype dtype, int64_t tokens, int64_t heads, int64_t head_size, int64_t rot_dim, bool neox, bool in_place)
{
    if (!check_case("rotary_embedding_cpu_%s_%lldx%lldx%lld_%lld%s%s", check_dtype(dtype), (long long)tokens, (long long)heads, (long long)head_size,
                    (long long)rot_dim, neox ? "_neox" : "", in_place ? "_in_place" : "")) return;
    check_tensor *query     = in_place ? check_inout(dtype, 3, tokens, heads, head_size) : check_input(dtype, 3, tokens, heads, head_size);
    check_tensor *key       = in_place ? check_inout(dtype, 2, tokens, head_size) : check_input(dtype, 2, tokens, head_size);
    check_tensor *query_out = in_place ? query : check_output(dtype, 3, tokens, heads, head_size), *key_out = in_place ? key : check_output(dtype, 2, tokens, head_size);
    check_tensor *positions = check_index(SGK_I64, 0, ROWS - 1, 1, tokens), *cache = check_input(dtype, 2, (int64_t)ROWS, rot_dim);
    check_legal(cache, CHECK_SIZE(0));
    check_legal(positions, CHECK_STRIDE);
    check_switches.keep_arguments = in_place;           /* one tensor in two places cannot be broken in one */

    CHECK_CALL(sgk_rotary_embedding_out(T(query_out), T(key_out), T(query), T(key), T(positions), T(cache), head_size, neox, check_exec));
    check_close(query_out, check_tolerance(dtype));
    check_close(key_out, check_tolerance(dtype));
    check_done(0, 0);
}

/* A query of four dimensions whose positions have one. */
static void check_folded_positions(sgk_dtype dtype, bool neox)
{
    if (!check_case("rotary_embedding_%s_folded_positions%s", check_dtype(dtype), neox ? "_neox" : "")) return;
    check_tensor *query = check_inout(dtype, 4, (int64_t)2, (int64_t)3, (int64_t)3, (int64_t)32), *key = check_inout(dtype, 4, (int64_t)2, (int64_t)3, (int64_t)3, (int64_t)32);
    check_tensor *positions = check_index(SGK_I64, 0, ROWS - 1, 1, (int64_t)6), *cache = check_input(dtype, 2, (int64_t)ROWS, (int64_t)32);
    check_legal(cache, CHECK_SIZE(0));
    check_legal(positions, CHECK_STRIDE);
    check_legal(key, CHECK_NULL);
    CHECK_CALL(sgk_rotary_embedding(T(query), T(key), T(positions), T(cache), 32, neox, check_exec));
    check_close(query, check_tolerance(dtype));
    check_close(key, check_tolerance(dtype));
    check_done(0, 0);
}

static void check_multimodal(sgk_dtype dtype, int64_t tokens, int64_t head_size, int64_t rot_dim, bool planes, bool interleaved, bool neox)
{
    if (!check_case("multimodal_rotary_embedding_%s_%lldx%lld_%lld%s%s%s", check_dtype(dtype), (long long)tokens, (long long)head_size, (long long)rot_dim,
                    planes ? "" : "_text", interleaved ? "_interleaved" : "", neox ? "_neox" : "")) return;
    const int64_t section[] = { rot_dim / 4, rot_dim / 8, rot_dim / 2 - rot_dim / 4 - rot_dim / 8 };
    check_tensor *query = check_inout(dtype, 2, tokens, 3 * head_size), *key = check_inout(dtype, 2, tokens, head_size);
    check_tensor *positions = planes ? check_index(SGK_I64, 0, ROWS - 1, 2, (int64_t)3, tokens) : check_index(SGK_I32, 0, ROWS - 1, 1, tokens);
    check_tensor *cache     = check_input(dtype, 2, (int64_t)ROWS, rot_dim);
    check_legal(cache, CHECK_SIZE(0));
    check_legal(positions, CHECK_STRIDE | (planes ? CHECK_NDIM : 0));
    check_legal(key, CHECK_NULL);

    CHECK_CALL(sgk_multimodal_rotary_embedding(T(query), T(key), T(positions), T(cache), head_size, planes ? section : NULL, planes ? 3 : 0, interleaved, neox, check_exec));
    check_close(query, check_tolerance(dtype));
    check_close(key, check_tolerance(dtype));
    check_done(0, 0);
}

/* A plane's position is looked at like any other. */
static void check_multimodal_refused(void)
{
    if (!check_case("multimodal_rotary_embedding_position")) return;
    check_switches.check_indices  = SGK_ON;
    check_switches.keep_arguments = true;
    const int64_t section[]       = { 4, 2, 2 };
    check_tensor *query = check_inout(SGK_F32, 2, (int64_t)2, (int64_t)16), *cache = check_input(SGK_F32, 2, (int64_t)5, (int64_t)16);
    check_tensor *positions = check_values(SGK_I64, (double[]){ 0, 1, 2, 3, 4, 5 }, 2, (int64_t)3, (int64_t)2);
    CHECK_REFUSED(SGK_BAD_ARG, "positions has 5 for token 1, expected 0 to 4",
                  sgk_multimodal_rotary_embedding(T(query), NULL, T(positions), T(cache), 16, section, 3, false, true, check_exec));
    CHECK_REFUSED(SGK_BAD_ARG, "mrope_section has 2 numbers, expected 3",
                  sgk_multimodal_rotary_embedding(T(query), NULL, T(positions), T(cache), 16, section, 2, false, true, check_exec));
    check_done(0, 0);
}

static void check_pos_emb(sgk_dtype dtype, sgk_dtype angles, int64_t tokens, int64_t heads, int64_t head_size)
{
    if (!check_case("apply_rotary_pos_emb_%s_%s_%lldx%lldx%lld", check_dtype(dtype), check_dtype(angles), (long long)tokens, (long long)heads, (long long)head_size)) return;
    check_tensor *query = check_inout(dtype, 3, tokens, heads, head_size), *key = check_inout(dtype, 3, tokens, heads, head_size);
    check_tensor *cos = check_input(angles, 2, tokens, head_size), *sin = check_input(angles, 2, tokens, head_size);
    check_legal(query, CHECK_SIZE(1));
    check_legal(key, CHECK_SIZE(1));
    if (dtype != angles) check_legal(cos, 0);

    CHECK_CALL(sgk_apply_rotary_pos_emb(T(query), T(key), T(cos), T(sin), check_exec));
    check_close(query, check_tolerance(dtype));
    check_close(key, check_tolerance(dtype));
    check_done(4 * (double)(tokens * heads * head_size) * sgk_dtype_size(dtype) + 2 * (double)(tokens * head_size) * sgk_dtype_size(angles), 0);
}

void check_rope_forms(void)
{
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16 };
    for (size_t f = 0; f < 3; ++f) {
        const sgk_dtype t = formats[f];
        for (int neox = 0; neox < 2; ++neox) {
            check_out(t, 3, 4, 64, 64, neox, false);
            check_out(t, 2, 3, 22, 6, neox, false);
            check_out(t, 300, 3, 64, 32, neox, false);
            check_out(t, 3, 4, 64, 64, neox, true);
            check_folded_positions(t, neox);
            for (int interleaved = 0; interleaved < 2; ++interleaved) {
                check_multimodal(t, 5, 64, 64, true, interleaved, neox);
                check_multimodal(t, 300, 64, 32, true, interleaved, neox);
                check_multimodal(t, 3, 22, 22, true, interleaved, neox);
                if (!check_small) check_multimodal(t, 2, 1100, 1100, true, interleaved, neox);
            }
            check_multimodal(t, 4, 64, 64, false, false, neox);
        }
        check_pos_emb(t, t, 3, 2, 64);
        check_pos_emb(t, t, 4, 3, 72);
        check_pos_emb(t, SGK_F32, 3, 3, 80);
        check_pos_emb(t, SGK_F32, 3, 2, 72);
        check_pos_emb(t, SGK_F32, 2, 2, 6);
        if (check_small) continue;
        check_pos_emb(t, t, 0, 2, 64);
        check_pos_emb(t, SGK_F32, 400, 16, 80);
        check_pos_emb(t, t, 2, 1, 1100);
    }
    check_multimodal_refused();
    if (check_benching) {
        check_pos_emb(SGK_BF16, SGK_F32, 8192, 16, 80);
        check_pos_emb(SGK_BF16, SGK_F32, 8192, 16, 72);
    }
}
