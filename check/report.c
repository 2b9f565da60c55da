/* Which cases ran, what failed, and which operator has no check. */
#include <stdlib.h>
#include <unistd.h>
#include "harness.h"
#include "sgk_config.h"

enum { CPU          = 1,
       CUDA         = 2,
       CASE_SECONDS = 300 };
static check_operator operators[] = {
#define OP(name, devices, schema, call) { #name, #call, devices, 0, 0, 0, 0 },
#define OVERLOAD(name, overload, devices, schema, call)
#include "ops.def"
#undef OP
#undef OVERLOAD
    { NULL, NULL, 0, 0, 0, 0, 0 },
};

char        label[LABEL];
bool        case_failed, listing;
const char *only[64];
int         only_count, case_number, resume_after;

static int cases, failed_cases;
static struct {
    char  label[LABEL], level[16];
    char *text;
}         *failures;
static int failure_count, failure_room;

static bool expecting;                      /* the self-test */
static char expected_text[8192];

/* The operator whose name the case begins with; the longest of them. */
check_operator *operator_named(const char *case_label)
{
    check_operator *best    = NULL;
    size_t          longest = 0;
    for (check_operator *o = operators; o->name; ++o) {
        const size_t n = strlen(o->name);
        if (!strncmp(case_label, o->name, n) && case_label[n] == '_' && n > longest) best = o, longest = n;
    }
    return best;
}

const char *operator_of_case(void)
{
    if (expecting) return "selftest";
    const check_operator *o = operator_named(label);
    return o ? o->name : NULL;
}

bool wanted(const char *case_label)
{
    if (!only_count) return true;
    for (int i = 0; i < only_count; ++i)
        if (strstr(case_label, only[i])) return true;
    return false;
}

/* With --once and --bench-from call.c says which cases run, and counts them; with --once it also deals them. */
static bool counted;
static bool dealt_later(void) { return check_once && level && level->gpu; }
static bool counted_later(void) { return dealt_later() || bench_least; }

void count_case(void)
{
    check_operator *o = counted ? NULL : operator_named(label);
    cases += !counted;
    if (o) o->cases++, o->gpu_cases += level && level->gpu;
    counted = true;
}

bool check_case(const char *format, ...)
{
    char    name[LABEL];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    if (!wanted(name)) return false;
    if (++case_number <= resume_after || (!dealt_later() && !job_takes(case_number))) return false;
    snprintf(label, sizeof label, "%s", name);
    counted = case_failed = false;
    if (!counted_later()) count_case();
    if (listing) return false;
    check_switches = (check_options){ SGK_DEFAULT };
    random_start_case(name);
    alarm(CASE_SECONDS);
    return true;
}

void fail(const char *format, ...)
{
    char    text[1200];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (expecting) {
        const size_t used = strlen(expected_text);
        snprintf(expected_text + used, sizeof expected_text - used, "%s\n", text);
        case_failed = true;
        return;
    }
    printf("FAILURE: %s at %s: %s\n", label, level ? level->name : "start", text);
    fflush(stdout);
    report_add_failure(label, level ? level->name : "start", text);
    if (!case_failed) {
        failed_cases++;
        check_operator *o = operator_named(label);
        if (o) o->failures++;
    }
    case_failed = true;
}

void report_add_failure(const char *of, const char *at_level, const char *text)
{
    if (failure_count == failure_room) {
        failure_room = failure_room ? 2 * failure_room : 64;
        failures     = realloc(failures, (size_t)failure_room * sizeof *failures);
        if (!failures) abort();
    }
    snprintf(failures[failure_count].label, LABEL, "%s", of);
    snprintf(failures[failure_count].level, 16, "%s", at_level);
    failures[failure_count++].text = strdup(text);
}

void report_each_failure(void (*tell)(const char *label, const char *level, const char *text))
{
    for (int i = 0; i < failure_count; ++i) tell(failures[i].label, failures[i].level, failures[i].text);
}

/* Behind the last operator comes what all cases were. */
void report_each_operator(void (*tell)(int at, const check_operator *counts))
{
    int at = 0;
    for (; operators[at].name; ++at) tell(at, &operators[at]);
    tell(at, &(check_operator){ .cases = cases, .failures = failed_cases });
}

void report_add_operator(int at, const check_operator *counts)
{
    check_operator *o = &operators[at];
    if (!o->name) {
        cases += counts->cases, failed_cases += counts->failures;
        return;
    }
    o->cases += counts->cases, o->refused += counts->refused, o->gpu_cases += counts->gpu_cases, o->failures += counts->failures;
}

void check_that(bool holds, const char *format, ...)
{
    if (holds || versions_wanted || (counted_later() && !counted)) return;        /* no reference was run */
    char    text[1000];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fail("%s", text);
}

/* Rows that call one C function share its checks. */
static bool same_function(const check_operator *a, const check_operator *b)
{
    const size_t n = strcspn(a->call, "(");
    return n == strcspn(b->call, "(") && !strncmp(a->call, b->call, n);
}

/* What the whole run must have reached; asked only when nothing was left out. */
void report_missing_checks(void)
{
    for (check_operator *o = operators; o->name; ++o) {
        if (strncmp(o->call, "sgk_", 4) != 0) continue;         /* torch's alone: Python tests it */
        int refused = 0, found = 0, on_gpu = 0;
        for (const check_operator *other = operators; other->name; ++other)
            if (same_function(o, other)) found += other->cases, refused += other->refused, on_gpu += other->gpu_cases;
        snprintf(label, sizeof label, "%s_", o->name);
        case_failed = false;
        if (!found) fail("operator %s has no check", o->name);
        else if (!refused && !check_keep_arguments) fail("operator %s has no case that breaks its arguments (all are too large or have none)", o->name);
        else if (level && level->gpu && o->devices & CUDA && !on_gpu) fail("operator %s has no case on the GPU", o->name);
    }
}

void report_list(void)
{
    int total = 0;
    for (const check_operator *o = operators; o->name; ++o) {
        printf("%-44s %s%s %5d case%s\n", o->name, o->devices & CPU ? "cpu " : "    ", o->devices & CUDA ? "cuda" : "    ", o->cases, o->cases == 1 ? "" : "s");
        total += o->cases;
    }
    printf("%d cases of operators, %d of other parts\n", total, cases - total);
}

void report_counts(int *all, int *failed) { *all = cases, *failed = failed_cases; }

void report_start_expecting(void)
{
    expecting        = true;
    expected_text[0] = 0;
}

bool report_stop_expecting(const char *words, char *got, size_t size)
{
    expecting = false;
    snprintf(got, size, "%s", expected_text);
    return words ? strstr(expected_text, words) != NULL : !expected_text[0];
}

void report_json_failures(FILE *f)
{
    for (int i = 0; i < failure_count; ++i) {
        fprintf(f, "%s\n    {\"case\": ", i ? "," : "");
        json_text(f, failures[i].label);
        fprintf(f, ", \"level\": ");
        json_text(f, failures[i].level);
        fprintf(f, ", \"text\": ");
        json_text(f, failures[i].text);
        fprintf(f, "}");
    }
}
