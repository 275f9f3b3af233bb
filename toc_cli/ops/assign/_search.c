/* Nearest-code search for the CPU: the candidate passes of certificate.py and their float64 re-check.
 *
 * A search goes through at most three passes, each over the rows that the one before could not settle:
 *
 *     coarse    16-bit integers (_coarse.h): twice the multiply-adds per instruction, where the machine has them
 *     fine      float32 (_fine.h)
 *     recheck   float64, only codes that reach the certified floor, in the order of naive.py
 *
 * _scan.h holds what the first two share, written for vectors of LANES 32-bit numbers; this file compiles the passes for each instruction set and
 * picks one at run time. Rows lie along the vector lanes and codes are broadcast, so best and second best are kept per lane and nothing is reduced
 * across lanes:
 *
 *     panel   the codes in tiles of CODES: for each tile and word value[CODES]; beside it bias[CODES] per tile
 *     strip   2 LANES rows, transposed: for each word value[2 LANES]
 *
 * where a word is one float32 dimension (fine) or a pair of 16-bit dimensions (coarse). Per strip and tile 2 x CODES accumulators stay in registers;
 * only the largest score of a tile is compared with the best tile so far. The winning tile is scored again at the end to name the code.
 *
 * The caller (native.py) runs each pass on as many threads as it likes, all on one Search: they share the work by its counter.
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
    float *mu;                  /* (D,): the mean code; toc_frame writes it and the next three */
    double *code_norms;         /* (K,), cosine only */
    double radius, longest;     /* largest distance of a code from mu; largest norm of a code as compared */
    const uint8_t *twin;        /* (K,): 1 where an equal code stands before, which need not be compared; or NULL */
    float *panel, *bias;        /* toc_panel_words, toc_padded_codes: written by toc_pack_fine */
    int32_t *coarse_panel;      /* toc_panel_words, by toc_pack_coarse */
    double *coarse_bias;        /* toc_padded_codes */
    double coarse_gain, coarse_rest; /* code values per step of 1 of the coarse panel, inverse; largest norm that rounding took from a code */
    const float *row_shift;     /* (D,): mu, or zeros where rows are not centred */
    double scale, row_gain;     /* powers of two */
    double slope, offset, curve, reach, per_distance; /* the bound of certificate.py */
    int64_t *index;             /* (N,) */
    double *best, *second;      /* (N,), or NULL where only the index is wanted */
    int32_t *doubtful;          /* (N,): rows that the coarse pass left, or NULL where it did not run */
    int32_t *open_rows;         /* (N,): rows to re-check */
    float *open_floor;          /* (N,): the score their candidates reach */
    int64_t doubtful_count, open_count, overflow_count, next;
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

/* Exact distances of the winners of these rows; a second distance is not known yet. */
static void exact_winners(const Search *s, const int64_t *row, int count) {
    for (int r = 0; r < count; r += 4) {
        int64_t rows[4], codes[4];
        double distance[4];
        for (int i = 0; i < 4; i++) {
            rows[i] = row[r + i < count ? r + i : count - 1];
            codes[i] = s->index[rows[i]];
        }
        exact_four(s, rows, codes, distance);
        for (int i = 0; i < 4; i++) s->best[rows[i]] = distance[i], s->second[rows[i]] = INFINITY;
    }
}

/* What the second best may be off by and still matter: both errors of a pair of scores and, where near ties are asked for, their reach.
 * One unit of the scores is worth `unit` of those of certificate.py. */
static double widened(const Search *s, int64_t row, double margin, double unit) {
    if (s->reach > 0) margin += s->reach * (margin + fabs(s->best[row]) * s->per_distance / unit);
    return margin;
}

/* Puts a row on the list for the re-check unless its best score beats the second by the margin. */
static void list_open(Search *s, int64_t row, double norm, double best, double second) {
    double margin = 2 * eta(s, norm), floor = best;
    if (s->reach == INFINITY)
        floor = second;
    else {
        margin = widened(s, row, margin, 1);
        if (best - second > margin) return;
    }
    if (!(norm < INFINITY)) {
        __atomic_fetch_add(&s->overflow_count, 1, __ATOMIC_RELAXED);
        floor = -INFINITY;
        margin = 0;
    }
    int64_t place = __atomic_fetch_add(&s->open_count, 1, __ATOMIC_RELAXED);
    s->open_rows[place] = (int32_t)row;
    s->open_floor[place] = round_down(floor - margin);
}

/* Leaves a row to the fine pass. */
static void list_doubtful(Search *s, int64_t row) {
    s->doubtful[__atomic_fetch_add(&s->doubtful_count, 1, __ATOMIC_RELAXED)] = (int32_t)row;
}

static void raise_to(double *largest, double value) { /* *largest = max(*largest, value), from any thread; neither is negative */
    int64_t bits, seen = __atomic_load_n((int64_t *)largest, __ATOMIC_RELAXED);
    memcpy(&bits, &value, sizeof bits); /* non-negative doubles are ordered as their bits are */
    while (bits > seen && !__atomic_compare_exchange_n((int64_t *)largest, &seen, bits, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
}

/* Divisor that makes a code comparable: its norm for cosine (0 for a zero code, which stays zero), else 1. */
static double code_divisor(const Search *s, int64_t k) { return s->metric == COSINE ? s->code_norms[k] : 1; }

static double comparable(const Search *s, int64_t k, int64_t d, double divisor) {
    return divisor == 0 ? 0 : element(&s->codes, k, d) / divisor;
}

/* The mean code and how far the codes reach from it and from 0, all in float64. */
void toc_frame(Search *s) {
    int64_t n = s->codes.rows, dims = s->dims;
    double *sum = calloc((size_t)dims, sizeof(double));
    if (!sum) {
        s->failed = 1;
        return;
    }
    for (int64_t k = 0; k < n; k++) {
        if (s->metric == COSINE) {
            double square = 0;
            for (int64_t d = 0; d < dims; d++) square += element(&s->codes, k, d) * element(&s->codes, k, d);
            s->code_norms[k] = sqrt(square);
        }
        double divisor = code_divisor(s, k);
        if (s->codes.is_double || s->codes.columns || divisor != 1)
            for (int64_t d = 0; d < dims; d++) sum[d] += comparable(s, k, d, divisor);
        else {
            const float *code = (const float *)s->codes.data + k * s->codes.stride;
            for (int64_t d = 0; d < dims; d++) sum[d] += (double)code[d];
        }
    }
    for (int64_t d = 0; d < dims; d++) sum[d] = s->mu[d] = (float)(sum[d] / (double)n);
    double radius = 0, longest = 0;
    for (int64_t k = 0; k < n; k++) {
        double from_mean[4] = {0}, norm[4] = {0}, divisor = code_divisor(s, k);
        for (int64_t d = 0; d < dims; d++) { /* four sums, so that one does not wait for the other */
            double value = comparable(s, k, d, divisor), centred = value - sum[d];
            from_mean[d & 3] += centred * centred;
            norm[d & 3] += value * value;
        }
        double far = from_mean[0] + from_mean[1] + from_mean[2] + from_mean[3], length = norm[0] + norm[1] + norm[2] + norm[3];
        if (!(far <= radius)) radius = far; /* NaN is taken over, and stays */
        if (!(length <= longest)) longest = length;
    }
    s->radius = sqrt(radius);
    s->longest = sqrt(longest);
    free(sum);
}

#define CACHE_BYTES (1 << 17) /* of rows and as much of codes: together half of a usual second-level cache */
#define PANEL_BYTES (1 << 15) /* of codes so narrow that a strip is through with them soon: in the first-level cache */
#define MOST_STRIPS 16
#define COARSE_REACH 32000 /* largest norm of a row or a code in steps of 1: products and half norms together stay below 2^31 */
#define COARSE_TRIAL 4096  /* rows after which the coarse pass gives up if it settles less than half */

static void *cache_line(void *memory) { return (void *)(((uintptr_t)memory + 63) & ~(uintptr_t)63); }

static int64_t at_most(int64_t value, int64_t most) { return value < most ? value : most; }

#define PASTE2(a, b) a##_##b
#define PASTE(a, b) PASTE2(a, b)
#define NAMED(name) PASTE(name, ISA)
#define PASSED(name) NAMED(PASTE(name, PASS))
#define INLINE static inline __attribute__((always_inline)) TARGET

#if defined(__x86_64__)
#include "_x86.h"

#define ISA avx512
#define TARGET __attribute__((target("avx512f,avx512dq,fma")))
#define COARSE_TARGET __attribute__((target("avx512f,avx512dq,avx512vnni,fma")))
#define LANES 16
#define CODES 12
#define FMA(a, b, c) ((fvec)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define FMAX(a, b) ((fvec)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define FMIN(a, b) ((fvec)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define FABOVE(a, b, x, y) ((fvec)_mm512_mask_blend_ps(_mm512_cmp_ps_mask((__m512)(a), (__m512)(b), _CMP_GT_OQ), (__m512)(y), (__m512)(x)))
#define BITS(test) ((unsigned)_mm512_movepi32_mask((__m512i)(test)))
#define DOT(a, b, c) ((ivec)_mm512_dpwssd_epi32((__m512i)(c), (__m512i)(a), (__m512i)(b)))
#define IMAX(a, b) ((ivec)_mm512_max_epi32((__m512i)(a), (__m512i)(b)))
#define IMIN(a, b) ((ivec)_mm512_min_epi32((__m512i)(a), (__m512i)(b)))
#define IABOVE(a, b, x, y) ((ivec)_mm512_mask_blend_epi32(_mm512_cmpgt_epi32_mask((__m512i)(a), (__m512i)(b)), (__m512i)(y), (__m512i)(x)))
#define LOAD_SOME(from, count) ((fvec)_mm512_maskz_loadu_ps((__mmask16)((1u << (count)) - 1), from))
#define TRANSPOSE transpose_16
#include "_kernel.h"

#define ISA avx2
#define TARGET __attribute__((target("avx2,fma")))
#define COARSE_TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define CODES 6
#define FMA(a, b, c) ((fvec)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define FMAX(a, b) ((fvec)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define FMIN(a, b) ((fvec)_mm256_min_ps((__m256)(a), (__m256)(b)))
#define FABOVE(a, b, x, y) ((fvec)_mm256_blendv_ps((__m256)(y), (__m256)(x), (__m256)((a) > (b))))
#define BITS(test) ((unsigned)_mm256_movemask_ps((__m256)(test)))
#define DOT(a, b, c) ((ivec)_mm256_add_epi32((__m256i)(c), _mm256_madd_epi16((__m256i)(a), (__m256i)(b))))
#define IMAX(a, b) ((ivec)_mm256_max_epi32((__m256i)(a), (__m256i)(b)))
#define IMIN(a, b) ((ivec)_mm256_min_epi32((__m256i)(a), (__m256i)(b)))
#define IABOVE(a, b, x, y) ((ivec)_mm256_blendv_epi8((__m256i)(y), (__m256i)(x), (__m256i)((a) > (b))))
#define LOAD_SOME(from, count) ((fvec)_mm256_maskload_ps(from, first_of_8(count)))
#define TRANSPOSE transpose_8
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
#define FMA(a, b, c) ((fvec)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#endif
#include "_kernel.h"

/* Widest instruction set that this machine runs: 3 AVX-512 with VNNI, 2 AVX-512, 1 AVX2, 0 portable. */
int32_t toc_isa(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
        return __builtin_cpu_supports("avx512vnni") ? 3 : 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

/* Whether an instruction set has a coarse pass that is faster than its fine one. */
int32_t toc_has_coarse(int32_t isa) { return isa == 3 || isa == 1; }

/* Sizes of a panel in words and of a bias, for K codes of D dimensions, on any instruction set. */
int64_t toc_padded_codes(int64_t codes) { return codes + 16; }
int64_t toc_panel_words(int64_t codes, int64_t dims) { return (codes + 16) * dims + 64; }

#if defined(__x86_64__)
#define RUN(work, s) ((s)->isa >= 2 ? work##_avx512(s) : (s)->isa == 1 ? work##_avx2(s) : work##_portable(s))
void toc_pack_coarse(Search *s) { (s)->isa == 1 ? pack_coarse_avx2(s) : pack_coarse_avx512(s); }
void toc_scan_coarse(Search *s) { (s)->isa == 1 ? scan_coarse_avx2(s) : scan_coarse_avx512(s); }
#else
#define RUN(work, s) work##_portable(s)
void toc_pack_coarse(Search *s) { s->failed = 1; }
void toc_scan_coarse(Search *s) { s->failed = 1; }
#endif
void toc_pack_fine(Search *s) { RUN(pack_fine, s); }
void toc_scan_fine(Search *s) { RUN(scan_fine, s); }
void toc_recheck(Search *s) { RUN(recheck, s); }
