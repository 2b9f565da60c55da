/*
 * One call of an operator from torch: the arguments as C values, the results on their way back.
 *
 * The kernel owns every slot it is given. torch_run() copies the slots out (results overwrite them), decodes all of them, makes the C
 * call, releases each argument once, stores results, and only then raises: the exception passes through our frames, so nothing may
 * be held any more.
 */
#ifndef SGK_TORCH_FRAME_H
#define SGK_TORCH_FRAME_H
#include "base/dtype.h"
#include "torch/schema.h"
#include "torch/shim.h"

enum { TORCH_MADE    = 16,
       TORCH_SCRATCH = 4 };        /* the most tensors that results hold together; scratch blocks at a time */

typedef struct torch_frame torch_frame;

/* A row of ops.def. */
typedef struct {
    const char *name, *overload;
    unsigned    devices;
    const char *text;             /* the schema */
    const char *call_text;
    sgk_status (*call)(torch_frame *);
    torch_kernel *kernel;
    torch_schema  schema;           /* filled by bind.c */
} torch_op;

struct torch_frame {
    const torch_op *op;
    sgk_status      status;                         /* of what the frame itself refused */
    char            message[1024];
    DLDevice        device;                         /* of the tensors */
    bool            device_known;
    void           *stream;                         /* torch's current one of that device; NULL on the CPU */

    torch_slot      in[TORCH_ARGS];
    const DLTensor *given[TORCH_ARGS];              /* of a tensor argument: NULL is None */
    DLTensor        tensor[TORCH_ARGS];
    struct {
        void  *items;
        size_t count;
    } list[TORCH_ARGS];

    struct {
        int          result, item;
        torch_handle handle;
        DLTensor     tensor;
    } made[TORCH_MADE];
    int made_count;
    union {
        int64_t   number;
        double    real;
        bool      truth;
        DLDevice  device;
        sgk_dtype dtype;
    } value[TORCH_RESULTS];
    int64_t numbers[TORCH_MADE];            /* of the int[] that is returned; there is at most one */
    size_t  number_count;

    struct {
        torch_handle handle;
        void        *memory;
    } scratch[TORCH_SCRATCH];
    torch_handle drawn;                          /* the tensor of seeds */
    DLTensor     seeds;
};

/* What the boxed kernels call. */
void torch_run(const torch_op *op, torch_slot *stack, uint64_t nargs, uint64_t nresults);

/* From here on a forked child is known as one. */
void torch_watch_forks(void);

/* ---- what the macros of ops.def read ---- */
const DLTensor *torch_new(torch_frame *f, int result, int item, int dtype, int ndim, const int64_t *sizes);
const DLTensor *torch_new_like(torch_frame *f, int result, int argument);
/* Like the argument, but for the size of one dimension; dtype -1: the argument's. */
const DLTensor *torch_new_with(torch_frame *f, int result, int item, int argument, int dim, int64_t size, int dtype);
/* The argument itself, for a schema whose result, or an item of it, is marked to be that. */
const DLTensor *torch_given(torch_frame *f, int result, int item, int argument);
/* A tensor over the memory of the argument, which it does not keep. The whole of a call. */
sgk_status torch_alias(torch_frame *f, int result, int argument);
/* After a call that went well: the first `size` elements of the last dimension of result `of`, copied: torch.compile lets no two results share memory. */
sgk_status torch_columns(torch_frame *f, int result, int of, int64_t size, sgk_status status);
const DLTensor *torch_seeds(torch_frame *f, int generator, int64_t count);
int64_t torch_size(const torch_frame *f, int argument, int dim);
int torch_dtype_of(torch_frame *f, int argument);
int torch_dtype_argument(const torch_frame *f, int argument, int otherwise);
DLDevice torch_device_argument(const torch_frame *f, int argument);
const char *torch_string(const torch_frame *f, int argument);
int64_t *torch_numbers(torch_frame *f, size_t count);

void *torch_allocate(void *frame, size_t bytes, DLDevice device);
void torch_release(void *frame, void *memory, DLDevice device);
void torch_loop(void *frame, int64_t begin, int64_t end, int64_t grain, sgk_parallel_body *body, void *context);
int torch_threads(void *frame);

static inline torch_slot torch_boxed(torch_slot box) { return *(const torch_slot *)(uintptr_t)box; }
static inline double torch_real(torch_slot slot)
{
    union {
        torch_slot slot;
        double     real;
    } u = { slot };
    return u.real;
}

#endif
