/* What a schema says about the slots on the stack: read once, when the operator is registered. */
#ifndef SGK_TORCH_SCHEMA_H
#define SGK_TORCH_SCHEMA_H
#include <stdbool.h>
#include "base/status.h"

enum { TORCH_ARGS    = 48,
       TORCH_RESULTS = 8 };        /* the most that an operator may have */

typedef enum {
    TORCH_TENSOR,
    TORCH_INT,
    TORCH_FLOAT,
    TORCH_BOOL,
    TORCH_STRING,
    TORCH_DTYPE,
    TORCH_DEVICE,
    TORCH_GENERATOR,
    TORCH_CODE,                 /* a Layout or MemoryFormat */
} torch_base;

typedef struct {
    const char *name;           /* into the schema's text: not terminated */
    uint8_t     length;
    uint8_t     base;           /* a torch_base */
    bool        optional;       /* T? of a T without brackets, or of a whole list */
    bool        list, optional_items;
    bool        narrow;         /* the C call takes it as an int: set from the call's text */
} torch_value;

typedef struct {
    int         nargs, nresults;
    torch_value arg[TORCH_ARGS], result[TORCH_RESULTS];
} torch_schema;

/* Reads "(Tensor! out, int n) -> Tensor". SGK_FAILED names what is not understood. */
sgk_status torch_schema_read(torch_schema *schema, const char *op, const char *text);

/* Marks the arguments that the C call reads with I32(i) or IO32(i, default). */
void torch_schema_narrow(torch_schema *schema, const char *call);

#endif
