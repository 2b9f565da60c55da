/*
 * One call of an operator from torch: the arguments as C values, the results on their way back.
 *
 * The kernel owns every slot it is given. torch_run() copies the slots out (results overwrite them), decodes all of them, makes the C
 * call, stores results, releases each argument once, and only then raises: the exception passes through our frames and nothing may
 * be held.
 */
#ifndef SGK_TORCH_FRAME_H
#define SGK_TORCH_FRAME_H
#include "base/dtype.h"
#include "torch/schema.h"
#include "torch/shim.h"

enum { TORCH_ITEMS = 16, TORCH_SCRATCH = 4 };       /* the most items in a list that is returned; scratch tensors at a time */

typedef struct torch_frame torch_frame;

/* A row of ops.def. */
typedef struct {
    const char   *name, *overload;
    unsigned      devices;
    const char   *text;             /* the schema */
    const char   *call_text;
    sgk_status  (*call)(torch_frame *);
    torch_kernel *kernel;
    torch_schema  schema;
} torch_op;

typedef struct {
    bool         made;
    torch_handle handle;            /* of a tensor */
    DLTensor     tensor;
    int64_t      sizes[8], strides[8];
    int64_t      number;            /* an int, a bool, a dtype */
    double       real;
    DLDevice     device;
    size_t       count;             /* items of a list */
    torch_handle items[TORCH_ITEMS];
    DLTensor     item_tensor[TORCH_ITEMS];
    int64_t      item_sizes[TORCH_ITEMS][8], item_strides[TORCH_ITEMS][8];
    int64_t      numbers[TORCH_ITEMS];
} torch_result;
