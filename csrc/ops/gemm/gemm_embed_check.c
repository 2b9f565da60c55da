#include "gemm_check.h"

typedef struct {
    int64_t n, o, c, d, h, w;
} embed_case;

static void check_conv3d_embed(sgk_dtype dtype, embed_case e)
{
    if (!check_case("conv3d_embed_cpu_%s_%lldx%lldx%lldx%lldx%lld_to_%lld", check_dtype(dtype), (long long)e.n, (long long)e.c, (long long)e.d,
                    (long long)e.h, (long long)e.w, (long long)e.o)) return;
    check_tensor *out    = check_output(dtype, 2, e.n, e.o);
    check_tensor *input  = check_input_dense(dtype, 5, e.n, e.c, e.d, e.h, e.w);
    check_tensor *weight = check_input_dense(dtype, 5, e.o, e.c, e.d, e.h, e.w);
    check_tensor *bias   = check_input_dense(dtype, 1, e.o);

    CHECK_CALL(sgk_conv3d_embed(T(out), T(input), T(weight), T(bias), check_exec));
    const double n = (double)e.n, o = (double)e.o, depth = (double)(e.c * e.d * e.h * e.w);
    check_close(out, check_tolerance(dtype) + (dtype == SGK_F32 ? 0x1p-24 : 0x1p-22) * sqrt(depth));        /* as of linear */
    check_done((n * depth + o * depth + n * o) * sgk_dtype_size(dtype), 2 * n * o * depth);
}

static void check_weight_pack(sgk_dtype dtype, embed_case e)
{
    if (!check_case("conv3d_embed_weight_pack_%s_%lldx%lldx%lldx%lldx%lld", check_dtype(dtype), (long long)e.o, (long long)e.c, (long long)e.d,
                    (long long)e.h, (long long)e.w)) return;
    check_tensor *packed = check_output_dense(dtype, 5, e.o, e.c, e.d, e.h, e.w), *weight = check_input_dense(dtype, 5, e.o, e.c, e.d, e.h, e.w);
    CHECK_CALL(sgk_conv3d_embed_weight_pack(T(packed), T(weight), check_exec));
    check_equal(packed);
    check_done(2 * (double)(e.o * e.c * e.d * e.h * e.w) * sgk_dtype_size(dtype), 0);
}

void check_embed(void)
{
    static const sgk_dtype  formats[] = { SGK_F32, SGK_F16, SGK_BF16 };
    static const embed_case cases[]   = { { 3, 5, 2, 1, 3, 5 }, { 40, 32, 3, 2, 4, 4 }, { 0, 3, 2, 2, 2, 2 }, { 2, 3, 2, 0, 2, 2 } };
    for (int f = 0; f < 3; ++f)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
            check_conv3d_embed(formats[f], cases[i]);
            check_weight_pack(formats[f], cases[i]);
        }
    if (check_benching) check_conv3d_embed(SGK_BF16, (embed_case){ 4096, 1280, 3, 2, 14, 14 });
}
