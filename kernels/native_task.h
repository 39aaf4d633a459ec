/* What is done to one matrix: its parts, and walks over its rows. */
#include "native.h"

#define CHUNK (1L << 14) /* numbers that a thread takes at a time, at least */
#define LARGE (1L << 19)  /* numbers from which a matrix is shared by all threads */
#define STORED (1L << 22) /* numbers up to which a signal that is not the buffer is stored rather than made again */
#define MOST_CHUNKS 32   /* of a matrix whose chunks have column sums of their own */

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

/* walk() over a part of a row, `out` null where the signal is not stored, `columns` where nobody adds them up. */
static void walk_part(const task *t, int64_t row, int64_t from, int64_t count, float *out, float *columns, int move,
                      int weigh, sums *found) {
    float wide[BLOCK], *buffer = (float *)row_of(&t->m->buffer, row) + from;
    const float *grad = NULL;
    if (t->blend || move) grad = read_floats(row_of(&t->m->grad, row), t->m->grad.type, from, count, wide);
#define WALK(what)                                                                       \
    do {                                                                                 \
        if (columns) walk(t->by, grad, buffer, out, columns, count, (what) | WEIGH | COLUMNS, found); \
        else if (weigh) walk(t->by, grad, buffer, out, NULL, count, (what) | WEIGH, found); \
        else walk(t->by, grad, buffer, out, NULL, count, what, found);                   \
    } while (0)
    if (!move && !t->blend) WALK(0);
    else if (!move && !out) WALK(BLEND);
    else if (!move) WALK(BLEND | STORE);
    else if (!t->blend && !out) WALK(MOVE);
    else if (!t->blend) WALK(MOVE | STORE);
    else if (!out) WALK(MOVE | BLEND);
    else WALK(MOVE | BLEND | STORE);
}

static sums walk_row(const task *t, int64_t row, float *out, float *columns, int move, int weigh) {
    sums found = {0, 0};
    for (int64_t from = 0; from < t->m->cols; from += BLOCK)
        walk_part(t, row, from, least(BLOCK, t->m->cols - from), out ? out + from : NULL,
                  columns ? columns + from : NULL, move, weigh, &found);
    return found;
}

/* A part of a row of the signal: where it is, or made again in `space`. */
static const float *signal_of(const task *t, int64_t row, int64_t from, int64_t count, float *space) {
    if (!t->blend) return (const float *)row_of(&t->m->buffer, row) + from;
    if (t->stored) return t->stored + row * t->m->cols + from;
    sums unused = {0, 0};
    walk_part(t, row, from, count, space, NULL, 0, 0, &unused);
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
