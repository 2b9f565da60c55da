#include "base/dtype.h"
#include <stdio.h>
#include <string.h>

_Static_assert(sizeof(DLDataType) == 4, "DLDataType has gaps");

/* clang-format off */
const sgk_dtype_info sgk_dtypes[SGK_DTYPES] = {
    [SGK_F32]  = { "f32",  { kDLFloat,         32, 1 }, 4 },
    [SGK_F64]  = { "f64",  { kDLFloat,         64, 1 }, 8 },
    [SGK_F16]  = { "f16",  { kDLFloat,         16, 1 }, 2 },
    [SGK_BF16] = { "bf16", { kDLBfloat,        16, 1 }, 2 },
    [SGK_E4M3] = { "e4m3", { kDLFloat8_e4m3fn,  8, 1 }, 1 },
    [SGK_E5M2] = { "e5m2", { kDLFloat8_e5m2,    8, 1 }, 1 },
    [SGK_I8]   = { "i8",   { kDLInt,            8, 1 }, 1 },
    [SGK_U8]   = { "u8",   { kDLUInt,           8, 1 }, 1 },
    [SGK_I32]  = { "i32",  { kDLInt,           32, 1 }, 4 },
    [SGK_I64]  = { "i64",  { kDLInt,           64, 1 }, 8 },
    [SGK_BOOL] = { "bool", { kDLBool,           8, 1 }, 1 },
};
/* clang-format on */

int sgk_dtype_of(DLDataType type)
{
    for (int i = 0; i < SGK_DTYPES; ++i)
        if (!memcmp(&sgk_dtypes[i].dl, &type, sizeof type)) return i;       /* 4 bytes without gaps: one comparison */
    return -1;
}

const char *sgk_dtype_text(DLDataType type, char text[SGK_DTYPE_TEXT])
{
    static const char *const kinds[] = { [kDLInt] = "i", [kDLUInt] = "u", [kDLFloat] = "f", [kDLBfloat] = "bf", [kDLComplex] = "complex" };
    const int                ours    = sgk_dtype_of(type);
    if (ours >= 0) snprintf(text, SGK_DTYPE_TEXT, "%s", sgk_dtypes[ours].name);
    else if (type.lanes == 1 && type.code < sizeof kinds / sizeof *kinds && kinds[type.code]) snprintf(text, SGK_DTYPE_TEXT, "%s%d", kinds[type.code], type.bits);
    else snprintf(text, SGK_DTYPE_TEXT, "DLPack code %d with %d bits", type.code, type.bits);
    return text;
}
