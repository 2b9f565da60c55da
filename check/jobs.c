/*
 * sgk-check --jobs=N: the cases dealt out to N processes, each of which walks over all levels and families and takes every Nth case. What they
 * find comes through one pipe, in records below PIPE_BUF, which arrive whole.
 */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "harness.h"

typedef struct {
    enum { FAMILY,
           OPERATOR,
           FAILURE,
           LAUNCH,
           END } kind;
    union {
        struct {
            int    family, level, cases, failed;
            double seconds;
        } family;
        struct {
            int            at;
            check_operator counts;
        } operator;
        struct {
            char label[LABEL], level[16], text[1200];
        } failure;
        const void *launched;
    };
} record;
_Static_assert(sizeof(record) <= PIPE_BUF, "a record may be torn apart");

enum { MOST_JOBS = 64 };
int          job_count = 1, job_number;
static int   to_parent = -1;
static pid_t children[MOST_JOBS];

static void tell(const record *r)
{
    if (write(to_parent, r, sizeof *r) != (ssize_t)sizeof *r) _exit(3);         /* nobody listens any more */
}

bool job_family_done(int family, int at_level, int cases, int failed, double seconds)
{
    if (to_parent < 0) return false;
    tell(&(record){ .kind = FAMILY, .family = { family, at_level, cases, failed, seconds } });
    return true;
}

static void tell_operator(int at, const check_operator *counts) { tell(&(record){ .kind = OPERATOR, .operator = { at, *counts } }); }

static void tell_failure(const char *of, const char *at_level, const char *text)
{
    record r = { .kind = FAILURE };
    snprintf(r.failure.label, sizeof r.failure.label, "%s", of);
    snprintf(r.failure.level, sizeof r.failure.level, "%s", at_level);
    snprintf(r.failure.text, sizeof r.failure.text, "%s", text);
    tell(&r);
}

static void tell_launch(const void *kernel) { tell(&(record){ .kind = LAUNCH, .launched = kernel }); }

static void child(int number, int pipe_end, void (*work)(void))
{
    job_number = number, to_parent = pipe_end;
    work();
    report_each_operator(tell_operator);
    report_each_failure(tell_failure);
    gpu_each_launch(tell_launch);
    tell(&(record){ .kind = END });
    fflush(stdout);
    _exit(0);
}

/* One line for a family and level once all jobs are through with it. */
static void family_line(const record *r)
{
    static struct {
        int    jobs, cases, failed;
        double seconds;
    } all[JOB_FAMILIES][JOB_LEVELS];
    const int family = r->family.family, at_level = r->family.level;
    all[family][at_level].cases += r->family.cases;
    all[family][at_level].failed += r->family.failed;
    if (r->family.seconds > all[family][at_level].seconds) all[family][at_level].seconds = r->family.seconds;
    if (++all[family][at_level].jobs == job_count)
        print_family(family, at_level, all[family][at_level].cases, all[family][at_level].failed, all[family][at_level].seconds);
}

static void stop(int signal_number)
{
    for (int i = 0; i < job_count; ++i)
        if (children[i] > 0) kill(children[i], SIGTERM);
    _exit(128 + signal_number);
}

bool run_jobs(void (*work)(void))
{
    int ends[2], done = 0;
    if (job_count > MOST_JOBS) job_count = MOST_JOBS;
    if (pipe(ends)) {
        fprintf(stderr, "sgk-check: --jobs: no pipe: %s\n", strerror(errno));
        exit(1);
    }
    setenv("SGK_NUM_THREADS", "2", 0);          /* the machine's processors are shared */
    fflush(stdout);
    for (int i = 0; i < job_count; ++i) {
        children[i] = fork();
        if (children[i] == 0) {
            close(ends[0]);
            child(i, ends[1], work);
        }
        if (children[i] < 0) {
            fprintf(stderr, "sgk-check: --jobs: process %d of %d cannot be started: %s\n", i + 1, job_count, strerror(errno));
            stop(0);
        }
    }
    signal(SIGINT, stop), signal(SIGTERM, stop);
    close(ends[1]);
    record  r;
    ssize_t got;
    while ((got = read(ends[0], &r, sizeof r)) != 0) {
        if (got < 0 && errno == EINTR) continue;
        if (got != (ssize_t)sizeof r) break;
        switch (r.kind) {
        case FAMILY:   family_line(&r); break;
        case OPERATOR: report_add_operator(r.operator.at, &r.operator.counts); break;
        case FAILURE:  report_add_failure(r.failure.label, r.failure.level, r.failure.text); break;
        case LAUNCH:   gpu_add_launch(r.launched); break;
        case END:      ++done; break;
        }
    }
    close(ends[0]);
    for (int i = 0; i < job_count; ++i) {
        int status;
        while (waitpid(children[i], &status, 0) < 0 && errno == EINTR) {}
    }
    snprintf(label, sizeof label, "jobs");
    case_failed = false;
    if (done != job_count) fail("%d of %d processes did not come to their end", job_count - done, job_count);
    return done == job_count;
}
