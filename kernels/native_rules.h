/* The rules that compiled loops know: their momentum, direction, decay and update. */
/* ---------------------------------------------------------------------------------------------------- row norm */

static void subtract_normalized(const task *t, int64_t row, double damping) {
    const double length = t->of_rows[row], damped = t->kind == CLAMP ? fmax(length, FLOOR) : length + damping;
    subtract_row(t, row, damped == 0 ? 0 : t->m->factor / damped);
}

static void move_and_measure(void *with, int64_t chunk, int64_t slot) {
    const task *t = with;
    (void)slot;
    FOR_ROWS(t, chunk, row) {
        const sums found = walk_row(t, row, t->stored ? t->stored + row * t->m->cols : NULL, NULL, 1, 0);
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

/* Where a chunk's part of the column sums q = Σᵢ|xᵢⱼ| is; that of Σᵢ|xᵢⱼ|pᵢ follows it. The totals come after all. */
static float *columns_of(const task *t, int64_t chunk) { return t->of_columns + chunk * 2 * t->m->cols; }

/* Moves the rows of a chunk, and sums: magnitudes p of each row, squares, the chunk's part of q. */
static void move_and_sum(void *with, int64_t chunk, int64_t slot) {
    task *t = with;
    const int64_t cols = t->m->cols;
    float *q = t->kind == SPECTRAL_BOUND ? columns_of(t, chunk) : NULL;
    double squares = 0;
    (void)slot;
    if (q) memset(q, 0, cols * sizeof *q);
    FOR_ROWS(t, chunk, row) {
        const sums found = walk_row(t, row, t->stored ? t->stored + row * cols : NULL, q, t->move, 1);
        squares += safe_squares(t, row, found.squares);
        t->of_rows[row] = found.magnitudes;
    }
    t->of_chunks[chunk] = squares;
}

/* The largest Σⱼ|xᵢⱼ|qⱼ/pᵢ of a chunk, and its part of Σᵢ|xᵢⱼ|pᵢ. */
static void weigh_chunk(void *with, int64_t chunk, int64_t slot) {
    const task *t = with;
    const int64_t cols = t->m->cols;
    const float *q = columns_of(t, t->chunks);
    float *weighted = columns_of(t, chunk) + cols;
    double largest = 0;
    float space[GROUP][BLOCK];
    (void)slot;
    memset(weighted, 0, cols * sizeof *weighted);
    FOR_GROUPS(t, chunk, row, many) {
        double sum[GROUP] = {0};
        float p[GROUP];
        for (int k = 0; k < many; k++) p[k] = t->of_rows[row + k];
        for (int64_t from = 0; from < cols; from += BLOCK) {
            const int64_t count = least(BLOCK, cols - from);
            const float *x[GROUP];
            for (int k = 0; k < many; k++) x[k] = signal_of(t, row + k, from, count, space[k]);
            if (many == GROUP) weigh_both(x, GROUP, q + from, p, weighted + from, count, sum);
            else weigh_both(x, 1, q + from, p, weighted + from, count, sum);
        }
        for (int k = 0; k < many; k++)
            if (t->of_rows[row + k] > 0) largest = fmax(largest, sum[k] / t->of_rows[row + k]);
    }
    t->of_chunks[chunk] = largest;
}

/* Adds up parts of the chunks' columns in order: at most BLOCK from `from` on, of q, or of what follows it. */
static void add_chunks(const task *t, int64_t from, int64_t count, int weighted, double *total) {
    memset(total, 0, count * sizeof *total);
    for (int64_t chunk = 0; chunk < t->chunks; chunk++) {
        const float *part = columns_of(t, chunk) + weighted * t->m->cols + from;
        #pragma omp simd
        for (int64_t j = 0; j < count; j++) total[j] += part[j];
    }
}

/* α·β: the largest Σⱼ|xᵢⱼ|qⱼ/pᵢ times the largest Σᵢ|xᵢⱼ|pᵢ/qⱼ. */
static double weigh_all(task *t) {
    float *totals = columns_of(t, t->chunks);
    double alpha = 0, beta = 0, sum[BLOCK];
    for (int64_t from = 0; from < t->m->cols; from += BLOCK) {
        const int64_t count = least(BLOCK, t->m->cols - from);
        add_chunks(t, from, count, 0, sum);
        for (int64_t j = 0; j < count; j++) totals[from + j] = sum[j];
    }
    each(t->threads, t->chunks, BACKWARDS, weigh_chunk, t);
    for (int64_t chunk = 0; chunk < t->chunks; chunk++) alpha = fmax(alpha, t->of_chunks[chunk]);
    for (int64_t from = 0; from < t->m->cols; from += BLOCK) {
        const int64_t count = least(BLOCK, t->m->cols - from);
        add_chunks(t, from, count, 1, sum);
        for (int64_t j = 0; j < count; j++)
            if (totals[from + j] > 0) beta = fmax(beta, sum[j] / totals[from + j]);
    }
    return alpha * beta;
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
        const double bound = sqrt(weigh_all(t)) / unit;
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
