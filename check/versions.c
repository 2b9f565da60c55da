/* --versions: which version of each operator runs on each device, and why, in the operators' own words (sgk_exec.log). */
#include <stdlib.h>
#include "harness.h"

bool versions_wanted;

typedef struct {
    char operator[64], level[16], text[400], example[LABEL];
    int  cases;
} version;
static version *versions;
static int      version_count, version_room;

static void heard(void *user, const char *message)
{
    (void)user;
    const char *operator = operator_of_case();
    if (!operator || in_reference) return;
    for (int i = 0; i < version_count; ++i) {
        version *v = &versions[i];
        if (strcmp(v->operator, operator) || strcmp(v->level, level->name) || strcmp(v->text, message)) continue;
        if (strcmp(v->example, label)) v->cases++;
        return;
    }
    if (version_count == version_room) {
        version_room = version_room ? 2 * version_room : 64;
        versions     = realloc(versions, (size_t)version_room * sizeof *versions);
        if (!versions) abort();
    }
    version *v = &versions[version_count++];
    snprintf(v->operator, sizeof v->operator, "%s", operator);
    snprintf(v->level, sizeof v->level, "%s", level->name);
    snprintf(v->text, sizeof v->text, "%s", message);
    snprintf(v->example, sizeof v->example, "%s", label);
    v->cases = 1;
}

void versions_listen(sgk_exec *exec)
{
    if (versions_wanted) exec->log = heard;
}

void versions_print(FILE *json)
{
    for (int i = 0; i < version_count; ++i) {
        const version *v = &versions[i];
        if (!json) {
            printf("%-32s %-11s %s (as in %s)\n", v->operator, v->level, v->text, v->example);
            continue;
        }
        fprintf(json, "%s\n    {\"operator\": ", i ? "," : "");
        json_text(json, v->operator);
        fprintf(json, ", \"level\": ");
        json_text(json, v->level);
        fprintf(json, ", \"version\": ");
        json_text(json, v->text);
        fprintf(json, ", \"example\": ");
        json_text(json, v->example);
        fprintf(json, "}");
    }
}
