/*
 * Argument checks that read like the documentation.
 *
 *     sgk_match m = { .op = "rmsnorm" };
 *     SGK_MATCH(&m,     input,  "N D", SGK_ANY_FLOAT);
 *     SGK_MATCH(&m,     weight, "D",   1u << m.dtype);
 *     SGK_MATCH_OUT(&m, output, "N D", 1u << m.dtype);
 *     sgk_match_same(&m, output, input);
 *     SGK_TRY(sgk_match_done(&m));
 *
 * A shape is a list of dimensions:
 *     N      a letter takes its value where it is first seen and must agree afterwards
 *     64     that very size
 *     *N     any number of leading dimensions, or none (N is 1), folded into one: they must be evenly spaced in memory
 * The last dimension must be dense (stride 1) unless it is followed by ~ ("B H~"); the others may have any stride that is not negative.
 * A tensor that is written must not have two elements in one place.
 */
#ifndef SGK_MATCH_H
#define SGK_MATCH_H
#include "base/dtype.h"
#include "base/status.h"

enum {
    SGK_ANY_FLOAT = 1 << SGK_F32 | 1 << SGK_F16 | 1 << SGK_BF16,
    SGK_ANY_INDEX = 1 << SGK_I32 | 1 << SGK_I64,
};

enum { SGK_MATCH_TENSORS = 24 };

typedef struct {
    const DLTensor *tensor;
    const char     *name;
    bool            written;
    int             same;           /* place + 1 of the tensor it may be identical with */
    uintptr_t       begin, end;     /* the bytes it spans */
} sgk_matched;

typedef struct {
    const char  *op;
    int64_t      dim[26];            /* value of 'A'..'Z' */
    uint32_t     bound;              /* which letters have one; 0 is a size like any other */
    DLDevice     device;             /* of the first tensor; all must agree */
    sgk_dtype    dtype;              /* of the first tensor */
    int          count;
    sgk_matched *seen;              /* [count], this thread's: a matcher is done before the thread's next one begins */
} sgk_match;

sgk_status sgk_match_tensor(sgk_match *m, const DLTensor *t, const char *name, const char *shape, unsigned dtypes, bool written);

/* Two tensors may be the very same memory, element for element; partial overlap stays an error. */
void sgk_match_same(sgk_match *m, const DLTensor *a, const DLTensor *b);

/* The last check: nothing that is written may overlap another argument. */
sgk_status sgk_match_done(const sgk_match *m);

/* The name in a message is the name in the source: one spelling, no drift. */
#define SGK_MATCH(m, t, shape, dtypes)     SGK_TRY(sgk_match_tensor(m, t, #t, shape, dtypes, false))
#define SGK_MATCH_OUT(m, t, shape, dtypes) SGK_TRY(sgk_match_tensor(m, t, #t, shape, dtypes, true))
/* For arguments that may be NULL. */
#define SGK_MATCH_OPT(m, t, shape, dtypes) \
    do { \
        if (t) SGK_MATCH(m, t, shape, dtypes); \
    } while (0)
#define SGK_MATCH_OPT_OUT(m, t, shape, dtypes) \
    do { \
        if (t) SGK_MATCH_OUT(m, t, shape, dtypes); \
    } while (0)

#define SGK_DIM(m, c) ((m)->dim[(c) - 'A'])

/* Refuses a tensor with holes: the argument must be row-major without gaps. */
sgk_status sgk_match_dense(const sgk_match *m, const DLTensor *t, const char *name);
#define SGK_MATCH_DENSE(m, t) SGK_TRY(sgk_match_dense(m, t, #t))

/* A number that has to fit an int, or be finite and not negative: refused with its name. */
sgk_status sgk_match_finite(const sgk_match *m, double value, const char *name, double least);
#define SGK_MATCH_FINITE(m, value, least) SGK_TRY(sgk_match_finite(m, value, #value, least))

/* Of dimension `dim`, in elements; negative counts from the end; a tensor without strides is dense. */
int64_t sgk_stride(const DLTensor *t, int dim);
/* Stride of the one dimension that the leading dimensions of "*N ..." fold into; `inner` dimensions follow it. */
int64_t sgk_fold_stride(const DLTensor *t, int inner);
int64_t sgk_numel(const DLTensor *t);

static inline void *sgk_data(const DLTensor *t) { return t && t->data ? (char *)t->data + t->byte_offset : NULL; }
static inline sgk_dtype sgk_dtype_at(const DLTensor *t) { return (sgk_dtype)sgk_dtype_of(t->dtype); }
/* An address, and a distance in elements, that are both multiples of so many bytes, a power of two: rows that begin there are read and written in
 * such pieces. */
static inline bool sgk_in_pieces_of(int bytes, const void *data, int64_t elements, sgk_dtype dtype)
{
    return (((uintptr_t)data | (uintptr_t)(elements * sgk_dtype_size(dtype))) & (uintptr_t)(bytes - 1)) == 0;
}
static inline bool sgk_in_pieces(const void *data, int64_t elements, sgk_dtype dtype) { return sgk_in_pieces_of(16, data, elements, dtype); }
static inline bool sgk_on_gpu(const sgk_match *m) { return m->device.device_type == kDLCUDA; }

#endif
