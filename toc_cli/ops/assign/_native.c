/* Nearest-code search for the CPU: the candidate pass of certificate.py and its float64 re-check.
 *
 * _kernel.h holds the search once, written for vectors of LANES floats; this file compiles it for each instruction set and picks one at run time.
 * Rows lie along the vector lanes and codes are broadcast, so best and second best are kept per lane and nothing is reduced across lanes:
 *
 *     panel   the codes in tiles of CODES: for each tile bias[CODES], then for each dimension value[CODES]
 *     strip   2 LANES rows, transposed: for each dimension value[2 LANES]
 *
 * Per strip and tile 2 x CODES accumulators stay in registers; only the largest score of a tile is compared with the best tile so far. The winning
 * tile is scored again at the end to name the code. A row whose second best is not below the best by the certified margin is put on a list, and
 * toc_recheck compares all codes above its threshold in float64, in the order of naive.py.
 *
 * The caller (native.py) runs toc_scan and toc_recheck on as many threads as it likes, all on one Search: they share the work by its counter.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { EUCLIDEAN, COSINE, DOT };

typedef struct {
    const void *data;
    const int64_t *columns; /* offset of each used column, in elements; NULL: 0, 1, 2, ... */
    int64_t rows, stride;   /* stride in elements */
    int32_t is_double;
} Matrix;

typedef struct {
    Matrix x, codes;
    int64_t dims;
    const float *mu;            /* (D,) */
    double *code_norms;         /* (K,), cosine only; toc_pack writes them */
    const uint8_t *twin;        /* (K,): 1 where an equal code stands before, which need not be compared; or NULL */
    float *panel;               /* toc_panel_floats */
    const float *row_shift;     /* (D,): mu, or zeros where rows are not centred */
    double scale, row_gain;     /* powers of two */
    double slope, offset, curve, reach, per_distance; /* the bound of certificate.py */
    int64_t *index;             /* (N,) */
    double *best, *second;      /* (N,), or NULL where only the index is wanted */
    int64_t *open_rows;         /* (N,): rows to re-check */
    float *open_floor;          /* (N,): the score their candidates reach */
    int64_t open_count, overflow_count, next_row;
    int32_t metric, isa, failed;
} Search;

static int64_t column(const Matrix *m, int64_t d) { return m->columns ? m->columns[d] : d; }

static double element(const Matrix *m, int64_t row, int64_t d) {
    int64_t at = row * m->stride + column(m, d);
    return m->is_double ? ((const double *)m->data)[at] : (double)((const float *)m->data)[at];
}

/* Distances of four (row, code) pairs in float64, each summed dimension by dimension as naive.py does (build with -ffp-contract=off). */
#define EXACT_FOUR(NAME, X, E)                                                                                          \
    static void NAME(const Search *s, const int64_t *row, const int64_t *code, double *out) {                          \
        const X *x[4];                                                                                                  \
        const E *e[4];                                                                                                  \
        double total[4] = {0, 0, 0, 0};                                                                                 \
        for (int i = 0; i < 4; i++) {                                                                                   \
            x[i] = (const X *)s->x.data + row[i] * s->x.stride;                                                         \
            e[i] = (const E *)s->codes.data + code[i] * s->codes.stride;                                                \
        }                                                                                                               \
        for (int64_t d = 0; d < s->dims; d++) {                                                                         \
            int64_t dx = column(&s->x, d), de = column(&s->codes, d);                                                   \
            for (int i = 0; i < 4; i++) {                                                                               \
                double a = x[i][dx], b = e[i][de], c = a - b;                                                           \
                total[i] += s->metric == EUCLIDEAN ? c * c : -(a * b);                                                  \
            }                                                                                                           \
        }                                                                                                               \
        memcpy(out, total, sizeof total);                                                                               \
    }
EXACT_FOUR(exact_float_float, float, float)
EXACT_FOUR(exact_float_double, float, double)
EXACT_FOUR(exact_double_float, double, float)
EXACT_FOUR(exact_double_double, double, double)

static void exact_four(const Search *s, const int64_t *row, const int64_t *code, double *out) {
    if (s->x.is_double)
        (s->codes.is_double ? exact_double_double : exact_double_float)(s, row, code, out);
    else
        (s->codes.is_double ? exact_float_double : exact_float_float)(s, row, code, out);
    if (s->metric == COSINE)
        for (int i = 0; i < 4; i++) {
            double norm = s->code_norms[code[i]];
            out[i] = norm == 0 ? 0 : out[i] / norm;
        }
}

/* Bound on the error of a score of a row of norm |X|. */
static double eta(const Search *s, double norm) {
    norm *= 1.001 + 0x1p-22 * (double)s->dims;
    return s->slope * norm + s->offset + s->curve * norm * norm;
}

static float round_down(double value) {
    float near = (float)value;
    return (double)near > value ? nextafterf(near, -INFINITY) : near;
}

/* Pairs waiting for exact_four, and the two nearest codes so far of each row of a strip. */
typedef struct {
    int64_t row[4], code[4], index[32];
    double best[32], second[32];
    int lane[4], count;
} Pending;

static void flush(const Search *s, Pending *p) {
    double distance[4];
    if (!p->count) return;
    for (int i = p->count; i < 4; i++) p->row[i] = p->row[0], p->code[i] = p->code[0];
    exact_four(s, p->row, p->code, distance);
    for (int i = 0; i < p->count; i++) { /* codes come in ascending order, so < keeps the smaller index */
        int r = p->lane[i];
        if (p->index[r] < 0 || distance[i] < p->best[r]) {
            p->second[r] = p->best[r];
            p->best[r] = distance[i];
            p->index[r] = p->code[i];
        } else if (distance[i] < p->second[r])
            p->second[r] = distance[i];
    }
    p->count = 0;
}

static void compare(const Search *s, Pending *p, int lane, int64_t row, int64_t code) {
    p->row[p->count] = row;
    p->code[p->count] = code;
    p->lane[p->count++] = lane;
    if (p->count == 4) flush(s, p);
}

/* Exact distances of the winners of rows row .. row + count - 1. */
static void exact_winners(const Search *s, int64_t row, int count) {
    for (int r = 0; r < count; r += 4) {
        int64_t rows[4], codes[4];
        double distance[4];
        for (int i = 0; i < 4; i++) {
            rows[i] = row + (r + i < count ? r + i : count - 1);
            codes[i] = s->index[rows[i]];
        }
        exact_four(s, rows, codes, distance);
        for (int i = 0; i < 4; i++) s->best[rows[i]] = distance[i];
    }
}

/* Puts a row on the list unless its best score beats the second by the margin. */
static void list_open(Search *s, int64_t row, double norm, double best, double second) {
    double margin = 2 * eta(s, norm), floor = best;
    if (s->reach == INFINITY)
        floor = second;
    else {
        if (s->reach > 0) margin += s->reach * (margin + fabs(s->best[row]) * s->per_distance);
        if (best - second > margin) return;
    }
    if (!(norm < INFINITY)) {
        __atomic_fetch_add(&s->overflow_count, 1, __ATOMIC_RELAXED);
        floor = -INFINITY;
        margin = 0;
    }
    int64_t place = __atomic_fetch_add(&s->open_count, 1, __ATOMIC_RELAXED);
    s->open_rows[place] = row;
    s->open_floor[place] = round_down(floor - margin);
}

#define CACHE_FLOATS 32768 /* 128 KiB of rows and as much of codes: together half of a usual second-level cache */

static float *cache_line(void *memory) { return (float *)(((uintptr_t)memory + 63) & ~(uintptr_t)63); }

#define PASTE2(a, b) a##_##b
#define PASTE(a, b) PASTE2(a, b)
#define NAMED(name) PASTE(name, ISA)
#define INLINE static inline __attribute__((always_inline)) TARGET

#if defined(__x86_64__)
#include <immintrin.h>

#define ISA avx512
#define TARGET __attribute__((target("avx512f,avx512dq,fma")))
#define LANES 16
#define CODES 12
#define FMA(a, b, c) ((vec)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define MAX(a, b) ((vec)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define MIN(a, b) ((vec)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define PICK(test, a, b) ((vec)_mm512_mask_blend_ps(_mm512_movepi32_mask((__m512i)(test)), (__m512)(b), (__m512)(a)))
#define BELOW(a, b) ((unsigned)_mm512_cmp_ps_mask((__m512)(a), (__m512)(b), _CMP_LT_OQ))
#include "_kernel.h"

#define ISA avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define CODES 6
#define FMA(a, b, c) ((vec)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define MAX(a, b) ((vec)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define MIN(a, b) ((vec)_mm256_min_ps((__m256)(a), (__m256)(b)))
#define PICK(test, a, b) ((vec)_mm256_blendv_ps((__m256)(b), (__m256)(a), (__m256)(test)))
#define BELOW(a, b) ((unsigned)_mm256_movemask_ps(_mm256_cmp_ps((__m256)(a), (__m256)(b), _CMP_LT_OQ)))
#include "_kernel.h"
#endif

#define ISA portable
#define TARGET
#ifdef TOC_PORTABLE_LANES /* lets a test run the AVX-512 shape of the kernel anywhere */
#define LANES TOC_PORTABLE_LANES
#define CODES TOC_PORTABLE_CODES
#else
#define LANES 4
#define CODES 6
#endif
#if defined(__aarch64__) && LANES == 4
#include <arm_neon.h>
#define FMA(a, b, c) ((vec)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#endif
#include "_kernel.h"

/* Widest instruction set that this machine runs: 2 AVX-512, 1 AVX2, 0 portable. */
int32_t toc_isa(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

/* Floats of the panel for K codes of D dimensions, on any instruction set. */
int64_t toc_panel_floats(int64_t codes, int64_t dims) { return (codes + 16) * (dims + 1) + 64; }

#if defined(__x86_64__)
#define RUN(work, s) ((s)->isa == 2 ? work##_avx512(s) : (s)->isa == 1 ? work##_avx2(s) : work##_portable(s))
#else
#define RUN(work, s) work##_portable(s)
#endif
void toc_pack(Search *s) { RUN(pack_codes, s); }
void toc_scan(Search *s) { RUN(scan, s); }
void toc_recheck(Search *s) { RUN(recheck, s); }
