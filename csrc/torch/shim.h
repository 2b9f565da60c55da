/*
 * The part of torch's stable C shim that the binding uses, found with dlsym in the libtorch that is already loaded.
 *
 * Torch is never a link-time dependency: without it sgk_torch_bind() reports so and the rest of the library works.
 */
#ifndef SGK_TORCH_SHIM_H
#define SGK_TORCH_SHIM_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "sgl_kernel/base.h"

typedef uint64_t             torch_slot;                        /* one value on the stack of a boxed kernel; torch calls it StableIValue */
typedef struct torch_object *torch_handle;          /* a tensor, list, string, generator or library; owned by whoever holds it */
typedef void torch_kernel(torch_slot *stack, uint64_t nargs, uint64_t nresults);
typedef void torch_loop_body(int64_t begin, int64_t end, void *context);

/* What torch 2.10 has. Functions that return int32_t return 0 when all is well, but for the codes of dtypes and layouts. */
#define TORCH_SHIM_REQUIRED(X) \
    X(int32_t, aoti_torch_library_init_fragment, (const char *space, const char *file, uint32_t line, torch_handle *library)) \
    X(int32_t, aoti_torch_library_init_impl, (const char *space, const char *key, const char *file, uint32_t line, torch_handle *library)) \
    X(int32_t, aoti_torch_library_def, (torch_handle library, const char *schema)) \
    X(int32_t, torch_library_impl, (torch_handle library, const char *name, torch_kernel *, uint64_t version)) \
    X(int32_t, torch_call_dispatcher, (const char *name, const char *overload, torch_slot *stack, uint64_t version)) \
    X(void, aoti_torch_check, (bool holds, const char *function, const char *file, uint32_t line, const char *message)) \
    X(int32_t, aoti_torch_delete_tensor_object, (torch_handle)) \
    X(int32_t, aoti_torch_is_defined, (torch_handle, bool *)) \
    X(int32_t, aoti_torch_get_data_ptr, (torch_handle, void **)) \
    X(int32_t, aoti_torch_get_dim, (torch_handle, int64_t *)) \
    X(int32_t, aoti_torch_get_sizes, (torch_handle, int64_t **)) \
    X(int32_t, aoti_torch_get_strides, (torch_handle, int64_t **)) \
    X(int32_t, aoti_torch_get_dtype, (torch_handle, int32_t *)) \
    X(int32_t, aoti_torch_get_layout, (torch_handle, int32_t *)) \
    X(int32_t, aoti_torch_get_device_type, (torch_handle, int32_t *)) \
    X(int32_t, aoti_torch_get_device_index, (torch_handle, int32_t *)) \
    X(int32_t, aoti_torch_empty_strided, (int64_t ndim, const int64_t *sizes, const int64_t *strides, int32_t dtype, int32_t device_type, int32_t device_index, torch_handle *)) \
    X(int32_t, aoti_torch_create_tensor_from_blob, (void *data, int64_t ndim, const int64_t *sizes, const int64_t *strides, int64_t offset, int32_t dtype, int32_t device_type, int32_t device_index, torch_handle *)) \
    X(int32_t, aoti_torch_clone, (torch_handle, torch_handle *)) \
    X(int32_t, aoti_torch__reinterpret_tensor, (torch_handle, int64_t ndim, const int64_t *sizes, const int64_t *strides, int64_t offset, torch_handle *)) \
    X(int32_t, aoti_torch_layout_strided, (void)) \
    X(int32_t, aoti_torch_device_type_cpu, (void)) \
    X(int32_t, aoti_torch_device_type_cuda, (void)) \
    X(int32_t, torch_new_list_reserve_size, (size_t, torch_handle *)) \
    X(int32_t, torch_list_push_back, (torch_handle, torch_slot)) \
    X(int32_t, torch_list_size, (torch_handle, size_t *)) \
    X(int32_t, torch_list_get_item, (torch_handle, size_t, torch_slot *)) \
    X(int32_t, torch_delete_list, (torch_handle)) \
    X(int32_t, torch_string_c_str, (torch_handle, const char **)) \
    X(int32_t, torch_string_length, (torch_handle, size_t *)) \
    X(int32_t, torch_delete_string, (torch_handle)) \
    X(int32_t, torch_parallel_for, (int64_t begin, int64_t end, int64_t grain, torch_loop_body *, void *context)) \
    X(int32_t, torch_get_num_threads, (uint32_t *))

/* May be NULL. The box of an optional value is torch's `new StableIValue`: before 2.13 it is made and freed with C++'s operators. */
#define TORCH_SHIM_OPTIONAL(X) \
    X(int32_t, torch_new_stable_ivalue, (torch_slot **)) \
    X(int32_t, torch_delete_stable_ivalue, (torch_slot *)) \
    X(int32_t, torch_delete_generator, (torch_handle)) \
    X(void *, _Znwm, (size_t)) \
    X(void, _ZdlPv, (void *))

/* In libtorch_cuda.so, which a CPU build of torch lacks. */
#define TORCH_SHIM_CUDA(X) \
    X(int32_t, aoti_torch_get_current_cuda_stream, (int32_t device_index, void **stream))

/* Codes of number formats: the function that tells torch's, and DLPack's code, bits and lanes.. */
#define TORCH_DTYPES(X) \
    X(aoti_torch_dtype_float32, 2, 32, 1) \
    X(aoti_torch_dtype_float64, 2, 64, 1) \
    X(aoti_torch_dtype_float16, 2, 16, 1) \
    X(aoti_torch_dtype_bfloat16, 4, 16, 1) \
    X(aoti_torch_dtype_float8_e4m3fn, 10, 8, 1) \
    X(aoti_torch_dtype_float8_e5m2, 12, 8, 1) \
    X(aoti_torch_dtype_int8, 0, 8, 1) \
    X(aoti_torch_dtype_uint8, 1, 8, 1) \
    X(aoti_torch_dtype_int32, 0, 32, 1) \
    X(aoti_torch_dtype_int64, 0, 64, 1) \
    X(aoti_torch_dtype_bool, 6, 8, 1) \
    X(aoti_torch_dtype_int16, 0, 16, 1) \
    X(aoti_torch_dtype_uint16, 1, 16, 1) \
    X(aoti_torch_dtype_uint32, 1, 32, 1) \
    X(aoti_torch_dtype_uint64, 1, 64, 1) \
    X(aoti_torch_dtype_complex64, 5, 64, 1) \
    X(torch_dtype_float8_e8m0fnu, 14, 8, 1) \
    X(torch_dtype_float4_e2m1fn_x2, 17, 4, 2)

typedef struct {
#define X(result, name, arguments) result(*name) arguments;
    TORCH_SHIM_REQUIRED(X)
    TORCH_SHIM_OPTIONAL(X)
    TORCH_SHIM_CUDA(X)
#undef X
} torch_shim;

extern torch_shim shim;

/* The boxed kernels follow the rules of 2.10, whatever torch is loaded. */
#define TORCH_ABI ((uint64_t)2 << 56 | (uint64_t)10 << 48)

/* Fills `shim`. SGK_UNSUPPORTED where torch is not loaded or too old, with the reason. */
sgk_status torch_shim_load(void);

/* DLPack's type of a torch code; false for a code that torch_shim_load() did not find. */
bool torch_dtype_to_dl(int32_t code, DLDataType *type);
/* The other way round; -1 when this torch has no such format. */
int32_t torch_dtype_from_dl(DLDataType type);

/* The box around an optional value. */
torch_slot torch_box(torch_slot value);
void torch_unbox(torch_slot box);

static inline torch_handle torch_pointer(torch_slot slot) { return (torch_handle)(uintptr_t)slot; }
static inline torch_slot torch_slot_of(const void *pointer) { return (torch_slot)(uintptr_t)pointer; }

#endif
