/* Compiling a row of a build table with NVRTC: what sgk-pack does ahead of time and SGK_JIT=1 at run time. */
#ifndef SGK_NVRTC_H
#define SGK_NVRTC_H
#include "cuda/pack.h"

/* Loads NVRTC from `path`, or where NULL from the loader's own search. Once a process; not thread safe. */
sgk_status sgk_nvrtc_load(const char *op, const char *path);
/* 1000 major + minor; 0 before sgk_nvrtc_load(). */
int sgk_nvrtc_version(void);

typedef struct {
    void  *image;               /* cubin, or PTX ended by a 0 that does not count */
    size_t size;
    char  *log;                 /* the compiler's remarks, "" without any */
    double milliseconds;
} sgk_object;

void sgk_object_free(sgk_object *object);

/* `source` is the repository's folder. When the compiler refuses, object->log has its words and must be freed too. */
sgk_status sgk_nvrtc_compile(const char *op, const char *source, const sgk_kernel *kernel, const sgk_arch *arch, sgk_object *object);

/*
 * What can change the result, hashed: the source, every project header it includes at any depth, macros, options, architecture and
 * compiler. Two rows that differ in the entry point alone have the same object, and the same key.
 */
typedef struct { char text[33]; } sgk_object_key;
sgk_status sgk_nvrtc_key(const char *op, const char *source, const sgk_kernel *kernel, const sgk_arch *arch, sgk_object_key *key);

/* Objects in a folder, by key. Reading returns false where there is none, or where it was damaged; writing is atomic, and losing the
 * race against another process is success. */
bool sgk_object_read(const char *folder, const sgk_object_key *key, sgk_object *object);
sgk_status sgk_object_write(const char *op, const char *folder, const sgk_object_key *key, const sgk_object *object);

#endif
