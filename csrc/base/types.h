/* Plain types that mean the same to the host compiler and to NVRTC. */
#ifndef SGK_TYPES_H
#define SGK_TYPES_H
#ifdef __CUDACC_RTC__
typedef signed char        int8_t;
typedef unsigned char      uint8_t;
typedef short              int16_t;
typedef unsigned short     uint16_t;
typedef int                int32_t;
typedef unsigned int       uint32_t;
typedef long long          int64_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

/* Every number format of the library. The order is part of the check programs' case names only. */
typedef enum {
    SGK_F32,
    SGK_F64,
    SGK_F16,
    SGK_BF16,
    SGK_E4M3,
    SGK_E5M2,
    SGK_I8,
    SGK_U8,
    SGK_I32,
    SGK_I64,
    SGK_BOOL,
    SGK_DTYPES
} sgk_dtype;

#endif
