/*
 * Launching. A loaded function belongs to one context, so a row keeps a list of instances: context (by the driver's never reused id, not
 * by its address, so that a destroyed context matches nothing), device, function. The list only grows, at its head, under one lock;
 * readers take no lock. In steady state a launch costs one cuCtxGetId, a walk along the list and cuLaunchKernelEx.
 */
#include "cuda/cuda.h"
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "cuda/driver.h"
#include "cuda/image.h"
#include "sgk_config.h"

#if SGK_HAVE_CUDA

bool (*sgk_cuda_launch_hook)(const sgk_kernel *kernel);

typedef struct sgk_kernel_instances {
    struct sgk_kernel_instances *next;
    unsigned long long           context;
    int                          ordinal;
    CUfunction                   function;
    unsigned                     static_shared_memory;
    _Atomic unsigned             dynamic_limit;         /* bytes of dynamic shared memory the function may be launched with */
    _Atomic bool                 any_cluster;           /* clusters above the portable 8 blocks are allowed */
} instance;

static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;

static instance *find(const sgk_kernel *kernel, unsigned long long context, int ordinal)
{
    instance *i = __atomic_load_n(&kernel->instances, __ATOMIC_ACQUIRE);
    while (i && (i->context != context || i->ordinal != ordinal)) i = i->next;
    return i;
}

static sgk_status refused(const char *op, const sgk_kernel *kernel, int ordinal, const char *call, CUresult result)
{
    char text[160];
    return sgk_error(sgk_cuda_error_status(result), "%s: %s of kernel %s (%s) on cuda:%d: %s", op, call, kernel->entry, kernel->defines, ordinal,
                     sgk_cuda_error_text(result, text));
}
#define SGK_KERNEL_CALL(call) \
    do { \
        const CUresult result_ = sgk_cuda_driver.call; \
        if (result_) return refused(op, kernel, ordinal, #call, result_); \
    } while (0)

/* The kernel's one parameter has the size of the host's struct, where the driver can tell. */
static sgk_status check_parameters(const char *op, const sgk_kernel *kernel, CUfunction function, size_t args_size)
{
    size_t offset, size = 0;
    if (!sgk_cuda_driver.cuFuncGetParamInfo) return SGK_OK;
    const CUresult first = sgk_cuda_driver.cuFuncGetParamInfo(function, 0, &offset, &size), second = sgk_cuda_driver.cuFuncGetParamInfo(function, 1, &offset, &offset);
    SGK_REQUIRE(!first && second && size == args_size, SGK_FAILED, "%s: kernel %s (%s) takes %zu bytes%s, the host gives %zu", op, kernel->entry,
                kernel->defines, size, second ? "" : " and more", args_size);
    return SGK_OK;
}

static sgk_status fill(const char *op, const sgk_kernel *kernel, int ordinal, const void *image, size_t args_size, instance *i)
{
    CUmodule   module;
    CUfunction function;
    int        fixed, limit;
    CUresult   result = sgk_cuda_driver.cuModuleLoadData(&module, image);
    if (result) return refused(op, kernel, ordinal, "cuModuleLoadData", result);
    result           = sgk_cuda_driver.cuModuleGetFunction(&function, module, kernel->entry);
    const char *call = "cuModuleGetFunction";
    /* Under lazy loading the code would come with the first launch, which may be inside a capture. */
    if (!result && sgk_cuda_driver.cuFuncLoad) result = sgk_cuda_driver.cuFuncLoad(function), call = "cuFuncLoad";
    if (!result) result = sgk_cuda_driver.cuFuncGetAttribute(&fixed, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function), call = "cuFuncGetAttribute";
    if (!result) result = sgk_cuda_driver.cuFuncGetAttribute(&limit, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, function);
    sgk_status status = result ? refused(op, kernel, ordinal, call, result) : check_parameters(op, kernel, function, args_size);
    if (status) {
        sgk_cuda_driver.cuModuleUnload(module);
        return status;
    }
    i->function             = function;
    i->static_shared_memory = (unsigned)fixed;
    i->dynamic_limit        = (unsigned)limit;
    return SGK_OK;
}

/* Under the lock, with the device's context current. */
static sgk_status load_locked(const char *op, sgk_kernel *kernel, const sgk_cuda_device *device, unsigned long long context, size_t args_size,
                              const sgk_exec *exec, instance **loaded)
{
    *loaded = find(kernel, context, device->ordinal);
    if (*loaded) return SGK_OK;
    void     *image = NULL;
    instance *i     = calloc(1, sizeof *i);
    SGK_REQUIRE(i, SGK_FAILED, "%s: no memory", op);
    sgk_status status = sgk_cuda_image(op, kernel, device, exec, &image);
    if (!status) {
        /* A capture under way forbids what loading does to the calling thread, unless its mode is relaxed. */
        int            mode      = CU_STREAM_CAPTURE_MODE_RELAXED;
        const CUresult exchanged = sgk_cuda_driver.cuThreadExchangeStreamCaptureMode(&mode);
        status                   = fill(op, kernel, device->ordinal, image, args_size, i);
        if (!exchanged) sgk_cuda_driver.cuThreadExchangeStreamCaptureMode(&mode);
    }
    free(image);
    if (status) {
        free(i);
        return status;
    }
    i->context = context;
    i->ordinal = device->ordinal;
    i->next    = kernel->instances;
    __atomic_store_n(&kernel->instances, i, __ATOMIC_RELEASE);
    *loaded = i;
    return SGK_OK;
}

/* More dynamic shared memory than the driver allows by default: raised once, to all that the device has. */
static sgk_status allow_shared_memory(const char *op, const sgk_kernel *kernel, const sgk_cuda_device *device, instance *i, unsigned wanted)
{
    const int      ordinal = device->ordinal;
    const unsigned all = (unsigned)device->shared_memory_per_block, limit = all > i->static_shared_memory ? all - i->static_shared_memory : 0;
    SGK_REQUIRE(wanted <= limit, SGK_UNSUPPORTED, "%s: kernel %s (%s) wants %u bytes of shared memory a block, cuda:%d (%s) has %u", op,
                kernel->entry, kernel->defines, wanted + i->static_shared_memory, ordinal, device->name, all);
    SGK_KERNEL_CALL(cuFuncSetAttribute(i->function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)limit));
    i->dynamic_limit = limit;
    return SGK_OK;
}

static sgk_status allow_any_cluster(const char *op, const sgk_kernel *kernel, int ordinal, instance *i)
{
    SGK_KERNEL_CALL(cuFuncSetAttribute(i->function, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1));
    i->any_cluster = true;
    return SGK_OK;
}

static sgk_status run(const char *op, const sgk_kernel *kernel, const sgk_cuda_device *device, instance *i, const CUlaunchConfig *config,
                      unsigned cluster, const void *args)
{
    const int ordinal = device->ordinal;
    if (__builtin_expect(config->shared_memory > i->dynamic_limit, 0)) SGK_TRY(allow_shared_memory(op, kernel, device, i, config->shared_memory));
    if (__builtin_expect(cluster > 8 && !i->any_cluster, 0)) SGK_TRY(allow_any_cluster(op, kernel, ordinal, i));
    void          *parameters[] = { (void *)(uintptr_t)args };
    const CUresult result       = sgk_cuda_driver.cuLaunchKernelEx(config, i->function, parameters, NULL);
    if (__builtin_expect(result != CUDA_SUCCESS, 0)) return refused(op, kernel, ordinal, "cuLaunchKernelEx", result);
    return SGK_OK;
}

/* The row is not loaded in the current context, or the current context is another device's. */
static __attribute__((noinline)) sgk_status load_and_run(const char *op, sgk_kernel *kernel, const sgk_cuda_device *device, const CUlaunchConfig *config,
                                                         unsigned cluster, const void *args, size_t args_size, const sgk_exec *exec)
{
    sgk_cuda_entered entered;
    SGK_TRY(sgk_cuda_enter(op, device->ordinal, &entered));
    instance  *i      = find(kernel, entered.id, device->ordinal);
    sgk_status status = SGK_OK;
    if (!i) {
        pthread_mutex_lock(&loading);
        status = load_locked(op, kernel, device, entered.id, args_size, exec, &i);
        pthread_mutex_unlock(&loading);
    }
    if (!status) status = run(op, kernel, device, i, config, cluster, args);
    sgk_cuda_leave(&entered);
    return status;
}

static sgk_status check_shape(const char *op, const sgk_kernel *kernel, const sgk_launch *l)
{
    static const int64_t most[3] = { INT32_MAX, 65535, 65535 };
    for (int d = 0; d < 3; ++d)
        SGK_REQUIRE(l->grid[d] >= 0 && l->grid[d] <= most[d], SGK_UNSUPPORTED, "%s: kernel %s (%s) wants %lld blocks in %c, expected at most %lld", op,
                    kernel->entry, kernel->defines, (long long)l->grid[d], "xyz"[d], (long long)most[d]);
    return SGK_OK;
}

/* What the driver is told. */
typedef struct {
    CUlaunchConfig    config;
    CUlaunchAttribute attributes[3];
} configuration;

static void configure(configuration *c, const sgk_launch *l, const sgk_cuda_device *device, const sgk_exec *exec)
{
    CUlaunchAttribute *next = c->attributes;
    if (l->cluster) *next++ = (CUlaunchAttribute){ .id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, .value.cluster = { l->cluster, 1, 1 } };
    if (l->cooperative) *next++ = (CUlaunchAttribute){ .id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE, .value.flag = 1 };
    if (device->pdl && !l->cooperative && (l->overlap || (!l->alone && sgk_exec_pdl(exec))))
        *next++ = (CUlaunchAttribute){ .id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, .value.flag = 1 };
    c->config = (CUlaunchConfig){ .shared_memory   = l->shared_memory,
                                  .stream          = SGK_EXEC(exec, stream, NULL),
                                  .attributes      = c->attributes,
                                  .attribute_count = (unsigned)(next - c->attributes) };
    for (int d = 0; d < 3; ++d) {
        c->config.grid[d]  = l->grid[d] ? (unsigned)l->grid[d] : 1;
        c->config.block[d] = l->block[d] ? l->block[d] : 1;
    }
}

sgk_status sgk_cuda_launch(const char *op, sgk_kernel *kernel, const sgk_launch *l, int ordinal, const sgk_exec *exec,
                           const void *args, size_t args_size)
{
    const sgk_cuda_device *device;
    SGK_TRY(sgk_cuda_get_device(op, ordinal, &device));
    SGK_TRY(check_shape(op, kernel, l));
    if (l->grid[0] == 0) return SGK_OK;
    SGK_REQUIRE(!l->cluster || device->major >= 9, SGK_UNSUPPORTED, "%s: kernel %s (%s) runs in clusters, cuda:%d (%s) has none", op, kernel->entry,
                kernel->defines, ordinal, device->name);
    if (__builtin_expect(sgk_cuda_launch_hook != NULL, 0) && !sgk_cuda_launch_hook(kernel)) return SGK_OK;
    configuration c;
    configure(&c, l, device, exec);

    unsigned long long context;
    if (__builtin_expect(sgk_cuda_driver.cuCtxGetId(NULL, &context) == CUDA_SUCCESS, 1)) {
        instance *i = find(kernel, context, ordinal);
        if (__builtin_expect(i != NULL, 1)) return run(op, kernel, device, i, &c.config, l->cluster, args);
    }
    return load_and_run(op, kernel, device, &c.config, l->cluster, args, args_size, exec);
}

sgk_status sgk_cuda_launch_bare(const sgk_kernel *kernel, const sgk_launch *l, const sgk_exec *exec, const void *args, int times)
{
    const instance *i = kernel->instances;
    SGK_REQUIRE(i, SGK_FAILED, "launch: kernel %s (%s) has not been loaded", kernel->entry, kernel->defines);
    const sgk_cuda_device *device;
    SGK_TRY(sgk_cuda_get_device("launch", i->ordinal, &device));
    configuration c;
    configure(&c, l, device, exec);
    void    *parameters[] = { (void *)(uintptr_t)args };
    CUresult result       = CUDA_SUCCESS;
    while (times-- > 0 && !result) result = sgk_cuda_driver.cuLaunchKernelEx(&c.config, i->function, parameters, NULL);
    return result ? refused("launch", kernel, i->ordinal, "cuLaunchKernelEx", result) : SGK_OK;
}

#endif
