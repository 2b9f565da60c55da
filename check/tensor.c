/* Tensors of a case: random contents, guard bytes, and whether anything but the elements was touched. */
#include <math.h>
#include <stdlib.h>
#include "harness.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

check_tensor tensors[MAX_TENSORS];
int          tensor_count;

/* ---- random numbers: one stream for a family's choices, one for a case, so that --only changes neither ---- */
static uint64_t family_state, case_state;
static bool     in_case;

static uint64_t hash(const char *text)
{
    uint64_t h = 0xcbf29ce484222325ull;                     /* FNV-1a */
    for (; *text; ++text) h = (h ^ (unsigned char)*text) * 0x100000001b3ull;
    return h;
}

static uint64_t seeded(const char *text)
{
    const uint64_t s = hash(text) ^ check_seed * 0x9e3779b97f4a7c15ull;
    return s ? s : 1;
}

static bool spared;                                         /* check_normal has one more */

void random_start_family(const char *family) { family_state = seeded(family), in_case = spared = false; }
void random_start_case(const char *name) { case_state = seeded(name), in_case = true, spared = false; }
void random_end_case(void) { in_case = spared = false; }

uint32_t random_bits(void)
{
    uint64_t *s = in_case ? &case_state : &family_state;    /* xorshift64* (S. Vigna: An experimental exploration of Marsaglia's xorshift generators, 2016) */
    *s ^= *s >> 12, *s ^= *s << 25, *s ^= *s >> 27;
    return (uint32_t)(*s * 0x2545f4914f6cdd1dull >> 32);
}

int check_int(int lo, int hi) { return lo + (int)(random_bits() % ((unsigned)(hi - lo) + 1)); }

static double uniform(void) { return (random_bits() + 0.5) / 4294967296.0; }

/* Two at a time (G. Box, M. Muller: A note on the generation of random normal deviates, 1958); the second one waits. */
static double spare;

double check_normal(void)
{
    if (spared) {
        spared = false;
        return spare;
    }
    const double r = sqrt(-2 * log(uniform())), angle = 6.283185307179586 * uniform();
    spare  = r * sin(angle);
    spared = true;
    return r * cos(angle);
}

/* ---- places ---- */
int64_t tensor_count_elements(const check_tensor *t)
{
    int64_t n = 1;
    for (int d = 0; d < t->ndim; ++d) n *= t->shape[d];
    return n;
}

int64_t tensor_row_length(const check_tensor *t) { return t->ndim ? t->shape[t->ndim - 1] : 1; }

int64_t tensor_rows(const check_tensor *t)
{
    int64_t n = 1;
    for (int d = 0; d < t->ndim - 1; ++d) n *= t->shape[d];
    return tensor_row_length(t) ? n : 0;
}

int64_t tensor_row_offset(const check_tensor *t, int64_t row)
{
    int64_t offset = 0;
    for (int d = t->ndim - 2; d >= 0; --d) {
        offset += row % t->shape[d] * t->strides[d];
        row /= t->shape[d];
    }
    return offset;
}

int64_t tensor_offset(const check_tensor *t, int64_t i)
{
    const int64_t length = tensor_row_length(t);
    return tensor_row_offset(t, i / length) + i % length;
}

size_t tensor_block_size(const check_tensor *t) { return GUARD + t->shift + t->span + GUARD; }

size_t tensors_bytes(void)
{
    size_t n = 0;
    for (int i = 0; i < tensor_count; ++i) n += tensors[i].span;
    return n;
}

/* ---- making ---- */
static void *grab(size_t bytes)
{
    void *p = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!p) {
        printf("FAILURE: no memory for %zu bytes of a test tensor\n", bytes);
        exit(1);
    }
    return p;
}

static check_tensor *make(sgk_dtype dtype, bool read, bool written, bool dense, int ndim, va_list sizes)
{
    if (tensor_count == MAX_TENSORS || ndim > MAX_DIMS) {
        printf("FAILURE: %s: more than %d tensors or %d dimensions in one case\n", label, MAX_TENSORS, MAX_DIMS);
        exit(1);
    }
    check_tensor *t = &tensors[tensor_count++];
    memset(t, 0, sizeof *t);
    t->dtype = dtype, t->ndim = ndim, t->read = read, t->written = written;
    t->element = (size_t)sgk_dtype_size(dtype);
    for (int d = 0; d < ndim; ++d) t->shape[d] = va_arg(sizes, int64_t);

    /* A gap behind each row, a multiple of 16 bytes: rows are never dense, and as aligned as their length leaves them. */
    const int64_t unit = t->element < 2 ? 16 : 8, gap = dense || ndim < 2 ? 0 : unit * (1 + random_bits() % 4);
    int64_t       span = 1;
    for (int d = ndim - 1; d >= 0; --d) {
        t->strides[d] = span;
        span          = span * t->shape[d] + (d == ndim - 1 ? gap : 0);
    }
    t->span           = tensor_count_elements(t) ? (size_t)span * t->element : 0;
    const size_t size = GUARD + t->element + t->span + GUARD;       /* room for check_unaligned */
    t->saved          = grab(t->span + 1);
    t->ref            = grab(size);
    t->now            = grab(size);
    t->first          = grab(t->span + 1);
    memset(t->saved, FILL_FIRST, t->span + 1);
    return t;
}

static double random_value(sgk_dtype dtype)
{
    switch (dtype) {
    case SGK_I8:   return check_int(-128, 127);
    case SGK_U8:   return check_int(0, 255);
    case SGK_I32:
    case SGK_I64:  return check_int(-1000, 1000);
    case SGK_BOOL: return check_int(0, 1);
    default:       break;
    }
    const int kind = check_int(0, 63);
    return kind == 0 ? 0 : kind == 1 ? 50 * check_normal()
                       : kind == 2   ? 1e-4 * check_normal()
                                     : check_normal();
}

/* Large tensors repeat the first PERIOD elements: a prime, so that rows differ. */
static void fill_random(check_tensor *t)
{
    enum { PERIOD = 262139,
           SHORT  = 1021 };                 /* which version runs does not depend on numbers */
    const int64_t n = tensor_count_elements(t), most = versions_wanted ? SHORT : PERIOD, period = n < most ? n : most;
    if (n == 0) return;
    char *values = grab((size_t)period * t->element);
    for (int64_t i = 0; i < period; ++i) store_f64(values, i, t->dtype, random_value(t->dtype));
    int64_t from = 0;
    for (int64_t r = 0, rows = tensor_rows(t), length = tensor_row_length(t); r < rows; ++r) {
        char *row = t->saved + (size_t)tensor_row_offset(t, r) * t->element;
        for (int64_t done = 0; done < length;) {
            const int64_t left = length - done, here = period - from, part = left < here ? left : here;
            memcpy(row + (size_t)done * t->element, values + (size_t)from * t->element, (size_t)part * t->element);
            done += part;
            from = (from + part) % period;
        }
    }
    free(values);
}

#define MAKE(read, written, dense) \
    va_list sizes; \
    va_start(sizes, ndim); \
    check_tensor *t = make(dtype, read, written, dense, ndim, sizes); \
    va_end(sizes); \
    if (read) fill_random(t); \
    return t

check_tensor *check_input(sgk_dtype dtype, int ndim, ...) { MAKE(true, false, false); }
check_tensor *check_output(sgk_dtype dtype, int ndim, ...) { MAKE(false, true, false); }
check_tensor *check_inout(sgk_dtype dtype, int ndim, ...) { MAKE(true, true, false); }
check_tensor *check_input_dense(sgk_dtype dtype, int ndim, ...) { MAKE(true, false, true); }
check_tensor *check_output_dense(sgk_dtype dtype, int ndim, ...) { MAKE(false, true, true); }
check_tensor *check_inout_dense(sgk_dtype dtype, int ndim, ...) { MAKE(true, true, true); }

check_tensor *check_index(sgk_dtype dtype, int64_t lo, int64_t hi, int ndim, ...)
{
    va_list sizes;
    va_start(sizes, ndim);
    check_tensor *t = make(dtype, true, false, true, ndim, sizes);
    va_end(sizes);
    const uint64_t width = (uint64_t)(hi - lo) + 1;
    for (int64_t i = 0, n = tensor_count_elements(t); i < n; ++i) {
        const uint64_t r = (uint64_t)random_bits() << 32 | random_bits();
        store_f64(t->saved, i, dtype, (double)(lo + (int64_t)(width ? r % width : r)));
    }
    return t;
}

check_tensor *check_values(sgk_dtype dtype, const double *values, int ndim, ...)
{
    va_list sizes;
    va_start(sizes, ndim);
    check_tensor *t = make(dtype, true, false, true, ndim, sizes);
    va_end(sizes);
    for (int64_t i = 0, n = tensor_count_elements(t); i < n; ++i) store_f64(t->saved, i, dtype, values[i]);
    return t;
}

check_tensor *check_unaligned(check_tensor *t)
{
    t->shift = t->element;
    return t;
}

double check_get(const check_tensor *t, int64_t i) { return load_as_f64(t->saved, tensor_offset(t, i), t->dtype); }
void check_set(check_tensor *t, int64_t i, double value) { store_f64(t->saved, tensor_offset(t, i), t->dtype, value); }
void check_set_code(check_tensor *t, int64_t i, uint32_t code) { memcpy(t->saved + (size_t)tensor_offset(t, i) * t->element, &code, t->element < 4 ? t->element : 4); }
bool check_on_gpu(void) { return level->gpu; }
double check_result_of(const check_tensor *t, int64_t i) { return load_as_f64(t->first, tensor_offset(t, i), t->dtype); }
double check_reference_of(const check_tensor *t, int64_t i) { return load_as_f64(tensor_data(t, t->ref), tensor_offset(t, i), t->dtype); }
void check_legal(check_tensor *t, unsigned ways) { t->legal |= ways; }

const char *check_dtype(sgk_dtype t) { return sgk_dtypes[t].name; }

double check_tolerance(sgk_dtype t)
{
    switch (t) {
    case SGK_F64:  return 1e-14;
    case SGK_F32:  return 1e-6;
    case SGK_F16:  return 6e-4;
    case SGK_BF16: return 4e-3;
    case SGK_E4M3: return 4e-2;
    case SGK_E5M2: return 8e-2;
    default:       return 0;            /* integers */
    }
}

static const struct {
    int fraction, least_exponent;
} formats[SGK_DTYPES] = { [SGK_F64] = { 52, -1022 }, [SGK_F32] = { 23, -126 }, [SGK_F16] = { 10, -14 }, [SGK_BF16] = { 7, -126 }, [SGK_E4M3] = { 3, -6 }, [SGK_E5M2] = { 2, -14 } };

double check_largest(sgk_dtype t) { return ldexp(2 - ldexp(1, -formats[t].fraction), 1 - formats[t].least_exponent); }

double check_step(sgk_dtype t, double x)
{
    if (!formats[t].fraction) return 0;         /* integers */
    int exponent;
    frexp(x, &exponent);
    --exponent;                                 /* frexp's fraction lies in [1/2, 1) */
    if (x == 0 || exponent < formats[t].least_exponent) exponent = formats[t].least_exponent;
    return ldexp(1, exponent - formats[t].fraction);
}

/* ---- contents ---- */
void tensor_restore(const check_tensor *t, char *block, int fill)
{
    memset(block, fill, tensor_block_size(t));
    if (!t->read) return;
    char        *data   = tensor_data(t, block);
    const size_t length = (size_t)tensor_row_length(t) * t->element;
    for (int64_t r = 0, rows = tensor_rows(t); r < rows; ++r) {
        const size_t at = (size_t)tensor_row_offset(t, r) * t->element;
        memcpy(data + at, t->saved + at, length);
    }
}

bool tensor_same(const check_tensor *t, const char *data, const char *other)
{
    const size_t length = (size_t)tensor_row_length(t) * t->element;
    for (int64_t r = 0, rows = tensor_rows(t); r < rows; ++r) {
        const size_t at = (size_t)tensor_row_offset(t, r) * t->element;
        if (memcmp(data + at, other + at, length)) return false;
    }
    return true;
}

int64_t tensor_first_other(const char *p, size_t n, int fill)
{
    /* All are like their neighbours and the first one is right: most often there is nothing to look for. */
    if (n == 0 || ((unsigned char)p[0] == fill && !memcmp(p, p + 1, n - 1))) return -1;
    for (size_t i = 0; i < n; ++i)
        if ((unsigned char)p[i] != fill) return (int64_t)i;
    return -1;
}

bool tensor_surrounded(const check_tensor *t, const char *block, int fill, char *where, size_t size)
{
    const char *data = block + GUARD + t->shift;
    int64_t     at   = tensor_first_other(block, GUARD + t->shift, fill);
    if (at >= 0) {
        snprintf(where, size, "%lld bytes before the first element", (long long)(GUARD + t->shift) - (long long)at);
        return false;
    }
    at = tensor_first_other(data + t->span, GUARD, fill);
    if (at >= 0) {
        snprintf(where, size, "byte %lld behind the tensor", (long long)at);
        return false;
    }
    const size_t length = (size_t)tensor_row_length(t) * t->element;
    for (int64_t r = 0, rows = tensor_rows(t); r < rows; ++r) {
        const size_t end  = (size_t)tensor_row_offset(t, r) * t->element + length;
        const size_t next = r + 1 < rows ? (size_t)tensor_row_offset(t, r + 1) * t->element : t->span;
        at                = tensor_first_other(data + end, next - end, fill);
        if (at >= 0) {
            snprintf(where, size, "byte %lld of the gap behind row %lld", (long long)at, (long long)r);
            return false;
        }
    }
    return true;
}

bool tensor_arming = true;

void tensor_arm(const check_tensor *t, char *block, bool on)
{
#if defined(__SANITIZE_ADDRESS__)
    if (!on) {
        ASAN_UNPOISON_MEMORY_REGION(block, tensor_block_size(t));
        return;
    }
    if (!tensor_arming) return;
    /* A granule of the sanitizer is 8 bytes that are good up to a point: poison from the end of a row to the next one. */
    char *data = tensor_data(t, block);
    ASAN_POISON_MEMORY_REGION(block, GUARD + t->shift);
    const size_t length = (size_t)tensor_row_length(t) * t->element;
    for (int64_t r = 0, rows = tensor_rows(t); r < rows; ++r) {
        const size_t end  = (size_t)tensor_row_offset(t, r) * t->element + length;
        const size_t next = r + 1 < rows ? (size_t)tensor_row_offset(t, r + 1) * t->element : t->span;
        if (next > end) ASAN_POISON_MEMORY_REGION(data + end, next - end);
    }
    ASAN_POISON_MEMORY_REGION(data + t->span, GUARD);
#else
    (void)t, (void)block, (void)on;
#endif
}

void tensors_free(void)
{
    for (int i = 0; i < tensor_count; ++i) {
        free(tensors[i].saved);
        free(tensors[i].ref);
        free(tensors[i].now);
        free(tensors[i].first);
    }
    tensor_count = 0;
}
