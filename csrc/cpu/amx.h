/*
 * The eight tiles of AMX: 16 rows of 64 bytes each, always used whole. With SGK_AMX_MODEL they are arrays and the instructions are C, so
 * that a processor without AMX can check the code around them.
 */
#ifndef SGK_AMX_H
#define SGK_AMX_H
#include <immintrin.h>
#include "base/convert.h"
#include "cpu/cpu.h"

enum { AMX_ROWS       = 16,
       AMX_ROW_BYTES  = 64,
       AMX_TILE_BYTES = AMX_ROWS * AMX_ROW_BYTES };

#if !defined(SGK_AMX_MODEL)

/* A thread configures its tiles before it uses them, and releases them, so that the kernel need not save them any more. */
SGK_INLINE void amx_begin(void)
{
    static const struct {
        uint8_t  palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t  rows[16];
    } __attribute__((aligned(64))) config = { .palette   = 1,
                                              .row_bytes = { 64, 64, 64, 64, 64, 64, 64, 64 },
                                              .rows      = { 16, 16, 16, 16, 16, 16, 16, 16 } };
    _tile_loadconfig(&config);
}
SGK_INLINE void amx_end(void) { _tile_release(); }

/* The compiler does not know that loads read memory: amx_loads_follow() stands between the stores and them. */
#define amx_loads_follow()          __asm__ volatile("" ::: "memory")
#define amx_load(tile, from, bytes) _tile_loadd(tile, from, bytes) /* rows are `bytes` apart */
#define amx_store(tile, to, bytes)  _tile_stored(tile, to, bytes)

/* c[m][n] += (the sum over even k, then that over odd k, of a[m][k] * b[k / 2][2 * n + k % 2]); each a fused chain from 0 */
#define amx_dot_bf16(c, a, b) _tile_dpbf16ps(c, a, b)
/* c[m][n] += the sum over k of a[m][k], u8, times b[k / 4][4 * n + k % 4], s8; in i32 */
#define amx_dot_u8s8(c, a, b) _tile_dpbusd(c, a, b)

#else

static _Thread_local uint8_t amx_tiles[8][AMX_ROWS][AMX_ROW_BYTES];

SGK_INLINE void amx_begin(void) { memset(amx_tiles, 0, sizeof amx_tiles); }
SGK_INLINE void amx_end(void) {}
#define amx_loads_follow() ((void)0)

SGK_INLINE void amx_load(int tile, const void *from, int64_t bytes)
{
    for (int i = 0; i < AMX_ROWS; ++i) memcpy(amx_tiles[tile][i], (const char *)from + i * bytes, AMX_ROW_BYTES);
}
SGK_INLINE void amx_store(int tile, void *to, int64_t bytes)
{
    for (int i = 0; i < AMX_ROWS; ++i) memcpy((char *)to + i * bytes, amx_tiles[tile][i], AMX_ROW_BYTES);
}

/* The instruction takes subnormal numbers as 0 and gives 0 for them. */
SGK_INLINE float amx_normal(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }

SGK_INLINE void amx_dot_bf16(int c, int a, int b)
{
    for (int m = 0; m < AMX_ROWS; ++m)
        for (int n = 0; n < AMX_ROWS; ++n) {
            float chain[2] = { 0, 0 }, sum;
            for (int k = 0; k < 32; ++k) {
                uint16_t x, y;
                memcpy(&x, &amx_tiles[a][m][2 * k], 2);
                memcpy(&y, &amx_tiles[b][k / 2][4 * n + k % 2 * 2], 2);
                chain[k % 2] = amx_normal(fmaf(amx_normal(bf16_to_f32(x)), amx_normal(bf16_to_f32(y)), chain[k % 2]));
            }
            memcpy(&sum, &amx_tiles[c][m][4 * n], 4);
            sum = amx_normal(amx_normal(sum) + amx_normal(chain[0] + chain[1]));
            memcpy(&amx_tiles[c][m][4 * n], &sum, 4);
        }
}

SGK_INLINE void amx_dot_u8s8(int c, int a, int b)
{
    for (int m = 0; m < AMX_ROWS; ++m)
        for (int n = 0; n < AMX_ROWS; ++n) {
            int32_t sum;
            memcpy(&sum, &amx_tiles[c][m][4 * n], 4);
            for (int k = 0; k < 64; ++k) sum += amx_tiles[a][m][k] * (int8_t)amx_tiles[b][k / 4][4 * n + k % 4];
            memcpy(&amx_tiles[c][m][4 * n], &sum, 4);
        }
}

#endif
#endif
