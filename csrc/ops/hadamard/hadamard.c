#include "hadamard.h"
#include <math.h>
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "sgl_kernel/hadamard.h"

SGK_CPU_DECL(hadamard);
static const sgk_cpu_impl hadamard_cpu[] = SGK_CPU_IMPLS(hadamard);

/* Every build of hadamard.cu, one for each order and length of chunk. The last of an order is for chunks of twice its length. */
#define BUILD(order, log2, split) \
    { SGK_KERNEL("hadamard/hadamard.cu", "hadamard", "-DORDER=" #order " -DLOG=" #log2 " -DSPLIT=" #split, SGK_GENERAL), order, log2, split }
#define BUILDS(order) \
    BUILD(order, 2, 0), BUILD(order, 3, 0), BUILD(order, 4, 0), BUILD(order, 5, 0), BUILD(order, 6, 0), BUILD(order, 7, 0), BUILD(order, 8, 0), \
        BUILD(order, 9, 0), BUILD(order, 9, 1)

typedef struct {
    sgk_kernel kernel;
    int        order, log2, split;
} hadamard_build;

static hadamard_build hadamard_builds[] = {
    BUILD(1, 3, 0),
    BUILD(1, 4, 0),
    BUILD(1, 5, 0),
    BUILD(1, 6, 0),
    BUILD(1, 7, 0),
    BUILD(1, 8, 0),
    BUILD(1, 9, 0),
    BUILD(1, 10, 0),
    BUILD(1, 11, 0),
    BUILD(1, 12, 0),
    BUILD(1, 13, 0),
    BUILD(1, 14, 0),
    BUILD(1, 14, 1),
    BUILDS(12),
    BUILDS(20),
    BUILDS(28),
    BUILDS(40),
};

const sgk_kernel_table hadamard_kernels[] = { SGK_KERNEL_TABLE(hadamard_builds), { 0 } };

enum { LEAST_THREADS = 128 };                           /* as in hadamard.cu */

/* Elements that a thread loads. */
static int count_of(int order, int log2)
{
    if (order == 1) return log2 >= 7 ? 32 : log2 >= 4 ? 16
                                                      : 8;
    return order * (order >= 28 ? 2 : 4);
}

static sgk_status transform_on_gpu(struct hadamard_args *a, const char *op, int ordinal, const sgk_exec *exec)
{
    if (a->order == 1 && a->log2 < 3) a->log2 = 3;      /* more zeros behind the row change nothing */
    a->pieces         = a->dim % 8 == 0 && sgk_in_pieces(a->x, a->x_stride, a->dtype) && sgk_in_pieces(a->out, a->out_stride, a->dtype);
    hadamard_build *b = hadamard_builds;
    while (b->order != a->order || b->log2 + b->split != a->log2) ++b;
    const int     elements = b->order << b->log2, team = elements / count_of(b->order, b->log2);
    const int     threads = team > LEAST_THREADS ? team : LEAST_THREADS, teams = threads / team;
    const bool    wide   = b->log2 >= (b->order == 1 ? 10 : 7);
    const int64_t blocks = b->split ? 2 * a->rows : (a->rows + teams - 1) / teams;
    SGK_LOG_BUILD(exec, op, &b->kernel, a->pieces ? "" : " (rows are not in 16-byte pieces)");
    const sgk_launch shape = {
        .grid          = { blocks },
        .block         = { (unsigned)threads },
        .shared_memory = wide ? (unsigned)(4 * teams * HADAMARD_PLACE(elements)) : 0,
    };
    return sgk_cuda_launch(op, &b->kernel, &shape, ordinal, exec, a, sizeof *a);
}

static const char *name_of(int order)
{
    switch (order) {
    case 1:  return "fast_hadamard_transform";
    case 12: return "fast_hadamard_transform_12N";
    case 20: return "fast_hadamard_transform_20N";
    case 28: return "fast_hadamard_transform_28N";
    case 40: return "fast_hadamard_transform_40N";
    default: return NULL;
    }
}

sgk_status sgk_hadamard_transform(const DLTensor *out, const DLTensor *x, int order, double scale, const sgk_exec *exec)
{
    sgk_match m = { .op = name_of(order) };
    SGK_REQUIRE(m.op, SGK_BAD_ARG, "fast_hadamard_transform: order is %d, expected 1, 12, 20, 28 or 40", order);
    SGK_MATCH(&m, x, "*N D", SGK_ANY_FLOAT);
    SGK_MATCH_OUT(&m, out, "*N D", 1u << m.dtype);
    SGK_REQUIRE(out->ndim == x->ndim, SGK_BAD_ARG, "%s: out has %d dimensions, expected %d like x", m.op, out->ndim, x->ndim);
    for (int d = 0; d < x->ndim - 1; ++d)
        SGK_REQUIRE(out->shape[d] == x->shape[d], SGK_BAD_ARG, "%s: out has size %lld in dimension %d, expected %lld like x", m.op,
                    (long long)out->shape[d], d, (long long)x->shape[d]);
    const int64_t dim = SGK_DIM(&m, 'D'), most = order == 1 ? 32768 : order * 1024;
    SGK_REQUIRE(dim <= most, SGK_BAD_ARG, "%s: x has size %lld in dimension %d, expected at most %lld", m.op, (long long)dim, x->ndim - 1, (long long)most);
    SGK_MATCH_FINITE(&m, scale, -INFINITY);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    struct hadamard_args a = {
        .out        = sgk_data(out),
        .x          = sgk_data(x),
        .rows       = SGK_DIM(&m, 'N'),
        .dim        = dim,
        .out_stride = sgk_fold_stride(out, 1),
        .x_stride   = sgk_fold_stride(x, 1),
        .scale      = (float)scale,
        .dtype      = m.dtype,
        .order      = order,
        .log2       = order == 1 ? 0 : 2,
    };
    while ((int64_t)order << a.log2 < dim) ++a.log2;
    if (a.rows == 0 || dim == 0) return SGK_OK;
    if (sgk_on_gpu(&m)) return transform_on_gpu(&a, m.op, m.device.device_id, exec);
    const int64_t work = ((int64_t)order << a.log2) * (a.log2 + order / 2 + 1);
    return sgk_cpu_run(m.op, hadamard_cpu, &a, a.rows, sgk_cpu_grain(work), exec);
}
