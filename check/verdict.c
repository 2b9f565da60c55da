/* Verdicts on what the call under test wrote. */
#include <math.h>
#include <unistd.h>
#include "harness.h"

typedef struct {
    double  error, norm, most;          /* sums of squares, largest difference */
    int64_t at;                         /* where it is */
    int64_t wrong_kind;                 /* NaN or infinity in one, not in the other; -1: nowhere */
    int64_t near, overflows, overflow;  /* numbers of the reference near the largest one; infinities in one where the other has a number, and one of them */
} difference;

/*
 * Near the largest number of a format a result may be infinity and the reference a number, or the other way round. Infinity then counts as the largest number;
 * but there are no more of these than the reference has numbers within `near`, relatively, of the largest one. In f16, whose largest number sums do reach,
 * one more: it may be the only one.
 */
static difference compare(const check_tensor *t, double near)
{
    difference   d       = { .at = -1, .wrong_kind = -1, .near = near > 0 && t->dtype == SGK_F16 };
    const double largest = check_largest(t->dtype), edge = largest * (1 - near);
    for (int64_t r = 0, i = 0, rows = tensor_rows(t), length = tensor_row_length(t); r < rows; ++r) {
        const int64_t at = tensor_row_offset(t, r);
        for (int64_t c = 0; c < length; ++c, ++i) {
            double want = load_as_f64(tensor_data(t, t->ref), at + c, t->dtype), got = load_as_f64(t->first, at + c, t->dtype);
            if (isfinite(want) && fabs(want) >= edge && near > 0) ++d.near;
            if ((isinf(want) && isfinite(got)) || (isfinite(want) && isinf(got))) {
                if (d.overflows++ == 0) d.overflow = i;
                want = fmax(-largest, fmin(want, largest)), got = fmax(-largest, fmin(got, largest));
            }
            if (isfinite(want) && isfinite(got)) {
                const double off = fabs(got - want);
                d.error += off * off, d.norm += want * want;
                if (off > d.most || d.at < 0) d.most = off, d.at = i;
            } else if (!(isnan(want) && isnan(got)) && want != got && d.wrong_kind < 0) {
                d.wrong_kind = i;
            }
        }
    }
    return d;
}

/* False when a wrong kind of number was reported. */
static bool kinds_agree(const check_tensor *t, const difference *d)
{
    const int64_t at = d->wrong_kind >= 0 ? d->wrong_kind : d->overflows > d->near ? d->overflow
                                                                                   : -1;
    if (at < 0) return true;
    fail("element %lld is %g, the reference has %g", (long long)at, check_result_of(t, at), check_reference_of(t, at));
    return false;
}

/* After a call that failed, or did not run, there is nothing to compare. */
static bool judged(void) { return call_succeeded; }

/*
 * Two results that agree far below a format's step may still stand on different sides of the middle between two of its numbers, and
 * then differ by that step. Among many elements it is lost; where one element makes up the norm it is the norm. So the element that is
 * off most counts only by what it is off beyond one step.
 */
static void close_to(check_tensor *t, double relative_l2, double least_norm)
{
    if (!judged()) return;
    difference d = compare(t, relative_l2);
    if (!kinds_agree(t, &d)) return;
    if (d.norm < least_norm * least_norm) d.norm = least_norm * least_norm;
    const double step   = d.at < 0 ? 0 : check_step(t->dtype, fmin(fabs(check_result_of(t, d.at)), fabs(check_reference_of(t, d.at))));
    const double beyond = d.most > step ? d.most - step : 0;
    const double square = d.error - d.most * d.most + beyond * beyond;
    const double error  = square <= 0 ? 0 : d.norm > 0 ? sqrt(square / d.norm)
                                                       : sqrt(square);
    if (!(error <= relative_l2))        /* written so that NaN fails */
        fail("error %.3g, allowed %.3g; worst is element %lld: %.9g, the reference has %.9g", error, relative_l2, (long long)d.at,
             check_result_of(t, d.at), check_reference_of(t, d.at));
}

void check_close(check_tensor *t, double relative_l2) { close_to(t, relative_l2, 0); }

void check_close_least(check_tensor *t, double relative_l2, double least)
{
    enum { FEW = 64 };
    const int64_t count = tensor_count_elements(t);
    close_to(t, relative_l2, count < FEW ? least * sqrt((double)count) : 0);
}

void check_close_sums(check_tensor *t, double relative_l2, int64_t depth) { check_close_least(t, relative_l2, sqrt((double)depth)); }

void check_max(check_tensor *t, double absolute)
{
    if (!judged()) return;
    const difference d = compare(t, 0);
    if (!kinds_agree(t, &d)) return;
    if (!(d.most <= absolute))
        fail("element %lld is %.9g, the reference has %.9g: off by %.3g, allowed %.3g", (long long)d.at, check_result_of(t, d.at),
             check_reference_of(t, d.at), d.most, absolute);
}

void check_equal(check_tensor *t)
{
    if (!judged() || tensor_same(t, t->first, tensor_data(t, t->ref))) return;
    for (int64_t i = 0, n = tensor_count_elements(t); i < n; ++i) {
        const size_t at = (size_t)tensor_offset(t, i) * t->element;
        if (!memcmp(t->first + at, tensor_data(t, t->ref) + at, t->element)) continue;
        fail("element %lld is %.17g, the reference has %.17g (bytes must be equal)", (long long)i, check_result_of(t, i), check_reference_of(t, i));
        return;
    }
}

void check_done(double bytes, double operations)
{
    call_forget();
    bench_figure(bytes, operations);
    for (int i = 0; i < tensor_count; ++i)
        if (tensors[i].device) gpu_drop(&tensors[i]);
    tensors_free();
    random_end_case();
    alarm(0);
}
