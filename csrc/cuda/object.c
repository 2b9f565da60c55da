/* Compiled objects in a folder: one file each, named by what it was made from. */
#include "cuda/nvrtc.h"
#include "sgk_config.h"

#if SGK_HAVE_CUDA
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

typedef struct {
    char     magic[8];
    uint64_t image_size, log_size;
    double   milliseconds;
    uint64_t checksum;                      /* of image, then log */
} object_header;

static const char magic[8] = "SGKOBJ1";

static uint64_t checksum(const sgk_object *o, size_t log_size)
{
    return XXH64(o->log, log_size, XXH64(o->image, o->size, 0));
}

static bool read_file(FILE *file, sgk_object *o)
{
    object_header h;
    if (fread(&h, sizeof h, 1, file) != 1 || memcmp(h.magic, magic, sizeof magic)) return false;
    if (h.image_size > SGK_PACK_MAX_IMAGE || h.log_size > SGK_PACK_MAX_IMAGE) return false;
    o->size         = h.image_size;
    o->image        = calloc(1, h.image_size + 1);
    o->log          = calloc(1, h.log_size + 1);
    o->milliseconds = h.milliseconds;
    return o->image && o->log && fread(o->image, 1, h.image_size, file) == h.image_size && fread(o->log, 1, h.log_size, file) == h.log_size &&
           checksum(o, h.log_size) == h.checksum;
}

bool sgk_object_read(const char *folder, const sgk_object_key *key, sgk_object *object)
{
    *object = (sgk_object){ 0 };
    char path[4096];
    if (snprintf(path, sizeof path, "%s/%s", folder, key->text) >= (int)sizeof path) return false;
    FILE *file = fopen(path, "rb");
    if (!file) return false;
    const bool good = read_file(file, object);
    fclose(file);
    if (!good) sgk_object_free(object);
    return good;
}

sgk_status sgk_object_write(const char *op, const char *folder, const sgk_object_key *key, const sgk_object *o)
{
    char path[4096], temporary[4200];
    SGK_REQUIRE(snprintf(path, sizeof path, "%s/%s", folder, key->text) < (int)sizeof path, SGK_FAILED, "%s: path too long", op);
    snprintf(temporary, sizeof temporary, "%s.XXXXXX", path);
    const int fd = mkstemp(temporary);
    SGK_REQUIRE(fd >= 0, SGK_FAILED, "%s: cannot write in %s: %s", op, folder, strerror(errno));
    FILE         *file = fdopen(fd, "wb");
    object_header h    = { .image_size = o->size, .log_size = strlen(o->log), .milliseconds = o->milliseconds };
    memcpy(h.magic, magic, sizeof magic);
    h.checksum = checksum(o, h.log_size);
    bool good  = file && fwrite(&h, sizeof h, 1, file) == 1 && fwrite(o->image, 1, o->size, file) == o->size &&
                 fwrite(o->log, 1, h.log_size, file) == h.log_size;
    if (file) good = !fclose(file) && good;
    else close(fd);
    good = good && !chmod(temporary, 0644) && !rename(temporary, path);
    if (good) return SGK_OK;
    const int error = errno;
    unlink(temporary);
    return sgk_error(SGK_FAILED, "%s: cannot write %s: %s", op, path, strerror(error));
}

#endif
