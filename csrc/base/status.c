#include "base/status.h"
#include <stdarg.h>
#include "sgk_config.h"
#include <stdio.h>

static _Thread_local char last_error[1024];

const char *sgk_last_error(void) { return last_error; }

const char *sgk_version(void) { return SGK_VERSION; }

/* A text that was cut may end inside a character of several bytes (UTF-8), which is no text to Python: such a last character goes. */
static void end_whole(char *text, size_t length)
{
    size_t start = length;
    while (start > 0 && (text[start - 1] & 0xc0) == 0x80) --start;              /* behind the last byte that begins a character */
    if (start > 0 && (text[start - 1] & 0x80)) text[start - 1] = 0;
}

sgk_status sgk_error(sgk_status code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    const int wanted = vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    if (wanted >= (int)sizeof last_error) end_whole(last_error, sizeof last_error - 1);
    return code;
}
