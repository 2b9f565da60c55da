/* What the files of the harness share. */
#ifndef SGK_HARNESS_H
#define SGK_HARNESS_H
#include <stdarg.h>
#include <stdio.h>
#include "check/check.h"

enum { GUARD = 256, MAX_DIMS = 8, MAX_TENSORS = 24, MAX_SLOTS = 32, LABEL = 160 };

/* ---- tensors (tensor.c) ------------------------------------------------------------------------------------------
 *
 * A block in memory, the same on the CPU and on the GPU:
 *
 *     GUARD bytes | shift | row 0 | gap | row 1 | gap | ... | GUARD bytes
 *                         ^ data                      ^ data + span
 *
 * Everything that is no element holds the fill byte of the phase and must still hold it afterwards.
 */
struct check_tensor {
    sgk_dtype dtype;
    int       ndim;
    int64_t   shape[MAX_DIMS], strides[MAX_DIMS];
    bool      read, written;
    unsigned  legal;            /* CHECK_* ways of breaking it that are no error */
    size_t    element, span, shift;
    char     *saved;            /* span bytes: the elements before the call */
    char     *ref, *now;        /* blocks: of the reference, of the version under test (on the GPU: its copy here) */
    char     *first;            /* span bytes: what the first call under test left */
    void     *device;           /* block on the GPU */
};

extern check_tensor tensors[MAX_TENSORS];
extern int          tensor_count;

int64_t tensor_count_elements(const check_tensor *t);
int64_t tensor_rows(const check_tensor *t);
int64_t tensor_row_length(const check_tensor *t);
int64_t tensor_row_offset(const check_tensor *t, int64_t row);      /* in elements */
int64_t tensor_offset(const check_tensor *t, int64_t i);            /* of element i in row-major order */
size_t  tensor_block_size(const check_tensor *t);
static inline char *tensor_data(const check_tensor *t, char *block) { return block + GUARD + t->shift; }

void tensor_restore(const check_tensor *t, char *block, int fill);              /* as before the call */
bool tensor_same(const check_tensor *t, const char *data, const char *other);   /* the elements' bytes */
bool tensor_surrounded(const check_tensor *t, const char *block, int fill, char *where, size_t size);
void tensor_arm(const check_tensor *t, char *block, bool on);                   /* address sanitizer: only elements may be touched */
void tensors_free(void);
size_t tensors_bytes(void);

uint32_t random_bits(void);
void     random_start_family(const char *family);
void     random_start_case(const char *label);
void     random_end_case(void);

/* ---- levels ------------------------------------------------------------------------------------------------------ */
typedef struct { const char *name; unsigned flags; bool gpu; } check_level;
extern const check_level *level;            /* the one under test */
extern uint64_t           check_seed;
extern bool               in_reference;     /* the call under way is the reference's */
extern bool               first_level;      /* of this run: what does not depend on the level is checked here */

/* ---- the call under test (call.c) -------------------------------------------------------------------------------- */
typedef struct {
    check_tensor *tensor;
    const char   *name;                     /* as the check spells it */
    DLTensor      view;
    int64_t       shape[MAX_DIMS + 1], strides[MAX_DIMS + 1];
} check_slot;

extern check_slot slots[MAX_SLOTS];         /* the tensor arguments, in the order of evaluation */
extern int        slot_count;

enum { FILL_FIRST = 0xff, FILL_AGAIN = 0x5a };
void call_forget(void);                     /* the call under way is over, also after a crash */
void call_prepare(int fill);                /* all tensors as before the call */
bool call_wrote_nothing(void);
void call_release_thread_state(void);

/* ---- broken arguments (breaks.c) --------------------------------------------------------------------------------- */
void       *tensor_place(const check_tensor *t);        /* its first element, as the call under way sees it (call.c) */
void        breaks_plan(void);              /* from the slots of the last call */
int         breaks_count(void);
void        breaks_apply(int which, int slot);          /* to slots[slot].view; may make it NULL */
bool        breaks_is_null(int which, int slot);
const char *breaks_text(int which);
bool        breaks_device(int which);

/* ---- report (report.c) ------------------------------------------------------------------------------------------- */
typedef struct { const char *name; unsigned devices; int cases, refused, gpu_cases, failures; } check_operator;
extern char label[LABEL];
extern bool case_failed;
const char *operator_of_case(void);         /* its name, or NULL */
check_operator *operator_named(const char *case_label);
void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
void report_missing_checks(void);
int  report_failures(void);
void report_counts(int *cases, int *failed);
void report_list(void);
void report_start_expecting(void);          /* the self-test: failures are collected instead of reported */
bool report_stop_expecting(const char *words, char *got, size_t size);
bool wanted(const char *case_label);
extern const char *only[64];
extern int         only_count;
extern bool        listing;
extern int         case_number, resume_after;           /* to go on behind a case that crashed */

/* ---- figures (bench.c) ------------------------------------------------------------------------------------------- */
double clock_now(void);                     /* seconds */
void   bench_start(void);
bool   bench_more(void);                    /* another call is wanted */
void   bench_called(void);
void   bench_figure(double bytes, double operations);
void   bench_ceilings(void);
extern double reference_seconds;

/* ---- JSON (json.c) ----------------------------------------------------------------------------------------------- */
void json_text(FILE *f, const char *text);

#endif
