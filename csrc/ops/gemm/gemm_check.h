/* What the checks of this family share. */
#ifndef SGK_GEMM_CHECK_H
#define SGK_GEMM_CHECK_H
#include "check/check.h"

void check_embed(void);
void check_packed(void);
void check_scaled(void);
void check_scaled_shape(int64_t rows, int64_t columns, int64_t depth);

/*
 * Batch invariant: a row's bits are the same whether it comes alone or among others. The product of INVARIANT_ROWS rows into `out`, then of
 * every sixth of them alone into the rows of `alone`, which has INVARIANT_ALONE. Scales may be NULL. The harness asks for the scratch memory
 * of one call: `own_scratch`, where products need such, lets those of single rows have their own on the CPU.
 */
enum { INVARIANT_ROWS  = 37,
       INVARIANT_APART = 6,
       INVARIANT_ALONE = INVARIANT_ROWS / INVARIANT_APART + 1 };
typedef sgk_status gemm_product(const DLTensor *out, const DLTensor *input, const DLTensor *weight, const DLTensor *input_scales, const DLTensor *weight_scales,
                                const sgk_exec *exec);
sgk_status check_all_and_alone(gemm_product *product, bool own_scratch, const DLTensor *out, const DLTensor *alone, const DLTensor *input, const DLTensor *weight,
                               const DLTensor *input_scales, const DLTensor *weight_scales, const sgk_exec *exec);
/* After the call. */
void check_same_alone(check_tensor *out, check_tensor *alone, int64_t columns);

#endif
