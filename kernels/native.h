/* What native.c is made of: arithmetic on rows, and loops over threads. */
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 1024 /* numbers converted and moved at a time: 4 KiB, so that what is read twice is in the first cache */
#define GROUP 4    /* rows walked at a time: memory serves several streams faster than one after the other */
/* Unrolled, so that the sums of each row stay in registers. */
#define EACH_ROW(k, many) _Pragma("GCC unroll 4") for (int k = 0; k < many; k++)
#define INLINE static inline __attribute__((always_inline))

enum { F32, BF16, F16 };

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* ------------------------------------------------------------------------------------------------------- sums */

#if defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
/* Lanes are spelled out where numbers are added up: a compiler must not reorder a sum, and would not vectorize it. */
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t bits __attribute__((vector_size(4 * LANES)));

INLINE lanes at(const float *x, int64_t i) { return *(const lanes *)(x + i); }
INLINE lanes magnitude(lanes x) { return (lanes)((bits)x & 0x7fffffff); }

INLINE double sum_of(lanes x) {
    double total = 0;
    for (int lane = 0; lane < LANES; lane += 4)
        total += ((double)x[lane] + x[lane + 1]) + ((double)x[lane + 2] + x[lane + 3]);
    return total;
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

typedef struct { float decay, weight, from_grad, from_buffer; } moving; /* of reference_steps.Moving */
typedef struct { double squares, magnitudes; } sums;
enum { MOVE = 1, BLEND = 2, STORE = 4 };

/* One walk over at most BLOCK numbers of `many` rows: moves the buffers, makes the signals, stores them, and adds their
 * squares and magnitudes to what was found. `what` is a constant too. */
INLINE void walk(moving by, const float *const *grad, float *const *buffer, float *const *out, int many, int64_t count,
                 int what, sums *found) {
    lanes squares[GROUP] = {{0}}, magnitudes[GROUP] = {{0}};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        EACH_ROW(k, many) {
            lanes x = at(buffer[k], i), g = {0};
            if (what & (MOVE | BLEND)) g = at(grad[k], i);
            if (what & MOVE) *(lanes *)(buffer[k] + i) = x = by.decay * x + by.weight * g;
            if (what & BLEND) x = by.from_grad * g + by.from_buffer * x;
            if (what & STORE) *(lanes *)(out[k] + i) = x;
            squares[k] += x * x;
            magnitudes[k] += magnitude(x);
        }
    EACH_ROW(k, many) {
        float few_squares = 0, few_magnitudes = 0;
        for (int64_t j = i; j < count; j++) {
            float x = buffer[k][j];
            if (what & MOVE) buffer[k][j] = x = by.decay * x + by.weight * grad[k][j];
            if (what & BLEND) x = by.from_grad * grad[k][j] + by.from_buffer * x;
            if (what & STORE) out[k][j] = x;
            few_squares += x * x;
            few_magnitudes += fabsf(x);
        }
        found[k].squares += sum_of(squares[k]) + few_squares;
        found[k].magnitudes += sum_of(magnitudes[k]) + few_magnitudes;
    }
}

/* target ← keep·source − factor·x for `many` rows. */
INLINE void blend_rows(float *const *target, const float *const *source, const float *const *x, int many, int64_t count,
                       float keep, const float *factor) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        EACH_ROW(k, many)
            *(lanes *)(target[k] + i) = keep * at(source[k], i) - factor[k] * at(x[k], i);
    for (; i < count; i++)
        EACH_ROW(k, many) target[k][i] = keep * source[k][i] - factor[k] * x[k][i];
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

typedef void parallel_fn(void (*)(void *), void *, unsigned, unsigned); /* GOMP_parallel, of torch's own OpenMP */
typedef struct { parallel_fn *parallel; int threads; } team;
typedef void body_fn(void *with, int64_t index, int64_t slot);
typedef struct { body_fn *body; void *with; int64_t count; int backwards; atomic_long next, slots; } loop;

static void work_through(void *shared) {
    loop *l = shared;
    int64_t slot = atomic_fetch_add(&l->slots, 1);
    for (int64_t i; (i = atomic_fetch_add(&l->next, 1)) < l->count;)
        l->body(l->with, l->backwards ? l->count - 1 - i : i, slot);
}

/* body(with, index, slot) for every index, shared out; slots number the threads at work. */
static void each(const team *all, int64_t count, int backwards, body_fn *body, void *with) {
    loop l = {body, with, count, backwards, 0, 0};
    if (all->parallel && all->threads > 1 && count > 1) all->parallel(work_through, &l, all->threads, 0);
    else work_through(&l);
}

/* Memory for intermediate sums, kept from call to call: fresh pages would cost more than the sums. */
typedef struct { _Alignas(64) size_t size; } reserve; /* the bytes follow */
static _Atomic(reserve *) kept;

static reserve *take_reserve(size_t size) {
    reserve *taken = atomic_exchange(&kept, NULL);
    if (taken && taken->size >= size) return taken;
    free(taken);
    if (posix_memalign((void **)&taken, 64, sizeof *taken + size)) return NULL;
    taken->size = size;
    return taken;
}

static void give_reserve(reserve *taken) { free(atomic_exchange(&kept, taken)); }
