/* Compiling in several processes: NVRTC has global state, and a crash of the compiler must name its source. */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include "tools/pack/tool.h"

enum { MOST_FAILURES = 5 };                 /* then no further build is begun: an error in a header breaks them all */
enum { WAITING,
       BEGUN,
       DONE,
       FAILED };

typedef struct {
    atomic_size_t next;
    atomic_int    failures;
    atomic_char   state[];
} shared_state;

static void describe(const pack_build *b, char *text, size_t size)
{
    snprintf(text, size, "%-5s %s %s", b->arch->name, b->kernel->file, b->kernel->defines);
}

static bool compile_one(const pack_job *job, pack_build *b)
{
    sgk_object object;
    sgk_status status = sgk_nvrtc_compile("sgk-pack", job->source, b->kernel, b->arch, &object);
    if (status) {
        fprintf(stderr, "\nsgk-pack: csrc/ops/%s does not compile for %s with %s\n%s\n", b->kernel->file, b->arch->name, b->kernel->defines,
                object.log && *object.log ? object.log : sgk_last_error());
    } else {
        status = sgk_object_write("sgk-pack", job->cache, &b->key, &object);
        if (status) fprintf(stderr, "%s\n", sgk_last_error());
    }
    sgk_object_free(&object);
    return status == SGK_OK;
}

static void work(const pack_job *job, const size_t *missing, size_t count, shared_state *shared, int progress)
{
    for (;;) {
        const size_t i = atomic_fetch_add(&shared->next, 1);
        if (i >= count || shared->failures >= MOST_FAILURES) break;
        shared->state[i] = BEGUN;
        const bool good  = compile_one(job, &job->builds[missing[i]]);
        if (!good) ++shared->failures;
        shared->state[i] = good ? DONE : FAILED;
        if (write(progress, &i, sizeof i) != sizeof i) break;
    }
    _exit(0);
}

/* One line that is rewritten on a terminal, a line for every tenth of the work elsewhere. */
static void show(const pack_job *job, size_t build, size_t done, size_t count)
{
    char text[160];
    describe(&job->builds[build], text, sizeof text);
    if (isatty(STDOUT_FILENO))
        printf("\r\033[K[%zu/%zu] %.100s%s", done, count, text, done == count ? "\n" : "");
    else if (done == count || done * 10 / count != (done - 1) * 10 / count)
        printf("sgk-pack: %zu of %zu kernels compiled\n", done, count);
    fflush(stdout);
}

static bool run_workers(const pack_job *job, const size_t *missing, size_t count, shared_state *shared)
{
    int ends[2];
    if (pipe(ends)) return fprintf(stderr, "sgk-pack: no pipe: %s\n", strerror(errno)), false;
    fflush(NULL);
    for (int i = 0; i < job->jobs && (size_t)i < count; ++i) {
        const pid_t child = fork();
        if (child < 0) {
            fprintf(stderr, "sgk-pack: no process: %s\n", strerror(errno));
            if (i == 0) return false;
            break;                          /* fewer of them do as well */
        }
        if (child == 0) {
            close(ends[0]);
            work(job, missing, count, shared, ends[1]);
        }
    }
    close(ends[1]);
    size_t done = 0;
    for (size_t i; read(ends[0], &i, sizeof i) == sizeof i;) show(job, missing[i], ++done, count);
    close(ends[0]);
    while (wait(NULL) > 0) {}
    for (size_t i = 0; i < count; ++i) {
        if (shared->state[i] != BEGUN) continue;
        char text[512];
        describe(&job->builds[missing[i]], text, sizeof text);
        fprintf(stderr, "sgk-pack: the compiler crashed on %s\n", text);
    }
    return done == count && shared->failures == 0;
}

bool pack_compile(pack_job *job)
{
    size_t *missing = malloc((job->build_count + 1) * sizeof *missing), count = 0;
    if (!missing) return false;
    for (size_t i = 0; i < job->build_count; ++i)
        if (!sgk_object_read(job->cache, &job->builds[i].key, &job->builds[i].object)) missing[count++] = i;

    bool good = true;
    if (count) {
        const size_t  size   = sizeof(shared_state) + count;
        shared_state *shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        good                 = shared != MAP_FAILED && run_workers(job, missing, count, shared);
        if (shared != MAP_FAILED) munmap(shared, size);
    }
    for (size_t i = 0; good && i < count; ++i) {
        pack_build *b = &job->builds[missing[i]];
        b->compiled   = true;
        good          = sgk_object_read(job->cache, &b->key, &b->object);
        if (!good) fprintf(stderr, "sgk-pack: %s/%s was just written and cannot be read\n", job->cache, b->key.text);
    }
    free(missing);
    return good;
}
