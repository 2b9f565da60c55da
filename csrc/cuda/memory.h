/* Memory, streams, clocks and graphs for programs of this project that have no torch: the check, the benchmark. Of all this operators use
 * sgk_cuda_copy alone, for what is prepared once. */
#ifndef SGK_MEMORY_H
#define SGK_MEMORY_H
#include "base/status.h"
#include "cuda/cuda.h"

/* Makes the device's primary context the thread's current one, as a program that uses one GPU does. */
sgk_status sgk_cuda_make_current(int ordinal);

sgk_status sgk_cuda_alloc(int ordinal, size_t bytes, void **memory);        /* aligned to 256 bytes at least */
sgk_status sgk_cuda_free(int ordinal, void *memory);                        /* waits for the device */
sgk_status sgk_cuda_memory(int ordinal, size_t *free_bytes, size_t *total_bytes);

/* In the order of `stream` (NULL: the default one). A copy that touches host memory has finished when it returns. */
sgk_status sgk_cuda_copy(int ordinal, void *to, const void *from, size_t bytes, void *stream);
sgk_status sgk_cuda_copy_to_host(int ordinal, void *to, const void *from, size_t bytes, void *stream);
sgk_status sgk_cuda_copy_from_host(int ordinal, void *to, const void *from, size_t bytes, void *stream);
sgk_status sgk_cuda_fill(int ordinal, void *to, unsigned char byte, size_t bytes, void *stream);

sgk_status sgk_cuda_stream(int ordinal, void **stream);                     /* does not wait for the default stream */
sgk_status sgk_cuda_stream_free(int ordinal, void *stream);
sgk_status sgk_cuda_sync(int ordinal, void *stream);                        /* a kernel's fault is reported here */

sgk_status sgk_cuda_event(int ordinal, void **event);
sgk_status sgk_cuda_event_free(int ordinal, void *event);
sgk_status sgk_cuda_event_record(int ordinal, void *event, void *stream);
sgk_status sgk_cuda_event_wait(int ordinal, void *event);
sgk_status sgk_cuda_event_elapsed(int ordinal, void *from, void *to, double *milliseconds);

/* Captures what `body` enqueues on `stream`, which must not be the default one, in the mode that torch uses ("global"). */
typedef struct sgk_cuda_graph sgk_cuda_graph;
typedef sgk_status sgk_cuda_graph_body(void *context, void *stream);
sgk_status sgk_cuda_graph_capture(int ordinal, void *stream, sgk_cuda_graph_body *body, void *context, sgk_cuda_graph **graph);
/* The same in two steps, for what is no function. The end comes also after a failure in between: it leaves the capture mode. */
sgk_status sgk_cuda_graph_begin(int ordinal, void *stream);
sgk_status sgk_cuda_graph_end(int ordinal, void *stream, sgk_cuda_graph **graph);
sgk_status sgk_cuda_graph_replay(const sgk_cuda_graph *graph, void *stream);
void sgk_cuda_graph_free(sgk_cuda_graph *graph);

/* The same cuLaunchKernelEx as sgk_cuda_launch's, attributes included, and nothing else, so many times; of a row that the current context has
 * loaded: what calls would cost without this library. */
sgk_status sgk_cuda_launch_bare(const sgk_kernel *kernel, const sgk_launch *launch, const sgk_exec *exec, const void *args, int times);

#endif
