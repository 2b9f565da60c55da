#include "torch/shim.h"
#include <dlfcn.h>
#include <link.h>
#include <string.h>
#include "base/status.h"

torch_shim shim;

static DLDataType dtype_of_code[64];                /* bits 0: none */

/* Python loads torch RTLD_LOCAL, so only a handle of the library itself finds its symbols. */
static int note_path(struct dl_phdr_info *info, size_t size, void *context)
{
    (void)size;
    const char **found = context;
    const char  *file  = info->dlpi_name ? strrchr(info->dlpi_name, '/') : NULL;
    if (!file || strncmp(file + 1, found[0], strlen(found[0])) != 0) return 0;
    found[1] = info->dlpi_name;
    return 1;
}

static void *loaded_library(const char *name, const char *prefix)
{
    void       *library  = dlopen(name, RTLD_NOW | RTLD_NOLOAD);
    const char *found[2] = { prefix, NULL };        /* a wheel may have renamed it */
    if (!library && dl_iterate_phdr(note_path, found)) library = dlopen(found[1], RTLD_NOW | RTLD_NOLOAD);
    return library;
}

static void note_dtype(void *library, const char *function, uint8_t code, uint8_t bits, uint16_t lanes)
{
    int32_t (*ask)(void);
    *(void **)&ask   = dlsym(library, function);
    const int32_t at = ask ? ask() : -1;
    if (at >= 0 && at < 64) dtype_of_code[at] = (DLDataType){ code, bits, lanes };
}

sgk_status torch_shim_load(void)
{
    void *cpu = loaded_library("libtorch_cpu.so", "libtorch_cpu");
    SGK_REQUIRE(cpu, SGK_UNSUPPORTED, "torch is not loaded in this process: import torch first");
    torch_shim found = { 0 };
#define X(result, name, arguments) \
    *(void **)&found.name = dlsym(cpu, #name); \
    SGK_REQUIRE(found.name, SGK_UNSUPPORTED, "this torch has no " #name ", expected torch 2.10 or newer");
    TORCH_SHIM_REQUIRED(X)
#undef X
#define X(result, name, arguments) *(void **)&found.name = dlsym(cpu, #name);
    TORCH_SHIM_OPTIONAL(X)
#undef X
    SGK_REQUIRE((found.torch_new_stable_ivalue && found.torch_delete_stable_ivalue) || (found._Znwm && found._ZdlPv), SGK_UNSUPPORTED,
                "this torch has neither torch_new_stable_ivalue nor C++'s operator new, expected one of them");
    void *cuda = loaded_library("libtorch_cuda.so", "libtorch_cuda.");
    if (cuda) {
#define X(result, name, arguments) *(void **)&found.name = dlsym(cuda, #name);
        TORCH_SHIM_CUDA(X)
#undef X
    }
    shim = found;
#define X(function, code, bits, lanes) note_dtype(cpu, #function, code, bits, lanes);
    TORCH_DTYPES(X)
#undef X
    return SGK_OK;
}

bool torch_dtype_to_dl(int32_t code, DLDataType *type)
{
    if (code < 0 || code >= 64 || dtype_of_code[code].bits == 0) return false;
    *type = dtype_of_code[code];
    return true;
}

int32_t torch_dtype_from_dl(DLDataType type)
{
    for (int32_t code = 0; code < 64; ++code) {
        const DLDataType t = dtype_of_code[code];
        if (t.code == type.code && t.bits == type.bits && t.lanes == type.lanes) return code;
    }
    return -1;
}

torch_slot torch_box(torch_slot value)
{
    torch_slot *box = NULL;
    if (shim.torch_new_stable_ivalue) shim.torch_new_stable_ivalue(&box);
    else box = shim._Znwm(sizeof *box);
    *box = value;
    return torch_slot_of(box);
}

void torch_unbox(torch_slot box)
{
    torch_slot *pointer = (torch_slot *)(uintptr_t)box;
    if (shim.torch_delete_stable_ivalue) shim.torch_delete_stable_ivalue(pointer);
    else shim._ZdlPv(pointer);
}
