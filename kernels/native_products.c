/* Products of many small matrices on a CPU, and symmetric ones of which only one triangle is computed.
 *
 * The scheme is the usual one (Goto and van de Geijn, 2008; BLIS): parts of both operands are copied into panels that a
 * kernel walks along, its block of the result in registers. What a library's own product cannot do is skip the tiles
 * above the diagonal. A result depends on its matrix alone: sums run along the inner dimension in an order that the
 * shapes fix, whoever computes them. native.py builds this file, native_products.py calls it.
 */
#include "native.h"

#if defined(__AVX512F__)
#define WIDE 16
#define HIGH 12
#elif defined(__AVX__)
#define WIDE 8
#define HIGH 6
#elif defined(__aarch64__)
#define WIDE 4
#define HIGH 8
#else
#define WIDE 4
#define HIGH 4
#endif
#define ACROSS (2 * WIDE)          /* columns of a tile; HIGH is its rows */
#define DEEP 256                   /* of the inner dimension at a time: a panel of B stays in the first cache */
#define TALL 144                   /* rows of A at a time, a multiple of HIGH: they stay in the second cache */
#define FLAT 288                   /* lines up to which symmetric operands are read where they are */
#define SHARED (256L * 256 * 128)  /* rows · columns · inner dimension from which all threads work on one matrix */

typedef float vec __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));
typedef struct { const float *at; int64_t row, col, stack; } view; /* strides in numbers */
typedef struct {
    view a, b, d;
    float *c;
    int64_t c_row, c_stack, stack, rows, cols, inner;
    float alpha, beta, identity;
    int symmetric;
} product;

static int64_t panels(int64_t count, int64_t width) { return (count + width - 1) / width; }

/* `many` lines of `deep` numbers side by side, packed[k][line] with `width` lines a k, and zeros up to a whole tile. */
static void pack(const float *from, int64_t line, int64_t step, int64_t many, int64_t deep, float *packed, int64_t width,
                 int64_t tile) {
    int64_t done = 0; /* lines */
    if (line == 1) {
        for (int64_t k = 0; k < deep; k++) memcpy(packed + k * width, from + k * step, many * sizeof *packed);
        done = many;
    } else if (step == 1)
        for (; done + 4 <= many; done += 4) {
            int64_t k = 0;
            for (; k + 4 <= deep; k += 4) turn(from + done * line + k, line, packed + k * width + done, width);
            for (; k < deep; k++)
                for (int64_t l = done; l < done + 4; l++) packed[k * width + l] = from[l * line + k];
        }
    const int64_t end = panels(many, tile) * tile;
    for (int64_t k = 0; k < deep && done < end; k++)
        for (int64_t l = done; l < end; l++) packed[k * width + l] = l < many ? from[l * line + k * step] : 0;
}

/* The product of HIGH lines and ACROSS lines, whose numbers lie side by side, into a tile. */
static void multiply(const float *restrict a, int64_t a_step, const float *restrict b, int64_t b_step, int64_t deep,
                     vec tile[HIGH][2]) {
    vec sum[HIGH][2] = {{{0}}};
    for (int64_t k = 0; k < deep; k++) {
        const vec left = *(const vec *)b, right = *(const vec *)(b + WIDE);
        _Pragma("GCC unroll 16") for (int i = 0; i < HIGH; i++) {
            sum[i][0] += a[i] * left;
            sum[i][1] += a[i] * right;
        }
        a += a_step;
        b += b_step;
    }
    _Pragma("GCC unroll 16") for (int i = 0; i < HIGH; i++) {
        tile[i][0] = sum[i][0];
        tile[i][1] = sum[i][1];
    }
}

/* What a tile is to the result: its first or a further part along the inner dimension, and the last one. */
INLINE void store(const product *p, int64_t stack, int64_t row, int64_t col, vec tile[HIGH][2], int first, int last) {
    const int64_t rows = least(HIGH, p->rows - row), cols = least(ACROSS, p->cols - col);
    float *c = p->c + stack * p->c_stack + row * p->c_row + col;
    const float *d = p->beta != 0 ? p->d.at + stack * p->d.stack + row * p->d.row + col * p->d.col : NULL;
    const float alpha = last ? p->alpha : 1;
    if (cols == ACROSS && (!d || !last || p->d.col == 1)) {
        for (int64_t i = 0; i < rows; i++, c += p->c_row)
            _Pragma("GCC unroll 2") for (int half = 0; half < 2; half++) {
                vec x = tile[i][half];
                if (!first) x += *(vec *)(c + half * WIDE);
                x *= alpha;
                if (last && d) x += p->beta * *(const vec *)(d + i * p->d.row + half * WIDE);
                *(vec *)(c + half * WIDE) = x;
            }
        return;
    }
    const float *one = (const float *)tile;
    for (int64_t i = 0; i < rows; i++, c += p->c_row)
        for (int64_t j = 0; j < cols; j++) {
            float x = one[i * ACROSS + j];
            if (!first) x += c[j];
            x *= alpha;
            if (last && d) x += p->beta * d[i * p->d.row + j * p->d.col];
            c[j] = x;
        }
}

typedef struct {
    const product *p;
    int64_t stack, from, deep; /* the part of the inner dimension */
    float *b;                  /* its panels of B */
    float *a;                  /* TALL rows of A a thread */
    int64_t both;              /* the width of one panel that is A and B at once; 0 where they are two */
    int64_t groups;            /* that the columns of a result are cut into */
} part;

/* Whether lines may be read where they are: side by side, and not so far apart that they evict each other. */
static int lies_well(int64_t line, int64_t step, int64_t count) {
    return line == 1 && count <= FLAT && step % 16 == 0 && step / 16 % 2 == 1;
}

static const float *start_of(const part *t, const view *x, int64_t line, int64_t line_stride, int64_t step) {
    return x->at + t->stack * x->stack + t->from * step + line * line_stride;
}

static int is_whole(const part *t, int64_t panel) {
    const view *b = &t->p->b;
    return lies_well(b->col, b->row, t->p->cols) && (panel + 1) * ACROSS <= t->p->cols;
}

static void pack_right(void *with, int64_t panel, int64_t slot) {
    const part *t = with;
    const view *b = &t->p->b;
    const int64_t col = panel * ACROSS;
    (void)slot;
    if (t->both || !is_whole(t, panel))
        pack(start_of(t, b, col, b->col, b->row), b->col, b->row, least(ACROSS, t->p->cols - col), t->deep,
             t->b + (t->both ? col : col * DEEP), t->both ? t->both : ACROSS, ACROSS);
}

static void multiply_block(void *with, int64_t block, int64_t slot) {
    const part *t = with;
    const product *p = t->p;
    const view *a = &p->a;
    const int64_t top = block / t->groups * TALL, rows = least(TALL, p->rows - top);
    const int64_t group = block % t->groups, across = panels(p->cols, ACROSS);
    const int64_t end = least(across * (group + 1) / t->groups * ACROSS, p->cols);
    const int first = t->from == 0, last = t->from + t->deep == p->inner;
    const int64_t lying = t->both || lies_well(a->row, a->col, p->rows);
    const int64_t whole = t->both ? rows : lying ? rows - rows % HIGH : 0; /* that are read where they are */
    const float *there = t->both ? t->b + top : start_of(t, a, top, a->row, a->col);
    const int64_t step = t->both ? t->both : a->col;
    float *packed = t->a + slot * TALL * DEEP;
    if (whole < rows) pack(there + whole * a->row, a->row, a->col, rows - whole, t->deep, packed + whole, TALL, HIGH);
    for (int64_t j = across * group / t->groups * ACROSS; j < end && !(p->symmetric && j > top + rows - 1); j += ACROSS) {
        const int is_there = !t->both && is_whole(t, j / ACROSS);
        const float *right = is_there ? start_of(t, &p->b, j, 1, p->b.row) : t->b + (t->both ? j : j * DEEP);
        const int64_t right_step = is_there ? p->b.row : t->both ? t->both : ACROSS;
        for (int64_t i = 0; i < rows; i += HIGH) {
            if (p->symmetric && j > top + i + HIGH - 1) continue;
            vec tile[HIGH][2];
            multiply(i < whole ? there + i : packed + i, i < whole ? step : TALL, right, right_step, t->deep, tile);
            store(p, t->stack, top + i, j, tile, first, last);
        }
    }
}

/* What is below the diagonal is above it too, in squares of 64; then the identity. */
static void mirror(void *with, int64_t block, int64_t slot) {
    const part *t = with;
    const int64_t row = t->p->c_row, top = block * 64, end = least(top + 64, t->p->rows);
    float *c = t->p->c + t->stack * t->p->c_stack;
    (void)slot;
    for (int64_t j = 0; j < end; j += 4)
        for (int64_t i = most(top, j); i < end; i += 4) {
            if (i >= j + 4 && i + 4 <= end) turn(c + i * row + j, row, c + j * row + i, row);
            else
                for (int64_t y = i; y < least(i + 4, end); y++)
                    for (int64_t x = j; x < least(j + 4, y); x++) c[x * row + y] = c[y * row + x];
        }
    if (t->p->identity != 0)
        for (int64_t i = top; i < end; i++) c[i * row + i] += t->p->identity;
}

/* Of X Xᵀ one panel serves on both sides; an odd number of cache lines wide, with room for the last tiles. */
static int64_t width_of_both(const product *p) {
    const int are_one = p->symmetric && p->a.at == p->b.at && p->a.row == p->b.col && p->a.col == p->b.row;
    if (!are_one || p->rows > FLAT || lies_well(p->a.row, p->a.col, p->rows)) return 0;
    const int64_t lines = panels(most(panels(p->rows, ACROSS) * ACROSS, panels(p->rows, HIGH) * HIGH), 16);
    return 16 * (lines | 1);
}

static void multiply_one(int threads, part t) {
    const product *p = t.p;
    const int64_t blocks = panels(p->rows, TALL);
    t.both = width_of_both(p);
    t.groups = p->symmetric || blocks >= threads ? 1 : least(threads, panels(p->cols, ACROSS));
    for (t.from = 0; t.from < p->inner; t.from += DEEP) {
        t.deep = least(DEEP, p->inner - t.from);
        each(threads, panels(p->cols, ACROSS), FORWARDS, pack_right, &t);
        each(threads, blocks * t.groups, p->symmetric ? LAST_FIRST : FORWARDS, multiply_block, &t);
    }
    if (p->symmetric) each(threads, panels(p->rows, 64), LAST_FIRST, mirror, &t);
}

typedef struct { const product *p; float *space; int64_t area; } stack_of;

static void multiply_alone(void *with, int64_t stack, int64_t slot) {
    const stack_of *s = with;
    float *space = s->space + slot * s->area;
    multiply_one(1, (part){.p = s->p, .stack = stack, .a = space, .b = space + TALL * DEEP});
}

/* The sides of a tile, of which those above the diagonal of a symmetric result are left out. */
int orthoopt_tile_rows(void) { return HIGH; }
int orthoopt_tile_cols(void) { return ACROSS; }
/* How many rows A may have, and how many lines B, for one panel of A to do, and B to be read where it lies. */
int orthoopt_few_rows(void) { return TALL; }
int orthoopt_few_lines(void) { return FLAT; }

/* C ← beta·D + alpha·A B, where it is symmetric + identity·I, for a stack of matrices, none of which has a side of zero.
 * Returns 0, or 1 without having touched anything where memory is out. */
int orthoopt_product(const product *p, int threads) {
    threads = parallel && threads > 1 ? threads : 1;
    const int64_t right = most(panels(p->cols, ACROSS) * ACROSS, width_of_both(p)) * DEEP, area = TALL * DEEP + right;
    int64_t alone = p->stack;
    if (threads > 1 && p->rows * p->cols * p->inner >= SHARED) alone -= alone % threads;
    reserve *taken = take_reserve(threads * area * sizeof(float));
    if (!taken) return 1;
    float *space = (float *)(taken + 1);
    each(threads, alone, FORWARDS, multiply_alone, &(stack_of){p, space, area});
    for (int64_t stack = alone; stack < p->stack; stack++)
        multiply_one(threads, (part){.p = p, .stack = stack, .b = space, .a = space + right});
    give_reserve(taken);
    return 0;
}
