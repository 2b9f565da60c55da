/*
 * sgk-check: every version of every operator against its reference, and against the clock.
 *
 * A family's check is written once, in terms of the public C functions. The harness evaluates the one call of a case as the
 * reference, at every CPU level, on the GPU, again for equal bits (with the same and with another number of threads), and with each
 * tensor argument broken in every way: it must be refused and nothing may be written. Guard bytes surround every tensor and every
 * row gap; outputs start as NaN (0xff).
 *
 *     static void check_rmsnorm(sgk_dtype dtype, int64_t rows, int64_t dim)
 *     {
 *         if (!check_case("rmsnorm_%s_%lldx%lld", check_dtype(dtype), (long long)rows, (long long)dim)) return;
 *         check_tensor *x   = check_input(dtype, 2, rows, dim);
 *         check_tensor *w   = check_input(dtype, 1, dim);
 *         check_tensor *out = check_output(dtype, 2, rows, dim);
 *         CHECK_CALL(sgk_rmsnorm(T(out), T(x), T(w), 1e-6, check_exec));
 *         check_close(out, check_tolerance(dtype));
 *         check_done(bytes, operations);
 *     }
 */
#ifndef SGK_CHECK_H
#define SGK_CHECK_H
#include <stdbool.h>
#include <stddef.h>
#include "base/convert.h"
#include "cpu/cpu.h"
#include "sgl_kernel.h"

typedef struct check_tensor check_tensor;

/* ---- what a family asks ---- */
extern bool check_small;            /* the smallest shapes that reach every branch of every build, for sanitizers */
extern int  check_random_cases;     /* how many random cases are asked for; 0: as many as usual */
extern bool check_keep_arguments;   /* of no case are arguments broken */
extern bool check_once;             /* on the GPU the first case of every build, beside the reference and a second time, no more */
extern bool check_benching;         /* add the large shapes whose figures are wanted */
int check_int(int lo, int hi);                  /* random, both ends included; the same in every level of a case */
double check_normal(void);
const char *check_dtype(sgk_dtype t);                   /* "bf16" */
double check_tolerance(sgk_dtype t);               /* one rounding to the format plus f32 sums: 1e-6, 6e-4 (f16), 4e-3 (bf16) */
double check_step(sgk_dtype t, double x);               /* from the number x of this format to the next one away from zero; integers: 0 */
double check_largest(sgk_dtype t);                      /* the largest number of a format that has infinity */

/* ---- a case ---- */
/* False when the case is not wanted (--only); its name begins with the operator's name and an underscore. */
bool check_case(const char *format, ...) __attribute__((format(printf, 1, 2)));

/*
 * Tensors of a case; sizes are int64_t. Inputs are N(0, 1) with some zeros, tiny and large values. Unless dense is asked for, there is
 * a gap behind every row (every last dimension), so strides get used.
 */
check_tensor *check_input(sgk_dtype dtype, int ndim, ...);
check_tensor *check_output(sgk_dtype dtype, int ndim, ...);                      /* NaN until written */
check_tensor *check_inout(sgk_dtype dtype, int ndim, ...);                       /* random, read and written */
check_tensor *check_input_dense(sgk_dtype dtype, int ndim, ...);
check_tensor *check_output_dense(sgk_dtype dtype, int ndim, ...);
check_tensor *check_inout_dense(sgk_dtype dtype, int ndim, ...);
check_tensor *check_index(sgk_dtype dtype, int64_t lo, int64_t hi, int ndim, ...);   /* random integers, both ends included; dense */
check_tensor *check_values(sgk_dtype dtype, const double *values, int ndim, ...);    /* just these, row-major; dense */
check_tensor *check_unaligned(check_tensor *t);         /* moves the data off 16-byte alignment by one element */
double check_get(const check_tensor *t, int64_t i);              /* element i in row-major order, as it was before the call */
void check_set(check_tensor *t, int64_t i, double value);      /* before CHECK_CALL */

void check_set_code(check_tensor *t, int64_t i, uint32_t code);        /* the very bits of element i */
bool check_on_gpu(void);               /* the version under test is the GPU's */

/* Ways to break an argument, to declare those that are legal for it: check_legal(key, CHECK_NULL | CHECK_SIZE(0)). */
enum {
    CHECK_NULL    = 1 << 0,
    CHECK_NDIM    = 1 << 1,
    CHECK_DTYPE   = 1 << 2,
    CHECK_DEVICE  = 1 << 3,
    CHECK_STRIDE  = 1 << 4,
    CHECK_ALIGN   = 1 << 5,
    CHECK_OVERLAP = 1 << 6,
    CHECK_DATA    = 1 << 7,
};
#define CHECK_SIZE(d)  (1 << (8 + (d)))                  /* dimension d may be one more */
#define CHECK_ANY_SIZE 0xff00
void check_legal(check_tensor *t, unsigned ways);

extern const sgk_exec *check_exec;                      /* the last argument of the call */

/* What this case wants of every call; check_case sets it back. */
typedef struct {
    sgk_switch pdl, batch_invariant, check_indices;     /* as in sgk_exec */
    bool       no_graph;                                /* the operator's contract says that it cannot be captured */
    bool       keep_arguments;                          /* do not break them: another case of the operator does */
} check_options;
extern check_options check_switches;

/* Inside CHECK_CALL: the tensor as the phase under way sees it. T(NULL) is NULL. */
#define T(t) check_view_named(t, #t)
const DLTensor *check_view(check_tensor *t);
const DLTensor *check_view_named(check_tensor *t, const char *name);

/* Evaluates the call once for each phase. */
#define CHECK_CALL(call) \
    while (check_next()) check_result(call)
bool check_next(void);
void check_result(sgk_status status);

/* For calls that must be refused: evaluated once a level, must give this status and write nothing, and its message must contain `words`. */
#define CHECK_REFUSED(status, words, call) \
    while (check_next_refused()) check_refusal(status, words, call)
bool check_next_refused(void);
void check_refusal(sgk_status wanted, const char *words, sgk_status status);

/* ---- verdicts, after CHECK_CALL ---- */
void check_close(check_tensor *t, double relative_l2);          /* ||new - ref|| / ||ref||; NaN in other places than the reference's fails */
/* The same of results that may all but cancel: elements of a tensor that has few count as no smaller than `least`; of sums of `depth` products, than sums of as many N(0, 1). */
void check_close_least(check_tensor *t, double relative_l2, double least);
void check_close_sums(check_tensor *t, double relative_l2, int64_t depth);
void check_max(check_tensor *t, double absolute);               /* max |new - ref| */
void check_equal(check_tensor *t);                              /* the reference's very bytes */
void check_that(bool holds, const char *format, ...) __attribute__((format(printf, 2, 3)));     /* any other property */
double check_result_of(const check_tensor *t, int64_t i);       /* element i after the call under test */
double check_reference_of(const check_tensor *t, int64_t i);    /* and after the reference */
void check_done(double bytes, double operations);               /* prints the figure when benching, frees the tensors */

#endif
