/*
 * Matrix instructions of a warp (sm_80): D[16x8] += A[16x16] B[16x8] in f32, A and B in f16 or bf16.
 *
 * Who holds what, with g = lane / 4 and t = lane % 4 (a register is two neighbours in k, or in n for D):
 *
 *     A (rows m, columns k)            B (rows k, columns n)          D (rows m, columns n)
 *     a[0]  row g,     k 2t, 2t+1      b[0]  k 2t, 2t+1    n g        d[0], d[1]  row g,     n 2t, 2t+1
 *     a[1]  row g + 8, k 2t, 2t+1      b[1]  k 2t+8, 2t+9  n g        d[2], d[3]  row g + 8, n 2t, 2t+1
 *     a[2]  row g,     k 2t+8, 2t+9
 *     a[3]  row g + 8, k 2t+8, 2t+9
 *
 * So D of one product, packed in pairs, is A of the next: d of n-blocks 2j and 2j + 1 gives a of k-block j.
 *
 * ldmatrix reads 8x8 matrices of 16-bit elements: lanes 8i .. 8i+7 give the addresses of the 8 rows (16 bytes, aligned) of matrix i,
 * and lane l receives from each matrix row l / 4, columns 2 (l % 4) and the next; _trans: the same of the transposed matrix.
 */
#pragma once
#include "types.cuh"

DEVICE void ldmatrix_x4(uint32_t r[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

DEVICE void ldmatrix_x4_trans(uint32_t r[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

DEVICE void ldmatrix_x2(uint32_t r[2], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(address) : "memory");
}

/* The tag chooses the format: mma_m16n8k16(d, a, b, (const T *)0). */
DEVICE void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2], const f16 *)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2], const bf16 *)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/*
 * D[16x8] += A[16x32] B[32x8] of 8-bit integers, exact in 32 bits. A register is four neighbours in k: read 2t, 2t+1 above as 4t .. 4t+3, and
 * 2t+8, 2t+9 as 4t+16 .. 4t+19.
 */
DEVICE void mma_m16n8k32(int d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Two f32 to a packed pair of the tag's format, the first in the low half. */
DEVICE uint32_t pack2(float lo, float hi, const f16 *) { return pack_f16x2(lo, hi); }
DEVICE uint32_t pack2(float lo, float hi, const bf16 *) { return pack_bf16x2(lo, hi); }
