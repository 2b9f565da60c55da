/* The check, for sgk-check. */
#ifndef SGK_CHECK_FRONT_H
#define SGK_CHECK_FRONT_H
#include "sgl_kernel/base.h"

/** Runs as the command line says; the exit status. It ends the process where a failure leaves no way on. */
SGK_API int sgk_check_main(int argc, char **argv);

#endif
