/* The search for one instruction set: _native.c sets ISA, TARGET, LANES, CODES and what the hardware has of FMA, MAX, MIN, BELOW, PICK. */
#define STRIP (2 * LANES) /* rows scored together */
#define WIDE ((CODES + LANES - 1) / LANES)

typedef float NAMED(vec_t) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t NAMED(mask_t) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define vec NAMED(vec_t)
#define mask NAMED(mask_t)
#ifndef FMA
#define FMA(a, b, c) ((a) * (b) + (c))
#endif
#ifndef MAX
#define PICK(test, a, b) ((vec)(((mask)(test) & (mask)(a)) | (~(mask)(test) & (mask)(b))))
#define MAX(a, b) PICK((a) > (b), a, b)
#define MIN(a, b) PICK((a) < (b), a, b)
#define BELOW(a, b) NAMED(bits)((a) < (b))
INLINE unsigned NAMED(bits)(mask test) {
    unsigned bits = 0;
    for (int i = 0; i < LANES; i++) bits |= (unsigned)(test[i] & 1) << i;
    return bits;
}
#endif

/* Codes as the candidate pass sees them, in tiles; codes past the end get the bias -inf. */
TARGET static void NAMED(pack_codes)(const Search *s) {
    int64_t tiles = (s->codes.rows + CODES - 1) / CODES;
    memset(s->panel + tiles * CODES * (s->dims + 1), 0, STRIP * sizeof(float));
    for (int64_t t = 0; t < tiles; t++)
        for (int c = 0; c < CODES; c++) {
            int64_t k = t * CODES + c;
            float *out = s->panel + t * CODES * (s->dims + 1) + c;
            double square = 0, norm = 1;
            if (s->metric == COSINE && k < s->codes.rows) {
                for (int64_t d = 0; d < s->dims; d++) square += element(&s->codes, k, d) * element(&s->codes, k, d);
                s->code_norms[k] = norm = sqrt(square);
                square = 0;
            }
            for (int64_t d = 0; d < s->dims; d++) {
                double value = k < s->codes.rows ? element(&s->codes, k, d) : 0;
                value = ((norm == 0 ? 0 : value / norm) - (double)s->mu[d]) * s->scale;
                square += value * value;
                out[(d + 1) * CODES] = k < s->codes.rows ? (float)value : 0;
            }
            out[0] = k >= s->codes.rows ? -INFINITY : s->metric == EUCLIDEAN ? (float)(-0.5 * square) : 0;
        }
}

/* Up to STRIP rows, centred, scaled and transposed, and their norms; rows[] are their numbers, missing rows are zero. */
TARGET static void NAMED(pack_strip)(const Search *s, const int64_t *rows, int count, float *strip, float *norms) {
    if (count < STRIP) memset(strip, 0, (size_t)s->dims * STRIP * sizeof(float));
    for (int r = 0; r < count; r++) {
        const Matrix *x = &s->x;
        if (x->is_double) {
            const double *row = (const double *)x->data + rows[r] * x->stride;
            for (int64_t d = 0; d < s->dims; d++)
                strip[d * STRIP + r] = (float)((row[column(x, d)] - (double)s->row_shift[d]) * s->row_gain);
        } else {
            const float *row = (const float *)x->data + rows[r] * x->stride, gain = (float)s->row_gain;
            if (x->columns)
                for (int64_t d = 0; d < s->dims; d++) strip[d * STRIP + r] = (row[x->columns[d]] - s->row_shift[d]) * gain;
            else
                for (int64_t d = 0; d < s->dims; d++) strip[d * STRIP + r] = (row[d] - s->row_shift[d]) * gain;
        }
    }
    vec square[2] = {{0}, {0}};
    for (int64_t d = 0; d < s->dims; d++)
        for (int v = 0; v < 2; v++) {
            vec value = *(const vec *)(strip + d * STRIP + v * LANES);
            square[v] += value * value;
        }
    for (int r = 0; r < STRIP; r++) norms[r] = sqrtf(square[r / LANES][r % LANES]);
}

/* Scores of the STRIP rows against the CODES codes of a tile. */
INLINE void NAMED(tile_scores)(int64_t dims, const float *restrict strip, const float *restrict tile, vec score[CODES][2]) {
#pragma GCC unroll 16
    for (int c = 0; c < CODES; c++) score[c][0] = score[c][1] = tile[c] - (vec){0};
    for (int64_t d = 0; d < dims; d++) {
        vec x0 = *(const vec *)strip, x1 = *(const vec *)(strip + LANES);
        tile += CODES;
        strip += STRIP;
#pragma GCC unroll 16
        for (int c = 0; c < CODES; c++) {
            vec code = tile[c] - (vec){0};
            score[c][0] = FMA(x0, code, score[c][0]);
            score[c][1] = FMA(x1, code, score[c][1]);
        }
    }
}

/* Best and second best tile per lane, over tiles first..last. */
typedef struct {
    float best[STRIP], second[STRIP], tile[STRIP];
} NAMED(state);

TARGET static void NAMED(scan_tiles)(const Search *s, const float *strip, int64_t first, int64_t last, NAMED(state) *state) {
    int64_t size = CODES * (s->dims + 1);
    vec best[2], second[2], tile[2], now = (float)first - (vec){0};
    memcpy(best, state->best, sizeof best);
    memcpy(second, state->second, sizeof second);
    memcpy(tile, state->tile, sizeof tile);
    for (int64_t t = first; t < last; t++) {
        vec score[CODES][2];
        NAMED(tile_scores)(s->dims, strip, s->panel + t * size, score);
        for (int v = 0; v < 2; v++) {
            vec top = score[0][v];
#pragma GCC unroll 16
            for (int c = 1; c < CODES; c++) top = MAX(top, score[c][v]);
            second[v] = MAX(second[v], MIN(best[v], top));
            tile[v] = PICK(top > best[v], now, tile[v]);
            best[v] = MAX(best[v], top);
        }
        now += 1;
    }
    memcpy(state->best, best, sizeof best);
    memcpy(state->second, second, sizeof second);
    memcpy(state->tile, tile, sizeof tile);
}

/* Scores of lane r against the codes of its winning tile, to out[c][r]. */
INLINE void NAMED(rescore)(const Search *s, const float *strip, float winning, int r, float out[CODES][STRIP]) {
    const float *tile = s->panel + (int64_t)winning * CODES * (s->dims + 1);
    vec even[WIDE], odd[WIDE];
    for (int w = 0; w < WIDE; w++) even[w] = *(const vec *)(tile + w * LANES), odd[w] = (vec){0};
    int64_t d = 0;
    for (; d + 1 < s->dims; d += 2)
        for (int w = 0; w < WIDE; w++) {
            even[w] = FMA(strip[d * STRIP + r] - (vec){0}, *(const vec *)(tile + (d + 1) * CODES + w * LANES), even[w]);
            odd[w] = FMA(strip[(d + 1) * STRIP + r] - (vec){0}, *(const vec *)(tile + (d + 2) * CODES + w * LANES), odd[w]);
        }
    if (d < s->dims)
        for (int w = 0; w < WIDE; w++)
            even[w] = FMA(strip[d * STRIP + r] - (vec){0}, *(const vec *)(tile + (d + 1) * CODES + w * LANES), even[w]);
    float score[WIDE * LANES];
    for (int w = 0; w < WIDE; w++) *(vec *)(score + w * LANES) = even[w] + odd[w];
    for (int c = 0; c < CODES; c++) out[c][r] = score[c];
}

/* Names the winners of a strip; state becomes their scores and the best scores of all other codes. */
INLINE void NAMED(name_winners)(const Search *s, const float *strip, NAMED(state) *state, int64_t *index, int count) {
    float score[CODES][STRIP], number[STRIP];
    for (int r = 0; r < STRIP; r++) NAMED(rescore)(s, strip, state->tile[r], r, score);
    for (int v = 0; v < STRIP; v += LANES) {
        vec top = *(vec *)(score[0] + v), next = *(vec *)(state->second + v), at = (vec){0};
        for (int c = 1; c < CODES; c++) {
            vec now = *(vec *)(score[c] + v);
            next = MAX(next, MIN(top, now));
            at = PICK(now > top, (float)c - (vec){0}, at);
            top = MAX(top, now);
        }
        *(vec *)(number + v) = at;
        *(vec *)(state->best + v) = top;
        *(vec *)(state->second + v) = next;
    }
    for (int r = 0; r < count; r++) {
        int64_t k = (int64_t)state->tile[r] * CODES + (int64_t)number[r];
        index[r] = k < s->codes.rows ? k : s->codes.rows - 1;
    }
}

/* Which lanes (bits) the bound settles by the gap between best and second best alone; a bound rounded up, NaN settles nothing. */
INLINE uint32_t NAMED(certified)(const Search *s, const float *norms, const NAMED(state) *state) {
    float slope = (float)(2.002 * s->slope), offset = (float)(2.002 * s->offset), curve = (float)(2.004 * s->curve);
    uint32_t bits = 0;
    for (int v = 0; v < 2; v++) {
        vec norm = *(const vec *)(norms + v * LANES) * (float)(1.001 + 0x1p-22 * (double)s->dims);
        vec margin = norm * slope + offset + norm * norm * curve + 0x1p-126f;
        vec gap = *(const vec *)(state->best + v * LANES) - *(const vec *)(state->second + v * LANES);
        bits |= (uint32_t)BELOW(margin, gap) << (v * LANES);
    }
    return bits;
}

/* Writes the winners of a strip and lists the rows that the bound cannot settle. */
TARGET static void NAMED(settle)(Search *s, const float *strip, const float *norms, NAMED(state) *state, int64_t row, int count) {
    NAMED(name_winners)(s, strip, state, s->index + row, count);
    if (s->best) exact_winners(s, row, count);
    uint32_t settled = s->reach > 0 ? 0 : NAMED(certified)(s, norms, state);
    for (int r = 0; r < count; r++)
        if (!(settled >> r & 1)) list_open(s, row + r, norms[r], state->best[r], state->second[r]);
}

/* The candidate pass: blocks of rows, and for each the tiles in chunks that stay in the second-level cache. */
TARGET static void NAMED(scan)(Search *s) {
    int64_t strip_floats = s->dims * STRIP, tile_floats = (s->dims + 1) * CODES;
    int64_t tiles = (s->codes.rows + CODES - 1) / CODES;
    int64_t chunk = CACHE_FLOATS / tile_floats > 0 ? CACHE_FLOATS / tile_floats : 1;
    int64_t strips = CACHE_FLOATS / strip_floats;
    strips = strips < 1 ? 1 : strips > 16 ? 16 : strips;
    void *memory = malloc((size_t)(strips * (strip_floats + STRIP)) * sizeof(float) + 64);
    NAMED(state) state[16];
    if (!memory) {
        s->failed = 1;
        return;
    }
    float *packed = cache_line(memory), *norms = packed + strips * strip_floats;
    for (;;) {
        int64_t start = __atomic_fetch_add(&s->next_row, strips * STRIP, __ATOMIC_RELAXED), left = s->x.rows - start;
        if (left <= 0) break;
        int64_t used = left < strips * STRIP ? (left + STRIP - 1) / STRIP : strips;
        for (int64_t i = 0; i < used; i++) {
            int64_t rows[STRIP];
            for (int r = 0; r < STRIP; r++) {
                rows[r] = start + i * STRIP + r;
                state[i].best[r] = state[i].second[r] = -INFINITY;
                state[i].tile[r] = 0;
            }
            int count = left - i * STRIP < STRIP ? (int)(left - i * STRIP) : STRIP;
            NAMED(pack_strip)(s, rows, count, packed + i * strip_floats, norms + i * STRIP);
        }
        for (int64_t first = 0; first < tiles; first += chunk)
            for (int64_t i = 0; i < used; i++)
                NAMED(scan_tiles)(s, packed + i * strip_floats, first, first + chunk < tiles ? first + chunk : tiles, &state[i]);
        for (int64_t i = 0; i < used; i++) {
            int count = left - i * STRIP < STRIP ? (int)(left - i * STRIP) : STRIP;
            NAMED(settle)(s, packed + i * strip_floats, norms + i * STRIP, &state[i], start + i * STRIP, count);
        }
    }
    free(memory);
}

/* The float64 comparison of the listed rows: every code whose score reaches the row's floor. */
TARGET static void NAMED(recheck)(Search *s) {
    int64_t tiles = (s->codes.rows + CODES - 1) / CODES, tile_floats = (s->dims + 1) * CODES;
    void *memory = malloc((size_t)(s->dims * STRIP) * sizeof(float) + 64);
    if (!memory) {
        s->failed = 1;
        return;
    }
    float *strip = cache_line(memory);
    for (;;) {
        int64_t start = __atomic_fetch_add(&s->next_row, STRIP, __ATOMIC_RELAXED), left = s->open_count - start;
        if (left <= 0) break;
        int count = left < STRIP ? (int)left : STRIP;
        float norms[STRIP], floors[STRIP];
        vec floor[2];
        Pending pending = {0};
        for (int r = 0; r < STRIP; r++) {
            floors[r] = r < count ? s->open_floor[start + r] : INFINITY;
            pending.index[r] = -1;
            pending.best[r] = pending.second[r] = INFINITY;
        }
        memcpy(floor, floors, sizeof floor);
        NAMED(pack_strip)(s, s->open_rows + start, count, strip, norms);
        for (int64_t t = 0; t < tiles; t++) {
            vec score[CODES][2];
            NAMED(tile_scores)(s->dims, strip, s->panel + t * tile_floats, score);
            vec top[2] = {score[0][0], score[0][1]};
#pragma GCC unroll 16
            for (int c = 1; c < CODES; c++) top[0] = MAX(top[0], score[c][0]), top[1] = MAX(top[1], score[c][1]);
            uint32_t below = BELOW(top[0], floor[0]) | (uint32_t)BELOW(top[1], floor[1]) << LANES;
            uint32_t reached = ~below & (uint32_t)((1ull << count) - 1);
            if (!reached) continue;
            float kept[CODES][STRIP];
            memcpy(kept, score, sizeof kept);
            for (int r = 0; r < count; r++)
                for (int c = 0; (reached >> r & 1) && c < CODES; c++) {
                    int64_t k = t * CODES + c;
                    if (!(kept[c][r] < floors[r]) && k < s->codes.rows && !(s->twin && s->twin[k]))
                        compare(s, &pending, r, s->open_rows[start + r], k);
                }
        }
        flush(s, &pending);
        for (int r = 0; r < count; r++) {
            int64_t row = s->open_rows[start + r];
            s->index[row] = pending.index[r];
            if (s->best) s->best[row] = pending.best[r], s->second[row] = pending.second[r];
        }
    }
    free(memory);
}

#undef ISA
#undef TARGET
#undef LANES
#undef CODES
#undef STRIP
#undef WIDE
#undef vec
#undef mask
#undef FMA
#undef MAX
#undef MIN
#undef BELOW
#undef PICK
