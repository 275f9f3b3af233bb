/* What x86 needs beyond single instructions: square blocks of floats turned over in registers, and masks. */
#include <immintrin.h>

/* out[i][j] = in[j][i] of 8 x 8 floats. */
static inline __attribute__((always_inline, target("avx2"))) void transpose_8(__m256 m[8]) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) a[i] = _mm256_unpacklo_ps(m[i], m[i + 1]), a[i + 1] = _mm256_unpackhi_ps(m[i], m[i + 1]);
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xEE);
        b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xEE);
    }
    for (int i = 0; i < 4; i++) {
        m[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        m[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

/* The same for 16 x 16 floats. */
static inline __attribute__((always_inline, target("avx512f"))) void transpose_16(__m512 m[16]) {
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i += 2) a[i] = _mm512_unpacklo_ps(m[i], m[i + 1]), a[i + 1] = _mm512_unpackhi_ps(m[i], m[i + 1]);
    for (int i = 0; i < 16; i += 4) { /* b[i + j], in each quarter q: column 4 q + j of rows i .. i + 3 */
        b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xEE);
        b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xEE);
    }
    for (int j = 0; j < 4; j++) {
        __m512 low = _mm512_shuffle_f32x4(b[j], b[j + 4], 0x88), low_odd = _mm512_shuffle_f32x4(b[j], b[j + 4], 0xDD);
        __m512 high = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0x88), high_odd = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0xDD);
        m[j] = _mm512_shuffle_f32x4(low, high, 0x88);
        m[j + 8] = _mm512_shuffle_f32x4(low, high, 0xDD);
        m[j + 4] = _mm512_shuffle_f32x4(low_odd, high_odd, 0x88);
        m[j + 12] = _mm512_shuffle_f32x4(low_odd, high_odd, 0xDD);
    }
}

/* A mask of the first `count` (0 to 8) of 8 lanes. */
static inline __attribute__((always_inline, target("avx2"))) __m256i first_of_8(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
