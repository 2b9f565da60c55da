#include "cuda/pack.h"
#include "sgk_config.h"

#if SGK_HAVE_CUDA
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#define ZSTD_STATIC_LINKING_ONLY      /* ZSTD_createDDict_byReference */
#include <zstd.h>

const sgk_arch sgk_archs[] = {
    { "80", SGK_ARCH_80, "sm80.pack", "-arch=sm_80" },
    { "89", SGK_ARCH_89, "sm89.pack", "-arch=sm_89" },
    { "90a", SGK_ARCH_90A, "sm90a.pack", "-arch=sm_90a" },
    { "100f", SGK_ARCH_100F, "sm100f.pack", "-arch=sm_100f" },
    { "120f", SGK_ARCH_120F, "sm120f.pack", "-arch=sm_120f" },
    { "ptx80", 0, "ptx80.pack", "-arch=compute_80" },
    { 0 }
};

const sgk_arch *sgk_arch_of(unsigned bit)
{
    const sgk_arch *a = sgk_archs;
    while (a->bit != bit) ++a;
    return a;
}

/* ---- where packs are -------------------------------------------------------------------------------------------------- */

static pthread_once_t folder_once = PTHREAD_ONCE_INIT;
static char           folder[PATH_MAX];

static void find_folder(void)
{
    const char *wanted = getenv("SGK_PACK_PATH");
    if (wanted && *wanted) {
        snprintf(folder, sizeof folder, "%s", wanted);
        return;
    }
    /* A program is known to dladdr() by argv[0], which need not lead anywhere. */
    Dl_info info;
    char    self[PATH_MAX];
    if (!dladdr(folder, &info) || !info.dli_fname || !strchr(info.dli_fname, '/') || !realpath(info.dli_fname, self)) {
        if (!realpath("/proc/self/exe", self)) return;
    }
    *strrchr(self, '/')               = 0;
    static const char *const places[] = { "packs", "../packs" };
    for (size_t i = 0; i < sizeof places / sizeof *places; ++i) {
        if (snprintf(folder, sizeof folder, "%s/%s", self, places[i]) < (int)sizeof folder && !access(folder, R_OK | X_OK)) return;
    }
    folder[0] = 0;
}

const char *sgk_pack_folder(void)
{
    pthread_once(&folder_once, find_folder);
    return folder;
}

static bool at_hand(const sgk_arch *arch)
{
    char path[PATH_MAX];
    return *sgk_pack_folder() && snprintf(path, sizeof path, "%s/%s", folder, arch->file) < (int)sizeof path && !access(path, R_OK);
}

unsigned sgk_pack_arch(int major, int minor)
{
    unsigned best = 0;
    if (major == 8) best = minor == 9 ? SGK_ARCH_89 : SGK_ARCH_80;
    if (major == 9 && minor == 0) best = SGK_ARCH_90A;
    if (major == 10 && (minor == 0 || minor == 3)) best = SGK_ARCH_100F;
    if (major == 12 && minor <= 1) best = SGK_ARCH_120F;
    if (!best || at_hand(sgk_arch_of(best))) return best;
    if (best == SGK_ARCH_89 && at_hand(sgk_arch_of(SGK_ARCH_80))) return SGK_ARCH_80;
    return at_hand(sgk_arch_of(0)) ? 0 : best;
}

/* ---- reading one ------------------------------------------------------------------------------------------------------ */

struct sgk_pack {
    const char            *path;
    const char            *bytes;           /* the mapped file */
    size_t                 size;
    const sgk_pack_header *header;
    const sgk_pack_entry  *entries;
    const char            *keys;
    ZSTD_DDict            *dictionary;      /* NULL when the pack has none */
};

/* [offset, offset + size) lies within a file of `total` bytes. */
static bool inside(uint64_t offset, uint64_t size, uint64_t total) { return offset <= total && size <= total - offset; }

static sgk_status check_header(const char *op, const char *path, const char *bytes, size_t size, const char *arch)
{
    const sgk_pack_header *h = (const sgk_pack_header *)bytes;
    SGK_REQUIRE(size >= sizeof *h || (size >= 8 && memcmp(bytes, SGK_PACK_MAGIC, 8)), SGK_FAILED,
                "%s: %s is truncated: it has %zu bytes, expected a header of %zu", op, path, size, sizeof *h);
    SGK_REQUIRE(!memcmp(h->magic, SGK_PACK_MAGIC, 8), SGK_FAILED, "%s: %s is not a kernel pack: it does not begin with " SGK_PACK_MAGIC, op, path);
    SGK_REQUIRE(h->version == SGK_PACK_VERSION, SGK_FAILED, "%s: %s has pack format %u, expected %d: rebuild the packs with this library",
                op, path, h->version, SGK_PACK_VERSION);
    SGK_REQUIRE(!strncmp(h->owner, SGK_PACK_OWNER, sizeof h->owner), SGK_FAILED, "%s: %s belongs to '%.16s', expected " SGK_PACK_OWNER,
                op, path, h->owner);
    SGK_REQUIRE(!strncmp(h->arch, arch, sizeof h->arch), SGK_FAILED, "%s: %s holds kernels for %.16s, expected %s", op, path, h->arch, arch);
    SGK_REQUIRE(h->file_size == size, SGK_FAILED, "%s: %s is truncated or was appended to: it has %zu bytes, expected %llu", op, path, size,
                (unsigned long long)h->file_size);

    const uint64_t first = sizeof *h;
    SGK_REQUIRE(h->entries <= (size - first) / sizeof(sgk_pack_entry) &&
                    h->keys_offset == first + h->entries * sizeof(sgk_pack_entry) && inside(h->keys_offset, h->keys_size, size) &&
                    h->dictionary_offset == h->keys_offset + h->keys_size && inside(h->dictionary_offset, h->dictionary_size, size) &&
                    h->frames_offset == h->dictionary_offset + h->dictionary_size,
                SGK_FAILED, "%s: %s is corrupted: its sections do not fit together", op, path);

    sgk_pack_header blank = *h;
    blank.checksum        = 0;
    const uint64_t sum    = XXH64(bytes + first, h->frames_offset - first, XXH64(&blank, sizeof blank, SGK_PACK_SEED));
    SGK_REQUIRE(sum == h->checksum, SGK_FAILED, "%s: %s is corrupted: the checksum of its table does not agree", op, path);
    return SGK_OK;
}

/* A table with a good checksum was written by us, but may have been written wrongly: nothing in it is believed. */
static sgk_status check_entries(const char *op, const sgk_pack *p)
{
    const sgk_pack_header *h      = p->header;
    const uint64_t         frames = h->file_size - h->frames_offset;
    SGK_REQUIRE(h->keys_size == 0 || p->keys[h->keys_size - 1] == 0, SGK_FAILED, "%s: %s is corrupted: its last key has no end", op, p->path);
    for (uint64_t i = 0; i < h->entries; ++i) {
        const sgk_pack_entry *e = &p->entries[i];
        SGK_REQUIRE(e->key < h->keys_size && inside(e->frame, e->packed_size, frames) && e->image_size <= SGK_PACK_MAX_IMAGE, SGK_FAILED,
                    "%s: %s is corrupted: entry %llu lies outside the file", op, p->path, (unsigned long long)i);
        SGK_REQUIRE(i == 0 || strcmp(p->keys + e[-1].key, p->keys + e->key) < 0, SGK_FAILED, "%s: %s is corrupted: entry %llu is out of order",
                    op, p->path, (unsigned long long)i);
    }
    return SGK_OK;
}

static sgk_status read_pack(const char *op, sgk_pack *p, const char *path, const char *arch)
{
    p->path = strdup(path);
    SGK_REQUIRE(p->path, SGK_FAILED, "%s: no memory to open %s", op, path);
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    SGK_REQUIRE(file >= 0, SGK_FAILED, "%s: cannot open %s: %s", op, path, strerror(errno));
    struct stat st;
    if (fstat(file, &st) || !S_ISREG(st.st_mode) || st.st_size < 8) {
        close(file);
        return sgk_error(SGK_FAILED, "%s: %s is not a kernel pack: it is no file of at least 8 bytes", op, path);
    }
    void *bytes = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    SGK_REQUIRE(bytes != MAP_FAILED, SGK_FAILED, "%s: cannot map %s: %s", op, path, strerror(errno));
    p->bytes = bytes;
    p->size  = (size_t)st.st_size;

    SGK_TRY(check_header(op, path, p->bytes, p->size, arch));
    p->header  = bytes;
    p->entries = (const sgk_pack_entry *)(p->bytes + sizeof *p->header);
    p->keys    = p->bytes + p->header->keys_offset;
    SGK_TRY(check_entries(op, p));
    if (p->header->dictionary_size) {
        p->dictionary = ZSTD_createDDict_byReference(p->bytes + p->header->dictionary_offset, p->header->dictionary_size);
        SGK_REQUIRE(p->dictionary, SGK_FAILED, "%s: %s is corrupted: its dictionary is none", op, path);
    }
    return SGK_OK;
}

sgk_status sgk_pack_open(const char *op, const char *path, const char *arch, sgk_pack **pack)
{
    sgk_pack *p = calloc(1, sizeof *p);
    SGK_REQUIRE(p, SGK_FAILED, "%s: no memory to open %s", op, path);
    const sgk_status status = read_pack(op, p, path, arch);
    if (status) sgk_pack_close(p);
    else *pack = p;
    return status;
}

void sgk_pack_close(sgk_pack *p)
{
    if (!p) return;
    ZSTD_freeDDict(p->dictionary);
    if (p->bytes) munmap((void *)(uintptr_t)p->bytes, p->size);
    free((void *)(uintptr_t)p->path);
    free(p);
}

size_t sgk_pack_count(const sgk_pack *p) { return (size_t)p->header->entries; }

uint64_t sgk_pack_sources(const sgk_pack *p) { return p->header->sources; }

const char *sgk_pack_key(const sgk_pack *p, size_t i) { return p->keys + p->entries[i].key; }

static const sgk_pack_entry *find(const sgk_pack *p, const char *key)
{
    size_t low = 0, high = sgk_pack_count(p);
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const int    order  = strcmp(key, sgk_pack_key(p, middle));
        if (order == 0) return &p->entries[middle];
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}

sgk_status sgk_pack_get(const char *op, const sgk_pack *p, const char *key, void **image, size_t *size)
{
    const sgk_pack_entry *e = find(p, key);
    SGK_REQUIRE(e, SGK_UNSUPPORTED, "%s: %s does not hold %s: it was made from another version of the sources", op, p->path, key);
    const char *frame = p->bytes + p->header->frames_offset + e->frame;
    SGK_REQUIRE(XXH64(frame, e->packed_size, SGK_PACK_SEED) == e->checksum, SGK_FAILED, "%s: %s is corrupted: the checksum of %s does not agree",
                op, p->path, key);
    SGK_REQUIRE(ZSTD_getFrameContentSize(frame, e->packed_size) == e->image_size, SGK_FAILED,
                "%s: %s is corrupted: %s has another size than its frame says", op, p->path, key);
    char      *memory  = malloc(e->image_size + 1);
    ZSTD_DCtx *context = ZSTD_createDCtx();
    size_t     done    = 0;
    if (memory && context) done = ZSTD_decompress_usingDDict(context, memory, e->image_size, frame, e->packed_size, p->dictionary);
    ZSTD_freeDCtx(context);
    if (!memory || !context || done != e->image_size) {
        free(memory);
        return sgk_error(SGK_FAILED, "%s: cannot unpack %s from %s: %s", op, key, p->path,
                         ZSTD_isError(done) ? ZSTD_getErrorName(done) : "no memory");
    }
    memory[e->image_size] = 0;
    *image                = memory;
    *size                 = e->image_size;
    return SGK_OK;
}

char *sgk_kernel_key(const sgk_kernel *kernel)
{
    char *key;
    return asprintf(&key, "%s|%s|%s", kernel->file, kernel->entry, kernel->defines) < 0 ? NULL : key;
}

#endif
