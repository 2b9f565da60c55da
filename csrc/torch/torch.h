/* What the Python package calls through ctypes. */
#ifndef SGK_TORCH_H
#define SGK_TORCH_H
#include "sgl_kernel/base.h"

/* Registers every operator with the torch of this process; further calls do nothing. An sgk_status; see sgk_last_error(). */
SGK_API int sgk_torch_bind(void);
SGK_API int sgk_torch_bound(void);

/* Name and overload ("" for the default one) of the i-th operator that sgk_torch_bind() registers; NULL behind the last. */
SGK_API const char *sgk_torch_name(int i, const char **overload);

/* Why the last operator that raised on this thread did: an sgk_status. The package chooses its exception by it. */
SGK_API int sgk_torch_last_status(void);

/* The families that this build leaves out, each behind a space. */
SGK_API const char *sgk_families_left_out(void);

#endif
