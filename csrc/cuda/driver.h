/*
 * The CUDA driver, found with dlopen: the types and entry points we use, declared by ourselves so that no toolkit is needed.
 * Sizes and layouts are the driver's ABI.
 */
#ifndef SGK_DRIVER_H
#define SGK_DRIVER_H
#include "base/status.h"
#include "cuda/tma_map.h"

typedef int                    CUresult;
typedef int                    CUdevice;
typedef uint64_t               CUdeviceptr;
typedef struct CUctx_st       *CUcontext;
typedef struct CUmod_st       *CUmodule;
typedef struct CUfunc_st      *CUfunction;
typedef struct CUstream_st    *CUstream;
typedef struct CUevent_st     *CUevent;
typedef struct CUgraph_st     *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;

enum {
    CUDA_SUCCESS                       = 0,
    CUDA_ERROR_INVALID_VALUE           = 1,
    CUDA_ERROR_NO_DEVICE               = 100,
    CUDA_ERROR_INVALID_CONTEXT         = 201,
    CUDA_ERROR_NO_BINARY_FOR_GPU       = 209,
    CUDA_ERROR_INVALID_PTX             = 218,
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222,
    CUDA_ERROR_CONTEXT_IS_DESTROYED    = 709,
    CUDA_ERROR_STREAM_CAPTURE_IMPLICIT = 906,
};

enum {
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT                 = 16,
    CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE                        = 38,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR             = 75,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR             = 76,
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR = 81,
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN    = 97,
};

enum {
    CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES                 = 1,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES     = 8,
    CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED = 14,
};

enum {
    CU_LAUNCH_ATTRIBUTE_COOPERATIVE                       = 2,
    CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION                 = 4,
    CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6,
};

enum { CU_STREAM_CAPTURE_MODE_GLOBAL  = 0,
       CU_STREAM_CAPTURE_MODE_RELAXED = 2 };
enum { CU_STREAM_CAPTURE_STATUS_NONE = 0 };
enum { CU_STREAM_NON_BLOCKING = 1 };

typedef struct {
    int  id;
    char pad[4];
    union {
        char     bytes[64];
        int      flag;                  /* cooperative, programmatic stream serialization */
        unsigned cluster[3];
    } value;
} CUlaunchAttribute;

typedef struct {
    unsigned           grid[3], block[3], shared_memory;
    CUstream           stream;
    CUlaunchAttribute *attributes;
    unsigned           attribute_count;
} CUlaunchConfig;

typedef sgk_tma_map CUtensorMap;

/* Entry points by the name in the library. */
#define SGK_DRIVER_API(X) \
    X(cuInit, (unsigned)) \
    X(cuDriverGetVersion, (int *)) \
    X(cuGetErrorName, (CUresult, const char **)) \
    X(cuGetErrorString, (CUresult, const char **)) \
    X(cuDeviceGetCount, (int *)) \
    X(cuDeviceGet, (CUdevice *, int)) \
    X(cuDeviceGetName, (char *, int, CUdevice)) \
    X(cuDeviceGetAttribute, (int *, int, CUdevice)) \
    X(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice)) \
    X(cuCtxGetId, (CUcontext, unsigned long long *)) \
    X(cuCtxGetDevice, (CUdevice *)) \
    X(cuCtxPushCurrent_v2, (CUcontext)) \
    X(cuCtxPopCurrent_v2, (CUcontext *)) \
    X(cuModuleLoadData, (CUmodule *, const void *)) \
    X(cuModuleUnload, (CUmodule)) \
    X(cuModuleGetFunction, (CUfunction *, CUmodule, const char *)) \
    X(cuFuncGetAttribute, (int *, int, CUfunction)) \
    X(cuFuncSetAttribute, (CUfunction, int, int)) \
    X(cuLaunchKernelEx, (const CUlaunchConfig *, CUfunction, void **, void **)) \
    X(cuThreadExchangeStreamCaptureMode, (int *)) \
    X(cuTensorMapEncodeTiled, (CUtensorMap *, int, uint32_t, void *, const uint64_t *, const uint64_t *, const uint32_t *, \
                               const uint32_t *, int, int, int, int)) \
    X(cuMemAlloc_v2, (CUdeviceptr *, size_t)) \
    X(cuMemFree_v2, (CUdeviceptr)) \
    X(cuMemGetInfo_v2, (size_t *, size_t *)) \
    X(cuMemcpyAsync, (CUdeviceptr, CUdeviceptr, size_t, CUstream)) \
    X(cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream)) \
    X(cuStreamCreate, (CUstream *, unsigned)) \
    X(cuStreamDestroy_v2, (CUstream)) \
    X(cuStreamSynchronize, (CUstream)) \
    X(cuStreamBeginCapture_v2, (CUstream, int)) \
    X(cuStreamIsCapturing, (CUstream, int *)) \
    X(cuStreamEndCapture, (CUstream, CUgraph *)) \
    X(cuGraphInstantiateWithFlags, (CUgraphExec *, CUgraph, unsigned long long)) \
    X(cuGraphLaunch, (CUgraphExec, CUstream)) \
    X(cuGraphDestroy, (CUgraph)) \
    X(cuGraphExecDestroy, (CUgraphExec)) \
    X(cuEventCreate, (CUevent *, unsigned)) \
    X(cuEventDestroy_v2, (CUevent)) \
    X(cuEventRecord, (CUevent, CUstream)) \
    X(cuEventSynchronize, (CUevent)) \
    X(cuEventElapsedTime, (float *, CUevent, CUevent))

/* May be missing (they came with driver 12.4): NULL then. */
#define SGK_DRIVER_API_OPTIONAL(X) \
    X(cuFuncLoad, (CUfunction)) \
    X(cuFuncGetParamInfo, (CUfunction, size_t, size_t *, size_t *))

typedef struct {
#define X(name, arguments) CUresult(*name) arguments;
    SGK_DRIVER_API(X)
    SGK_DRIVER_API_OPTIONAL(X)
#undef X
} sgk_driver;

/* Valid after sgk_cuda_get_device() succeeded. */
extern sgk_driver sgk_cuda_driver;

/* "CUDA_ERROR_INVALID_VALUE (invalid argument)" into `text`, which is returned. */
const char *sgk_cuda_error_text(CUresult result, char text[static 160]);
/* The status that a driver error is. */
sgk_status sgk_cuda_error_status(CUresult result);

/* Makes a context of the device current: the current one if it is the device's, else the primary one until sgk_cuda_leave(). */
typedef struct {
    unsigned long long id;
    bool               pushed;
} sgk_cuda_entered;
sgk_status sgk_cuda_enter(const char *op, int ordinal, sgk_cuda_entered *entered);
void sgk_cuda_leave(const sgk_cuda_entered *entered);

/* Returns from the calling function with the driver's text. */
#define SGK_DRIVER(op, call) \
    do { \
        const CUresult result_ = sgk_cuda_driver.call; \
        if (__builtin_expect(result_ != CUDA_SUCCESS, 0)) { \
            char text_[160]; \
            return sgk_error(sgk_cuda_error_status(result_), "%s: %.*s: %s", op, (int)strcspn(#call, "("), #call, sgk_cuda_error_text(result_, text_)); \
        } \
    } while (0)

#endif
