/*
 * C11, and C++17 as well. One operator without Python and without torch: on the CPU, and on the first GPU where a driver is found.
 *
 *   cc -std=c11 -Iinclude examples/c/rmsnorm.c -Lbuild -lsgl_kernel -Wl,-rpath,$PWD/build -ldl -lm -o build/rmsnorm && build/rmsnorm
 */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "sgl_kernel.h"

enum { ROWS = 4,
       DIM  = 256 };

static const DLDevice cpu = { kDLCPU, 0 }, gpu = { kDLCUDA, 0 };

static float input[ROWS][DIM], weight[DIM], on_cpu[ROWS][DIM], on_gpu[ROWS][DIM];

static DLTensor tensor(void *data, DLDevice device, int ndim, int64_t *shape)
{
    DLTensor t = { data, device, ndim, { kDLFloat, 32, 1 }, shape, NULL, 0 };       /* no strides: dense */
    return t;
}

/* output = rmsnorm(input) with all three tensors on one device. */
static sgk_status run(DLDevice device, void *output, void *x, void *w)
{
    int64_t        matrix[] = { ROWS, DIM }, vector[] = { DIM };
    const DLTensor out = tensor(output, device, 2, matrix), in = tensor(x, device, 2, matrix), scale = tensor(w, device, 1, vector);
    return sgk_rmsnorm(&out, &in, &scale, 1e-6, NULL);
}

/* The few driver functions this example needs, found at run time. */
static struct {
    int (*init)(unsigned);
    int (*device_get)(int *, int);
    int (*context_retain)(void **, int);
    int (*context_set)(void *);
    int (*alloc)(void **, size_t);
    int (*to_device)(void *, const void *, size_t);
    int (*to_host)(void *, const void *, size_t);
    int (*release)(void *);
} cu;

static int find_driver(void)
{
    static const struct {
        const char *name;
        void       *place;
    } functions[] = {
        { "cuInit", &cu.init },
        { "cuDeviceGet", &cu.device_get },
        { "cuDevicePrimaryCtxRetain", &cu.context_retain },
        { "cuCtxSetCurrent", &cu.context_set },
        { "cuMemAlloc_v2", &cu.alloc },
        { "cuMemcpyHtoD_v2", &cu.to_device },
        { "cuMemcpyDtoH_v2", &cu.to_host },
        { "cuMemFree_v2", &cu.release },
    };
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (!driver) return 0;
    for (size_t i = 0; i < sizeof functions / sizeof *functions; ++i) {
        void *symbol = dlsym(driver, functions[i].name);
        if (!symbol) return 0;
        memcpy(functions[i].place, &symbol, sizeof symbol);
    }
    int   device;
    void *context;
    return cu.init(0) == 0 && cu.device_get(&device, 0) == 0 && cu.context_retain(&context, device) == 0 && cu.context_set(context) == 0;
}

static sgk_status run_on_gpu(void)
{
    void *x, *w, *out;
    if (cu.alloc(&x, sizeof input) || cu.alloc(&w, sizeof weight) || cu.alloc(&out, sizeof on_gpu)) {
        fprintf(stderr, "no memory on the GPU\n");
        exit(1);
    }
    cu.to_device(x, input, sizeof input);
    cu.to_device(w, weight, sizeof weight);
    const sgk_status status = run(gpu, out, x, w);
    cu.to_host(on_gpu, out, sizeof on_gpu);         /* waits for the kernel: both are on the default stream */
    cu.release(x), cu.release(w), cu.release(out);
    return status;
}

int main(void)
{
    for (int d = 0; d < DIM; ++d) {
        weight[d] = 1 + 0.01f * (float)(d % 7);
        for (int i = 0; i < ROWS; ++i) input[i][d] = sinf((float)(i * DIM + d));
    }

    printf("SGL Kernel %s\n", sgk_version());
    if (run(cpu, on_cpu, input, weight) != SGK_OK) {
        fprintf(stderr, "%s\n", sgk_last_error());
        return 1;
    }
    printf("CPU: output[0][0..3] = %.6f %.6f %.6f %.6f\n", on_cpu[0][0], on_cpu[0][1], on_cpu[0][2], on_cpu[0][3]);

    /* What a mistake looks like: a weight of the wrong length. */
    int64_t        matrix[] = { ROWS, DIM }, wrong[] = { DIM - 1 };
    const DLTensor in = tensor(input, cpu, 2, matrix), bad = tensor(weight, cpu, 1, wrong);
    const DLTensor out = tensor(on_cpu, cpu, 2, matrix);
    if (sgk_rmsnorm(&out, &in, &bad, 1e-6, NULL) != SGK_OK) printf("refused: %s\n", sgk_last_error());

    if (!find_driver()) {
        printf("GPU: no driver found\n");
        return 0;
    }
    if (run_on_gpu() != SGK_OK) {
        fprintf(stderr, "%s\n", sgk_last_error());
        return 1;
    }
    double worst = 0;
    for (int i = 0; i < ROWS; ++i)
        for (int d = 0; d < DIM; ++d) worst = fmax(worst, fabs((double)on_gpu[i][d] - on_cpu[i][d]));
    printf("GPU: output[0][0..3] = %.6f %.6f %.6f %.6f, at most %.1e from the CPU\n", on_gpu[0][0], on_gpu[0][1], on_gpu[0][2], on_gpu[0][3], worst);
    return !(worst < 1e-5);
}
