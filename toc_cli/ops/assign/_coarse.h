/* The coarse pass: rows and codes rounded to 16-bit steps, multiplied and added in 32-bit integers without a further error.
 *
 * With X' = round(gain X) and E' = round(coarse_gain E), and r, rho what the rounding took, a score in integer steps is off by at most
 *
 *     |r| coarse_gain |E| + |X'| |rho| + 1/2 (the bias) + gain coarse_gain eta(x)
 *
 * (Cauchy-Schwarz; r is measured per row, rho as the largest of the codes; eta is the bound of certificate.py, which holds what centring and the float64
 * reference round). Rows whose best score does not beat the second by twice that are doubtful and go to the fine pass.
 */

/* a rounded to the nearest integer, for |a| < 2^22. */
INLINE fvec NAMED(nearest_integer)(fvec a) { return (a + 0x1.8p23f) - 0x1.8p23f; }

/* Codes as the coarse pass sees them, in tiles; codes past the end get a bias below every score. */
TARGET static void NAMED(pack_coarse)(Search *s) {
    int64_t tiles = (s->codes.rows + CODES - 1) / CODES, words = (s->dims + 1) / 2;
    double gain = s->scale * s->coarse_gain, most = 0;
    for (;;) {
        int64_t t = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED);
        if (t >= tiles) break;
        int16_t *tile = (int16_t *)(s->coarse_panel + t * CODES * words);
        for (int c = 0; c < CODES; c++) {
            int64_t k = t * CODES + c;
            double square = 0, lost = 0, divisor = k < s->codes.rows ? code_divisor(s, k) : 0;
            for (int64_t d = 0; d < 2 * words; d++) {
                double value = d < s->dims && k < s->codes.rows ? (comparable(s, k, d, divisor) - (double)s->mu[d]) * gain : 0;
                double whole = (value + 0x1.8p52) - 0x1.8p52;
                square += value * value;
                lost += (value - whole) * (value - whole);
                tile[(d / 2 * CODES + c) * 2 + (d & 1)] = (int16_t)(int)whole;
            }
            s->coarse_bias[k] = k >= s->codes.rows ? -INFINITY : s->metric == EUCLIDEAN ? -0.5 * square : 0;
            if (lost > most) most = lost;
        }
    }
    raise_to(&s->coarse_rest, sqrt(most));
}

/* The strips of a block in steps of the block's own gain, which its longest row sets, and what the rounding took. */
INLINE void NAMED(round_block)(const Search *s, PASSED(block) *b, int64_t used) {
    float longest = 0;
    for (int64_t r = 0; r < used * STRIP; r++)
        if (b->norms[r] < 0x1p63f && b->norms[r] > longest) longest = b->norms[r];
    double gain = longest > 0 ? COARSE_REACH / (double)longest : 0x1p60;
    double most = s->metric == EUCLIDEAN ? s->coarse_gain : 0x1p60; /* the half norms of the codes are to stay below 2^29 */
    b->gain = (double)(float)(gain < most ? gain : most);
    for (int64_t k = 0; k < b->tiles * CODES; k++) {
        double bias = s->coarse_bias[k] * (b->gain / s->coarse_gain);
        b->own_bias[k] = bias >= -0x1p30 ? (int32_t)((bias + 0x1.8p52) - 0x1.8p52) : INT32_MIN;
    }
    float step = (float)b->gain;
    for (int64_t i = 0; i < used; i++) {
        const float *wide = b->wide + i * s->dims * STRIP;
        for (int v = 0; v < STRIP; v += LANES) {
            fvec norm = *(const fvec *)(b->norms + i * STRIP + v), lost = {0};
            ivec usable = (ivec)(norm < 0x1p63f);
            for (int64_t w = 0; w < b->words; w++) {
                fvec low = *(const fvec *)(wide + 2 * w * STRIP + v) * step, high = {0};
                if (2 * w + 1 < s->dims) high = *(const fvec *)(wide + (2 * w + 1) * STRIP + v) * step;
                fvec low_whole = NAMED(nearest_integer)(low), high_whole = NAMED(nearest_integer)(high);
                lost += (low - low_whole) * (low - low_whole) + (high - high_whole) * (high - high_whole);
                uvec below = (uvec)__builtin_convertvector(low_whole, ivec), above = (uvec)__builtin_convertvector(high_whole, ivec);
                *(uvec *)(b->strips + (i * b->words + w) * STRIP + v) = ((below & 0xffff) | (above << 16)) & (uvec)usable;
            }
            for (int r = 0; r < LANES; r++) b->rests[i * STRIP + v + r] = usable[r] ? sqrtf(lost[r]) : INFINITY;
        }
    }
}

/* The bound above for one row, twice and rounded up, in steps: what the best score must have over the second. */
typedef struct {
    double inflation, reach, rest, unit; /* of norms, which are computed in float32; in steps; of one step in the scores of certificate.py */
} NAMED(coarse_bound);

INLINE double NAMED(coarse_margin)(const Search *s, const PASSED(block) *b, const NAMED(coarse_bound) *bound, float norm, float lost) {
    double steps = norm * bound->inflation * b->gain, rest = lost * bound->inflation + steps * 0x1p-23;
    return 2.002 * (rest * bound->reach + (steps + rest) * bound->rest + 0.6 + eta(s, norm) / bound->unit);
}

/* Which lanes (bits) the bound settles by the gap alone, in float32 and a little wider. */
INLINE uint32_t NAMED(coarse_settled)(
    const Search *s, const PASSED(block) *b, const NAMED(coarse_bound) *bound, int64_t i, const PASSED(state) *state) {
    double step = bound->inflation * b->gain, scores = 1.001 / bound->unit;
    float of_lost = (float)(2.005 * bound->inflation * (bound->reach + bound->rest));
    float slope = (float)(2.005 * (step * 0x1p-23 * (bound->reach + bound->rest) + step * bound->rest + s->slope * bound->inflation * scores));
    float offset = (float)(2.005 * (0.6 + s->offset * scores)), curve = (float)(2.005 * s->curve * bound->inflation * bound->inflation * scores);
    uint32_t bits = 0;
    for (int v = 0; v < 2; v++) {
        fvec norm = *(const fvec *)(b->norms + i * STRIP + v * LANES), lost = *(const fvec *)(b->rests + i * STRIP + v * LANES);
        fvec margin = lost * of_lost + norm * slope + offset + norm * norm * curve;
        uvec gap = *(const uvec *)(state->best + v * LANES) - *(const uvec *)(state->second + v * LANES);
        fvec half = __builtin_convertvector((ivec)(gap >> 1), fvec); /* the gap may take all 32 bits */
        bits |= (uint32_t)BITS((ivec)(margin * 0.5f < half)) << (v * LANES);
    }
    return bits;
}

/* Writes the winners of a strip and lists the rows that the bound cannot settle. */
TARGET static void PASSED(settle)(
    Search *s, PASSED(block) *b, int64_t i, PASSED(state) *state, const int64_t *rows, int count) {
    double inflation = 1.001 + 0x1p-22 * (double)s->dims, codes = s->scale * s->coarse_gain;
    NAMED(coarse_bound) bound = {inflation, s->radius * codes * inflation, s->coarse_rest * inflation, 1 / (b->gain * s->coarse_gain)};
    PASSED(name_winners)(s, b, b->strips + i * b->words * STRIP, state, rows, count);
    if (s->best) exact_winners(s, rows, count);
    uint32_t settled = s->reach > 0 ? 0 : NAMED(coarse_settled)(s, b, &bound, i, state);
    for (int r = 0; r < count; r++) {
        if (settled >> r & 1) continue;
        double margin = NAMED(coarse_margin)(s, b, &bound, b->norms[i * STRIP + r], b->rests[i * STRIP + r]);
        double gap = (double)((uint32_t)state->best[r] - (uint32_t)state->second[r]);
        if (!(gap > widened(s, rows[r], margin, bound.unit))) list_doubtful(s, rows[r]);
    }
}

/* The coarse pass over all rows; it stops rounding where less than half of them are settled. */
TARGET static void NAMED(scan_coarse)(Search *s) {
    int64_t words = (s->dims + 1) / 2, floats = s->dims * STRIP, strips = CACHE_BYTES / (4 * floats);
    int64_t tiles = (s->codes.rows + CODES - 1) / CODES;
    strips = strips < 1 ? 1 : at_most(strips, MOST_STRIPS);
    void *memory = malloc((size_t)(strips * (floats + words * STRIP + 2 * STRIP) + tiles * CODES + 16) * 4 + 64);
    if (!memory) {
        s->failed = 1;
        return;
    }
    PASSED(block) b = {.panel = s->coarse_panel, .words = words, .tiles = tiles, .strips = cache_line(memory)};
    b.wide = (float *)b.strips + strips * words * STRIP;
    b.norms = b.wide + strips * floats;
    b.rests = b.norms + strips * STRIP;
    b.own_bias = (int32_t *)b.rests + strips * STRIP;
    b.bias = b.own_bias;
    for (;;) {
        int64_t start = __atomic_fetch_add(&s->next, strips * STRIP, __ATOMIC_RELAXED), count = at_most(s->x.rows - start, strips * STRIP);
        int64_t rows[MOST_STRIPS * STRIP];
        if (count <= 0) break;
        for (int64_t r = 0; r < count; r++) rows[r] = start + r;
        if (start >= COARSE_TRIAL && 2 * __atomic_load_n(&s->doubtful_count, __ATOMIC_RELAXED) > start) {
            for (int64_t r = 0; r < count; r++) list_doubtful(s, rows[r]);
            continue;
        }
        for (int64_t i = 0; i * STRIP < count; i++)
            NAMED(pack_strip)(s, rows + i * STRIP, (int)at_most(count - i * STRIP, STRIP), b.wide + i * floats, b.norms + i * STRIP);
        NAMED(round_block)(s, &b, (count + STRIP - 1) / STRIP);
        PASSED(search_block)(s, &b, rows, count);
    }
    free(memory);
}
