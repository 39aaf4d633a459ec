/* Fused steps of linear-time rules on a CPU.
 *
 * A matrix is read from memory once and then again from cache: its buffer moves and is measured, then its parameter
 * is written. Small matrices go to one thread each, large ones are cut into chunks of rows that all threads take.
 * What is computed depends on the matrix alone: chunks that are added up follow from its shape, and they are added in
 * order, whoever summed them. native.py builds this file, native_steps.py calls it.
 */
#include "native_task.h"
#include "native_rules.h"
#include "native_elementwise.h"

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
        next = next_line(t->of_columns + (2 * t->chunks + 1) * cols);
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
    /* Backwards: of the gradients, which have been looked at in their order, the last are still in cache. */
    for (int64_t i = count - 1, next = few - 1; i >= 0; i--) {
        if (next >= 0 && j.small[next] == i) {
            next--;
            continue;
        }
        task t = j.common;
        t.m = j.all + i;
        t.threads = threads;
        lay_out(&t, rule, j.bytes);
        rules[rule](&t);
    }
    each(threads, few, BACKWARDS, run_alone, &j);
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
