#include "cuda/nvrtc.h"
#include "sgk_config.h"

#if SGK_HAVE_CUDA
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

enum { PATH_SIZE = 4096 };

typedef struct nvrtc_program *nvrtcProgram;

#define NVRTC_API(X) \
    X(nvrtcVersion, (int *, int *)) \
    X(nvrtcCreateProgram, (nvrtcProgram *, const char *, const char *, int, const char *const *, const char *const *)) \
    X(nvrtcDestroyProgram, (nvrtcProgram *)) \
    X(nvrtcCompileProgram, (nvrtcProgram, int, const char *const *)) \
    X(nvrtcGetProgramLogSize, (nvrtcProgram, size_t *)) \
    X(nvrtcGetProgramLog, (nvrtcProgram, char *)) \
    X(nvrtcGetCUBINSize, (nvrtcProgram, size_t *)) \
    X(nvrtcGetCUBIN, (nvrtcProgram, char *)) \
    X(nvrtcGetPTXSize, (nvrtcProgram, size_t *)) \
    X(nvrtcGetPTX, (nvrtcProgram, char *))

static struct {
#define X(name, arguments) int(*name) arguments;
    NVRTC_API(X)
#undef X
    const char *(*nvrtcGetErrorString)(int);
    int version;
} nvrtc;

int sgk_nvrtc_version(void) { return nvrtc.version; }

sgk_status sgk_nvrtc_load(const char *op, const char *path)
{
    if (nvrtc.version) return SGK_OK;
    static const char *const names[] = { "libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so" };
    void                    *library = path ? dlopen(path, RTLD_NOW) : NULL;
    for (size_t i = 0; !path && !library && i < sizeof names / sizeof *names; ++i) library = dlopen(names[i], RTLD_NOW);
    SGK_REQUIRE(library, SGK_UNSUPPORTED, "%s: no NVRTC: %s", op, dlerror());

    static const struct {
        const char *name;
        void       *slot;
    } entries[] = {
#define X(name, arguments) { #name, &nvrtc.name },
        NVRTC_API(X)
#undef X
            { "nvrtcGetErrorString", &nvrtc.nvrtcGetErrorString },
    };
    for (size_t i = 0; i < sizeof entries / sizeof *entries; ++i) {
        void *entry = dlsym(library, entries[i].name);
        SGK_REQUIRE(entry, SGK_UNSUPPORTED, "%s: NVRTC has no %s", op, entries[i].name);
        memcpy(entries[i].slot, &entry, sizeof entry);
    }
    int major = 0, minor = 0;
    nvrtc.nvrtcVersion(&major, &minor);
    SGK_REQUIRE(major >= 12, SGK_UNSUPPORTED, "%s: NVRTC is %d.%d, expected 12.0 or newer", op, major, minor);
    nvrtc.version = 1000 * major + minor;

    /* NVRTC opens its second half by name, which its own search path finds unless a sanitizer stands between: have it loaded already. */
    char        builtins[PATH_SIZE];
    const char *slash = path ? strrchr(path, '/') : NULL;
    if (slash && snprintf(builtins, sizeof builtins, "%.*s/libnvrtc-builtins.so.%d.%d", (int)(slash - path), path, major, minor) < PATH_SIZE)
        dlopen(builtins, RTLD_NOW);
    return SGK_OK;
}

/* ---- text ------------------------------------------------------------------------------------------------------------- */

/* The whole file, ended by a 0; NULL when it cannot be read. */
static char *read_text(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    char *text = NULL;
    long  end  = -1;
    if (!fseek(file, 0, SEEK_END) && (end = ftell(file)) >= 0 && !fseek(file, 0, SEEK_SET)) text = malloc((size_t)end + 1);
    if (text && fread(text, 1, (size_t)end, file) != (size_t)end) {
        free(text);
        text = NULL;
    }
    fclose(file);
    if (text) text[ *size = (size_t)end] = 0;
    return text;
}

/* Where kernels look for headers, below the repository's folder; the last one is the source's own. */
enum { FOLDERS = 3 };
static bool header_folder(char path[PATH_SIZE], const char *source, const char *file, int i)
{
    static const char *const folders[FOLDERS] = { "csrc", "csrc/cuda/device", "csrc/ops/" };
    const char              *slash            = strrchr(file, '/');
    const int                own              = i == FOLDERS - 1 && slash ? (int)(slash - file) : 0;
    return snprintf(path, PATH_SIZE, "%s/%s%.*s", source, folders[i], own, file) < PATH_SIZE;
}

/* Options that are the same for every build. Registers and spills are read from the log. */
static const char *const common_options[] = { "-std=c++17", "-default-device", "--ptxas-options=-v" };
enum { COMMON_OPTIONS = sizeof common_options / sizeof *common_options };

/* ---- the key ---------------------------------------------------------------------------------------------------------- */

enum { MAX_HEADERS = 64 };
typedef struct {
    const char  *source, *file;
    XXH64_hash_t hash[2];                   /* two seeds make 128 bits */
    char        *seen[MAX_HEADERS];
    int          seen_count;
} key_state;

static void add(key_state *k, const void *bytes, size_t size)
{
    for (int i = 0; i < 2; ++i) k->hash[i] = XXH64(bytes, size, k->hash[i]);
}
static void add_text(key_state *k, const char *text) { add(k, text, strlen(text) + 1); }

static sgk_status add_includes(const char *op, key_state *k, const char *text);

/* The first of the folders that has it. One that none has is not for the device: the compiler would say so. */
static sgk_status add_header(const char *op, key_state *k, const char *name)
{
    for (int i = 0; i < k->seen_count; ++i)
        if (!strcmp(k->seen[i], name)) return SGK_OK;
    SGK_REQUIRE(k->seen_count < MAX_HEADERS, SGK_FAILED, "%s: %s includes more than %d headers", op, k->file, MAX_HEADERS);
    k->seen[k->seen_count] = strdup(name);
    SGK_REQUIRE(k->seen[k->seen_count++], SGK_FAILED, "%s: no memory", op);
    add_text(k, name);
    for (int i = FOLDERS - 1; i >= 0; --i) {
        char folder[PATH_SIZE], path[PATH_SIZE];
        if (!header_folder(folder, k->source, k->file, i) || snprintf(path, sizeof path, "%s/%s", folder, name) >= PATH_SIZE) continue;
        size_t size;
        char  *text = read_text(path, &size);
        if (!text) continue;
        add(k, text, size + 1);
        const sgk_status status = add_includes(op, k, text);
        free(text);
        SGK_TRY(status);
    }
    return SGK_OK;
}

/* Every #include "name", also where the preprocessor would skip it: one header too many does no harm. */
static sgk_status add_includes(const char *op, key_state *k, const char *text)
{
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += strspn(line, "\n \t");
        if (*line != '#') continue;
        const char *word = line + 1 + strspn(line + 1, " \t");
        if (strncmp(word, "include", 7)) continue;
        word += 7 + strspn(word + 7, " \t");
        const char *end = *word == '"' ? strpbrk(word + 1, "\"\n") : NULL;
        char        name[256];
        if (!end || *end != '"' || end - word > (ptrdiff_t)sizeof name - 1) continue;
        snprintf(name, sizeof name, "%.*s", (int)(end - word - 1), word + 1);
        SGK_TRY(add_header(op, k, name));
    }
    return SGK_OK;
}

static sgk_status hash_build(const char *op, key_state *k, const sgk_kernel *kernel, const sgk_arch *arch)
{
    add_text(k, kernel->file);
    add_text(k, kernel->defines);
    add_text(k, arch->option);
    for (int i = 0; i < COMMON_OPTIONS; ++i) add_text(k, common_options[i]);
    add(k, &nvrtc.version, sizeof nvrtc.version);

    char   path[PATH_SIZE];
    size_t size;
    SGK_REQUIRE(snprintf(path, sizeof path, "%s/csrc/ops/%s", k->source, kernel->file) < PATH_SIZE, SGK_FAILED, "%s: path too long", op);
    char *text = read_text(path, &size);
    SGK_REQUIRE(text, SGK_FAILED, "%s: cannot read %s", op, path);
    add(k, text, size + 1);
    const sgk_status status = add_includes(op, k, text);
    free(text);
    return status;
}

sgk_status sgk_nvrtc_key(const char *op, const char *source, const sgk_kernel *kernel, const sgk_arch *arch, sgk_object_key *key)
{
    key_state        k      = { .source = source, .file = kernel->file, .hash = { 1, 2 } };
    const sgk_status status = hash_build(op, &k, kernel, arch);
    while (k.seen_count) free(k.seen[--k.seen_count]);
    snprintf(key->text, sizeof key->text, "%016llx%016llx", (unsigned long long)k.hash[0], (unsigned long long)k.hash[1]);
    return status;
}

/* ---- compiling -------------------------------------------------------------------------------------------------------- */

void sgk_object_free(sgk_object *object)
{
    free(object->image);
    free(object->log);
    *object = (sgk_object){ 0 };
}

/* CPU time, so that a busy machine does not make a kernel slow. NVRTC works in the calling thread. */
static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static sgk_status take_result(const char *op, nvrtcProgram program, const sgk_kernel *kernel, const sgk_arch *arch, int result, sgk_object *object)
{
    size_t size = 0;
    if (nvrtc.nvrtcGetProgramLogSize(program, &size)) size = 0;
    object->log = calloc(1, size + 1);
    SGK_REQUIRE(object->log, SGK_FAILED, "%s: no memory for the compiler's log", op);
    if (size && nvrtc.nvrtcGetProgramLog(program, object->log)) object->log[0] = 0;
    SGK_REQUIRE(!result, SGK_FAILED, "%s: %s %s for %s does not compile (%s): %.400s", op, kernel->file, kernel->defines, arch->name,
                nvrtc.nvrtcGetErrorString(result), object->log);

    int (*get_size)(nvrtcProgram, size_t *) = arch->bit ? nvrtc.nvrtcGetCUBINSize : nvrtc.nvrtcGetPTXSize;
    int (*get)(nvrtcProgram, char *)        = arch->bit ? nvrtc.nvrtcGetCUBIN : nvrtc.nvrtcGetPTX;
    result                                  = get_size(program, &object->size);
    if (!result && !(object->image = malloc(object->size + 1))) return sgk_error(SGK_FAILED, "%s: no memory for %zu bytes", op, object->size);
    if (!result) result = get(program, object->image);
    SGK_REQUIRE(!result && object->size > 0, SGK_FAILED, "%s: NVRTC gives no code of %s: %s", op, kernel->file, nvrtc.nvrtcGetErrorString(result));
    if (!arch->bit) --object->size;         /* NVRTC counts the 0 at the end */
    ((char *)object->image)[object->size] = 0;
    return SGK_OK;
}

sgk_status sgk_nvrtc_compile(const char *op, const char *source, const sgk_kernel *kernel, const sgk_arch *arch, sgk_object *object)
{
    *object = (sgk_object){ 0 };
    enum { MAX_DEFINES = 48 };
    char        defines[1024], folders[FOLDERS][PATH_SIZE], path[PATH_SIZE];
    const char *options[MAX_DEFINES + COMMON_OPTIONS + FOLDERS + 1];
    int         count = 0;
    for (int i = 0; i < COMMON_OPTIONS; ++i) options[count++] = common_options[i];
    options[count++] = arch->option;
    for (int i = 0; i < FOLDERS; ++i) {
        folders[i][0] = '-', folders[i][1] = 'I';
        char folder[PATH_SIZE];
        if (!header_folder(folder, source, kernel->file, i)) return sgk_error(SGK_FAILED, "%s: path too long", op);
        snprintf(folders[i], PATH_SIZE, "-I%.*s", PATH_SIZE - 3, folder);
        options[count++] = folders[i];
    }
    SGK_REQUIRE(snprintf(defines, sizeof defines, "%s", kernel->defines) < (int)sizeof defines, SGK_FAILED, "%s: the macros of %s are too long",
                op, kernel->file);
    char *rest = defines;
    for (char *word; (word = strtok_r(NULL, " ", &rest)) != NULL;) {
        SGK_REQUIRE(count < (int)(sizeof options / sizeof *options), SGK_FAILED, "%s: %s has more than %d macros", op, kernel->file, MAX_DEFINES);
        options[count++] = word;
    }

    size_t size;
    SGK_REQUIRE(snprintf(path, sizeof path, "%s/csrc/ops/%s", source, kernel->file) < PATH_SIZE, SGK_FAILED, "%s: path too long", op);
    char *text = read_text(path, &size);
    SGK_REQUIRE(text, SGK_FAILED, "%s: cannot read %s", op, path);
    const double start = now_ms();
    nvrtcProgram program;
    int          result = nvrtc.nvrtcCreateProgram(&program, text, kernel->file, 0, NULL, NULL);
    free(text);
    SGK_REQUIRE(!result, SGK_FAILED, "%s: NVRTC takes no program: %s", op, nvrtc.nvrtcGetErrorString(result));
    result                  = nvrtc.nvrtcCompileProgram(program, count, options);
    const sgk_status status = take_result(op, program, kernel, arch, result, object);
    nvrtc.nvrtcDestroyProgram(&program);
    object->milliseconds = now_ms() - start;
    return status;
}

#endif
