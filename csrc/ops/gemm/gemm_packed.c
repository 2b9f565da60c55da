#include "gemm_packed.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "gemm_packed_cuda.h"
#include "gemm_packed_item.h"
#include "gemm_packed_run.h"
#include "sgl_kernel/gemm_packed.h"

SGK_CPU_DECL(packed);
SGK_CPU_DECL(packed_strips);
SGK_CPU_DECL(linear_sigmoid);
sgk_cpu_fn pack_ref, pack_small_ref, pack_int4_ref;
SGK_CPU_DECL_AMX(packed);
SGK_CPU_DECL_AMX(packed_strips);
static const sgk_cpu_impl packed_cpu[] = SGK_CPU_IMPLS(packed), packed_strips_cpu[] = SGK_CPU_IMPLS(packed_strips), linear_sigmoid_cpu[] = SGK_CPU_IMPLS(linear_sigmoid);
static const sgk_cpu_impl packed_tiles_cpu[] = SGK_CPU_IMPLS_AMX(packed), packed_tile_strips_cpu[] = SGK_CPU_IMPLS_AMX(packed_strips);
static const sgk_cpu_impl pack_cpu[] = { { "ref", 0, pack_ref } }, pack_small_cpu[] = { { "ref", 0, pack_small_ref } }, pack_int4_cpu[] = { { "ref", 0, pack_int4_ref } };

/* ---- products on the CPU ---------------------------------------------------------------------------------------------------------- */

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

enum { GRAIN_BYTES      = 384 * 1024,                    /* of weights, or so many operations, are worth waking a thread for (see sgk_cpu_grain) */
       GRAIN_OPERATIONS = 4 * 1024 * 1024,
       FEW_TILES        = 8,                        /* rows: up to here AMX has too little to do */
       STRIP_BYTES      = 64 << 20 };               /* rows of input that are prepared at a time, at most; but always a block of them */

bool packed_has_pairs(void)
{
#if defined(__x86_64__)
    return (sgk_cpu_flags() & SGK_CPU_AVX512BF16) == SGK_CPU_AVX512BF16;
#else
    return false;
#endif
}

static packed_way way_of(const struct packed_args *a)
{
    if (a->format == WEIGHT_I8 || a->format == WEIGHT_INT4) return BY_I8;
    const bool exact = a->format == WEIGHT_BF16 || a->format == WEIGHT_E4M3 || a->format == WEIGHT_MXFP4;        /* as bf16 */
    return a->dtype == SGK_BF16 && exact && packed_has_pairs() ? BY_BF16 : BY_F32;
}

/* As many elements as a panel holds, but never of two groups. */
static int64_t chunk_of(const struct packed_args *a, packed_way way)
{
    const int64_t room = PACKED_STEPS * packed_step(way);
    if (a->format == WEIGHT_INT4) return int4_part(a->group_k);
    if (a->group_k == 0 || a->group_k >= a->depth) return room;
    int64_t pieces = packed_ceil(a->group_k, room);
    while (a->group_k % pieces || a->group_k / pieces % packed_step(way)) ++pieces;
    return a->group_k / pieces;
}

/* AMX adds bf16 in another order than few rows are added in; sums of integers have no order. */
static bool wants_tiles(const struct packed_args *a, const sgk_exec *exec)
{
    const packed_way way = way_of(a);
    return sgk_cpu_has_amx() && a->rows > FEW_TILES && (way == BY_I8 || (way == BY_BF16 && !sgk_exec_batch_invariant(exec)));
}

struct packed_cpu_args packed_plan(const struct packed_args *a, bool quantise, bool tiles, const sgk_exec *exec)
{
    const packed_way       way     = way_of(a);
    const int64_t          threads = sgk_num_threads(exec);
    struct packed_cpu_args cpu     = { .a = *a, .way = way, .chunk = chunk_of(a, way), .quantise = quantise, .tiles = tiles };
    cpu.row_bytes                  = packed_row_bytes(&cpu);
    /* What is prepared at a time: some matrices, or some rows of one. */
    cpu.some_rows = least(a->rows, most(STRIP_BYTES / most(cpu.row_bytes, 1), PACKED_BLOCK_ROWS));
    cpu.some      = cpu.some_rows < a->rows ? 1 : least(a->batch, most(1, STRIP_BYTES / most(cpu.some_rows * cpu.row_bytes, 1)));
    cpu.group     = a->rows <= PACKED_FEW ? PACKED_BLOCK : PACKED_GROUP;
    if (a->rows <= PACKED_FEW_ROWS && cpu.some * a->columns >= 8 * threads * PACKED_BLOCK) cpu.group = 2 * PACKED_BLOCK;
    cpu.row_blocks       = packed_ceil(cpu.some_rows, PACKED_BLOCK_ROWS);
    const int64_t across = cpu.some * packed_ceil(a->columns, cpu.group);
    if (cpu.row_blocks * across < 2 * threads) cpu.row_blocks = most(cpu.row_blocks, least(packed_ceil(cpu.some_rows, PACKED_STRIP), packed_ceil(2 * threads, across)));
    const int64_t weights = cpu.some * a->columns * (a->depth + 1), worth = 1 + weights / GRAIN_BYTES + 2 * cpu.some_rows * weights / GRAIN_OPERATIONS;
    cpu.parts        = least(least(threads, across * cpu.row_blocks), worth);
    cpu.part_scratch = (packed_panels(&cpu) + 1) * PACKED_PANEL_BYTES + whole_lines(packed_ceil(cpu.some_rows, cpu.row_blocks) * cpu.group * 4);
    return cpu;
}

static int64_t strip_bytes(const struct packed_cpu_args *cpu) { return whole_lines(cpu->some * packed_kept_rows(cpu, cpu->some_rows, cpu->row_blocks) * cpu->row_bytes); }
static int64_t scale_bytes(const struct packed_cpu_args *cpu) { return whole_lines(cpu->some * cpu->some_rows * 4); }

size_t packed_plan_bytes(const struct packed_cpu_args *cpu) { return (size_t)(strip_bytes(cpu) + scale_bytes(cpu) + cpu->parts * cpu->part_scratch); }

void packed_plan_place(struct packed_cpu_args *cpu, char *memory)
{
    cpu->strips    = (uint32_t *)(void *)memory;
    cpu->row_scale = (float *)(void *)(memory + strip_bytes(cpu));
    cpu->scratch   = memory + strip_bytes(cpu) + scale_bytes(cpu);
}

static int64_t count_strips(struct packed_cpu_args *cpu)
{
    int64_t strips = 0;
    for (int64_t i = 0; i < cpu->row_blocks; ++i)
        strips += packed_strip_count(cpu, packed_share(cpu->a.rows, i + 1, cpu->row_blocks) - packed_share(cpu->a.rows, i, cpu->row_blocks));
    return cpu->a.batch * strips;
}

size_t packed_scratch(const struct packed_args *a, bool quantise, DLDevice device, const sgk_exec *exec)
{
    if (a->batch == 0 || a->rows == 0 || a->columns == 0) return 0;
    if (device.device_type == kDLCUDA) return packed_scratch_on_gpu(a, quantise);
    const struct packed_cpu_args cpu = packed_plan(a, quantise, wants_tiles(a, exec), exec);
    return packed_plan_bytes(&cpu);
}

static sgk_status run_on_cpu(const char *op, const struct packed_args *a, bool quantise, char *memory, const sgk_exec *exec)
{
    struct packed_cpu_args cpu   = packed_plan(a, quantise, wants_tiles(a, exec), exec);
    const int64_t          parts = cpu.parts;
    packed_plan_place(&cpu, memory);
    for (int64_t b = 0; b < a->batch; b += cpu.some)
        for (int64_t m = 0; m < a->rows; m += cpu.some_rows) {
            struct packed_args *part = &cpu.a;
            part->batch              = least(cpu.some, a->batch - b);
            part->rows               = least(cpu.some_rows, a->rows - m);
            part->out                = (char *)a->out + (b * a->out_batch + m * a->out_stride) * sgk_dtype_size(a->out_dtype);
            part->input              = (const char *)a->input + (b * a->input_batch + m * a->input_stride) * sgk_dtype_size(a->dtype);
            part->weight             = (const char *)a->weight + b * a->weight_batch;
            part->input_scale        = a->input_scale ? a->input_scale + m : NULL;
            cpu.items                = part->batch * packed_ceil(a->columns, cpu.group) * cpu.row_blocks;
            cpu.parts                = least(parts, cpu.items);
            SGK_TRY(sgk_cpu_run(op, cpu.tiles ? packed_tile_strips_cpu : packed_strips_cpu, &cpu, count_strips(&cpu), sgk_cpu_grain(PACKED_STRIP * cpu.row_bytes), exec));
            SGK_TRY(sgk_cpu_run(op, cpu.tiles ? packed_tiles_cpu : packed_cpu, &cpu, cpu.parts, 1, exec));
        }
    return SGK_OK;
}

sgk_status packed_run(const char *op, const struct packed_args *a, bool quantise, void *memory, DLDevice device, const sgk_exec *exec)
{
    if (a->batch == 0 || a->rows == 0 || a->columns == 0) return SGK_OK;
    return device.device_type == kDLCUDA ? packed_run_on_gpu(op, a, quantise, memory, device, exec) : run_on_cpu(op, a, quantise, memory, exec);
}

sgk_status packed_product(const char *op, const struct packed_args *a, bool quantise, DLDevice device, const sgk_exec *exec)
{
    sgk_scratch scratch;
    SGK_TRY(sgk_scratch_get(&scratch, op, packed_scratch(a, quantise, device, exec), device, exec));
    if (scratch.query_only) return SGK_OK;
    const sgk_status status = packed_run(op, a, quantise, scratch.memory, device, exec);
    sgk_scratch_put(&scratch);
    return status;
}

/* ---- products --------------------------------------------------------------------------------------------------------------------- */

static int32_t format_of(sgk_dtype t)
{
    return t == SGK_F32 ? WEIGHT_F32 : t == SGK_F16 ? WEIGHT_F16
                                   : t == SGK_BF16  ? WEIGHT_BF16
                                   : t == SGK_E4M3  ? WEIGHT_E4M3
                                   : t == SGK_I8    ? WEIGHT_I8
                                                    : WEIGHT_MXFP4;
}

/* The parts of the arguments that every product has; out [.., N] and input [.., K] with one dimension of rows, after folding. */
static struct packed_args product(const sgk_match *m, const DLTensor *out, const DLTensor *input, const DLTensor *weight, const DLTensor *bias, bool packed)
{
    return (struct packed_args){
        .out           = sgk_data(out),
        .input         = sgk_data(input),
        .weight        = sgk_data(weight),
        .bias          = sgk_data(bias),
        .bias_dtype    = SGK_F32,
        .batch         = 1,
        .rows          = SGK_DIM(m, 'M'),
        .columns       = SGK_DIM(m, 'N'),
        .depth         = SGK_DIM(m, 'K'),
        .out_stride    = sgk_fold_stride(out, 1),
        .input_stride  = sgk_fold_stride(input, 1),
        .weight_stride = weight->ndim >= 2 ? sgk_stride(weight, -2) : 0,
        .dtype         = m->dtype,
        .out_dtype     = sgk_dtype_at(out),
        .format        = format_of(sgk_dtype_at(weight)),
        .plain         = !packed,
    };
}

sgk_status sgk_weight_packed_linear(const DLTensor *out, const DLTensor *mat1, const DLTensor *mat2, const DLTensor *bias, bool is_vnni, const sgk_exec *exec)
{
    sgk_match m = { .op = "weight_packed_linear" };
    SGK_MATCH(&m, mat1, "*M K", SGK_ANY_FLOAT);
    SGK_REQUIRE(mat2, SGK_BAD_ARG, "%s: mat2 is NULL, expected a tensor", m.op);
    const bool small = is_vnni && mat2->ndim == 2 && sgk_dtype_at(mat2) == SGK_F32 &&
                       (m.dtype != SGK_F32 || (mat2->shape[1] < PACKED_SMALL && mat2->shape[0] == SGK_DIM(&m, 'K')));
    if (small) SGK_MATCH(&m, mat2, "K N", 1u << SGK_F32);
    else SGK_MATCH(&m, mat2, "N K", 1u << m.dtype);
    SGK_MATCH_OPT(&m, bias, "N", 1u << SGK_F32);
    SGK_MATCH_OUT(&m, out, "*M N", 1u << m.dtype);
    if (is_vnni) SGK_MATCH_DENSE(&m, mat2);
    SGK_REQUIRE(!small || SGK_DIM(&m, 'N') < PACKED_SMALL, SGK_BAD_ARG, "%s: mat2 has %lld columns in f32, expected fewer than %d, or the format of mat1", m.op,
                (long long)SGK_DIM(&m, 'N'), PACKED_SMALL);
    SGK_TRY(sgk_match_done(&m));
    struct packed_args a = product(&m, out, mat1, mat2, bias, is_vnni);
    if (small) a.format = WEIGHT_SMALL;
    return packed_product(m.op, &a, false, m.device, exec);
}

sgk_status sgk_bmm_cpu(const DLTensor *out, const DLTensor *mat1, const DLTensor *mat2, bool is_vnni, const DLTensor *scale, const sgk_exec *exec)
{
    sgk_match m = { .op = "bmm_cpu" };
    SGK_MATCH(&m, mat1, "B M K", SGK_ANY_FLOAT);
    SGK_MATCH(&m, mat2, "B N K", 1u << m.dtype | 1u << SGK_E4M3);
    SGK_MATCH_OPT(&m, scale, "", 1u << SGK_F32);
    SGK_MATCH_OUT(&m, out, "B M N", 1u << m.dtype);
    if (is_vnni) SGK_MATCH_DENSE(&m, mat2);
    const bool e4m3 = sgk_dtype_at(mat2) == SGK_E4M3;
    SGK_REQUIRE(e4m3 || !scale, SGK_BAD_ARG, "%s: scale is given for weights in %s, expected weights in e4m3", m.op, sgk_dtypes[m.dtype].name);
    SGK_TRY(sgk_match_done(&m));
    struct packed_args a = product(&m, out, mat1, mat2, NULL, is_vnni);
    a.batch              = SGK_DIM(&m, 'B');
    a.out_batch = sgk_stride(out, 0), a.out_stride = sgk_stride(out, 1);
    a.input_batch = sgk_stride(mat1, 0), a.input_stride = sgk_stride(mat1, 1);
    a.weight_batch = is_vnni ? a.columns * a.depth * sgk_dtype_size(sgk_dtype_at(mat2)) : sgk_stride(mat2, 0) * sgk_dtype_size(sgk_dtype_at(mat2));
    a.scale        = sgk_data(scale);
    a.group_n = most(a.columns, 1), a.group_k = most(a.depth, 1);
    return packed_product(m.op, &a, false, m.device, exec);
}

/* mat2 [N, K] of i8, or packed [N, K + 4]. */
static sgk_status match_i8(sgk_match *m, const DLTensor *mat2, const DLTensor *scales2, bool packed)
{
    if (packed) {
        SGK_MATCH(m, mat2, "N L", 1u << SGK_I8);
        SGK_MATCH_DENSE(m, mat2);
        SGK_REQUIRE(SGK_DIM(m, 'L') == SGK_DIM(m, 'K') + 4, SGK_BAD_ARG, "%s: mat2 has size %lld in dimension 1, expected %lld + 4", m->op, (long long)SGK_DIM(m, 'L'),
                    (long long)SGK_DIM(m, 'K'));
    } else {
        SGK_MATCH(m, mat2, "N K", 1u << SGK_I8);
    }
    SGK_MATCH(m, scales2, "*S", 1u << SGK_F32);
    SGK_MATCH_DENSE(m, scales2);
    SGK_REQUIRE(SGK_DIM(m, 'S') == SGK_DIM(m, 'N'), SGK_BAD_ARG, "%s: scales2 has %lld numbers, expected %lld", m->op, (long long)SGK_DIM(m, 'S'), (long long)SGK_DIM(m, 'N'));
    return SGK_OK;
}

sgk_status sgk_int8_scaled_mm_cpu(const DLTensor *out, const DLTensor *mat1, const DLTensor *mat2, const DLTensor *scales1, const DLTensor *scales2, const DLTensor *bias,
                                  bool is_vnni, const sgk_exec *exec)
{
    sgk_match m = { .op = "int8_scaled_mm_cpu" };
    SGK_MATCH(&m, mat1, "M K", 1u << SGK_U8);
    SGK_TRY(match_i8(&m, mat2, scales2, is_vnni));
    SGK_MATCH(&m, scales1, "*T", 1u << SGK_F32);
    SGK_MATCH_DENSE(&m, scales1);
    SGK_REQUIRE(SGK_DIM(&m, 'T') == SGK_DIM(&m, 'M'), SGK_BAD_ARG, "%s: scales1 has %lld numbers, expected %lld", m.op, (long long)SGK_DIM(&m, 'T'), (long long)SGK_DIM(&m, 'M'));
    SGK_MATCH_OPT(&m, bias, "N", 1u << SGK_F32);
    SGK_MATCH_OUT(&m, out, "M N", SGK_ANY_FLOAT);
    SGK_TRY(sgk_match_done(&m));
    struct packed_args a = product(&m, out, mat1, mat2, bias, is_vnni);
    a.scale              = sgk_data(scales2);
    a.input_scale        = sgk_data(scales1);
    return packed_product(m.op, &a, false, m.device, exec);
}

sgk_status sgk_int8_scaled_mm_with_quant(const DLTensor *out, const DLTensor *mat1, const DLTensor *mat2, const DLTensor *scales2, const DLTensor *bias, bool is_vnni,
                                         const sgk_exec *exec)
{
    sgk_match m = { .op = "int8_scaled_mm_with_quant" };
    SGK_MATCH(&m, mat1, "M K", SGK_ANY_FLOAT);
    SGK_TRY(match_i8(&m, mat2, scales2, is_vnni));
    SGK_MATCH_OPT(&m, bias, "N", 1u << SGK_F32);
    SGK_MATCH_OUT(&m, out, "M N", SGK_ANY_FLOAT);
    SGK_TRY(sgk_match_done(&m));
    struct packed_args a = product(&m, out, mat1, mat2, bias, is_vnni);
    a.scale              = sgk_data(scales2);
    return packed_product(m.op, &a, true, m.device, exec);
}

sgk_status sgk_fp8_scaled_mm_cpu(const DLTensor *out, const DLTensor *mat1, const DLTensor *mat2, const DLTensor *scales2, const int64_t *block_size, int64_t block_count,
                                 const DLTensor *bias, bool is_vnni, const sgk_exec *exec)
{
    sgk_match m = { .op = "fp8_scaled_mm_cpu" };
    SGK_MATCH(&m, mat1, "M K", SGK_ANY_FLOAT);
    SGK_MATCH(&m, mat2, "N K", 1u << SGK_E4M3);
    SGK_MATCH(&m, scales2, "G H", 1u << SGK_F32);
    SGK_MATCH_DENSE(&m, scales2);
    SGK_MATCH_OPT(&m, bias, "N", 1u << SGK_F32);
    SGK_MATCH_OUT(&m, out, "M N", SGK_ANY_FLOAT);
    if (is_vnni) SGK_MATCH_DENSE(&m, mat2);
    SGK_REQUIRE(block_count == 2 && block_size && block_size[0] > 0 && block_size[1] > 0 && block_size[1] % 32 == 0, SGK_BAD_ARG,
                "%s: block_size has %lld numbers, %lld and %lld, expected two, the second a multiple of 32", m.op, (long long)block_count,
                (long long)(block_count > 0 && block_size ? block_size[0] : 0), (long long)(block_count > 1 && block_size ? block_size[1] : 0));
    SGK_REQUIRE(SGK_DIM(&m, 'G') == packed_ceil(SGK_DIM(&m, 'N'), block_size[0]) && SGK_DIM(&m, 'H') == packed_ceil(SGK_DIM(&m, 'K'), block_size[1]), SGK_BAD_ARG,
                "%s: scales2 has size %lld x %lld, expected %lld x %lld", m.op, (long long)SGK_DIM(&m, 'G'), (long long)SGK_DIM(&m, 'H'),
                (long long)packed_ceil(SGK_DIM(&m, 'N'), block_size[0]), (long long)packed_ceil(SGK_DIM(&m, 'K'), block_size[1]));
    SGK_TRY(sgk_match_done(&m));
    struct packed_args a = product(&m, out, mat1, mat2, bias, is_vnni);
    a.scale              = sgk_data(scales2);
    a.group_n = block_size[0], a.group_k = block_size[1];
    return packed_product(m.op, &a, false, m.device, exec);
}

sgk_status sgk_mxfp4_scaled_mm_cpu(const DLTensor *out, const DLTensor *mat1, const DLTensor *mat2, const DLTensor *scales2, const DLTensor *bias, bool is_vnni,
                                   const sgk_exec *exec)
{
    sgk_match m = { .op = "mxfp4_scaled_mm_cpu" };
    SGK_MATCH(&m, mat1, "M K", SGK_ANY_FLOAT);
    SGK_MATCH(&m, mat2, "N J", 1u << SGK_U8);
    SGK_MATCH(&m, scales2, "*S", 1u << SGK_U8);
    SGK_MATCH_DENSE(&m, scales2);
    SGK_MATCH_OPT(&m, bias, "N", 1u << SGK_F32);
    SGK_MATCH_OUT(&m, out, "M N", SGK_ANY_FLOAT);
    if (is_vnni) SGK_MATCH_DENSE(&m, mat2);
    SGK_REQUIRE(SGK_DIM(&m, 'K') % MXFP4_GROUP == 0 && SGK_DIM(&m, 'J') * 2 == SGK_DIM(&m, 'K'), SGK_BAD_ARG,
                "%s: mat1 has %lld columns and mat2 %lld pairs, expected a multiple of %d and half as many", m.op, (long long)SGK_DIM(&m, 'K'), (long long)SGK_DIM(&m, 'J'), MXFP4_GROUP);
    const int64_t scales = SGK_DIM(&m, 'N') * (SGK_DIM(&m, 'K') / MXFP4_GROUP);
    SGK_REQUIRE(SGK_DIM(&m, 'S') == scales, SGK_BAD_ARG, "%s: scales2 has %lld numbers, expected %lld", m.op, (long long)SGK_DIM(&m, 'S'), (long long)scales);
    SGK_TRY(sgk_match_done(&m));
    struct packed_args a = product(&m, out, mat1, mat2, bias, is_vnni);
    a.scale              = sgk_data(scales2);
    a.group_k            = MXFP4_GROUP;
    return packed_product(m.op, &a, false, m.device, exec);
}

sgk_status sgk_int4_scaled_mm_cpu(const DLTensor *out, const DLTensor *x, const DLTensor *w, const DLTensor *w_zeros, const DLTensor *w_scales, const DLTensor *bias,
                                  const sgk_exec *exec)
{
    sgk_match m = { .op = "int4_scaled_mm_cpu" };
    SGK_MATCH(&m, x, "M K", SGK_ANY_FLOAT);
    SGK_MATCH(&m, w, "B P S", 1u << SGK_U8);
    SGK_MATCH(&m, w_zeros, "B G 32", 1u << SGK_I8);
    SGK_MATCH(&m, w_scales, "B G 32", 1u << SGK_F32);
    SGK_MATCH_OPT(&m, bias, "N", 1u << SGK_F32);
    SGK_MATCH_OUT(&m, out, "M N", SGK_ANY_FLOAT);
    SGK_MATCH_DENSE(&m, w);
    SGK_MATCH_DENSE(&m, w_zeros);
    SGK_MATCH_DENSE(&m, w_scales);
    const int64_t depth = SGK_DIM(&m, 'K'), groups = SGK_DIM(&m, 'G'), group = groups ? depth / groups : 0;
    SGK_REQUIRE(SGK_DIM(&m, 'N') == SGK_DIM(&m, 'B') * PACKED_BLOCK, SGK_BAD_ARG, "%s: out has %lld columns, expected %lld from w", m.op, (long long)SGK_DIM(&m, 'N'),
                (long long)(SGK_DIM(&m, 'B') * PACKED_BLOCK));
    SGK_REQUIRE(groups > 0 && depth % groups == 0 && group > 0 && group % 4 == 0 && group % int4_part(group) == 0 && SGK_DIM(&m, 'P') == depth / int4_part(group) &&
                    SGK_DIM(&m, 'S') == int4_part_bytes(group),
                SGK_BAD_ARG,
                "%s: w has size %lld x %lld and w_scales %lld groups, which do not fit the %lld columns of x", m.op, (long long)SGK_DIM(&m, 'P'), (long long)SGK_DIM(&m, 'S'),
                (long long)groups, (long long)depth);
    SGK_TRY(sgk_match_done(&m));
    struct packed_args a = product(&m, out, x, w, bias, true);
    a.format             = WEIGHT_INT4;
    a.scale              = sgk_data(w_scales);
    a.zeros              = sgk_data(w_zeros);
    a.group_k            = group;
    return packed_product(m.op, &a, true, m.device, exec);
}

sgk_status sgk_fused_linear_sigmoid_mul(const DLTensor *out, const DLTensor *mat1, const DLTensor *mat2, const DLTensor *bias, bool is_vnni, const DLTensor *post_mul_mat,
                                        const sgk_exec *exec)
{
    sgk_match m = { .op = "fused_linear_sigmoid_mul" };
    SGK_MATCH(&m, mat1, "M K", SGK_ANY_FLOAT);
    SGK_MATCH(&m, mat2, "K 1", 1u << SGK_F32);
    SGK_MATCH_OPT(&m, bias, "1", 1u << SGK_F32);
    SGK_MATCH(&m, post_mul_mat, "M J", 1u << m.dtype);
    SGK_MATCH_OUT(&m, out, "M J", 1u << m.dtype);
    SGK_REQUIRE(is_vnni, SGK_BAD_ARG, "%s: is_vnni is false, expected a weight from convert_weight_packed", m.op);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);
    const struct linear_sigmoid_args a = {
        .out           = sgk_data(out),
        .input         = sgk_data(mat1),
        .by            = sgk_data(post_mul_mat),
        .weight        = sgk_data(mat2),
        .bias          = sgk_data(bias),
        .rows          = SGK_DIM(&m, 'M'),
        .depth         = SGK_DIM(&m, 'K'),
        .columns       = SGK_DIM(&m, 'J'),
        .input_stride  = sgk_stride(mat1, 0),
        .by_stride     = sgk_stride(post_mul_mat, 0),
        .weight_stride = sgk_stride(mat2, 0),
        .out_stride    = sgk_stride(out, 0),
        .dtype         = m.dtype,
    };
    if (a.rows == 0 || a.columns == 0) return SGK_OK;
    if (sgk_on_gpu(&m)) return linear_sigmoid_on_gpu(m.op, &a, m.device, exec);
    return sgk_cpu_run(m.op, linear_sigmoid_cpu, &a, a.rows, sgk_cpu_grain((a.depth + 2 * a.columns) * 2), exec);
}

/* ---- packing ---------------------------------------------------------------------------------------------------------------------- */

static sgk_status pack(const sgk_match *m, const struct pack_args *a, const sgk_exec *exec)
{
    SGK_NO_SCRATCH(exec);
    if (a->batch == 0 || a->columns == 0 || (a->depth == 0 && a->format != WEIGHT_I8)) return SGK_OK;
    if (sgk_on_gpu(m)) return pack_on_gpu(m->op, a, m->device, exec);
    if (a->format == WEIGHT_SMALL) return sgk_cpu_run(m->op, pack_small_cpu, a, a->depth, sgk_cpu_grain(a->columns * 8), exec);
    return sgk_cpu_run(m->op, pack_cpu, a, a->batch * packed_ceil(a->columns, PACKED_BLOCK), sgk_cpu_grain(a->depth * PACKED_BLOCK * 4), exec);
}

bool sgk_weight_is_small(const DLTensor *weight) { return weight && weight->ndim == 2 && weight->shape[0] < PACKED_SMALL; }

sgk_status sgk_convert_weight_packed(const DLTensor *packed, const DLTensor *weight, const sgk_exec *exec)
{
    sgk_match        m       = { .op = "convert_weight_packed" };
    const unsigned   formats = SGK_ANY_FLOAT | 1u << SGK_E4M3 | 1u << SGK_I8 | 1u << SGK_U8;
    struct pack_args a       = { .batch = 1 };
    if (sgk_weight_is_small(weight)) {
        SGK_MATCH(&m, weight, "N K", formats);
        SGK_MATCH_OUT(&m, packed, "K N", 1u << SGK_F32);
        a.format = WEIGHT_SMALL;
    } else if (weight && weight->ndim == 2) {
        SGK_MATCH(&m, weight, "N K", formats);
        SGK_MATCH_OUT(&m, packed, "N L", 1u << m.dtype);
    } else {
        SGK_MATCH(&m, weight, "B N K", formats);
        SGK_MATCH_OUT(&m, packed, "B N L", 1u << m.dtype);
        a.batch = SGK_DIM(&m, 'B');
    }
    SGK_MATCH_DENSE(&m, weight);
    SGK_MATCH_DENSE(&m, packed);
    a.packed = sgk_data(packed), a.weight = sgk_data(weight), a.columns = SGK_DIM(&m, 'N'), a.depth = SGK_DIM(&m, 'K'), a.dtype = m.dtype;
    if (a.format != WEIGHT_SMALL) {
        a.format           = m.dtype == SGK_U8 ? WEIGHT_E4M3 : format_of(m.dtype);
        const int64_t more = m.dtype == SGK_I8 ? 4 : 0;
        SGK_REQUIRE(SGK_DIM(&m, 'L') == a.depth + more, SGK_BAD_ARG, "%s: packed has size %lld in its last dimension, expected %lld", m.op, (long long)SGK_DIM(&m, 'L'),
                    (long long)(a.depth + more));
    }
    SGK_TRY(sgk_match_done(&m));
    return pack(&m, &a, exec);
}

sgk_status sgk_convert_scale_packed(const DLTensor *packed, const DLTensor *scale, const sgk_exec *exec)
{
    sgk_match  m       = { .op = "convert_scale_packed" };
    const bool several = scale && scale->ndim == 3;
    SGK_MATCH(&m, scale, several ? "B N G" : "N G", 1u << SGK_U8);
    SGK_MATCH_OUT(&m, packed, several ? "B N G" : "N G", 1u << SGK_U8);
    SGK_MATCH_DENSE(&m, scale);
    SGK_MATCH_DENSE(&m, packed);
    SGK_TRY(sgk_match_done(&m));
    const struct pack_args a = { sgk_data(packed), sgk_data(scale), several ? SGK_DIM(&m, 'B') : 1, SGK_DIM(&m, 'N'), SGK_DIM(&m, 'G'), SGK_U8, WEIGHT_E4M3 };
    return pack(&m, &a, exec);
}

int64_t sgk_int4_packed_size(const DLTensor *weight, const DLTensor *scales, int64_t quant_method_4bit, int which)
{
    if (!weight || !scales || weight->ndim < 2 || scales->ndim != weight->ndim) return 0;
    const int     d     = weight->ndim - 2;
    const int64_t depth = weight->shape[d] * (quant_method_4bit == SGK_INT4_GPTQ ? 8 : 1), groups = scales->shape[d];
    const int64_t group = groups > 0 ? depth / groups : 0;
    return which == 0 ? (group > 0 ? depth / int4_part(group) : 0) : which == 1 ? (group > 0 ? int4_part_bytes(group) : 0)
                                                                                : groups;
}

sgk_status sgk_convert_weight_packed_scale_zp(const DLTensor *packed, const DLTensor *packed_zeros, const DLTensor *packed_scales, const DLTensor *weight, const DLTensor *qzeros,
                                              const DLTensor *scales, int64_t quant_method_4bit, const sgk_exec *exec)
{
    sgk_match  m       = { .op = "convert_weight_packed_scale_zp" };
    const bool several = weight && weight->ndim == 3;
    SGK_REQUIRE(quant_method_4bit == SGK_INT4_AWQ || quant_method_4bit == SGK_INT4_GPTQ, SGK_BAD_ARG, "%s: quant_method_4bit is %lld, expected 0 (AWQ) or 1 (GPTQ)", m.op,
                (long long)quant_method_4bit);
    const bool gptq = quant_method_4bit == SGK_INT4_GPTQ;
    SGK_MATCH(&m, weight, several ? (gptq ? "E Q N" : "E K O") : (gptq ? "Q N" : "K O"), 1u << SGK_I32);
    SGK_MATCH(&m, qzeros, several ? "E G O" : "G O", 1u << SGK_I32);
    SGK_MATCH(&m, scales, several ? "E G N" : "G N", SGK_ANY_FLOAT);
    SGK_MATCH_OUT(&m, packed, several ? "E B P S" : "B P S", 1u << SGK_U8);
    SGK_MATCH_OUT(&m, packed_zeros, several ? "E B G 32" : "B G 32", 1u << SGK_I8);
    SGK_MATCH_OUT(&m, packed_scales, several ? "E B G 32" : "B G 32", 1u << SGK_F32);
    SGK_MATCH_DENSE(&m, weight);
    SGK_MATCH_DENSE(&m, qzeros);
    SGK_MATCH_DENSE(&m, scales);
    SGK_MATCH_DENSE(&m, packed);
    SGK_MATCH_DENSE(&m, packed_zeros);
    SGK_MATCH_DENSE(&m, packed_scales);
    const int64_t columns = SGK_DIM(&m, 'N'), depth = gptq ? 8 * SGK_DIM(&m, 'Q') : SGK_DIM(&m, 'K'), groups = SGK_DIM(&m, 'G'), group = groups ? depth / groups : 0;
    SGK_REQUIRE(columns % PACKED_BLOCK == 0 && SGK_DIM(&m, 'O') * 8 == columns && SGK_DIM(&m, 'B') * PACKED_BLOCK == columns, SGK_BAD_ARG,
                "%s: scales has %lld columns, qzeros %lld words of 8 and packed %lld blocks of %d, expected the same number, a multiple of %d", m.op, (long long)columns,
                (long long)SGK_DIM(&m, 'O'), (long long)SGK_DIM(&m, 'B'), PACKED_BLOCK, PACKED_BLOCK);
    SGK_REQUIRE(groups > 0 && depth % groups == 0 && group > 0 && group % 4 == 0 && group % int4_part(group) == 0, SGK_BAD_ARG,
                "%s: scales has %lld groups for %lld rows, expected groups of a multiple of 4, above %d of %d", m.op, (long long)groups, (long long)depth, INT4_GROUP, INT4_GROUP);
    SGK_REQUIRE(SGK_DIM(&m, 'P') == depth / int4_part(group) && SGK_DIM(&m, 'S') == int4_part_bytes(group), SGK_BAD_ARG, "%s: packed has size %lld x %lld, expected %lld x %lld",
                m.op, (long long)SGK_DIM(&m, 'P'), (long long)SGK_DIM(&m, 'S'), (long long)(depth / int4_part(group)), (long long)int4_part_bytes(group));
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);
    const struct pack_int4_args a = {
        .packed        = sgk_data(packed),
        .packed_zeros  = sgk_data(packed_zeros),
        .packed_scales = sgk_data(packed_scales),
        .weight        = sgk_data(weight),
        .zeros         = sgk_data(qzeros),
        .scales        = sgk_data(scales),
        .batch         = several ? SGK_DIM(&m, 'E') : 1,
        .columns       = columns,
        .depth         = depth,
        .group         = group,
        .scales_dtype  = sgk_dtype_at(scales),
        .gptq          = gptq,
    };
    if (a.batch == 0 || columns == 0) return SGK_OK;
    if (sgk_on_gpu(&m)) return pack_int4_on_gpu(m.op, &a, m.device, exec);
    return sgk_cpu_run(m.op, pack_int4_cpu, &a, a.batch * (columns / PACKED_BLOCK), sgk_cpu_grain(depth * PACKED_BLOCK * 4), exec);
}
