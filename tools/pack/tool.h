/*
 * sgk-pack: every row of every build table, compiled ahead of time and written into one pack an architecture.
 *
 *     rows (the tables)  ->  builds (rows with the same macros share one)  ->  objects (the cache folder)  ->  packs
 */
#ifndef SGK_PACK_TOOL_H
#define SGK_PACK_TOOL_H
#include "cuda/nvrtc.h"

/* A compiler run: an architecture, a file, its macros. Every entry point of the file is in its object. */
typedef struct {
    const sgk_arch   *arch;
    const sgk_kernel *kernel;               /* the first row it serves */
    sgk_object_key    key;
    sgk_object        object;
    bool              compiled;             /* by this process, not found in the cache */
} pack_build;

/* What one pack will hold under one key. */
typedef struct {
    const sgk_arch   *arch;
    const sgk_kernel *kernel;
    size_t            build;
} pack_row;

typedef struct {
    const char *source, *cache, *out, *allow, *nvrtc;
    int         jobs;
    bool        strict_time;
    pack_build *builds;
    size_t      build_count;
    pack_row   *rows;
    size_t      row_count;
} pack_job;

/* pack_compile.c: fills builds[].object from the cache, compiling what is missing in `jobs` processes. */
bool pack_compile(pack_job *job);

/* pack_remarks.c: spills and lost wgmma concurrency that the allow-list does not excuse, and lines of it that excuse nothing. */
bool pack_check_remarks(const pack_job *job);
/* The most registers that an entry point of the build uses; 0 where the log does not tell. */
int pack_registers(const pack_build *build);

/* pack_write.c: the rows of one architecture into a file, unless it was made from the very same. */
sgk_status pack_write(const pack_job *job, const sgk_arch *arch, const char *path);

#endif
