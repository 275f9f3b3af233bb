/* The fine pass, in float32, and the float64 re-check of what it leaves open. */

/* Codes as the fine pass sees them, in tiles; codes past the end get the bias -inf. */
TARGET static void NAMED(pack_fine)(Search *s) {
    int64_t tiles = (s->codes.rows + CODES - 1) / CODES, dims = s->dims;
    for (;;) {
        int64_t t = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED);
        if (t >= tiles) break;
        float *tile = s->panel + t * CODES * dims;
        for (int c = 0; c < CODES; c++) {
            int64_t k = t * CODES + c;
            double square = 0, divisor = k < s->codes.rows ? code_divisor(s, k) : 0;
            for (int64_t d = 0; d < dims; d++) {
                double value = k < s->codes.rows ? (comparable(s, k, d, divisor) - (double)s->mu[d]) * s->scale : 0;
                square += value * value;
                tile[d * CODES + c] = (float)value;
            }
            s->bias[k] = k >= s->codes.rows ? -INFINITY : s->metric == EUCLIDEAN ? (float)(-0.5 * square) : 0;
        }
    }
}

/* Which lanes (bits) the bound settles by the gap between best and second best alone; a bound rounded up, NaN settles nothing. */
INLINE uint32_t NAMED(certified)(const Search *s, const float *norms, const PASSED(state) *state) {
    float slope = (float)(2.002 * s->slope), offset = (float)(2.002 * s->offset), curve = (float)(2.004 * s->curve);
    uint32_t bits = 0;
    for (int v = 0; v < 2; v++) {
        fvec norm = *(const fvec *)(norms + v * LANES) * (float)(1.001 + 0x1p-22 * (double)s->dims);
        fvec margin = norm * slope + offset + norm * norm * curve + 0x1p-126f;
        fvec gap = *(const fvec *)(state->best + v * LANES) - *(const fvec *)(state->second + v * LANES);
        bits |= (uint32_t)BITS(margin < gap) << (v * LANES);
    }
    return bits;
}

/* Writes the winners of a strip and lists the rows that the bound cannot settle. */
TARGET static void PASSED(settle)(
    Search *s, PASSED(block) *b, int64_t i, PASSED(state) *state, const int64_t *rows, int count) {
    const float *norms = b->norms + i * STRIP;
    PASSED(name_winners)(s, b, b->strips + i * b->words * STRIP, state, rows, count);
    if (s->best) exact_winners(s, rows, count);
    uint32_t settled = s->reach > 0 ? 0 : NAMED(certified)(s, norms, state);
    for (int r = 0; r < count; r++)
        if (!(settled >> r & 1)) list_open(s, rows[r], norms[r], state->best[r], state->second[r]);
}

/* The fine pass over all rows, or over the doubtful ones where there was a coarse pass. */
TARGET static void NAMED(scan_fine)(Search *s) {
    int64_t floats = s->dims * STRIP, strips = CACHE_BYTES / (4 * floats), total = s->doubtful ? s->doubtful_count : s->x.rows;
    strips = strips < 1 ? 1 : at_most(strips, MOST_STRIPS);
    void *memory = malloc((size_t)(strips * (floats + STRIP)) * sizeof(float) + 64);
    if (!memory) {
        s->failed = 1;
        return;
    }
    PASSED(block) b = {.panel = s->panel, .bias = s->bias, .words = s->dims, .tiles = (s->codes.rows + CODES - 1) / CODES};
    b.strips = cache_line(memory);
    b.norms = b.strips + strips * floats;
    for (;;) {
        int64_t start = __atomic_fetch_add(&s->next, strips * STRIP, __ATOMIC_RELAXED), count = at_most(total - start, strips * STRIP);
        int64_t rows[MOST_STRIPS * STRIP];
        if (count <= 0) break;
        for (int64_t r = 0; r < count; r++) rows[r] = s->doubtful ? s->doubtful[start + r] : start + r;
        for (int64_t i = 0; i * STRIP < count; i++)
            NAMED(pack_strip)(s, rows + i * STRIP, (int)at_most(count - i * STRIP, STRIP), b.strips + i * floats, b.norms + i * STRIP);
        PASSED(search_block)(s, &b, rows, count);
    }
    free(memory);
}

/* The float64 comparison of the listed rows: every code whose score reaches the row's floor. */
TARGET static void NAMED(recheck)(Search *s) {
    int64_t tiles = (s->codes.rows + CODES - 1) / CODES;
    void *memory = malloc((size_t)(s->dims * STRIP) * sizeof(float) + 64);
    if (!memory) {
        s->failed = 1;
        return;
    }
    float *strip = cache_line(memory);
    for (;;) {
        int64_t start = __atomic_fetch_add(&s->next, STRIP, __ATOMIC_RELAXED), rows[STRIP];
        int count = (int)at_most(s->open_count - start, STRIP);
        if (count <= 0) break;
        float norms[STRIP], floors[STRIP];
        fvec floor[2];
        Pending pending = {0};
        for (int r = 0; r < STRIP; r++) {
            rows[r] = s->open_rows[start + (r < count ? r : 0)];
            floors[r] = r < count ? s->open_floor[start + r] : INFINITY;
            pending.index[r] = -1;
            pending.best[r] = pending.second[r] = INFINITY;
        }
        memcpy(floor, floors, sizeof floor);
        NAMED(pack_strip)(s, rows, count, strip, norms);
        for (int64_t t = 0; t < tiles; t++) {
            fvec score[CODES][2];
            PASSED(tile_scores)(s->dims, 0, strip, s->panel + t * CODES * s->dims, s->bias + t * CODES, score);
            fvec top[2] = {score[0][0], score[0][1]};
#pragma GCC unroll 16
            for (int c = 1; c < CODES; c++) top[0] = FMAX(top[0], score[c][0]), top[1] = FMAX(top[1], score[c][1]);
            uint32_t below = BITS(top[0] < floor[0]) | (uint32_t)BITS(top[1] < floor[1]) << LANES;
            uint32_t reached = ~below & (uint32_t)((1ull << count) - 1);
            if (!reached) continue;
            float kept[CODES][STRIP];
            memcpy(kept, score, sizeof kept);
            for (int r = 0; r < count; r++)
                for (int c = 0; (reached >> r & 1) && c < CODES; c++) {
                    int64_t k = t * CODES + c;
                    if (!(kept[c][r] < floors[r]) && k < s->codes.rows && !(s->twin && s->twin[k])) compare(s, &pending, r, rows[r], k);
                }
        }
        flush(s, &pending);
        for (int r = 0; r < count; r++) {
            s->index[rows[r]] = pending.index[r];
            if (s->best) s->best[rows[r]] = pending.best[r], s->second[rows[r]] = pending.second[r];
        }
    }
    free(memory);
}
