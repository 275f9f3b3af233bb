/* The passes for one instruction set: _search.c sets ISA, TARGET, LANES, CODES and what the hardware has of the rest. */
#define STRIP (2 * LANES) /* rows scored together */

typedef float NAMED(fvec_t) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t NAMED(ivec_t) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t NAMED(uvec_t) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define fvec NAMED(fvec_t)
#define ivec NAMED(ivec_t)
#define uvec NAMED(uvec_t)
#ifndef FMA
#define FMA(a, b, c) ((a) * (b) + (c))
#endif
#ifndef FMAX
#define FABOVE(a, b, x, y) ((fvec)(((ivec)((a) > (b)) & (ivec)(x)) | (~(ivec)((a) > (b)) & (ivec)(y))))
#define FMAX(a, b) FABOVE(a, b, a, b)
#define FMIN(a, b) FABOVE(b, a, a, b)
#define BITS(test) NAMED(bits)(test)
INLINE unsigned NAMED(bits)(ivec test) {
    unsigned bits = 0;
    for (int i = 0; i < LANES; i++) bits |= (unsigned)(test[i] & 1) << i;
    return bits;
}
#endif

/* out[i][j] = in[j][i] of LANES x LANES numbers, in place. */
INLINE void NAMED(turn)(fvec *block) {
#ifdef TRANSPOSE
    TRANSPOSE((void *)block);
#else
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < i; j++) {
            float other = block[i][j];
            block[i][j] = block[j][i];
            block[j][i] = other;
        }
#endif
}

/* Dimensions first .. first + LANES - 1 (those below s->dims) of LANES float32 rows that lie in one piece, centred, scaled and turned over. */
INLINE void NAMED(pack_square)(const Search *s, const float *const *row, int64_t first, float *strip) {
    fvec block[LANES];
    int64_t width = s->dims - first;
#ifdef LOAD_SOME
    if (width >= LANES)
        for (int r = 0; r < LANES; r++) block[r] = *(const fvec *)(row[r] + first);
    else
        for (int r = 0; r < LANES; r++) block[r] = LOAD_SOME(row[r] + first, width);
#else
    for (int r = 0; r < LANES; r++)
        for (int d = 0; d < LANES; d++) block[r][d] = d < width ? row[r][first + d] : 0;
#endif
    NAMED(turn)(block);
    float gain = (float)s->row_gain;
    for (int d = 0; d < LANES && d < width; d++) *(fvec *)(strip + (first + d) * STRIP) = (block[d] - s->row_shift[first + d]) * gain;
}

/* Up to STRIP rows, centred, scaled and transposed in float32, and their norms; rows[] are their numbers, missing rows repeat the last. */
TARGET static void NAMED(pack_strip)(const Search *s, const int64_t *rows, int count, float *strip, float *norms) {
    const Matrix *x = &s->x;
    if (x->is_double || x->columns)
        for (int r = 0; r < STRIP; r++) {
            int64_t row = rows[r < count ? r : count - 1];
            const float *from = (const float *)x->data + row * x->stride;
            float gain = (float)s->row_gain;
            if (x->is_double)
                for (int64_t d = 0; d < s->dims; d++)
                    strip[d * STRIP + r] = (float)((element(x, row, d) - (double)s->row_shift[d]) * s->row_gain);
            else
                for (int64_t d = 0; d < s->dims; d++) strip[d * STRIP + r] = (from[x->columns[d]] - s->row_shift[d]) * gain;
        }
    else
        for (int half = 0; half < STRIP; half += LANES) {
            const float *from[LANES];
            for (int r = 0; r < LANES; r++)
                from[r] = (const float *)x->data + rows[half + r < count ? half + r : count - 1] * x->stride;
            for (int64_t d = 0; d < s->dims; d += LANES) NAMED(pack_square)(s, from, d, strip + half);
        }
    fvec square[2] = {{0}, {0}};
    for (int64_t d = 0; d < s->dims; d++)
        for (int v = 0; v < 2; v++) {
            fvec value = *(const fvec *)(strip + d * STRIP + v * LANES);
            square[v] += value * value;
        }
    for (int r = 0; r < STRIP; r++) norms[r] = sqrtf(square[r / LANES][r % LANES]);
}

#undef COARSE
#define COARSE 0
#include "_scan.h"
#include "_fine.h"

#ifdef DOT
#undef TARGET
#define TARGET COARSE_TARGET
#undef COARSE
#define COARSE 1
#include "_scan.h"
#include "_coarse.h"
#endif

#undef ISA
#undef TARGET
#undef COARSE_TARGET
#undef LANES
#undef CODES
#undef STRIP
#undef fvec
#undef ivec
#undef uvec
#undef FMA
#undef FMAX
#undef FMIN
#undef FABOVE
#undef BITS
#undef DOT
#undef IMAX
#undef IMIN
#undef IABOVE
#undef LOAD_SOME
#undef TRANSPOSE
