/* Momenta into a bucket and updates out of it, where a rule makes directions of what is between. */
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
            walk_part(t, row, from, count, to, NULL, 1, 0, &unused);
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
            for (int64_t k = 0; k < high; k++) walk_part(t, row + k, from, wide, signal[k], NULL, 1, 0, &unused);
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
