/* Fused steps of linear-time rules on a CPU.
 *
 * A matrix is read from memory once and then again from cache: its buffer moves and is measured, then its parameter
 * is written. Small matrices go to one thread each, large ones are cut into chunks of rows that all threads take.
 * What is computed depends on the matrix alone: chunks follow from its shape, and their sums are added in order,
 * whoever made them. Compiled without -ffast-math; native.py builds this file, native_steps.py calls it.
 */
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 1024        /* numbers converted, moved and summed at a time: 4 KiB, in the first-level cache */
#define GROUP 4           /* rows whose column sums are added in one sweep over the columns */
#define CHUNK 16384       /* numbers that a thread takes at a time, at least */
#define MOST_CHUNKS 128   /* of a matrix whose chunks have column sums of their own */
#define LARGE (1L << 19)  /* numbers from which a matrix is shared by all threads */

enum { F32, BF16, F16 };
enum { RELATIVE, ADD, CLAMP };
enum { SPECTRAL_BOUND, PAPER };

static const double DAMPING = 1e-5, FLOOR = 1e-8; /* of orthoopt.rules._rows */

/* ------------------------------------------------------------------------------------------------- arithmetic */

#if defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#if defined(__FMA__) || defined(__aarch64__)
#define FMA(x, y, z) __builtin_fmaf(x, y, z)
#else
#define FMA(x, y, z) ((x) * (y) + (z))
#endif

/* Sum of x·y, or of x where y is null; lanes fixed here, for a compiler must not reorder a sum. */
static double dot(const float *x, const float *y, int64_t count) {
    double total = 0;
    for (int64_t from = 0; from < count; from += BLOCK) {
        int64_t end = from + BLOCK < count ? from + BLOCK : count, i = from;
        lanes even = {0}, odd = {0};
        float rest = 0;
        for (; i + 2 * LANES <= end; i += 2 * LANES) {
            const lanes *a = (const lanes *)(x + i);
            if (y) {
                const lanes *b = (const lanes *)(y + i);
                even += a[0] * b[0];
                odd += a[1] * b[1];
            } else {
                even += a[0];
                odd += a[1];
            }
        }
        for (; i < end; i++) rest += y ? x[i] * y[i] : x[i];
        even += odd;
        for (int lane = 0; lane < LANES; lane++) total += even[lane];
        total += rest;
    }
    return total;
}

/* Numbers [at, at + count) of a row as float32: in place where they are, else in `space`. */
static const float *read_floats(const void *row, int type, int64_t at, int64_t count, float *restrict space) {
    if (type == F32) return (const float *)row + at;
    const uint16_t *narrow = (const uint16_t *)row + at;
    for (int64_t i = 0; i < count; i++) {
        union { uint32_t bits; float value; } wide = {(uint32_t)narrow[i] << 16};
        space[i] = wide.value;
    }
    return space;
}

/* Rounded to nearest, ties to even; NaN stays NaN. */
static void write_bfloat16(uint16_t *restrict narrow, const float *restrict wide, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        union { float value; uint32_t bits; } x = {wide[i]};
        uint32_t rounded = (x.bits + 0x7fff + ((x.bits >> 16) & 1)) >> 16;
        narrow[i] = (x.bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
    }
}

/* ----------------------------------------------------------------------------------------------------- threads */

typedef void parallel_fn(void (*)(void *), void *, unsigned, unsigned); /* GOMP_parallel */
typedef struct { parallel_fn *parallel; int threads; } team;
typedef void body_fn(void *with, int64_t index, int64_t slot);
typedef struct { body_fn *body; void *with; int64_t count; int backwards; atomic_long next, slots; } loop;

static void work_through(void *at) {
    loop *l = at;
    int64_t slot = atomic_fetch_add(&l->slots, 1);
    for (int64_t i; (i = atomic_fetch_add(&l->next, 1)) < l->count;)
        l->body(l->with, l->backwards ? l->count - 1 - i : i, slot);
}

/* body(with, index, slot) for every index, shared out; slots number the threads at work. */
static void each(const team *with_team, int64_t count, int backwards, body_fn *body, void *with) {
    loop l = {body, with, count, backwards, 0, 0};
    if (with_team->parallel && with_team->threads > 1 && count > 1)
        with_team->parallel(work_through, &l, with_team->threads, 0);
    else
        work_through(&l);
}

/* Memory for intermediate sums, kept from call to call: fresh pages cost more than the sums. */
typedef struct { _Alignas(64) size_t size; } reserve; /* the bytes follow */
static _Atomic(reserve *) kept;

static reserve *take_space(size_t size) {
    reserve *taken = atomic_exchange(&kept, NULL);
    if (taken && taken->size >= size) return taken;
    free(taken);
    if (posix_memalign((void **)&taken, 64, sizeof *taken + size)) return NULL;
    taken->size = size;
    return taken;
}

static void give_space(reserve *taken) { free(atomic_exchange(&kept, taken)); }

/* ---------------------------------------------------------------------------------------------------- matrices */

typedef struct { char *at; int64_t type, row; } operand; /* row: the stride of rows, in bytes */

typedef struct { operand param, grad, buffer; int64_t rows, cols; double factor; } matrix;

typedef struct { double decay, weight, from_grad, from_buffer; } moving;

typedef struct {
    const matrix *m;
    moving by;
    double keep;
    int kind, move;
    team own;
    int64_t chunk_rows, chunks;
    double *of_rows;      /* lengths (row norm) or sums of magnitudes (AuON) */
    double *of_chunks;    /* a number a chunk */
    float *of_columns;    /* AuON: column sums, two lines a chunk, and one of totals */
    float *row_space;     /* AuON: GROUP rows a thread */
    double unit, inverse; /* what magnitudes are multiplied by; 1/‖unit·X‖_F */
} task;

static char *row_of(const operand *x, int64_t row) { return x->at + row * x->row; }

static int64_t end_of(const task *t, int64_t chunk) {
    int64_t end = (chunk + 1) * t->chunk_rows;
    return end < t->m->rows ? end : t->m->rows;
}

/* The signal, numbers [at, at + count) of a row; moves the buffer first where asked. */
static const float *signal_of(const task *t, int64_t row, int64_t at, int64_t count, int move, float *restrict space) {
    float grads[BLOCK];
    const moving by = t->by;
    float *restrict buffer = (float *)row_of(&t->m->buffer, row) + at;
    const int blend = by.from_grad != 0 || by.from_buffer != 1;
    if (!move && !blend) return buffer;
    const float *restrict grad = read_floats(row_of(&t->m->grad, row), t->m->grad.type, at, count, grads);
    const float decay = by.decay, weight = by.weight, from_grad = by.from_grad, from_buffer = by.from_buffer;
    if (move)
        for (int64_t i = 0; i < count; i++) buffer[i] = FMA(weight, grad[i], decay * buffer[i]);
    if (!blend) return buffer;
    for (int64_t i = 0; i < count; i++) space[i] = FMA(from_grad, grad[i], from_buffer * buffer[i]);
    return space;
}

/* param ← keep·param − factor·x; in double where a factor or a product would leave float32. */
static void subtract(const operand *param, int64_t row, int64_t at, const float *x, int64_t count, double keep,
                     double factor) {
    float space[BLOCK];
    char *from = row_of(param, row);
    const float *source = read_floats(from, param->type, at, count, space);
    float *target = param->type == F32 ? (float *)from + at : space;
    const float small_keep = keep, small_factor = -factor;
    if (factor == 0 || (fabs(factor) > 1e-30 && fabs(factor) < 1e30))
        for (int64_t i = 0; i < count; i++) target[i] = FMA(small_factor, x[i], small_keep * source[i]);
    else
        for (int64_t i = 0; i < count; i++) target[i] = keep * source[i] - factor * x[i];
    if (param->type == BF16) write_bfloat16((uint16_t *)from + at, target, count);
}

static void subtract_row(const task *t, int64_t row, double factor) {
    float space[BLOCK];
    for (int64_t at = 0; at < t->m->cols; at += BLOCK) {
        int64_t count = t->m->cols - at < BLOCK ? t->m->cols - at : BLOCK;
        subtract(&t->m->param, row, at, signal_of(t, row, at, count, 0, space), count, t->keep, factor);
    }
}

/* A row's sum of squares, its buffer moved before. Where float32 squares overflow or vanish they are taken again, in
 * double, which holds the square of every float32. */
static double squares_of(const task *t, int64_t row, int move, float *magnitudes, double *sum) {
    const int64_t cols = t->m->cols;
    float space[BLOCK];
    double total = 0;
    *sum = 0;
    for (int64_t at = 0; at < cols; at += BLOCK) {
        int64_t count = cols - at < BLOCK ? cols - at : BLOCK;
        const float *x = signal_of(t, row, at, count, move, space);
        total += dot(x, x, count);
        if (!magnitudes) continue;
        const float unit = t->unit;
        for (int64_t i = 0; i < count; i++) magnitudes[at + i] = fabsf(x[i]) * unit;
        *sum += dot(magnitudes + at, NULL, count);
    }
    if (total > cols * 1e-30 && total < 1e37) return total;
    total = 0;
    for (int64_t at = 0; at < cols; at += BLOCK) {
        int64_t count = cols - at < BLOCK ? cols - at : BLOCK;
        const float *x = signal_of(t, row, at, count, 0, space);
        for (int64_t i = 0; i < count; i++) total += (double)x[i] * x[i];
    }
    return total;
}

/* ---------------------------------------------------------------------------------------------------- row norm */

static double damped_factor(const task *t, int64_t row, double damping) {
    double length = t->of_rows[row];
    double damped = t->kind == CLAMP ? fmax(length, FLOOR) : length + damping;
    return damped == 0 ? 0 : t->m->factor / damped;
}

static void move_and_measure(void *with, int64_t chunk, int64_t slot) {
    task *t = with;
    int64_t from = chunk * t->chunk_rows, end = end_of(t, chunk);
    double unused;
    for (int64_t row = from; row < end; row++) {
        t->of_rows[row] = sqrt(squares_of(t, row, 1, NULL, &unused));
        if (t->kind != RELATIVE) subtract_row(t, row, damped_factor(t, row, FLOOR));
    }
}

static void subtract_rows(void *with, int64_t chunk, int64_t slot) {
    task *t = with;
    int64_t from = chunk * t->chunk_rows, end = end_of(t, chunk);
    for (int64_t row = end - 1; row >= from; row--) subtract_row(t, row, damped_factor(t, row, t->unit));
}

static void row_norm(task *t) {
    each(&t->own, t->chunks, 0, move_and_measure, t);
    if (t->kind != RELATIVE) return;
    double squares = 0;
    for (int64_t row = 0; row < t->m->rows; row++) squares += t->of_rows[row] * t->of_rows[row];
    t->unit = DAMPING * sqrt(squares / t->m->rows);
    each(&t->own, t->chunks, 1, subtract_rows, t); /* backwards: what was written last is in cache */
}

/* -------------------------------------------------------------------------------------------------------- AuON */

/* Moves the rows of a chunk; their sums of magnitudes p, squares, and the chunk's parts of q = Σᵢ|xᵢⱼ| and Σᵢ|xᵢⱼ|pᵢ. */
static void move_and_sum(void *with, int64_t chunk, int64_t slot) {
    task *t = with;
    const int64_t cols = t->m->cols;
    int64_t from = chunk * t->chunk_rows, end = end_of(t, chunk);
    float *space = t->row_space + slot * GROUP * cols;
    float *restrict q = t->of_columns + chunk * 2 * cols, *restrict weighted = q + cols;
    double squares = 0;
    memset(q, 0, 2 * cols * sizeof *q);
    for (int64_t row = from; row < end; row += GROUP) {
        float p[GROUP] = {0};
        for (int64_t k = 0; k < GROUP; k++) {
            if (row + k >= end) { memset(space + k * cols, 0, cols * sizeof *space); continue; }
            squares += squares_of(t, row + k, t->move, space + k * cols, &t->of_rows[row + k]);
            p[k] = t->of_rows[row + k];
        }
        const float *restrict a = space, *restrict b = a + cols, *restrict c = b + cols, *restrict d = c + cols;
        for (int64_t j = 0; j < cols; j++) {
            q[j] += (a[j] + b[j]) + (c[j] + d[j]);
            weighted[j] += FMA(a[j], p[0], b[j] * p[1]) + FMA(c[j], p[2], d[j] * p[3]);
        }
    }
    t->of_chunks[chunk] = squares;
}

/* The largest Σⱼ|xᵢⱼ|qⱼ/pᵢ of a chunk. */
static void weigh_rows(void *with, int64_t chunk, int64_t slot) {
    task *t = with;
    const int64_t cols = t->m->cols;
    const float *q = t->of_columns + t->chunks * 2 * cols;
    int64_t from = chunk * t->chunk_rows, end = end_of(t, chunk);
    double most = 0;
    float space[BLOCK], magnitudes[BLOCK];
    for (int64_t row = end - 1; row >= from; row--) {
        double sum = 0;
        for (int64_t at = 0; at < cols; at += BLOCK) {
            int64_t count = cols - at < BLOCK ? cols - at : BLOCK;
            const float *x = signal_of(t, row, at, count, 0, space), unit = t->unit;
            for (int64_t i = 0; i < count; i++) magnitudes[i] = fabsf(x[i]) * unit;
            sum += dot(magnitudes, q + at, count);
        }
        if (t->of_rows[row] > 0) most = fmax(most, sum / t->of_rows[row]);
    }
    t->of_chunks[chunk] = most;
}

/* Σ sinh² of a chunk of X/‖X‖_F, by its series up to the 14th power: the next term is below 2e-9 where |x| ≤ 1. */
static void sum_sinh_squared(void *with, int64_t chunk, int64_t slot) {
    task *t = with;
    const int64_t cols = t->m->cols;
    int64_t from = chunk * t->chunk_rows, end = end_of(t, chunk);
    double total = 0;
    float space[BLOCK], values[BLOCK];
    for (int64_t row = end - 1; row >= from; row--)
        for (int64_t at = 0; at < cols; at += BLOCK) {
            int64_t count = cols - at < BLOCK ? cols - at : BLOCK;
            const float *x = signal_of(t, row, at, count, 0, space), unit = t->unit, inverse = t->inverse;
            for (int64_t i = 0; i < count; i++) {
                float u = x[i] * unit * inverse;
                u *= u;
                float high = FMA(u, FMA(u, 4.f / 42567525, 2.f / 467775), 2.f / 14175);
                values[i] = u + u * u * FMA(u, FMA(u, FMA(u, high, 1.f / 315), 2.f / 45), 1.f / 3);
            }
            total += dot(values, NULL, count);
        }
    t->of_chunks[chunk] = total;
}

static void subtract_signal(void *with, int64_t chunk, int64_t slot) {
    task *t = with;
    int64_t from = chunk * t->chunk_rows, end = end_of(t, chunk);
    for (int64_t row = from; row < end; row++) subtract_row(t, row, t->inverse);
}

/* Totals of the chunks' column sums, in order: q for weigh_rows, and the largest Σᵢ|xᵢⱼ|pᵢ/qⱼ, which is returned. */
static double weigh_columns(const task *t) {
    const int64_t cols = t->m->cols;
    float *totals = t->of_columns + t->chunks * 2 * cols;
    double most = 0;
    for (int64_t at = 0; at < cols; at += BLOCK) {
        int64_t count = cols - at < BLOCK ? cols - at : BLOCK;
        double q[BLOCK] = {0}, weighted[BLOCK] = {0};
        for (int64_t chunk = 0; chunk < t->chunks; chunk++) {
            const float *part = t->of_columns + chunk * 2 * cols + at;
            for (int64_t j = 0; j < count; j++) q[j] += part[j];
            for (int64_t j = 0; j < count; j++) weighted[j] += part[cols + j];
        }
        for (int64_t j = 0; j < count; j++) totals[at + j] = q[j];
        for (int64_t j = 0; j < count; j++)
            if (q[j] > 0) most = fmax(most, weighted[j] / q[j]);
    }
    return most;
}

static void auon(task *t) {
    const double size = (double)t->m->rows * t->m->cols;
    double squares = 0, divisor;
    t->unit = 1;
    t->move = 1;
    each(&t->own, t->chunks, 0, move_and_sum, t);
    for (int64_t chunk = 0; chunk < t->chunks; chunk++) squares += t->of_chunks[chunk];
    double norm = divisor = sqrt(squares);
    /* Sums of products of three entries follow, so entries that are far from one are seen through a power of two. */
    int far = !(norm > 1e-10 && norm < 1e10) && norm > 0;
    if (far) t->unit = ldexp(1, -(int)fmax(-126, fmin(126, logb(norm))));
    if (t->kind == SPECTRAL_BOUND) {
        t->move = 0;
        if (far) each(&t->own, t->chunks, 1, move_and_sum, t);
        double beta = weigh_columns(t), alpha = 0;
        each(&t->own, t->chunks, !far, weigh_rows, t);
        for (int64_t chunk = 0; chunk < t->chunks; chunk++) alpha = fmax(alpha, t->of_chunks[chunk]);
        double bound = sqrt(alpha * beta) / t->unit;
        if (bound > 0 && bound < norm) divisor = bound;
    } else if (norm > 0 && size < (1 << 22)) { /* from there on the brake is one to float32's rounding */
        t->inverse = 1 / (norm * t->unit);
        double total = 0;
        each(&t->own, t->chunks, 1, sum_sinh_squared, t);
        for (int64_t chunk = 0; chunk < t->chunks; chunk++) total += t->of_chunks[chunk];
        divisor *= sqrt(1 + total / size);
    }
    t->inverse = divisor == 0 ? 0 : t->m->factor / divisor;
    each(&t->own, t->chunks, 0, subtract_signal, t);
}

/* ------------------------------------------------------------------------------------------- elementwise steps */

static void move_and_copy(void *with, int64_t chunk, int64_t slot) {
    task *t = with;
    float signal[BLOCK];
    for (int64_t row = chunk * t->chunk_rows; row < end_of(t, chunk); row++)
        for (int64_t at = 0; at < t->m->cols; at += BLOCK) {
            int64_t count = t->m->cols - at < BLOCK ? t->m->cols - at : BLOCK;
            const float *x = signal_of(t, row, at, count, 1, signal);
            char *out = row_of(&t->m->param, row);
            if (t->m->param.type == BF16) write_bfloat16((uint16_t *)out + at, x, count);
            else memcpy((float *)out + at, x, count * sizeof *x);
        }
}

static void subtract_given(void *with, int64_t chunk, int64_t slot) {
    task *t = with;
    float wide[BLOCK];
    for (int64_t row = chunk * t->chunk_rows; row < end_of(t, chunk); row++)
        for (int64_t at = 0; at < t->m->cols; at += BLOCK) {
            int64_t count = t->m->cols - at < BLOCK ? t->m->cols - at : BLOCK;
            const float *x = read_floats(row_of(&t->m->grad, row), t->m->grad.type, at, count, wide);
            subtract(&t->m->param, row, at, x, count, t->keep, t->m->factor);
        }
}

static void momentum_into(task *t) { each(&t->own, t->chunks, 0, move_and_copy, t); }
static void subtract_updates(task *t) { each(&t->own, t->chunks, 0, subtract_given, t); }

/* --------------------------------------------------------------------------------------------------- entrances */

enum { ROW_NORM, AUON, MOMENTUM_INTO, SUBTRACT_UPDATES };
static void (*const rules[])(task *) = {row_norm, auon, momentum_into, subtract_updates};

typedef struct { task common; matrix *all; int64_t *small; int rule; char *bytes; size_t area; } job;

/* Chunks and sums of a task, from its shape alone; returns the bytes that they take. */
static size_t lay_out(task *t, int rule, char *at) {
    const int64_t rows = t->m->rows, cols = t->m->cols;
    t->chunk_rows = (CHUNK + cols - 1) / cols;
    if (rule == AUON) { /* chunks of few rows would have column sums as large as themselves */
        int64_t least = (rows + MOST_CHUNKS - 1) / MOST_CHUNKS;
        if (t->chunk_rows < 8 * GROUP) t->chunk_rows = 8 * GROUP;
        if (t->chunk_rows < least) t->chunk_rows = least;
    }
    t->chunks = (rows + t->chunk_rows - 1) / t->chunk_rows;
    if (rule > AUON) return 0;
    t->of_rows = (double *)at;
    t->of_chunks = t->of_rows + rows;
    t->of_columns = (float *)(t->of_chunks + t->chunks);
    t->row_space = t->of_columns + (2 * t->chunks + 1) * cols;
    char *end = rule == AUON ? (char *)(t->row_space + t->own.threads * GROUP * cols) : (char *)t->of_columns;
    return (end - at + 63) & ~(size_t)63;
}

static void run_alone(void *with, int64_t index, int64_t slot) {
    const job *j = with;
    task t = j->common;
    t.m = j->all + j->small[index];
    t.own = (team){NULL, 1};
    lay_out(&t, j->rule, j->bytes + slot * j->area);
    rules[j->rule](&t);
}

static operand operand_of(const int64_t *x, int64_t type, int64_t stack) {
    int64_t size = type == F32 ? 4 : 2;
    return (operand){(char *)(intptr_t)x[0] + stack * x[1] * size, type, x[2] * size};
}

/* One step of `rule` over a table of stacks of matrices.
 *
 * A line of the table is stack, rows, cols, the three types as base-4 digits, and for param, grad and buffer: address,
 * stride of the stack, stride of a row. `numbers`: decay, weight, from_grad, from_buffer, keep; then a factor a line.
 * Returns 0, or 1 without having touched anything where memory is out. */
int orthoopt_step(int rule, int kind, int64_t lines, const int64_t *table, const double *numbers, parallel_fn *parallel,
                  int threads) {
    int64_t count = 0, few = 0;
    for (int64_t line = 0; line < lines; line++) count += table[13 * line];
    if (count == 0) return 0;
    job j = {.common = {.by = {numbers[0], numbers[1], numbers[2], numbers[3]}, .keep = numbers[4], .kind = kind}};
    j.rule = rule;
    j.all = malloc(count * (sizeof *j.all + sizeof *j.small));
    if (!j.all) return 1;
    j.small = (int64_t *)(j.all + count);
    matrix *m = j.all;
    for (int64_t line = lines - 1; line >= 0; line--) { /* backwards: the gradients checked last are in cache */
        const int64_t *x = table + 13 * line;
        for (int64_t stack = x[0] - 1; stack >= 0; stack--)
            *m++ = (matrix){operand_of(x + 4, x[3] & 3, stack), operand_of(x + 7, x[3] >> 2 & 3, stack),
                            operand_of(x + 10, x[3] >> 4 & 3, stack), x[1], x[2], numbers[5 + line]};
    }
    size_t most = 0;
    int64_t least = count < 2 * threads ? 4 * CHUNK : LARGE;
    for (int64_t i = 0; i < count; i++) {
        task t = {.m = j.all + i, .own = {parallel, 1}};
        if (threads > 1 && t.m->rows * t.m->cols >= least) {
            t.own.threads = threads;
            size_t area = lay_out(&t, rule, NULL);
            if (area > most) most = area;
        } else {
            size_t area = lay_out(&t, rule, NULL);
            if (area > j.area) j.area = area;
            j.small[few++] = i;
        }
    }
    if (most < j.area * threads) most = j.area * threads;
    reserve *taken = take_space(most);
    if (!taken) { free(j.all); return 1; }
    j.bytes = (char *)(taken + 1);
    for (int64_t i = 0, next = 0; i < count; i++) {
        if (next < few && j.small[next] == i) { next++; continue; }
        task t = j.common;
        t.m = j.all + i;
        t.own = (team){parallel, threads};
        lay_out(&t, rule, j.bytes);
        rules[rule](&t);
    }
    each(&(team){parallel, threads}, few, 0, run_alone, &j);
    give_space(taken);
    free(j.all);
    return 0;
}

/* ------------------------------------------------------------------------------------------------ finite or not */

#define SCAN (1 << 16) /* numbers that a thread looks at at a time */

typedef struct { const int64_t *table; int64_t lines; atomic_int bad; } scan;

static int is_finite(const char *at, int64_t type, int64_t count) {
    if (type == F32) {
        const int32_t *x = (const int32_t *)at;
        int32_t most = 0;
        #pragma omp simd reduction(max : most)
        for (int64_t i = 0; i < count; i++) most = most > (x[i] & 0x7fffffff) ? most : (x[i] & 0x7fffffff);
        return most < 0x7f800000;
    }
    const int16_t *x = (const int16_t *)at;
    int16_t most = 0;
    #pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < count; i++) most = most > (x[i] & 0x7fff) ? most : (x[i] & 0x7fff);
    return most < (type == BF16 ? 0x7f80 : 0x7c00);
}

static void look(void *with, int64_t chunk, int64_t slot) {
    scan *s = with;
    const int64_t *x = s->table;
    if (atomic_load_explicit(&s->bad, memory_order_relaxed)) return;
    for (int64_t chunks; chunk >= (chunks = (x[1] + SCAN - 1) / SCAN); x += 3) chunk -= chunks;
    int64_t from = chunk * SCAN, count = x[1] - from < SCAN ? x[1] - from : SCAN;
    if (!is_finite((const char *)(intptr_t)x[0] + from * (x[2] == F32 ? 4 : 2), x[2], count))
        atomic_store_explicit(&s->bad, 1, memory_order_relaxed);
}

/* Whether every number of a table of address, count, type is finite. */
int orthoopt_all_finite(int64_t lines, const int64_t *table, parallel_fn *parallel, int threads) {
    scan s = {table, lines, 0};
    int64_t chunks = 0;
    for (int64_t line = 0; line < lines; line++) chunks += (table[3 * line + 1] + SCAN - 1) / SCAN;
    each(&(team){parallel, threads}, chunks, 0, look, &s);
    return !s.bad;
}
