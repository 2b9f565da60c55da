/* Status codes with their sentence, and the switches a call can carry. */
#ifndef SGK_STATUS_H
#define SGK_STATUS_H
#include <stdbool.h>
#include "sgl_kernel/base.h"

/* Records the message for sgk_last_error() and hands the code back. */
sgk_status sgk_error(sgk_status code, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

/* Returns `code` with a message when `cond` does not hold. */
#define SGK_REQUIRE(cond, code, ...) \
    do { \
        if (__builtin_expect(!(cond), 0)) return sgk_error(code, __VA_ARGS__); \
    } while (0)

/* Passes a failure on, untouched. */
#define SGK_TRY(expr) \
    do { \
        const sgk_status status_ = (expr); \
        if (__builtin_expect(status_ != SGK_OK, 0)) return status_; \
    } while (0)

#endif
