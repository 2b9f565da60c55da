/* Writing a pack; the layout is cuda/pack.h's. The same objects give the same bytes. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#define ZDICT_STATIC_LINKING_ONLY      /* ZDICT_trainFromBuffer_fastCover */
#include <zdict.h>
#include <zstd.h>
#include "tools/pack/tool.h"

enum { LEVEL  = 19,
       RECIPE = 2 /* changes when the same objects should give another file */ };

typedef struct {
    const pack_job  *job;
    const sgk_arch  *arch;
    char           **keys;                  /* of `rows`, sorted */
    const pack_row **rows;
    size_t           count;
    char            *dictionary;
    size_t           dictionary_size;
    char           **frames;                /* by build; NULL where this architecture has none */
    size_t          *frame_sizes;
} pack_writer;

static int by_key(const void *a, const void *b)
{
    const pack_row *const *x = a, *const *y = b;
    const sgk_kernel      *k = (*x)->kernel, *l = (*y)->kernel;
    char                  *s = sgk_kernel_key(k), *t = sgk_kernel_key(l);
    const int              order = s && t ? strcmp(s, t) : 0;
    free(s);
    free(t);
    return order;
}

static sgk_status choose_rows(pack_writer *w)
{
    const pack_job *job = w->job;
    w->rows             = calloc(job->row_count + 1, sizeof *w->rows);
    w->keys             = calloc(job->row_count + 1, sizeof *w->keys);
    SGK_REQUIRE(w->rows && w->keys, SGK_FAILED, "sgk-pack: no memory");
    for (size_t i = 0; i < job->row_count; ++i)
        if (job->rows[i].arch == w->arch) w->rows[w->count++] = &job->rows[i];
    qsort(w->rows, w->count, sizeof *w->rows, by_key);
    for (size_t i = 0; i < w->count; ++i) {
        SGK_REQUIRE(w->keys[i] = sgk_kernel_key(w->rows[i]->kernel), SGK_FAILED, "sgk-pack: no memory");
        SGK_REQUIRE(i == 0 || strcmp(w->keys[i - 1], w->keys[i]), SGK_FAILED, "sgk-pack: two rows of the build tables are both %s", w->keys[i]);
    }
    return SGK_OK;
}

static const sgk_object *object_of(const pack_writer *w, size_t row) { return &w->job->builds[w->rows[row]->build].object; }

static uint64_t hash_sources(const pack_writer *w)
{
    const uint32_t recipe[] = { SGK_PACK_VERSION, RECIPE, LEVEL, (uint32_t)sgk_nvrtc_version(), ZSTD_versionNumber() };
    uint64_t       hash     = XXH64(recipe, sizeof recipe, SGK_PACK_SEED);
    for (size_t i = 0; i < w->count; ++i) {
        const sgk_object *o = object_of(w, i);
        hash                = XXH64(w->keys[i], strlen(w->keys[i]) + 1, hash);
        hash                = XXH64(o->image, o->size, hash);
    }
    return hash;
}

/*
 * Kernels of one source are much alike, so a dictionary pays, and more than its own size where the file is compressed once more, as in a wheel:
 * that makes the dictionary smaller and not the frames. A sixteenth of what is packed, in long pieces. Too few samples give none.
 */
static sgk_status train(pack_writer *w)
{
    const pack_job *job   = w->job;
    size_t         *sizes = calloc(job->build_count + 1, sizeof *sizes), total = 0, samples = 0;
    for (size_t i = 0; i < job->build_count; ++i)
        if (job->builds[i].arch == w->arch) total += job->builds[i].object.size;
    char *all          = malloc(total + 1);
    w->dictionary_size = total / 16 < 8192 ? 8192 : total / 16;
    w->dictionary      = malloc(w->dictionary_size);
    SGK_REQUIRE(sizes && all && w->dictionary, SGK_FAILED, "sgk-pack: no memory");
    total = 0;
    for (size_t i = 0; i < job->build_count; ++i) {
        const sgk_object *o = &job->builds[i].object;
        if (job->builds[i].arch != w->arch) continue;
        memcpy(all + total, o->image, o->size);
        total += sizes[samples++] = o->size;
    }
    const ZDICT_fastCover_params_t how = { .k = 2048, .d = 8, .f = 20, .accel = 4, .zParams.compressionLevel = LEVEL };
    w->dictionary_size                 = ZDICT_trainFromBuffer_fastCover(w->dictionary, w->dictionary_size, all, sizes, (unsigned)samples, how);
    if (ZDICT_isError(w->dictionary_size)) w->dictionary_size = 0;
    free(sizes);
    free(all);
    return SGK_OK;
}

static sgk_status compress(pack_writer *w)
{
    const pack_job *job = w->job;
    w->frames           = calloc(job->build_count + 1, sizeof *w->frames);
    w->frame_sizes      = calloc(job->build_count + 1, sizeof *w->frame_sizes);
    ZSTD_CCtx *context  = ZSTD_createCCtx();
    SGK_REQUIRE(w->frames && w->frame_sizes && context, SGK_FAILED, "sgk-pack: no memory");
    ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, LEVEL);
    size_t result = w->dictionary_size ? ZSTD_CCtx_loadDictionary(context, w->dictionary, w->dictionary_size) : 0;
    for (size_t i = 0; i < job->build_count && !ZSTD_isError(result); ++i) {
        const sgk_object *o = &job->builds[i].object;
        if (job->builds[i].arch != w->arch) continue;
        const size_t room = ZSTD_compressBound(o->size);
        SGK_REQUIRE(w->frames[i] = malloc(room), SGK_FAILED, "sgk-pack: no memory");
        result = w->frame_sizes[i] = ZSTD_compress2(context, w->frames[i], room, o->image, o->size);
    }
    ZSTD_freeCCtx(context);
    SGK_REQUIRE(!ZSTD_isError(result), SGK_FAILED, "sgk-pack: zstd: %s", ZSTD_getErrorName(result));
    return SGK_OK;
}

/* Everything before the frames, in one piece of memory. */
static sgk_status lay_out(const pack_writer *w, uint64_t sources, char **head, size_t *head_size)
{
    size_t keys_size = 0;
    for (size_t i = 0; i < w->count; ++i) keys_size += strlen(w->keys[i]) + 1;
    sgk_pack_header h = {
        .magic           = SGK_PACK_MAGIC,
        .version         = SGK_PACK_VERSION,
        .compiler        = (uint32_t)sgk_nvrtc_version(),
        .owner           = SGK_PACK_OWNER,
        .entries         = w->count,
        .keys_size       = keys_size,
        .dictionary_size = w->dictionary_size,
        .sources         = sources,
    };
    snprintf(h.arch, sizeof h.arch, "%s", w->arch->name);
    h.keys_offset       = sizeof h + w->count * sizeof(sgk_pack_entry);
    h.dictionary_offset = h.keys_offset + h.keys_size;
    h.frames_offset     = h.dictionary_offset + h.dictionary_size;
    h.file_size         = h.frames_offset;

    uint64_t *place = calloc(w->job->build_count + 1, sizeof *place);
    *head           = malloc(h.frames_offset);
    SGK_REQUIRE(*head && place, SGK_FAILED, "sgk-pack: no memory");
    for (size_t i = 0; i < w->job->build_count; ++i) {
        place[i] = h.file_size - h.frames_offset;
        h.file_size += w->frame_sizes[i];
    }
    sgk_pack_entry *entry = (sgk_pack_entry *)(*head + sizeof h);
    char           *keys = *head + h.keys_offset, *key = keys;
    for (size_t i = 0; i < w->count; ++i) {
        const size_t build = w->rows[i]->build;
        entry[i]           = (sgk_pack_entry){ (uint64_t)(key - keys), place[build], w->frame_sizes[build], object_of(w, i)->size,
                                               XXH64(w->frames[build], w->frame_sizes[build], SGK_PACK_SEED) };
        key                = stpcpy(key, w->keys[i]) + 1;
    }
    if (w->dictionary_size) memcpy(*head + h.dictionary_offset, w->dictionary, w->dictionary_size);
    h.checksum = XXH64(entry, h.frames_offset - sizeof h, XXH64(&h, sizeof h, SGK_PACK_SEED));
    memcpy(*head, &h, sizeof h);
    *head_size = h.frames_offset;
    free(place);
    return SGK_OK;
}

static sgk_status store(const pack_writer *w, const char *path, const char *head, size_t head_size)
{
    char temporary[4200];
    snprintf(temporary, sizeof temporary, "%s.%d.tmp", path, (int)getpid());
    FILE *file = fopen(temporary, "wb");
    SGK_REQUIRE(file, SGK_FAILED, "sgk-pack: cannot write %s: %s", temporary, strerror(errno));
    bool good = fwrite(head, 1, head_size, file) == head_size;
    for (size_t i = 0; i < w->job->build_count; ++i) good = good && fwrite(w->frames[i], 1, w->frame_sizes[i], file) == w->frame_sizes[i];
    good = !fclose(file) && good;
    if (good && !rename(temporary, path)) return SGK_OK;
    const int error = errno;
    unlink(temporary);
    return sgk_error(SGK_FAILED, "sgk-pack: cannot write %s: %s", path, strerror(error));
}

/* What was written must read back, through the library's own reader. */
static sgk_status read_back(const pack_writer *w, const char *path)
{
    sgk_pack *pack;
    SGK_TRY(sgk_pack_open("sgk-pack", path, w->arch->name, &pack));
    sgk_status status = SGK_OK;
    for (size_t i = 0; i < w->count && !status; ++i) {
        void  *image;
        size_t size;
        status = sgk_pack_get("sgk-pack", pack, w->keys[i], &image, &size);
        if (status) break;
        const sgk_object *o = object_of(w, i);
        if (size != o->size || memcmp(image, o->image, size)) status = sgk_error(SGK_FAILED, "sgk-pack: %s does not read back from %s", w->keys[i], path);
        free(image);
    }
    sgk_pack_close(pack);
    return status;
}

static bool up_to_date(const pack_writer *w, const char *path, uint64_t sources)
{
    sgk_pack *pack;
    if (access(path, R_OK) || sgk_pack_open("sgk-pack", path, w->arch->name, &pack)) return false;
    const bool same = sgk_pack_sources(pack) == sources;
    sgk_pack_close(pack);
    return same && !utimensat(AT_FDCWD, path, NULL, 0);
}

static sgk_status write_rows(pack_writer *w, const char *path)
{
    SGK_TRY(choose_rows(w));
    const uint64_t sources = hash_sources(w);
    if (up_to_date(w, path, sources)) return SGK_OK;
    char  *head      = NULL;
    size_t head_size = 0;
    SGK_TRY(train(w));
    SGK_TRY(compress(w));
    sgk_status status = lay_out(w, sources, &head, &head_size);
    if (!status) status = store(w, path, head, head_size);
    free(head);
    SGK_TRY(status);
    return read_back(w, path);
}

sgk_status pack_write(const pack_job *job, const sgk_arch *arch, const char *path)
{
    pack_writer      w      = { .job = job, .arch = arch };
    const sgk_status status = write_rows(&w, path);
    for (size_t i = 0; w.keys && i < w.count; ++i) free(w.keys[i]);
    for (size_t i = 0; w.frames && i < job->build_count; ++i) free(w.frames[i]);
    free(w.keys);
    free(w.rows);
    free(w.dictionary);
    free(w.frames);
    free(w.frame_sizes);
    return status;
}
