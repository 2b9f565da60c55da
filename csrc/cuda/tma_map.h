/* A tensor as the copy engine of sm_90 sees it: the driver writes it (tensor_map.h), kernels get it within their arguments. Read by the
 * host compiler and by NVRTC alike. */
#ifndef SGK_TMA_MAP_H
#define SGK_TMA_MAP_H
#include "base/types.h"

#ifdef __cplusplus
struct alignas(64) sgk_tma_map { uint64_t opaque[16]; };
#else
typedef struct { _Alignas(64) uint64_t opaque[16]; } sgk_tma_map;
#endif

#endif
