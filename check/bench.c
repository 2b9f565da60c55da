/*
 * Figures.
 *
 * On the CPU: batches long enough for the clock. On the GPU two figures: between events, and as nodes of a graph, which is how a serving
 * engine calls. Where the tensors would stay in the second-level cache, the calls take copies of them in turn, so that a copy has left the
 * cache before it comes round again; tensors of less than 8 MB stay in it ("cached").
 * Each stands beside its limit time L = E + the longer of bytes / ceiling and, for 16-bit floats, operations / matrix peak: E is an empty
 * kernel as a graph node (0 on the CPU), the ceiling the copy bandwidth C, or the read bandwidth R for an operator that writes next to
 * nothing. All are measured in this run, by this program; --ceilings brings in what another library reached, and the better of both counts.
 */
#include <math.h>
#include <stdlib.h>
#include <time.h>
#include "harness.h"
#include "sgk_config.h"
#if SGK_HAVE_PROBE
#include "ops/probe/probe.h"
#include "ops/probe/probe_ops.h"
#endif
#if SGK_HAVE_GEMM
#include "sgl_kernel/gemm.h"
#endif

typedef struct {
    double copy, read;              /* bytes a second */
    double matrix;                  /* bf16 operations a second of a large matrix product */
    double empty, call, bare;       /* seconds: a graph node; host time of a call, and of the driver's launch alone */
    size_t bytes;
    bool   known;
} ceilings;
static ceilings  cpu_ceilings, own_gpu_ceilings, outside[2];        /* outside: of the CPU, of the GPU, as --ceilings says */
static ceilings *gpu_ceilings = &own_gpu_ceilings;

static check_figure *figures;
static int           figure_count, figure_room;

enum { BATCHES = 21,
       NODES   = 10,
       REPLAYS = 11 };
enum { CACHED_BYTES = 8 << 20 };       /* what a call of this size needs was just written by the call before it */
static double  times[BATCHES], batch_start, total_start, graph_seconds;
static int     batches, nodes;
static int64_t calls, batch_calls;
static bool    calibrated, in_graph;

double clock_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, by_value);
    return values[count / 2];
}

/* ---- ceilings of this machine ---- */
#if SGK_HAVE_PROBE
static DLTensor words(void *memory, int64_t *count, bool gpu)
{
    return (DLTensor){ .data = memory, .device = { gpu ? kDLCUDA : kDLCPU, 0 }, .ndim = 1, .dtype = sgk_dtypes[SGK_I32].dl, .shape = count };
}

static void need(sgk_status status)
{
    if (status == SGK_OK) return;
    printf("FAILURE: the ceilings of this machine cannot be measured: %s\n", sgk_last_error());
    exit(1);
}

enum { COPY,
       DRIVER_COPY,
       READ };
static double bandwidth(int what, char *memory, size_t bytes, bool gpu)
{
    int64_t  count = (int64_t)(bytes / 4), blocks = count / PROBE_BLOCK;
    DLTensor from = words(memory, &count, gpu), to = words(memory + bytes, &count, gpu), sums = words(memory + bytes, &blocks, gpu);
    sgk_exec exec = SGK_EXEC_INIT;
    if (gpu) exec.stream = gpu_stream();
    double seconds[9];
    for (int i = -2; i < 9; ++i) {                          /* two to warm up */
        const double start = clock_now();
        if (gpu) gpu_stamp(0, 0);
        if (what == COPY) need(sgk_probe_copy(&to, &from, &exec));
        else if (what == READ) need(sgk_probe_read(&sums, &from, &exec));
        else gpu_copy(memory + bytes, memory, bytes);
        if (gpu) gpu_stamp(0, 1);
        const double elapsed = gpu ? gpu_elapsed(0) : clock_now() - start;
        if (i >= 0) seconds[i] = elapsed;
    }
    return (double)bytes * (what == READ ? 1 : 2) / median(seconds, 9);
}

/* `count` calls as nodes of a graph: seconds of one. The clocks of a GPU that was idle need some milliseconds to rise. */
static double replayed(int count)
{
    double seconds[REPLAYS], warm = 0;
    for (int i = 0, before = 0; i < REPLAYS;) {
        gpu_stamp(0, 0);
        if (!gpu_graph_launch()) return NAN;
        gpu_stamp(0, 1);
        const double elapsed = gpu_elapsed(0);
        if (warm < 20e-3 && before++ < 1000) warm += elapsed;
        else seconds[i++] = elapsed;
    }
    return median(seconds, REPLAYS) / count;
}

static double empty_node(char *memory)
{
    int64_t  one  = 1;
    DLTensor grid = words(memory, &one, true);
    grid.dtype    = sgk_dtypes[SGK_F32].dl;
    sgk_exec exec = SGK_EXEC_INIT;
    exec.stream   = gpu_stream();
    need(sgk_probe_empty(&grid, &exec));
    if (!gpu_wait() || !gpu_capture_begin()) return NAN;
    for (int i = 0; i < NODES; ++i) need(sgk_probe_empty(&grid, &exec));
    if (!gpu_capture_end()) return NAN;
    const double seconds = replayed(NODES);
    gpu_graph_free();
    return seconds;
}

/* Host time of one call that enqueues a small kernel: through the library, and the driver's launch alone, in turns. The best of many rounds,
 * because what disturbs a host's clock only ever adds; few enough calls at a time that the GPU's queue never fills up. */
static void call_costs(char *memory, ceilings *c)
{
    enum { CALLS  = 100,
           ROUNDS = 60 };
    int64_t  count = 1024;
    DLTensor from = words(memory, &count, true), to = words(memory + 4096, &count, true);
    sgk_exec exec = SGK_EXEC_INIT;
    exec.stream   = gpu_stream();
    c->call = c->bare = INFINITY;
    for (int r = 0; r < ROUNDS; ++r) {
        const double start = clock_now();
        for (int i = 0; i < CALLS; ++i) need(sgk_probe_copy(&to, &from, &exec));
        const double called = clock_now();
        if (!gpu_wait()) return;
        const double bare = clock_now();
        need(sgk_probe_copy_bare(memory + 4096, memory, count, &exec, CALLS));
        const double launched = clock_now();
        if (!gpu_wait()) return;
        c->call = fmin(c->call, (called - start) / CALLS), c->bare = fmin(c->bare, (launched - bare) / CALLS);
    }
}

/* input @ weight^T in bf16, all of one size, random: operations a second, sustained. */
static double matrix_peak(char *memory, bool gpu)
{
#if SGK_HAVE_GEMM
    enum { ROUNDS = 7 };
    const int64_t n        = gpu ? 8192 : 2048;
    int64_t       shape[2] = { n, n };
    DLTensor      matrix[3];
    uint16_t     *values = malloc((size_t)(n * n) * 2);
    if (!values) return NAN;
    for (int64_t i = 0; i < n * n; ++i) values[i] = (uint16_t)((random_bits() & 0x807f) | (0x3f00 + (random_bits() & 0x80)));     /* +-0.5 to 2 */
    for (int i = 0; i < 3; ++i) {
        matrix[i] = (DLTensor){ .data = memory + (size_t)i * (size_t)(n * n) * 2, .device = { gpu ? kDLCUDA : kDLCPU, 0 }, .ndim = 2, .dtype = sgk_dtypes[SGK_BF16].dl, .shape = shape };
        if (gpu) gpu_write(matrix[i].data, values, (size_t)(n * n) * 2);
        else memcpy(matrix[i].data, values, (size_t)(n * n) * 2);
    }
    free(values);
    sgk_exec exec = SGK_EXEC_INIT;
    if (gpu) exec.stream = gpu_stream();
    double seconds[ROUNDS];
    for (int i = -3; i < ROUNDS; ++i) {
        const double start = clock_now();
        if (gpu) gpu_stamp(0, 0);
        need(sgk_linear(&matrix[2], &matrix[0], &matrix[1], NULL, &exec));
        if (gpu) gpu_stamp(0, 1);
        const double elapsed = gpu ? gpu_elapsed(0) : clock_now() - start;
        if (i >= 0) seconds[i] = elapsed;
    }
    return 2.0 * (double)n * (double)n * (double)n / median(seconds, ROUNDS);
#else
    (void)memory, (void)gpu;
    return NAN;
#endif
}

static void measure(ceilings *c, bool gpu)
{
    c->known = true;
    char *memory;
    if (gpu) {
        c->bytes = (size_t)2 << 30;
        while (2 * c->bytes > gpu_free_bytes() / 2) c->bytes /= 2;
        memory = gpu_grab(2 * c->bytes);
    } else {
        c->bytes = (size_t)1 << 30;
        while (!(memory = aligned_alloc(4096, 2 * c->bytes))) c->bytes /= 2;
        memset(memory, 0x3c, 2 * c->bytes);
    }
    sgk_cpu_mask(~0u);
    c->copy = bandwidth(COPY, memory, c->bytes, gpu);
    if (gpu) c->copy = fmax(c->copy, bandwidth(DRIVER_COPY, memory, c->bytes, gpu));
    c->read   = bandwidth(READ, memory, c->bytes, gpu);
    c->matrix = matrix_peak(memory, gpu);
    c->copy = fmax(c->copy, outside[gpu].copy), c->read = fmax(c->read, outside[gpu].read), c->matrix = fmax(c->matrix, outside[gpu].matrix);
    c->empty = gpu ? empty_node(memory) : 0;
    if (gpu) call_costs(memory, c);
    sgk_cpu_mask(level->flags);
    if (gpu) gpu_give_back(memory);
    else free(memory);
    printf("  %s: copy %.1f GB/s, read %.1f GB/s at %zu MB, bf16 matrices %.2f TFLOP/s", gpu ? gpu_name() : "CPU", c->copy * 1e-9, c->read * 1e-9, c->bytes >> 20, c->matrix * 1e-12);
    if (gpu) printf(", an empty kernel in a graph %.2f us, a call from C %.2f us, the driver's launch alone %.2f us", c->empty * 1e6, c->call * 1e6, c->bare * 1e6);
    else printf(", %d threads", sgk_num_threads(NULL));
    printf("\n");
}
#else
static double replayed(int count)
{
    (void)count;
    return NAN;
}
static void measure(ceilings *c, bool gpu) { (void)gpu, c->known = true; }      /* without the probe family there is no limit to show */
#endif

size_t bench_least;

void bench_share(void) { gpu_ceilings = job_shared(sizeof *gpu_ceilings); }

bool bench_ceilings(const char *text)
{
    double     copy, read, matrix;
    const bool gpu = !strncmp(text, "cuda:", 5);
    int        end = 0;
    if (!gpu && strncmp(text, "cpu:", 4)) return false;
    if (sscanf(text + (gpu ? 5 : 4), "%lf,%lf,%lf%n", &copy, &read, &matrix, &end) != 3 || text[(gpu ? 5 : 4) + end]) return false;
    outside[gpu] = (ceilings){ .copy = copy, .read = read, .matrix = matrix };
    return true;
}

/* ---- the case's tensors on the GPU, and copies of them ---- */
static char  *copies;
static size_t copies_room, set_bytes;
static int    sets;                                     /* of tensors: the case's own, and its copies */
static void  *home[MAX_TENSORS];

/* The call that comes next finds its tensors in set number `set`; 0 are the case's own. */
static void use_set(int set)
{
    char *place = copies + (size_t)(set - 1) * set_bytes;
    for (int i = 0; i < tensor_count; ++i) {
        tensors[i].device = set ? place : home[i];
        place += (tensor_block_size(&tensors[i]) + 511) / 512 * 512;
    }
}

/* So many sets that three times the second-level cache is touched between two uses of one. */
static void make_sets(void)
{
    const int64_t bytes = (int64_t)tensors_bytes(), cache = gpu_l2_bytes();
    set_bytes = 0;
    for (int i = 0; i < tensor_count; ++i) {
        home[i] = tensors[i].device;
        set_bytes += (tensor_block_size(&tensors[i]) + 511) / 512 * 512;
    }
    sets  = bytes < CACHED_BYTES || bytes >= 4 * cache ? 1 : 1 + (int)((3 * cache + bytes - 1) / bytes);
    nodes = (NODES + sets - 1) / sets * sets;
    if ((size_t)(sets - 1) * set_bytes > copies_room) {
        if (copies) gpu_give_back(copies);
        copies_room = (size_t)(sets - 1) * set_bytes;
        copies      = gpu_grab(copies_room);
    }
    for (int set = 1; set < sets; ++set) {
        use_set(set);
        for (int i = 0; i < tensor_count; ++i) gpu_copy(tensors[i].device, home[i], tensor_block_size(&tensors[i]));
    }
    use_set(0);
}

/* ---- the calls of one case ---- */
void bench_start(void)
{
    ceilings *c = level->gpu ? gpu_ceilings : &cpu_ceilings;
    if (!c->known) measure(c, level->gpu);
    batches = 0, calls = 0, batch_calls = 1, calibrated = false, graph_seconds = NAN;
    if (level->gpu) {
        make_sets();
        in_graph = !check_switches.no_graph && gpu_wait() && gpu_capture_begin();
    }
    batch_start = total_start = clock_now();
}

static bool more_on_gpu(void)
{
    if (in_graph && calls == nodes) {
        if (gpu_capture_end()) {
            graph_seconds = replayed(nodes);
            gpu_graph_free();
        }
        in_graph = false;
        calls    = 0;
    }
    if (!in_graph && calls == BATCHES) {
        for (int i = 0; i < BATCHES; ++i) times[i] = gpu_elapsed(i);
        batches = BATCHES;
        return false;
    }
    use_set((int)(calls % sets));
    if (!in_graph) gpu_stamp((int)calls, 0);
    return true;
}

/* At most a second a case, but five batches. */
bool bench_more(void)
{
    if (level->gpu) return more_on_gpu();
    return batches < BATCHES && (batches < 5 || clock_now() - total_start < 1.0);
}

void bench_called(void)
{
    if (level->gpu) {
        use_set(0);
        if (!in_graph) gpu_stamp((int)calls, 1);
        ++calls;
        return;
    }
    if (++calls < batch_calls) return;
    const double elapsed = clock_now() - batch_start;
    if (!calibrated && elapsed < 2e-3) batch_calls *= 2;
    else if (!calibrated) calibrated = true;            /* this batch has warmed the caches and is not counted */
    else times[batches++] = elapsed / (double)batch_calls;
    calls       = 0;
    batch_start = clock_now();
}

/* ---- what came out ---- */
static double limit_seconds(double bytes, double operations)
{
    const ceilings *c       = level->gpu ? gpu_ceilings : &cpu_ceilings;
    size_t          written = 0;
    for (int i = 0; i < tensor_count; ++i)
        if (tensors[i].written) written += tensors[i].span;
    const double ceiling = 10 * written < tensors_bytes() ? c->read : c->copy;
    const bool   halves  = tensor_count && (tensors[0].dtype == SGK_F16 || tensors[0].dtype == SGK_BF16);
    if (!(ceiling > 0) || bytes <= 0) return NAN;
    return c->empty + fmax(bytes / ceiling, halves && c->matrix > 0 ? operations / c->matrix : 0);
}

static double best_time(const check_figure *f) { return isfinite(f->graph) ? f->graph : f->seconds; }

void bench_add(const check_figure *f)
{
    if (figure_count == figure_room) {
        figure_room = figure_room ? 2 * figure_room : 64;
        figures     = realloc(figures, (size_t)figure_room * sizeof *figures);
        if (!figures) abort();
    }
    figures[figure_count++] = *f;
}

void bench_figure(double bytes, double operations)
{
    if (!check_benching || case_failed || batches < 5) return;
    check_figure *f = &(check_figure){ .seconds = median(times, batches), .graph = graph_seconds, .bytes = bytes, .operations = operations, .limit = limit_seconds(bytes, operations), .reference = reference_seconds, .gpu = level->gpu, .cached = level->gpu && tensors_bytes() < CACHED_BYTES, .order = job_order() };
    f->spread       = (times[batches * 3 / 4] - times[batches / 4]) / 2 / f->seconds;
    snprintf(f->label, LABEL, "%s", label);
    snprintf(f->level, sizeof f->level, "%s", level->name);
    batches = 0;
    if (!job_figure(f)) bench_add(f);
    printf("  %-44s %-10s %10.2f us", f->label, f->level, f->seconds * 1e6);
    if (f->gpu) printf(", in a graph %8.2f us", f->graph * 1e6);
    printf(" +/- %2.0f%% %8.1f GB/s %9.1f GFLOP/s", 100 * f->spread, bytes / best_time(f) * 1e-9, operations / best_time(f) * 1e-9);
    if (isfinite(f->limit)) printf("  %4.0f%% of the limit", 100 * f->limit / best_time(f));
    printf("  %.1f x ref%s\n", f->reference / best_time(f), f->cached ? ", cached" : "");
    fflush(stdout);
}

static void member(FILE *f, const char *name, double value)
{
    fprintf(f, ", \"%s\": ", name);
    json_number(f, value);
}

static void ceilings_json(FILE *f, const char *name, const ceilings *c)
{
    fprintf(f, "\"%s\": ", name);
    if (!c->known || !c->bytes) {
        fprintf(f, "null");
        return;
    }
    fprintf(f, "{\"bytes\": %zu", c->bytes);
    member(f, "copy_gigabytes_per_second", c->copy * 1e-9);
    member(f, "read_gigabytes_per_second", c->read * 1e-9);
    member(f, "matrix_teraflops", c->matrix * 1e-12);
    member(f, "empty_microseconds", c->empty * 1e6);
    member(f, "call_microseconds", c->call * 1e6);
    member(f, "driver_launch_microseconds", c->bare * 1e6);
    fprintf(f, "}");
}

static int by_order(const void *a, const void *b)
{
    const int64_t x = ((const check_figure *)a)->order, y = ((const check_figure *)b)->order;
    return (x > y) - (x < y);
}

void bench_json(FILE *f)
{
    if (figure_count) qsort(figures, (size_t)figure_count, sizeof *figures, by_order);
    fprintf(f, "  \"ceilings\": {");
    ceilings_json(f, "cpu", &cpu_ceilings);
    fprintf(f, ", ");
    ceilings_json(f, "gpu", gpu_ceilings);
    fprintf(f, "},\n  \"rows\": [");
    for (int i = 0; i < figure_count; ++i) {
        const check_figure *r = &figures[i];
        fprintf(f, "%s\n    {\"case\": ", i ? "," : "");
        json_text(f, r->label);
        fprintf(f, ", \"level\": ");
        json_text(f, r->level);
        fprintf(f, ", \"device\": ");
        json_text(f, r->gpu ? gpu_name() : "cpu");
        member(f, "microseconds", r->seconds * 1e6);
        member(f, "microseconds_graph", r->graph * 1e6);
        member(f, "spread", r->spread);
        member(f, "bytes", r->bytes);
        member(f, "operations", r->operations);
        member(f, "gigabytes_per_second", r->bytes / best_time(r) * 1e-9);
        member(f, "gigaflops", r->operations / best_time(r) * 1e-9);
        member(f, "limit_microseconds", r->limit * 1e6);
        member(f, "share", r->limit / best_time(r));
        member(f, "times_reference", r->reference / best_time(r));
        fprintf(f, ", \"cached\": %s}", r->cached ? "true" : "false");
    }
    fprintf(f, "]\n");
}
