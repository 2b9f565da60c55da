/* The C side of test_ops.def. */
#ifndef SGK_TORCH_TEST_OPS_H
#define SGK_TORCH_TEST_OPS_H
#include <stdbool.h>
#include "base/types.h"
#include "sgl_kernel/base.h"

sgk_status test_tensors(const DLTensor *out, const DLTensor *x, const DLTensor *y, const DLTensor *z);
sgk_status test_numbers(const DLTensor *out, int count, const double *numbers);
sgk_status test_narrow(const DLTensor *out, int n, int m, float x);
sgk_status test_text(const DLTensor *out, const char *text);
sgk_status test_kinds(const DLTensor *out, int dtype, DLDevice device);
sgk_status test_lists(const DLTensor *out, const int64_t *n, size_t n_count, const double *x, size_t x_count, const int64_t *s, size_t s_count);
sgk_status test_tensor_lists(const DLTensor *out, const DLTensor *const *x, size_t x_count, const DLTensor *const *y, size_t y_count,
                             const DLTensor *const *z, size_t z_count);
sgk_status test_draw(const DLTensor *out, const DLTensor *seeds);
sgk_status test_scratch(const DLTensor *out, int64_t bytes, void *frame);
sgk_status test_loop(const DLTensor *out, const sgk_exec *exec);
sgk_status test_fail(const DLTensor *out, int status);
sgk_status test_copy(const DLTensor *out, const DLTensor *x);
sgk_status test_zero(const DLTensor *out);
sgk_status test_several(const DLTensor *out, const DLTensor *count, const DLTensor *x);
sgk_status test_list_of_ints(int64_t *out, int64_t n);
sgk_status test_plain(int64_t *on, double *ox, bool *ob, int64_t n, double x, bool b);
sgk_status test_described(sgk_dtype *dtype, DLDevice *device, const DLTensor *x);

#endif
