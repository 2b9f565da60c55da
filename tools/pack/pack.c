#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "sgk_config.h"
#include "tools/pack/tool.h"

enum { SLOW_MS = 8000,
       SLOWEST = 10 };

static const char usage[] =
    "Usage: sgk-pack --arch=80,90a --out=FOLDER [options]    compile every row of the build tables, one pack an architecture\n"
    "       sgk-pack --list [--arch=...]                     print the rows\n"
    "       sgk-pack --verify PACK...                        read packs and unpack everything in them\n"
    "\n"
    "  --arch=LIST       of 80, 89, 90a, 100f, 120f, and ptx80: the general kernels as PTX, for GPUs newer than every pack\n"
    "  --out=FOLDER      where the packs go\n"
    "  --cache=FOLDER    compiled kernels, by the hash of what they were made from (default: FOLDER of --out)\n"
    "  --nvrtc=PATH      the compiler, libnvrtc.so.12\n"
    "  --source=FOLDER   the repository (default: where this program was built from)\n"
    "  --allow=FILE      remarks of the compiler that are excused\n"
    "  --jobs=N          processes (default: CMAKE_BUILD_PARALLEL_LEVEL, else the CPUs this process may use)\n"
    "  --strict-time     a build of more than 8 seconds is an error, not a warning\n";

static int default_jobs(void)
{
    const char *wanted = getenv("CMAKE_BUILD_PARALLEL_LEVEL");
    if (wanted && atoi(wanted) > 0) return atoi(wanted);
    cpu_set_t cpus;
    return sched_getaffinity(0, sizeof cpus, &cpus) ? 1 : CPU_COUNT(&cpus);
}

static bool choose_archs(const char *list, bool chosen[])
{
    char *copy = strdup(list), *rest = copy;
    for (char *name; copy && (name = strtok_r(NULL, ",; ", &rest)) != NULL;) {
        const sgk_arch *a = sgk_archs;
        while (a->name && strcmp(a->name, name)) ++a;
        if (!a->name) {
            fprintf(stderr, "sgk-pack: --arch has %s, expected 80, 89, 90a, 100f, 120f or ptx80\n", name);
            free(copy);
            return false;
        }
        chosen[a - sgk_archs] = true;
    }
    free(copy);
    return copy != NULL;
}

static bool holds(const sgk_arch *arch, const sgk_kernel *kernel)
{
    return arch->bit ? (kernel->archs & arch->bit) != 0 : sgk_kernel_is_general(kernel);
}

/* Calls `visit` for every row of the chosen architectures until it refuses. */
static bool each_row(const bool chosen[], bool (*visit)(pack_job *, const sgk_arch *, const sgk_kernel *), pack_job *job)
{
    for (const sgk_arch *arch = sgk_archs; arch->name; ++arch) {
        if (!chosen[arch - sgk_archs]) continue;
        for (const sgk_kernel_table *const *family = sgk_kernel_tables; *family; ++family)
            for (const sgk_kernel_table *table = *family; table->rows; ++table)
                for (size_t i = 0; i < table->count; ++i) {
                    const sgk_kernel *kernel = (const sgk_kernel *)((const char *)table->rows + i * table->row_size);
                    if (holds(arch, kernel) && !visit(job, arch, kernel)) return false;
                }
    }
    return true;
}

static bool print_row(pack_job *job, const sgk_arch *arch, const sgk_kernel *kernel)
{
    (void)job;
    printf("%-5s %s %s %s\n", arch->name, kernel->file, kernel->entry, kernel->defines);
    return true;
}

static bool count_row(pack_job *job, const sgk_arch *arch, const sgk_kernel *kernel)
{
    (void)arch, (void)kernel;
    ++job->row_count;
    return true;
}

/* Rows that differ in the entry point alone share a build. */
static size_t build_of(pack_job *job, const sgk_arch *arch, const sgk_kernel *kernel, const sgk_object_key *key)
{
    for (size_t i = job->build_count; i--;)
        if (!strcmp(job->builds[i].key.text, key->text)) return i;
    job->builds[job->build_count] = (pack_build){ .arch = arch, .kernel = kernel, .key = *key };
    return job->build_count++;
}

static bool add_row(pack_job *job, const sgk_arch *arch, const sgk_kernel *kernel)
{
    sgk_object_key key;
    if (sgk_nvrtc_key("sgk-pack", job->source, kernel, arch, &key)) return fprintf(stderr, "%s\n", sgk_last_error()), false;
    job->rows[job->row_count++] = (pack_row){ arch, kernel, build_of(job, arch, kernel, &key) };
    return true;
}

static int by_time(const void *a, const void *b)
{
    const pack_build *x = *(const pack_build *const *)a, *y = *(const pack_build *const *)b;
    return (x->object.milliseconds < y->object.milliseconds) - (x->object.milliseconds > y->object.milliseconds);
}

/* The summary; false when a build is too slow and that is an error. */
static bool report(const pack_job *job)
{
    const pack_build **order    = malloc((job->build_count + 1) * sizeof *order);
    size_t             compiled = 0, slow = 0;
    double             total = 0;
    if (!order) return false;
    for (size_t i = 0; i < job->build_count; ++i) {
        const pack_build *b = order[i] = &job->builds[i];
        compiled += b->compiled;
        if (b->compiled) total += b->object.milliseconds;
        slow += b->object.milliseconds > SLOW_MS;
    }
    printf("sgk-pack: %zu rows, %zu kernels: %zu compiled in %.1f s of CPU time, %zu reused\n", job->row_count, job->build_count, compiled,
           total * 1e-3, job->build_count - compiled);
    if (compiled) {
        qsort(order, job->build_count, sizeof *order, by_time);
        printf("The slowest:    ms  registers\n");
        for (size_t i = 0; i < job->build_count && i < SLOWEST; ++i)
            printf("           %7.0f  %9d  %-5s %s %s\n", order[i]->object.milliseconds, pack_registers(order[i]), order[i]->arch->name,
                   order[i]->kernel->file, order[i]->kernel->defines);
    }
    for (size_t i = 0; i < job->build_count; ++i)
        if (job->builds[i].object.milliseconds > SLOW_MS)
            fprintf(stderr, "sgk-pack: %s: csrc/ops/%s %s for %s takes %.1f s to compile, expected at most %d\n", job->strict_time ? "error" : "warning",
                    job->builds[i].kernel->file, job->builds[i].kernel->defines, job->builds[i].arch->name, job->builds[i].object.milliseconds * 1e-3,
                    SLOW_MS / 1000);
    free(order);
    return !(slow && job->strict_time);
}

static bool make_folder(const char *path)
{
    char part[4096];
    for (const char *at = path; at;) {
        at = strchr(at + 1, '/');
        snprintf(part, sizeof part, "%.*s", at ? (int)(at - path) : (int)strlen(path), path);
        if (mkdir(part, 0777) && errno != EEXIST) return fprintf(stderr, "sgk-pack: cannot make %s: %s\n", part, strerror(errno)), false;
    }
    return true;
}

static bool write_packs(const pack_job *job, const bool chosen[])
{
    for (const sgk_arch *arch = sgk_archs; arch->name; ++arch) {
        if (!chosen[arch - sgk_archs]) continue;
        char        path[4096];
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", job->out, arch->file);
        if (pack_write(job, arch, path) || stat(path, &st)) return fprintf(stderr, "%s\n", sgk_last_error()), false;
        size_t rows = 0, bytes = 0;
        for (size_t i = 0; i < job->row_count; ++i) rows += job->rows[i].arch == arch;
        for (size_t i = 0; i < job->build_count; ++i) bytes += job->builds[i].arch == arch ? job->builds[i].object.size : 0;
        printf("%s: %zu rows, %.2f MB (%.2f MB unpacked)\n", path, rows, (double)st.st_size * 1e-6, (double)bytes * 1e-6);
    }
    return true;
}

static int make(pack_job *job, const bool chosen[])
{
    if (sgk_nvrtc_load("sgk-pack", job->nvrtc)) return fprintf(stderr, "%s\n", sgk_last_error()), 1;
    each_row(chosen, count_row, job);
    job->rows      = calloc(job->row_count + 1, sizeof *job->rows);
    job->builds    = calloc(job->row_count + 1, sizeof *job->builds);
    job->row_count = 0;
    if (!job->rows || !job->builds || !make_folder(job->out) || !make_folder(job->cache)) return 1;
    if (!each_row(chosen, add_row, job) || !pack_compile(job)) return 1;
    const bool fast = report(job), clean = pack_check_remarks(job);
    return fast && clean && write_packs(job, chosen) ? 0 : 1;
}

static bool verify(const char *path)
{
    const char     *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    const sgk_arch *arch = sgk_archs;
    while (arch->name && strcmp(arch->file, name)) ++arch;
    if (!arch->name) return fprintf(stderr, "sgk-pack: %s is named like no pack: sm80.pack, sm90a.pack, ...\n", path), false;
    sgk_pack *pack;
    if (sgk_pack_open("sgk-pack", path, arch->name, &pack)) return fprintf(stderr, "%s\n", sgk_last_error()), false;
    bool good = true;
    for (size_t i = 0; i < sgk_pack_count(pack) && good; ++i) {
        void  *image;
        size_t size;
        good = !sgk_pack_get("sgk-pack", pack, sgk_pack_key(pack, i), &image, &size);
        if (good) free(image);
        else fprintf(stderr, "%s\n", sgk_last_error());
    }
    if (good) printf("%s: %zu kernels for %s, all unpack\n", path, sgk_pack_count(pack), arch->name);
    sgk_pack_close(pack);
    return good;
}

int main(int argc, char **argv)
{
    enum { ARCH = 1,
           OUT,
           CACHE,
           NVRTC,
           SOURCE,
           ALLOW,
           JOBS,
           STRICT,
           LIST,
           VERIFY,
           HELP };
    static const struct option options[] = {
        { "arch", required_argument, NULL, ARCH }, { "out", required_argument, NULL, OUT }, { "cache", required_argument, NULL, CACHE }, { "nvrtc", required_argument, NULL, NVRTC }, { "source", required_argument, NULL, SOURCE }, { "allow", required_argument, NULL, ALLOW }, { "jobs", required_argument, NULL, JOBS }, { "strict-time", no_argument, NULL, STRICT }, { "list", no_argument, NULL, LIST }, { "verify", no_argument, NULL, VERIFY }, { "help", no_argument, NULL, HELP }, { 0 }
    };
    pack_job job        = { .source = SGK_SOURCE_DIR, .jobs = default_jobs() };
    bool     chosen[16] = { false }, any = false, list = false, verifying = false;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (c) {
        case ARCH:
            if (!choose_archs(optarg, chosen)) return 2;
            any = true;
            break;
        case OUT:    job.out = optarg; break;
        case CACHE:  job.cache = optarg; break;
        case NVRTC:  job.nvrtc = optarg; break;
        case SOURCE: job.source = optarg; break;
        case ALLOW:  job.allow = optarg; break;
        case JOBS:   job.jobs = atoi(optarg); break;
        case STRICT: job.strict_time = true; break;
        case LIST:   list = true; break;
        case VERIFY: verifying = true; break;
        case HELP:   fputs(usage, stdout); return 0;
        default:     fputs(usage, stderr); return 2;
        }
    }
    if (verifying) {
        bool good = optind < argc;
        for (int i = optind; i < argc; ++i) good = verify(argv[i]) && good;
        return good ? 0 : 1;
    }
    for (const sgk_arch *a = sgk_archs; list && !any && a->name; ++a) chosen[a - sgk_archs] = a->bit != 0;
    if (list) return each_row(chosen, print_row, &job) ? 0 : 1;
    if (!any || !job.out || job.jobs < 1 || optind < argc) {
        fputs(usage, stderr);
        return 2;
    }
    if (!job.cache) job.cache = job.out;
    return make(&job, chosen);
}
