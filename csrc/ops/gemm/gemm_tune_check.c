/*
 * sgk-check --tune=FILE: every build of linear that takes a shape, with K in every number of parts, against the clock, over a grid of
 * shapes in bf16; FILE becomes gemm_table.def, the choice for each. Candidates take turns; a figure is the median of their rounds, of a call
 * as a node of a graph, whose calls take copies of the operands in turn so that weights come from memory. Up to 32 rows it is the mean of calls
 * with programmatic launch and without.
 *
 * sgk-check --costs=FILE: the same for the builds of tiles, of numbers of rows as they come, and FILE becomes gemm_costs.def: of each build the costs with which
 * its times are told best, none below zero.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "check/harness.h"
#include "cuda/kernel.h"
#include "cuda/memory.h"
#include "gemm_gpu.h"

extern const sgk_kernel_table gemm_kernels[];

static const int grid_rows[] = LINEAR_TABLE_ROWS;
/*
 * N, K: the shapes of benchmark/linear.py, then further projections of Llama 3 8B and 70B (whole, and an eighth of each), Qwen3 30B A3B and
 * DeepSeek V3.
 */
static const int grid[][2] = {
    { 4096, 7168 },
    { 7168, 2048 },
    { 7168, 16384 },
    { 14336, 4096 },
    { 4096, 14336 },
    { 24576, 1536 },
    { 6144, 4096 },
    { 8192, 8192 },
    { 256, 7168 },
    { 2112, 7168 },
    { 4096, 4096 },
    { 28672, 4096 },
    { 10240, 8192 },
    { 57344, 8192 },
    { 8192, 28672 },
    { 36864, 7168 },
    { 7168, 18432 },
    { 5120, 2048 },
    { 2048, 4096 },
    { 32768, 512 },
    { 7168, 8192 },
    { 8192, 3584 },
    { 8192, 1024 },
    { 1280, 8192 },
    { 3584, 4096 },
    { 4096, 1792 },
    { 4096, 512 },
    { 768, 4096 },
    { 16032, 4096 },
    { 128256, 4096 },
    { 151936, 2048 },
    { 128, 2048 },
    { 1536, 2048 },
};

enum { CANDIDATES = 160,
       ROUNDS     = 5 };
typedef struct {
    linear_choice   choice;
    sgk_cuda_graph *graph[2];                   /* without programmatic launch, and with it */
    double          seconds[2][ROUNDS], each[2], median;
} candidate;

static char  *operands, *outputs;
static size_t room, out_room;

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static DLTensor matrix(char *data, int64_t *shape)
{
    return (DLTensor){ .data = data, .device = { kDLCUDA, 0 }, .ndim = 2, .dtype = { kDLBfloat, 16, 1 }, .shape = shape };
}

/* `nodes` calls, on copies in turn. */
static bool record(candidate *c, int64_t m, int64_t n, int64_t k, int nodes, int copies, bool pdl)
{
    sgk_exec exec = SGK_EXEC_INIT;
    exec.stream   = gpu_stream();
    exec.pdl      = pdl ? SGK_ON : SGK_OFF;
    linear_forced = c->choice;
    bool ok       = sgk_cuda_graph_begin(0, gpu_stream()) == SGK_OK;
    for (int i = 0; i < nodes && ok; ++i) {
        int64_t      in[] = { m, k }, w[] = { n, k }, o[] = { m, n };
        const size_t each = (size_t)((m + n) * k * 2 + 255) / 256 * 256, each_out = (size_t)(m * n * 2 + 255) / 256 * 256;
        DLTensor     weight = matrix(operands + (size_t)(i % copies) * each, w), input = matrix(operands + (size_t)(i % copies) * each + (size_t)(n * k * 2), in);
        DLTensor     out = matrix(outputs + (size_t)(i % copies) * each_out % (out_room - each_out) / 256 * 256, o);
        ok               = sgk_linear(&out, &input, &weight, NULL, &exec) == SGK_OK;
    }
    linear_forced.kernel = NULL;
    return sgk_cuda_graph_end(0, gpu_stream(), &c->graph[pdl]) == SGK_OK && ok;
}

static int measure(candidate *all, int64_t m, int64_t n, int64_t k)
{
    const size_t each = (size_t)((m + n) * k * 2), cache = (size_t)gpu_l2_bytes();
    const int    copies = (int)(4 * cache / each + 1);
    const double least  = (double)each / 4e12 + 2.0 * (double)m * (double)n * (double)k / 7e14;       /* seconds of a call */
    const int    wanted = least > 3e-4 ? 1 : least > 1e-4 ? 3
                                         : least > 3e-5   ? 8
                                                          : 24,
                 nodes = copies > wanted ? copies : wanted, rounds = least > 5e-4 ? 3 : ROUNDS;
    const int    kinds = m <= 32 ? 2 : 1;
    int          count = 0;
    if (each * (size_t)(copies + 1) > room || (size_t)(m * n * 2) > out_room / 2) return 0;
    for (const sgk_kernel_table *table = gemm_kernels; table->rows; ++table)
        for (size_t i = 0; i < table->count; ++i)
            for (int split = 1; split <= 8 && count < CANDIDATES; ++split) {
                candidate *c = &all[count];
                *c           = (candidate){ .choice = { .kernel = (sgk_kernel *)((char *)table->rows + i * table->row_size), .split = split } };
                if (!strncmp(c->choice.kernel->entry, "linear_simt", 11) || !linear_takes(c->choice, SGK_BF16, SGK_BF16, m, n, k) || !linear_sensible(c->choice, m, n, k)) continue;
                bool ok = true;
                for (int pdl = 0; pdl < kinds && ok; ++pdl) ok = record(c, m, n, k, nodes, copies, pdl);
                if (ok) ++count;
                else printf("%s %s in %d: %s\n", c->choice.kernel->entry, c->choice.kernel->defines, split, sgk_last_error());
            }
    double first = INFINITY;                    /* the best of the first round, which sorts out what is much slower */
    for (int r = -1; r < rounds; ++r)
        for (int j = 0; j < count; ++j) {
            candidate *c   = &all[(r & 1) ? j : count - 1 - j];
            double     sum = 0;
            if (r >= 0 && c->median > 1.2 * first) continue;
            for (int pdl = 0; pdl < kinds; ++pdl) {
                gpu_stamp(0, 0);
                sgk_cuda_graph_replay(c->graph[pdl], gpu_stream());
                gpu_stamp(0, 1);
                const double s = gpu_elapsed(0) / nodes;
                sum += s;
                c->each[pdl] = s;
                if (r >= 0) c->seconds[pdl][r] = s;
            }
            if (r < 0) c->median = sum / kinds, first = c->median < first ? c->median : first;
        }
    for (int j = 0; j < count; ++j) {
        for (int pdl = 0; pdl < kinds; ++pdl) sgk_cuda_graph_free(all[j].graph[pdl]);
        if (all[j].median > 1.2 * first) continue;
        all[j].median = 0;
        for (int pdl = 0; pdl < kinds; ++pdl) {
            qsort(all[j].seconds[pdl], (size_t)rounds, sizeof(double), by_value);
            all[j].each[pdl] = all[j].seconds[pdl][rounds / 2];
            all[j].median += all[j].each[pdl] / kinds;
        }
    }
    return count;
}

/* Random normal numbers everywhere: power, and with it the clock, depends on them. */
static void fill(void)
{
    enum { PERIOD = 1 << 22 };
    uint16_t *numbers = malloc(PERIOD * sizeof *numbers);
    for (int i = 0; numbers && i < PERIOD; ++i) numbers[i] = f32_to_bf16((float)check_normal());
    gpu_write(operands, numbers, PERIOD * sizeof *numbers);
    for (size_t have = PERIOD * sizeof *numbers; have < room; have *= 2)
        gpu_copy(operands + have, operands, have < room - have ? have : room - have);
    gpu_wait();
    free(numbers);
}

static void prepare(void)
{
    const size_t have = gpu_free_bytes();
    room              = have / 2 < (size_t)5 << 30 ? have / 2 : (size_t)5 << 30;
    out_room          = room / 4;
    operands = gpu_grab(room), outputs = gpu_grab(out_room);
    fill();
}

int tune_gemm(const char *path, const int64_t *sizes, int first)
{
    if (!gpu_present()) {
        fprintf(stderr, "sgk-check: --tune: %s\n", gpu_error());
        return 1;
    }
    prepare();
    FILE *f = fopen(path, "w");
    if (!f) {
        fprintf(stderr, "sgk-check: cannot write %s\n", path);
        return 1;
    }
    static candidate all[CANDIDATES];
    fprintf(f, "/* Written by sgk-check --tune on an %s. N, K, then the choice for each of LINEAR_TABLE_ROWS; see gemm_gpu.c. */\n", gpu_name());
    const double start = clock_now();
    for (size_t s = sizes ? 0 : (size_t)first; s < (sizes ? 1 : sizeof grid / sizeof *grid); ++s) {
        const int64_t n = sizes ? sizes[1] : grid[s][0], k = sizes ? sizes[2] : grid[s][1];
        fprintf(f, "    { %lld, %lld, {", (long long)n, (long long)k);
        for (size_t r = 0; r < (sizes ? 1 : sizeof grid_rows / sizeof *grid_rows); ++r) {
            const int64_t m     = sizes ? sizes[0] : grid_rows[r];
            const int     count = n > 100000 && m > 512 ? 0 : measure(all, m, n, k);
            candidate    *best  = count ? all : NULL;
            for (int j = 1; j < count; ++j)
                if (all[j].median < best->median) best = &all[j];
            for (int j = 0; j < count; ++j)
                if (sizes || all[j].median < 1.2 * best->median)
                    printf("%lld %lld %lld %.2f %.2f %.2f %s %s %d%s\n", (long long)m, (long long)n, (long long)k, all[j].median * 1e6, all[j].each[0] * 1e6, all[j].each[1] * 1e6, all[j].choice.kernel->entry, all[j].choice.kernel->defines,
                           all[j].choice.split, &all[j] == best ? " *" : "");
            char token[40];
            fprintf(f, "%s%s", r ? ", " : " ", best ? linear_token(best->choice, token, sizeof token) : "0");
            fflush(stdout);
        }
        fprintf(f, " } },\n");
        fflush(f);
    }
    printf("tuned in %.0f s\n", clock_now() - start);
    return fclose(f) != 0;
}

/* ---- the costs ------------------------------------------------------------------------------------------------------------------------ */

static const int cost_rows[]    = { 8, 16, 24, 33, 64, 65, 96, 128, 129, 160, 192, 224, 256, 300, 384, 450, 512, 640, 800, 1000, 1024, 1200, 1536, 2000, 3000, 4096 };
static const int cost_grid[][2] = {
    { 4096, 7168 },
    { 7168, 2048 },
    { 6144, 4096 },
    { 2112, 7168 },
    { 4096, 4096 },
    { 256, 7168 },
    { 1536, 2048 },
    { 2048, 768 },
    { 1280, 8192 },
    { 8192, 1024 },
    { 3584, 4096 },
    { 768, 4096 },
    { 14336, 4096 },
    { 4096, 14336 },
    { 24576, 1536 },
    { 5120, 2048 },
    { 1024, 8192 },
    { 2560, 5120 },
    { 128, 2048 },
    { 4096, 512 },
    { 512, 4096 },
};
enum { MOST_COSTS = 100,
       ALL        = 0,                          /* times of a build, */
       BUSY       = 1 };                        /* and those in which memory does not limit it */

/* Of a build: sums of products of its calls' work and of 1, all over their times. */
typedef struct {
    char   token[40];
    int    count[2];
    double products[2][LINEAR_WORK][LINEAR_WORK], with_one[2][LINEAR_WORK];
} samples;

static samples *samples_of(samples *all, linear_choice choice)
{
    char token[40];
    if (choice.split > 2) choice.split = 2;     /* several */
    linear_token(choice, token, sizeof token);
    int i = 0;
    while (i < MOST_COSTS - 1 && all[i].token[0] && strcmp(all[i].token, token)) ++i;
    strcpy(all[i].token, token);
    return &all[i];
}

static void add_sample(samples *s, const double work[LINEAR_WORK], double nanoseconds)
{
    for (int kind = ALL; kind <= BUSY; ++kind) {
        if (kind == BUSY && nanoseconds < 1.15 * work[4] + 2200) return;
        ++s->count[kind];
        for (int i = 0; i < LINEAR_WORK; ++i) {
            s->with_one[kind][i] += work[i] / nanoseconds;
            for (int j = 0; j < LINEAR_WORK; ++j) s->products[kind][i][j] += work[i] / nanoseconds * (work[j] / nanoseconds);
        }
    }
}

/* The least squares of relative errors with the costs in `used` alone; false where they are not told apart. */
static bool solve(const samples *s, int kind, unsigned used, double x[LINEAR_WORK])
{
    double a[LINEAR_WORK][LINEAR_WORK + 1];
    for (int i = 0; i < LINEAR_WORK; ++i) {
        const bool mine = used >> i & 1;
        for (int j = 0; j < LINEAR_WORK; ++j) a[i][j] = mine && (used >> j & 1) ? s->products[kind][i][j] : i == j;
        a[i][LINEAR_WORK] = mine ? s->with_one[kind][i] : 0;
    }
    for (int i = 0; i < LINEAR_WORK; ++i) {     /* positive definite: no pivots */
        if (a[i][i] <= 1e-9 * s->products[kind][i][i]) return false;
        for (int j = 0; j < LINEAR_WORK; ++j) {
            if (j == i) continue;
            const double by = a[j][i] / a[i][i];
            for (int k = i; k <= LINEAR_WORK; ++k) a[j][k] -= by * a[i][k];
        }
    }
    for (int i = 0; i < LINEAR_WORK; ++i) x[i] = a[i][LINEAR_WORK] / a[i][i];
    return true;
}

/* The best of all that have no cost below zero; the mean square of relative errors. */
static double fit(const samples *s, int kind, double best[LINEAR_WORK])
{
    double least = INFINITY;
    for (unsigned used = 1; used < 1u << LINEAR_WORK; ++used) {
        double x[LINEAR_WORK] = { 0 }, error = s->count[kind];
        if (!solve(s, kind, used, x)) continue;
        bool allowed = true;
        for (int i = 0; i < LINEAR_WORK; ++i) allowed = allowed && x[i] >= 0, error -= x[i] * s->with_one[kind][i];
        if (allowed && error < least) least = error, memcpy(best, x, sizeof x);
    }
    return least / s->count[kind];
}

int cost_gemm(const char *path)
{
    static candidate all[CANDIDATES];
    static samples   builds[MOST_COSTS];
    if (!gpu_present()) {
        fprintf(stderr, "sgk-check: --costs: %s\n", gpu_error());
        return 1;
    }
    FILE *f = fopen(path, "w");
    if (!f) {
        fprintf(stderr, "sgk-check: cannot write %s\n", path);
        return 1;
    }
    const sgk_cuda_device *device;
    if (sgk_cuda_get_device("linear", 0, &device) != SGK_OK) return 1;
    prepare();
    const double start = clock_now();
    for (size_t r = 0; r < sizeof cost_rows / sizeof *cost_rows; ++r)
        for (size_t g = 0; g < sizeof cost_grid / sizeof *cost_grid; ++g) {
            const int64_t m = cost_rows[r], n = cost_grid[g][0], k = cost_grid[g][1];
            const int     count = measure(all, m, n, k);
            for (int j = 0; j < count; ++j) {
                double work[LINEAR_WORK];
                if (!linear_work(all[j].choice, m, n, k, 1, device->multiprocessors, work)) continue;
                add_sample(samples_of(builds, all[j].choice), work, all[j].each[0] * 1e9);
                printf("%lld %lld %lld %.2f %s %s %d\n", (long long)m, (long long)n, (long long)k, all[j].each[0] * 1e6, all[j].choice.kernel->entry, all[j].choice.kernel->defines, all[j].choice.split);
            }
            fflush(stdout);
        }
    fprintf(f, "/* Written by sgk-check --costs on an %s. A build, with 2 shares of K for several, then what it costs; see gemm_gpu.c. */\n", gpu_name());
    for (int i = 0; i < MOST_COSTS && builds[i].token[0]; ++i) {
        double       x[LINEAR_WORK] = { 0 };
        const int    kind           = builds[i].count[BUSY] >= 30 ? BUSY : ALL;
        const double error          = fit(&builds[i], kind, x);
        if (builds[i].count[kind] < 8 || !isfinite(error)) continue;
        fprintf(f, "    { %s, %.0f, %.0f, %.0f, %.0f, %.0f, %.0f },\n", builds[i].token, x[0], x[1], x[2], x[3], x[4] * 1000, sqrt(error) * 1000);
    }
    printf("measured in %.0f s\n", clock_now() - start);
    return fclose(f) != 0;
}
