/*
 * The compiler's remarks. ptxas -v says for every function
 *
 *     ptxas info    : Function properties for rmsnorm
 *     ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
 *     ptxas info    : Used 32 registers, ...
 *
 * A stack frame or a spill means local memory in a kernel that was meant to live in registers; a serialised wgmma or an ignored setmaxnreg
 * means a pipeline that does not overlap. Each is an error unless a line of the allow-list excuses it:
 *
 *     ARCH FILE FUNCTION MACROS : reason          wildcards as in file names
 */
#include <ctype.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tools/pack/tool.h"

enum { MAX_EXCUSES = 256 };
typedef struct {
    char *arch, *file, *function, *macros, *reason;
    int   line;
    bool  used;
} excuse;

typedef struct {
    excuse excuses[MAX_EXCUSES + 1];
    int    count, complaints;
} remarks;

int pack_registers(const pack_build *b)
{
    int most = 0, n;
    for (const char *at = b->object.log; (at = strstr(at, ": Used ")); ++at)
        if (sscanf(at, ": Used %d registers", &n) == 1 && n > most) most = n;
    return most;
}

static char *word(char **rest, const char *ends)
{
    char *start = *rest + strspn(*rest, " \t");
    char *end   = start + strcspn(start, ends);
    *rest       = *end ? end + 1 : end;
    *end        = 0;
    while (end > start && isspace((unsigned char)end[-1])) *--end = 0;
    return *start ? start : NULL;
}

static bool read_excuses(remarks *r, const char *path)
{
    FILE *file = fopen(path, "r");
    if (!file) return fprintf(stderr, "sgk-pack: cannot read the allow-list %s\n", path), false;
    char  *text = NULL;
    size_t size = 0;
    for (int line = 1; getline(&text, &size, file) > 0; ++line) {
        char *rest = text + strspn(text, " \t\n");
        if (*rest == 0 || *rest == '#') continue;
        rest      = r->count < MAX_EXCUSES ? strdup(rest) : NULL;
        excuse *e = &r->excuses[r->count];
        if (rest) {
            e->line     = line;
            e->arch     = word(&rest, " \t");
            e->file     = word(&rest, " \t");
            e->function = word(&rest, " \t");
            e->macros   = word(&rest, ":");
            e->reason   = word(&rest, "\n");
        }
        if (!rest || !e->reason) {
            fprintf(stderr, "%s:%d: expected ARCH FILE FUNCTION MACROS : reason\n", path, line);
            ++r->complaints;
            continue;
        }
        ++r->count;
    }
    free(text);
    fclose(file);
    return true;
}

static bool matches(const char *pattern, const char *text) { return !fnmatch(pattern, text, 0); }

static bool concerns(const excuse *e, const pack_build *b)
{
    return matches(e->arch, b->arch->name) && matches(e->file, b->kernel->file) && matches(e->macros, b->kernel->defines);
}

static void found(remarks *r, const pack_build *b, const char *function, const char *remark)
{
    bool excused = false;
    for (int i = 0; i < r->count; ++i) {
        excuse *e = &r->excuses[i];
        if (concerns(e, b) && matches(e->function, function)) excused = e->used = true;
    }
    if (excused) return;
    ++r->complaints;
    fprintf(stderr, "sgk-pack: csrc/ops/%s: %s %s for %s: %s\n", b->kernel->file, function, b->kernel->defines, b->arch->name, remark);
}

/* The name that follows `prefix` in the text; the old one where it does not occur. */
static void take_name(char name[256], const char *text, const char *prefix)
{
    const char *at = strstr(text, prefix);
    if (at) snprintf(name, 256, "%.*s", (int)strcspn(at + strlen(prefix), "' "), at + strlen(prefix));
}

static void read_log(remarks *r, const pack_build *b)
{
    char function[256] = "?";
    for (const char *line = b->object.log; *line; line += strspn(line, "\n")) {
        const int length = (int)strcspn(line, "\n");
        char      text[1024];
        snprintf(text, sizeof text, "%.*s", length, line);
        line += length;
        take_name(function, text, "function '");                    /* "Compiling entry function 'rmsnorm' for" and other remarks */
        take_name(function, text, "Function properties for ");

        int         stack, stores, loads;
        const char *numbers = text + strcspn(text, "0123456789");
        if (strstr(text, "bytes stack frame")) {
            const int n = sscanf(numbers, "%d bytes stack frame, %d bytes spill stores, %d bytes spill loads", &stack, &stores, &loads);
            if (n != 3 || stack || stores || loads) found(r, b, function, numbers);
        }
        if (strstr(text, "wgmma") && strstr(text, "serialize")) found(r, b, function, text);
        if (strstr(text, "setmaxnreg") && strstr(text, "ignored")) found(r, b, function, text);
    }
}

/* A line is stale when builds of this run are what it speaks of, and none needed it. A run for other architectures proves nothing. */
static void report_stale(remarks *r, const pack_job *job)
{
    for (int i = 0; i < r->count; ++i) {
        const excuse *e    = &r->excuses[i];
        bool          arch = false, family = false, concerned = false;
        const int     folder = (int)strcspn(e->file, "/");
        for (size_t j = 0; j < job->build_count; ++j) {
            const pack_build *b = &job->builds[j];
            arch |= matches(e->arch, b->arch->name);
            family |= !strncmp(e->file, b->kernel->file, (size_t)folder + 1);
            concerned |= concerns(e, b);
        }
        if (e->used || !(concerned || (arch && family))) continue;
        ++r->complaints;
        fprintf(stderr, "%s:%d: excuses nothing any more: %s %s %s %s\n", job->allow, e->line, e->arch, e->file, e->function, e->macros);
    }
}

bool pack_check_remarks(const pack_job *job)
{
    static remarks r;
    if (job->allow && !read_excuses(&r, job->allow)) return false;
    for (size_t i = 0; i < job->build_count; ++i) read_log(&r, &job->builds[i]);
    report_stale(&r, job);
    return r.complaints == 0;
}
