#include "cuda/driver.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cuda/cuda.h"
#include "cuda/pack.h"
#include "sgk_config.h"

#if SGK_HAVE_CUDA

sgk_driver sgk_cuda_driver;

/* Written once by start(), read-only afterwards. */
static pthread_once_t   once = PTHREAD_ONCE_INIT;
static char             absence[512];
static sgk_cuda_device *devices;
static int              device_count;

typedef struct {
    pthread_mutex_t lock;
    CUcontext _Atomic context;         /* NULL until retained */
    CUdevice device;          /* the driver's handle */
} primary_context;
static primary_context *primaries;

const char *sgk_cuda_error_text(CUresult result, char text[static 160])
{
    const char *name = NULL, *sentence = NULL;
    if (sgk_cuda_driver.cuGetErrorName(result, &name)) name = NULL;
    if (sgk_cuda_driver.cuGetErrorString(result, &sentence)) sentence = NULL;
    snprintf(text, 160, "%s %d (%s)", name ? name : "driver error", result, sentence ? sentence : "unknown to this driver");
    return text;
}

sgk_status sgk_cuda_error_status(CUresult result)
{
    switch (result) {
    case CUDA_ERROR_NO_DEVICE:               return SGK_NO_DEVICE;
    case CUDA_ERROR_NO_BINARY_FOR_GPU:
    case CUDA_ERROR_INVALID_PTX:
    case CUDA_ERROR_UNSUPPORTED_PTX_VERSION: return SGK_UNSUPPORTED;
    default:                                 return SGK_FAILED;
    }
}

static bool load_driver(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) {
        snprintf(absence, sizeof absence, "no CUDA driver: %s", dlerror());
        return false;
    }
    static const struct {
        const char *name;
        void       *slot;
        bool        optional;
    } entries[] = {
#define X(name, arguments) { #name, &sgk_cuda_driver.name, false },
        SGK_DRIVER_API(X)
#undef X
#define X(name, arguments) { #name, &sgk_cuda_driver.name, true },
            SGK_DRIVER_API_OPTIONAL(X)
#undef X
    };
    for (size_t i = 0; i < sizeof entries / sizeof *entries; ++i) {
        void *entry = dlsym(library, entries[i].name);
        if (!entry && !entries[i].optional) {
            snprintf(absence, sizeof absence, "the CUDA driver has no %s: it is older than CUDA 12.0", entries[i].name);
            return false;
        }
        memcpy(entries[i].slot, &entry, sizeof entry);
    }
    return true;
}

static int attribute(CUdevice device, int which)
{
    int value = 0;
    return sgk_cuda_driver.cuDeviceGetAttribute(&value, which, device) ? 0 : value;
}

static bool describe_device(int ordinal, sgk_cuda_device *d, CUdevice *handle)
{
    CUdevice device;
    if (sgk_cuda_driver.cuDeviceGet(&device, ordinal) || sgk_cuda_driver.cuDeviceGetName(d->name, sizeof d->name, device)) return false;
    *handle                             = device;
    d->ordinal                          = ordinal;
    d->major                            = attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
    d->minor                            = attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
    d->multiprocessors                  = attribute(device, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
    d->shared_memory_per_block          = attribute(device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
    d->shared_memory_per_multiprocessor = attribute(device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
    d->l2_bytes                         = attribute(device, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
    d->arch                             = sgk_pack_arch(d->major, d->minor);
    int version                         = 0;
    d->pdl                              = d->major >= 9 && !sgk_cuda_driver.cuDriverGetVersion(&version) && version >= 12030;
    return true;
}

static void start(void)
{
    if (!load_driver()) return;
    CUresult result = sgk_cuda_driver.cuInit(0);
    int      count  = 0;
    if (!result) result = sgk_cuda_driver.cuDeviceGetCount(&count);
    if (result || count == 0) {
        char text[160];
        snprintf(absence, sizeof absence, "no CUDA device: %s", result ? sgk_cuda_error_text(result, text) : "the driver lists none");
        return;
    }
    devices   = calloc((size_t)count, sizeof *devices);
    primaries = calloc((size_t)count, sizeof *primaries);
    if (!devices || !primaries) {
        snprintf(absence, sizeof absence, "no CUDA device: no memory for their description");
        return;
    }
    for (int i = 0; i < count; ++i) {
        pthread_mutex_init(&primaries[i].lock, NULL);
        if (!describe_device(i, &devices[i], &primaries[i].device)) {
            snprintf(absence, sizeof absence, "no CUDA device: the driver does not describe device %d", i);
            return;
        }
    }
    device_count = count;
}

int sgk_cuda_count(void)
{
    pthread_once(&once, start);
    return device_count;
}

const char *sgk_cuda_absence(void)
{
    pthread_once(&once, start);
    return absence;
}

sgk_status sgk_cuda_get_device(const char *op, int ordinal, const sgk_cuda_device **device)
{
    const int count = sgk_cuda_count();
    SGK_REQUIRE(count > 0, SGK_NO_DEVICE, "%s: %s", op, absence);
    SGK_REQUIRE(ordinal >= 0 && ordinal < count, SGK_NO_DEVICE, "%s: device is cuda:%d, expected one of the %d that the driver lists",
                op, ordinal, count);
    *device = &devices[ordinal];
    return SGK_OK;
}

/* Retained once and kept: releasing it at exit would race with the destructors of others. */
static sgk_status primary(const char *op, int ordinal, CUcontext *context)
{
    primary_context *p = &primaries[ordinal];
    *context           = p->context;
    if (*context) return SGK_OK;
    pthread_mutex_lock(&p->lock);
    CUresult result = CUDA_SUCCESS;
    if (!p->context) {
        result = sgk_cuda_driver.cuDevicePrimaryCtxRetain(context, p->device);
        if (!result) p->context = *context;
    }
    *context = p->context;
    pthread_mutex_unlock(&p->lock);
    char text[160];
    SGK_REQUIRE(!result, sgk_cuda_error_status(result), "%s: no context on cuda:%d: cuDevicePrimaryCtxRetain: %s", op, ordinal,
                sgk_cuda_error_text(result, text));
    return SGK_OK;
}

sgk_status sgk_cuda_enter(const char *op, int ordinal, sgk_cuda_entered *entered)
{
    const sgk_cuda_device *device;
    SGK_TRY(sgk_cuda_get_device(op, ordinal, &device));
    *entered = (sgk_cuda_entered){ 0 };
    CUdevice current;
    if (!sgk_cuda_driver.cuCtxGetId(NULL, &entered->id) && !sgk_cuda_driver.cuCtxGetDevice(&current) && current == primaries[ordinal].device) return SGK_OK;

    CUcontext context;
    SGK_TRY(primary(op, ordinal, &context));
    SGK_DRIVER(op, cuCtxPushCurrent_v2(context));
    entered->pushed       = true;
    const CUresult result = sgk_cuda_driver.cuCtxGetId(NULL, &entered->id);
    if (result) {
        char text[160];
        sgk_cuda_leave(entered);
        return sgk_error(sgk_cuda_error_status(result), "%s: cuCtxGetId: %s", op, sgk_cuda_error_text(result, text));
    }
    return SGK_OK;
}

void sgk_cuda_leave(const sgk_cuda_entered *entered)
{
    CUcontext popped;
    if (entered->pushed) sgk_cuda_driver.cuCtxPopCurrent_v2(&popped);
}

#endif
