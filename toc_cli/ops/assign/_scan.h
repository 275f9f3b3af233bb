/* What the fine and the coarse pass share: the two best tiles of each row, and the code that wins.
 *
 * Read twice by _kernel.h, with COARSE 0 and 1.
 */
#undef PASS
#undef NUMBER
#undef LOWEST
#undef vec
#undef MULTIPLY_ADD
#undef MAX
#undef MIN
#undef PICK
#if COARSE
#define PASS coarse
#define NUMBER int32_t
#define LOWEST INT32_MIN
#define vec ivec
#define MULTIPLY_ADD DOT
#define MAX IMAX
#define MIN IMIN
#define PICK IPICK
#else
#define PASS fine
#define NUMBER float
#define LOWEST (-INFINITY)
#define vec fvec
#define MULTIPLY_ADD FMA
#define MAX FMAX
#define MIN FMIN
#define PICK FPICK
#endif

/* A block of rows on its way through a pass. */
typedef struct {
    const NUMBER *panel, *bias;
    int64_t words, tiles;
    NUMBER *strips;   /* words * STRIP each */
    float *norms;     /* STRIP for each strip */
    float *rests;     /* the coarse pass: norms of what rounding took from the rows */
    float *wide;      /* ... a strip in float32 each */
    NUMBER *own_bias; /* ... the bias in the steps of this block */
    double gain;      /* ... steps per unit of the rows */
} PASSED(block);

/* Scores of the STRIP rows against the CODES codes of a tile. */
INLINE void PASSED(tile_scores)(
    int64_t words, const NUMBER *restrict strip, const NUMBER *restrict tile, const NUMBER *restrict bias, vec score[CODES][2]) {
#pragma GCC unroll 16
    for (int c = 0; c < CODES; c++) score[c][0] = score[c][1] = bias[c] - (vec){0};
    for (int64_t w = 0; w < words; w++) {
        vec x0 = *(const vec *)strip, x1 = *(const vec *)(strip + LANES);
        strip += STRIP;
#pragma GCC unroll 16
        for (int c = 0; c < CODES; c++) {
            vec code = tile[c] - (vec){0};
            score[c][0] = MULTIPLY_ADD(x0, code, score[c][0]);
            score[c][1] = MULTIPLY_ADD(x1, code, score[c][1]);
        }
        tile += CODES;
    }
}

/* Best and second best tile per lane. */
typedef struct {
    NUMBER best[STRIP], second[STRIP];
    int32_t tile[STRIP];
} PASSED(state);

TARGET static void PASSED(scan_tiles)(
    const PASSED(block) *b, const NUMBER *strip, int64_t first, int64_t last, PASSED(state) *state) {
    vec best[2], second[2];
    ivec tile[2], now = (int32_t)first - (ivec){0};
    memcpy(best, state->best, sizeof best);
    memcpy(second, state->second, sizeof second);
    memcpy(tile, state->tile, sizeof tile);
    for (int64_t t = first; t < last; t++) {
        vec score[CODES][2];
        PASSED(tile_scores)(b->words, strip, b->panel + t * CODES * b->words, b->bias + t * CODES, score);
        for (int v = 0; v < 2; v++) {
            vec top = score[0][v];
#pragma GCC unroll 16
            for (int c = 1; c < CODES; c++) top = MAX(top, score[c][v]);
            second[v] = MAX(second[v], MIN(best[v], top));
            tile[v] = (ivec)PICK(top > best[v], (vec)now, (vec)tile[v]);
            best[v] = MAX(best[v], top);
        }
        now += 1;
    }
    memcpy(state->best, best, sizeof best);
    memcpy(state->second, second, sizeof second);
    memcpy(state->tile, tile, sizeof tile);
}

/* Scores of lane r against the codes of its winning tile, codes along the lanes from number `first` on. */
INLINE vec PASSED(rescore)(const PASSED(block) *b, const NUMBER *strip, int64_t winning, int r, int first) {
    const NUMBER *tile = b->panel + winning * CODES * b->words + first;
    vec even = *(const vec *)(b->bias + winning * CODES + first), odd = (vec){0};
    int64_t w = 0;
    for (; w + 1 < b->words; w += 2) {
        even = MULTIPLY_ADD(strip[w * STRIP + r] - (vec){0}, *(const vec *)(tile + w * CODES), even);
        odd = MULTIPLY_ADD(strip[(w + 1) * STRIP + r] - (vec){0}, *(const vec *)(tile + (w + 1) * CODES), odd);
    }
    if (w < b->words) even = MULTIPLY_ADD(strip[w * STRIP + r] - (vec){0}, *(const vec *)(tile + w * CODES), even);
    return even + odd;
}

/* Names the winners of a strip; state becomes their scores and the best scores of all other codes. */
INLINE void PASSED(name_winners)(
    const Search *s, const PASSED(block) *b, const NUMBER *strip, PASSED(state) *state, const int64_t *rows, int count) {
    for (int v = 0; v < STRIP; v += LANES) {
        vec top = LOWEST - (vec){0}, next = *(vec *)(state->second + v);
        ivec at = {0};
        for (int first = 0; first < CODES; first += LANES) {
            fvec score[LANES];
            for (int r = 0; r < LANES; r++) score[r] = (fvec)PASSED(rescore)(b, strip, state->tile[v + r], v + r, first);
            NAMED(turn)(score);
            for (int c = 0; c < LANES && first + c < CODES; c++) {
                vec now = (vec)score[c];
                next = MAX(next, MIN(top, now));
                at = (ivec)PICK(now > top, (vec)(first + c - (ivec){0}), (vec)at);
                top = MAX(top, now);
            }
        }
        *(vec *)(state->best + v) = top;
        *(vec *)(state->second + v) = next;
        for (int r = 0; r < LANES && v + r < count; r++)
            s->index[rows[v + r]] = at_most((int64_t)state->tile[v + r] * CODES + at[r], s->codes.rows - 1);
    }
}

static void PASSED(settle)(Search *, PASSED(block) *, int64_t, PASSED(state) *, const int64_t *, int);

/* Lines `used` strips of the rows through all tiles, in chunks of codes that stay in the second-level cache. */
TARGET static void PASSED(search_block)(Search *s, PASSED(block) *b, const int64_t *rows, int64_t count) {
    PASSED(state) state[MOST_STRIPS];
    int64_t used = (count + STRIP - 1) / STRIP, chunk = CACHE_BYTES / (4 * CODES * b->words);
    if (chunk < 1) chunk = 1;
    for (int64_t i = 0; i < used; i++)
        for (int r = 0; r < STRIP; r++) state[i].best[r] = state[i].second[r] = LOWEST, state[i].tile[r] = 0;
    for (int64_t first = 0; first < b->tiles; first += chunk)
        for (int64_t i = 0; i < used; i++)
            PASSED(scan_tiles)(b, b->strips + i * b->words * STRIP, first, at_most(first + chunk, b->tiles), &state[i]);
    for (int64_t i = 0; i < used; i++)
        PASSED(settle)(s, b, i, &state[i], rows + i * STRIP, (int)at_most(count - i * STRIP, STRIP));
}
