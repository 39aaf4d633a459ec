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
