#include "base/exec.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* -1 until the environment was asked. Racing threads store the same answer. `unset`: what it is where the variable says nothing. */
static bool environment_switch(const char *name, bool unset, _Atomic int *answer)
{
    int known = *answer;
    if (known < 0) {
        const char *value = getenv(name);
        *answer = known = value && *value ? strcmp(value, "0") != 0 : unset;
    }
    return known;
}

static bool choose(sgk_switch wanted, const char *name, bool unset, _Atomic int *answer)
{
    return wanted == SGK_DEFAULT ? environment_switch(name, unset, answer) : wanted == SGK_ON;
}

bool sgk_exec_pdl(const sgk_exec *exec)
{
    static _Atomic int answer = -1;
    return choose(SGK_EXEC(exec, pdl, SGK_DEFAULT), "TRTLLM_ENABLE_PDL", true, &answer);
}

bool sgk_exec_pdl_asked(const sgk_exec *exec)
{
    static _Atomic int answer = -1;
    return choose(SGK_EXEC(exec, pdl, SGK_DEFAULT), "TRTLLM_ENABLE_PDL", false, &answer);
}

bool sgk_exec_batch_invariant(const sgk_exec *exec)
{
    static _Atomic int answer = -1;
    return choose(SGK_EXEC(exec, batch_invariant, SGK_DEFAULT), "SGK_BATCH_INVARIANT", false, &answer);
}

bool sgk_exec_check_indices(const sgk_exec *exec)
{
    static _Atomic int answer = -1;
    return choose(SGK_EXEC(exec, check_indices, SGK_DEFAULT), "SGK_CHECK", false, &answer);
}

bool sgk_log_wanted(const sgk_exec *exec)
{
    static _Atomic int answer = -1;
    return SGK_EXEC(exec, log, NULL) || environment_switch("SGK_VERBOSE", false, &answer);
}

void sgk_log(const sgk_exec *exec, const char *format, ...)
{
    char    message[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    if (SGK_EXEC(exec, log, NULL)) exec->log(SGK_EXEC(exec, user, NULL), message);
    else fprintf(stderr, "sgl_kernel: %s\n", message);
}

enum { FROM_NOBODY,
       FROM_HOOK,
       FROM_MALLOC };

sgk_status sgk_scratch_get(sgk_scratch *scratch, const char *op, size_t bytes, DLDevice device, const sgk_exec *exec)
{
    *scratch      = (sgk_scratch){ .device = device, .exec = exec, .origin = FROM_NOBODY };
    size_t *query = SGK_EXEC(exec, workspace_query, NULL);
    if (query) {
        *query              = bytes;
        scratch->query_only = true;
        return SGK_OK;
    }
    if (bytes == 0) return SGK_OK;
    if (SGK_EXEC(exec, workspace, NULL) && SGK_EXEC(exec, workspace_size, 0) >= bytes) {
        const uintptr_t alignment = device.device_type == kDLCUDA ? 256 : 64;
        SGK_REQUIRE((uintptr_t)exec->workspace % alignment == 0, SGK_BAD_ARG, "%s: exec->workspace is at %p, expected a multiple of %d",
                    op, exec->workspace, (int)alignment);
        scratch->memory = exec->workspace;
        return SGK_OK;
    }
    if (SGK_EXEC(exec, allocate, NULL)) {
        scratch->memory = exec->allocate(SGK_EXEC(exec, user, NULL), bytes, device);
        scratch->origin = FROM_HOOK;
    } else if (device.device_type != kDLCUDA) {
        scratch->memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
        scratch->origin = FROM_MALLOC;
    } else {
        return sgk_error(SGK_BAD_ARG, "%s: exec->workspace has %zu bytes, expected %zu", op,
                         SGK_EXEC(exec, workspace, NULL) ? SGK_EXEC(exec, workspace_size, 0) : (size_t)0, bytes);
    }
    SGK_REQUIRE(scratch->memory, SGK_FAILED, "%s: no memory for %zu bytes of scratch", op, bytes);
    return SGK_OK;
}

void sgk_scratch_put(sgk_scratch *scratch)
{
    if (!scratch->memory) return;
    if (scratch->origin == FROM_HOOK && SGK_EXEC(scratch->exec, release, NULL))
        scratch->exec->release(SGK_EXEC(scratch->exec, user, NULL), scratch->memory, scratch->device);
    if (scratch->origin == FROM_MALLOC) free(scratch->memory);
    scratch->memory = NULL;
}
