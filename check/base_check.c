/* What every operator stands on: parallel_for, the argument matcher and its sentences, scratch memory, errors by thread. */
#include <pthread.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/match.h"
#include "base/parallel.h"
#include "harness.h"

/* ---- parallel_for ---- */
typedef struct {
    _Atomic int *visits;
    int64_t      begin, end, grain;
    _Atomic int  ranges, outside, narrow;
} coverage;

static void visit(int64_t begin, int64_t end, void *context)
{
    coverage *c = context;
    ++c->ranges;
    if (begin < c->begin || end > c->end || begin >= end) ++c->outside;
    if (end - begin < c->grain / 2) ++c->narrow;            /* the last grain may be cut in two */
    for (int64_t i = begin; i < end; ++i) ++c->visits[i - c->begin];
}

static bool covers(int64_t begin, int64_t end, int64_t grain, const sgk_exec *exec)
{
    const int64_t n = end > begin ? end - begin : 0;
    coverage      c = { .visits = calloc((size_t)n + 1, sizeof *c.visits), .begin = begin, .end = end, .grain = grain };
    if (!c.visits) abort();
    sgk_parallel_for(exec, begin, end, grain, visit, &c);
    bool once = true;
    for (int64_t i = 0; i < n; ++i) once = once && c.visits[i] == 1;
    free(c.visits);
    check_that(once, "[%lld, %lld) with grain %lld: an item was not visited exactly once", (long long)begin, (long long)end, (long long)grain);
    check_that(!c.outside, "[%lld, %lld) with grain %lld: a range is empty or outside", (long long)begin, (long long)end, (long long)grain);
    check_that(!c.narrow || n < grain, "[%lld, %lld) with grain %lld: a range is narrower than the grain", (long long)begin, (long long)end, (long long)grain);
    check_that(c.ranges <= sgk_num_threads(exec) && (n == 0) == (c.ranges == 0), "[%lld, %lld) with grain %lld: %d ranges on %d threads", (long long)begin,
               (long long)end, (long long)grain, c.ranges, sgk_num_threads(exec));
    return once && !c.outside;
}

static void check_coverage(void)
{
    if (!check_case("base_parallel_coverage")) return;
    static const int64_t sizes[] = { 0, 1, 2, 3, 7, 8, 100, 1000, 4097 }, grains[] = { 0, 1, 3, 64, 1000, 100000 };
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; ++s)
        for (size_t g = 0; g < sizeof grains / sizeof *grains; ++g) covers(s % 2 ? -5 : (int64_t)1 << 40, (s % 2 ? -5 : (int64_t)1 << 40) + sizes[s], grains[g], NULL);
    covers(10, 3, 1, NULL);
    for (int i = 0; i < 200; ++i) covers(0, check_int(1, 300), check_int(1, 40), NULL);
    check_done(0, 0);
}

typedef struct { _Atomic int64_t sum; } total;

static void add_inner(int64_t begin, int64_t end, void *context)
{
    for (int64_t i = begin; i < end; ++i) ((total *)context)->sum += i;
}

static _Atomic int inner_threads;

static void add_outer(int64_t begin, int64_t end, void *context)
{
    for (int64_t i = begin; i < end; ++i) {
        if (sgk_num_threads(NULL) != 1) ++inner_threads;
        sgk_parallel_for(NULL, 0, 100, 1, add_inner, context);
    }
}

static void check_nested(void)
{
    if (!check_case("base_parallel_nested")) return;
    total t       = { 0 };
    inner_threads = 0;
    sgk_parallel_for(NULL, 0, 64, 1, add_outer, &t);
    check_that(t.sum == 64 * 4950, "loops inside loops give %lld, expected %d", (long long)t.sum, 64 * 4950);
    check_that(inner_threads == 0 || sgk_num_threads(NULL) == 1, "a loop inside a loop is told of more than one thread");
    t.sum = 0;
    sgk_parallel_for(NULL, 0, 1000, 1, add_inner, &t);
    check_that(t.sum == 499500, "the pool does not work any more after nested loops");
    check_done(0, 0);
}

static void *caller(void *argument)
{
    total *t = argument;
    for (int i = 0; i < 200; ++i) sgk_parallel_for(NULL, 0, 100, 1, add_inner, t);
    return NULL;
}

static void check_concurrent(void)
{
    if (!check_case("base_parallel_concurrent_callers")) return;
    enum { CALLERS = 6 };
    pthread_t threads[CALLERS];
    total     totals[CALLERS] = { 0 };
    int       started         = 0;
    while (started < CALLERS && pthread_create(&threads[started], NULL, caller, &totals[started]) == 0) ++started;
    for (int i = 0; i < started; ++i) {
        pthread_join(threads[i], NULL);
        check_that(totals[i].sum == 200 * 4950, "caller %d counts %lld, expected %d", i, (long long)totals[i].sum, 200 * 4950);
    }
    check_that(started > 1, "only %d threads could be started", started);
    check_done(0, 0);
}

/* Runs `body` in a child after `prepare`; its exit status, 100 and more: it died. */
static int in_child(int (*body)(void))
{
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        alarm(30);
        _exit(body());
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) < 0) return 100;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 100 + WTERMSIG(status);
}

static pthread_t   child_thread;
static _Atomic int other_threads;
static void note_thread(int64_t begin, int64_t end, void *context)
{
    if (!pthread_equal(pthread_self(), child_thread)) ++other_threads;
    add_inner(begin, end, context);
}

static int loop_in_child(void)
{
    child_thread = pthread_self();
    total t      = { 0 };
    sgk_parallel_for(NULL, 0, 1000, 1, note_thread, &t);
    return t.sum != 499500 ? 1 : other_threads            ? 2
                             : sgk_num_threads(NULL) != 1 ? 3
                                                          : 0;
}

static void check_fork(void)
{
    if (!check_case("base_parallel_after_fork")) return;
    total t = { 0 };
    sgk_parallel_for(NULL, 0, 1000, 1, add_inner, &t);      /* the pool is running */
    const int status = in_child(loop_in_child);
    check_that(status == 0, "a loop in a forked child: status %d (1: wrong sum, 2: other threads, 3: told of several threads, 100 and more: died)", status);
    t.sum = 0;
    sgk_parallel_for(NULL, 0, 1000, 1, add_inner, &t);
    check_that(t.sum == 499500, "the parent's pool does not work any more after a fork");
    check_done(0, 0);
}

/* The pool of this process has its size; a program of our own is asked what it would be. SGK_CHECK_EMULATOR is the command, if any, that
 * this program itself is running under. */
static void check_thread_count(const char *wanted_threads, int expected)
{
    if (!check_case("base_parallel_num_threads_%s", *wanted_threads ? wanted_threads : "empty")) return;
    char          command[768], line[64] = "";
    char          path[400];
    const char   *emulator = getenv("SGK_CHECK_EMULATOR");
    const ssize_t n        = readlink("/proc/self/exe", path, sizeof path - 1);
    path[n > 0 ? n : 0]    = 0;
    snprintf(command, sizeof command, "SGK_NUM_THREADS='%s' %.300s '%s' --print-threads 2>/dev/null", wanted_threads, emulator ? emulator : "", path);
    FILE      *f        = popen(command, "r");
    const bool answered = f && fgets(line, sizeof line, f);
    if (f) pclose(f);
    check_that(answered, "no answer from %s", command);
    if (expected) check_that(atoi(line) == expected, "SGK_NUM_THREADS=%s gives %d threads, expected %d", wanted_threads, atoi(line), expected);
    else check_that(atoi(line) >= 1, "SGK_NUM_THREADS=%s gives %d threads", wanted_threads, atoi(line));
    check_done(0, 0);
}

/* ---- the caller's own loop ---- */
static int64_t hook_begin, hook_end, hook_grain;
static void hook_for(void *user, int64_t begin, int64_t end, int64_t grain, sgk_parallel_body *body, void *context)
{
    *(int *)user += 1;
    hook_begin = begin, hook_end = end, hook_grain = grain;
    body(begin, end, context);
}
static int hook_threads(void *user) { return *(int *)user + 41; }

static void check_loop_hook(void)
{
    if (!check_case("base_parallel_hook")) return;
    int      user     = 0;
    total    t        = { 0 };
    sgk_exec exec     = SGK_EXEC_INIT;
    exec.parallel_for = hook_for, exec.user = &user;
    check_that(sgk_num_threads(&exec) == 1, "a loop without num_threads says %d threads, expected 1", sgk_num_threads(&exec));
    exec.num_threads = hook_threads;
    check_that(sgk_num_threads(&exec) == 41, "num_threads of exec is not asked");
    sgk_parallel_for(&exec, 3, 10, 0, add_inner, &t);
    check_that(user == 1 && t.sum == 42 && hook_begin == 3 && hook_end == 10 && hook_grain == 1, "the caller's loop was called %d times with [%lld, %lld), grain %lld", user,
               (long long)hook_begin, (long long)hook_end, (long long)hook_grain);
    sgk_parallel_for(&exec, 3, 3, 1, add_inner, &t);
    check_that(user == 1, "the caller's loop is called for no work");
    exec.size = offsetof(sgk_exec, parallel_for);           /* compiled before the field existed */
    sgk_parallel_for(&exec, 3, 10, 1, add_inner, &t);
    check_that(user == 1 && t.sum == 84, "a field behind exec's size was read");
    check_done(0, 0);
}

/* ---- the matcher ---- */
typedef struct {
    int        ndim;
    int64_t    shape[4], strides[4];
    bool       no_strides;
    DLDataType dtype;
    DLDevice   device;
    size_t     at;
    bool       no_data, null;
} spec;

#define F32  { kDLFloat, 32, 1 }
#define HERE { kDLCPU, 0 }
static char memory[4096] __attribute__((aligned(64)));

/* One or two tensors against "N D" and "D" (or `shape`), the second one written. `words`: NULL where they are legal. */
static const struct {
    const char *name, *shape, *shape2;
    spec        a, b;
    bool        same;
    const char *words;
} matches[] = {
    { "legal", "N D", "N D", { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE }, { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE, .at = 1024 }, false, NULL },
    { "dense by default", "N D", NULL, { 2, { 3, 4 }, .no_strides = true, .dtype = F32, .device = HERE }, { 0 }, false, NULL },
    { "pinned memory", "N D", "N D", { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE }, { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = { kDLCUDAHost, 1 }, .at = 1024 }, false, NULL },
    { "null", "N D", NULL, { .null = true }, { 0 }, false, "op: first is null, expected a tensor [N D]" },
    { "rank", "N D", NULL, { 1, { 3 }, { 1 }, .dtype = F32, .device = HERE }, { 0 }, false, "op: first has 1 dimension, expected 2: [N D]" },
    { "number", "N 64", NULL, { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE }, { 0 }, false, "op: first has size 4 in dimension 1, expected 64 from [N 64]" },
    { "letter", "N D", "D", { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE }, { 1, { 5 }, { 1 }, .dtype = F32, .device = HERE, .at = 1024 }, false, "op: second has size 5 in dimension 0, expected 4 from [D]" },
    { "letter of size 0", "N D", "N", { 2, { 0, 4 }, { 4, 1 }, .dtype = F32, .device = HERE }, { 1, { 1 }, { 1 }, .dtype = F32, .device = HERE, .at = 1024 }, false, "op: second has size 1 in dimension 0, expected 0 from [N]" },
    { "format", "N D", NULL, { 2, { 3, 4 }, { 4, 1 }, .dtype = { kDLInt, 64, 1 }, .device = HERE }, { 0 }, false, "op: first has dtype i64, expected f32" },
    { "unknown format", "N D", NULL, { 2, { 3, 4 }, { 4, 1 }, .dtype = { kDLComplex, 64, 1 }, .device = HERE }, { 0 }, false, "op: first has dtype complex64, expected f32" },
    { "lanes", "N D", NULL, { 2, { 3, 4 }, { 4, 1 }, .dtype = { kDLFloat, 32, 2 }, .device = HERE }, { 0 }, false, "op: first has dtype" },
    { "device", "N D", NULL, { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = { (DLDeviceType)8, 0 } }, { 0 }, false, "op: first is on a device of DLPack type 8, expected the CPU or a CUDA device" },
    { "two devices", "N D", "N D", { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE }, { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = { kDLCUDA, 1 }, .at = 1024 }, false, "op: second is on CUDA device 1, expected the CPU like first" },
    { "negative size", "N D", NULL, { 2, { -3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE }, { 0 }, false, "op: first has size -3 in dimension 0, expected at least 0" },
    { "too many", "N D", NULL, { 2, { (int64_t)1 << 40, (int64_t)1 << 40 }, { (int64_t)1 << 40, 1 }, .dtype = F32, .device = HERE }, { 0 }, false, "op: first has more elements than 64 bits count" },
    { "null data", "N D", NULL, { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE, .no_data = true }, { 0 }, false, "op: first has 12 elements and a null data pointer" },
    { "null and empty", "N D", NULL, { 2, { 0, 4 }, { 4, 1 }, .dtype = F32, .device = HERE, .no_data = true }, { 0 }, false, NULL },
    { "negative stride", "N D", NULL, { 2, { 3, 4 }, { -4, 1 }, .dtype = F32, .device = HERE }, { 0 }, false, "op: first has stride -4 in dimension 0" },
    { "huge stride", "N D", NULL, { 2, { 3, 4 }, { INT64_MAX / 4, 1 }, .dtype = F32, .device = HERE }, { 0 }, false, "expected a stride from 0 to what 64 bits address" },
    { "last stride", "N D", NULL, { 2, { 3, 4 }, { 8, 2 }, .dtype = F32, .device = HERE }, { 0 }, false, "op: first has stride 2 in its last dimension, expected 1" },
    { "any last stride", "N D~", NULL, { 2, { 3, 4 }, { 8, 2 }, .dtype = F32, .device = HERE }, { 0 }, false, NULL },
    { "last size is 1", "N D", NULL, { 2, { 3, 1 }, { 8, 77 }, .dtype = F32, .device = HERE }, { 0 }, false, NULL },
    { "alignment", "N D", NULL, { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE, .at = 2 }, { 0 }, false, "expected a multiple of its element size 4" },
    { "folded", "*N D", "N D", { 3, { 2, 3, 4 }, { 15, 5, 1 }, .dtype = F32, .device = HERE }, { 2, { 6, 4 }, { 4, 1 }, .dtype = F32, .device = HERE, .at = 1024 }, false, NULL },
    { "not foldable", "*N D", NULL, { 3, { 2, 3, 4 }, { 16, 5, 1 }, .dtype = F32, .device = HERE }, { 0 }, false, "op: first has leading dimensions that are not evenly spaced in memory" },
    { "too few to fold", "*N D", NULL, { 0, { 0 }, { 0 }, .dtype = F32, .device = HERE }, { 0 }, false, "op: first has 0 dimensions, expected at least 1" },
    { "rows in one place", "N D", "N D", { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE }, { 2, { 3, 4 }, { 0, 1 }, .dtype = F32, .device = HERE, .at = 1024 }, false, "op: second is written and has several elements in one place" },
    { "rows that meet", "N D", "N D", { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE }, { 2, { 3, 4 }, { 3, 1 }, .dtype = F32, .device = HERE, .at = 1024 }, false, "op: second is written and has several elements in one place" },
    { "read rows may meet", "N D", NULL, { 2, { 3, 4 }, { 0, 1 }, .dtype = F32, .device = HERE }, { 0 }, false, NULL },
    { "overlap", "N D", "N D", { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE }, { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE, .at = 4 }, false, "op: second is written and overlaps first in memory, expected separate memory" },
    { "the same, not allowed", "N D", "N D", { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE }, { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE }, false, "op: second is written and overlaps first in memory" },
    { "the same, allowed", "N D", "N D", { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE }, { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE }, true, NULL },
    { "nearly the same", "N D", "N D", { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE }, { 2, { 3, 4 }, { 5, 1 }, .dtype = F32, .device = HERE }, true, "or exactly the same" },
    { "side by side", "N D", "N D", { 2, { 3, 4 }, { 8, 1 }, .dtype = F32, .device = HERE }, { 2, { 3, 4 }, { 8, 1 }, .dtype = F32, .device = HERE, .at = 16 }, false, NULL },
    { "just behind", "N D", "N D", { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE }, { 2, { 3, 4 }, { 4, 1 }, .dtype = F32, .device = HERE, .at = 48 }, false, NULL },
};

static DLTensor tensor_of(const spec *s)
{
    return (DLTensor){ .data = s->no_data ? NULL : memory, .byte_offset = s->no_data ? 0 : s->at, .device = s->device, .ndim = s->ndim, .dtype = s->dtype, .shape = (int64_t *)(uintptr_t)s->shape, .strides = s->no_strides ? NULL : (int64_t *)(uintptr_t)s->strides };
}

static sgk_status match_both(size_t i)
{
    sgk_match       m = { .op = "op" };
    const DLTensor  a = tensor_of(&matches[i].a), b = tensor_of(&matches[i].b);
    const DLTensor *first = matches[i].a.null ? NULL : &a, *second = &b;
    SGK_MATCH(&m, first, matches[i].shape, 1u << SGK_F32);
    if (matches[i].shape2) SGK_MATCH_OUT(&m, second, matches[i].shape2, 1u << SGK_F32);
    if (matches[i].same) sgk_match_same(&m, second, first);
    return sgk_match_done(&m);
}

static void check_matcher(void)
{
    for (size_t i = 0; i < sizeof matches / sizeof *matches; ++i) {
        if (!check_case("base_match_%s", matches[i].name)) continue;
        const sgk_status status = match_both(i);
        if (!matches[i].words) check_that(status == SGK_OK, "is refused: \"%s\"", sgk_last_error());
        else if (status != SGK_BAD_ARG) check_that(false, "returns status %d, expected SGK_BAD_ARG", (int)status);
        else check_that(strstr(sgk_last_error(), matches[i].words), "says \"%s\", expected \"%s\"", sgk_last_error(), matches[i].words);
        check_done(0, 0);
    }
}

/* ---- scratch memory ---- */
static int    taken, given_back;
static size_t asked;
static bool   empty_handed;
static void *take(void *user, size_t bytes, DLDevice device)
{
    (void)user, (void)device;
    ++taken, asked = bytes;
    return empty_handed ? NULL : aligned_alloc(64, (bytes + 63) / 64 * 64);
}
static void give(void *user, void *p, DLDevice device)
{
    (void)user, (void)device;
    ++given_back;
    free(p);
}

static void check_scratch(void)
{
    if (!check_case("base_scratch")) return;
    const DLDevice cpu = { kDLCPU, 0 }, gpu = { kDLCUDA, 0 };
    sgk_scratch    s;
    sgk_exec       exec  = SGK_EXEC_INIT;
    size_t         query = 7;

    check_that(sgk_scratch_get(&s, "op", 100, cpu, NULL) == SGK_OK && s.memory && !s.query_only && (uintptr_t)s.memory % 64 == 0, "no memory from malloc, or not aligned to 64");
    if (s.memory) memset(s.memory, 1, 100);
    sgk_scratch_put(&s);
    check_that(sgk_scratch_get(&s, "op", 0, cpu, NULL) == SGK_OK && !s.memory, "0 bytes give memory");
    sgk_scratch_put(&s);

    exec.workspace_query = &query;
    check_that(sgk_scratch_get(&s, "op", 100, cpu, &exec) == SGK_OK && s.query_only && query == 100 && !s.memory, "a query is not answered with 100");
    check_that(sgk_scratch_get(&s, "op", 0, gpu, &exec) == SGK_OK && s.query_only && query == 0, "a query on the GPU is not answered with 0");

    exec           = (sgk_exec)SGK_EXEC_INIT;
    exec.workspace = memory, exec.workspace_size = 100, exec.allocate = take, exec.release = give;
    check_that(sgk_scratch_get(&s, "op", 100, cpu, &exec) == SGK_OK && s.memory == memory && !taken, "a workspace that is large enough is not used");
    sgk_scratch_put(&s);
    check_that(sgk_scratch_get(&s, "op", 101, cpu, &exec) == SGK_OK && s.memory != memory && taken == 1 && asked == 101, "the allocator is not asked for what the workspace lacks");
    sgk_scratch_put(&s);
    sgk_scratch_put(&s);
    check_that(given_back == 1, "memory of the allocator is given back %d times, expected once", given_back);

    exec.workspace = memory + 8;
    check_that(sgk_scratch_get(&s, "op", 64, cpu, &exec) == SGK_BAD_ARG && strstr(sgk_last_error(), "op: exec->workspace is at") && strstr(sgk_last_error(), "multiple of 64"),
               "a misaligned workspace: \"%s\"", sgk_last_error());
    exec          = (sgk_exec)SGK_EXEC_INIT;
    exec.allocate = take, exec.release = give;
    empty_handed = true;
    check_that(sgk_scratch_get(&s, "op", 64, cpu, &exec) == SGK_FAILED && strstr(sgk_last_error(), "op: no memory for 64 bytes"), "an allocator without memory: \"%s\"", sgk_last_error());
    empty_handed = false;
    check_that(sgk_scratch_get(&s, "op", 64, gpu, NULL) == SGK_BAD_ARG && strstr(sgk_last_error(), "64"), "no scratch memory for the GPU: \"%s\"", sgk_last_error());
    check_done(0, 0);
}

/* ---- errors ---- */
static void *other_error(void *argument)
{
    const bool clean = sgk_last_error()[0] == 0;
    sgk_error(SGK_FAILED, "from the other thread");
    *(bool *)argument = clean && !strcmp(sgk_last_error(), "from the other thread");
    return NULL;
}

static void check_errors(void)
{
    if (!check_case("base_error_by_thread")) return;
    sgk_error(SGK_BAD_ARG, "from %s thread", "this");
    pthread_t other;
    bool      own = false;
    if (pthread_create(&other, NULL, other_error, &own) == 0) pthread_join(other, NULL);
    check_that(own, "a new thread has no error of its own");
    check_that(!strcmp(sgk_last_error(), "from this thread"), "the error of this thread became \"%s\"", sgk_last_error());
    char long_text[4000];
    memset(long_text, 'x', sizeof long_text);
    long_text[sizeof long_text - 1] = 0;
    check_that(sgk_error(SGK_FAILED, "%s", long_text) == SGK_FAILED && strlen(sgk_last_error()) > 500, "a long message is lost");
    for (size_t i = 0; i + 1 < sizeof long_text; ++i) long_text[i] = i % 2 ? '\xa9' : '\xc3';      /* é */
    sgk_error(SGK_FAILED, "%s", long_text);
    check_that(strlen(sgk_last_error()) > 500 && strlen(sgk_last_error()) % 2 == 0, "a message is cut inside a character");
    check_done(0, 0);
}

static const char *heard_text;
static char        heard[600];
static void hear(void *user, const char *message)
{
    snprintf(heard, sizeof heard, "%s", message);
    heard_text = user;
}

static void check_log(void)
{
    if (!check_case("base_log")) return;
    sgk_exec exec = SGK_EXEC_INIT;
    exec.log = hear, exec.user = "user";
    check_that(sgk_log_wanted(&exec), "a log hook is not wanted");
    sgk_log(&exec, "%s: %d", "op", 3);
    check_that(!strcmp(heard, "op: 3") && heard_text && !strcmp(heard_text, "user"), "the log hook hears \"%s\"", heard);
    check_done(0, 0);
}

void check_base(void)
{
    if (!first_level) return;
    check_coverage();
    check_nested();
    check_concurrent();
    check_fork();
    check_thread_count("1", 1);
    check_thread_count("5", 5);
    check_thread_count("", 0);
    check_thread_count("0", 0);
    check_thread_count("many", 0);
    check_loop_hook();
    check_matcher();
    check_scratch();
    check_errors();
    check_log();
}
