/* Descriptions of tensors for the copy engine of sm_90 and later (TMA). */
#ifndef SGK_TENSOR_MAP_H
#define SGK_TENSOR_MAP_H
#include "base/types.h"
#include "base/status.h"
#include "cuda/driver.h"

/* Values are the driver's. */
typedef enum { SGK_SWIZZLE_NONE,
               SGK_SWIZZLE_32,
               SGK_SWIZZLE_64,
               SGK_SWIZZLE_128 } sgk_swizzle;
typedef enum { SGK_PROMOTE_NONE,
               SGK_PROMOTE_64,
               SGK_PROMOTE_128,
               SGK_PROMOTE_256 } sgk_l2_promotion;

typedef struct {
    sgk_dtype        dtype;
    int              rank;              /* 1 to 5; the innermost dimension comes first */
    const void      *data;              /* aligned to 16 bytes */
    int64_t          size[5];           /* elements, at most 2^32 each */
    int64_t          stride[5];         /* elements, of dimensions 1 and up; stride[0] is 1 and not read. Multiples of 16 bytes below 2^40 */
    int              box[5];            /* elements, 1 to 256 each */
    sgk_swizzle      swizzle;           /* a row of the box, box[0] elements, must not be wider */
    sgk_l2_promotion promotion;
    bool             nan_outside;       /* elements outside read as NaN instead of zero; float formats only */
} sgk_tensor_map;

/* Makes no driver allocation and takes well under a microsecond. The map is passed to a kernel as a __grid_constant__ part of its arguments. */
sgk_status sgk_cuda_tensor_map(const char *op, const char *name, const sgk_tensor_map *shape, CUtensorMap *map);

#endif
