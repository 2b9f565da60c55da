/* Rows of bytes from here to there. */
#ifndef SGK_CPU_COPY_H
#define SGK_CPU_COPY_H
#include "cpu/simd.h"

/* Copies n bytes and asks for as many at `next`, which need not exist and may be NULL. `stream`: around the caches, both ways, where the row fills whole lines of them;
 * vf_stream_end() ends a range of such rows. */
SGK_INLINE void copy_row(void *to, const void *from, int64_t n, bool stream, const void *next)
{
    char       *out = to;
    const char *in = from, *ahead = next;
    int64_t     i = 0;
#if defined(VF_STREAMS)
    if (stream && ((uintptr_t)to | (uintptr_t)n) % 64 == 0) {
        for (; i < n; i += 64) {
            if (next) __builtin_prefetch(ahead + i, 0, 0);
#if defined(__AVX512F__)
            _mm512_stream_si512((void *)(out + i), _mm512_loadu_si512(in + i));
#else
            _mm256_stream_si256((void *)(out + i), _mm256_loadu_si256((const void *)(in + i)));
            _mm256_stream_si256((void *)(out + i + 32), _mm256_loadu_si256((const void *)(in + i + 32)));
#endif
        }
        return;
    }
#endif
    for (; i + 64 <= n; i += 64) {
        if (next) __builtin_prefetch(ahead + i);
        memcpy(out + i, in + i, 64);
    }
    if (i < n) memcpy(out + i, in + i, (size_t)(n - i));
    (void)stream;
}

/* Asks for one line of every page of n bytes that will be written, in no order: the addresses of pages are looked up in time. */
SGK_INLINE void copy_page_soon(void *to, int64_t n)
{
    for (int64_t i = 0; i < n; i += 4096) __builtin_prefetch((char *)to + i, 1);
}

/* The same of what will be read. */
SGK_INLINE void read_page_soon(const void *from, int64_t n)
{
    for (int64_t i = 0; i < n; i += 4096) __builtin_prefetch((const char *)from + i);
}

#endif
