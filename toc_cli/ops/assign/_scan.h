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
#undef ABOVE
#if COARSE
#define PASS coarse
#define NUMBER int32_t
#define LOWEST INT32_MIN
#define vec ivec
#define MULTIPLY_ADD DOT
#define MAX IMAX
#define MIN IMIN
#define ABOVE IABOVE
#else
#define PASS fine
#define NUMBER float
#define LOWEST (-INFINITY)
#define vec fvec
#define MULTIPLY_ADD FMA
#define MAX FMAX
#define MIN FMIN
#define ABOVE FABOVE
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

/* Adds the products of one word: of the STRIP rows with the CODES codes of a tile. */
INLINE void PASSED(add_word)(const NUMBER *restrict strip, const NUMBER *restrict tile, vec score[CODES][2]) {
    vec x0 = *(const vec *)strip, x1 = *(const vec *)(strip + LANES);
#pragma GCC unroll 16
    for (int c = 0; c < CODES; c++) {
        vec code = tile[c] - (vec){0};
        score[c][0] = MULTIPLY_ADD(x0, code, score[c][0]);
        score[c][1] = MULTIPLY_ADD(x1, code, score[c][1]);
    }
}

/* Scores of the STRIP rows against the CODES codes of a tile; `few` words, whose number is known, are written out. */
INLINE void PASSED(tile_scores)(
    int64_t words, int few, const NUMBER *restrict strip, const NUMBER *restrict tile, const NUMBER *restrict bias, vec score[CODES][2]) {
#pragma GCC unroll 16
    for (int c = 0; c < CODES; c++) score[c][0] = score[c][1] = bias[c] - (vec){0};
    if (few) {
#pragma GCC unroll 8
        for (int64_t w = 0; w < words; w++) PASSED(add_word)(strip + w * STRIP, tile + w * CODES, score);
        return;
    }
    for (int64_t w = 0; w < words; w++) {
        PASSED(add_word)(strip, tile, score);
        strip += STRIP;
        tile += CODES;
    }
}

/* Best and second best tile per lane. */
typedef struct {
    NUMBER best[STRIP], second[STRIP];
    int32_t tile[STRIP];
} PASSED(state);

/* The best score of each lane; two chains of comparisons where so few products come before them that one would be waited for. */
INLINE vec PASSED(largest)(vec score[CODES][2], int v, int two) {
    vec top = score[0][v], other = score[two][v];
#pragma GCC unroll 16
    for (int c = 1 + two; c < CODES; c += 1 + two) {
        top = MAX(top, score[c][v]);
        if (two && c + 1 < CODES) other = MAX(other, score[c + 1][v]);
    }
    return two ? MAX(top, other) : top;
}

INLINE void PASSED(scan_tiles_of)(
    int64_t words, int few, const PASSED(block) *b, const NUMBER *strip, int64_t first, int64_t last, PASSED(state) *state) {
    vec best[2], second[2];
    ivec tile[2], now = (int32_t)first - (ivec){0};
    memcpy(best, state->best, sizeof best);
    memcpy(second, state->second, sizeof second);
    memcpy(tile, state->tile, sizeof tile);
    for (int64_t t = first; t < last; t++) {
        vec score[CODES][2];
        PASSED(tile_scores)(words, few, strip, b->panel + t * CODES * words, b->bias + t * CODES, score);
        for (int v = 0; v < 2; v++) {
            vec top = PASSED(largest)(score, v, few && words <= 4);
            second[v] = MAX(second[v], MIN(best[v], top));
            tile[v] = (ivec)ABOVE(top, best[v], (vec)now, (vec)tile[v]);
            best[v] = MAX(best[v], top);
        }
        now += 1;
    }
    memcpy(state->best, best, sizeof best);
    memcpy(state->second, second, sizeof second);
    memcpy(state->tile, tile, sizeof tile);
}

/* The few words of narrow codes (up to 16 dimensions in the coarse pass) are written out one after the other, where registers do. */
TARGET static void PASSED(scan_tiles)(
    const PASSED(block) *b, const NUMBER *strip, int64_t first, int64_t last, PASSED(state) *state) {
    switch (LANES < 16 ? 0 : b->words) {
        case 1: PASSED(scan_tiles_of)(1, 1, b, strip, first, last, state); break;
        case 2: PASSED(scan_tiles_of)(2, 1, b, strip, first, last, state); break;
        case 3: PASSED(scan_tiles_of)(3, 1, b, strip, first, last, state); break;
        case 4: PASSED(scan_tiles_of)(4, 1, b, strip, first, last, state); break;
        case 5: PASSED(scan_tiles_of)(5, 1, b, strip, first, last, state); break;
        case 6: PASSED(scan_tiles_of)(6, 1, b, strip, first, last, state); break;
        case 7: PASSED(scan_tiles_of)(7, 1, b, strip, first, last, state); break;
        case 8: PASSED(scan_tiles_of)(8, 1, b, strip, first, last, state); break;
        default: PASSED(scan_tiles_of)(b->words, 0, b, strip, first, last, state);
    }
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
                at = (ivec)ABOVE(now, top, (vec)(first + c - (ivec){0}), (vec)at);
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

/* Lines `used` strips of the rows through all tiles, in chunks of codes that stay in a cache. */
TARGET static void PASSED(search_block)(Search *s, PASSED(block) *b, const int64_t *rows, int64_t count) {
    PASSED(state) state[MOST_STRIPS];
    int64_t used = (count + STRIP - 1) / STRIP, chunk = (b->words > 8 ? CACHE_BYTES : PANEL_BYTES) / (4 * CODES * b->words);
    if (chunk < 1) chunk = 1;
    for (int64_t i = 0; i < used; i++)
        for (int r = 0; r < STRIP; r++) state[i].best[r] = state[i].second[r] = LOWEST, state[i].tile[r] = 0;
    for (int64_t first = 0; first < b->tiles; first += chunk)
        for (int64_t i = 0; i < used; i++)
            PASSED(scan_tiles)(b, b->strips + i * b->words * STRIP, first, at_most(first + chunk, b->tiles), &state[i]);
    for (int64_t i = 0; i < used; i++)
        PASSED(settle)(s, b, i, &state[i], rows + i * STRIP, (int)at_most(count - i * STRIP, STRIP));
}
