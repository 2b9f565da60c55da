/* Products with packed weights in bf16 and i8 on the matrix units of AMX: the same walk with other strips and tiles. */
#define PACKED_TILES
#include "gemm_packed_cpu.c"
