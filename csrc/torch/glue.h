/*
 * The words in which the rows of ops.def write their C call. Include it where the rows are turned into functions and nowhere else:
 * the words are short. `f` is the frame of the call.
 */
#include "torch/frame.h"

enum { CPU  = 1,
       CUDA = 2,
       ANY  = 4 };    /* ANY: also for a call without any tensor */

/* ---- arguments, by their place in the schema ---- */
#define T(i)               f->given[i]
#define F(i)               torch_real(f->in[i])
#define F32(i)             (float)torch_real(f->in[i])
#define I(i)               (int64_t)f->in[i]
#define I32(i)             (int)(int64_t)f->in[i]
#define B(i)               ((uint8_t)f->in[i] != 0)
#define IO(i, otherwise)   (f->in[i] ? (int64_t)torch_boxed(f->in[i]) : (int64_t)(otherwise))
#define IO32(i, otherwise) (f->in[i] ? (int)(int64_t)torch_boxed(f->in[i]) : (int)(otherwise))
#define FO(i, otherwise)   (f->in[i] ? torch_real(torch_boxed(f->in[i])) : (double)(otherwise))
#define BO(i, otherwise)   (f->in[i] ? (uint8_t)torch_boxed(f->in[i]) != 0 : (otherwise))
#define HAS(i)             (f->in[i] != 0)
#define S(i)               torch_string(f, i)
#define DEVICE(i)          torch_device_argument(f, i)
#define DT(i)              torch_dtype_argument(f, i, -1)
#define DTO(i, otherwise)  torch_dtype_argument(f, i, otherwise)
#define COUNT(i)           f->list[i].count
#define TL(i)              (const DLTensor *const *)f->list[i].items
#define IL(i)              (const int64_t *)f->list[i].items
#define FL(i)              (const double *)f->list[i].items
#define SEEDS(i, n)        torch_seeds(f, i, n)

/* ---- results, by their place in the schema ---- */
#define NEW(k, dtype, ...)   torch_new(f, k, -1, dtype, (int)(sizeof (int64_t[]){ __VA_ARGS__ } / sizeof(int64_t)), (int64_t[]){ __VA_ARGS__ })
#define NEW_SCALAR(k, dtype) torch_new(f, k, -1, dtype, 0, NULL)
#define NEW_ITEM(k, item, dtype, ...) \
    torch_new(f, k, item, dtype, (int)(sizeof (int64_t[]){ __VA_ARGS__ } / sizeof(int64_t)), (int64_t[]){ __VA_ARGS__ })
#define NEW_LIKE(k, i)            torch_new_like(f, k, i)
#define ALIAS(k, i)               torch_alias(f, k, i)
#define COLUMNS(k, j, size, call) torch_columns(f, k, j, size, call)
#define NEW_WITH(k, i, dim, size) torch_new_with(f, k, -1, i, dim, size, -1)
#define GIVEN(k, i)               torch_given(f, k, -1, i)
/* What attention over q (argument 0) and v (argument 2) makes: out, argument i where it is given, and the logarithms of its sums. */
#define ATTENTION_OUT(k, item, i) \
    (HAS(i) ? torch_given(f, k, item, i) : torch_new_with(f, k, item, 0, -1, SIZE(2, -1), DTYPE(0) == SGK_E4M3 ? SGK_BF16 : -1))
#define ATTENTION_LSE(k, item) \
    (DIMS(0) == 4 ? torch_new(f, k, item, SGK_F32, 3, (int64_t[]){ SIZE(0, 0), SIZE(0, 2), SIZE(0, 1) }) : torch_new(f, k, item, SGK_F32, 2, (int64_t[]){ SIZE(0, 1), SIZE(0, 0) }))
#define SIZE(i, dim)  torch_size(f, i, dim)
#define DIMS(i)       (T(i) ? T(i)->ndim : 0)
#define DTYPE(i)      torch_dtype_of(f, i)
#define OUT_INT(k)    (&f->value[k].number)
#define OUT_FLOAT(k)  (&f->value[k].real)
#define OUT_BOOL(k)   (&f->value[k].truth)
#define OUT_DTYPE(k)  (&f->value[k].dtype)
#define OUT_DEVICE(k) (&f->value[k].device)
#define OUT_INTS(n)   torch_numbers(f, n)

/* ---- how to run ---- */
#define SWITCH(on) ((on) ? SGK_ON : SGK_OFF)
#define EXEC(...) \
    (&(sgk_exec){ .size = sizeof(sgk_exec), .stream = f->stream, .user = f, .parallel_for = torch_loop, .num_threads = torch_threads, .allocate = f->device.device_type == kDLCUDA ? torch_allocate : NULL, .release = torch_release, __VA_ARGS__ })
