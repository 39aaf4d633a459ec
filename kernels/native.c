/* Fused steps of linear-time rules on a CPU.
 *
 * A matrix is read from memory once and then again from cache: its buffer moves and is measured, then its parameter
 * is written. Small matrices go to one thread each, large ones are cut into chunks of rows that all threads take.
 * What is computed depends on the matrix alone: chunks follow from its shape, and their sums are added in order,
 * whoever made them. native.py builds this file, native_steps.py calls it.
 */
#include "native.h"

#define CHUNK (1L << 14) /* numbers that a thread takes at a time, at least */
#define LARGE (1L << 19)  /* numbers from which a matrix is shared by all threads */
#define STORED (1L << 22) /* numbers up to which a signal that is not the buffer is stored rather than made again */
#define MOST_CHUNKS 128   /* of a matrix whose chunks have column sums of their own */

enum { RELATIVE, ADD, CLAMP };
enum { SPECTRAL_BOUND, PAPER };

static const double DAMPING = 1e-5, FLOOR = 1e-8; /* of orthoopt.rules._rows */

/* row: the stride of rows, in bytes; of a turned one, whose columns lie side by side, the stride of columns. */
typedef struct { char *at; int64_t type, row; int turned; } operand;
typedef struct { operand param, grad, buffer; int64_t rows, cols; double factor; } matrix;

typedef struct {
    const matrix *m;
    moving by;
    double keep;
    int kind, blend, move; /* blend: whether the signal is not the buffer itself; move: whether the buffer still moves */
    int threads;
    int64_t chunk_rows, chunks;
    double *of_rows;    /* lengths (row norm) or sums of magnitudes (AuON) */
    double *of_chunks;  /* a number a chunk */
    float *of_columns;  /* AuON: column sums, two lines a chunk, and one of totals */
    float *row_space;   /* AuON: GROUP rows a thread, where signals are not stored */
    float *stored;      /* the signal; null where it is the buffer, or too large */
    double damping, factor;
} task;

static char *row_of(const operand *x, int64_t row) { return x->at + row * x->row; }

static int is_small(double factor) { return factor == 0 || (fabs(factor) > 1e-30 && fabs(factor) < 1e30); }

static int64_t end_of(const task *t, int64_t chunk) { return least((chunk + 1) * t->chunk_rows, t->m->rows); }

#define FOR_ROWS(t, chunk, row) \
    for (int64_t row = (chunk) * (t)->chunk_rows, end = end_of(t, chunk); row < end; row++)
/* GROUP at a time, then singly. Which rows go together follows from the shape. */
#define FOR_GROUPS(t, chunk, row, many)                                                 \
    for (int64_t row = (chunk) * (t)->chunk_rows, end = end_of(t, chunk), many;         \
         row < end && (many = end - row < GROUP ? 1 : GROUP, 1); row += many)

/* walk() over a part of a row, `out` null where the signal is not stored. */
static void walk_part(const task *t, int64_t row, int64_t from, int64_t count, float *out, int move, int weigh,
                      sums *found) {
    float wide[BLOCK], *buffer = (float *)row_of(&t->m->buffer, row) + from;
    const float *grad = NULL;
    if (t->blend || move) grad = read_floats(row_of(&t->m->grad, row), t->m->grad.type, from, count, wide);
#define WALK(what)                                                                       \
    do {                                                                                 \
        if (weigh) walk(t->by, grad, buffer, out, count, (what) | WEIGH, found);         \
        else walk(t->by, grad, buffer, out, count, what, found);                         \
    } while (0)
    if (!move && !t->blend) WALK(0);
    else if (!move) WALK(BLEND | STORE);
    else if (!t->blend && !out) WALK(MOVE);
    else if (!t->blend) WALK(MOVE | STORE);
    else if (!out) WALK(MOVE | BLEND);
    else WALK(MOVE | BLEND | STORE);
}

static sums walk_row(const task *t, int64_t row, float *out, int move, int weigh) {
    sums found = {0, 0};
    for (int64_t from = 0; from < t->m->cols; from += BLOCK)
        walk_part(t, row, from, least(BLOCK, t->m->cols - from), out ? out + from : NULL, move, weigh, &found);
    return found;
}

/* A part of a row of the signal: where it is, or made again in `space`. */
static const float *signal_of(const task *t, int64_t row, int64_t from, int64_t count, float *space) {
    if (!t->blend) return (const float *)row_of(&t->m->buffer, row) + from;
    if (t->stored) return t->stored + row * t->m->cols + from;
    sums unused = {0, 0};
    walk_part(t, row, from, count, space, 0, 0, &unused);
    return space;
}

/* A row's sum of squares as `found`; or taken again in double, which holds the square of every float32, where float32
 * squares overflow or vanish. */
static double safe_squares(const task *t, int64_t row, double found) {
    const int64_t cols = t->m->cols;
    float space[BLOCK];
    if (found > cols * 1e-30 && found < 1e37) return found;
    double total = 0;
    for (int64_t from = 0; from < cols; from += BLOCK) {
        const int64_t count = least(BLOCK, cols - from);
        const float *x = signal_of(t, row, from, count, space);
        for (int64_t i = 0; i < count; i++) total += (double)x[i] * x[i];
    }
    return total;
}

/* param ← keep·param − factor·x; in double where a factor or a product would leave float32. */
static void subtract(const operand *param, int64_t row, int64_t from, const float *x, int64_t count, double keep,
                     double factor) {
    float space[BLOCK];
    char *numbers = row_of(param, row);
    const float *source = read_floats(numbers, param->type, from, count, space);
    float *target = param->type == F32 ? (float *)numbers + from : space;
    if (is_small(factor)) blend(target, source, x, count, keep, factor);
    else
        for (int64_t i = 0; i < count; i++) target[i] = keep * source[i] - factor * x[i];
    if (param->type == BF16) write_bfloat16((uint16_t *)numbers + from, target, count);
}

static void subtract_row(const task *t, int64_t row, double factor) {
    float space[BLOCK];
    for (int64_t from = 0; from < t->m->cols; from += BLOCK) {
        const int64_t count = least(BLOCK, t->m->cols - from);
        subtract(&t->m->param, row, from, signal_of(t, row, from, count, space), count, t->keep, factor);
    }
}

/* ---------------------------------------------------------------------------------------------------- row norm */

static void subtract_normalized(const task *t, int64_t row, double damping) {
    const double length = t->of_rows[row], damped = t->kind == CLAMP ? fmax(length, FLOOR) : length + damping;
    subtract_row(t, row, damped == 0 ? 0 : t->m->factor / damped);
}

static void move_and_measure(void *with, int64_t chunk, int64_t slot) {
    const task *t = with;
    (void)slot;
    FOR_ROWS(t, chunk, row) {
        const sums found = walk_row(t, row, t->stored ? t->stored + row * t->m->cols : NULL, 1, 0);
        t->of_rows[row] = sqrt(safe_squares(t, row, found.squares));
        if (t->kind != RELATIVE) subtract_normalized(t, row, FLOOR);
    }
}

static void subtract_all_normalized(void *with, int64_t chunk, int64_t slot) {
    const task *t = with;
    (void)slot;
    FOR_ROWS(t, chunk, row) subtract_normalized(t, row, t->damping);
}

static void row_norm(task *t) {
    if (t->kind != RELATIVE) t->stored = NULL; /* each row is used at once */
    each(t->threads, t->chunks, FORWARDS, move_and_measure, t);
    if (t->kind != RELATIVE) return;
    double squares = 0;
    for (int64_t row = 0; row < t->m->rows; row++) squares += t->of_rows[row] * t->of_rows[row];
    t->damping = DAMPING * sqrt(squares / t->m->rows);
    each(t->threads, t->chunks, BACKWARDS, subtract_all_normalized, t); /* backwards: what was written last is in cache */
}

/* -------------------------------------------------------------------------------------------------------- AuON */

/* Adds rows to a chunk's parts of q = Σᵢ|xᵢⱼ| and Σᵢ|xᵢⱼ|pᵢ. */
INLINE void add_columns(const float *const *rows, const float *p, int many, float *restrict q, float *restrict weighted,
                        int64_t cols) {
    #pragma omp simd
    for (int64_t j = 0; j < cols; j++) {
        float sum = 0, weighted_sum = 0;
        EACH_ROW(k, many) {
            const float x = fabsf(rows[k][j]);
            sum += x;
            weighted_sum += x * p[k];
        }
        q[j] += sum;
        weighted[j] += weighted_sum;
    }
}

/* Moves the rows of a chunk, and sums: magnitudes p of each row, squares, the chunk's parts of the column sums. */
static void move_and_sum(void *with, int64_t chunk, int64_t slot) {
    task *t = with;
    const int64_t cols = t->m->cols;
    float *q = t->of_columns + chunk * 2 * cols;
    double squares = 0;
    if (t->kind == SPECTRAL_BOUND) memset(q, 0, 2 * cols * sizeof *q);
    FOR_GROUPS(t, chunk, row, many) {
        const float *rows[GROUP];
        float p[GROUP];
        for (int k = 0; k < many; k++) {
            float *out = t->stored ? t->stored + (row + k) * cols : t->row_space + (slot * GROUP + k) * cols;
            const sums found = walk_row(t, row + k, t->blend ? out : NULL, t->move, 1);
            squares += safe_squares(t, row + k, found.squares);
            p[k] = t->of_rows[row + k] = found.magnitudes;
            rows[k] = t->blend ? out : (const float *)row_of(&t->m->buffer, row + k);
        }
        if (t->kind != SPECTRAL_BOUND) continue;
        if (many == GROUP) add_columns(rows, p, GROUP, q, q + cols, cols);
        else add_columns(rows, p, 1, q, q + cols, cols);
    }
    t->of_chunks[chunk] = squares;
}

/* Totals of the chunks' column sums, in order: q for weigh_rows, and the largest Σᵢ|xᵢⱼ|pᵢ/qⱼ, which is returned. */
static double weigh_columns(const task *t) {
    const int64_t cols = t->m->cols;
    float *totals = t->of_columns + t->chunks * 2 * cols;
    double largest = 0;
    for (int64_t from = 0; from < cols; from += BLOCK) {
        const int64_t count = least(BLOCK, cols - from);
        double q[BLOCK] = {0}, weighted[BLOCK] = {0};
        for (int64_t chunk = 0; chunk < t->chunks; chunk++) {
            const float *part = t->of_columns + chunk * 2 * cols + from;
            #pragma omp simd
            for (int64_t j = 0; j < count; j++) q[j] += part[j];
            #pragma omp simd
            for (int64_t j = 0; j < count; j++) weighted[j] += part[cols + j];
        }
        for (int64_t j = 0; j < count; j++) totals[from + j] = q[j];
        for (int64_t j = 0; j < count; j++)
            if (q[j] > 0) largest = fmax(largest, weighted[j] / q[j]);
    }
    return largest;
}

/* The largest Σⱼ|xᵢⱼ|qⱼ/pᵢ of a chunk. */
static void weigh_rows(void *with, int64_t chunk, int64_t slot) {
    const task *t = with;
    const int64_t cols = t->m->cols;
    const float *q = t->of_columns + t->chunks * 2 * cols;
    double largest = 0;
    float space[GROUP][BLOCK];
    (void)slot;
    FOR_GROUPS(t, chunk, row, many) {
        double sum[GROUP] = {0};
        for (int64_t from = 0; from < cols; from += BLOCK) {
            const int64_t count = least(BLOCK, cols - from);
            const float *x[GROUP];
            for (int k = 0; k < many; k++) x[k] = signal_of(t, row + k, from, count, space[k]);
            if (many == GROUP) weigh(x, GROUP, q + from, count, sum);
            else weigh(x, 1, q + from, count, sum);
        }
        for (int k = 0; k < many; k++)
            if (t->of_rows[row + k] > 0) largest = fmax(largest, sum[k] / t->of_rows[row + k]);
    }
    t->of_chunks[chunk] = largest;
}

/* Σ sinh² of a chunk of X/‖X‖_F, by its series up to the 14th power: the next term is below 2e-9 where |x| ≤ 1. */
static void sum_sinh_squared(void *with, int64_t chunk, int64_t slot) {
    const task *t = with;
    const int64_t cols = t->m->cols;
    const float inverse = t->factor;
    float space[BLOCK], ones[BLOCK], values[BLOCK];
    double total = 0;
    (void)slot;
    for (int64_t i = 0; i < BLOCK; i++) ones[i] = 1;
    FOR_ROWS(t, chunk, row)
        for (int64_t from = 0; from < cols; from += BLOCK) {
            const int64_t count = least(BLOCK, cols - from);
            const float *x = signal_of(t, row, from, count, space);
            #pragma omp simd
            for (int64_t i = 0; i < count; i++) {
                const float u = x[i] * inverse * (x[i] * inverse);
                const float high = 1.f / 315 + u * (2.f / 14175 + u * (2.f / 467775 + u * (4.f / 42567525)));
                values[i] = u + u * u * (1.f / 3 + u * (2.f / 45 + u * high));
            }
            const float *all = values;
            weigh(&all, 1, ones, count, &total);
        }
    t->of_chunks[chunk] = total;
}

static void subtract_signal(void *with, int64_t chunk, int64_t slot) {
    const task *t = with;
    (void)slot;
    FOR_ROWS(t, chunk, row) subtract_row(t, row, t->factor);
}

static void auon(task *t) {
    const double size = (double)t->m->rows * t->m->cols;
    double squares = 0, unit = 1;
    t->move = 1;
    each(t->threads, t->chunks, FORWARDS, move_and_sum, t);
    t->move = 0;
    for (int64_t chunk = 0; chunk < t->chunks; chunk++) squares += t->of_chunks[chunk];
    const double norm = sqrt(squares);
    double divisor = norm;
    if (norm > 0 && !(norm > 1e-10 && norm < 1e10)) {
        /* Products of three entries leave float32 where entries are far from one: sum again, a power of two away. */
        unit = ldexp(1, -(int)fmax(-126, fmin(126, logb(norm))));
        t->by.from_grad *= unit;
        t->by.from_buffer *= unit;
        t->blend = 1;
        each(t->threads, t->chunks, BACKWARDS, move_and_sum, t);
    }
    if (t->kind == SPECTRAL_BOUND) {
        const double beta = weigh_columns(t);
        double alpha = 0;
        each(t->threads, t->chunks, BACKWARDS, weigh_rows, t);
        for (int64_t chunk = 0; chunk < t->chunks; chunk++) alpha = fmax(alpha, t->of_chunks[chunk]);
        const double bound = sqrt(alpha * beta) / unit;
        if (bound > 0 && bound < norm) divisor = bound;
    } else if (norm > 0 && size < (1 << 22)) { /* from there on the brake is one to float32's rounding */
        double total = 0;
        t->factor = 1 / (norm * unit);
        each(t->threads, t->chunks, BACKWARDS, sum_sinh_squared, t);
        for (int64_t chunk = 0; chunk < t->chunks; chunk++) total += t->of_chunks[chunk];
        divisor *= sqrt(1 + total / size);
    }
    t->factor = divisor == 0 ? 0 : t->m->factor / (divisor * unit);
    each(t->threads, t->chunks, FORWARDS, subtract_signal, t);
}

/* ------------------------------------------------------------------------------------------- elementwise steps */

static void move_and_copy(void *with, int64_t chunk, int64_t slot) {
    const task *t = with;
    float signal[BLOCK];
    (void)slot;
    FOR_ROWS(t, chunk, row)
        for (int64_t from = 0; from < t->m->cols; from += BLOCK) {
            const int64_t count = least(BLOCK, t->m->cols - from);
            char *out = row_of(&t->m->param, row);
            const int narrow = t->m->param.type == BF16;
            float *to = narrow ? signal : (float *)out + from;
            sums unused = {0, 0};
            walk_part(t, row, from, count, to, 1, 0, &unused);
            if (narrow) write_bfloat16((uint16_t *)out + from, signal, count);
        }
}

static void subtract_given(void *with, int64_t chunk, int64_t slot) {
    const task *t = with;
    float wide[BLOCK];
    (void)slot;
    FOR_ROWS(t, chunk, row)
        for (int64_t from = 0; from < t->m->cols; from += BLOCK) {
            const int64_t count = least(BLOCK, t->m->cols - from);
            const float *x = read_floats(row_of(&t->m->grad, row), t->m->grad.type, from, count, wide);
            subtract(&t->m->param, row, from, x, count, t->keep, t->m->factor);
        }
}

/* The same where what is written or read lies turned: SLAB rows at a time in parts of SPAN, by way of a block that the
 * first cache holds, so that of every line of the other side two cache lines are taken at once. */
#define SLAB 32
#define SPAN 128

static float *turned_at(const operand *x, int64_t row, int64_t col) { return (float *)(x->at + col * x->row) + row; }

static void move_and_turn(void *with, int64_t chunk, int64_t slot) {
    const task *t = with;
    const operand *out = &t->m->param;
    float signal[SLAB][SPAN];
    (void)slot;
    for (int64_t row = chunk * t->chunk_rows, end = end_of(t, chunk); row < end; row += SLAB)
        for (int64_t from = 0; from < t->m->cols; from += SPAN) {
            const int64_t high = least(SLAB, end - row), wide = least(SPAN, t->m->cols - from);
            sums unused = {0, 0};
            for (int64_t k = 0; k < high; k++) walk_part(t, row + k, from, wide, signal[k], 1, 0, &unused);
            turn_all(signal[0], SPAN, turned_at(out, row, from), out->row / sizeof(float), high, wide);
        }
}

static void subtract_turned(void *with, int64_t chunk, int64_t slot) {
    const task *t = with;
    const operand *update = &t->m->grad;
    float x[SLAB][SPAN];
    (void)slot;
    for (int64_t row = chunk * t->chunk_rows, end = end_of(t, chunk); row < end; row += SLAB)
        for (int64_t from = 0; from < t->m->cols; from += SPAN) {
            const int64_t high = least(SLAB, end - row), wide = least(SPAN, t->m->cols - from);
            turn_all(turned_at(update, row, from), update->row / sizeof(float), x[0], SPAN, wide, high);
            for (int64_t k = 0; k < high; k++)
                subtract(&t->m->param, row + k, from, x[k], wide, t->keep, t->m->factor);
        }
}

static void momentum_into(task *t) {
    each(t->threads, t->chunks, FORWARDS, t->m->param.turned ? move_and_turn : move_and_copy, t);
}

static void subtract_updates(task *t) {
    each(t->threads, t->chunks, FORWARDS, t->m->grad.turned ? subtract_turned : subtract_given, t);
}

/* --------------------------------------------------------------------------------------------------- entrances */

enum { ROW_NORM, AUON, MOMENTUM_INTO, SUBTRACT_UPDATES };
static void (*const rules[])(task *) = {row_norm, auon, momentum_into, subtract_updates};

typedef struct { task common; matrix *all; int64_t *small; int rule; char *bytes; size_t area; } job;

/* Where the next cache line begins: what lies across two costs two to write. */
static float *next_line(const void *at) { return (float *)(((uintptr_t)at + 63) & ~(uintptr_t)63); }

/* Chunks and sums of a task, from its shape alone; returns the bytes that they take. */
static size_t lay_out(task *t, int rule, char *bytes) {
    const int64_t rows = t->m->rows, cols = t->m->cols;
    /* What AuON adds up by chunks must not depend on who does it; of the others chunks are a matter of speed alone. */
    const int64_t numbers = rule == AUON ? CHUNK : most(CHUNK, rows * cols / (4 * t->threads));
    t->chunk_rows = (numbers + cols - 1) / cols;
    if (rule == AUON) /* chunks of few rows would have column sums as large as themselves */
        t->chunk_rows = most(most(t->chunk_rows, 8 * GROUP), (rows + MOST_CHUNKS - 1) / MOST_CHUNKS);
    t->chunk_rows = (t->chunk_rows + GROUP - 1) / GROUP * GROUP;
    t->chunks = (rows + t->chunk_rows - 1) / t->chunk_rows;
    if (rule > AUON) return 0;
    t->of_rows = (double *)bytes;
    t->of_chunks = (double *)next_line(t->of_rows + rows);
    float *next = next_line(t->of_chunks + t->chunks);
    if (rule == AUON) {
        t->of_columns = next;
        t->row_space = next_line(t->of_columns + (2 * t->chunks + 1) * cols);
        next = next_line(t->row_space + t->threads * GROUP * cols);
    }
    if (t->blend && rows * cols <= STORED) {
        t->stored = next;
        next = next_line(next + rows * cols);
    }
    return (char *)next - bytes;
}

static void run_alone(void *with, int64_t index, int64_t slot) {
    const job *j = with;
    task t = j->common;
    t.m = j->all + j->small[index];
    t.threads = 1;
    lay_out(&t, j->rule, j->bytes + slot * j->area);
    rules[j->rule](&t);
}

/* The one with that index of a line of the table. */
static operand operand_of(const int64_t *line, int index, int64_t stack) {
    const int64_t *x = line + 4 + 3 * index, type = line[3] >> 2 * index & 3, size = type == F32 ? 4 : 2;
    return (operand){(char *)(intptr_t)x[0] + stack * x[1] * size, type, x[2] * size, line[3] >> (6 + index) & 1};
}

/* One step of `rule` over a table of stacks of matrices.
 *
 * A line of the table is stack, rows, cols, the three types as base-4 digits and then a bit each for being turned (what
 * momentum_into writes, what subtract_updates reads: float32), and for param, grad and buffer: address, stride of the
 * stack, stride of a row. `numbers`: decay, weight, from_grad, from_buffer, keep; then a factor a line.
 * Returns 0, or 1 without having touched anything where memory is out. */
int orthoopt_step(int rule, int kind, int64_t lines, const int64_t *table, const double *numbers, int threads) {
    threads = parallel && threads > 1 ? threads : 1;
    int64_t count = 0, few = 0;
    for (int64_t line = 0; line < lines; line++) count += table[13 * line];
    if (count == 0) return 0;
    job j = {.common = {.by = {numbers[0], numbers[1], numbers[2], numbers[3]}, .keep = numbers[4], .kind = kind},
             .rule = rule};
    j.common.blend = numbers[2] != 0 || numbers[3] != 1;
    j.all = malloc(count * (sizeof *j.all + sizeof *j.small));
    if (!j.all) return 1;
    j.small = (int64_t *)(j.all + count);
    matrix *m = j.all;
    for (int64_t line = 0; line < lines; line++) {
        const int64_t *x = table + 13 * line;
        for (int64_t stack = 0; stack < x[0]; stack++)
            *m++ = (matrix){operand_of(x, 0, stack), operand_of(x, 1, stack), operand_of(x, 2, stack), x[1], x[2],
                            numbers[5 + line]};
    }
    const int64_t large = count < 2 * threads ? 4 * CHUNK : LARGE;
    size_t bytes = 0;
    for (int64_t i = 0; i < count; i++) {
        task t = j.common;
        t.m = j.all + i;
        t.threads = 1;
        if (threads > 1 && t.m->rows * t.m->cols >= large) {
            t.threads = threads;
            bytes = most(bytes, lay_out(&t, rule, NULL));
        } else {
            j.area = most(j.area, lay_out(&t, rule, NULL));
            j.small[few++] = i;
        }
    }
    reserve *taken = take_reserve(most(bytes, j.area * threads));
    if (!taken) {
        free(j.all);
        return 1;
    }
    j.bytes = (char *)(taken + 1);
    for (int64_t i = 0, next = 0; i < count; i++) {
        if (next < few && j.small[next] == i) {
            next++;
            continue;
        }
        task t = j.common;
        t.m = j.all + i;
        t.threads = threads;
        lay_out(&t, rule, j.bytes);
        rules[rule](&t);
    }
    each(threads, few, BACKWARDS, run_alone, &j); /* backwards: the gradients checked last are in cache */
    give_reserve(taken);
    free(j.all);
    return 0;
}

/* ------------------------------------------------------------------------------------------------ finite or not */

#define SCAN (1L << 16) /* numbers that a thread looks at at a time */

typedef struct { const int64_t *table; int64_t lines; atomic_int bad; } scan;

#define LARGEST(type, mask)                                                                        \
    const type *x = (const type *)numbers;                                                         \
    const int64_t part = count / 4; /* four streams at a time: memory serves them faster than one */ \
    type largest = 0;                                                                              \
    _Pragma("omp simd reduction(max : largest)") for (int64_t i = 0; i < part; i++) {               \
        type a = x[i] & mask, b = x[part + i] & mask, c = x[2 * part + i] & mask, d = x[3 * part + i] & mask; \
        a = a > b ? a : b;                                                                         \
        c = c > d ? c : d;                                                                         \
        a = a > c ? a : c;                                                                         \
        largest = largest > a ? largest : a;                                                       \
    }                                                                                              \
    for (int64_t i = 4 * part; i < count; i++) largest = largest > (x[i] & mask) ? largest : (x[i] & mask)

static int is_finite(const char *numbers, int64_t type, int64_t count) {
    if (type == F32) {
        LARGEST(int32_t, 0x7fffffff);
        return largest < 0x7f800000;
    }
    LARGEST(int16_t, 0x7fff);
    return largest < (type == BF16 ? 0x7f80 : 0x7c00);
}

static void look(void *with, int64_t chunk, int64_t slot) {
    scan *s = with;
    const int64_t *x = s->table;
    (void)slot;
    if (atomic_load_explicit(&s->bad, memory_order_relaxed)) return;
    for (int64_t chunks; chunk >= (chunks = (x[1] + SCAN - 1) / SCAN); x += 3) chunk -= chunks;
    const int64_t from = chunk * SCAN, count = least(SCAN, x[1] - from);
    if (!is_finite((const char *)(intptr_t)x[0] + from * (x[2] == F32 ? 4 : 2), x[2], count))
        atomic_store_explicit(&s->bad, 1, memory_order_relaxed);
}

/* Whether every number of a table of address, count, type is finite. */
int orthoopt_all_finite(int64_t lines, const int64_t *table, int threads) {
    scan s = {table, lines, 0};
    int64_t chunks = 0;
    for (int64_t line = 0; line < lines; line++) chunks += (table[3 * line + 1] + SCAN - 1) / SCAN;
    each(threads, chunks, FORWARDS, look, &s);
    return !s.bad;
}
