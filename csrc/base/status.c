#include "base/status.h"
#include <stdarg.h>
#include "sgk_config.h"
#include <stdio.h>

static _Thread_local char last_error[1024];

const char *sgk_last_error(void) { return last_error; }

const char *sgk_version(void) { return SGK_VERSION; }

sgk_status sgk_error(sgk_status code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return code;
}
