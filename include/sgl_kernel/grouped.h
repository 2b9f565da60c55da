/*
 * Matrix products of e4m3 with a scale for every block, and products of groups of rows with a matrix each.
 *
 *     d[i, j] = round(sum over blocks q of K of sfa[i, q] * sfb[j / 128, q] * sum over k in block q of a[i, k] * b[j, k])
 *
 * Blocks are 128 elements, the last one of a row may be shorter. Scales are f32 and may have any strides. Products of a block are exact, and summed in f32 or by
 * matrix units that keep 14 bits; times its scales they are added in f32, in a fixed order, and one rounding happens at the end. M, N and K are any; K = 0 gives 0. The
 * version is chosen by the sizes unless exec asks for batch_invariant: then a row's bits do not depend on how many others there are.
 *
 * Lengths and indices lie where the tensors lie. On the CPU, and on the GPU with exec->check_indices, they are checked before anything is written; otherwise
 * the GPU reads and writes nothing outside. Rows of no group are left as they are.
 *
 * Scratch memory: on the CPU a few bytes a group (see SGK_EXEC workspace_query), on the GPU none.
 */
#ifndef SGL_KERNEL_GROUPED_H
#define SGL_KERNEL_GROUPED_H
#include <stdbool.h>
#include "base.h"

/**
 * The formula above, for one matrix that is seen turned.
 *
 * @param out       [M, N], f16 | bf16 | f32; rows may be strided; must not overlap an argument
 * @param mat_a     [M, K], e4m3; rows may be strided
 * @param mat_b     [K, N], e4m3; dense along K (the turned view of [N, K])
 * @param scales_a  [M, K / 128 rounded up], f32
 * @param scales_b  [K / 128 rounded up, N / 128 rounded up], f32
 *
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_fp8_blockwise_scaled_mm(const DLTensor *out, const DLTensor *mat_a, const DLTensor *mat_b, const DLTensor *scales_a,
                                               const DLTensor *scales_b, const sgk_exec *exec);

/** The same with b [N, K] and sfb [N / 128 rounded up, K / 128 rounded up]: DeepGEMM's. */
SGK_API sgk_status sgk_fp8_gemm_nt(const DLTensor *d, const DLTensor *a, const DLTensor *sfa, const DLTensor *b, const DLTensor *sfb, const sgk_exec *exec);

/**
 * Row i times the matrix of its group: b[grouped_layout[i]].
 *
 * @param d               [M, N], f16 | bf16 | f32; rows may be strided; must not overlap an argument
 * @param a               [M, K], e4m3; rows may be strided
 * @param sfa             [M, K / 128 rounded up], f32
 * @param b               [G, N, K], e4m3; any strides but for the last dimension
 * @param sfb             [G, N / 128 rounded up, K / 128 rounded up], f32
 * @param grouped_layout  [M], i32, dense: the group of each row, below 0 for none. In each block of 128 rows (rows 0 to 127, ...) all that have a group
 *                        have that of the first. With use_psum_layout [G]: group g ends before row grouped_layout[g] and begins where the one before it
 *                        ends, rounded up to a multiple of 128
 */
SGK_API sgk_status sgk_m_grouped_fp8_gemm_nt_contiguous(const DLTensor *d, const DLTensor *a, const DLTensor *sfa, const DLTensor *b, const DLTensor *sfb,
                                                        const DLTensor *grouped_layout, bool use_psum_layout, const sgk_exec *exec);

/** The same without scales: a and b are bf16 | f16, d has their dtype or f32. */
SGK_API sgk_status sgk_m_grouped_bf16_gemm_nt_contiguous(const DLTensor *d, const DLTensor *a, const DLTensor *b, const DLTensor *grouped_layout, bool use_psum_layout,
                                                         const sgk_exec *exec);

/**
 * Each group has its own rows, of which the first masked_m[g] count.
 *
 * @param d           [G, M, N], f16 | bf16 | f32; any strides but for the last dimension; must not overlap an argument. Rows from masked_m[g] on stay as they are
 * @param a           [G, M, K], e4m3; any strides but for the last dimension
 * @param sfa         [G, M, K / 128 rounded up], f32
 * @param b           [G, N, K], e4m3; any strides but for the last dimension
 * @param sfb         [G, N / 128 rounded up, K / 128 rounded up], f32
 * @param masked_m    [G], i32, dense; 0 to M
 * @param expected_m  above 0: how many rows to expect in a group; a hint for the choice of a version
 */
SGK_API sgk_status sgk_m_grouped_fp8_gemm_nt_masked(const DLTensor *d, const DLTensor *a, const DLTensor *sfa, const DLTensor *b, const DLTensor *sfb,
                                                    const DLTensor *masked_m, int64_t expected_m, const sgk_exec *exec);

/** The same without scales: a and b are bf16 | f16, d has their dtype or f32. */
SGK_API sgk_status sgk_m_grouped_bf16_gemm_nt_masked(const DLTensor *d, const DLTensor *a, const DLTensor *b, const DLTensor *masked_m, int64_t expected_m,
                                                     const sgk_exec *exec);

/**
 * Rows expert_offsets[e] to expert_offsets[e] + problem_sizes[e, 0] - 1 of a times b[e].
 *
 * @param output          [R, N], f16 | bf16 | f32; rows may be strided; must not overlap an argument
 * @param a_ptrs          [E], i64; as b_ptrs, out_ptrs, a_scales_ptrs, b_scales_ptrs, stride_a, stride_b, stride_c, the layouts and workspace what the release works
 *                        with: neither read nor written
 * @param a               [R, K], e4m3; rows may be strided
 * @param b               [E, K, N], e4m3; dense along K (the turned view of [E, N, K])
 * @param scales_a        [R, K / 128 rounded up], f32
 * @param scales_b        [E, K / 128 rounded up, N / 128 rounded up], f32
 * @param stride_a        [E], i64
 * @param layout_sfa      [E, 5], i32; layout_sfb too
 * @param problem_sizes   [E, 3], i32, dense: rows, N, K; the GPU reads rows alone
 * @param expert_offsets  [E], i32, dense. The rows of two experts must not meet
 * @param workspace       [W], u8
 */
SGK_API sgk_status sgk_fp8_blockwise_scaled_grouped_mm(const DLTensor *output, const DLTensor *a_ptrs, const DLTensor *b_ptrs, const DLTensor *out_ptrs,
                                                       const DLTensor *a_scales_ptrs, const DLTensor *b_scales_ptrs, const DLTensor *a, const DLTensor *b,
                                                       const DLTensor *scales_a, const DLTensor *scales_b, const DLTensor *stride_a, const DLTensor *stride_b,
                                                       const DLTensor *stride_c, const DLTensor *layout_sfa, const DLTensor *layout_sfb,
                                                       const DLTensor *problem_sizes, const DLTensor *expert_offsets, const DLTensor *workspace,
                                                       const sgk_exec *exec);

/** The same with fewer of them. */
SGK_API sgk_status sgk_es_fp8_blockwise_scaled_grouped_mm(const DLTensor *output, const DLTensor *a, const DLTensor *b, const DLTensor *scales_a,
                                                          const DLTensor *scales_b, const DLTensor *stride_a, const DLTensor *stride_b,
                                                          const DLTensor *stride_d, const DLTensor *problem_sizes, const DLTensor *expert_offsets,
                                                          const DLTensor *workspace, const sgk_exec *exec);

/**
 * The same with powers of two for 32 elements of K on both sides (MX):
 *
 *     d[i, j] = round(sum over blocks q of 32 elements of K of 2^(sfa[i, q] - 127) * 2^(sfb[e, q, j] - 127) * sum over k in block q of a[i, k] * b[e, k, j])
 *
 * Scales lie in tiles of 128 rows x 4 blocks: that of row r and block q of an expert, K / 32 blocks in all, is byte
 * (r / 128 * (K / 128) + q / 4) * 512 + r % 32 * 16 + r % 128 / 32 * 4 + q % 4 behind the expert's first. 255 is NaN.
 *
 * @param d                   [R, N], f16 | bf16; rows may be strided; must not overlap an argument
 * @param a                   [R, K], e4m3; rows may be strided; K a multiple of 128
 * @param b                   [E, K, N], e4m3; dense along K; N a multiple of 128
 * @param sfa                 [S, K / 32], u8, dense: for each expert whole tiles, rows blockscale_offsets[e] and on
 * @param sfb                 [E, K / 32, N], u8: the turned view of a dense [E, N, K / 32], in tiles as above
 * @param problem_sizes       [E, 3], i32, dense: rows, N, K; the GPU reads rows alone
 * @param expert_offsets      [E], i32, dense
 * @param blockscale_offsets  [E], i32, dense: multiples of 128
 */
SGK_API sgk_status sgk_es_sm100_mxfp8_blockscaled_grouped_mm(const DLTensor *d, const DLTensor *a, const DLTensor *b, const DLTensor *sfa, const DLTensor *sfb,
                                                             const DLTensor *problem_sizes, const DLTensor *expert_offsets, const DLTensor *blockscale_offsets,
                                                             const sgk_exec *exec);

/**
 * Rows of experts to e4m3 with a power of two for 32 elements: the least that is not below their largest magnitude / 448.
 *
 * @param quant_output        [R, K], e4m3; rows may be strided; must not overlap an argument
 * @param scale_factor        [S, K / 32], u8, dense: as sfa above; places of rows that no expert has stay as they are
 * @param input               [R, K], f16 | bf16; rows may be strided; K a multiple of 128
 * @param problem_sizes       [E, 3], i32, dense: rows come first, the others are not read
 * @param expert_offsets      [E], i32, dense
 * @param blockscale_offsets  [E], i32, dense: multiples of 128
 */
SGK_API sgk_status sgk_es_sm100_mxfp8_blockscaled_grouped_quant(const DLTensor *quant_output, const DLTensor *scale_factor, const DLTensor *input,
                                                                const DLTensor *problem_sizes, const DLTensor *expert_offsets,
                                                                const DLTensor *blockscale_offsets, const sgk_exec *exec);

/**
 * outputs[i] = round(inputs[i] weights[i]^T) for every i, one after the other on exec->stream. All are checked before the first is run.
 *
 * @param outputs  [M_i, N_i], dtype of inputs; rows may be strided; must not overlap an argument (this is checked among eight items in a row)
 * @param inputs   [M_i, K_i], f16 | bf16, all the same; rows may be strided
 * @param weights  [N_i, K_i], dtype of inputs; rows may be strided
 */
SGK_API sgk_status sgk_cublas_grouped_gemm(const DLTensor *const *outputs, int64_t outputs_count, const DLTensor *const *inputs, int64_t inputs_count,
                                           const DLTensor *const *weights, int64_t weights_count, const sgk_exec *exec);
#endif
