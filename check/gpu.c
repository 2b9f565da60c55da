/* The tensors of a case on GPU 0: the same blocks as here, guards and gaps included. */
#include <stdlib.h>
#include "cuda/cuda.h"
#include "cuda/memory.h"
#include "harness.h"

static void                  *stream;
static char                   error[1024];
static const sgk_cuda_device *device;

const char *gpu_error(void) { return error; }
const char *gpu_name(void) { return device ? device->name : ""; }
void *gpu_stream(void) { return stream; }

static bool done(sgk_status status)
{
    if (status == SGK_OK) return true;
    snprintf(error, sizeof error, "%s", sgk_last_error());
    return false;
}

/* The machinery of the harness itself: without it there is no verdict. */
static void must(sgk_status status)
{
    if (done(status)) return;
    printf("FAILURE: %s at %s: %s; the run ends here\n", label, level->name, error);
    exit(1);
}

bool gpu_present(void)
{
    if (stream) return true;
    if (sgk_cuda_count() == 0) {
        snprintf(error, sizeof error, "%s", sgk_cuda_absence());
        return false;
    }
    return done(sgk_cuda_get_device("sgk-check", 0, &device)) && done(sgk_cuda_make_current(0)) && done(sgk_cuda_stream(0, &stream));
}

/* ---- memory ---- */
void gpu_put(check_tensor *t, const char *block)
{
    const size_t size = tensor_block_size(t);
    if (!t->device) must(sgk_cuda_alloc(0, size + 16, &t->device));
    must(sgk_cuda_copy_from_host(0, t->device, block, size, stream));
}

void gpu_get(check_tensor *t) { must(sgk_cuda_copy_to_host(0, t->now, t->device, tensor_block_size(t), stream)); }

void gpu_drop(check_tensor *t)
{
    sgk_cuda_free(0, t->device);
    t->device = NULL;
}

static void *scratch[64];
static int   scratch_count;

bool gpu_wait(void)
{
    const bool ok = done(sgk_cuda_sync(0, stream));
    while (scratch_count) sgk_cuda_free(0, scratch[--scratch_count]);
    return ok;
}

void *gpu_scratch(size_t bytes)
{
    void *memory = NULL;
    if (scratch_count == 64 || !done(sgk_cuda_alloc(0, bytes, &memory))) return NULL;
    must(sgk_cuda_fill(0, memory, FILL_FIRST, bytes, stream));
    return scratch[scratch_count++] = memory;
}

static char  *workspace;
static size_t workspace_room;

void *gpu_workspace(size_t bytes, int fill)
{
    const size_t size = GUARD + bytes + GUARD;
    if (size > workspace_room) {
        if (workspace) must(sgk_cuda_free(0, workspace));
        must(sgk_cuda_alloc(0, size, (void **)&workspace));
        workspace_room = size;
    }
    must(sgk_cuda_fill(0, workspace, (unsigned char)fill, size, stream));
    return workspace + GUARD;
}

bool gpu_workspace_intact(size_t bytes, int fill)
{
    unsigned char guard[2 * GUARD];
    must(sgk_cuda_copy_to_host(0, guard, workspace, GUARD, stream));
    must(sgk_cuda_copy_to_host(0, guard + GUARD, workspace + GUARD + bytes, GUARD, stream));
    for (size_t i = 0; i < sizeof guard; ++i)
        if (guard[i] != fill) return false;
    return true;
}

/* ---- which rows of the build tables were launched ---- */
enum { ROWS = 1 << 14 };
static const sgk_kernel *launched[ROWS], *foreseen[ROWS];       /* hash tables */

static const sgk_kernel **place_in(const sgk_kernel **table, const sgk_kernel *kernel)
{
    size_t i = ((uintptr_t)kernel >> 3) * 0x9e3779b97f4a7c15ull >> 50;
    while (table[i] && table[i] != kernel) i = (i + 1) % ROWS;
    return &table[i];
}

static bool note_launch(const sgk_kernel *kernel)
{
    *place_in(launched, kernel) = kernel;
    return true;
}

void gpu_watch_launches(void) { sgk_cuda_launch_hook = note_launch; }

static bool foreseen_new;

static bool note_instead(const sgk_kernel *kernel)
{
    const sgk_kernel **place = place_in(foreseen, kernel);
    foreseen_new             = foreseen_new || !*place;
    *place                   = kernel;
    return false;
}

void gpu_foresee(void)
{
    foreseen_new         = false;
    sgk_cuda_launch_hook = note_instead;
}

bool gpu_foreseen_new(void)
{
    gpu_watch_launches();
    return foreseen_new;
}

void gpu_each_launch(void (*tell)(const void *kernel))
{
    for (size_t i = 0; i < ROWS; ++i)
        if (launched[i]) tell(launched[i]);
}

void gpu_add_launch(const void *kernel) { note_launch(kernel); }

void gpu_report_rows(void)
{
    int all = 0, reached = 0;
    for (const sgk_kernel_table *const *family = sgk_kernel_tables; *family; ++family)
        for (const sgk_kernel_table *table = *family; table->rows; ++table)
            for (size_t i = 0; i < table->count; ++i) {
                const sgk_kernel *kernel = (const sgk_kernel *)((const char *)table->rows + i * table->row_size);
                if (!sgk_kernel_fits(kernel, device)) continue;
                ++all;
                if (*place_in(launched, kernel)) {
                    ++reached;
                    continue;
                }
                snprintf(label, sizeof label, "%s_row", kernel->entry);
                case_failed = false;
                fail("no case launches %s %s %s", kernel->file, kernel->entry, kernel->defines);
            }
    printf("%d of the %d rows of the build tables for this GPU were launched\n", reached, all);
}

/* ---- clocks ---- */
enum { EVENTS = 64 };
static void *events[2][EVENTS];

void gpu_stamp(int which, int end)
{
    if (!events[end][which]) must(sgk_cuda_event(0, &events[end][which]));
    must(sgk_cuda_event_record(0, events[end][which], stream));
}

double gpu_elapsed(int which)
{
    double ms = 0;
    must(sgk_cuda_event_wait(0, events[1][which]));
    must(sgk_cuda_event_elapsed(0, events[0][which], events[1][which], &ms));
    return ms * 1e-3;
}

int64_t gpu_l2_bytes(void) { return device->l2_bytes; }

size_t gpu_free_bytes(void)
{
    size_t free_bytes = 0, total;
    must(sgk_cuda_memory(0, &free_bytes, &total));
    return free_bytes;
}

void *gpu_grab(size_t bytes)
{
    void *memory;
    must(sgk_cuda_alloc(0, bytes, &memory));
    must(sgk_cuda_fill(0, memory, 0x3c, bytes, stream));
    return memory;
}

void gpu_give_back(void *memory) { must(sgk_cuda_free(0, memory)); }
void gpu_copy(void *to, const void *from, size_t bytes) { must(sgk_cuda_copy(0, to, from, bytes, stream)); }

void gpu_write(void *to, const void *from, size_t bytes) { must(sgk_cuda_copy_from_host(0, to, from, bytes, stream)); }

/* ---- graphs ---- */
static sgk_cuda_graph *graph;
static bool            capturing;

bool gpu_capture_begin(void) { return capturing = done(sgk_cuda_graph_begin(0, stream)); }

bool gpu_capture_end(void)
{
    capturing = false;
    return done(sgk_cuda_graph_end(0, stream, &graph));
}

void gpu_capture_abandon(void)
{
    if (capturing && gpu_capture_end()) gpu_graph_free();
}

bool gpu_graph_launch(void) { return done(sgk_cuda_graph_replay(graph, stream)); }

void gpu_graph_free(void)
{
    sgk_cuda_graph_free(graph);
    graph = NULL;
}
