/*
 * The pool: threads that wait for a job, numbered; job k of thread i is range i of the loop. One loop at a time owns the pool
 * (pool_busy); whoever finds it taken runs inline, which is always correct.
 */
#include "base/parallel.h"
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static pthread_once_t    pool_once = PTHREAD_ONCE_INIT;
static pthread_mutex_t   pool_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t    pool_wake = PTHREAD_COND_INITIALIZER;
static pthread_cond_t    pool_done = PTHREAD_COND_INITIALIZER;
static int               pool_threads;            /* the caller's own included; set once */
static int               pool_busy;
static _Atomic int       forked;                  /* in a child the pool's threads do not exist */
static _Thread_local int inside_loop;

static struct {
    uint64_t           number;                  /* of the loop; a worker runs each number once */
    int64_t            begin, end;
    int                ranges, left;
    sgk_parallel_body *body;
    void              *context;
} job;

static void run_range(int i)
{
    const int64_t n = job.end - job.begin, each = n / job.ranges, more = n % job.ranges;
    const int64_t begin = job.begin + i * each + (i < more ? i : more);
    inside_loop         = 1;
    job.body(begin, begin + each + (i < more), job.context);
    inside_loop = 0;
}

static void *worker(void *argument)
{
    const int me   = (int)(intptr_t)argument;
    uint64_t  seen = 0;
    pthread_mutex_lock(&pool_lock);
    for (;;) {
        while (job.number == seen) pthread_cond_wait(&pool_wake, &pool_lock);
        seen = job.number;
        if (me >= job.ranges) continue;
        pthread_mutex_unlock(&pool_lock);
        run_range(me);
        pthread_mutex_lock(&pool_lock);
        if (--job.left == 0) pthread_cond_signal(&pool_done);
    }
    return NULL;
}

static int wanted_threads(void)
{
    const char *text = getenv("SGK_NUM_THREADS");
    if (text && *text) {
        char      *end;
        const long n = strtol(text, &end, 10);
        if (*end == 0 && n >= 1 && n <= 4096) return (int)n;
        fprintf(stderr, "sgl_kernel: SGK_NUM_THREADS is '%s', expected 1 to 4096; using the CPUs this process may use\n", text);
    }
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

static void after_fork(void) { forked = 1; }

static void start_pool(void)
{
    const int      wanted = wanted_threads();
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    int       started = 1;
    pthread_t id;
    while (started < wanted && pthread_create(&id, &attributes, worker, (void *)(intptr_t)started) == 0) ++started;
    pthread_attr_destroy(&attributes);
    pthread_atfork(NULL, NULL, after_fork);
    pool_threads = started;
}

int sgk_num_threads(const sgk_exec *exec)
{
    if (SGK_EXEC(exec, parallel_for, NULL))
        return SGK_EXEC(exec, num_threads, NULL) ? exec->num_threads(SGK_EXEC(exec, user, NULL)) : 1;
    if (forked || inside_loop) return 1;
    pthread_once(&pool_once, start_pool);
    return pool_threads;
}

void sgk_parallel_for(const sgk_exec *exec, int64_t begin, int64_t end, int64_t grain, sgk_parallel_body *body, void *context)
{
    if (end <= begin) return;
    if (grain < 1) grain = 1;
    if (SGK_EXEC(exec, parallel_for, NULL)) {
        exec->parallel_for(SGK_EXEC(exec, user, NULL), begin, end, grain, body, context);
        return;
    }
    const int64_t grains = (end - begin - 1) / grain + 1;
    int           idle   = 0;
    if (grains == 1 || sgk_num_threads(NULL) == 1 || !__atomic_compare_exchange_n(&pool_busy, &idle, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
        body(begin, end, context);
        return;
    }
    const int ranges = grains < pool_threads ? (int)grains : pool_threads;
    pthread_mutex_lock(&pool_lock);
    job.number++;
    job.begin = begin, job.end = end, job.ranges = ranges, job.left = ranges - 1, job.body = body, job.context = context;
    pthread_cond_broadcast(&pool_wake);
    pthread_mutex_unlock(&pool_lock);
    run_range(0);
    pthread_mutex_lock(&pool_lock);
    while (job.left) pthread_cond_wait(&pool_done, &pool_lock);
    pthread_mutex_unlock(&pool_lock);
    __atomic_store_n(&pool_busy, 0, __ATOMIC_RELEASE);
}
