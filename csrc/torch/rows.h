/*
 * Turns a file of rows, ROWS, into the table TABLE of torch operators with their boxed kernels. Included by bind.c once for each file.
 *
 *   call_NAME__OVERLOAD    the C call with its typed arguments. A number that would be cut on the way into it does not compile:
 *                          write I32(i) and the binding checks the range.
 *   boxed_NAME__OVERLOAD   what torch calls
 */
#define OP(name, devices, schema, call)                 ROW(name, , devices, schema, call, #call)
#define OVERLOAD(name, overload, devices, schema, call) ROW(name, overload, devices, schema, call, #call)

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wconversion"
#define ROW(name, overload, devices, schema, call, text) \
    static sgk_status call_##name##__##overload(torch_frame *f) \
    { \
        (void)f; \
        return call; \
    }
#include ROWS
#undef ROW
#pragma GCC diagnostic pop

enum {
#define ROW(name, overload, devices, schema, call, text) AT_##name##__##overload,
#include ROWS
#undef ROW
    ROW_COUNT
};

static torch_op TABLE[ROW_COUNT + 1];
#define ROW(name, overload, devices, schema, call, text) \
    static void boxed_##name##__##overload(torch_slot *stack, uint64_t nargs, uint64_t nresults) \
    { torch_run(&TABLE[AT_##name##__##overload], stack, nargs, nresults); }
#include ROWS
#undef ROW

static torch_op TABLE[ROW_COUNT + 1] = {
#define ROW(name, overload, devices, schema, call, text) \
    { #name, #overload, devices, schema, text, call_##name##__##overload, boxed_##name##__##overload, { 0 } },
#include ROWS
#undef ROW
    { 0 }
};

#undef OP
#undef OVERLOAD
