/* What the files of the harness share. */
#ifndef SGK_HARNESS_H
#define SGK_HARNESS_H
#include <stdarg.h>
#include <stdio.h>
#include "check/check.h"

enum { GUARD       = 256,
       MAX_DIMS    = 8,
       MAX_TENSORS = 24,
       MAX_SLOTS   = 32,
       LABEL       = 160 };

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
size_t tensor_block_size(const check_tensor *t);
static inline char *tensor_data(const check_tensor *t, char *block) { return block + GUARD + t->shift; }

void tensor_restore(const check_tensor *t, char *block, int fill);              /* as before the call */
bool tensor_same(const check_tensor *t, const char *data, const char *other);   /* the elements' bytes */
int64_t tensor_first_other(const char *bytes, size_t count, int fill);     /* -1: all of them are */
bool tensor_surrounded(const check_tensor *t, const char *block, int fill, char *where, size_t size);
void tensor_arm(const check_tensor *t, char *block, bool on);                   /* address sanitizer: only elements may be touched */
extern bool tensor_arming;                  /* not in the self-test: the sanitizer would end it */
void tensors_free(void);
size_t tensors_bytes(void);

uint32_t random_bits(void);
void random_start_family(const char *family);
void random_start_case(const char *label);
void random_end_case(void);

/* ---- levels ------------------------------------------------------------------------------------------------------ */
typedef struct {
    const char *name;
    unsigned    flags;
    bool        gpu;
} check_level;
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

enum { FILL_FIRST = 0xff,
       FILL_AGAIN = 0x5a };
void call_forget(void);                     /* the call under way is over, also after a crash */
void call_prepare(int fill);                /* all tensors as before the call */
bool call_wrote_nothing(void);
extern bool call_succeeded;                 /* there is a result to judge */

/* ---- broken arguments (breaks.c) --------------------------------------------------------------------------------- */
void *tensor_place(const check_tensor *t);        /* its first element, as the call under way sees it (call.c) */
void breaks_plan(void);              /* from the slots of the last call */
int breaks_count(void);
void breaks_apply(int which, int slot);          /* to slots[slot].view; may make it NULL */
bool breaks_is_null(int which, int slot);
const char *breaks_text(int which);
bool breaks_device(int which);

/* ---- report (report.c) ------------------------------------------------------------------------------------------- */
typedef struct {
    const char *name, *call;
    unsigned    devices;
    int         cases, refused, gpu_cases, failures;
} check_operator;
extern char label[LABEL];
extern bool case_failed;
const char *operator_of_case(void);         /* its name, or NULL */
check_operator *operator_named(const char *case_label);
void count_case(void);               /* this one was run */
void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
void report_missing_checks(void);           /* what the whole run must have reached */
void report_counts(int *cases, int *failed);
void report_each_operator(void (*tell)(int at, const check_operator *counts));     /* for another process, which adds them to its own */
void report_each_failure(void (*tell)(const char *label, const char *level, const char *text));
void report_add_operator(int at, const check_operator *counts);
void report_add_failure(const char *label, const char *level, const char *text);
void report_list(void);
void report_start_expecting(void);          /* the self-test: failures are collected instead of reported */
bool report_stop_expecting(const char *words, char *got, size_t size);
bool wanted(const char *case_label);
extern const char *only[64];
extern int         only_count;
extern bool        listing;
extern int         case_number, resume_after;           /* to go on behind a case that crashed */

/* ---- several processes (jobs.c) ---------------------------------------------------------------------------------- */
enum { JOB_FAMILIES = 64,
       JOB_LEVELS   = 16 };
typedef struct check_figure check_figure;
extern int                  job_count, job_number;                       /* how many processes there are, and which one this is */
bool job_takes(int number);                             /* the first process that asks gets the case */
void *job_shared(size_t bytes);                         /* zeros that all processes see, from the start of the first one */
void job_turn_begin(void);                              /* when figures are wanted: until job_turn_end() no other process uses the GPU */
void job_turn_end(void);
bool job_my_turn(void);
void job_starts(int family, int level);                 /* the cases to come are of these */
int64_t job_order(void);                                /* of the case under way among all, whichever process has it */
bool job_figure(const check_figure *f);                 /* false: there is nobody to tell */
bool run_jobs(void (*work)(void));                      /* each process does the work; what they find is added up here. All came to their end */
bool job_family_done(int family, int level, int cases, int failed, double seconds);        /* false: there is nobody to tell */
void print_family(int family, int level, int cases, int failed, double seconds);           /* main.c */

/* ---- figures (bench.c) ------------------------------------------------------------------------------------------- */
double clock_now(void);                     /* seconds */
bool bench_ceilings(const char *text);    /* "cpu:COPY,READ,MATRIX" or "cuda:...", in bytes and operations a second */
struct check_figure {
    char    label[LABEL], level[16];
    double  seconds, graph, spread, bytes, operations, limit, reference;
    bool    gpu, cached;
    int64_t order;                          /* job_order() */
};
extern size_t bench_least;                  /* bytes: cases with smaller tensors are left out */
void bench_start(void);
bool bench_more(void);                    /* another call is wanted */
void bench_called(void);
void bench_figure(double bytes, double operations);
void bench_add(const check_figure *f);
void bench_share(void);                     /* before there are several processes: the ceilings of the GPU are measured by one of them */
void bench_json(FILE *f);                 /* the members of an object */
extern double reference_seconds;

/* ---- the GPU (gpu.c): device 0, one stream of ours; functions that can fail leave the reason in gpu_error() ------- */
bool gpu_present(void);
const char *gpu_error(void);
const char *gpu_name(void);
void *gpu_stream(void);
void gpu_put(check_tensor *t, const char *block);       /* to the device */
void gpu_get(check_tensor *t);       /* and to the block `now` */
void gpu_drop(check_tensor *t);
bool gpu_wait(void);
void *gpu_scratch(size_t bytes);      /* lives until the next gpu_wait() */
void *gpu_workspace(size_t bytes, int fill);      /* with guards; one at a time */
bool gpu_workspace_intact(size_t bytes, int fill);
bool gpu_capture_begin(void);
bool gpu_capture_end(void);
void gpu_capture_abandon(void);      /* where a call failed or crashed inside */
bool gpu_graph_launch(void);
void gpu_graph_free(void);

void gpu_watch_launches(void);       /* from now on */
void gpu_foresee(void);              /* from now on they are noted and held back, until the next line asks whether one was the first of its row */
bool gpu_foreseen_new(void);
void gpu_each_launch(void (*tell)(const void *kernel));
void gpu_add_launch(const void *kernel);
void gpu_report_rows(void);          /* each row that fits this GPU and was never launched is a failure */
void gpu_stamp(int which, int end);  /* a pair of events: the start (0) and the end (1) of number `which` */
double gpu_elapsed(int which);         /* seconds; waits */
int64_t gpu_l2_bytes(void);
size_t gpu_free_bytes(void);
void *gpu_grab(size_t bytes);
void gpu_give_back(void *memory);
void gpu_copy(void *to, const void *from, size_t bytes);
void gpu_write(void *to, const void *from, size_t bytes);     /* from the host */

/* ---- which version ran (versions.c) ------------------------------------------------------------------------------ */
extern bool versions_wanted;
extern int  shape_dimensions;               /* of the one shape that --shape asks for; 0: it was not given */
void versions_listen(sgk_exec *exec);
void versions_print(FILE *json);

/* ---- JSON (json.c) ----------------------------------------------------------------------------------------------- */
void json_text(FILE *f, const char *text);          /* quoted and escaped */
void json_number(FILE *f, double number);           /* null where it is not finite */
bool report_json(const char *path);
void report_json_failures(FILE *f);

/* ---- what the harness checks besides operators ------------------------------------------------------------------- */
extern bool check_exhaustive;
void check_base(void) __attribute__((weak));
void check_formats(void) __attribute__((weak));
void check_large(void);                            /* large.c: operators on more than 2^31 and 2^32 elements */
int tune_gemm(const char *path, const int64_t *sizes, int first) __attribute__((weak));      /* of one shape, or, with NULL, of a grid */
int cost_gemm(const char *path) __attribute__((weak));                                     /* of the builds that have tiles */
int self_test(void);                               /* the program's exit status */
bool run_guarded(const char *family, void (*check)(void));      /* false: it crashed */

#endif
