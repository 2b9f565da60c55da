/* sgk-check: options, and the walk over levels and families. */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include "check/front.h"
#include "check/pack_check.h"
#include "harness.h"
#include "sgk_config.h"

bool               check_small, check_benching;
uint64_t           check_seed;
const check_level *level;
bool               first_level;

static const check_level levels[] = {
    { "ref", 0, false },
#define LEVEL(name, flags) { #name, flags, false },
    SGK_CPU_LEVELS(LEVEL)
#undef LEVEL
        { "cuda", ~0u, true },
};
enum { LEVELS = sizeof levels / sizeof *levels };
#define NAME(name, flags) #name ", "
#define LEVEL_NAMES       "ref, " SGK_CPU_LEVELS(NAME) "cuda"
static bool    level_asked[LEVELS], any_level_asked, large_only;
int            shape_dimensions;
static int64_t shape_sizes[8];
static int     shape_family;

/* Weak: a family without a check is reported by name instead of by the linker; most have no shapes to choose by. */
#define FAMILY(name) \
    void check_##name(void) __attribute__((weak)); \
    void shape_##name(const int64_t *sizes, int count) __attribute__((weak));
SGK_FAMILIES(FAMILY)
#undef FAMILY

static const struct {
    const char *name;
    void (*check)(void);
    void (*shape)(const int64_t *sizes, int count);
} families[] = {
    { "base", check_base, NULL }, { "formats", check_formats, NULL },
#define FAMILY(name) { #name, check_##name, shape_##name },
    SGK_FAMILIES(FAMILY)
#undef FAMILY
};
enum { FAMILIES = sizeof families / sizeof *families };
_Static_assert((int)FAMILIES < (int)JOB_FAMILIES && (int)LEVELS <= (int)JOB_LEVELS, "jobs.c counts by family and level");

/* ---- a crash is a failed case with a name ---- */
static sigjmp_buf crash;
static pthread_t  main_thread;

/* Where the run can go on it does. It cannot when another thread died, which the main thread waits for, when the C library found its heap
 * broken (SIGABRT; it holds its locks then), and when a case does not end (SIGALRM). */
static void on_crash(int signal_number)
{
    if (pthread_equal(pthread_self(), main_thread) && signal_number != SIGABRT && signal_number != SIGALRM) siglongjmp(crash, signal_number);
    char      text[LABEL + 100];
    const int n = snprintf(text, sizeof text, "FAILURE: %s at %s: %s%s; the run ends here\n", label, level ? level->name : "start",
                           signal_number == SIGALRM ? "does not end" : strsignal(signal_number),
                           pthread_equal(pthread_self(), main_thread) ? "" : " in another thread");
    if (write(STDOUT_FILENO, text, (size_t)n) < 0) {}
    _exit(1);
}

static void catch_crashes(void)
{
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)     /* their reports say more */
    static char stack[1 << 16];
    sigaltstack(&(stack_t){ .ss_sp = stack, .ss_size = sizeof stack }, NULL);
    static const int signals[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGALRM };
    fflush(stdout);
    struct sigaction action = { .sa_handler = on_crash, .sa_flags = SA_ONSTACK | SA_NODEFER };
    for (size_t i = 0; i < sizeof signals / sizeof *signals; ++i) sigaction(signals[i], &action, NULL);
#else
    (void)on_crash;
#endif
}

bool run_guarded(const char *family, void (*check)(void))
{
    case_number = 0;
    random_start_family(family);
    const int signal_number = sigsetjmp(crash, 1);
    if (signal_number) {
        fail("crashed with signal %d (%s)", signal_number, strsignal(signal_number));
        call_forget();
        tensors_free();
        return false;
    }
    check();
    return true;
}

void print_family(int family, int at_level, int cases, int failed, double seconds)
{
    if (!cases) return;
    printf("%-12s %-11s %5d cases, %d failed, %.1f s\n", family < FAMILIES ? families[family].name : "large", levels[at_level].name, cases, failed, seconds);
    fflush(stdout);
}

/* Once more from the case behind a crash, until the family ends by itself. */
static void run_family(int number, void (*check)(void))
{
    const char *family = number < FAMILIES ? families[number].name : "large";
    int         before, failed_before, after, failed_after;
    report_counts(&before, &failed_before);
    const double start = clock_now();
    resume_after       = 0;
    job_starts(number, (int)(level - levels));
    while (!run_guarded(family, check)) resume_after = case_number;
    resume_after = 0;
    report_counts(&after, &failed_after);
    const double seconds = clock_now() - start;
    if (!listing && !versions_wanted && !job_family_done(number, (int)(level - levels), after - before, failed_after - failed_before, seconds))
        print_family(number, (int)(level - levels), after - before, failed_after - failed_before, seconds);
}

static void check_shape(void) { families[shape_family].shape(shape_sizes, shape_dimensions); }

static bool level_present(const check_level *l, unsigned have)
{
    if (!l->gpu) return !(l->flags & ~have);
    job_turn_begin();
    const bool present = gpu_present();
    job_turn_end();
    return present;
}

static void run_levels(void)
{
    sgk_cpu_mask(~0u);
    const unsigned have = sgk_cpu_flags();
    const char    *best = sgk_cpu_level_name();
    first_level         = true;
    for (int l = 0; l < LEVELS; ++l) {
        if (any_level_asked && !level_asked[l]) continue;
        if (!level_present(&levels[l], have)) {
            if (!job_number) printf("%s: not on this machine%s%s\n", levels[l].name, levels[l].gpu ? ": " : "", levels[l].gpu ? gpu_error() : "");
            continue;
        }
        /* Which version would run: on the best CPU level and on the GPU. */
        if (versions_wanted && !any_level_asked && !levels[l].gpu && strcmp(levels[l].name, best)) continue;
        level = &levels[l];
        sgk_cpu_mask(level->flags);
        if (large_only) {
            run_family(FAMILIES, check_large);
            continue;
        }
        if (shape_dimensions) {
            for (shape_family = 0; shape_family < FAMILIES; ++shape_family)
                if (families[shape_family].shape) run_family(shape_family, check_shape);
            continue;
        }
        if (level->gpu) gpu_watch_launches();
        for (int f = 0; f < FAMILIES; ++f) {
            if (level->gpu && f < 2) continue;              /* base and formats are about the CPU */
            if (families[f].check) run_family(f, families[f].check);
            else if (first_level && !only_count && !job_number) snprintf(label, sizeof label, "%s", families[f].name), case_failed = false, fail("family %s has no check", families[f].name);
        }
        first_level = false;
        if (listing) break;
    }
}

/* Figures of the CPU want all of it. */
static bool only_gpu_asked(void)
{
    for (int l = 0; l < LEVELS - 1; ++l)
        if (level_asked[l]) return false;
    return level_asked[LEVELS - 1];
}

/* What all cases together must have reached. */
static void report_what_is_missing(unsigned have)
{
    const check_level *gpu = &levels[LEVELS - 1];
    if (only_count || versions_wanted || bench_least) return;
    if ((!any_level_asked || level_asked[LEVELS - 1]) && level_present(gpu, have)) level = gpu, gpu_report_rows();
    if (!check_once) report_missing_checks();
}

/* ---- options ---- */
static void usage(FILE *f)
{
    fprintf(f, "sgk-check [options]: compares every operator with its reference on this machine\n"
               "  --only=TEXT      cases whose name contains TEXT (may be repeated)\n"
               "  --level=LEVEL    " LEVEL_NAMES " (may be repeated; all by default)\n"
               "  --seed=N         the random numbers of an earlier run\n"
               "  --jobs=N         N processes, which share the cases; with --bench only those of the GPU, which they have in turns\n"
               "  --threads=N      threads of the library's own pool\n"
               "  --small          the smallest shapes that reach every branch, for sanitizers\n"
               "  --random=N       so many random cases of operators that have such\n"
               "  --keep-arguments does not break them, which on a GPU takes most of the time\n"
               "  --once           as many cases as reach every build for the GPU, beside the reference and a second time, no more: for racecheck\n"
               "  --exhaustive     number formats: all 2^32 patterns (minutes)\n"
               "  --bench          figures, and the large shapes\n"
               "  --bench-from=MB  figures of cases whose tensors take at least so much, and no other cases\n"
               "  --large          instead of all this, tensors of more than 2^31 and 2^32 elements (on the GPU, unless --level says otherwise: 30 GB)\n"
               "  --ceilings=DEVICE:COPY,READ,MATRIX   what another library reached on cpu or cuda, bytes and bf16 operations a second\n"
               "  --list           operators and their number of cases\n"
               "  --versions       which version of each operator runs on each device, and why\n"
               "  --shape=A,B,...  the same for one shape: rows, columns, depth of linear\n"
               "  --tune=FILE      writes FILE, the builds of linear that were fastest on this GPU (csrc/ops/gemm/gemm_table.def); with --shape=M,N,K, of that\n"
               "                   shape, with --shape=I from the grid's I-th on\n"
               "  --costs=FILE     writes FILE, what the builds of linear cost on this GPU (csrc/ops/gemm/gemm_costs.def)\n"
               "  --self-test      broken functions that must be reported\n"
               "  --pack=FILE      damages copies of a pack in every way: each must be refused\n"
               "  --json=FILE      results\n");
}

static uint64_t number(const char *option, const char *text)
{
    char                    *end;
    const unsigned long long n = strtoull(text, &end, 0);
    if (*text && !*end) return n;
    fprintf(stderr, "sgk-check: --%s=%s is no number\n", option, text);
    exit(2);
}

/* Up to 8 sizes, each at least 1. */
static void ask_shape(const char *text)
{
    const char *at = text;
    do {
        char *end;
        errno                = 0;
        const long long size = strtoll(at, &end, 10);
        const bool      good = end > at && size > 0 && !errno && (!*end || *end == ',') && shape_dimensions < 8;
        if (!good) {
            fprintf(stderr, "sgk-check: --shape=%s is not a list of 1 to 8 sizes\n", text);
            exit(2);
        }
        shape_sizes[shape_dimensions++] = size;
        at                              = *end ? end + 1 : NULL;
    } while (at);
    versions_wanted = true;
}

static void ask_level(const char *name)
{
    for (int l = 0; l < LEVELS; ++l)
        if (!strcmp(name, levels[l].name)) {
            level_asked[l] = any_level_asked = true;
            return;
        }
    fprintf(stderr, "sgk-check: --level=%s is none of " LEVEL_NAMES "\n", name);
    exit(2);
}

bool check_exhaustive, check_keep_arguments, check_once;
int  check_random_cases;

static int report_pack(const char *path)
{
#if SGK_HAVE_CUDA
    const int failures = check_pack(path, 300);
    printf("%s: %d of its damaged copies were not refused as they should\n", path, failures);
    return failures != 0;
#else
    printf("sgk-check: --pack=%s: this build has no GPU code\n", path);
    return 2;
#endif
}

int sgk_check_main(int argc, char **argv)
{
    enum { ONLY = 1,
           LEVEL,
           SEED,
           JOBS,
           THREADS,
           SMALL,
           RANDOM,
           KEEP,
           ONCE,
           EXHAUSTIVE,
           BENCH,
           LARGE,
           BENCH_FROM,
           CEILINGS,
           LIST,
           VERSIONS,
           SHAPE,
           SELF_TEST,
           TUNE,
           COSTS,
           JSON,
           PACK,
           PRINT_THREADS,
           HELP };
    static const struct option options[] = {
        { "only", required_argument, NULL, ONLY },
        { "level", required_argument, NULL, LEVEL },
        { "seed", required_argument, NULL, SEED },
        { "jobs", required_argument, NULL, JOBS },
        { "threads", required_argument, NULL, THREADS },
        { "small", no_argument, NULL, SMALL },
        { "random", required_argument, NULL, RANDOM },
        { "keep-arguments", no_argument, NULL, KEEP },
        { "once", no_argument, NULL, ONCE },
        { "exhaustive", no_argument, NULL, EXHAUSTIVE },
        { "bench", no_argument, NULL, BENCH },
        { "large", no_argument, NULL, LARGE },
        { "bench-from", required_argument, NULL, BENCH_FROM },
        { "ceilings", required_argument, NULL, CEILINGS },
        { "list", no_argument, NULL, LIST },
        { "versions", no_argument, NULL, VERSIONS },
        { "shape", required_argument, NULL, SHAPE },
        { "tune", required_argument, NULL, TUNE },
        { "costs", required_argument, NULL, COSTS },
        { "self-test", no_argument, NULL, SELF_TEST },
        { "json", required_argument, NULL, JSON },
        { "help", no_argument, NULL, HELP },
        { "print-threads", no_argument, NULL, PRINT_THREADS },
        { "pack", required_argument, NULL, PACK },
        { NULL, 0, NULL, 0 },
    };
    check_seed               = (uint64_t)time(NULL);
    bool        self_testing = false;
    const char *json = NULL, *tune = NULL, *costs = NULL;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case ONLY:
            if (only_count < 64) only[only_count++] = optarg;
            break;
        case LEVEL:      ask_level(optarg); break;
        case SEED:       check_seed = number("seed", optarg); break;
        case JOBS:       job_count = (int)number("jobs", optarg); break;
        case THREADS:    number("threads", optarg), setenv("SGK_NUM_THREADS", optarg, 1); break;
        case SMALL:      check_small = true; break;
        case RANDOM:     check_random_cases = (int)number("random", optarg); break;
        case KEEP:       check_keep_arguments = true; break;
        case ONCE:       check_once = true; break;
        case EXHAUSTIVE: check_exhaustive = true; break;
        case BENCH:      check_benching = true; break;
        case LARGE:      large_only = true; break;
        case BENCH_FROM: bench_least = (size_t)number("bench-from", optarg) << 20, check_benching = true; break;
        case CEILINGS:
            if (bench_ceilings(optarg)) break;
            fprintf(stderr, "sgk-check: --ceilings=%s is not cpu: or cuda: and three numbers\n", optarg);
            return 2;
        case LIST:          listing = true; break;
        case VERSIONS:      versions_wanted = true; break;
        case SHAPE:         ask_shape(optarg); break;
        case TUNE:          tune = optarg; break;
        case COSTS:         costs = optarg; break;
        case SELF_TEST:     self_testing = true; break;
        case PACK:          return report_pack(optarg);
        case PRINT_THREADS: printf("%d\n", sgk_num_threads(NULL)); return 0;      /* for the check of SGK_NUM_THREADS */
        case JSON:          json = optarg; break;
        case HELP:          usage(stdout); return 0;
        default:            usage(stderr); return 2;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "sgk-check: %s is no option\n", argv[optind]);
        return 2;
    }
    main_thread = pthread_self();
    sgk_cpu_mask(~0u);
    const unsigned have = sgk_cpu_flags();
    catch_crashes();
    printf("seed %llu\n", (unsigned long long)check_seed);
    if (self_testing) return self_test();
    if (tune && tune_gemm) return tune_gemm(tune, shape_dimensions == 3 ? shape_sizes : NULL, shape_dimensions == 1 ? (int)shape_sizes[0] : 0);
    if (costs && cost_gemm) return cost_gemm(costs);

    if (large_only && !any_level_asked) ask_level("cuda");
    bool all = true;
    if (job_count > 1 && !listing && !versions_wanted && (!check_benching || only_gpu_asked())) all = run_jobs(run_levels);
    else job_count = 1, run_levels();
    if (listing) {
        report_list();
        return 0;
    }
    if (versions_wanted) versions_print(NULL);
    if (all && !large_only) report_what_is_missing(have);
    if (check_benching && job_count > 1) gpu_present();         /* its name */
    if (json && !report_json(json)) return 1;
    int cases, failed;
    report_counts(&cases, &failed);
    if (!cases) printf("no case was run%s\n", shape_dimensions ? ": no operator that --only names takes a shape of so many sizes"
                                              : only_count     ? ": no name contains what --only says; names begin with an operator's, see --list"
                                                               : "");
    printf("%d cases, %d failed\n", cases, failed);
    return failed != 0 || !cases;
}
