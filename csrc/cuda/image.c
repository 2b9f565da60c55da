/*
 * SGK_JIT=1 (developers): NVRTC from SGK_NVRTC=path or the loader's search, sources from SGK_SOURCE=folder or the folder this library was
 * built from. Nothing is written unless SGK_JIT_CACHE=folder names a place for compiled objects.
 */
#include "cuda/image.h"
#include "sgk_config.h"

#if SGK_HAVE_CUDA
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cuda/nvrtc.h"

enum { MAX_ARCHS = 8 };
static sgk_pack *packs[MAX_ARCHS];          /* by place in sgk_archs */

static const char *environment(const char *name, const char *otherwise)
{
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

/* "sm80, sm90a" of the packs that are there. */
static void list_packs(char *text, size_t size)
{
    size_t used = 0;
    text[0]     = 0;
    for (const sgk_arch *a = sgk_archs; a->name; ++a) {
        char path[PATH_MAX];
        if (snprintf(path, sizeof path, "%s/%s", sgk_pack_folder(), a->file) >= (int)sizeof path || access(path, R_OK)) continue;
        const int n = snprintf(text + used, size - used, "%s%s", used ? ", " : "", a->file);
        if (n > 0 && (size_t)n < size - used) used += (size_t)n;
    }
    if (!used) snprintf(text, size, "no pack");
}

static sgk_status pack_for(const char *op, const sgk_arch *arch, const sgk_cuda_device *device, sgk_pack **pack)
{
    sgk_pack **slot = &packs[arch - sgk_archs];
    if (!*slot) {
        char path[PATH_MAX], found[128];
        list_packs(found, sizeof found);
        SGK_REQUIRE(*sgk_pack_folder(), SGK_UNSUPPORTED, "%s: no folder 'packs' beside the library or above it; SGK_PACK_PATH can name one", op);
        SGK_REQUIRE(snprintf(path, sizeof path, "%s/%s", sgk_pack_folder(), arch->file) < (int)sizeof path && !access(path, R_OK), SGK_UNSUPPORTED,
                    "%s: cuda:%d (%s, compute capability %d.%d) needs %s, and %s has %s", op, device->ordinal, device->name, device->major,
                    device->minor, arch->file, sgk_pack_folder(), found);
        SGK_TRY(sgk_pack_open(op, path, arch->name, slot));
    }
    *pack = *slot;
    return SGK_OK;
}

static sgk_status from_pack(const char *op, const sgk_kernel *kernel, const sgk_arch *arch, const sgk_cuda_device *device, void **image)
{
    sgk_pack *pack;
    SGK_TRY(pack_for(op, arch, device, &pack));
    char *key = sgk_kernel_key(kernel);
    SGK_REQUIRE(key, SGK_FAILED, "%s: no memory", op);
    size_t           size;
    const sgk_status status = sgk_pack_get(op, pack, key, image, &size);
    free(key);
    return status;
}

static sgk_status from_source(const char *op, const sgk_kernel *kernel, const sgk_arch *arch, const sgk_exec *exec, void **image)
{
    const char *source = environment("SGK_SOURCE", SGK_SOURCE_DIR), *folder = environment("SGK_JIT_CACHE", NULL);
    SGK_TRY(sgk_nvrtc_load(op, environment("SGK_NVRTC", NULL)));
    sgk_object_key key;
    sgk_object     object;
    SGK_TRY(sgk_nvrtc_key(op, source, kernel, arch, &key));
    if (!folder || !sgk_object_read(folder, &key, &object)) {
        const sgk_status status = sgk_nvrtc_compile(op, source, kernel, arch, &object);
        if (status) {
            if (sgk_log_wanted(exec) && object.log) sgk_log(exec, "%s", object.log);
            sgk_object_free(&object);
            return status;
        }
        if (sgk_log_wanted(exec))
            sgk_log(exec, "%s: compiled %s %s %s for %s in %.0f ms", op, kernel->file, kernel->entry, kernel->defines, arch->name, object.milliseconds);
        if (folder) {
            if (mkdir(folder, 0777) && errno != EEXIST && sgk_log_wanted(exec)) sgk_log(exec, "%s: cannot make %s: %s", op, folder, strerror(errno));
            /* A cache that cannot be written costs time, not the result. */
            if (sgk_object_write(op, folder, &key, &object) && sgk_log_wanted(exec)) sgk_log(exec, "%s", sgk_last_error());
        }
    }
    *image = object.image;
    free(object.log);
    return SGK_OK;
}

sgk_status sgk_cuda_image(const char *op, const sgk_kernel *kernel, const sgk_cuda_device *device, const sgk_exec *exec, void **image)
{
    SGK_REQUIRE(device->major >= 8, SGK_UNSUPPORTED, "%s: cuda:%d (%s) has compute capability %d.%d, expected 8.0 or newer", op, device->ordinal,
                device->name, device->major, device->minor);
    SGK_REQUIRE(sgk_kernel_fits(kernel, device), SGK_UNSUPPORTED, "%s: %s %s %s is not built for compute capability %d.%d", op, kernel->file,
                kernel->entry, kernel->defines, device->major, device->minor);
    const sgk_arch *arch = sgk_arch_of(device->arch);
    if (strcmp(environment("SGK_JIT", "0"), "0")) return from_source(op, kernel, arch, exec, image);
    if (!arch->bit && sgk_log_wanted(exec))
        sgk_log(exec, "%s: last resort: compute capability %d.%d has no pack, the driver compiles %s from PTX", op, device->major, device->minor,
                kernel->entry);
    return from_pack(op, kernel, arch, device, image);
}

#endif
