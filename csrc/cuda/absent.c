/* A build without GPU code: there is no device, and every request says why. */
#include "cuda/cuda.h"
#include "cuda/indices.h"
#include "cuda/memory.h"
#include "cuda/tensor_map.h"
#include "sgk_config.h"

#if !SGK_HAVE_CUDA

#define ABSENCE "this build has no GPU code (SGL_KERNEL_ENABLE_CUDA=OFF)"

bool (*sgk_cuda_launch_hook)(const sgk_kernel *kernel);

static sgk_status absent(const char *op) { return sgk_error(SGK_UNSUPPORTED, "%s: " ABSENCE, op); }

int sgk_cuda_count(void) { return 0; }
const char *sgk_cuda_absence(void) { return ABSENCE; }

#pragma GCC diagnostic ignored "-Wunused-parameter"

sgk_status sgk_cuda_get_device(const char *op, int ordinal, const sgk_cuda_device **device) { return absent(op); }
sgk_status sgk_cuda_launch(const char *op, sgk_kernel *kernel, const sgk_launch *launch, int ordinal, const sgk_exec *exec,
                           const void *args, size_t args_size) { return absent(op); }
sgk_status sgk_cuda_tensor_map(const char *op, const char *name, const sgk_tensor_map *shape, CUtensorMap *map) { return absent(op); }
sgk_status sgk_cuda_read_indices(sgk_indices *host, const char *op, int ordinal, const DLTensor *const *tensors, int count,
                                 const sgk_exec *exec) { return absent(op); }

sgk_status sgk_cuda_make_current(int ordinal) { return absent("make_current"); }
sgk_status sgk_cuda_alloc(int ordinal, size_t bytes, void **memory) { return absent("alloc"); }
sgk_status sgk_cuda_free(int ordinal, void *memory) { return absent("free"); }
sgk_status sgk_cuda_memory(int ordinal, size_t *free_bytes, size_t *total_bytes) { return absent("memory"); }
sgk_status sgk_cuda_copy(int ordinal, void *to, const void *from, size_t bytes, void *stream) { return absent("copy"); }
sgk_status sgk_cuda_copy_to_host(int ordinal, void *to, const void *from, size_t bytes, void *stream) { return absent("copy"); }
sgk_status sgk_cuda_copy_from_host(int ordinal, void *to, const void *from, size_t bytes, void *stream) { return absent("copy"); }
sgk_status sgk_cuda_fill(int ordinal, void *to, unsigned char byte, size_t bytes, void *stream) { return absent("fill"); }
sgk_status sgk_cuda_stream(int ordinal, void **stream) { return absent("stream"); }
sgk_status sgk_cuda_stream_free(int ordinal, void *stream) { return absent("stream"); }
sgk_status sgk_cuda_sync(int ordinal, void *stream) { return absent("sync"); }
sgk_status sgk_cuda_event(int ordinal, void **event) { return absent("event"); }
sgk_status sgk_cuda_event_free(int ordinal, void *event) { return absent("event"); }
sgk_status sgk_cuda_event_record(int ordinal, void *event, void *stream) { return absent("event"); }
sgk_status sgk_cuda_event_wait(int ordinal, void *event) { return absent("event"); }
sgk_status sgk_cuda_event_elapsed(int ordinal, void *from, void *to, double *milliseconds) { return absent("event"); }
sgk_status sgk_cuda_graph_capture(int ordinal, void *stream, sgk_cuda_graph_body *body, void *context, sgk_cuda_graph **graph) { return absent("graph"); }
sgk_status sgk_cuda_graph_begin(int ordinal, void *stream) { return absent("graph"); }
sgk_status sgk_cuda_graph_end(int ordinal, void *stream, sgk_cuda_graph **graph) { return absent("graph"); }
sgk_status sgk_cuda_graph_replay(const sgk_cuda_graph *graph, void *stream) { return absent("graph"); }
sgk_status sgk_cuda_launch_bare(const sgk_kernel *kernel, const sgk_launch *launch, const sgk_exec *exec, const void *args, int times) { return absent("launch"); }
void sgk_cuda_graph_free(sgk_cuda_graph *graph) {}

#endif
