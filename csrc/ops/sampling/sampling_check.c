#include <math.h>
#include "check/check.h"

/* ---- softmax ---- */
static void check_softmax(sgk_dtype dtype, int64_t rows, int64_t dim, double temperature, bool aligned)
{
    if (!check_case("softmax_%s_%lldx%lld_t%g%s", check_dtype(dtype), (long long)rows, (long long)dim, temperature, aligned ? "" : "_unaligned")) return;
    check_tensor *x   = check_input(dtype, 2, rows, dim);
    check_tensor *out = check_output(SGK_F32, 2, rows, dim);
    check_legal(x, CHECK_DTYPE);
    if (!aligned) check_unaligned(x);

    CHECK_CALL(sgk_softmax(T(out), T(x), NULL, temperature, check_exec));
    check_close(out, 1e-6);

    const double n = (double)rows * (double)dim;
    check_done(n * (4 + sgk_dtype_size(dtype)), 5 * n);
}

/* out may be logits itself */
static void check_softmax_in_place(int64_t rows, int64_t dim, double temperature)
{
    if (!check_case("softmax_f32_%lldx%lld_t%g_in_place", (long long)rows, (long long)dim, temperature)) return;
    check_tensor *x = check_inout(SGK_F32, 2, rows, dim);
    CHECK_CALL(sgk_softmax(T(x), T(x), NULL, temperature, check_exec));
    check_close(x, 1e-6);
    check_done(0, 0);
}

/* a temperature for each row, ties, and rows with numbers that are none */
static void check_softmax_rows(sgk_dtype dtype, int64_t dim)
{
    static const double temperatures[] = { 1, 0, 0.3, 0, 1e-30, 0, 1, 0, 0.7, 0, 1 };
    enum { ROWS = sizeof temperatures / sizeof *temperatures };
    if (!check_case("softmax_%s_rows_%lld", check_dtype(dtype), (long long)dim)) return;
    check_tensor *x   = check_input(dtype, 2, (int64_t)ROWS, dim);
    check_tensor *t   = check_values(SGK_F32, temperatures, 1, (int64_t)ROWS);
    check_tensor *out = check_output(SGK_F32, 2, (int64_t)ROWS, dim);
    check_legal(x, CHECK_DTYPE);
    check_legal(t, CHECK_NULL);
    for (int64_t i = 0; i < dim; ++i) {
        check_set(x, 2 * dim + i, i % 3 ? -INFINITY : check_get(x, 2 * dim + i));       /* mostly masked */
        check_set(x, 3 * dim + i, i % 5 == 4 ? 2 : 1);                                  /* several maxima */
        check_set(x, 5 * dim + i, -INFINITY);                                           /* all masked, at 0 and at 1 */
        check_set(x, 6 * dim + i, -INFINITY);
    }
    check_set(x, 7 * dim + dim / 2, NAN);
    check_set(x, 8 * dim + dim - 1, NAN);
    check_set(x, 9 * dim + dim / 2, INFINITY);
    check_set(x, 10 * dim + dim / 3, INFINITY);

    CHECK_CALL(sgk_softmax(T(out), T(x), T(t), 1, check_exec));
    check_close(out, 1e-6);
    check_that(check_result_of(out, 3 * dim + 4) == 1, "entry 4 is %g, expected 1, the first maximum", check_result_of(out, 3 * dim + 4));
    check_that(check_result_of(out, 6 * dim) == 0, "an entry of a masked row is %g, expected 0", check_result_of(out, 6 * dim));
    check_that(isnan(check_result_of(out, 8 * dim)), "an entry of a row with a NaN is %g, expected NaN", check_result_of(out, 8 * dim));
    check_done(0, 0);
}

static void check_softmax_refused(double temperature)
{
    if (!check_case("softmax_temperature_%g", temperature)) return;
    check_tensor *x   = check_input(SGK_F32, 2, (int64_t)1, (int64_t)8);
    check_tensor *t   = check_values(SGK_F32, &temperature, 1, (int64_t)1);
    check_tensor *out = check_output(SGK_F32, 2, (int64_t)1, (int64_t)8);
    CHECK_REFUSED(SGK_BAD_ARG, "expected a finite number of at least 0", sgk_softmax(T(out), T(x), NULL, temperature, check_exec));
    check_switches.check_indices  = SGK_ON;              /* on the GPU the host looks at a tensor only where it is asked to */
    check_switches.keep_arguments = true;
    CHECK_REFUSED(SGK_BAD_ARG, " at [0], expected a finite number of at least 0", sgk_softmax(T(out), T(x), T(t), 1, check_exec));
    check_set(t, 0, 0.7);                               /* and a call that is right goes on as ever, captured or not */
    CHECK_CALL(sgk_softmax(T(out), T(x), T(t), 1, check_exec));
    check_close(out, 1e-6);
    check_done(0, 0);
}

/* ---- top_k_top_p_sampling_from_probs, and torch's _seeded, which is the same C function ---- */
typedef struct {
    const char *name;
    int64_t     rows, dim;
    int         top_k;
    double      top_p;
    bool        joint, tensors, unaligned;              /* tensors: indices, top_k, top_p and seeds are tensors */
} draw_case;

/* Rows of every kind: e^normal, peaked, flat (all ties), few values (many ties), mostly zeros, one entry, and values that are no probabilities. */
static double probability(int64_t row, int64_t i, int64_t dim)
{
    switch (row % 8) {
    case 0:  return exp(check_normal());
    case 1:  return exp(8 * check_normal()) * 1e-10;
    case 2:  return 1.0 / (double)dim;
    case 3:  return check_int(1, 5) / 64.0;
    case 4:  return check_int(0, 15) ? 0 : exp(check_normal());
    case 5:  return i == dim / 2 ? 1e-42 : 0;
    case 6:  return i % 7 == 3 ? NAN : i % 7 == 5 ? -1
                                                  : exp(check_normal());
    default: return 0;
    }
}

/* The entry drawn is one of those kept: fewer than k lie above it, and what lies above it sums to less than p of all. */
static void check_draw(const check_tensor *probs, int64_t row, int64_t pick, int64_t dim, int64_t k, double p, bool joint)
{
    check_that(pick >= 0 && pick < dim, "row %lld: drew %lld of %lld", (long long)row, (long long)pick, (long long)dim);
    if (pick < 0 || pick >= dim) return;
    double       total = 0, above = 0, kth = 0;
    const double value = check_get(probs, row * dim + pick);
    int64_t      count = 0;
    for (int64_t i = 0; i < dim; ++i) {
        const double x = check_get(probs, row * dim + i);
        if (!(x > 0)) continue;
        total += x;
        if (x > value) above += x, ++count;
    }
    if (total == 0) {
        check_that(pick == 0, "row %lld has no positive entry and drew %lld, expected 0", (long long)row, (long long)pick);
        return;
    }
    check_that(value > 0, "row %lld: drew %lld, whose probability is %g", (long long)row, (long long)pick, value);
    const bool some = k > 0 && k < dim;
    check_that(!some || count < k, "row %lld: drew %lld, but %lld entries are larger and k is %lld", (long long)row, (long long)pick, (long long)count, (long long)k);
    if (some && !joint) {                               /* the k-th largest: the least value with fewer than k above it */
        kth = INFINITY;
        for (int64_t i = 0; i < dim; ++i) {
            const double x      = check_get(probs, row * dim + i);
            int64_t      larger = 0;
            if (!(x > 0) || x >= kth) continue;
            for (int64_t j = 0; j < dim; ++j) larger += check_get(probs, row * dim + j) > x;
            if (larger < k) kth = x;
        }
        total = 0;
        for (int64_t i = 0; i < dim; ++i) total += check_get(probs, row * dim + i) >= kth ? check_get(probs, row * dim + i) : 0;
    }
    check_that(p >= 1 || above < p * total * (1 + 1e-9) || above == 0, "row %lld: drew %lld, but larger entries sum to %g of the %g that top_p %g of %g allows",
               (long long)row, (long long)pick, above, p * total, p, total);
}

static void check_top_k_top_p(draw_case c)
{
    if (!check_case("top_k_top_p_sampling_from_probs_%s%s_%lldx%lld_k%d_p%g%s%s", c.tensors ? "seeded_" : "", c.name, (long long)c.rows, (long long)c.dim, c.top_k, c.top_p,
                    c.joint ? "_joint" : "", c.unaligned ? "_unaligned" : "")) return;
    const int64_t draws   = c.tensors ? 400 : c.rows;       /* many, so that a kept set off by one entry shows */
    check_tensor *probs   = check_input(SGK_F32, 2, c.rows, c.dim);
    check_tensor *output  = check_output(SGK_I32, 1, draws);
    check_tensor *indices = c.tensors ? check_index(c.joint ? SGK_I32 : SGK_I64, 0, c.rows - 1, 1, draws) : NULL;
    check_tensor *top_k   = c.tensors ? check_index(c.joint ? SGK_I64 : SGK_I32, -1, c.top_k, 1, draws) : NULL;
    check_tensor *top_p   = c.tensors ? check_input(SGK_F32, 1, draws) : NULL;
    check_tensor *seed    = check_index(SGK_I64, -1000000000000000, 1000000000000000, 1, c.tensors ? draws : (int64_t)1);
    if (c.unaligned) check_unaligned(probs);
    for (int64_t i = 0; i < c.rows * c.dim; ++i) check_set(probs, i, probability(i / c.dim, i % c.dim, c.dim));
    check_legal(probs, CHECK_SIZE(1));
    if (draws == 0) check_legal(seed, CHECK_SIZE(0));
    if (c.tensors) {
        for (int64_t i = 0; i < draws; ++i) check_set(top_p, i, i % 4 ? c.top_p * check_int(0, 100) / 100.0 : 1);
        check_legal(probs, CHECK_SIZE(0));
        check_legal(top_k, CHECK_NULL);
        check_legal(top_p, CHECK_NULL);
    }

    CHECK_CALL(sgk_top_k_top_p_sampling_from_probs(T(probs), T(output), T(indices), T(top_k), c.top_k, T(top_p), c.top_p, c.joint, T(seed), check_exec));
    check_equal(output);
    for (int64_t i = 0; i < draws && c.dim <= 2000; ++i)
        check_draw(probs, indices ? (int64_t)check_get(indices, i) : i, (int64_t)check_result_of(output, i), c.dim,
                   top_k ? (int64_t)check_get(top_k, i) : c.top_k, top_p ? check_get(top_p, i) : c.top_p, c.joint);
    check_done((double)draws * (double)c.dim * 4, (double)draws * (double)c.dim);
}

static void check_top_k_top_p_refused(void)
{
    if (!check_case("top_k_top_p_sampling_from_probs_refused")) return;
    const double  wrong_index[] = { 0, 2 }, wrong_share[] = { 0.5, -0.5 };
    check_tensor *probs           = check_input(SGK_F32, 2, (int64_t)2, (int64_t)8);
    check_tensor *empty           = check_input(SGK_F32, 2, (int64_t)2, (int64_t)0);
    check_tensor *output          = check_output(SGK_I32, 1, (int64_t)2);
    check_tensor *indices         = check_values(SGK_I32, wrong_index, 1, (int64_t)2);
    check_tensor *shares          = check_values(SGK_F32, wrong_share, 1, (int64_t)2);
    check_tensor *seed            = check_index(SGK_I64, 0, 9, 1, (int64_t)1);
    check_switches.check_indices  = SGK_ON;              /* on the GPU the host looks at a tensor only where it is asked to */
    check_switches.keep_arguments = true;
    CHECK_REFUSED(SGK_BAD_ARG, "maybe_indices has 2 at [1], expected 0 to 1, the rows of probs",
                  sgk_top_k_top_p_sampling_from_probs(T(probs), T(output), T(indices), NULL, 0, NULL, 1, false, T(seed), check_exec));
    CHECK_REFUSED(SGK_BAD_ARG, "maybe_top_p_arr has -0.5 at [1], expected a number of at least 0",
                  sgk_top_k_top_p_sampling_from_probs(T(probs), T(output), NULL, NULL, 0, T(shares), 1, false, T(seed), check_exec));
    CHECK_REFUSED(SGK_BAD_ARG, "top_p_val is nan",
                  sgk_top_k_top_p_sampling_from_probs(T(probs), T(output), NULL, NULL, 0, NULL, NAN, false, T(seed), check_exec));
    CHECK_REFUSED(SGK_BAD_ARG, "probs has size 0 in dimension 1",
                  sgk_top_k_top_p_sampling_from_probs(T(empty), T(output), NULL, NULL, 0, NULL, 1, false, T(seed), check_exec));
    check_set(indices, 1, 1);                           /* and a call that is right goes on as ever, captured or not */
    check_set(shares, 1, 0.9);
    CHECK_CALL(sgk_top_k_top_p_sampling_from_probs(T(probs), T(output), T(indices), NULL, 0, T(shares), 1, false, T(seed), check_exec));
    check_equal(output);
    check_done(0, 0);
}

void check_sampling(void)
{
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16 };
    for (size_t f = 0; f < 3; ++f) {
        check_softmax(formats[f], 2, 1, 1, true);
        check_softmax(formats[f], 3, 37, 0.5, true);
        check_softmax(formats[f], 2, 1024, 1, true);
        check_softmax(formats[f], 3, 512, 0.8, false);
        check_softmax(formats[f], 1, 8200, 1, true);
        check_softmax(formats[f], 1, 8200, 0, true);
        check_softmax_rows(formats[f], 45);
        check_softmax_rows(formats[f], 256);
        if (check_small) continue;
        check_softmax(formats[f], 0, 64, 1, true);
        check_softmax(formats[f], 3, 0, 1, true);
        check_softmax(formats[f], 2, 50257, 0.7, true);
        check_softmax(formats[f], 2, 128256, 1.3, true);
        check_softmax(formats[f], 1, 262144, 1, true);
    }
    check_softmax_in_place(2, 300, 1);
    check_softmax_in_place(2, 9000, 0.9);
    check_softmax_in_place(2, 301, 0);
    check_softmax_refused(-1);
    check_softmax_refused(NAN);
    check_softmax_refused(INFINITY);

    check_top_k_top_p((draw_case){ "all", 8, 111, 0, 1, false, false, false });
    check_top_k_top_p((draw_case){ "one", 8, 111, 1, 1, false, false, false });
    check_top_k_top_p((draw_case){ "k", 8, 111, 10, 1, false, false, false });
    check_top_k_top_p((draw_case){ "p", 8, 111, 0, 0.9, false, false, false });
    check_top_k_top_p((draw_case){ "both", 8, 500, 40, 0.8, false, false, false });
    check_top_k_top_p((draw_case){ "both", 8, 500, 40, 0.8, true, false, true });
    check_top_k_top_p((draw_case){ "many", 5, 333, 50, 0.9, false, true, false });
    check_top_k_top_p((draw_case){ "many", 5, 333, 50, 0.9, true, true, false });
    check_top_k_top_p((draw_case){ "many", 5, 333, 20, 0.7, false, true, true });
    check_top_k_top_p((draw_case){ "ties", 8, 1200, 600, 0.9, false, false, false });        /* a k beyond the list, and rows of ties that overflow it */
    check_top_k_top_p((draw_case){ "ties", 8, 1200, 30, 0.9, false, false, false });
    check_top_k_top_p((draw_case){ "share", 8, 1800, 0, 0.3, false, false, false });         /* within the list in some rows, behind it in others */
    check_top_k_top_p((draw_case){ "share", 8, 1800, 20, 0.3, true, false, false });
    check_top_k_top_p((draw_case){ "single", 3, 1, 5, 0.5, false, false, false });
    check_top_k_top_p((draw_case){ "none", 8, 100, 3, 0, false, false, false });
    check_top_k_top_p_refused();
    if (!check_small) {
        check_top_k_top_p((draw_case){ "empty", 0, 100, 3, 0.5, false, false, false });
        check_top_k_top_p((draw_case){ "vocab", 8, 32000, 50, 0.9, false, false, false });
        check_top_k_top_p((draw_case){ "vocab", 8, 32001, 500, 0.5, true, false, false });
        check_top_k_top_p((draw_case){ "vocab", 8, 9001, 700, 0.9, false, false, false });
        check_top_k_top_p((draw_case){ "vocab", 3, 128256, 0, 0.95, false, false, false });
        check_top_k_top_p((draw_case){ "long", 1, 1048580, 100, 0.9, true, false, false });      /* counters are emptied on the way */
    }
    if (check_benching) {
        check_softmax(SGK_F32, 64, 128256, 1, true);
        check_top_k_top_p((draw_case){ "bench", 64, 128256, 50, 0.9, false, false, false });
        check_top_k_top_p((draw_case){ "bench", 64, 128256, 0, 1, false, false, false });
        check_top_k_top_p((draw_case){ "bench", 64, 128256, 0, 0.9, false, false, false });
    }
}
