/*
 * Packs: every compiled kernel of one architecture in one file, read in place.
 *
 *     header | entries, sorted by key | keys | dictionary | frames
 *
 * A key is "norm/norm.cu|rmsnorm|-DT=bf16 -DWARPS=1". A frame is one cubin (or PTX) under zstd with the pack's dictionary; a kernel is
 * unpacked without touching the others, and entries whose macros are the same share a frame. Integers are little-endian. Whatever
 * lies before the frames is covered by the header's checksum, each frame by its own (XXH64, seed SGK_PACK_SEED).
 *
 * Reader here, writer in tools/pack/pack_write.c.
 */
#ifndef SGK_PACK_H
#define SGK_PACK_H
#include "base/status.h"
#include "cuda/kernel.h"

#define SGK_PACK_MAGIC "SGKPACK"            /* with its 0: 8 bytes */
#define SGK_PACK_OWNER "sgl-kernel"
enum {
    SGK_PACK_VERSION   = 1,                  /* changes with the layout of what follows */
    SGK_PACK_SEED      = 0x5347,
    SGK_PACK_MAX_IMAGE = 64 << 20,          /* bytes of one unpacked kernel; more is taken for corruption */
};

typedef struct {
    char     magic[8];
    uint32_t version;
    uint32_t compiler;                      /* NVRTC, 1000 major + minor */
    char     owner[16];
    char     arch[16];                      /* "90a", or "ptx80" */
    uint64_t file_size;
    uint64_t entries;                       /* how many; they follow the header */
    uint64_t keys_offset, keys_size;
    uint64_t dictionary_offset, dictionary_size;
    uint64_t frames_offset;                 /* up to the end of the file */
    uint64_t sources;                       /* hash of the keys and objects it was made from */
    uint64_t checksum;                      /* of [0, frames_offset) with this field 0 */
} sgk_pack_header;

typedef struct {
    uint64_t key;                           /* its place from keys_offset; ended by a 0 */
    uint64_t frame;                         /* its place from frames_offset */
    uint64_t packed_size, image_size;
    uint64_t checksum;                      /* of the frame */
} sgk_pack_entry;

/* An architecture that packs are made for. */
typedef struct {
    const char *name;                       /* "90a" */
    unsigned    bit;                        /* SGK_ARCH_90A; 0 for PTX, which only general kernels have */
    const char *file;                       /* "sm90a.pack" */
    const char *option;                     /* NVRTC's */
} sgk_arch;

extern const sgk_arch sgk_archs[];          /* ended by a NULL name */

/* The architecture that a GPU of this compute capability is served by: the SGK_ARCH_* bit of the first pack at hand that its kernels
 * can come from, or of the pack that it would need, or 0 (general forms as PTX). */
unsigned sgk_pack_arch(int major, int minor);
const sgk_arch *sgk_arch_of(unsigned bit);
/* Where packs are looked for: SGK_PACK_PATH, else "packs" beside this library or one folder above. "" when there is none. */
const char *sgk_pack_folder(void);

typedef struct sgk_pack sgk_pack;

sgk_status sgk_pack_open(const char *op, const char *path, const char *arch, sgk_pack **pack);
void sgk_pack_close(sgk_pack *pack);
size_t sgk_pack_count(const sgk_pack *pack);
uint64_t sgk_pack_sources(const sgk_pack *pack);
const char *sgk_pack_key(const sgk_pack *pack, size_t i);
/* Unpacks one kernel into memory the caller frees; a PTX image is ended by a 0. */
sgk_status sgk_pack_get(const char *op, const sgk_pack *pack, const char *key, void **image, size_t *size);

/* "file|entry|defines" into memory the caller frees; NULL without memory. */
char *sgk_kernel_key(const sgk_kernel *kernel);

#endif
