/*
 * The pack reader on a real pack, damaged in every way: each must be refused with a sentence that names the file, and none may crash or
 * hand out an image that is not the one that was packed.
 */
#include "check/pack_check.h"
#include "sgk_config.h"

#if SGK_HAVE_CUDA
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>
#include "cuda/pack.h"

typedef struct {
    char    *good;                          /* the pack's bytes */
    size_t   size;
    char     arch[17];
    char     path[64];                      /* where damaged ones are written */
    char    *key;                           /* of the first entry, and its image */
    void    *image;
    size_t   image_size;
    int      failures;
    uint64_t random;
} pack_test;

static const sgk_pack_header *header_of(const char *bytes) { return (const sgk_pack_header *)bytes; }

static void complain(pack_test *t, const char *what, const char *why)
{
    ++t->failures;
    printf("FAILURE: pack with %s: %s\n", what, why);
}

static uint64_t next_random(pack_test *t)
{
    return t->random = XXH64(&t->random, sizeof t->random, 1);
}

static bool put(const pack_test *t, const char *bytes, size_t size)
{
    FILE      *file = fopen(t->path, "wb");
    const bool good = file && fwrite(bytes, 1, size, file) == size;
    return file && !fclose(file) && good;
}

/* Opens the bytes as a file and unpacks the first entry; SGK_OK means that both worked. */
static sgk_status try(pack_test *t, const char *what, const char *bytes, size_t size, const char *arch)
{
    if (!put(t, bytes, size)) {
        complain(t, what, "cannot write the test's file");
        return SGK_FAILED;
    }
    sgk_pack  *pack;
    sgk_status status = sgk_pack_open("check", t->path, arch, &pack);
    if (status) return status;
    void  *image;
    size_t image_size;
    status = sgk_pack_get("check", pack, t->key, &image, &image_size);
    if (!status) {
        if (image_size != t->image_size || memcmp(image, t->image, image_size)) complain(t, what, "another image than was packed");
        free(image);
    }
    sgk_pack_close(pack);
    return status;
}

static void must_refuse(pack_test *t, const char *what, const char *words, const char *bytes, size_t size, const char *arch)
{
    if (try(t, what, bytes, size, arch) == SGK_OK) complain(t, what, "was taken");
    else if (!strstr(sgk_last_error(), t->path) || !strstr(sgk_last_error(), words)) complain(t, what, sgk_last_error());
}

static void check_sizes(pack_test *t)
{
    const sgk_pack_header *h       = header_of(t->good);
    const size_t           sizes[] = { 0, 1, 7, 8, 9, sizeof *h - 1, sizeof *h, sizeof *h + 1, h->keys_offset, h->dictionary_offset, h->frames_offset, t->size / 2, t->size - 1 };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i)
        must_refuse(t, "its end cut off", sizes[i] < 8 ? "is not a kernel pack" : "truncated", t->good, sizes[i], t->arch);
    char *longer = calloc(1, t->size + 1);
    if (!longer) {
        complain(t, "a byte too many", "no memory");
        return;
    }
    memcpy(longer, t->good, t->size);
    must_refuse(t, "a byte too many", "appended", longer, t->size + 1, t->arch);
    free(longer);
}

/* The table's checksum as the writer makes it. */
static void seal(char *bytes)
{
    sgk_pack_header *h = (sgk_pack_header *)bytes;
    h->checksum        = 0;
    h->checksum        = XXH64(bytes + sizeof *h, h->frames_offset - sizeof *h, XXH64(h, sizeof *h, SGK_PACK_SEED));
}

/* Wrong fields under a right checksum: what a faulty or hostile writer would make. */
static void check_fields(pack_test *t, char *bytes)
{
    sgk_pack_header *h = (sgk_pack_header *)bytes;
    sgk_pack_entry  *e = (sgk_pack_entry *)(bytes + sizeof *h);
#define WRONG(what, words, change) \
    do { \
        memcpy(bytes, t->good, t->size); \
        change; \
        if (header_of(bytes)->frames_offset == header_of(t->good)->frames_offset) seal(bytes); \
        must_refuse(t, what, words, bytes, t->size, t->arch); \
    } while (0)
    WRONG("another magic", "is not a kernel pack", h->magic[0] ^= 1);
    WRONG("another version", "pack format", ++h->version);
    WRONG("another owner", "belongs to", h->owner[3] ^= 1);
    WRONG("another architecture", "holds kernels for", h->arch[0] ^= 1);
    WRONG("no room for its table", "do not fit", h->entries = UINT64_MAX / sizeof *e);
    WRONG("an entry more", "do not fit", ++h->entries);
    WRONG("huge keys", "do not fit", h->keys_size = UINT64_MAX - 7);
    WRONG("a huge dictionary", "do not fit", h->dictionary_size = UINT64_MAX);
    WRONG("frames elsewhere", "do not fit", h->frames_offset += 8);
    WRONG("endless keys", "has no end", bytes[h->dictionary_offset - 1] = 'x');
    WRONG("a key outside", "outside the file", e->key = h->keys_size);
    WRONG("a frame outside", "outside the file", e->frame = h->file_size);
    WRONG("a frame that wraps", "outside the file", e->frame = UINT64_MAX - 3);
    WRONG("a frame too long", "outside the file", e->packed_size = UINT64_MAX - e->frame);
    WRONG("a huge image", "outside the file", e->image_size = UINT64_MAX);
    WRONG("an image of more", "another size", ++e->image_size);
    WRONG("an image of less", "another size", --e->image_size);
    WRONG("a shorter frame", "checksum", --e->packed_size);
    if (h->entries > 1) WRONG("keys out of order", "out of order", e[1].key = e[0].key);
#undef WRONG
    must_refuse(t, "another architecture asked for", "holds kernels for", t->good, t->size, "77x");
}

/* One byte changed, anywhere before the frames or in the frame that is read. */
static void check_bytes(pack_test *t, char *bytes, int rounds)
{
    const sgk_pack_header *h = header_of(t->good);
    const sgk_pack_entry  *e = (const sgk_pack_entry *)(t->good + sizeof *h);
    memcpy(bytes, t->good, t->size);
    for (size_t i = 0; i < sizeof *h; ++i) {
        bytes[i] ^= 0x10;
        must_refuse(t, "a changed byte in its header", "", bytes, t->size, t->arch);
        bytes[i] ^= 0x10;
    }
    for (int i = 0; i < rounds; ++i) {
        const bool   table = i % 2;
        const size_t at    = table ? next_random(t) % h->frames_offset : h->frames_offset + e->frame + next_random(t) % e->packed_size;
        const char   flip  = (char)(1 << next_random(t) % 8);
        bytes[at] ^= flip;
        must_refuse(t, "a changed byte", "", bytes, t->size, t->arch);
        bytes[at] ^= flip;
    }
}

/* Many bytes changed and the checksums made right again: nothing may crash, whatever comes out. */
static void check_noise(pack_test *t, char *bytes, int rounds)
{
    for (int i = 0; i < rounds; ++i) {
        memcpy(bytes, t->good, t->size);
        sgk_pack_header *h       = (sgk_pack_header *)bytes;
        sgk_pack_entry  *e       = (sgk_pack_entry *)(bytes + sizeof *h);
        const int        changes = 1 + (int)(next_random(t) % 8);
        for (int c = 0; c < changes; ++c) {
            const uint64_t in_table            = sizeof *h + next_random(t) % (h->frames_offset - sizeof *h);
            const uint64_t in_frame            = h->frames_offset + (t->size > h->frames_offset ? next_random(t) % (t->size - h->frames_offset) : 0);
            bytes[i % 3 ? in_table : in_frame] = (char)next_random(t);
        }
        const uint64_t frames = t->size - h->frames_offset;
        if (i % 3 == 0 && e->frame < frames && e->packed_size <= frames - e->frame)
            e->checksum = XXH64(bytes + h->frames_offset + e->frame, e->packed_size, SGK_PACK_SEED);
        seal(bytes);
        if (!put(t, bytes, t->size)) {
            complain(t, "noise", "cannot write the test's file");
            return;
        }
        sgk_pack *pack;
        if (sgk_pack_open("check", t->path, t->arch, &pack)) continue;
        for (size_t k = 0; k < sgk_pack_count(pack); k += 1 + sgk_pack_count(pack) / 8) {
            void  *image;
            size_t size;
            if (!sgk_pack_get("check", pack, sgk_pack_key(pack, k), &image, &size)) free(image);
        }
        sgk_pack_close(pack);
    }
}

/* Reads the pack, unpacks all of it, keeps the first entry to compare with. */
static bool load(pack_test *t, const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) || (t->size = (size_t)ftell(file)) < sizeof(sgk_pack_header) || fseek(file, 0, SEEK_SET)) {
        if (file) fclose(file);
        return complain(t, path, "cannot be read"), false;
    }
    t->good          = malloc(t->size);
    const bool whole = t->good && fread(t->good, 1, t->size, file) == t->size;
    fclose(file);
    if (!whole) return complain(t, path, "cannot be read"), false;
    snprintf(t->arch, sizeof t->arch, "%.16s", header_of(t->good)->arch);

    sgk_pack *pack;
    if (sgk_pack_open("check", path, t->arch, &pack)) return complain(t, path, sgk_last_error()), false;
    void  *image;
    size_t size;
    if (sgk_pack_get("check", pack, "no/such.cu|kernel|", &image, &size) != SGK_UNSUPPORTED) complain(t, path, "a kernel it does not hold");
    for (size_t i = 0; i < sgk_pack_count(pack); ++i) {
        if (sgk_pack_get("check", pack, sgk_pack_key(pack, i), &image, &size)) {
            complain(t, path, sgk_last_error());
            continue;
        }
        if (i == 0) t->key = strdup(sgk_pack_key(pack, 0)), t->image = image, t->image_size = size;
        else free(image);
    }
    sgk_pack_close(pack);
    if (!t->key || !t->image) return complain(t, path, "nothing in it"), false;
    return true;
}

int check_pack(const char *pack_path, int rounds)
{
    pack_test t = { .random = 20240731 };
    snprintf(t.path, sizeof t.path, "/tmp/sgk-pack-check.XXXXXX");
    const int fd = mkstemp(t.path);
    if (fd < 0) complain(&t, pack_path, "no temporary file");
    else close(fd);
    if (!t.failures && load(&t, pack_path)) {
        char *bytes = malloc(t.size);
        if (bytes) {
            if (try(&t, "nothing wrong", t.good, t.size, t.arch)) complain(&t, "nothing wrong", sgk_last_error());
            check_sizes(&t);
            check_fields(&t, bytes);
            check_bytes(&t, bytes, rounds);
            check_noise(&t, bytes, rounds);
        } else complain(&t, pack_path, "no memory");
        free(bytes);
    }
    unlink(t.path);
    free(t.good);
    free(t.key);
    free(t.image);
    return t.failures;
}

#else

/* Without GPU code there are no packs to read. */
int check_pack(const char *path, int rounds)
{
    (void)path, (void)rounds;
    return 0;
}

#endif
