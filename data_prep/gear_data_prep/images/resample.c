/* Weighted means of neighbouring pixels, horizontally and then vertically, in the fixed-point
 * arithmetic of Pillow: weights of 22 bits, sums of 32, rounded and clipped to 8 bits after each
 * direction. Integers throughout, so the pixels are Pillow's whatever the order of the sums.
 *
 * A weight w is stored as two halves of 16 bits, w = high * 2^11 + low, because AVX2 multiplies
 * 16 numbers of 16 bits at once and sums them in pairs. Reads stay inside the image: the caller
 * sees to it that every window lies inside, filling up with weights of zero.
 */
#include <stdint.h>
#include <string.h>

#ifndef __x86_64__
int gear_resample_supported(void) { return 0; }
void gear_resample_rows(void) {}
void gear_resample_columns(void) {}
#else
#include <immintrin.h>

enum { TAPS = 4, SIDE_BYTES = 16, PRECISION = 22, SPLIT = 11, ROWS = 4 };

int gear_resample_supported(void) { return __builtin_cpu_supports("avx2") != 0; }

/* Sums of 32 bits, whose halves came apart, to numbers of 22 bits less. */
__attribute__((target("avx2"), always_inline)) static inline __m128i
finish(__m128i high, __m128i low) {
    __m128i sum = _mm_add_epi32(_mm_slli_epi32(high, SPLIT), low);
    return _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(1 << (PRECISION - 1))), PRECISION);
}

__attribute__((target("avx2"), always_inline)) static inline __m128i halves(__m256i sums) {
    return _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
}

/* One pixel of `count` rows, which share its weights. */
__attribute__((target("avx2"), always_inline)) static inline void
pixel(const uint8_t *in, int64_t in_stride, uint8_t *out, int64_t out_stride,
      const int16_t *weights, int groups, int count) {
    /* Four pixels rgbx to r0 r1 g0 g1 b0 b1 x0 x1 r2 r3 ... */
    const __m128i pairs =
        _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    const __m256i spread = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    __m256i high[ROWS], low[ROWS];
    for (int row = 0; row < count; row++) high[row] = low[row] = _mm256_setzero_si256();
    for (int group = 0; group < groups; group++) {
        __m128i both = _mm_loadu_si128((const __m128i *)(weights + group * 2 * TAPS));
        __m256i top = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(both), spread);
        __m256i rest = _mm256_permutevar8x32_epi32(
            _mm256_castsi128_si256(_mm_srli_si128(both, 2 * TAPS)), spread);
        for (int row = 0; row < count; row++) {
            const uint8_t *at = in + row * in_stride + group * 4 * TAPS;
            __m128i bytes = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)at), pairs);
            __m256i words = _mm256_cvtepu8_epi16(bytes);
            high[row] = _mm256_add_epi32(high[row], _mm256_madd_epi16(words, top));
            low[row] = _mm256_add_epi32(low[row], _mm256_madd_epi16(words, rest));
        }
    }
    for (int row = 0; row < count; row++) {
        __m128i sums = finish(halves(high[row]), halves(low[row]));
        __m128i words = _mm_packs_epi32(sums, sums);
        int32_t value = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
        memcpy(out + row * out_stride, &value, 4);
    }
}

/* in: (num_rows, in_width, 4); out: num_rows rows of out_width pixels, out_stride bytes apart.
 * first: (out_width,) first pixel of each window; weights: (out_width, groups, 2, 4). */
__attribute__((target("avx2"))) void
gear_resample_rows(const uint8_t *in, int64_t num_rows, int64_t in_width, uint8_t *out,
                   int64_t out_width, int64_t out_stride, const int32_t *first,
                   const int16_t *weights, int64_t groups) {
    int64_t stride = in_width * 4, row = 0;
    for (; row + ROWS <= num_rows; row += ROWS)
        for (int64_t x = 0; x < out_width; x++)
            pixel(in + row * stride + first[x] * 4, stride, out + row * out_stride + x * 4,
                  out_stride, weights + x * groups * 2 * TAPS, (int)groups, ROWS);
    for (; row < num_rows; row++)
        for (int64_t x = 0; x < out_width; x++)
            pixel(in + row * stride + first[x] * 4, stride, out + row * out_stride + x * 4,
                  out_stride, weights + x * groups * 2 * TAPS, (int)groups, 1);
}

/* Sixteen bytes of one row, from windows of `groups` times four rows. */
__attribute__((target("avx2"), always_inline)) static inline __m128i
sixteen(const uint8_t *in, int64_t stride, const int16_t *weights, int64_t groups) {
    __m256i high[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    __m256i low[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int64_t pair = 0; pair < groups * TAPS / 2; pair++) {
        const int16_t *at = weights + pair / 2 * 2 * TAPS + pair % 2 * 2;
        int32_t two[2];
        memcpy(&two[0], at, 4);
        memcpy(&two[1], at + TAPS, 4);
        __m256i top = _mm256_set1_epi32(two[0]), rest = _mm256_set1_epi32(two[1]);
        __m128i upper = _mm_loadu_si128((const __m128i *)(in + 2 * pair * stride));
        __m128i under = _mm_loadu_si128((const __m128i *)(in + (2 * pair + 1) * stride));
        __m256i left = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(upper, under));
        __m256i right = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(upper, under));
        high[0] = _mm256_add_epi32(high[0], _mm256_madd_epi16(left, top));
        high[1] = _mm256_add_epi32(high[1], _mm256_madd_epi16(right, top));
        low[0] = _mm256_add_epi32(low[0], _mm256_madd_epi16(left, rest));
        low[1] = _mm256_add_epi32(low[1], _mm256_madd_epi16(right, rest));
    }
    __m128i words[2];
    for (int side = 0; side < 2; side++)
        words[side] = _mm_packs_epi32(
            finish(_mm256_castsi256_si128(high[side]), _mm256_castsi256_si128(low[side])),
            finish(_mm256_extracti128_si256(high[side], 1), _mm256_extracti128_si256(low[side], 1)));
    return _mm_packus_epi16(words[0], words[1]);
}

/* in: rows of `stride` bytes, a multiple of 16; out: (out_height, row_bytes), row_bytes <= stride.
 * first: (out_height,) first row of each window; weights: (out_height, groups, 2, 4). */
__attribute__((target("avx2"))) void
gear_resample_columns(const uint8_t *in, int64_t stride, uint8_t *out, int64_t out_height,
                      int64_t row_bytes, const int32_t *first, const int16_t *weights,
                      int64_t groups) {
    for (int64_t y = 0; y < out_height; y++) {
        const int16_t *of_row = weights + y * groups * 2 * TAPS;
        uint8_t *to = out + y * row_bytes;
        for (int64_t x = 0; x < row_bytes; x += SIDE_BYTES) {
            __m128i bytes = sixteen(in + first[y] * stride + x, stride, of_row, groups);
            if (row_bytes - x >= SIDE_BYTES) {
                _mm_storeu_si128((__m128i *)(to + x), bytes);
            } else {
                uint8_t rest[SIDE_BYTES];
                _mm_storeu_si128((__m128i *)rest, bytes);
                memcpy(to + x, rest, (size_t)(row_bytes - x));
            }
        }
    }
}
#endif
