/* The results as one JSON object. */
#include <errno.h>
#include <math.h>
#include "harness.h"

void json_text(FILE *f, const char *text)
{
    fputc('"', f);
    for (; *text; ++text) {
        const unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') fprintf(f, "\\%c", c);
        else if (c < 0x20) fprintf(f, "\\u%04x", c);
        else fputc(c, f);
    }
    fputc('"', f);
}

void json_number(FILE *f, double number)
{
    if (isfinite(number)) fprintf(f, "%.9g", number);
    else fputs("null", f);
}

bool report_json(const char *path)
{
    FILE *f = fopen(path, "w");
    if (!f) {
        fprintf(stderr, "sgk-check: cannot write %s: %s\n", path, strerror(errno));
        return false;
    }
    int cases, failed;
    report_counts(&cases, &failed);
    fprintf(f, "{\n  \"seed\": %llu,\n  \"version\": ", (unsigned long long)check_seed);
    json_text(f, sgk_version());
    fprintf(f, ",\n  \"cpu\": ");
    json_text(f, sgk_cpu_level_name());
    fprintf(f, ",\n  \"threads\": %d,\n  \"gpu\": ", sgk_num_threads(NULL));
    json_text(f, gpu_name());
    fprintf(f, ",\n  \"cases\": %d,\n  \"failed\": %d,\n  \"failures\": [", cases, failed);
    report_json_failures(f);
    fprintf(f, "],\n  \"versions\": [");
    versions_print(f);
    fprintf(f, "],\n");
    bench_json(f);
    fprintf(f, "}\n");
    const bool written = !ferror(f);
    if (fclose(f) || !written) {
        fprintf(stderr, "sgk-check: cannot write %s\n", path);
        return false;
    }
    return true;
}
