/* The definition: in f64, rounded where the contract rounds. */
#include <math.h>
#include "dsv4.h"
#include "base/convert.h"
#include "cpu/cpu.h"

static double bf16_rounded(double v) { return bf16_to_f32(f32_to_bf16(f64_to_f32_odd(v))); }

static uint8_t e4m3(double v) { return isnan(v) ? 0x7f : f32_to_e4m3_sat(f64_to_f32_odd(v)); }

/* The last elements of x [dim] in place. */
static void rotate(const struct dsv4_rope *r, int64_t token, double *x, int64_t dim)
{
    const int64_t position = load_index(r->positions, token * r->position_stride, r->wide ? SGK_I64 : SGK_I32);
    const float  *f        = r->freqs + position * r->freqs_stride;
    double       *last     = x + dim - DSV4_ROPE;
    for (int i = 0; i < DSV4_ROPE; i += 2) {
        const double re = last[i], im = last[i + 1];
        last[i]     = re * f[i] - im * f[i + 1];
        last[i + 1] = re * f[i + 1] + im * f[i];
    }
}

static void load(double *x, const void *p, int64_t at, int64_t dim)
{
    for (int64_t d = 0; d < dim; ++d) x[d] = load_as_f64(p, at + d, SGK_BF16);
}

static double norm_scale(const double *x, int64_t dim, float eps)
{
    double sum = 0;
    for (int64_t d = 0; d < dim; ++d) sum += x[d] * x[d];
    return 1 / sqrt(sum / (double)dim + eps);
}

static float amax_of(const double *x, int64_t n)
{
    double amax = 0;
    for (int64_t d = 0; d < n; ++d) amax = fmax(amax, fabs(x[d]));
    return (float)amax;
}

/* Items are tokens in all of them. */
void dsv4_q_ref(const void *args, int64_t begin, int64_t end)
{
    const struct dsv4_q_args *a = args;
    double                    x[192];
    for (int64_t t = begin; t < end; ++t)
        for (int64_t h = 0; h < a->heads; ++h) {
            load(x, a->input, t * a->input_token + h * a->input_head, a->dim);
            const double r = norm_scale(x, a->dim, a->eps);
            for (int64_t d = 0; d < a->dim; ++d) x[d] = bf16_rounded(x[d] * r);
            rotate(&a->rope, t, x, a->dim);
            for (int64_t d = 0; d < a->dim; ++d) store_f64(a->output, t * a->output_token + h * a->output_head + d, SGK_BF16, x[d]);
        }
}

void dsv4_k_ref(const void *args, int64_t begin, int64_t end)
{
    const struct dsv4_k_args *a = args;
    double                    x[DSV4_K];
    for (int64_t t = begin; t < end; ++t) {
        load(x, a->kv, t * a->kv_stride, DSV4_K);
        const double r = norm_scale(x, DSV4_K, a->eps);
        for (int64_t d = 0; d < DSV4_K; ++d) x[d] *= r * load_as_f64(a->weight, d, SGK_BF16);
        rotate(&a->rope, t, x, DSV4_K);

        const int64_t place = load_index(a->places, t * a->place_stride, a->places_wide ? SGK_I64 : SGK_I32);
        uint8_t      *page = a->cache + place / a->page_size * a->page_bytes, *token = page + place % a->page_size * DSV4_TOKEN_BYTES;
        uint8_t      *scales = page + a->page_size * DSV4_TOKEN_BYTES + place % a->page_size * DSV4_SCALE_BYTES;
        for (int g = 0; g < DSV4_K_CODES / DSV4_K_GROUP; ++g) {
            const double  *v = x + g * DSV4_K_GROUP;
            const uint32_t e = dsv4_exponent(dsv4_scale(amax_of(v, DSV4_K_GROUP)));
            for (int i = 0; i < DSV4_K_GROUP; ++i) token[g * DSV4_K_GROUP + i] = e4m3(v[i] * dsv4_inverse(e));
            scales[g] = (uint8_t)e;
        }
        for (int i = 0; i < DSV4_ROPE; ++i) {
            uint16_t v;
            store_f64(&v, 0, SGK_BF16, x[DSV4_K_CODES + i]);
            memcpy(token + DSV4_K_CODES + 2 * i, &v, 2);
        }
    }
}

void dsv4_indexer_ref(const void *args, int64_t begin, int64_t end)
{
    const struct dsv4_indexer_args *a = args;
    double                          x[DSV4_INDEXER];
    for (int64_t t = begin; t < end; ++t)
        for (int64_t h = 0; h < a->heads; ++h) {
            load(x, a->input, t * a->input_token + h * a->input_head, DSV4_INDEXER);
            rotate(&a->rope, t, x, DSV4_INDEXER);
            for (int b = 1; b < DSV4_INDEXER; b *= 2)
                for (int i = 0; i < DSV4_INDEXER; ++i)
                    if (!(i & b)) {
                        const double u = x[i], v = x[i + b];
                        x[i] = u + v, x[i + b] = u - v;
                    }
            for (int i = 0; i < DSV4_INDEXER; ++i) x[i] /= sqrt(DSV4_INDEXER);
            const double s = dsv4_scale(amax_of(x, DSV4_INDEXER));
            for (int i = 0; i < DSV4_INDEXER; ++i) a->codes[t * a->codes_token + h * a->codes_head + i] = e4m3(x[i] / s);
            a->weights_out[t * a->out_token + h * a->out_head] =
                (float)(load_as_f64(a->weight, t * a->weight_token + h * a->weight_head, SGK_BF16) * a->weight_scale * s);
        }
}
