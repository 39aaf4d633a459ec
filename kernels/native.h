/* What native.c is made of: arithmetic on rows, and loops over threads. */
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__FMA__)
#include <immintrin.h>
#endif

#define BLOCK 1024 /* numbers converted and moved at a time: 4 KiB, so that what is read twice is in the first cache */
#define GROUP 4    /* rows whose sums with a line of columns are taken together: the line is read once for all of them */
/* Unrolled, so that the sums of each row stay in registers. */
#define EACH_ROW(k, many) _Pragma("GCC unroll 4") for (int k = 0; k < many; k++)
#define INLINE static inline __attribute__((always_inline))

enum { F32, BF16, F16 };

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* ------------------------------------------------------------------------------------------------------- sums */

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
/* Lanes are spelled out where numbers are added up: a compiler must not reorder a sum, and would not vectorize it. */
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t bits __attribute__((vector_size(4 * LANES)));

INLINE lanes at(const float *x, int64_t i) { return *(const lanes *)(x + i); }
INLINE lanes magnitude(lanes x) { return (lanes)((bits)x & 0x7fffffff); }

typedef double wide_lanes __attribute__((vector_size(8 * LANES)));

INLINE double sum_of(lanes x) {
    const wide_lanes wide = __builtin_convertvector(x, wide_lanes);
    double sum[LANES];
    memcpy(sum, &wide, sizeof sum);
    _Pragma("GCC unroll 4") for (int half = LANES / 2; half > 0; half /= 2)
        _Pragma("GCC unroll 8") for (int lane = 0; lane < half; lane++) sum[lane] += sum[lane + half];
    return sum[0];
}

/* a·b + c, rounded once where the CPU can. */
INLINE lanes fused(lanes a, lanes b, lanes c) {
#if defined(__AVX512F__)
    return (lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}
INLINE float fused_one(float a, float b, float c) {
#if defined(__FMA__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

/* Adds Σ|x|·y of `many` rows x, at most BLOCK numbers of each. `many` is a constant wherever this is called, as below. */
INLINE void weigh(const float *const *x, int many, const float *y, int64_t count, double *found) {
    lanes total[GROUP] = {{0}};
    float few[GROUP] = {0};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        EACH_ROW(k, many) total[k] += magnitude(at(x[k], i)) * at(y, i);
    for (; i < count; i++)
        EACH_ROW(k, many) few[k] += fabsf(x[k][i]) * y[i];
    EACH_ROW(k, many) found[k] += sum_of(total[k]) + few[k];
}

/* The same, and to each of the `weighted` columns Σ|x|·p of these rows. */
INLINE void weigh_both(const float *const *x, int many, const float *y, const float *p, float *restrict weighted,
                       int64_t count, double *found) {
    lanes total[GROUP] = {{0}}, weight[GROUP];
    float few[GROUP] = {0};
    int64_t i = 0;
    EACH_ROW(k, many) weight[k] = p[k] - (lanes){0};
    for (; i + LANES <= count; i += LANES) {
        const lanes by = at(y, i);
        lanes sum = at(weighted, i);
        EACH_ROW(k, many) {
            const lanes size = magnitude(at(x[k], i));
            total[k] = fused(size, by, total[k]);
            sum = fused(size, weight[k], sum);
        }
        *(lanes *)(weighted + i) = sum;
    }
    for (; i < count; i++)
        EACH_ROW(k, many) {
            few[k] = fused_one(fabsf(x[k][i]), y[i], few[k]);
            weighted[i] = fused_one(fabsf(x[k][i]), p[k], weighted[i]);
        }
    EACH_ROW(k, many) found[k] += sum_of(total[k]) + few[k];
}

/* Numbers that are read once in a step are asked for some cache lines ahead, and past the outer caches: those have room
 * then for what is read again. Called at every LANES-th number. */
#define LINE 16
#define AHEAD 128
INLINE void read_once(const float *x, int64_t i) {
    if (i % LINE == 0) __builtin_prefetch(x + i + AHEAD, 0, 0);
}

typedef struct { float decay, weight, from_grad, from_buffer; } moving; /* of reference_steps.Moving */
typedef struct { double squares, magnitudes; } sums;
enum { MOVE = 1, BLEND = 2, STORE = 4, WEIGH = 8, COLUMNS = 16 };

/* One walk over at most BLOCK numbers of a row: moves the buffer, makes the signal, stores it, and adds its squares,
 * and with WEIGH its magnitudes, to what was found, with COLUMNS those to `columns` too. `what` is a constant too. */
INLINE void walk(moving by, const float *grad, float *buffer, float *out, float *restrict columns, int64_t count,
                 int what, sums *found) {
    lanes squares = {0}, magnitudes = {0};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        if ((what & MOVE) && (what & STORE)) read_once(buffer, i); /* the signal is what is read again */
        lanes x = at(buffer, i), g = {0};
        if (what & (MOVE | BLEND)) read_once(grad, i), g = at(grad, i);
        if (what & MOVE) *(lanes *)(buffer + i) = x = by.decay * x + by.weight * g;
        if (what & BLEND) x = by.from_grad * g + by.from_buffer * x;
        if (what & STORE) *(lanes *)(out + i) = x;
        squares += x * x;
        if (what & WEIGH) magnitudes += magnitude(x);
        if (what & COLUMNS) *(lanes *)(columns + i) = at(columns, i) + magnitude(x);
    }
    float few_squares = 0, few_magnitudes = 0;
    for (; i < count; i++) {
        float x = buffer[i];
        if (what & MOVE) buffer[i] = x = by.decay * x + by.weight * grad[i];
        if (what & BLEND) x = by.from_grad * grad[i] + by.from_buffer * x;
        if (what & STORE) out[i] = x;
        few_squares += x * x;
        if (what & WEIGH) few_magnitudes += fabsf(x);
        if (what & COLUMNS) columns[i] += fabsf(x);
    }
    found->squares += sum_of(squares) + few_squares;
    if (what & WEIGH) found->magnitudes += sum_of(magnitudes) + few_magnitudes;
}

/* target ← keep·source − factor·x */
INLINE void blend(float *target, const float *source, const float *x, int64_t count, float keep, float factor) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        read_once(source, i);
        *(lanes *)(target + i) = keep * at(source, i) - factor * at(x, i);
    }
    for (; i < count; i++) target[i] = keep * source[i] - factor * x[i];
}

/* -------------------------------------------------------------------------------------------------- transposition */

typedef float four __attribute__((vector_size(16), aligned(4), may_alias));

#if defined(__clang__) || __GNUC__ >= 12
#define PICK(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define PICK(x, y, ...) __builtin_shuffle(x, y, (int32_t __attribute__((vector_size(16)))){__VA_ARGS__})
#endif

/* Four rows of four numbers become four columns. */
INLINE void turn(const float *from, int64_t from_row, float *to, int64_t to_row) {
    four a = *(const four *)from, b = *(const four *)(from + from_row);
    four c = *(const four *)(from + 2 * from_row), d = *(const four *)(from + 3 * from_row);
    four ab = PICK(a, b, 0, 4, 1, 5), cd = PICK(c, d, 0, 4, 1, 5);
    *(four *)to = PICK(ab, cd, 0, 1, 4, 5);
    *(four *)(to + to_row) = PICK(ab, cd, 2, 3, 6, 7);
    ab = PICK(a, b, 2, 6, 3, 7), cd = PICK(c, d, 2, 6, 3, 7);
    *(four *)(to + 2 * to_row) = PICK(ab, cd, 0, 1, 4, 5);
    *(four *)(to + 3 * to_row) = PICK(ab, cd, 2, 3, 6, 7);
}

/* `rows` rows of `cols` numbers become columns. */
INLINE void turn_all(const float *from, int64_t from_row, float *to, int64_t to_row, int64_t rows, int64_t cols) {
    for (int64_t c = 0; c < cols; c += 4)
        for (int64_t r = 0; r < rows; r += 4) {
            if (r + 4 <= rows && c + 4 <= cols) turn(from + r * from_row + c, from_row, to + c * to_row + r, to_row);
            else
                for (int64_t y = r; y < least(r + 4, rows); y++)
                    for (int64_t x = c; x < least(c + 4, cols); x++) to[x * to_row + y] = from[y * from_row + x];
        }
}

/* -------------------------------------------------------------------------------------------------- conversions */

/* Numbers [from, from + count) of a row as float32: in place where they are, else in `space`. */
INLINE const float *read_floats(const void *row, int type, int64_t from, int64_t count, float *restrict space) {
    if (type == F32) return (const float *)row + from;
    const uint16_t *narrow = (const uint16_t *)row + from;
    #pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        union { uint32_t bits; float value; } wide = {(uint32_t)narrow[i] << 16};
        space[i] = wide.value;
    }
    return space;
}

/* Rounded to nearest, ties to even; NaN stays NaN. */
static void write_bfloat16(uint16_t *restrict narrow, const float *restrict wide, int64_t count) {
    #pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        union { float value; uint32_t bits; } x = {wide[i]};
        uint32_t rounded = (x.bits + 0x7fff + ((x.bits >> 16) & 1)) >> 16;
        narrow[i] = (x.bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
    }
}

/* ----------------------------------------------------------------------------------------------------- threads */

typedef void parallel_fn(void (*)(void *), void *, unsigned, unsigned);
typedef int number_fn(void);
static parallel_fn *parallel;
static number_fn *number;

/* GOMP_parallel and omp_get_thread_num, of torch's own OpenMP; without them there is one thread. */
void orthoopt_threads(parallel_fn *of_torch, number_fn *in_torch) {
    parallel = of_torch;
    number = in_torch;
}

typedef void body_fn(void *with, int64_t index, int64_t slot);
typedef struct { _Alignas(64) atomic_long taken; } share;
typedef struct { body_fn *body; void *with; int64_t count; int backwards, threads, parts; share *shares; } loop;
/* LAST_FIRST: of one share that all take from, where the last are the longest. */
enum { FORWARDS, BACKWARDS, LAST_FIRST };

/* First the thread's own share, which is the same part of every loop, so that it finds in its cache what it left there;
 * then what others have not come to. */
static void work_through(void *shared) {
    loop *l = shared;
    const int slot = l->threads > 1 ? number() : 0;
    for (int step = 0; step < l->parts; step++) {
        const int64_t whose = (slot + step) % l->parts;
        const int64_t first = l->count * whose / l->parts, many = l->count * (whose + 1) / l->parts - first;
        for (int64_t i; (i = atomic_fetch_add(&l->shares[whose].taken, 1)) < many;)
            l->body(l->with, first + (l->backwards ? many - 1 - i : i), slot);
    }
}

/* body(with, index, slot) for every index, shared out; slots number the threads at work. */
static void each(int threads, int64_t count, int order, body_fn *body, void *with) {
    threads = parallel && count > 1 ? threads : 1;
    share shares[threads];
    memset(shares, 0, sizeof shares);
    loop l = {body, with, count, order != FORWARDS, threads, order == LAST_FIRST ? 1 : threads, shares};
    if (threads > 1) parallel(work_through, &l, threads, 0);
    else work_through(&l);
}

#define HUGE_PAGE ((size_t)1 << 21)

/* Memory for intermediate sums, kept from call to call: fresh pages would cost more than the sums. */
typedef struct { _Alignas(64) size_t size; } reserve; /* the bytes follow */
static _Atomic(reserve *) kept;

static reserve *take_reserve(size_t size) {
    reserve *taken = atomic_exchange(&kept, NULL);
    if (taken && taken->size >= size) return taken;
    free(taken);
    const size_t whole = sizeof *taken + size, pages = (whole + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    const int is_huge = 2 * whole >= HUGE_PAGE;
    if (posix_memalign((void **)&taken, is_huge ? HUGE_PAGE : 64, is_huge ? pages : whole)) return NULL;
#ifdef MADV_HUGEPAGE
    if (is_huge) madvise(taken, pages, MADV_HUGEPAGE); /* fewer misses of the address cache; without them it works too */
#endif
    taken->size = (is_huge ? pages : whole) - sizeof *taken;
    return taken;
}

static void give_reserve(reserve *taken) { free(atomic_exchange(&kept, taken)); }
