/* Number formats by name, size and DLPack code: one table. */
#ifndef SGK_DTYPE_H
#define SGK_DTYPE_H
#include "base/types.h"
#include "sgl_kernel/base.h"

typedef struct {
    const char *name;           /* as messages and case names spell it */
    DLDataType  dl;
    int         size;           /* bytes */
} sgk_dtype_info;

extern const sgk_dtype_info sgk_dtypes[SGK_DTYPES];

/* -1 when the format is none of ours. */
int sgk_dtype_of(DLDataType type);

/* What a message calls a format, ours or not: "f32", "i16", "complex64". */
enum { SGK_DTYPE_TEXT = 48 };
const char *sgk_dtype_text(DLDataType type, char text[SGK_DTYPE_TEXT]);

static inline int sgk_dtype_size(sgk_dtype t) { return sgk_dtypes[t].size; }

#endif
