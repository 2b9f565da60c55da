/*
 * sgk-check --jobs=N: N processes, each of which walks over all levels and families and takes the cases that no other has taken yet. What they
 * find comes through one pipe, in records below PIPE_BUF, which arrive whole. Figures of the GPU are taken in turns: one process at a time has
 * it, from the first copy of a case to its last figure, while the others fill tensors and compute and compare references.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include "harness.h"

typedef struct {
    enum { FAMILY,
           OPERATOR,
           FAILURE,
           LAUNCH,
           FIGURE,
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
        const void  *launched;
        check_figure figure;
    };
} record;
_Static_assert(sizeof(record) <= PIPE_BUF, "a record may be torn apart");

enum { MOST_JOBS  = 64,
       MOST_CASES = 1 << 14 };
int          job_count = 1, job_number;
static int   to_parent = -1;
static pid_t children[MOST_JOBS];

/* ---- what the processes share: which cases are taken, and whose turn it is ---- */
static atomic_char *taken;                      /* [level][family][case] */
static size_t       first_case;                 /* of this level and family */
static int          turn = -1;                  /* a file without content: who has locked it has the GPU; a process that ends gives it back */
static bool         my_turn;

void *job_shared(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory != MAP_FAILED) return memory;
    fprintf(stderr, "sgk-check: no memory to share: %s\n", strerror(errno));
    exit(1);
}

void job_starts(int family, int at_level) { first_case = (size_t)(at_level * JOB_FAMILIES + family) * MOST_CASES; }

int64_t job_order(void) { return (int64_t)first_case + case_number; }

bool job_takes(int number) { return !taken || !atomic_exchange(&taken[first_case + (size_t)number % MOST_CASES], 1); }

static void lock_turn(short kind)
{
    while (fcntl(turn, F_SETLKW, &(struct flock){ .l_type = kind, .l_whence = SEEK_SET }) < 0 && errno == EINTR) {}
}

void job_turn_begin(void)
{
    if (turn < 0 || my_turn) return;
    lock_turn(F_WRLCK);
    my_turn = true;
}

void job_turn_end(void)
{
    if (my_turn) lock_turn(F_UNLCK);
    my_turn = false;
}

bool job_my_turn(void) { return my_turn; }

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

bool job_figure(const check_figure *f)
{
    if (to_parent < 0) return false;
    tell(&(record){ .kind = FIGURE, .figure = *f });
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
    setenv("SGK_NUM_THREADS", check_benching ? "1" : "2", 0);          /* the machine's processors are shared; whoever has the GPU should not wait for one */
    taken = job_shared((size_t)JOB_LEVELS * JOB_FAMILIES * MOST_CASES);
    if (check_benching) {
        FILE *file = tmpfile();
        turn       = file ? fileno(file) : -1;
        if (turn < 0) {
            fprintf(stderr, "sgk-check: --jobs: no temporary file: %s\n", strerror(errno));
            exit(1);
        }
        bench_share();
    }
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
        case FIGURE:   bench_add(&r.figure); break;
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
