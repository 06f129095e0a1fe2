/* The step of one token on a CPU, for few rows: products that read each weight once, attention of
 * one query, norms and activations, in fp32.
 *
 * Every number of a row is computed from that row alone, by the same operations in the same order,
 * however many rows there are and whichever part of the work this call has: a row's bits depend on
 * nothing else. (Libraries choose their order of sums by the number of rows.)
 *
 * Weights (N, K) are stored as panels of LANES outputs, (N / LANES, K, LANES), so that a product is
 * one stream over memory, which is what limits it.
 */
#include <stddef.h>
#include <stdint.h>

#define LANES 16
#define PANELS 2     /* at a time for 8 rows: 16 sums in registers */
#define AHEAD 1024   /* floats that are asked of memory before they are needed: 4 kB */
#define GROUPS 4     /* of 8 rows, whose sums wait in the first cache: 4 kB */
#define INPUTS 16    /* of each group in turn */
#define MEMORY_BOUND 48 /* rows up to which memory takes longer than arithmetic, about */

typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Bits __attribute__((vector_size(4 * LANES), aligned(4)));

/* One library for every x86: the loader takes the newest instructions that the processor has. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_CPU
#endif
#define INLINE static inline __attribute__((always_inline))

INLINE Lanes load(const float *at) { return *(const Lanes *)at; }
INLINE void store(float *at, Lanes value) { *(Lanes *)at = value; }
INLINE Lanes all(float value) { return (Lanes){0} + value; }

INLINE Lanes choose(Bits which, Lanes yes, Lanes no)
{
    return (Lanes)(((Bits)yes & which) | ((Bits)no & ~which));
}
INLINE Lanes higher(Lanes a, Lanes b) { return choose(a > b, a, b); }

/* ---- products ------------------------------------------------------------------------------ */

/* Outputs of `panels` neighbouring panels for `rows` rows; x as (K, rows). Inputs from .. to - 1 of
 * K: sums go on from `kept` where they are not the first, and stay there where not the last. */
INLINE void tile(const float *x, const float *w, float *y, int64_t K, int64_t N, int rows,
                 int panels, int add, int64_t from, int64_t to, float *kept)
{
    Lanes sum[16];
    for (int i = 0; i < rows * panels; i++) sum[i] = from ? load(kept + i * LANES) : all(0);
    for (int64_t k = from; k < to; k++)
        for (int p = 0; p < panels; p++) {
            const float *at = w + (p * K + k) * LANES;
            __builtin_prefetch(at + AHEAD);
            Lanes weight = load(at);
            for (int r = 0; r < rows; r++) sum[p * rows + r] += weight * x[k * rows + r];
        }
    if (to < K) {
        for (int i = 0; i < rows * panels; i++) store(kept + i * LANES, sum[i]);
        return;
    }
    for (int p = 0; p < panels; p++)
        for (int r = 0; r < rows; r++) {
            float *at = y + r * N + p * LANES;
            store(at, add ? load(at) + sum[p * rows + r] : sum[p * rows + r]);
        }
}

INLINE int64_t group(int64_t left) { return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

/* All rows for some panels. With 16 to 48 rows, a few inputs for all groups of 8, then the next
 * few: weights come from memory while the groups after the first compute, which takes as long. */
INLINE void panels_of_rows(const float *x, const float *w, float *y, int64_t R, int64_t K,
                           int64_t N, int panels, int add)
{
    float kept[GROUPS][16 * LANES];
    int64_t r = 0;
    while (R - r >= 8) {
        int64_t groups = (R - r) / 8 < GROUPS ? (R - r) / 8 : GROUPS;
        int64_t step = groups > 1 && R <= MEMORY_BOUND ? INPUTS : K;
        for (int64_t k = 0; k < K; k += step)
            for (int64_t g = 0; g < groups; g++)
                tile(x + (r + 8 * g) * K, w, y + (r + 8 * g) * N, K, N, 8, panels, add, k,
                     k + step < K ? k + step : K, kept[g]);
        r += 8 * groups;
    }
    if (R - r >= 4) {
        tile(x + r * K, w, y + r * N, K, N, 4, panels, add, 0, K, 0);
        r += 4;
    }
    if (R - r >= 2) {
        tile(x + r * K, w, y + r * N, K, N, 2, panels, add, 0, K, 0);
        r += 2;
    }
    if (R - r >= 1) tile(x + r * K, w, y + r * N, K, N, 1, panels, add, 0, K, 0);
}

/* Rows (R, K) with each group of 8, 4, 2 or 1 transposed, as `gear_product` reads them. */
EACH_CPU
void gear_transpose(const float *x, float *to, int64_t R, int64_t K)
{
    for (int64_t r = 0, rows; r < R; r += rows) {
        rows = group(R - r);
        for (int64_t k = 0; k < K; k++)
            for (int64_t i = 0; i < rows; i++) to[r * K + k * rows + i] = x[(r + i) * K + k];
    }
}

/* y (R, N) = x w^T, or y += x w^T, for the panels first .. last - 1 of w. */
EACH_CPU
void gear_product(const float *x, const float *w, float *y, int64_t R, int64_t K, int64_t N,
                  int64_t first, int64_t last, int32_t add)
{
    int64_t n = first;
    /* For 4 rows and fewer, four panels: sums that do not wait for one another. */
    for (; R <= 4 && n + 4 <= last; n += 4)
        panels_of_rows(x, w + n * K * LANES, y + n * LANES, R, K, N, 4, add);
    for (; n + PANELS <= last; n += PANELS)
        panels_of_rows(x, w + n * K * LANES, y + n * LANES, R, K, N, PANELS, add);
    for (; n < last; n++)
        panels_of_rows(x, w + n * K * LANES, y + n * LANES, R, K, N, 1, add);
}

/* ---- norms and activations ----------------------------------------------------------------- */

INLINE float sum_lanes(Lanes value)
{
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += value[i];
    return sum;
}

/* exp(x) of x <= 88 to 1e-7; 0 below -87. 2^n times the series of exp at |r| <= ln 2 / 2. */
INLINE Lanes exponential(Lanes x)
{
    Bits small = x < all(-87.0f);
    x = choose(small, all(-87.0f), x);
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it leaves a whole number */
    Lanes shifted = x * 1.44269504088896f + round;
    Lanes n = shifted - round;
    Lanes r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Lanes p = all(1.0f / 5040) * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    Bits scale = ((Bits)shifted - (Bits)all(round) + 127) << 23;
    return choose(small, all(0), p * (Lanes)scale);
}

/* x / sqrt(mean x^2 + eps) * weight of each row (R, D). */
EACH_CPU
void gear_rms_norm(const float *x, const float *weight, float *y, int64_t R, int64_t D, float eps)
{
    for (int64_t r = 0; r < R; r++, x += D, y += D) {
        Lanes squares = all(0);
        int64_t d = 0;
        for (; d + LANES <= D; d += LANES) squares += load(x + d) * load(x + d);
        float sum = sum_lanes(squares);
        for (; d < D; d++) sum += x[d] * x[d];
        float scale = 1 / __builtin_sqrtf(sum / D + eps);
        for (d = 0; d < D; d++) y[d] = x[d] * scale * weight[d];
    }
}

/* silu(gate) * up of rows [gate; up] (R, 2 F), where F is a multiple of LANES. */
EACH_CPU
void gear_swiglu(const float *x, float *y, int64_t R, int64_t F)
{
    for (int64_t r = 0; r < R; r++, x += 2 * F, y += F)
        for (int64_t f = 0; f < F; f += LANES) {
            Lanes gate = load(x + f);
            Bits huge = gate < all(-80.0f); /* silu is below 1e-33: and exp(80) is finite */
            Lanes safe = choose(huge, all(-80.0f), gate);
            store(y + f, gate / (1.0f + exponential(-safe)) * load(x + F + f));
        }
}

/* ---- attention ----------------------------------------------------------------------------- */

/* One query of one head over `length` keys and values. Keys as (S / LANES, h, LANES), values as
 * (S, wide) with wide the width h rounded up to LANES. `next`: the keys of the next query. */
INLINE void attend(const float *q, const float *keys, const float *values, const float *next,
                   float *y, float *scratch, int64_t length, int64_t h, int64_t wide)
{
    Lanes most = all(-__builtin_inff());
    for (int64_t s = 0; s < length; s += LANES) {
        Lanes score = all(0);
        const float *block = keys + s * h;
        const float *ahead = s + LANES < length ? block + LANES * h : values;
        for (int64_t d = 0; d < h; d++) {
            __builtin_prefetch(ahead + d * LANES);
            score += load(block + d * LANES) * q[d];
        }
        /* Places after the last are whatever was there. */
        for (int64_t i = length - s; i < LANES; i++) score[i] = -__builtin_inff();
        store(scratch + s, score);
        most = higher(score, most);
    }
    float largest = most[0];
    for (int i = 1; i < LANES; i++) largest = most[i] > largest ? most[i] : largest;
    Lanes total = all(0);
    for (int64_t s = 0; s < length; s += LANES) {
        Lanes p = exponential(load(scratch + s) - largest);
        store(scratch + s, p);
        total += p;
    }
    float scale = 1 / sum_lanes(total);
    for (int64_t d = 0; d < wide; d += 4 * LANES) {
        int count = wide - d >= 4 * LANES ? 4 : (int)((wide - d) / LANES);
        Lanes sum[4] = {all(0), all(0), all(0), all(0)};
        for (int64_t s = 0; s < length; s++) {
            const float *value = values + s * wide + d;
            int64_t left = length - s - LANES;
            const float *ahead = left > 0 ? value + LANES * wide : next - left * wide + d;
            for (int i = 0; i < count; i++) {
                __builtin_prefetch(ahead + i * LANES);
                sum[i] += load(value + i * LANES) * scratch[s];
            }
        }
        for (int i = 0; i < count; i++)
            for (int j = 0; j < LANES && d + i * LANES + j < h; j++)
                y[d + i * LANES + j] = sum[i][j] * scale;
    }
}

/* Neighbouring pairs turned by cosines and sines (h / 2, 2), times `scale`. */
INLINE void turn(const float *x, const float *table, float *y, int64_t h, float scale)
{
    for (int64_t j = 0; j < h; j += 2) {
        y[j] = (x[j] * table[j] - x[j + 1] * table[j + 1]) * scale;
        y[j + 1] = (x[j + 1] * table[j] + x[j] * table[j + 1]) * scale;
    }
}

/* Attention of rows first .. last - 1 of qkv (R, 3 H h, each head-major): the new key and value go
 * to place lengths[r] - 1 of the row's cache, and the query sees all lengths[r] places.
 *
 * keys (R, H, S / LANES, h, LANES), values (R, H, S, wide), y (R, H h);
 * scratch: S + h floats of this call alone. */
EACH_CPU
void gear_attend(const float *qkv, const float *table, float *keys, float *values, float *y,
                 const int64_t *lengths, float *scratch, int64_t first, int64_t last, int64_t H,
                 int64_t h, int64_t S)
{
    int64_t wide = (h + LANES - 1) / LANES * LANES, D = H * h;
    float *turned = scratch + S, scale = 1 / __builtin_sqrtf((float)h);
    for (int64_t r = first; r < last; r++)
        for (int64_t head = 0; head < H; head++) {
            const float *q = qkv + r * 3 * D + head * h;
            float *row_keys = keys + (r * H + head) * S * h;
            float *row_values = values + (r * H + head) * S * wide;
            int64_t place = lengths[r] - 1;
            float *key = row_keys + place / LANES * LANES * h + place % LANES;
            turn(q + D, table, turned, h, 1);
            for (int64_t d = 0; d < h; d++) key[d * LANES] = turned[d];
            for (int64_t d = 0; d < h; d++) row_values[place * wide + d] = q[2 * D + d];
            turn(q, table, turned, h, scale);
            attend(turned, row_keys, row_values, row_keys + S * h, y + r * D + head * h, scratch,
                   lengths[r], h, wide);
        }
}
