#include "base/match.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Not in sgk_match itself: setting 1.4 KB to zero for every call would cost as much as all checks together. */
static _Thread_local sgk_matched matched[SGK_MATCH_TENSORS];

int64_t sgk_stride(const DLTensor *t, int dim)
{
    if (dim < 0) dim += t->ndim;
    if (t->strides) return t->strides[dim];
    int64_t stride = 1;
    for (int d = t->ndim - 1; d > dim; --d) stride *= t->shape[d];
    return stride;
}

int64_t sgk_numel(const DLTensor *t)
{
    int64_t n = 1;
    for (int d = 0; d < t->ndim; ++d) n *= t->shape[d];
    return n;
}

/* Stride of dimensions [0, last] seen as one. Dimensions of size 1 have no say. */
int64_t sgk_fold_stride(const DLTensor *t, int inner)
{
    for (int d = t->ndim - inner - 1; d >= 0; --d)
        if (t->shape[d] != 1) return sgk_stride(t, d);
    return 0;
}

static bool folds(const DLTensor *t, int inner)
{
    int64_t expected = -1;
    for (int d = t->ndim - inner - 1; d >= 0; --d) {
        if (t->shape[d] == 1) continue;
        if (expected >= 0 && sgk_stride(t, d) != expected) return false;
        expected = sgk_stride(t, d) * t->shape[d];
    }
    return true;
}

static const char *dtype_list(unsigned dtypes, char *text, size_t size)
{
    size_t n = 0;
    text[0]  = 0;
    for (int i = 0; i < SGK_DTYPES; ++i)
        if (dtypes >> i & 1 && n < size)
            n += (size_t)snprintf(text + n, size - n, "%s%s", n ? " or " : "", sgk_dtypes[i].name);
    return text;
}

static sgk_status refuse_dtype(const sgk_match *m, const DLTensor *t, const char *name, unsigned dtypes)
{
    char wanted[80], found[SGK_DTYPE_TEXT];
    return sgk_error(SGK_BAD_ARG, "%s: %s has dtype %s, expected %s", m->op, name, sgk_dtype_text(t->dtype, found), dtype_list(dtypes, wanted, sizeof wanted));
}

static const char *device_name(DLDevice d, char text[32])
{
    if (d.device_type == kDLCPU) snprintf(text, 32, "the CPU");
    else if (d.device_type == kDLCUDA) snprintf(text, 32, "CUDA device %d", d.device_id);
    else snprintf(text, 32, "a device of DLPack type %d", (int)d.device_type);
    return text;
}

static sgk_status match_device(sgk_match *m, const DLTensor *t, const char *name)
{
    DLDevice device = t->device;
    if (device.device_type == kDLCUDAHost) device.device_type = kDLCPU;
    if (device.device_type == kDLCPU) device.device_id = 0;
    char here[32], there[32];
    SGK_REQUIRE(device.device_type == kDLCPU || (device.device_type == kDLCUDA && device.device_id >= 0), SGK_BAD_ARG,
                "%s: %s is on %s, expected the CPU or a CUDA device", m->op, name, device_name(device, here));
    if (m->count == 0) {
        m->device = device;
        return SGK_OK;
    }
    SGK_REQUIRE(device.device_type == m->device.device_type && device.device_id == m->device.device_id, SGK_BAD_ARG,
                "%s: %s is on %s, expected %s like %s", m->op, name, device_name(device, here), device_name(m->device, there), m->seen[0].name);
    return SGK_OK;
}

/* One dimension of the pattern against one size. Advances *p past it. */
static sgk_status match_size(sgk_match *m, const char *name, const char *shape, const char **p, int dim, int64_t size)
{
    int64_t want;
    if (**p >= 'A' && **p <= 'Z') {
        const int letter = *(*p)++ - 'A';
        if (!(m->bound >> letter & 1)) {
            m->bound |= 1u << letter;
            m->dim[letter] = size;
        }
        want = m->dim[letter];
    } else {
        want = strtoll(*p, (char **)p, 10);
    }
    SGK_REQUIRE(size == want, SGK_BAD_ARG, "%s: %s has size %lld in dimension %d, expected %lld from [%s]",
                m->op, name, (long long)size, dim, (long long)want, shape);
    return SGK_OK;
}

static int pattern_dimensions(const char *shape)
{
    int wanted = 0;
    for (const char *p = shape; *p; ++p) wanted += *p != ' ' && *p != '*' && *p != '~' && (p == shape || p[-1] == ' ' || p[-1] == '*');
    return wanted;
}

static sgk_status refuse_rank(const sgk_match *m, const DLTensor *t, const char *name, const char *shape)
{
    const bool fold = shape[0] == '*';
    return sgk_error(SGK_BAD_ARG, "%s: %s has %d dimension%s, expected %s%d: [%s]", m->op, name, t->ndim, t->ndim == 1 ? "" : "s",
                     fold ? "at least " : "", pattern_dimensions(shape) - fold, shape);
}

static sgk_status match_shape(sgk_match *m, const DLTensor *t, const char *name, const char *shape, bool *any_last_stride)
{
    const char *p = shape;
    int         d = 0;
    if (*p == '*') {
        const int inner = pattern_dimensions(shape) - 1;
        int64_t   size  = 1;
        if (t->ndim < inner) return refuse_rank(m, t, name, shape);
        for (; d < t->ndim - inner; ++d) size *= t->shape[d];
        SGK_REQUIRE(folds(t, inner), SGK_BAD_ARG, "%s: %s has leading dimensions that are not evenly spaced in memory, expected rows with one stride: [%s]",
                    m->op, name, shape);
        ++p;
        SGK_TRY(match_size(m, name, shape, &p, 0, size));
    }
    for (;; ++d) {
        while (*p == ' ') ++p;
        if (*p == '~') *any_last_stride = true, ++p;
        if (!*p) break;
        if (d == t->ndim) return refuse_rank(m, t, name, shape);
        SGK_TRY(match_size(m, name, shape, &p, d, t->shape[d]));
    }
    return d == t->ndim ? SGK_OK : refuse_rank(m, t, name, shape);
}

/* Bytes from the first to behind the last element. */
static int64_t span_bytes(const DLTensor *t, int size)
{
    int64_t last = 0;
    for (int d = 0; d < t->ndim; ++d) last += (t->shape[d] - 1) * sgk_stride(t, d);
    return (last + 1) * size;
}

/* True when no two index tuples meet: with the dimensions in order of stride, each step is at least as wide as all inside it. */
static bool places_distinct(const DLTensor *t)
{
    int64_t reach = 0, stride_done = -1;
    for (int round = 0; round < t->ndim; ++round) {
        int     next  = -1;
        int64_t least = INT64_MAX;
        for (int d = 0; d < t->ndim; ++d) {
            const int64_t s = sgk_stride(t, d);
            if (t->shape[d] > 1 && s > stride_done && s < least) least = s, next = d;
        }
        if (next < 0) {                                     /* what is left has size 1 or a stride seen before */
            int wide = 0;
            for (int d = 0; d < t->ndim; ++d) wide += t->shape[d] > 1;
            return round == wide;
        }
        if (least <= reach) return false;
        reach += (t->shape[next] - 1) * least;
        stride_done = least;
    }
    return true;
}

/* What nearly every tensor is: in memory, aligned, not empty, each step wider than all that lies inside it, no number above 2^30. One pass
 * then says all that match_memory() does. */
static bool ordinary(const DLTensor *t, bool any_last_stride, int size, uintptr_t *begin, uintptr_t *end)
{
    int64_t dense = 1, reach = 0;
    for (int d = t->ndim - 1; d >= 0; --d) {
        const int64_t n = t->shape[d], stride = t->strides ? t->strides[d] : dense;
        if (n <= 0 || (n | stride) >> 30) return false;
        if (n > 1) {
            if (stride <= reach || (d == t->ndim - 1 && stride != 1 && !any_last_stride)) return false;
            reach += (n - 1) * stride;
        }
        if (dense >> 30) return false;
        dense *= n;
    }
    *begin = (uintptr_t)t->data + t->byte_offset;
    *end   = *begin + (uintptr_t)((reach + 1) * size);
    return t->data && (*begin & (uintptr_t)(size - 1)) == 0;
}

static sgk_status match_memory(const sgk_match *m, const DLTensor *t, const char *name, bool written, bool any_last_stride,
                               int size, uintptr_t *begin, uintptr_t *end)
{
    *begin = *end = 0;
    int64_t n     = 1;
    for (int d = 0; d < t->ndim; ++d) {
        SGK_REQUIRE(t->shape[d] >= 0, SGK_BAD_ARG, "%s: %s has size %lld in dimension %d, expected at least 0",
                    m->op, name, (long long)t->shape[d], d);
        SGK_REQUIRE(!__builtin_mul_overflow(n, t->shape[d], &n) && n <= INT64_MAX / 16, SGK_BAD_ARG,
                    "%s: %s has more elements than 64 bits count, expected fewer", m->op, name);
    }
    if (n == 0) return SGK_OK;
    SGK_REQUIRE(t->data, SGK_BAD_ARG, "%s: %s has %lld elements and a null data pointer, expected memory", m->op, name, (long long)n);
    for (int d = 0; d < t->ndim; ++d)
        SGK_REQUIRE(t->shape[d] == 1 || (sgk_stride(t, d) >= 0 && sgk_stride(t, d) <= INT64_MAX / 16 / t->shape[d]), SGK_BAD_ARG,
                    "%s: %s has stride %lld in dimension %d, expected a stride from 0 to what 64 bits address",
                    m->op, name, (long long)sgk_stride(t, d), d);
    if (t->ndim && !any_last_stride)
        SGK_REQUIRE(t->shape[t->ndim - 1] == 1 || sgk_stride(t, -1) == 1, SGK_BAD_ARG,
                    "%s: %s has stride %lld in its last dimension, expected 1", m->op, name, (long long)sgk_stride(t, -1));
    const uintptr_t data = (uintptr_t)t->data + t->byte_offset;
    SGK_REQUIRE(data % (uintptr_t)size == 0, SGK_BAD_ARG, "%s: %s is at address 0x%llx, expected a multiple of its element size %d",
                m->op, name, (unsigned long long)data, size);
    if (written)
        SGK_REQUIRE(places_distinct(t), SGK_BAD_ARG, "%s: %s is written and has several elements in one place, expected strides that keep them apart",
                    m->op, name);
    *begin = data;
    *end   = data + (uintptr_t)span_bytes(t, size);
    return SGK_OK;
}

sgk_status sgk_match_tensor(sgk_match *m, const DLTensor *t, const char *name, const char *shape, unsigned dtypes, bool written)
{
    SGK_REQUIRE(t, SGK_BAD_ARG, "%s: %s is null, expected a tensor [%s]", m->op, name, shape);
    SGK_REQUIRE(t->ndim >= 0 && (t->ndim == 0 || t->shape), SGK_BAD_ARG, "%s: %s has %d dimensions and no sizes, expected [%s]", m->op, name, t->ndim, shape);
    SGK_TRY(match_device(m, t, name));
    const int dtype = sgk_dtype_of(t->dtype);
    if (dtype < 0 || !(dtypes >> dtype & 1)) return refuse_dtype(m, t, name, dtypes);
    if (m->count == 0) m->dtype = (sgk_dtype)dtype;
    bool any_last_stride = false;
    SGK_TRY(match_shape(m, t, name, shape, &any_last_stride));
    uintptr_t begin, end;
    const int size = sgk_dtypes[dtype].size;
    if (!ordinary(t, any_last_stride, size, &begin, &end)) SGK_TRY(match_memory(m, t, name, written, any_last_stride, size, &begin, &end));
    if (!m->seen) m->seen = matched;
    SGK_REQUIRE(m->count < SGK_MATCH_TENSORS, SGK_FAILED, "%s: more than %d tensors", m->op, SGK_MATCH_TENSORS);
    m->seen[m->count++] = (sgk_matched){ t, name, written, 0, begin, end };
    return SGK_OK;
}

void sgk_match_same(sgk_match *m, const DLTensor *a, const DLTensor *b)
{
    for (int j = 0; j < m->count; ++j) {
        if (m->seen[j].tensor != b) continue;
        for (int i = 0; i < m->count; ++i)
            if (m->seen[i].tensor == a && i != j) m->seen[i].same = j + 1;
    }
}

static bool identical(const sgk_matched *a, const sgk_matched *b)
{
    const DLTensor *s = a->tensor, *t = b->tensor;
    if (a->begin != b->begin || a->end != b->end || s->ndim != t->ndim) return false;
    for (int d = 0; d < s->ndim; ++d)
        if (s->shape[d] != t->shape[d] || (s->shape[d] > 1 && sgk_stride(s, d) != sgk_stride(t, d))) return false;
    return s->dtype.bits == t->dtype.bits;
}

/* Bytes of the widest step below `limit` of a tensor, and what lies within one such step. 0: there is none. */
static int64_t widest_step(const sgk_matched *a, int64_t limit, int64_t *inside)
{
    const DLTensor *t    = a->tensor;
    const int64_t   size = t->dtype.bits / 8;
    int64_t         step = 0;
    *inside              = size;
    for (int d = 0; d < t->ndim; ++d) {
        const int64_t s = sgk_stride(t, d) * size;
        if (t->shape[d] > 1 && s < limit && s > step) step = s;
    }
    for (int d = 0; d < t->ndim; ++d) {
        const int64_t s = sgk_stride(t, d) * size;
        if (t->shape[d] > 1 && s < step) *inside += (t->shape[d] - 1) * s;
    }
    return step;
}

/* Rows of a and rows of b lie side by side: slices of one tensor along a dimension that is not the first. From the widest step inwards:
 * where both take the same step, and a step of both fits in it, what happens inside one step decides. */
static bool interleaved(const sgk_matched *a, const sgk_matched *b)
{
    if (b->begin < a->begin) return interleaved(b, a);
    int64_t in_a, in_b, offset = (int64_t)(b->begin - a->begin), limit = INT64_MAX;
    for (;;) {
        const int64_t step = widest_step(a, limit, &in_a);
        if (step <= 0 || widest_step(b, limit, &in_b) != step) return false;
        offset %= step;
        if (offset + in_b > step || in_a > step) return false;
        if (offset >= in_a) return true;
        limit = step;
    }
}

sgk_status sgk_match_done(const sgk_match *m)
{
    for (int i = 0; i < m->count; ++i) {
        const sgk_matched *a = &m->seen[i];
        if (!a->written) continue;
        for (int j = 0; j < m->count; ++j) {
            const sgk_matched *b = &m->seen[j];
            if (i == j || (b->written && j < i) || a->begin >= b->end || b->begin >= a->end) continue;
            if ((a->same == j + 1 || b->same == i + 1) && identical(a, b)) continue;
            if (interleaved(a, b)) continue;
            return sgk_error(SGK_BAD_ARG, "%s: %s is written and overlaps %s in memory, expected separate memory%s", m->op, a->name, b->name,
                             a->same == j + 1 || b->same == i + 1 ? " or exactly the same" : "");
        }
    }
    return SGK_OK;
}

sgk_status sgk_match_dense(const sgk_match *m, const DLTensor *t, const char *name)
{
    int64_t expected = 1;
    for (int d = t->ndim - 1; d >= 0; --d) {
        SGK_REQUIRE(t->shape[d] <= 1 || sgk_stride(t, d) == expected || sgk_numel(t) == 0, SGK_BAD_ARG, "%s: %s has stride %lld in dimension %d, expected %lld (contiguous)",
                    m->op, name, (long long)sgk_stride(t, d), d, (long long)expected);
        expected *= t->shape[d];
    }
    return SGK_OK;
}

sgk_status sgk_match_finite(const sgk_match *m, double value, const char *name, double least)
{
    SGK_REQUIRE(isfinite(value) && value >= least, SGK_BAD_ARG, "%s: %s is %g, expected a finite number of at least %g", m->op, name, value, least);
    return SGK_OK;
}
