#include "dsv4.h"
#include <math.h>
#include "check/check.h"

enum { POSITIONS = 97 };

static check_tensor *freqs(bool unaligned)
{
    check_tensor *t = check_input(SGK_F32, 2, (int64_t)POSITIONS, (int64_t)DSV4_ROPE);
    check_legal(t, CHECK_SIZE(0));
    return unaligned ? check_unaligned(t) : t;
}

static check_tensor *positions_of(sgk_dtype dtype, int64_t tokens)
{
    check_tensor *t = check_index(dtype, 0, POSITIONS - 1, 1, tokens);
    check_legal(t, CHECK_STRIDE);
    return t;
}

/* What is unaligned, if anything; DENSE: nothing, and rows have no gaps, as in a real call. */
typedef enum { NOTHING,
               HEADS,
               FREQS,
               OUTPUT,
               DENSE } misplaced;
static const char *const misplaced_names[] = { "", "_unaligned", "_unaligned_freqs", "_unaligned_output", "_dense" };

static void check_q(int64_t tokens, int64_t heads, int64_t dim, bool in_place, misplaced what)
{
    if (!check_case("dsv4_fused_q_norm_rope_%lldx%lldx%lld%s%s", (long long)tokens, (long long)heads, (long long)dim, in_place ? "_in_place" : "",
                    misplaced_names[what])) return;
    check_tensor *q         = in_place ? check_inout(SGK_BF16, 3, tokens, heads, dim) : check_input(SGK_BF16, 3, tokens, heads, dim);
    check_tensor *out       = in_place ? q : (what == DENSE ? check_output_dense : check_output)(SGK_BF16, 3, tokens, heads, dim);
    check_tensor *freqs_cis = freqs(what == FREQS), *positions = positions_of(dim == 192 ? SGK_I64 : SGK_I32, tokens);
    if (what == HEADS) check_unaligned(q);
    if (what == OUTPUT) check_unaligned(out);
    check_switches.keep_arguments = in_place;           /* one tensor in two places cannot be broken in one */
    CHECK_CALL(sgk_dsv4_fused_q_norm_rope(T(out), T(q), T(freqs_cis), T(positions), 1e-6, check_exec));
    check_close(out, check_tolerance(SGK_BF16));
    check_done(4 * (double)(tokens * heads * dim), 4 * (double)(tokens * heads * dim));
}

/* A code that falls beside a middle may become its neighbour: a step is up to 1/8, and few do. */
#define CODES_TOLERANCE 1e-2

typedef struct {
    double  error, norm;
    int64_t odd;                                        /* one more than the first place where only one of the two is a finite number */
} distance;

static void distance_add(distance *d, int64_t i, double value, double reference)
{
    const bool same = isnan(value) ? isnan(reference) : value == reference;
    if (!same && !isfinite(value - reference) && !d->odd) d->odd = i + 1;
    if (!isfinite(value - reference)) return;
    d->error += (value - reference) * (value - reference), d->norm += reference * reference;
}

static void distance_check(const distance *d, const char *what, double allowed)
{
    check_that(!d->odd, "byte %lld, of the %s, is a finite number in one and not in the other", (long long)d->odd - 1, what);
    check_that(sqrt(d->error) <= allowed * sqrt(d->norm), "error of the %s %.3g, allowed %.3g", what, sqrt(d->error / d->norm), allowed);
}

static double bf16_at(double get(const check_tensor *, int64_t), const check_tensor *t, int64_t i)
{
    return bf16_to_f32((uint16_t)((int)get(t, i) | (int)get(t, i + 1) << 8));
}

static double code_at(double get(const check_tensor *, int64_t), const check_tensor *t, int64_t i, int64_t scale)
{
    return e4m3_to_f32((uint8_t)get(t, i)) * ldexp(1, (int)get(t, scale) - 127);
}

static void check_k(int64_t tokens, int64_t page_size, misplaced what)
{
    if (!check_case("dsv4_fused_k_norm_rope_flashmla_%lldx%lld%s", (long long)tokens, (long long)page_size, misplaced_names[what])) return;
    const int64_t pages = 2 * tokens / page_size + 1, width = (584 * page_size + 575) / 576 * 576;
    check_tensor *kv = check_input(SGK_BF16, 2, tokens, (int64_t)DSV4_K), *kv_weight = check_input(SGK_BF16, 1, (int64_t)DSV4_K);
    check_tensor *freqs_cis = freqs(what == FREQS), *positions = positions_of(SGK_I32, tokens);
    check_tensor *out_loc = positions_of(page_size > 4 ? SGK_I64 : SGK_I32, tokens), *cache = check_inout(SGK_U8, 2, pages, width);
    for (int64_t t = 0; t < tokens; ++t) check_set(out_loc, t, (double)(pages * page_size - 1 - 2 * t));
    if (tokens > 2) check_set(kv, 2 * DSV4_K + 7, NAN);
    for (int64_t i = 0; tokens > 1 && i < DSV4_K; ++i) check_set(kv, DSV4_K + i, 0);
    if (what == HEADS) check_unaligned(kv);
    if (what == OUTPUT) check_unaligned(cache);
    check_legal(cache, CHECK_SIZE(0));
    CHECK_CALL(sgk_dsv4_fused_k_norm_rope_flashmla(T(cache), T(kv), T(kv_weight), T(freqs_cis), T(positions), T(out_loc), 1e-6, page_size, check_exec));

    distance codes = { 0 }, rotated = { 0 };
    int64_t  strays = 0;
    for (int64_t i = 0; i < pages * width && tokens > 0; ++i) {
        const int64_t page = i / width * width, at = i % width, place = at / DSV4_TOKEN_BYTES, d = at % DSV4_TOKEN_BYTES;
        const int64_t slot = i / width * page_size + place, first = pages * page_size - 1 - 2 * (tokens - 1);
        const bool    stored = place < page_size && slot >= first && (slot - first) % 2 == 0;
        if (!stored) {
            const int64_t s = at - DSV4_TOKEN_BYTES * page_size, of = i / width * page_size + s / 8;
            const bool    scale = s >= 0 && s / 8 < page_size && s % 8 < 7 && of >= first && (of - first) % 2 == 0;
            strays += !scale && check_result_of(cache, i) != check_reference_of(cache, i);
        } else if (d < DSV4_K_CODES) {
            const int64_t scale = page + DSV4_TOKEN_BYTES * page_size + place * 8 + d / DSV4_K_GROUP;
            distance_add(&codes, i, code_at(check_result_of, cache, i, scale), code_at(check_reference_of, cache, i, scale));
        } else if (d % 2 == 0) {
            distance_add(&rotated, i, bf16_at(check_result_of, cache, i), bf16_at(check_reference_of, cache, i));
        }
    }
    check_that(strays == 0, "%lld bytes were written that belong to no token", (long long)strays);
    distance_check(&codes, "codes", CODES_TOLERANCE);
    distance_check(&rotated, "rotated elements", check_tolerance(SGK_BF16));
    check_done((double)tokens * (2 * DSV4_K + 584), 6 * (double)(tokens * DSV4_K));
}

static void check_indexer(int64_t tokens, int64_t heads, sgk_dtype format, misplaced what)
{
    if (!check_case("dsv4_fused_q_indexer_rope_hadamard_quant_%s_%lldx%lld%s", check_dtype(format), (long long)tokens, (long long)heads, misplaced_names[what])) return;
    const int64_t dim = DSV4_INDEXER;
    check_tensor *q, *weight, *codes, *weights_out;
    if (what == DENSE) {
        q = check_input_dense(SGK_BF16, 3, tokens, heads, dim), weight = check_input_dense(SGK_BF16, 2, tokens, heads);
        codes = check_output_dense(format, 3, tokens, heads, dim), weights_out = check_output_dense(SGK_F32, 3, tokens, heads, (int64_t)1);
    } else {
        q = check_input(SGK_BF16, 3, tokens, heads, dim), weight = check_input(SGK_BF16, 2, tokens, heads);
        codes = check_output(format, 3, tokens, heads, dim), weights_out = check_output(SGK_F32, 3, tokens, heads, (int64_t)1);
    }
    check_tensor *freqs_cis = freqs(what == FREQS), *positions = positions_of(SGK_I32, tokens);
    for (int64_t i = 0; tokens > 1 && i < DSV4_INDEXER; ++i) check_set(q, i, 0);
    if (what == HEADS) check_unaligned(q);
    if (what == OUTPUT) check_unaligned(codes);
    check_legal(weight, CHECK_STRIDE);
    check_legal(weights_out, CHECK_STRIDE);
    CHECK_CALL(sgk_dsv4_fused_q_indexer_rope_hadamard_quant(T(codes), T(weights_out), T(q), T(weight), T(freqs_cis), T(positions), 0.25, check_exec));
    check_close(weights_out, 2 * check_tolerance(SGK_F32));
    if (format == SGK_E4M3) check_close(codes, CODES_TOLERANCE);
    distance d = { 0 };
    for (int64_t i = 0; format != SGK_E4M3 && i < tokens * heads * DSV4_INDEXER; ++i)
        distance_add(&d, i, e4m3_to_f32((uint8_t)(int)check_result_of(codes, i)), e4m3_to_f32((uint8_t)(int)check_reference_of(codes, i)));
    distance_check(&d, "codes", CODES_TOLERANCE);
    check_done((double)(tokens * heads) * (3 * DSV4_INDEXER + 6), 10 * (double)(tokens * heads * DSV4_INDEXER));
}

/* Indices that are out of range; on the GPU check_indices asks for the look at them. */
static void check_out_of_range(void)
{
    if (check_case("dsv4_fused_q_norm_rope_refused")) {
        check_switches.check_indices = SGK_ON;
        check_tensor *q = check_inout(SGK_BF16, 3, (int64_t)2, (int64_t)3, (int64_t)160), *positions = positions_of(SGK_I32, 2), *freqs_cis = freqs(false);
        CHECK_REFUSED(SGK_BAD_ARG, "q_input has size 160 in dimension 2, expected 128 or 192",
                      sgk_dsv4_fused_q_norm_rope(T(q), T(q), T(freqs_cis), T(positions), 1e-6, check_exec));
        check_done(0, 0);
    }
    if (check_case("dsv4_fused_q_norm_rope_out_of_range")) {
        check_switches.check_indices = SGK_ON;
        check_tensor *q = check_inout(SGK_BF16, 3, (int64_t)2, (int64_t)3, (int64_t)128), *positions = positions_of(SGK_I32, 2), *freqs_cis = freqs(false);
        check_set(positions, 1, POSITIONS);
        CHECK_REFUSED(SGK_BAD_ARG, "positions has 97 for token 1, expected 0 to 96, the rows of freqs_cis",
                      sgk_dsv4_fused_q_norm_rope(T(q), T(q), T(freqs_cis), T(positions), 1e-6, check_exec));
        check_done(0, 0);
    }
    for (int which = 0; which < 3; ++which) {
        static const char *const words[] = { "out_loc has -1 for token 0, expected 0 to 7, the slots of kvcache", "page_size is 3, expected a power of two",
                                             "kvcache has size 2880 in dimension 1, expected 1728" };
        static const char *const names[] = { "place", "page_size", "width" };
        if (!check_case("dsv4_fused_k_norm_rope_flashmla_refused_%s", names[which])) continue;
        check_switches.check_indices = SGK_ON;
        check_tensor *kv = check_input(SGK_BF16, 2, (int64_t)2, (int64_t)DSV4_K), *weight = check_input(SGK_BF16, 1, (int64_t)DSV4_K), *freqs_cis = freqs(false);
        check_tensor *positions = positions_of(SGK_I32, 2), *out_loc = positions_of(SGK_I32, 2), *cache = check_inout(SGK_U8, 2, (int64_t)2, (int64_t)2880);
        check_set(out_loc, 0, -1), check_set(out_loc, 1, 5);
        CHECK_REFUSED(SGK_BAD_ARG, words[which], sgk_dsv4_fused_k_norm_rope_flashmla(T(cache), T(kv), T(weight), T(freqs_cis), T(positions), T(out_loc), 1e-6, which == 0 ? 4 : which == 1 ? 3
                                                                                                                                                                                           : 2,
                                                                                     check_exec));
        check_done(0, 0);
    }
    if (check_case("dsv4_fused_q_indexer_rope_hadamard_quant_refused")) {
        check_switches.check_indices = SGK_ON;
        check_tensor *q = check_input(SGK_BF16, 3, (int64_t)2, (int64_t)3, (int64_t)DSV4_INDEXER), *weight = check_input(SGK_BF16, 2, (int64_t)2, (int64_t)3);
        check_tensor *codes = check_output(SGK_E4M3, 3, (int64_t)2, (int64_t)3, (int64_t)DSV4_INDEXER), *out = check_output(SGK_F32, 3, (int64_t)2, (int64_t)3, (int64_t)1);
        check_tensor *positions = positions_of(SGK_I32, 2), *freqs_cis = freqs(false);
        check_set(positions, 0, -1);
        CHECK_REFUSED(SGK_BAD_ARG, "positions has -1 for token 0",
                      sgk_dsv4_fused_q_indexer_rope_hadamard_quant(T(codes), T(out), T(q), T(weight), T(freqs_cis), T(positions), 1, check_exec));
        check_done(0, 0);
    }
}

void check_dsv4(void)
{
    for (int64_t dim = 128; dim <= 192; dim += 64)
        for (int in_place = 0; in_place < 2; ++in_place) {
            for (int what = NOTHING; what <= OUTPUT; ++what) check_q(3, 5, dim, in_place, (misplaced)what);
            check_q(0, 4, dim, in_place, NOTHING);
            check_q(4, 0, dim, in_place, NOTHING);
            if (!check_small) check_q(check_int(10, 40), 64, dim, in_place, NOTHING);
        }
    for (int64_t page_size = 1; page_size <= 256; page_size *= 2)
        if (!check_small || page_size % 3 == 1) check_k(check_small ? 5 : check_int(3, 90), page_size, NOTHING);
    for (int what = NOTHING; what <= OUTPUT; ++what) check_k(7, 4, (misplaced)what);
    check_k(0, 2, NOTHING);
    for (int what = NOTHING; what <= OUTPUT; ++what) check_indexer(3, 5, SGK_E4M3, (misplaced)what), check_indexer(3, 8, SGK_E4M3, (misplaced)what);
    check_indexer(7, 3, SGK_U8, NOTHING);
    check_indexer(0, 3, SGK_I8, NOTHING);
    if (!check_small) check_indexer(check_int(10, 40), 64, SGK_E4M3, NOTHING);
    /* An output written around the caches. */
    sgk_cpu_cache(1);
    for (int64_t dim = 128; dim <= 192; dim += 64) check_q(3, 6, dim, false, DENSE), check_q(3, 6, dim, false, OUTPUT);
    check_k(9, 32, DENSE), check_k(9, 32, OUTPUT);
    check_indexer(3, 6, SGK_E4M3, DENSE);
    sgk_cpu_cache(0);
    check_out_of_range();
    if (check_benching) {
        check_q(64, 64, 128, false, DENSE);
        check_q(4096, 64, 128, false, DENSE);
        check_q(2048, 128, 192, false, DENSE);
        check_k(64, 64, DENSE);
        check_k(65536, 64, DENSE);
        check_indexer(64, 64, SGK_E4M3, DENSE);
        check_indexer(4096, 64, SGK_E4M3, DENSE);
    }
}
