/* What the Hadamard transforms are given, and the matrices themselves. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_HADAMARD_H
#define SGK_HADAMARD_H
#include "base/types.h"

struct hadamard_args {
    void       *out;
    const void *x;
    int64_t     rows, dim;                              /* elements of a row without its padding */
    int64_t     out_stride, x_stride;                   /* in elements */
    float       scale;
    sgk_dtype   dtype;
    int32_t     order, log2;                            /* a padded row is order * 2^log2 elements, order 1, 12, 20, 28 or 40 */
    int32_t     pieces;                                 /* GPU: rows and dim are whole pieces of 8 elements, on 16-byte boundaries */
};

/* The largest padded row is 2^15 elements, or an order times 2^10. */
enum { HADAMARD_MOST = 40 << 10 };

#ifdef __CUDACC__
#define HADAMARD_FN static __device__ __forceinline__
#else
#define HADAMARD_FN static inline
#endif

/*
 * Whether entry (i, j) of the Hadamard matrix of an order is -1.
 *
 *     12  R. Paley's second construction from the residues modulo 5: entries of a symmetric conference matrix of order 6 become
 *         [+ +; + -] with their sign, the zeros of its diagonal [+ -; - -]
 *     20  J. Williamson's: A B C D are symmetric circulant matrices of order 5, and      A  B  C  D
 *     28  of order 7                                                                    -B  A -D  C
 *                                                                                       -C  D  A -B
 *                                                                                       -D -C  B  A
 *     40  [P P; P -P], P by Paley's first construction from the residues modulo 19
 *
 * (R. Paley: On Orthogonal Matrices, 1933. J. Williamson: Hadamard's Determinant Theorem and the Sum of Four Squares, 1944.)
 */
HADAMARD_FN int hadamard_residue(int i, int prime, unsigned residues) { return (int)(residues >> ((i + prime) % prime) & 1); }

HADAMARD_FN int hadamard_paley12(int i, int j)
{
    const int b = i / 2, c = j / 2, both = i % 2 & j % 2;
    if (b == c) return i % 2 | j % 2;
    return (b && c && !hadamard_residue(c - b, 5, 0x12)) ^ both;
}

HADAMARD_FN int hadamard_williamson(int i, int j, int size)
{
    const int      b = i / size, c = j / size, d = (j - i % size + size) % size, which = b ^ c;
    const unsigned sign = (b == 0 ? 0x0u : b == 1 ? 0x5u
                                       : b == 2   ? 0x9u
                                                  : 0x3u) >>
                              c &
                          1;
    /* Bit d: the circulant matrix is -1 at distance d from the diagonal. */
    const unsigned five  = which < 2 ? 0x1eu : which == 2 ? 0x0cu
                                                          : 0x12u;
    const unsigned seven = which == 0 ? 0x7eu : which == 1 ? 0x3cu
                                            : which == 2   ? 0x5au
                                                           : 0x66u;
    return (int)(sign ^ ((size == 5 ? five : seven) >> d % size & 1));
}

HADAMARD_FN int hadamard_paley20(int i, int j)
{
    if (i == 0) return j > 0;
    if (j == 0 || i == j) return 0;
    return !hadamard_residue(i - j, 19, 0x30af2);
}

HADAMARD_FN int hadamard_negative(int order, int i, int j)
{
    if (order == 12) return hadamard_paley12(i, j);
    if (order == 20) return hadamard_williamson(i, j, 5);
    if (order == 28) return hadamard_williamson(i, j, 7);
    return hadamard_paley20(i % 20, j % 20) ^ (i / 20 & j / 20);
}

/* GPU: the place in shared memory of element i of a row, with gaps that keep the threads of a warp on different banks. */
#define HADAMARD_PLACE(i) ((i) + 4 * ((i) >> 5) + 8 * ((i) >> 8))

#endif
