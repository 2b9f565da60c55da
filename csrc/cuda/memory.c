#include "cuda/memory.h"
#include <stdlib.h>
#include <string.h>
#include "cuda/driver.h"
#include "sgk_config.h"

#if SGK_HAVE_CUDA

static CUdeviceptr at(const void *p) { return (CUdeviceptr)(uintptr_t)p; }

/* A function of one driver call, made with a context of the device current. */
#define ONE_CALL(op, ordinal, call) \
    do { \
        sgk_cuda_entered entered_; \
        SGK_TRY(sgk_cuda_enter(op, ordinal, &entered_)); \
        const CUresult one_ = sgk_cuda_driver.call; \
        sgk_cuda_leave(&entered_); \
        if (one_) return fail(op, #call, one_); \
    } while (0)

static sgk_status fail(const char *op, const char *call, CUresult result)
{
    char text[160];
    return sgk_error(sgk_cuda_error_status(result), "%s: %.*s: %s", op, (int)strcspn(call, "("), call, sgk_cuda_error_text(result, text));
}

sgk_status sgk_cuda_make_current(int ordinal)
{
    sgk_cuda_entered entered;           /* entered and never left */
    return sgk_cuda_enter("make_current", ordinal, &entered);
}

sgk_status sgk_cuda_alloc(int ordinal, size_t bytes, void **memory)
{
    CUdeviceptr p;
    ONE_CALL("alloc", ordinal, cuMemAlloc_v2(&p, bytes ? bytes : 1));
    *memory = (void *)(uintptr_t)p;
    return SGK_OK;
}

sgk_status sgk_cuda_free(int ordinal, void *memory)
{
    if (memory) ONE_CALL("free", ordinal, cuMemFree_v2(at(memory)));
    return SGK_OK;
}

sgk_status sgk_cuda_memory(int ordinal, size_t *free_bytes, size_t *total_bytes)
{
    ONE_CALL("memory", ordinal, cuMemGetInfo_v2(free_bytes, total_bytes));
    return SGK_OK;
}

/* Addresses are unified: the driver sees which side each one is on. */
sgk_status sgk_cuda_copy(int ordinal, void *to, const void *from, size_t bytes, void *stream)
{
    if (bytes) ONE_CALL("copy", ordinal, cuMemcpyAsync(at(to), at(from), bytes, stream));
    return SGK_OK;
}

sgk_status sgk_cuda_copy_to_host(int ordinal, void *to, const void *from, size_t bytes, void *stream)
{
    SGK_TRY(sgk_cuda_copy(ordinal, to, from, bytes, stream));
    return sgk_cuda_sync(ordinal, stream);
}

sgk_status sgk_cuda_copy_from_host(int ordinal, void *to, const void *from, size_t bytes, void *stream)
{
    return sgk_cuda_copy_to_host(ordinal, to, from, bytes, stream);
}

sgk_status sgk_cuda_fill(int ordinal, void *to, unsigned char byte, size_t bytes, void *stream)
{
    if (bytes) ONE_CALL("fill", ordinal, cuMemsetD8Async(at(to), byte, bytes, stream));
    return SGK_OK;
}

sgk_status sgk_cuda_stream(int ordinal, void **stream)
{
    CUstream s;
    ONE_CALL("stream", ordinal, cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
    *stream = s;
    return SGK_OK;
}

sgk_status sgk_cuda_stream_free(int ordinal, void *stream)
{
    if (stream) ONE_CALL("stream", ordinal, cuStreamDestroy_v2(stream));
    return SGK_OK;
}

sgk_status sgk_cuda_sync(int ordinal, void *stream)
{
    ONE_CALL("sync", ordinal, cuStreamSynchronize(stream));
    return SGK_OK;
}

sgk_status sgk_cuda_event(int ordinal, void **event)
{
    CUevent e;
    ONE_CALL("event", ordinal, cuEventCreate(&e, 0));
    *event = e;
    return SGK_OK;
}

sgk_status sgk_cuda_event_free(int ordinal, void *event)
{
    if (event) ONE_CALL("event", ordinal, cuEventDestroy_v2(event));
    return SGK_OK;
}

sgk_status sgk_cuda_event_record(int ordinal, void *event, void *stream)
{
    ONE_CALL("event", ordinal, cuEventRecord(event, stream));
    return SGK_OK;
}

sgk_status sgk_cuda_event_wait(int ordinal, void *event)
{
    ONE_CALL("event", ordinal, cuEventSynchronize(event));
    return SGK_OK;
}

sgk_status sgk_cuda_event_elapsed(int ordinal, void *from, void *to, double *milliseconds)
{
    float ms;
    ONE_CALL("event", ordinal, cuEventElapsedTime(&ms, from, to));
    *milliseconds = (double)ms;
    return SGK_OK;
}

struct sgk_cuda_graph {
    int         ordinal;
    CUgraphExec exec;
};

static sgk_status capture(CUstream stream, sgk_cuda_graph_body *body, void *context, CUgraphExec *exec)
{
    CUgraph graph = NULL;
    SGK_DRIVER("graph", cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    const sgk_status status = body(context, stream);
    CUresult         result = sgk_cuda_driver.cuStreamEndCapture(stream, &graph);       /* also when the body failed: it ends the mode */
    const char      *call   = "cuStreamEndCapture";
    if (!status && !result) result = sgk_cuda_driver.cuGraphInstantiateWithFlags(exec, graph, 0), call = "cuGraphInstantiateWithFlags";
    if (graph) sgk_cuda_driver.cuGraphDestroy(graph);
    SGK_TRY(status);
    return result ? fail("graph", call, result) : SGK_OK;
}

sgk_status sgk_cuda_graph_capture(int ordinal, void *stream, sgk_cuda_graph_body *body, void *context, sgk_cuda_graph **graph)
{
    sgk_cuda_graph *g = malloc(sizeof *g);
    SGK_REQUIRE(g, SGK_FAILED, "graph: no memory");
    *g = (sgk_cuda_graph){ .ordinal = ordinal };
    sgk_cuda_entered entered;
    sgk_status       status = sgk_cuda_enter("graph", ordinal, &entered);
    if (!status) {
        status = capture(stream, body, context, &g->exec);
        sgk_cuda_leave(&entered);
    }
    if (status) free(g);
    else *graph = g;
    return status;
}

sgk_status sgk_cuda_graph_begin(int ordinal, void *stream)
{
    ONE_CALL("graph", ordinal, cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    return SGK_OK;
}

static sgk_status end_capture(CUstream stream, CUgraphExec *exec)
{
    CUgraph     graph  = NULL;
    CUresult    result = sgk_cuda_driver.cuStreamEndCapture(stream, &graph);
    const char *call   = "cuStreamEndCapture";
    if (!result) result = sgk_cuda_driver.cuGraphInstantiateWithFlags(exec, graph, 0), call = "cuGraphInstantiateWithFlags";
    if (graph) sgk_cuda_driver.cuGraphDestroy(graph);
    return result ? fail("graph", call, result) : SGK_OK;
}

sgk_status sgk_cuda_graph_end(int ordinal, void *stream, sgk_cuda_graph **graph)
{
    sgk_cuda_graph *g = malloc(sizeof *g);
    *graph            = NULL;
    SGK_REQUIRE(g, SGK_FAILED, "graph: no memory");
    *g = (sgk_cuda_graph){ .ordinal = ordinal };
    sgk_cuda_entered entered;
    sgk_status       status = sgk_cuda_enter("graph", ordinal, &entered);
    if (!status) {
        status = end_capture(stream, &g->exec);
        sgk_cuda_leave(&entered);
    }
    if (status) free(g);
    else *graph = g;
    return status;
}

sgk_status sgk_cuda_graph_replay(const sgk_cuda_graph *graph, void *stream)
{
    ONE_CALL("graph", graph->ordinal, cuGraphLaunch(graph->exec, stream));
    return SGK_OK;
}

void sgk_cuda_graph_free(sgk_cuda_graph *graph)
{
    sgk_cuda_entered entered;
    if (!graph) return;
    if (!sgk_cuda_enter("graph", graph->ordinal, &entered)) {
        sgk_cuda_driver.cuGraphExecDestroy(graph->exec);
        sgk_cuda_leave(&entered);
    }
    free(graph);
}

#endif
