/*
 * The phases of one CHECK_CALL, in order. Each is a row of the table at the end: begin() sets the tensors up and says whether there is
 * another evaluation; end() judges it. What a first call under test left is kept in tensor->first, and all later calls must leave
 * the same bytes, though everything around the elements holds another fill byte then.
 */
#include <pthread.h>
#include <stdlib.h>
#include "harness.h"

check_slot    slots[MAX_SLOTS];
int           slot_count;
bool          in_reference;
double        reference_seconds;
check_options check_switches;

static sgk_exec exec;
const sgk_exec *check_exec = &exec;
bool            call_succeeded;
static int      current = -1, step, fill;
static bool     reference_done;
static size_t   needed;                     /* workspace, as the query said */

/* Beyond this a case is about its figures: arguments are broken and threads varied in the smaller ones. */
enum { LARGE = 48 << 20 };
static bool large(void) { return tensors_bytes() > LARGE; }

/* ---- what the operator sees ---- */
void *tensor_place(const check_tensor *t)
{
    if (in_reference) return tensor_data(t, t->ref);
    return level->gpu ? (char *)t->device + GUARD + t->shift : tensor_data(t, t->now);
}

static bool breaking(void);

const DLTensor *check_view_named(check_tensor *t, const char *name)
{
    if (!t) return NULL;
    if (slot_count == MAX_SLOTS) {
        fail("more than %d tensor arguments", MAX_SLOTS);
        return NULL;
    }
    check_slot *s = &slots[slot_count++];
    s->tensor = t, s->name = name;
    memcpy(s->shape, t->shape, sizeof t->shape);
    memcpy(s->strides, t->strides, sizeof t->strides);
    s->view = (DLTensor){
        .data    = tensor_place(t),
        .device  = { level->gpu && !in_reference ? kDLCUDA : kDLCPU, 0 },
        .ndim    = t->ndim,
        .dtype   = sgk_dtypes[t->dtype].dl,
        .shape   = s->shape,
        .strides = s->strides,
    };
    if (breaking()) {
        breaks_apply(step, slot_count - 1);
        if (breaks_is_null(step, slot_count - 1)) return NULL;
    }
    return &s->view;
}

const DLTensor *check_view(check_tensor *t) { return check_view_named(t, "an argument"); }

/* ---- state of the tensors ---- */

/* --bench-from, on the GPU: no byte is moved that does not tell whether the results are right. What is only read is the reference's, and stays there. */
static bool lean(void) { return bench_least && level->gpu && reference_done; }
static bool stays(const check_tensor *t) { return lean() && !t->written; }

void call_prepare(int with)
{
    fill = with;
    for (int i = 0; i < tensor_count; ++i)
        if (!stays(&tensors[i])) tensor_restore(&tensors[i], tensors[i].now, fill);
    if (level->gpu) job_turn_begin();
    for (int i = 0; i < tensor_count; ++i) {
        if (level->gpu) gpu_put(&tensors[i], stays(&tensors[i]) ? tensors[i].ref : tensors[i].now);
        else tensor_arm(&tensors[i], tensors[i].now, true);
    }
}

/* Once more, for the clock. */
static void prepare_again(void)
{
    for (int i = 0; i < tensor_count; ++i) {
        if (!tensors[i].read || !tensors[i].written) continue;
        tensor_restore(&tensors[i], tensors[i].now, fill);
        gpu_put(&tensors[i], tensors[i].now);
    }
}

/* Another process may have the GPU. */
static void leave_gpu(void)
{
    if (!job_my_turn()) return;
    gpu_wait();
    for (int i = 0; i < tensor_count; ++i)
        if (tensors[i].device) gpu_drop(&tensors[i]);
    job_turn_end();
}

/* Waits for the GPU and brings its tensors here. Everything around the elements must be as it was. */
static void call_finish(void)
{
    if (level->gpu && !gpu_wait()) fail("%s: %s", "the GPU reports an error", gpu_error());
    for (int i = 0; i < tensor_count; ++i) {
        check_tensor *t = &tensors[i];
        if (stays(t)) continue;
        if (level->gpu) gpu_get(t);
        else tensor_arm(t, t->now, false);
        char where[96];
        if (!tensor_surrounded(t, t->now, fill, where, sizeof where)) fail("wrote outside tensor %d of the case: %s", i, where);
        if (t->read && !t->written && !tensor_same(t, tensor_data(t, t->now), t->saved)) fail("changed tensor %d of the case, which is read only", i);
    }
}

bool call_wrote_nothing(void)
{
    bool nothing = true;
    for (int i = 0; i < tensor_count; ++i) {
        check_tensor *t = &tensors[i];
        if (level->gpu) gpu_get(t);
        else tensor_arm(t, t->now, false);
        char where[96];
        nothing = nothing && tensor_surrounded(t, t->now, fill, where, sizeof where);
        if (t->read) {
            nothing = nothing && tensor_same(t, tensor_data(t, t->now), t->saved);
        } else {
            const size_t length = (size_t)tensor_row_length(t) * t->element;
            for (int64_t r = 0, rows = tensor_rows(t); nothing && r < rows; ++r)
                nothing = tensor_first_other((char *)tensor_data(t, t->now) + (size_t)tensor_row_offset(t, r) * t->element, length, fill) < 0;
        }
    }
    return nothing;
}

static bool call_same_as_first(void)
{
    for (int i = 0; i < tensor_count; ++i)
        if (tensors[i].written && !tensor_same(&tensors[i], tensor_data(&tensors[i], tensors[i].now), tensors[i].first)) return false;
    return true;
}

/* The end of every phase that runs the operator once more. */
static void judge_again(sgk_status status, const char *how)
{
    call_finish();
    if (status != SGK_OK) fail("%s it fails: %s", how, sgk_last_error());
    else if (!call_same_as_first()) fail("%s it writes other bytes than the first time", how);
}

/* ---- hooks of sgk_exec ---- */
static int  hook_ranges;
static bool hook_by_grain, hook_threads;

typedef struct {
    sgk_parallel_body *body;
    void              *context;
    int64_t            begin, end;
} range;

static void *run_range(void *argument)
{
    const range *r = argument;
    r->body(r->begin, r->end, r->context);
    return NULL;
}

/* hook_ranges ranges, on as many threads or one behind the other, the last one first. Not hook_by_grain: as narrow as single items. */
static void hook_parallel_for(void *user, int64_t begin, int64_t end, int64_t grain, sgk_parallel_body *body, void *context)
{
    (void)user;
    enum { MOST = 16 };
    const int64_t n = end - begin, grains = hook_by_grain ? (n + grain - 1) / grain : n;
    const int     count = (int)(grains < hook_ranges ? grains : hook_ranges);
    if (n <= 0) return;
    range     ranges[MOST];
    pthread_t threads[MOST];
    for (int i = 0; i < count; ++i) ranges[i] = (range){ body, context, begin + n * i / count, begin + n * (i + 1) / count };
    if (!hook_threads) {
        for (int i = count - 1; i >= 0; --i) run_range(&ranges[i]);
        return;
    }
    int started = 0;
    while (started < count && pthread_create(&threads[started], NULL, run_range, &ranges[started]) == 0) ++started;
    for (int i = started; i < count; ++i) run_range(&ranges[i]);
    for (int i = 0; i < started; ++i) pthread_join(threads[i], NULL);
}

static int hook_num_threads(void *user)
{
    (void)user;
    return hook_ranges;
}

/* Scratch memory that is counted; on the GPU it comes from the harness's own pool, because the work that uses it may still be under way. */
static int    hook_taken, hook_open;
static bool   hook_refuses;
static size_t hook_bytes;
static struct {
    void  *memory;
    size_t bytes;
} hook_memory[64];

static void *hook_allocate(void *user, size_t bytes, DLDevice device)
{
    (void)user;
    if (device.device_type != (level->gpu && !in_reference ? kDLCUDA : kDLCPU)) fail("asks for scratch memory on another device than its tensors'");
    if (hook_refuses || hook_taken == 64) return NULL;
    void *memory = device.device_type == kDLCUDA ? gpu_scratch(bytes) : aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory) return NULL;
    if (device.device_type == kDLCPU) memset(memory, FILL_FIRST, bytes);
    hook_memory[hook_taken].memory  = memory;
    hook_memory[hook_taken++].bytes = bytes;
    hook_open++;
    hook_bytes = bytes;
    return memory;
}

static void hook_release(void *user, void *memory, DLDevice device)
{
    (void)user;
    for (int i = 0; i < hook_taken; ++i)
        if (memory && hook_memory[i].memory == memory) {
            if (device.device_type == kDLCPU) free(memory);
            hook_memory[i].memory = NULL;
            hook_open--;
            return;
        }
    fail("releases scratch memory it was not given");
}

/* The exec of a phase: everything the case asked for, nothing left from the phase before. */
static void plain_exec(void)
{
    exec     = (sgk_exec)SGK_EXEC_INIT;
    exec.pdl = check_switches.pdl, exec.batch_invariant = check_switches.batch_invariant, exec.check_indices = check_switches.check_indices;
    hook_taken = hook_open = 0, hook_bytes = 0, hook_refuses = false;
    if (level->gpu && !in_reference) {
        exec.stream   = gpu_stream();
        exec.allocate = hook_allocate, exec.release = hook_release;
    }
    versions_listen(&exec);
}

static void ranges_exec(int ranges, bool by_grain, bool threads)
{
    plain_exec();
    hook_ranges = ranges, hook_by_grain = by_grain, hook_threads = threads;
    exec.parallel_for = hook_parallel_for;
    exec.num_threads  = hook_num_threads;
}

/* ---- the phases ---- */
static void stop(void);

static double started;

static bool reference_begin(void)
{
    if (step) return false;
    in_reference = true;
    sgk_cpu_mask(bench_least && level->gpu ? ~0u : 0);          /* large, and only to see whether what is timed is right */
    plain_exec();
    for (int i = 0; i < tensor_count; ++i) {
        tensor_restore(&tensors[i], tensors[i].ref, FILL_FIRST);
        tensor_arm(&tensors[i], tensors[i].ref, true);
    }
    started = clock_now();
    return true;
}

static void reference_end(sgk_status status)
{
    reference_seconds = clock_now() - started;
    in_reference      = false;
    sgk_cpu_mask(level->flags);
    for (int i = 0; i < tensor_count; ++i) {
        char where[96];
        tensor_arm(&tensors[i], tensors[i].ref, false);
        if (!tensor_surrounded(&tensors[i], tensors[i].ref, FILL_FIRST, where, sizeof where)) fail("the reference wrote outside tensor %d of the case: %s", i, where);
    }
    if (status != SGK_OK) {
        fail("the reference: %s", sgk_last_error());
        stop();
    }
    reference_done = true;
}

/* --once: a case whose builds were all reached by cases before it is left out; the others are dealt to the jobs, which all foresee the same. */
static bool foresee_begin(void)
{
    if (step || !check_once || !level->gpu) return false;
    call_prepare(FILL_FIRST);
    plain_exec();
    gpu_foresee();
    return true;
}
static void foresee_end(sgk_status status)
{
    static int kept;
    const bool needed_here = gpu_foreseen_new() && kept++ % job_count == job_number;
    gpu_wait();
    if (status != SGK_OK) fail("%s", sgk_last_error());
    if (status == SGK_OK && needed_here) count_case();
    else stop();
}

/* --versions asks which version runs, not whether it is right: one call, and no reference, which may take minutes. */
static bool versions_begin(void)
{
    if (!versions_wanted) return false;
    call_prepare(FILL_FIRST);
    plain_exec();
    return true;
}
static void versions_end(sgk_status status)
{
    call_finish();
    if (status != SGK_OK) fail("%s", sgk_last_error());
    stop();
}

/* One range on this very thread, so that a crash is caught here. */
static bool first_begin(void)
{
    if (step) return false;
    call_prepare(FILL_FIRST);
    ranges_exec(1, true, false);
    return true;
}

static void first_end(sgk_status status)
{
    call_finish();
    for (int i = 0; i < tensor_count; ++i)
        if (!stays(&tensors[i])) memcpy(tensors[i].first, tensor_data(&tensors[i], tensors[i].now), tensors[i].span);
    if (status != SGK_OK) {
        fail("%s", sgk_last_error());
        stop();
    }
    call_succeeded = status == SGK_OK;
}

static bool again_begin(void)
{
    if (step) return false;
    call_prepare(FILL_AGAIN);
    plain_exec();
    return true;
}
static void again_end(sgk_status status) { judge_again(status, "a second time"); }

static const struct {
    int         ranges;
    bool        by_grain, threads;
    const char *text;
} cuts[] = {
    { 3, false, false, "in 3 ranges, the last one first," },
    { 7, false, true, "in 7 ranges on 7 threads" },
};
static bool cuts_begin(void)
{
    if (level->gpu || large() || step == sizeof cuts / sizeof *cuts) return false;
    call_prepare(FILL_AGAIN);
    ranges_exec(cuts[step].ranges, cuts[step].by_grain, cuts[step].threads);
    return true;
}
static void cuts_end(sgk_status status) { judge_again(status, cuts[step].text); }

/* ---- scratch memory ---- */
enum { UNANSWERED = 0x7fffffff };
static bool query_begin(void)
{
    if (step) return false;
    if (!lean()) call_prepare(FILL_FIRST);
    plain_exec();
    needed               = UNANSWERED;
    exec.workspace_query = &needed;
    exec.allocate = hook_allocate, exec.release = hook_release;
    return true;
}
static void query_end(sgk_status status)
{
    if (level->gpu) gpu_wait();
    if (status != SGK_OK) fail("the question for its workspace fails: %s", sgk_last_error());
    else if (needed == UNANSWERED) fail("the question for its workspace is not answered");
    else if (!lean() && !call_wrote_nothing()) fail("the question for its workspace writes to a tensor");
    else if (hook_taken) fail("the question for its workspace allocates memory");
    else return;
    stop();
}

static char *workspace_block;
static bool exact_begin(void)
{
    if (step || !needed || large()) return false;
    call_prepare(FILL_AGAIN);
    plain_exec();
    const size_t size = GUARD + needed + GUARD;
    if (level->gpu) {
        exec.workspace = gpu_workspace(needed, FILL_FIRST);
    } else {
        workspace_block = aligned_alloc(64, (size + 63) / 64 * 64);
        if (!workspace_block) abort();
        memset(workspace_block, FILL_FIRST, size);
        exec.workspace = workspace_block + GUARD;
    }
    exec.workspace_size = needed;
    exec.allocate = hook_allocate, exec.release = hook_release;
    return true;
}
static void exact_end(sgk_status status)
{
    judge_again(status, "with the workspace it asked for");
    if (hook_taken) fail("allocates memory though it was given the %zu bytes of workspace it asked for", needed);
    bool intact = true;
    if (level->gpu) {
        intact = gpu_workspace_intact(needed, FILL_FIRST);
    } else {
        for (size_t i = 0; i < GUARD; ++i)
            intact = intact && (unsigned char)workspace_block[i] == FILL_FIRST && (unsigned char)workspace_block[GUARD + needed + i] == FILL_FIRST;
        free(workspace_block);
        workspace_block = NULL;
    }
    if (!intact) fail("writes outside the %zu bytes of workspace it asked for", needed);
}

static bool hooks_begin(void)
{
    if (step) return false;
    call_prepare(FILL_AGAIN);
    plain_exec();
    exec.allocate = hook_allocate, exec.release = hook_release;
    return true;
}
static void hooks_end(sgk_status status)
{
    judge_again(status, "with an allocator");
    if (hook_open) fail("does not release %d of its %d pieces of scratch memory", hook_open, hook_taken);
    if (!needed && hook_taken) fail("allocates %zu bytes, but answered the question for its workspace with 0", hook_bytes);
    if (needed && status == SGK_OK && (hook_taken != 1 || hook_bytes != needed))
        fail("allocates %d times, %zu bytes the last time, expected once the %zu bytes it answered", hook_taken, hook_bytes, needed);
    for (int i = 0; i < hook_taken; ++i)
        if (!level->gpu) free(hook_memory[i].memory);
}

/* No memory: on the GPU also when there is neither workspace nor allocator. */
static bool starved_begin(void)
{
    if (step == 1 + (level->gpu ? 1 : 0) || !needed || large()) return false;
    call_prepare(FILL_FIRST);
    plain_exec();
    exec.allocate = step ? NULL : hook_allocate, exec.release = step ? NULL : hook_release;
    hook_refuses = true;
    return true;
}
static void starved_end(sgk_status status)
{
    if (level->gpu) gpu_wait();
    if (status == SGK_OK) fail("reports success though it was refused its scratch memory");
    else if (!call_wrote_nothing()) fail("writes to a tensor though it was refused its scratch memory");
}

/* ---- GPU: programmatic launch, and inside a graph ---- */
static bool pdl_begin(void)
{
    if (step == 2 || !level->gpu || check_switches.pdl != SGK_DEFAULT) return false;
    if (step == 0) call_prepare(FILL_AGAIN);
    plain_exec();
    exec.pdl = SGK_ON;
    return true;
}
static void pdl_end(sgk_status status)
{
    /* Twice in a row without a wait, when that is the same as once: the second launch may start while the first one still runs. */
    bool repeatable = true;
    for (int i = 0; i < tensor_count; ++i) repeatable = repeatable && !(tensors[i].read && tensors[i].written);
    if (step == 0 && repeatable && status == SGK_OK) return;
    judge_again(status, "with programmatic launch");
    if (!repeatable) step = 1;
}

static bool graph_begin(void)
{
    if (step || !level->gpu || check_switches.no_graph) return false;
    call_prepare(FILL_AGAIN);
    plain_exec();
    if (needed) {
        exec.workspace      = gpu_workspace(needed, FILL_FIRST);
        exec.workspace_size = needed;
    }
    if (!gpu_capture_begin()) fail("capturing a graph: %s", gpu_error());
    return true;
}
static void graph_end(sgk_status status)
{
    if (!gpu_capture_end()) {
        fail("inside a graph capture: %s; %s", gpu_error(), status == SGK_OK ? "the call itself succeeded" : sgk_last_error());
        return;
    }
    if (status != SGK_OK) fail("inside a graph capture it fails: %s", sgk_last_error());
    else if (!call_wrote_nothing()) fail("runs during capture instead of being captured");
    else
        for (int replay = 0; replay < 2 && !case_failed; ++replay) {
            call_prepare(replay ? FILL_FIRST : FILL_AGAIN);
            if (!gpu_graph_launch()) fail("launching the graph: %s", gpu_error());
            judge_again(SGK_OK, "replayed from a graph");
        }
    gpu_graph_free();
}

/* ---- broken arguments ---- */
/* Refused calls leave memory as it is, so all of them are made before one look at it. Where something was written they are made again, with a look behind each. */
static bool one_by_one;

static bool breaks_begin(void)
{
    if (large() || check_switches.keep_arguments || check_keep_arguments) return false;
    if (step == 0) {
        breaks_plan();
        one_by_one = false;
    }
    if (step == breaks_count()) {
        if (one_by_one && !case_failed) fail("a call with a broken argument writes to memory, but none does alone");
        if (step == 0 || one_by_one || call_wrote_nothing()) return false;
        one_by_one = true;
        step       = 0;
    }
    if (step == 0 || one_by_one) call_prepare(FILL_FIRST);
    plain_exec();
    return true;
}

/* A message begins with the operator's name, or with a beginning of it: one C function may serve several operators, and says its own. */
static bool names_operator(void)
{
    const char  *name = operator_of_case(), *message = sgk_last_error();
    const size_t said = strcspn(message, ":");
    return !name || (said > 0 && !strncmp(name, message, said));
}

static void breaks_end(sgk_status status)
{
    if (level->gpu && !gpu_wait()) {
        fail("%s: %s", breaks_text(step), gpu_error());
        stop();
        return;
    }
    if (one_by_one) {
        if (status != SGK_OK && !call_wrote_nothing()) fail("%s is refused, but memory was written", breaks_text(step));
        return;
    }
    if (status == SGK_OK) fail("%s is accepted", breaks_text(step));
    else if (status != SGK_BAD_ARG && status != SGK_UNSUPPORTED && !(status == SGK_NO_DEVICE && breaks_device(step)))
        fail("%s is refused with status %d instead of SGK_BAD_ARG: %s", breaks_text(step), (int)status, sgk_last_error());
    else if (!names_operator()) fail("%s is refused without the operator's name: \"%s\"", breaks_text(step), sgk_last_error());
    check_operator *o = operator_named(label);
    if (o) o->refused++;
}

/* ---- the clock ---- */
static bool bench_begin(void)
{
    if (!check_benching || case_failed) return false;
    if (step == 0) {
        if (lean()) prepare_again();
        else call_prepare(FILL_FIRST);
        plain_exec();
        for (int i = 0; i < tensor_count; ++i) tensor_arm(&tensors[i], tensors[i].now, false);
        if (level->gpu && needed) {
            exec.workspace      = gpu_workspace(needed, FILL_FIRST);
            exec.workspace_size = needed;
        }
        bench_start();
    }
    if (bench_more()) return true;
    if (level->gpu) gpu_wait();
    return false;
}
static void bench_end(sgk_status status)
{
    bench_called();
    if (status != SGK_OK) {
        fail("%s", sgk_last_error());
        stop();
    }
}

static const struct {
    bool (*begin)(void);
    void (*end)(sgk_status);
} phases[] = {
    { versions_begin, versions_end },
    { foresee_begin, foresee_end },
    { reference_begin, reference_end },
    { first_begin, first_end },
    { again_begin, again_end },
    { cuts_begin, cuts_end },
    { query_begin, query_end },
    { exact_begin, exact_end },
    { hooks_begin, hooks_end },
    { starved_begin, starved_end },
    { pdl_begin, pdl_end },
    { graph_begin, graph_end },
    { breaks_begin, breaks_end },
    { bench_begin, bench_end },
};
enum { PHASE_AGAIN = 4,
       PHASES      = sizeof phases / sizeof *phases,
       REFUSED     = PHASES };

/* --bench-from: of a case that is timed only what says that it is right, and its workspace. */
static bool left_out(int phase)
{
    return bench_least && phase >= PHASE_AGAIN && phases[phase].begin != query_begin && phases[phase].begin != bench_begin;
}

static bool breaking(void) { return current >= 0 && current < PHASES && phases[current].begin == breaks_begin; }
static void stop(void) { current = PHASES; }

void call_forget(void)
{
    gpu_capture_abandon();
    leave_gpu();
    in_reference = false;
    current = -1, step = 0;
    for (int i = 0; i < tensor_count; ++i) {
        tensor_arm(&tensors[i], tensors[i].ref, false);
        tensor_arm(&tensors[i], tensors[i].now, false);
    }
    free(workspace_block);
    workspace_block = NULL;
}

bool check_next(void)
{
    if (current < 0) {
        current = step    = 0;
        needed            = 0;
        call_succeeded    = false;
        reference_seconds = 0;
        reference_done    = false;
        if (tensors_bytes() < bench_least) stop();
        else if (bench_least) count_case();
    }
    for (; current < PHASES; ++current, step = 0) {
        if (left_out(current)) continue;
        if (check_once && current > PHASE_AGAIN) break;
        if (current >= PHASE_AGAIN && case_failed && !breaking()) break;       /* a wrong result: later phases would say it again */
        if (phases[current].begin()) {
            slot_count = 0;
            return true;
        }
    }
    call_forget();
    return false;
}

void check_result(sgk_status status)
{
    phases[current].end(status);
    if (current < PHASES) ++step;
}

/* ---- calls that must be refused ---- */
bool check_next_refused(void)
{
    if (current == REFUSED || (check_once && level->gpu) || bench_least) {
        call_forget();
        return false;
    }
    current = REFUSED;
    sgk_cpu_mask(level->flags);
    call_prepare(FILL_FIRST);
    plain_exec();
    slot_count = 0;
    return true;
}

void check_refusal(sgk_status want, const char *words, sgk_status status)
{
    if (level->gpu) gpu_wait();
    const bool nothing = call_wrote_nothing();
    if (status != want) fail("returns status %d, expected %d: \"%s\"", (int)status, (int)want, status == SGK_OK ? "" : sgk_last_error());
    else if (!strstr(sgk_last_error(), words)) fail("says \"%s\", expected the words \"%s\"", sgk_last_error(), words);
    else if (!names_operator()) fail("is refused without the operator's name: \"%s\"", sgk_last_error());
    else if (!nothing) fail("is refused, but memory was written");
}
