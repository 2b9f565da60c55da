/*
 * --self-test: an operator with one fault after another, each of which the harness must report, in the words that belong to it.
 *
 *     output = 2 input + SCRATCH_VALUE - SCRATCH_VALUE, the scratch value kept in scratch memory
 */
#include <float.h>
#include <signal.h>
#include "base/match.h"
#include "harness.h"

typedef enum {
    NO_FAULT,
    FAILS,
    REFERENCE_FAILS,
    WRONG_NUMBER,
    WRONG_IN_ONE_ELEMENT,
    MAKES_NAN,
    MISSES_NAN,
    SATURATES,
    OVERFLOWS_LATER,
    LEAVES_LAST_ROW,
    WRITES_GAP,
    WRITES_BEFORE,
    WRITES_BEHIND,
    CHANGES_INPUT,
    READS_GAP,
    OTHER_NUMBER_EACH_TIME,
    KNOWS_ITS_RANGE,
    USES_SHARED_STATE,
    CRASHES,
    WRITES_THEN_REFUSES,
    WRONG_STATUS,
    NAMELESS,
    TAKES_NULL,
    TAKES_RANK,
    TAKES_FORMAT,
    TAKES_DEVICE,
    TAKES_SIZE,
    TAKES_STRIDE,
    TAKES_MISALIGNED,
    TAKES_NULL_DATA,
    TAKES_OVERLAP,
    LEAKS_SCRATCH,
    ANSWERS_TOO_LITTLE,
    ANSWERS_TOO_MUCH,
    NO_ANSWER,
    QUERY_WRITES,
    QUERY_FAILS,
    IGNORES_WORKSPACE,
    SUCCEEDS_WITHOUT_MEMORY,
    OVERRUNS_WORKSPACE,
    FAULTS
} fault_kind;

static fault_kind fault;
static int        calls;

typedef struct {
    const float *in;
    float       *out, *scratch;
    int64_t      rows, dim, in_stride, out_stride;
} work;

static void double_rows(int64_t begin, int64_t end, void *context)
{
    const work *w    = context;
    const bool  test = !in_reference;
    for (int64_t r = begin; r < end; ++r) {
        if (test && fault == LEAVES_LAST_ROW && r == w->rows - 1) continue;
        for (int64_t d = 0; d < w->dim; ++d) {
            const float x = w->in[r * w->in_stride + d];
            float       y = 2 * x + w->scratch[0] - w->scratch[0];
            if (test && fault == WRONG_NUMBER) y += 1e-3f;
            if (test && fault == WRONG_IN_ONE_ELEMENT && r == 1 && d == 2) y += 1;
            if (test && fault == MAKES_NAN && r == 2 && d == 3) y = NAN;
            if (!test && fault == MISSES_NAN && r == 2 && d == 3) y = NAN;
            if ((fault == SATURATES || fault == OVERFLOWS_LATER) && r == 2 && d == 3) y = test ? FLT_MAX : INFINITY;
            if (fault == OVERFLOWS_LATER && r == 2 && d == 4) y = FLT_MAX;
            if (test && fault == OTHER_NUMBER_EACH_TIME) y *= 1 + 1e-7f * (float)calls;
            if (test && fault == KNOWS_ITS_RANGE) y *= 1 + 1e-7f * (float)(r - begin);
            w->out[r * w->out_stride + d] = y;
        }
    }
    if (!test) return;
    if (fault == WRITES_GAP) w->out[w->dim] = 0;
    if (fault == WRITES_BEFORE) w->out[-2] = 0;
    if (fault == WRITES_BEHIND) w->out[w->rows * w->out_stride + 5] = 0;
    if (fault == CHANGES_INPUT) *(float *)(uintptr_t)w->in = 7;
    if (fault == READS_GAP) memcpy(&w->out[0], &w->in[w->dim], sizeof(float));
    if (fault == USES_SHARED_STATE && begin > 0) w->out[begin * w->out_stride] = w->out[(begin - 1) * w->out_stride];
    if (fault == CRASHES) raise(SIGSEGV);
}

/* The matcher, less the rule that is at fault. */
static sgk_status match(sgk_match *m, const DLTensor *both[2], DLTensor lenient[2])
{
    static int64_t shape[2][2] = { { 5, 13 }, { 5, 13 } }, strides[2][2] = { { 13, 1 }, { 13, 1 } };
    for (int i = 0; i < 2; ++i) {
        if (fault == TAKES_NULL && !both[i]) return SGK_OK;
        SGK_REQUIRE(both[i], SGK_BAD_ARG, "%s: %s is null, expected a tensor", m->op, i ? "input" : "output");
        lenient[i] = *both[i];
        if (fault == TAKES_RANK && both[i]->ndim != 2) lenient[i].ndim = 2, lenient[i].shape = shape[i], lenient[i].strides = strides[i];
        if (fault == TAKES_FORMAT) lenient[i].dtype = sgk_dtypes[SGK_F32].dl;
        if (fault == TAKES_DEVICE) lenient[i].device = (DLDevice){ kDLCPU, 0 };
        if (fault == TAKES_SIZE && both[i]->ndim == 2) lenient[i].shape = shape[i];
        if (fault == TAKES_STRIDE && both[i]->ndim == 2 && (both[i]->strides[0] <= 0 || both[i]->strides[1] != 1)) lenient[i].strides = strides[i];
        if (fault == TAKES_MISALIGNED) lenient[i].data = (char *)lenient[i].data - (uintptr_t)lenient[i].data % 4;
        if (fault == TAKES_NULL_DATA && !lenient[i].data) return SGK_OK;
    }
    const DLTensor *output = both[0] = &lenient[0], *input = both[1] = &lenient[1];
    SGK_MATCH(m, input, "N D", 1 << SGK_F32);
    if (fault == TAKES_OVERLAP) SGK_MATCH(m, output, "N D", 1 << SGK_F32);
    else SGK_MATCH_OUT(m, output, "N D", 1 << SGK_F32);
    return sgk_match_done(m);
}

static sgk_status doubled(const DLTensor *output, const DLTensor *input, const sgk_exec *exec)
{
    sgk_match m = { .op = fault == NAMELESS ? "it" : "selftest" };
    ++calls;
    SGK_REQUIRE(fault != FAILS || in_reference, SGK_FAILED, "selftest: no luck today");
    SGK_REQUIRE(fault != REFERENCE_FAILS || !in_reference, SGK_FAILED, "selftest: no luck in the reference");
    if (fault == WRITES_THEN_REFUSES && !SGK_EXEC(exec, workspace_query, NULL) && !SGK_EXEC(exec, allocate, NULL) && output && output->data && output->ndim == 2 && output->device.device_type == kDLCPU) *(char *)output->data = 1;
    const DLTensor  *both[2] = { output, input };
    DLTensor         lenient[2];
    const sgk_status matched = match(&m, both, lenient);
    if (matched) return fault == WRONG_STATUS ? SGK_FAILED : matched;
    if (m.count < 2) return SGK_OK;                         /* a fault that takes what it cannot use */
    output = both[0], input = both[1];

    size_t bytes = 64;
    if (SGK_EXEC(exec, workspace_query, NULL)) {
        SGK_REQUIRE(fault != QUERY_FAILS, SGK_FAILED, "selftest: no answer");
        if (fault == NO_ANSWER) return SGK_OK;
        if (fault == QUERY_WRITES) *(float *)output->data = 1;
        if (fault == ANSWERS_TOO_LITTLE) bytes = 32;
        if (fault == ANSWERS_TOO_MUCH) bytes = 128;
    }
    sgk_exec without = exec ? *exec : (sgk_exec)SGK_EXEC_INIT;
    if (fault == IGNORES_WORKSPACE) without.workspace = NULL;
    sgk_scratch      scratch;
    float            local[16];
    const sgk_status status = sgk_scratch_get(&scratch, m.op, bytes, m.device, &without);
    if (status && !(fault == SUCCEEDS_WITHOUT_MEMORY && !in_reference)) return status;
    if (scratch.query_only) return SGK_OK;
    float *memory = scratch.memory ? scratch.memory : local;
    memory[0]     = 0;
    if (fault == OVERRUNS_WORKSPACE && !in_reference && SGK_EXEC(exec, workspace, NULL)) memory[17] = 0;
    work w = { sgk_data(input), sgk_data(output), memory, SGK_DIM(&m, 'N'), SGK_DIM(&m, 'D'), sgk_stride(input, 0), sgk_stride(output, 0) };
    sgk_parallel_for(exec, 0, w.rows, 1, double_rows, &w);
    if (!(fault == LEAKS_SCRATCH && SGK_EXEC(exec, allocate, NULL))) sgk_scratch_put(&scratch);
    return SGK_OK;
}

static void check_doubled(void)
{
    if (!check_case("selftest_%d", (int)fault)) return;
    check_tensor *x = check_input(SGK_F32, 2, (int64_t)5, (int64_t)13);
    check_tensor *y = check_output(SGK_F32, 2, (int64_t)5, (int64_t)13);
    CHECK_CALL(doubled(T(y), T(x), check_exec));
    check_close(y, 1e-6);
    check_done(0, 0);
}

static void check_takes_legal(void)
{
    if (!check_case("selftest_legal")) return;
    check_tensor *x = check_input(SGK_F32, 2, (int64_t)5, (int64_t)13);
    check_tensor *y = check_output(SGK_F32, 2, (int64_t)5, (int64_t)13);
    check_legal(x, CHECK_DATA);
    check_legal(y, CHECK_DATA);
    CHECK_CALL(doubled(T(y), T(x), check_exec));
    check_equal(y);
    check_done(0, 0);
}

/* Calls that should be refused, with what is said about them. */
static void refusal(sgk_status want, const char *words)
{
    if (!check_case("selftest_refusal")) return;
    check_tensor *x = check_input(SGK_F32, 2, (int64_t)5, (int64_t)13);
    check_tensor *y = check_output(SGK_F32, 2, (int64_t)5, (int64_t)12);
    CHECK_REFUSED(want, words, doubled(T(y), T(x), check_exec));
    check_done(0, 0);
}
static void check_refusal_right(void) { refusal(SGK_BAD_ARG, "has size 12 in dimension 1, expected 13"); }
static void check_refusal_other_status(void) { refusal(SGK_UNSUPPORTED, "expected 13"); }
static void check_refusal_other_words(void) { refusal(SGK_BAD_ARG, "expected 14"); }
static void check_refusal_accepted(void)
{
    if (!check_case("selftest_accepted")) return;
    check_tensor *x = check_input(SGK_F32, 2, (int64_t)5, (int64_t)13);
    check_tensor *y = check_output(SGK_F32, 2, (int64_t)5, (int64_t)13);
    CHECK_REFUSED(SGK_BAD_ARG, "", doubled(T(y), T(x), check_exec));
    check_done(0, 0);
}

static void check_max_verdict(void)
{
    if (!check_case("selftest_max")) return;
    check_tensor *x = check_input(SGK_F32, 2, (int64_t)5, (int64_t)13);
    check_tensor *y = check_output(SGK_F32, 2, (int64_t)5, (int64_t)13);
    CHECK_CALL(doubled(T(y), T(x), check_exec));
    check_max(y, 0.5);
    check_done(0, 0);
}

static void check_property(void)
{
    if (!check_case("selftest_property")) return;
    check_that(1 + 1 == 3, "one and one are not %d", 3);
    check_done(0, 0);
}

/* What a fault must be called; NULL: nothing may be reported. */
static const struct {
    const char *name;
    fault_kind  fault;
    void (*check)(void);
    const char *words;
} faults[] = {
    { "no fault", NO_FAULT, check_doubled, NULL },
    { "fails", FAILS, check_doubled, "no luck today" },
    { "its reference fails", REFERENCE_FAILS, check_doubled, "the reference: selftest: no luck in the reference" },
    { "wrong numbers", WRONG_NUMBER, check_doubled, "allowed 1e-06" },
    { "one wrong number", WRONG_IN_ONE_ELEMENT, check_doubled, "worst is element 15" },
    { "one wrong number, largest difference", WRONG_IN_ONE_ELEMENT, check_max_verdict, "element 15" },
    { "one wrong number, equal bytes", WRONG_IN_ONE_ELEMENT, check_takes_legal, "bytes must be equal" },
    { "NaN where the reference has a number", MAKES_NAN, check_doubled, "element 29 is nan" },
    { "a number where the reference has NaN", MISSES_NAN, check_doubled, "the reference has nan" },
    { "the largest number where the reference has infinity", SATURATES, check_doubled, "element 29 is 3.40282e+38, the reference has inf" },
    { "the same where others are as large", OVERFLOWS_LATER, check_doubled, NULL },
    { "does not write the last row", LEAVES_LAST_ROW, check_doubled, "element 52 is" },
    { "writes into a gap", WRITES_GAP, check_doubled, "wrote outside tensor 1 of the case: byte 0 of the gap behind row 0" },
    { "writes before the tensor", WRITES_BEFORE, check_doubled, "wrote outside tensor 1 of the case: 8 bytes before" },
    { "writes behind the tensor", WRITES_BEHIND, check_doubled, "behind the tensor" },
    { "changes its input", CHANGES_INPUT, check_doubled, "which is read only" },
    { "reads a gap", READS_GAP, check_doubled, "other bytes" },
    { "other numbers each time", OTHER_NUMBER_EACH_TIME, check_doubled, "a second time it writes other bytes" },
    { "numbers depend on the range", KNOWS_ITS_RANGE, check_doubled, "it writes other bytes" },
    { "reads what another range writes", USES_SHARED_STATE, check_doubled, "it writes other bytes" },
    { "crashes", CRASHES, check_doubled, "crashed with signal" },
    { "writes, then refuses", WRITES_THEN_REFUSES, check_doubled, "is refused, but memory was written" },
    { "wrong status", WRONG_STATUS, check_doubled, "instead of SGK_BAD_ARG" },
    { "does not say who refuses", NAMELESS, check_doubled, "without the operator's name" },
    { "takes a null tensor", TAKES_NULL, check_doubled, "= NULL is accepted" },
    { "takes another rank", TAKES_RANK, check_doubled, "with a dimension fewer is accepted" },
    { "takes another format", TAKES_FORMAT, check_doubled, "with another number format is accepted" },
    { "takes another device", TAKES_DEVICE, check_doubled, "on CUDA device 99 is accepted" },
    { "takes another size", TAKES_SIZE, check_doubled, "with one more in dimension 1 is accepted" },
    { "takes another stride", TAKES_STRIDE, check_doubled, "with stride 2 in its last dimension is accepted" },
    { "takes a misaligned tensor", TAKES_MISALIGNED, check_doubled, "one byte off its element's alignment is accepted" },
    { "takes null data", TAKES_NULL_DATA, check_doubled, "with null data is accepted" },
    { "takes null data, declared legal", TAKES_NULL_DATA, check_takes_legal, NULL },
    { "takes overlapping tensors", TAKES_OVERLAP, check_doubled, "overlapping" },
    { "leaks scratch memory", LEAKS_SCRATCH, check_doubled, "does not release 1 of its 1 pieces" },
    { "asks for too little workspace", ANSWERS_TOO_LITTLE, check_doubled, "allocates memory though it was given the 32 bytes" },
    { "asks for too much workspace", ANSWERS_TOO_MUCH, check_doubled, "expected once the 128 bytes it answered" },
    { "does not answer the question", NO_ANSWER, check_doubled, "is not answered" },
    { "runs when asked", QUERY_WRITES, check_doubled, "the question for its workspace writes" },
    { "fails when asked", QUERY_FAILS, check_doubled, "the question for its workspace fails" },
    { "does not use its workspace", IGNORES_WORKSPACE, check_doubled, "allocates memory though it was given the 64 bytes" },
    { "succeeds without memory", SUCCEEDS_WITHOUT_MEMORY, check_doubled, "reports success though it was refused" },
    { "writes behind its workspace", OVERRUNS_WORKSPACE, check_doubled, "writes outside the 64 bytes of workspace" },
    { "a refusal as wanted", NO_FAULT, check_refusal_right, NULL },
    { "a refusal with another status", NO_FAULT, check_refusal_other_status, "returns status -1, expected -2" },
    { "a refusal in other words", NO_FAULT, check_refusal_other_words, "expected the words \"expected 14\"" },
    { "no refusal", NO_FAULT, check_refusal_accepted, "returns status 0" },
    { "a property that does not hold", NO_FAULT, check_property, "one and one are not 3" },
    { "an operator without a check", NO_FAULT, report_missing_checks, "has no check" },
};

int self_test(void)
{
    check_level here   = { "self-test", sgk_cpu_flags(), false };
    int         missed = 0, run = 0;
    level         = &here;
    only_count    = 0;
    tensor_arming = false;
    for (size_t i = 0; i < sizeof faults / sizeof *faults; ++i) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)       /* they end the program at these */
        switch (faults[i].fault) {
        case WRITES_GAP:
        case WRITES_BEFORE:
        case WRITES_BEHIND:
        case READS_GAP:
        case USES_SHARED_STATE:
        case CRASHES:
        case CHANGES_INPUT:
            continue;
        default: break;
        }
#endif
        char got[8192];
        fault = faults[i].fault;
        calls = 0;
        report_start_expecting();
        run_guarded("selftest", faults[i].check);
        const bool reported = report_stop_expecting(faults[i].words, got, sizeof got);
        ++run;
        if (reported) continue;
        ++missed;
        printf("FAILURE: self-test: %s: expected %s%s%s, reported:\n%s\n", faults[i].name, faults[i].words ? "\"" : "", faults[i].words ? faults[i].words : "nothing",
               faults[i].words ? "\"" : "", got[0] ? got : "  nothing");
    }
    printf("self-test: %d faults and non-faults, %d not judged right\n", run, missed);
    return missed != 0;
}
