#include "torch/frame.h"
#include <float.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "torch/torch.h"

static _Thread_local sgk_status last_status;

int sgk_torch_last_status(void) { return last_status; }

/* The first refusal of a call is the one that is told. */
__attribute__((format(printf, 3, 4), cold)) static bool refuse(torch_frame *f, sgk_status status, const char *format, ...)
{
    if (f->status != SGK_OK) return false;
    f->status = status;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(f->message, sizeof f->message, format, arguments);
    va_end(arguments);
    return false;
}

/* ---- arguments ---------------------------------------------------------------------------------------------------------------- */

/* "weight", or "layers[3]". */
typedef struct { char text[72]; } name_text;

static name_text name_of(const torch_value *v, int item)
{
    name_text name;
    if (item < 0) snprintf(name.text, sizeof name.text, "%.*s", (int)v->length, v->name);
    else snprintf(name.text, sizeof name.text, "%.*s[%d]", (int)v->length, v->name, item);
    return name;
}

/* Asks nothing that can fail: before torch 2.13 a failing call prints a C++ stack. */
static bool decode_tensor(torch_frame *f, const torch_value *v, int item, torch_handle handle, DLTensor *t)
{
    const char *op      = f->op->name;
    bool        defined = false;
    shim.aoti_torch_is_defined(handle, &defined);
    if (!defined) return refuse(f, SGK_BAD_ARG, "%s: %s is None, expected a tensor", op, name_of(v, item).text);
    int32_t layout = -1, dtype = -1, type = -1, index = -1;
    int64_t ndim = 0;
    shim.aoti_torch_get_layout(handle, &layout);
    if (layout != shim.aoti_torch_layout_strided())
        return refuse(f, SGK_BAD_ARG, "%s: %s has a sparse layout, expected a strided tensor", op, name_of(v, item).text);
    shim.aoti_torch_get_dtype(handle, &dtype);
    if (!torch_dtype_to_dl(dtype, &t->dtype))
        return refuse(f, SGK_BAD_ARG, "%s: %s has a dtype that no operator takes (torch's code %d), expected a float, an integer or bool", op, name_of(v, item).text, dtype);
    shim.aoti_torch_get_device_type(handle, &type);
    shim.aoti_torch_get_device_index(handle, &index);
    if (type == shim.aoti_torch_device_type_cpu()) t->device = (DLDevice){ kDLCPU, 0 };
    else if (type == shim.aoti_torch_device_type_cuda()) t->device = (DLDevice){ kDLCUDA, index };
    else return refuse(f, SGK_BAD_ARG, "%s: %s is on a device of torch's type %d, expected the CPU or CUDA", op, name_of(v, item).text, type);
    t->data        = NULL;
    t->byte_offset = 0;
    shim.aoti_torch_get_dim(handle, &ndim);
    shim.aoti_torch_get_sizes(handle, &t->shape);
    shim.aoti_torch_get_strides(handle, &t->strides);
    shim.aoti_torch_get_data_ptr(handle, &t->data);
    t->ndim = (int32_t)ndim;
    if (!f->device_known || (t->device.device_type == kDLCUDA && f->device.device_type != kDLCUDA)) f->device = t->device, f->device_known = true;
    return true;
}

static bool decode_list(torch_frame *f, int i, const torch_value *v, torch_handle handle)
{
    size_t count = 0;
    shim.torch_list_size(handle, &count);
    const bool tensors = v->base == TORCH_TENSOR;
    void      *memory  = count ? malloc(count * (tensors ? sizeof(DLTensor *) + sizeof(DLTensor) : sizeof(int64_t))) : NULL;
    if (count && !memory) return refuse(f, SGK_FAILED, "%s: no memory for the %zu items of %s", f->op->name, count, name_of(v, -1).text);
    f->list[i].items          = memory;
    f->list[i].count          = count;
    const DLTensor **pointers = memory;
    DLTensor        *t        = tensors ? (DLTensor *)(pointers + count) : NULL;
    for (size_t j = 0; j < count; ++j) {
        torch_slot slot = 0;
        shim.torch_list_get_item(handle, j, &slot);
        if (!tensors) {                             /* an int64 or the bits of a double, as they come */
            ((torch_slot *)memory)[j] = slot;
            continue;
        }
        if (v->optional_items) slot = slot ? torch_boxed(slot) : 0;
        pointers[j] = slot ? &t[j] : NULL;
        if (slot && !decode_tensor(f, v, (int)j, torch_pointer(slot), &t[j])) return false;
    }
    return true;
}

static bool decode_string(torch_frame *f, const torch_value *v, torch_handle handle)
{
    const char *text   = NULL;
    size_t      length = 0;
    shim.torch_string_c_str(handle, &text);
    shim.torch_string_length(handle, &length);
    if (text && strlen(text) == length) return true;
    return refuse(f, SGK_BAD_ARG, "%s: %s holds a NUL character, expected text", f->op->name, name_of(v, -1).text);
}

/* Kernels compute in f32: a finite number that becomes infinite on the way there is a mistake of the caller's. */
static bool decode_float(torch_frame *f, const torch_value *v, double x)
{
    if (!(fabs(x) > (double)FLT_MAX) || isinf(x)) return true;
    return refuse(f, SGK_BAD_ARG, "%s: %s is %g, expected a number within the range of float32", f->op->name, name_of(v, -1).text, x);
}

static bool decode_int(torch_frame *f, const torch_value *v, int64_t n)
{
    if (!v->narrow || (n >= INT_MIN && n <= INT_MAX)) return true;
    return refuse(f, SGK_BAD_ARG, "%s: %s is %lld, expected a number that fits in 32 bits", f->op->name, name_of(v, -1).text, (long long)n);
}

static bool decode_dtype(torch_frame *f, const torch_value *v, int32_t code)
{
    DLDataType type;
    if (torch_dtype_to_dl(code, &type) && sgk_dtype_of(type) >= 0) return true;
    return refuse(f, SGK_BAD_ARG, "%s: %s is a dtype that no operator makes (torch's code %d), expected a float or an integer", f->op->name, name_of(v, -1).text, code);
}

static bool decode(torch_frame *f, int i)
{
    const torch_value *v    = &f->op->schema.arg[i];
    torch_slot         slot = f->in[i];
    f->given[i]             = NULL;
    f->list[i].items        = NULL;
    f->list[i].count        = 0;
    if (v->optional) {
        if (!slot) return true;
        slot = torch_boxed(slot);
    }
    if (v->list) return decode_list(f, i, v, torch_pointer(slot));
    switch (v->base) {
    case TORCH_TENSOR:
        f->given[i] = &f->tensor[i];
        return decode_tensor(f, v, -1, torch_pointer(slot), &f->tensor[i]);
    case TORCH_INT:    return decode_int(f, v, (int64_t)slot);
    case TORCH_FLOAT:  return decode_float(f, v, torch_real(slot));
    case TORCH_DTYPE:  return decode_dtype(f, v, (int32_t)slot);
    case TORCH_STRING: return decode_string(f, v, torch_pointer(slot));
    default:           return true;
    }
}

static void release_item(const torch_value *v, torch_slot slot)
{
    if (v->base == TORCH_TENSOR && slot) shim.aoti_torch_delete_tensor_object(torch_pointer(slot));
    else if (v->base == TORCH_STRING) shim.torch_delete_string(torch_pointer(slot));
    else if (v->base == TORCH_GENERATOR && shim.torch_delete_generator) shim.torch_delete_generator(torch_pointer(slot));
}

static void release_list(const torch_value *v, torch_handle handle)
{
    size_t count = 0;
    if (v->base == TORCH_TENSOR) shim.torch_list_size(handle, &count);
    for (size_t j = 0; j < count; ++j) {
        torch_slot slot = 0;
        shim.torch_list_get_item(handle, j, &slot);
        if (!v->optional_items) {
            release_item(v, slot);
        } else if (slot) {
            release_item(v, torch_boxed(slot));
            torch_unbox(slot);
        }
    }
    shim.torch_delete_list(handle);
}

static void release_argument(torch_frame *f, int i)
{
    const torch_value *v    = &f->op->schema.arg[i];
    torch_slot         slot = f->in[i];
    if (v->optional) {
        if (!slot) return;
        slot = torch_boxed(slot);
    }
    if (v->list) release_list(v, torch_pointer(slot));
    else release_item(v, slot);
    if (v->optional) torch_unbox(f->in[i]);
    if (v->list) free(f->list[i].items);
}

int64_t torch_size(const torch_frame *f, int argument, int dim)
{
    const DLTensor *t = f->given[argument];
    if (t && dim < 0) dim += t->ndim;
    return t && dim >= 0 && dim < t->ndim ? t->shape[dim] : 0;      /* a rank that is wrong is for the C call to refuse */
}

int torch_dtype_of(torch_frame *f, int argument)
{
    const DLTensor *t     = f->given[argument];
    const int       dtype = t ? sgk_dtype_of(t->dtype) : -1;
    char            text[SGK_DTYPE_TEXT];
    if (t && dtype < 0)
        refuse(f, SGK_BAD_ARG, "%s: %s has dtype %s, expected one of this library's number formats", f->op->name, name_of(&f->op->schema.arg[argument], -1).text,
               sgk_dtype_text(t->dtype, text));
    return dtype;
}

int torch_dtype_argument(const torch_frame *f, int argument, int otherwise)
{
    torch_slot slot = f->in[argument];
    if (f->op->schema.arg[argument].optional) {
        if (!slot) return otherwise;
        slot = torch_boxed(slot);
    }
    DLDataType type;
    return torch_dtype_to_dl((int32_t)slot, &type) ? sgk_dtype_of(type) : -1;
}

DLDevice torch_device_argument(const torch_frame *f, int argument)
{
    const int32_t type = (int32_t)(f->in[argument] >> 32), index = (int32_t)f->in[argument];
    if (type == shim.aoti_torch_device_type_cuda()) return (DLDevice){ kDLCUDA, index };
    return (DLDevice){ type == shim.aoti_torch_device_type_cpu() ? kDLCPU : (DLDeviceType)0, 0 };
}

const char *torch_string(const torch_frame *f, int argument)
{
    torch_slot  slot = f->in[argument];
    const char *text = NULL;
    if (f->op->schema.arg[argument].optional) {
        if (!slot) return NULL;
        slot = torch_boxed(slot);
    }
    shim.torch_string_c_str(torch_pointer(slot), &text);
    return text;
}

/* ---- results ------------------------------------------------------------------------------------------------------------------ */

/* Dense, on `device`. */
static torch_handle make_tensor(int ndim, const int64_t *sizes, int32_t code, DLDevice device)
{
    int64_t strides[8] = { 0 }, step = 1;
    for (int d = ndim - 1; d >= 0; --d) strides[d] = step, step *= sizes[d] > 1 ? sizes[d] : 1;
    const bool   cuda   = device.device_type == kDLCUDA;
    torch_handle handle = NULL;
    if (shim.aoti_torch_empty_strided(ndim, ndim ? sizes : strides, strides, code, cuda ? shim.aoti_torch_device_type_cuda() : shim.aoti_torch_device_type_cpu(),
                                      cuda ? device.device_id : -1, &handle) != 0) return NULL;
    return handle;
}

const DLTensor *torch_new(torch_frame *f, int result, int item, int dtype, int ndim, const int64_t *sizes)
{
    const char *op = f->op->name;
    if (dtype < 0 || ndim > 8 || f->made_count == TORCH_MADE) {
        refuse(f, SGK_BAD_ARG, "%s: result %d cannot be made with %d dimensions and the dtype that was asked for", op, result, ndim);
        return NULL;
    }
    int64_t bytes = sgk_dtype_size((sgk_dtype)dtype);
    for (int d = 0; d < ndim; ++d)
        if (sizes[d] < 0 || __builtin_mul_overflow(bytes, sizes[d], &bytes)) {
            refuse(f, SGK_BAD_ARG, "%s: result %d would have size %lld in dimension %d, expected a size that memory can hold", op, result, (long long)sizes[d], d);
            return NULL;
        }
    torch_handle handle = make_tensor(ndim, sizes, torch_dtype_from_dl(sgk_dtypes[dtype].dl), f->device);
    if (!handle) {
        refuse(f, SGK_FAILED, "%s: torch could not allocate the %lld bytes of result %d", op, (long long)bytes, result);
        return NULL;
    }
    const int at                  = f->made_count++;
    f->made[at].result            = result;
    f->made[at].item              = item;
    f->made[at].handle            = handle;
    static const torch_value made = { .name = "result", .length = 6, .base = TORCH_TENSOR };
    return decode_tensor(f, &made, -1, handle, &f->made[at].tensor) ? &f->made[at].tensor : NULL;
}

const DLTensor *torch_new_like(torch_frame *f, int result, int argument)
{
    const DLTensor *t = f->given[argument];
    return t ? torch_new(f, result, -1, torch_dtype_of(f, argument), t->ndim, t->shape) : NULL;
}

const DLTensor *torch_new_with(torch_frame *f, int result, int item, int argument, int dim, int64_t size, int dtype)
{
    const DLTensor *t = f->given[argument];
    if (!t) return NULL;
    int64_t sizes[8];
    for (int d = 0; d < t->ndim && d < 8; ++d) sizes[d] = t->shape[d];
    if (dim < 0) dim += t->ndim;
    if (dim >= 0 && dim < t->ndim && dim < 8) sizes[dim] = size;       /* a rank that is wrong is for the C call to refuse */
    return torch_new(f, result, item, dtype < 0 ? torch_dtype_of(f, argument) : dtype, t->ndim, sizes);
}

static void make(torch_frame *f, int result, torch_handle handle)
{
    const int at       = f->made_count++;
    f->made[at].result = result;
    f->made[at].item   = -1;
    f->made[at].handle = handle;
}

const DLTensor *torch_given(torch_frame *f, int result, int item, int argument)
{
    const torch_slot slot  = f->in[argument];
    const bool       boxed = f->op->schema.arg[argument].optional;
    make(f, result, torch_pointer(boxed ? torch_boxed(slot) : slot));
    f->made[f->made_count - 1].item = item;
    if (boxed) torch_unbox(slot);
    f->in[argument] = 0;                                        /* no longer the argument's to release */
    return f->given[argument];
}

sgk_status torch_alias(torch_frame *f, int result, int argument)
{
    const DLTensor *t      = f->given[argument];
    const bool      cuda   = t->device.device_type == kDLCUDA;
    torch_handle    handle = NULL;
    SGK_REQUIRE(shim.aoti_torch_create_tensor_from_blob(t->data, t->ndim, t->shape, t->strides, 0, torch_dtype_from_dl(t->dtype),
                                                        cuda ? shim.aoti_torch_device_type_cuda() : shim.aoti_torch_device_type_cpu(),
                                                        cuda ? t->device.device_id : -1, &handle) == 0,
                SGK_FAILED, "%s: torch could not make a tensor over the memory of %s", f->op->name, name_of(&f->op->schema.arg[argument], -1).text);
    make(f, result, handle);
    return SGK_OK;
}

sgk_status torch_columns(torch_frame *f, int result, int of, int64_t size, sgk_status status)
{
    if (status != SGK_OK || f->status != SGK_OK) return status;
    int at = 0;
    while (f->made[at].result != of) ++at;
    const DLTensor *t        = &f->made[at].tensor;
    int64_t         sizes[8] = { 0 };
    torch_handle    view = NULL, copy = NULL;
    memcpy(sizes, t->shape, (size_t)t->ndim * sizeof *sizes);
    sizes[t->ndim - 1] = size;
    SGK_REQUIRE(shim.aoti_torch__reinterpret_tensor(f->made[at].handle, t->ndim, sizes, t->strides, 0, &view) == 0, SGK_FAILED,
                "%s: torch could not make a view of result %d", f->op->name, of);
    const bool copied = shim.aoti_torch_clone(view, &copy) == 0;
    shim.aoti_torch_delete_tensor_object(view);
    SGK_REQUIRE(copied, SGK_FAILED, "%s: torch could not copy columns of result %d", f->op->name, of);
    make(f, result, copy);
    return SGK_OK;
}

int64_t *torch_numbers(torch_frame *f, size_t count)
{
    f->number_count = count <= TORCH_MADE ? count : TORCH_MADE;
    return f->numbers;
}

static torch_slot made_tensor(torch_frame *f, int result, int item)
{
    for (int i = 0; i < f->made_count; ++i) {
        if (f->made[i].result != result || f->made[i].item != item) continue;
        const torch_slot slot = torch_slot_of(f->made[i].handle);
        f->made[i].handle     = NULL;
        return slot;
    }
    return 0;
}

static torch_slot made_list(torch_frame *f, int result, bool tensors)
{
    torch_handle list = NULL;
    shim.torch_new_list_reserve_size(tensors ? TORCH_MADE : f->number_count, &list);
    for (size_t j = 0; !tensors && j < f->number_count; ++j) shim.torch_list_push_back(list, (torch_slot)f->numbers[j]);
    torch_slot item;
    for (int j = 0; tensors && (item = made_tensor(f, result, j)) != 0; ++j) shim.torch_list_push_back(list, item);
    return torch_slot_of(list);
}

static torch_slot result_slot(torch_frame *f, int k)
{
    const torch_value *v = &f->op->schema.result[k];
    if (v->list) return made_list(f, k, v->base == TORCH_TENSOR);
    switch (v->base) {
    case TORCH_TENSOR: {
        const torch_slot slot = made_tensor(f, k, -1);
        return v->optional && slot ? torch_box(slot) : slot;
    }
    case TORCH_BOOL:   return f->value[k].truth;
    case TORCH_DTYPE:  return (uint32_t)torch_dtype_from_dl(sgk_dtypes[f->value[k].dtype].dl);
    case TORCH_DEVICE: {
        const bool    cuda = f->value[k].device.device_type == kDLCUDA;
        const int32_t type = cuda ? shim.aoti_torch_device_type_cuda() : shim.aoti_torch_device_type_cpu();
        return (torch_slot)(uint32_t)type << 32 | (uint32_t)(cuda ? f->value[k].device.device_id : -1);
    }
    default: return (torch_slot)f->value[k].number;        /* a double's bits, too */
    }
}

/* A result that a row forgot to make would be a null handle, which torch follows. */
static bool results_made(torch_frame *f)
{
    for (int k = 0; k < f->op->schema.nresults; ++k) {
        const torch_value *v = &f->op->schema.result[k];
        if (v->base != TORCH_TENSOR || v->list || v->optional) continue;
        bool made = false;
        for (int i = 0; i < f->made_count; ++i) made |= f->made[i].result == k && f->made[i].item < 0;
        if (!made) return refuse(f, SGK_FAILED, "%s: result %d was not made", f->op->name, k);
    }
    return true;
}

/* ---- scratch memory, threads, seeds ------------------------------------------------------------------------------------------- */

void *torch_allocate(void *frame, size_t bytes, DLDevice device)
{
    torch_frame            *f    = frame;
    static const DLDataType byte = { kDLUInt, 8, 1 };
    for (int i = 0; i < TORCH_SCRATCH; ++i) {
        if (f->scratch[i].handle) continue;
        const int64_t size   = (int64_t)bytes;
        torch_handle  handle = make_tensor(1, &size, torch_dtype_from_dl(byte), device);
        if (!handle) return NULL;
        shim.aoti_torch_get_data_ptr(handle, &f->scratch[i].memory);
        f->scratch[i].handle = handle;
        return f->scratch[i].memory;
    }
    return NULL;
}

/* The work is enqueued on the current stream, and torch's allocator reuses memory in that stream's order. */
void torch_release(void *frame, void *memory, DLDevice device)
{
    (void)device;
    torch_frame *f = frame;
    for (int i = 0; i < TORCH_SCRATCH; ++i) {
        if (!f->scratch[i].handle || f->scratch[i].memory != memory) continue;
        shim.aoti_torch_delete_tensor_object(f->scratch[i].handle);
        f->scratch[i].handle = NULL;
        return;
    }
}

/* After a fork torch's pool has no threads and would wait for them for ever. */
static _Atomic bool   forked;
static pthread_once_t watch_once = PTHREAD_ONCE_INIT;
static void after_fork(void) { forked = true; }
static void watch(void) { pthread_atfork(NULL, NULL, after_fork); }
void torch_watch_forks(void) { pthread_once(&watch_once, watch); }

void torch_loop(void *frame, int64_t begin, int64_t end, int64_t grain, sgk_parallel_body *body, void *context)
{
    (void)frame;
    if (forked) body(begin, end, context);
    else shim.torch_parallel_for(begin, end, grain, body, context);
}

int torch_threads(void *frame)
{
    (void)frame;
    uint32_t threads = 1;
    if (!forked) shim.torch_get_num_threads(&threads);
    return (int)threads;
}

/* int64 numbers from the generator that the caller gave, or from the device's own. torch draws them, so its generator advances as
 * it does for torch's own sampling, inside a graph capture too. */
const DLTensor *torch_seeds(torch_frame *f, int generator, int64_t count)
{
    torch_handle sizes = NULL;
    shim.torch_new_list_reserve_size(1, &sizes);
    shim.torch_list_push_back(sizes, (torch_slot)count);
    const bool       cuda     = f->device.device_type == kDLCUDA;
    const int32_t    type     = cuda ? shim.aoti_torch_device_type_cuda() : shim.aoti_torch_device_type_cpu();
    const torch_slot device   = (torch_slot)(uint32_t)type << 32 | (uint32_t)(cuda ? f->device.device_id : -1);
    const torch_slot int64    = (uint32_t)torch_dtype_from_dl(sgk_dtypes[SGK_I64].dl);
    torch_slot       stack[7] = { (torch_slot)INT64_MAX, torch_slot_of(sizes), f->in[generator], torch_box(int64), 0, torch_box(device), 0 };
    f->in[generator]          = 0;                               /* the dispatcher takes its arguments over */
    if (shim.torch_call_dispatcher("aten::randint", "generator", stack, TORCH_ABI) != 0) {
        refuse(f, SGK_FAILED, "%s: torch could not draw seeds from the generator, expected one of the tensors' device", f->op->name);
        return NULL;
    }
    f->drawn                       = torch_pointer(stack[0]);
    static const torch_value seeds = { .name = "seeds", .length = 5, .base = TORCH_TENSOR };
    return decode_tensor(f, &seeds, -1, f->drawn, &f->seeds) ? &f->seeds : NULL;
}

/* ---- a call ------------------------------------------------------------------------------------------------------------------- */

static bool find_stream(torch_frame *f)
{
    if (f->device.device_type != kDLCUDA) return true;
    if (shim.aoti_torch_get_current_cuda_stream && shim.aoti_torch_get_current_cuda_stream(f->device.device_id, &f->stream) == 0) return true;
    return refuse(f, SGK_FAILED, "%s: torch does not tell its current stream of CUDA device %d", f->op->name, f->device.device_id);
}

__attribute__((cold, noinline)) static void throw_error(const torch_op *op, sgk_status status, const char *message)
{
    last_status = sgk_error(status, "%s", message);
    shim.aoti_torch_check(false, op->name, __FILE__, __LINE__, message);
}

void torch_run(const torch_op *op, torch_slot *stack, uint64_t nargs, uint64_t nresults)
{
    const torch_schema *schema = &op->schema;
    torch_frame         f;                                      /* large and mostly unused: only what is read is set */
    f.op           = op;
    f.status       = SGK_OK;
    f.device       = (DLDevice){ kDLCPU, 0 };
    f.device_known = false;
    f.stream       = NULL;
    f.made_count   = 0;
    f.number_count = 0;
    f.drawn        = NULL;
    for (int i = 0; i < TORCH_SCRATCH; ++i) f.scratch[i].handle = NULL;
    memset(f.value, 0, sizeof f.value);
    f.message[0] = 0;
    if (nargs != (uint64_t)schema->nargs || nresults != (uint64_t)schema->nresults) {
        refuse(&f, SGK_FAILED, "%s: torch passes %d arguments and takes %d results, expected %d and %d", op->name, (int)nargs, (int)nresults,
               schema->nargs, schema->nresults);
        throw_error(op, f.status, f.message);                 /* what the slots own is not known */
        return;
    }
    memcpy(f.in, stack, (size_t)schema->nargs * sizeof *stack);

    bool good    = true;
    int  decoded = 0;
    while (good && decoded < schema->nargs) good = decode(&f, decoded++);
    for (int i = decoded; i < schema->nargs; ++i) f.list[i].items = NULL;
    good              = good && find_stream(&f);
    sgk_status status = good ? op->call(&f) : f.status;
    if (f.status == SGK_OK && status == SGK_OK) results_made(&f);
    const bool own = f.status != SGK_OK;
    if (own) status = f.status;

    for (int i = 0; i < schema->nargs; ++i) release_argument(&f, i);
    if (f.drawn) shim.aoti_torch_delete_tensor_object(f.drawn);
    for (int i = 0; i < TORCH_SCRATCH; ++i)
        if (f.scratch[i].handle) shim.aoti_torch_delete_tensor_object(f.scratch[i].handle);
    if (status == SGK_OK)
        for (int k = 0; k < schema->nresults; ++k) stack[k] = result_slot(&f, k);
    for (int i = 0; i < f.made_count; ++i)              /* of a failed call, and what no result took */
        if (f.made[i].handle) shim.aoti_torch_delete_tensor_object(f.made[i].handle);
    if (__builtin_expect(status != SGK_OK, 0)) throw_error(op, status, own ? f.message : strcpy(f.message, sgk_last_error()));
}
