/*
 * The DLPack structures, layout for layout, so that this library's headers need no other.
 * When dlpack.h was included first (include guard DLPACK_DLPACK_H_), its declarations are used.
 * See https://dmlc.github.io/dlpack for the specification.
 */
#ifndef SGL_KERNEL_DLPACK_COMPAT_H
#define SGL_KERNEL_DLPACK_COMPAT_H
#ifndef DLPACK_DLPACK_H_
#include <stdint.h>

typedef enum {
    kDLCPU      = 1,
    kDLCUDA     = 2,
    kDLCUDAHost = 3,            /* page-locked host memory; operators treat it as CPU memory */
} DLDeviceType;

typedef struct {
    DLDeviceType device_type;
    int32_t      device_id;
} DLDevice;

typedef enum {
    kDLInt           = 0U,
    kDLUInt          = 1U,
    kDLFloat         = 2U,
    kDLBfloat        = 4U,
    kDLComplex       = 5U,
    kDLBool          = 6U,
    kDLFloat8_e4m3fn = 10U,
    kDLFloat8_e5m2   = 12U,
} DLDataTypeCode;

typedef struct {
    uint8_t  code;              /* a DLDataTypeCode */
    uint8_t  bits;
    uint16_t lanes;
} DLDataType;

typedef struct {
    void      *data;
    DLDevice   device;
    int32_t    ndim;
    DLDataType dtype;
    int64_t   *shape;
    int64_t   *strides;         /* in elements; NULL means dense, row-major */
    uint64_t   byte_offset;
} DLTensor;

#endif
#endif
