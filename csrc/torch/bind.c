/*
 * Registers the rows of ops.def and torch_ops.def as torch.ops.sgl_kernel.*. Called by the Python package after `import torch`.
 *
 * Registration is for good: torch keeps pointers into this library, which is linked -z nodelete.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/status.h"
#include "sgk_config.h"
#include "sgl_kernel.h"
#include "torch/glue.h"
#include "torch/torch.h"

#define ROWS      "ops.def"
#define TABLE     operators
#define ROW_COUNT operator_count
#include "torch/rows.h"
#undef ROWS
#undef TABLE
#undef ROW_COUNT

#define ROWS      "torch/torch_ops.def"
#define TABLE     torch_operators
#define ROW_COUNT torch_operator_count
#include "torch/rows.h"
#undef ROWS
#undef TABLE
#undef ROW_COUNT

#include "torch/test_ops.h"
#define ROWS      "torch/test_ops.def"
#define TABLE     test_operators
#define ROW_COUNT test_operator_count
#include "torch/rows.h"
#undef ROWS
#undef TABLE
#undef ROW_COUNT

static const struct {
    unsigned    device;
    const char *key;
} keys[] = {
    { CPU, "CPU" },
    { CUDA, "CUDA" },
    { ANY, "CompositeExplicitAutograd" },
};
enum { KEYS = sizeof keys / sizeof *keys };

static sgk_status add(const torch_op *op, const char *space, torch_handle library, const torch_handle *on_key)
{
    char        schema[2048], name[160];
    const char *dot = *op->overload ? "." : "";
    snprintf(name, sizeof name, "%s%s%s", op->name, dot, op->overload);
    const int n = snprintf(schema, sizeof schema, "%s%s", name, op->text);
    SGK_REQUIRE(n > 0 && (size_t)n < sizeof schema, SGK_FAILED, "%s: schema is longer than %zu characters", name, sizeof schema);
    /* A second owner of a name would replace the first one's kernel: stop before that. */
    SGK_REQUIRE(shim.aoti_torch_library_def(library, schema) == 0, SGK_FAILED,
                "torch refused to define %s::%s: another library has registered that name, or this torch does not know its schema %s", space, name, op->text);
    for (int k = 0; k < KEYS; ++k)
        if (op->devices & keys[k].device)
            SGK_REQUIRE(shim.torch_library_impl(on_key[k], name, op->kernel, TORCH_ABI) == 0, SGK_FAILED,
                        "torch refused the %s kernel of %s::%s", keys[k].key, space, name);
    return SGK_OK;
}

static sgk_status add_all(torch_op *ops, const char *space)
{
    torch_handle library = NULL, on_key[KEYS] = { NULL };
    for (torch_op *op = ops; op->name; ++op) {
        SGK_TRY(torch_schema_read(&op->schema, op->name, op->text));
        torch_schema_narrow(&op->schema, op->call_text);
    }
    SGK_REQUIRE(shim.aoti_torch_library_init_fragment(space, __FILE__, __LINE__, &library) == 0, SGK_FAILED,
                "torch refused a library for the operators of %s", space);
    for (int k = 0; k < KEYS; ++k)
        SGK_REQUIRE(shim.aoti_torch_library_init_impl(space, keys[k].key, __FILE__, __LINE__, &on_key[k]) == 0, SGK_FAILED,
                    "torch refused a library for the %s kernels of %s", keys[k].key, space);
    for (const torch_op *op = ops; op->name; ++op) SGK_TRY(add(op, space, library, on_key));
    return SGK_OK;
}

static sgk_status bind_everything(void)
{
    SGK_TRY(torch_shim_load());
    torch_watch_forks();
    SGK_TRY(add_all(operators, "sgl_kernel"));
    SGK_TRY(add_all(torch_operators, "sgl_kernel"));
    const char *tests = getenv("SGK_TEST_OPS");
    return tests && strcmp(tests, "1") == 0 ? add_all(test_operators, "sgl_kernel_test") : SGK_OK;
}

static pthread_mutex_t bind_lock = PTHREAD_MUTEX_INITIALIZER;
static bool            bound;

int sgk_torch_bind(void)
{
    pthread_mutex_lock(&bind_lock);
    const sgk_status status = bound ? SGK_OK : bind_everything();
    bound |= status == SGK_OK;
    pthread_mutex_unlock(&bind_lock);
    return status;
}

int sgk_torch_bound(void)
{
    pthread_mutex_lock(&bind_lock);
    const bool yes = bound;
    pthread_mutex_unlock(&bind_lock);
    return yes;
}

const char *sgk_torch_name(int i, const char **overload)
{
    if (i < 0 || i >= operator_count + torch_operator_count) return NULL;
    const torch_op *op = i < operator_count ? &operators[i] : &torch_operators[i - operator_count];
    *overload          = op->overload;
    return op->name;
}

#define LEFT_OUT(family) " " #family
const char *sgk_families_left_out(void) { return "" SGK_FAMILIES_LEFT_OUT(LEFT_OUT); }
