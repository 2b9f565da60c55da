/* The ways to break a tensor argument. */
#include "harness.h"

enum way { NULL_TENSOR,
           FEWER_DIMS,
           MORE_DIMS,
           NO_FORMAT,
           OTHER_FORMAT,
           TWO_LANES,
           NO_DEVICE,
           OTHER_DEVICE,
           LAST_STRIDE,
           NEGATIVE_STRIDE,
           SAME_PLACE,
           MISALIGNED,
           NULL_DATA,
           MORE_SIZE,
           LESS_SIZE,
           OVERLAP };

typedef struct {
    enum way way;
    int      slot, detail;
} plan;
enum { PLANS = MAX_SLOTS * (24 + MAX_SLOTS) };
static plan plans[PLANS];
static int  plan_count;

static void add(enum way way, int slot, int detail)
{
    if (plan_count < PLANS) plans[plan_count++] = (plan){ way, slot, detail };
}

/* Bytes of t's elements, as seen from its first one. */
static int64_t reach(const check_tensor *t)
{
    int64_t last = 0;
    for (int d = 0; d < t->ndim; ++d) last += (t->shape[d] - 1) * t->strides[d];
    return (last + 1) * (int64_t)t->element;
}

static bool has_element_at(const check_tensor *t, int64_t byte)
{
    if (byte < 0 || byte >= reach(t)) return false;
    int64_t at = byte / (int64_t)t->element;
    for (int d = 0; d < t->ndim; ++d) {                     /* strides fall from left to right in every tensor made here */
        if (t->shape[d] == 1) continue;
        const int64_t index = at / t->strides[d];
        if (index >= t->shape[d]) return false;
        at -= index * t->strides[d];
    }
    return at == 0;
}

/* The narrower tensor moves into the wider one, an element behind its start, where that makes two elements meet. -1: it does not. */
static int64_t overlap_shift(const check_tensor *moved, const check_tensor *host)
{
    const int64_t step = (int64_t)(moved->element > host->element ? moved->element : host->element);
    if (!tensor_count_elements(moved) || !tensor_count_elements(host) || reach(moved) + step > reach(host) + GUARD / 2) return -1;
    for (int64_t r = 0, rows = tensor_rows(moved), length = tensor_row_length(moved); r < rows && r < 64; ++r)
        for (int64_t i = 0; i < length && i < 64; ++i)
            if (has_element_at(host, step + (tensor_row_offset(moved, r) + i) * (int64_t)moved->element)) return step;
    return -1;
}

void breaks_plan(void)
{
    plan_count = 0;
    for (int s = 0; s < slot_count; ++s) {
        const check_tensor *t        = slots[s].tensor;
        const bool          elements = tensor_count_elements(t) > 0;
        const int64_t       last     = tensor_row_length(t);
        if (!(t->legal & CHECK_NULL)) add(NULL_TENSOR, s, 0);
        if (!(t->legal & CHECK_NDIM)) {
            if (t->ndim) add(FEWER_DIMS, s, 0);
            add(MORE_DIMS, s, 0);
        }
        add(NO_FORMAT, s, 0);
        add(TWO_LANES, s, 0);
        if (!(t->legal & CHECK_DTYPE)) add(OTHER_FORMAT, s, 0);
        add(NO_DEVICE, s, 0);
        if (!(t->legal & CHECK_DEVICE)) add(OTHER_DEVICE, s, 0);
        for (int d = 0; d < t->ndim; ++d)
            if (!(t->legal & CHECK_SIZE(d))) {
                add(MORE_SIZE, s, d);
                if (t->shape[d] > 0) add(LESS_SIZE, s, d);
            }
        if (!elements) continue;
        if (!(t->legal & CHECK_STRIDE) && t->ndim && last > 1) add(LAST_STRIDE, s, 0);
        if (t->ndim > 1 && t->shape[0] > 1) {
            add(NEGATIVE_STRIDE, s, 0);
            if (t->written) add(SAME_PLACE, s, 0);
        }
        if (!(t->legal & CHECK_ALIGN) && t->element > 1) add(MISALIGNED, s, 0);
        if (!(t->legal & CHECK_DATA)) add(NULL_DATA, s, 0);
        for (int o = 0; o < slot_count; ++o) {
            const check_tensor *other = slots[o].tensor;
            if (other == t || !(t->written || other->written) || (t->legal | other->legal) & CHECK_OVERLAP) continue;
            if (reach(t) > reach(other) || (reach(t) == reach(other) && s > o) || !tensor_count_elements(other)) continue;
            if (overlap_shift(t, other) >= 0) add(OVERLAP, s, o);
        }
    }
}

int breaks_count(void) { return plan_count; }
bool breaks_is_null(int which, int slot) { return plans[which].slot == slot && plans[which].way == NULL_TENSOR; }
bool breaks_device(int which) { return plans[which].way == NO_DEVICE || plans[which].way == OTHER_DEVICE; }

/* A format of the same or half the size, so that an operator that takes it stays inside the memory. */
static DLDataType other_format(sgk_dtype t)
{
    switch (t) {
    case SGK_F64:    return sgk_dtypes[SGK_F32].dl;
    case SGK_F32:    return sgk_dtypes[SGK_F16].dl;
    case SGK_F16:    return sgk_dtypes[SGK_BF16].dl;
    case SGK_BF16:   return sgk_dtypes[SGK_F16].dl;
    case SGK_E4M3:   return sgk_dtypes[SGK_E5M2].dl;
    case SGK_E5M2:   return sgk_dtypes[SGK_E4M3].dl;
    case SGK_I8:     return sgk_dtypes[SGK_BOOL].dl;
    case SGK_U8:     return sgk_dtypes[SGK_BOOL].dl;
    case SGK_BOOL:   return sgk_dtypes[SGK_E4M3].dl;
    case SGK_I32:
    case SGK_I64:    return sgk_dtypes[SGK_F32].dl;
    case SGK_DTYPES: break;
    }
    return sgk_dtypes[SGK_F32].dl;
}

void breaks_apply(int which, int slot)
{
    const plan *p = &plans[which];
    if (p->slot != slot) return;
    check_slot         *s = &slots[slot];
    const check_tensor *t = s->tensor;
    DLTensor           *v = &s->view;
    switch (p->way) {
    case NULL_TENSOR: break;                                /* check_view hands out NULL */
    case FEWER_DIMS:  v->ndim--, v->shape++, v->strides++; break;
    case MORE_DIMS:
        for (int d = v->ndim; d > 0; --d) s->shape[d] = s->shape[d - 1], s->strides[d] = s->strides[d - 1];
        s->shape[0] = 1;
        v->ndim++;
        break;
    case NO_FORMAT:       v->dtype = (DLDataType){ kDLComplex, 64, 1 }; break;
    case OTHER_FORMAT:    v->dtype = other_format(t->dtype); break;
    case TWO_LANES:       v->dtype.lanes = 2; break;
    case NO_DEVICE:       v->device = (DLDevice){ (DLDeviceType)8, 0 }; break;
    case OTHER_DEVICE:    v->device = (DLDevice){ kDLCUDA, 99 }; break;
    case LAST_STRIDE:     s->strides[t->ndim - 1] = 2; break;
    case NEGATIVE_STRIDE: s->strides[0] = -s->strides[0]; break;
    case SAME_PLACE:      s->strides[0] = 0; break;
    case MISALIGNED:      v->data = (char *)v->data + 1; break;
    case NULL_DATA:       v->data = NULL; break;
    case MORE_SIZE:       s->shape[p->detail]++; break;
    case LESS_SIZE:       s->shape[p->detail]--; break;
    case OVERLAP:
        /* The host's place is known from its own tensor: its view may not have been made yet in this evaluation. */
        v->data = (char *)tensor_place(slots[p->detail].tensor) + overlap_shift(t, slots[p->detail].tensor);
        break;
    }
}

const char *breaks_text(int which)
{
    static char text[160];
    const plan *p    = &plans[which];
    const char *name = slots[p->slot].name;
    switch (p->way) {
    case NULL_TENSOR:     snprintf(text, sizeof text, "%s = NULL", name); break;
    case FEWER_DIMS:      snprintf(text, sizeof text, "%s with a dimension fewer", name); break;
    case MORE_DIMS:       snprintf(text, sizeof text, "%s with a dimension more", name); break;
    case NO_FORMAT:       snprintf(text, sizeof text, "%s with a number format that no operator has (complex64)", name); break;
    case OTHER_FORMAT:    snprintf(text, sizeof text, "%s with another number format", name); break;
    case TWO_LANES:       snprintf(text, sizeof text, "%s with two lanes", name); break;
    case NO_DEVICE:       snprintf(text, sizeof text, "%s on a device that is neither CPU nor CUDA", name); break;
    case OTHER_DEVICE:    snprintf(text, sizeof text, "%s on CUDA device 99", name); break;
    case LAST_STRIDE:     snprintf(text, sizeof text, "%s with stride 2 in its last dimension", name); break;
    case NEGATIVE_STRIDE: snprintf(text, sizeof text, "%s with a negative stride", name); break;
    case SAME_PLACE:      snprintf(text, sizeof text, "%s, which is written, with all its rows in one place", name); break;
    case MISALIGNED:      snprintf(text, sizeof text, "%s one byte off its element's alignment", name); break;
    case NULL_DATA:       snprintf(text, sizeof text, "%s with null data", name); break;
    case MORE_SIZE:       snprintf(text, sizeof text, "%s with one more in dimension %d", name, p->detail); break;
    case LESS_SIZE:       snprintf(text, sizeof text, "%s with one less in dimension %d", name, p->detail); break;
    case OVERLAP:         snprintf(text, sizeof text, "%s overlapping %s", name, slots[p->detail].name); break;
    }
    return text;
}
