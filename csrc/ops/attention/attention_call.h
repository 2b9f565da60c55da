/* One call of attention on the host, and the forms that can run it. */
#ifndef SGK_ATTENTION_CALL_H
#define SGK_ATTENTION_CALL_H
#include "attention.h"
#include "base/match.h"
#include "cuda/cuda.h"
#include "sgl_kernel/attention.h"

typedef struct attention_call {
    const char                  *op;
    const DLTensor              *out, *softmax_lse, *q, *k, *v;
    sgk_flash_attn_options       o;
    sgk_match                    m;
    const sgk_exec              *exec;
    struct attention_args        a;
    struct attention_append_args before;        /* before.a is a copy of a, made when it is run */

    /* Scratch memory that is filled before anything else, by work that is done or enqueued; NULL: there is none. */
    sgk_status (*prepare)(struct attention_call *c, void *scratch);
    int64_t     prepare_bytes;              /* a multiple of 256 */
    const void *prepare_args;

    /* On the GPU, decided by the form that takes the call. */
    const sgk_cuda_device *device;
    const void            *build;             /* row of the form's table */
    int                    rows, threads, tile; /* a block's rows and threads, a tile's keys */
    unsigned               shared_memory;
    bool                   copies;            /* keys and values out of their pages first */
} attention_call;

/*
 * A way to run attention on the GPU. New keys and values are in the cache and q is rotated when it runs. The forms are asked in the order
 * of attention_forms[], best first; the last ones take every call.
 */
typedef struct {
    const char *name;
    const char *(*passes)(attention_call *c);           /* why it does not take the call, in a few words; NULL: it does. May keep in c what it found out */
    int64_t (*plan)(attention_call *c);                 /* behind passes: decides how to run it, c->a.splits and all; bytes of scratch memory */
    sgk_status (*run)(attention_call *c, void *scratch);
} attention_form;

/* attention_general.c, with every build for attention_kernels[]. */
extern const attention_form attention_mma, attention_wide, attention_plain;
/* attention_decode.c, likewise. */
extern const attention_form attention_decode;

enum { ATTENTION_MMA_BUILDS            = 16,
       ATTENTION_WIDE_BUILDS           = 3,
       ATTENTION_PLAIN_BUILDS          = 2,
       ATTENTION_DECODE_BUILDS         = 41,
       ATTENTION_DECODE_COMBINE_BUILDS = 4 };
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        dim, warps_m, warps_n, tile;
} attention_mma_build;
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        dim;
} attention_plain_build;
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        dim, warps, stages, rows, plain, parts;
} attention_decode_build;
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        parts;
} attention_decode_combine_build;
extern attention_mma_build            attention_mma_builds[ATTENTION_MMA_BUILDS];
extern attention_plain_build          attention_wide_builds[ATTENTION_WIDE_BUILDS], attention_plain_builds[ATTENTION_PLAIN_BUILDS];
extern attention_decode_build         attention_decode_builds[ATTENTION_DECODE_BUILDS];
extern attention_decode_combine_build attention_decode_combine_builds[ATTENTION_DECODE_COMBINE_BUILDS];

/* attention_wgmma.c: many queries on sm_90a. */
extern const attention_form attention_wgmma;

enum { ATTENTION_WGMMA_BUILDS       = 31,
       ATTENTION_WGMMA_QUERIES      = 17,   /* at least so many queries times the heads that share a key head go to it */
       ATTENTION_WGMMA_QUERIES_E4M3 = 33,   /* of e4m3, so many queries */
       ATTENTION_INVARIANT_FEW      = 64,   /* batch-invariant calls: up to so many queries times the heads that share a key head are few */
       ATTENTION_GATHER_MOST        = 256 << 20,        /* bytes of scratch memory for keys and values that are copied out of their pages */
       ATTENTION_GATHER_SPEED       = 2500000,          /* copied at so many bytes a us, read and written, a little less than measured, so that even calls stay */
       ATTENTION_GATHER_START       = 2,                /* besides so many us */
       ATTENTION_L2_SHARE           = 40 }; /* percent of L2 for keys and values that blocks share at a time */
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        dim, dim_v, groups, keys, stages, q_places, pages;
    int        v_stages;                        /* of values as they come */
} attention_wgmma_build;
typedef struct { sgk_kernel kernel; } attention_order_build;
typedef struct { sgk_kernel kernel; } attention_gather_build;
extern attention_wgmma_build  attention_wgmma_builds[ATTENTION_WGMMA_BUILDS];
extern attention_order_build  attention_order_builds[1];
extern attention_gather_build attention_gather_builds[1];

sgk_status attention_run_cpu(attention_call *c);
sgk_status attention_run_cuda(attention_call *c);

/* Every tensor that attention reads in pieces allows pieces of so many bytes: addresses and strides are multiples. */
bool attention_in_pieces(const struct attention_args *a, int64_t bytes);
bool attention_rows_in_pieces(const void *data, int64_t x, int64_t y, int64_t z, sgk_dtype dtype, int64_t bytes);

/* The splits of c->a for blocks that read tiles of c->tile keys, with no more than fit the GPU at once; scratch memory for partial results. */
int32_t attention_choose_splits(attention_call *c, int64_t blocks);
int64_t attention_partial_bytes(const struct attention_args *a);
void attention_set_partials(struct attention_args *a, void *scratch);
sgk_status attention_combine_parts(const attention_call *c);      /* the second kernel, where c->a.splits > 1 */

/* Where q is to be rotated, a.q becomes what it is rotated into, dense and in scratch memory of so many bytes; the caller sets the address. */
int64_t attention_rotate_queries(attention_call *c);
/* Writes k_new and v_new of sequence n into the cache; rotates those and q where asked. */
void attention_append_rows(const struct attention_append_args *b, int32_t n);

/* Whether pieces of 16 bytes of a cache can be counted in 32 bits. */
static inline bool attention_places_fit(const struct attention_args *a, int64_t batch_stride, int64_t row_stride)
{
    const int64_t rows = a->cu_seqlens_k ? a->total_k : a->page_size ? a->page_size
                                                                     : a->max_k;
    return ((a->kv_batches ? a->kv_batches - 1 : 0) * batch_stride + rows * row_stride) * sgk_dtype_size(a->dtype) / 16 < UINT32_MAX;
}

static inline int32_t attention_at_most(int64_t x, int64_t most) { return (int32_t)(x < most ? x : most); }
#define COUNT(array) (sizeof(array) / sizeof *(array))

#endif
