/* What native.c is made of: arithmetic on rows, and loops over threads. */
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 1024 /* numbers converted and moved at a time: 4 KiB, so that what is read twice is in the first cache */
#ifndef AHEAD
#define AHEAD 128
#endif
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

/* Σ|x|·y over at most BLOCK numbers. */
INLINE double weigh(const float *x, const float *y, int64_t count) {
    lanes even = {0}, odd = {0};
    float rest = 0;
    int64_t i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        __builtin_prefetch(x + i + AHEAD);
        even += magnitude(at(x, i)) * at(y, i);
        odd += magnitude(at(x, i + LANES)) * at(y, i + LANES);
    }
    for (; i < count; i++) rest += fabsf(x[i]) * y[i];
    return sum_of(even + odd) + rest;
}

typedef struct { float decay, weight, from_grad, from_buffer; } moving; /* of reference_steps.Moving */
typedef struct { double squares, magnitudes; } sums;
enum { MOVE = 1, BLEND = 2, STORE = 4 };

/* One walk over at most BLOCK numbers, which memory likes best: moves the buffer, makes the signal, stores it, and sums
 * its squares and magnitudes. `what` is a constant wherever this is called. */
INLINE sums walk(moving by, const float *grad, float *buffer, float *out, int64_t count, int what) {
    lanes squares[2] = {{0}}, magnitudes[2] = {{0}};
    float few_squares = 0, few_magnitudes = 0;
    int64_t i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        if (what & (MOVE | BLEND)) __builtin_prefetch(grad + i + AHEAD);
        __builtin_prefetch(buffer + i + AHEAD);
        for (int k = 0; k < 2; k++) {
            const int64_t j = i + k * LANES;
            lanes x = at(buffer, j), g = {0};
            if (what & (MOVE | BLEND)) g = at(grad, j);
            if (what & MOVE) *(lanes *)(buffer + j) = x = by.decay * x + by.weight * g;
            if (what & BLEND) x = by.from_grad * g + by.from_buffer * x;
            if (what & STORE) *(lanes *)(out + j) = x;
            squares[k] += x * x;
            magnitudes[k] += magnitude(x);
        }
    }
    for (; i < count; i++) {
        float x = buffer[i];
        if (what & MOVE) buffer[i] = x = by.decay * x + by.weight * grad[i];
        if (what & BLEND) x = by.from_grad * grad[i] + by.from_buffer * x;
        if (what & STORE) out[i] = x;
        few_squares += x * x;
        few_magnitudes += fabsf(x);
    }
    return (sums){sum_of(squares[0] + squares[1]) + few_squares, sum_of(magnitudes[0] + magnitudes[1]) + few_magnitudes};
}

/* -------------------------------------------------------------------------------------------------- conversions */

/* Numbers [from, from + count) of a row as float32: in place where they are, else in `space`. */
INLINE const float *read_floats(const void *row, int type, int64_t from, int64_t count, float *restrict space) {
    if (type == F32) return (const float *)row + from;
    const uint16_t *narrow = (const uint16_t *)row + from;
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
