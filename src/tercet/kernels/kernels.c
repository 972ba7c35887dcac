/* The element-wise parts of a transformer layer, each in one pass over memory, forward and backward.
 *
 * Compiled twice from this text, for float and for bfloat16 (see the end of the file). All arithmetic is in float; where
 * the usual chain of tensor operations would round to bfloat16 in between, these round at the same places. Every loop
 * over rows is shared out statically, so results do not depend on timing.
 *
 * T rows (tokens), H width, N heads, D head size.
 */
#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LOCAL 4096  /* numbers of a row that are kept beside it, on the stack */
#define BLOCK 256   /* tokens whose probabilities are summed before one is chosen among them */
#define SMALL 16384 /* numbers below which waking other threads costs more than they save */

static inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float load_bf16(uint16_t x) { return from_bits((uint32_t)x << 16); }

static inline uint16_t store_bf16(float x) { /* to nearest, ties to even; NaN stays NaN */
    uint32_t bits = to_bits(x);
    uint32_t near = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)(x != x ? 0x7fc0u : near);
}

static inline float load_f32(float x) { return x; }
static inline float store_f32(float x) { return x; }

/* e^x to 2 ulp for x in [-87, 88], clamped outside: Cody and Waite's reduction and a polynomial of degree 6. Loops with
 * it become vector code, which calls to expf would not. NaN passes through. */
static inline float exponential(float x) {
    float held = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float k = held * 1.44269504f + 12582912.0f; /* adding 1.5 x 2^23 rounds to the nearest whole number */
    k -= 12582912.0f;
    float r = held - k * 0.693359375f;
    r = r + k * 2.12194440e-4f;
    float p = 1.3981999507e-3f + r * 1.9875691500e-4f;
    p = 8.3334519073e-3f + r * p;
    p = 4.1665795894e-2f + r * p;
    p = 1.6666665459e-1f + r * p;
    p = 5.0000001201e-1f + r * p;
    p = 1.0f + r + r * r * p;
    float value = p * from_bits((uint32_t)((int32_t)k + 127) << 23);
    return x < -87.0f ? 0.0f : value;
}

/* tanh, to 1e-7 */
static inline float hyperbolic(float x) {
    float square = x * x;
    float small = x * (1.0f - square * (0.33333333f - square * 0.13333333f));
    float large = 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f);
    return square < 0.0025f ? small : large;
}

/* Loops over all numbers of a tensor go in chunks of this many: where a chunk ends, the compiler's code for the rest of a
 * vector begins, which may round otherwise, and that must not depend on the number of threads. */
#define CHUNK 4096
#define CHUNKS(n) (((n) + CHUNK - 1) / CHUNK)
#define END_OF(c, n) (((c) + 1) * CHUNK < (n) ? ((c) + 1) * CHUNK : (n))

/* target += source, a bfloat16 gradient onto a float one, without a copy in between */
void add_bf16(float *restrict target, const uint16_t *restrict source, int64_t n) {
#pragma omp parallel for schedule(static) if (n > SMALL)
    for (int64_t c = 0; c < CHUNKS(n); c++) {
        int64_t end = END_OF(c, n);
#pragma omp simd
        for (int64_t i = c * CHUNK; i < end; i++) target[i] += load_bf16(source[i]);
    }
}

#define JOIN_(name, kind) name##_##kind
#define JOIN(name, kind) JOIN_(name, kind)
#define NAMED(name) JOIN(name, KIND)
#define LOAD(x) JOIN(load, KIND)(x)
#define STORE(x) JOIN(store, KIND)(x)
#define ROUND(x) LOAD(STORE(x))

#define REAL float
#define KIND f32
#include "kernels.c"
#include "attention.c"
#undef REAL
#undef KIND
#define REAL uint16_t
#define KIND bf16
#include "kernels.c"
#include "attention.c"

#else

/* y = weight * (x * r), r = 1 / sqrt(mean(x^2) + eps) kept in scales_T */
void NAMED(rms_forward)(const REAL *restrict x, const REAL *restrict weight, REAL *restrict y, float *restrict scales_T,
                        int64_t T, int64_t H, float eps) {
#pragma omp parallel for schedule(static) if (T * H > SMALL)
    for (int64_t t = 0; t < T; t++) {
        const REAL *row = x + t * H;
        REAL *out = y + t * H;
        float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < H; i++) squares += LOAD(row[i]) * LOAD(row[i]);
        float scale = 1.0f / sqrtf(squares / (float)H + eps);
        scales_T[t] = scale;
#pragma omp simd
        for (int64_t i = 0; i < H; i++) out[i] = STORE(LOAD(weight[i]) * ROUND(LOAD(row[i]) * scale));
    }
}

/* dx = r (w dy - x^ mean(w dy x^)), x^ = x r; parts_PH gets sum over rows of dy x^, one row per block of rows */
void NAMED(rms_backward)(const REAL *restrict grad, const REAL *restrict x, const REAL *restrict weight,
                         const float *restrict scales_T, REAL *restrict grad_x, float *restrict parts_PH, int64_t T,
                         int64_t H, int64_t P) {
    int64_t block = (T + P - 1) / P;
#pragma omp parallel for schedule(static) if (T * H > SMALL)
    for (int64_t p = 0; p < P; p++) {
        float *part = parts_PH + p * H;
        memset(part, 0, (size_t)H * sizeof(float));
        int64_t end = (p + 1) * block < T ? (p + 1) * block : T;
        for (int64_t t = p * block; t < end; t++) {
            const REAL *row = x + t * H, *up = grad + t * H;
            REAL *out = grad_x + t * H;
            float scale = scales_T[t], along = 0.0f;
#pragma omp simd reduction(+ : along)
            for (int64_t i = 0; i < H; i++) {
                float unit = LOAD(row[i]) * scale, slope = LOAD(up[i]);
                along += LOAD(weight[i]) * slope * unit;
                part[i] += slope * ROUND(unit);
            }
            along /= (float)H;
#pragma omp simd
            for (int64_t i = 0; i < H; i++)
                out[i] = STORE(scale * (LOAD(weight[i]) * LOAD(up[i]) - LOAD(row[i]) * scale * along));
        }
    }
}

/* y = silu(gate) * up, silu(z) = z / (1 + e^-z) */
void NAMED(swiglu_forward)(const REAL *restrict gate, const REAL *restrict up, REAL *restrict y, int64_t n) {
#pragma omp parallel for schedule(static) if (n > SMALL)
    for (int64_t c = 0; c < CHUNKS(n); c++) {
        int64_t end = END_OF(c, n);
#pragma omp simd
        for (int64_t i = c * CHUNK; i < end; i++) {
            float z = LOAD(gate[i]);
            y[i] = STORE(ROUND(z / (1.0f + exponential(-z))) * LOAD(up[i]));
        }
    }
}

/* d gate = grad up s (1 + z (1 - s)), d up = grad silu(z), s = sigmoid(z) */
void NAMED(swiglu_backward)(const REAL *restrict grad, const REAL *restrict gate, const REAL *restrict up,
                            REAL *restrict grad_gate, REAL *restrict grad_up, int64_t n) {
#pragma omp parallel for schedule(static) if (n > SMALL)
    for (int64_t c = 0; c < CHUNKS(n); c++) {
        int64_t end = END_OF(c, n);
#pragma omp simd
        for (int64_t i = c * CHUNK; i < end; i++) {
            float z = LOAD(gate[i]), slope = LOAD(grad[i]);
            float s = 1.0f / (1.0f + exponential(-z));
            grad_gate[i] = STORE(slope * LOAD(up[i]) * s * (1.0f + z * (1.0f - s)));
            grad_up[i] = STORE(slope * z * s);
        }
    }
}

/* Rotary positions: out (T, N, D) = x cos + rotate_half(x) sin; x has any strides for T and N. `back` = 1 turns a
 * gradient back. */
void NAMED(rotate)(const REAL *restrict x, const REAL *restrict cos_TD, const REAL *restrict sin_TD,
                   REAL *restrict out, int64_t T, int64_t N, int64_t D, int64_t step_T, int64_t step_N, int64_t back) {
    int64_t half = D / 2;
#pragma omp parallel for schedule(static) if (T * N * D > SMALL)
    for (int64_t t = 0; t < T; t++) {
        const REAL *c = cos_TD + t * D, *s = sin_TD + t * D;
        for (int64_t n = 0; n < N; n++) {
            const REAL *row = x + t * step_T + n * step_N;
            REAL *to = out + (t * N + n) * D;
            if (back) {
#pragma omp simd
                for (int64_t i = 0; i < half; i++) {
                    float a = LOAD(row[i]), b = LOAD(row[half + i]);
                    to[i] = STORE(ROUND(a * LOAD(c[i])) + ROUND(b * LOAD(s[half + i])));
                    to[half + i] = STORE(ROUND(b * LOAD(c[half + i])) - ROUND(a * LOAD(s[i])));
                }
            } else {
#pragma omp simd
                for (int64_t i = 0; i < half; i++) {
                    float a = LOAD(row[i]), b = LOAD(row[half + i]);
                    to[i] = STORE(ROUND(a * LOAD(c[i])) - ROUND(b * LOAD(s[i])));
                    to[half + i] = STORE(ROUND(b * LOAD(c[half + i])) + ROUND(a * LOAD(s[half + i])));
                }
            }
        }
    }
}

/* out (S, N, L, D): rows of x (T, N, D with any strides) by their number, zeros where the number is negative */
void NAMED(gather)(const REAL *restrict x, const int32_t *restrict rows_SL, REAL *restrict out, int64_t S, int64_t N,
                   int64_t L, int64_t D, int64_t step_T, int64_t step_N) {
#pragma omp parallel for collapse(2) schedule(static) if (S * N * L * D > SMALL)
    for (int64_t s = 0; s < S; s++)
        for (int64_t n = 0; n < N; n++)
            for (int64_t l = 0; l < L; l++) {
                REAL *to = out + ((s * N + n) * L + l) * D;
                int32_t t = rows_SL[s * L + l];
                if (t < 0) memset(to, 0, (size_t)D * sizeof(REAL));
                else memcpy(to, x + t * step_T + n * step_N, (size_t)D * sizeof(REAL));
            }
}

/* The way back: rows of x (S, N, L, D) to their places in out (T, N, D), every place named once */
void NAMED(scatter)(const REAL *restrict x, const int32_t *restrict rows_SL, REAL *restrict out, int64_t S, int64_t N,
                    int64_t L, int64_t D) {
#pragma omp parallel for collapse(2) schedule(static) if (S * N * L * D > SMALL)
    for (int64_t s = 0; s < S; s++)
        for (int64_t n = 0; n < N; n++)
            for (int64_t l = 0; l < L; l++) {
                int32_t t = rows_SL[s * L + l];
                if (t >= 0) memcpy(out + (t * N + n) * D, x + ((s * N + n) * L + l) * D, (size_t)D * sizeof(REAL));
            }
}

/* The same where places are shared (a trunk's keys): added up in float, one thread per head */
void NAMED(scatter_add)(const REAL *restrict x, const int32_t *restrict rows_SL, float *restrict out, int64_t S,
                        int64_t N, int64_t L, int64_t D) {
#pragma omp parallel for schedule(static) if (S * N * L * D > SMALL)
    for (int64_t n = 0; n < N; n++)
        for (int64_t s = 0; s < S; s++)
            for (int64_t l = 0; l < L; l++) {
                int32_t t = rows_SL[s * L + l];
                const REAL *from = x + ((s * N + n) * L + l) * D;
                float *to = out + (t * N + n) * D;
                if (t < 0) continue;
#pragma omp simd
                for (int64_t i = 0; i < D; i++) to[i] += LOAD(from[i]);
            }
}

/* delta (T, N) = sum over D of grad x output, both (T, N, D) with any strides of their own */
void NAMED(row_dots)(const REAL *restrict a, const REAL *restrict b, float *restrict dots_TN, int64_t T, int64_t N,
                     int64_t D, int64_t a_T, int64_t a_N, int64_t b_T, int64_t b_N) {
#pragma omp parallel for schedule(static) if (T * N * D > SMALL)
    for (int64_t t = 0; t < T; t++)
        for (int64_t n = 0; n < N; n++) {
            const REAL *x = a + t * a_T + n * a_N, *y = b + t * b_T + n * b_N;
            float total = 0.0f;
#pragma omp simd reduction(+ : total)
            for (int64_t i = 0; i < D; i++) total += LOAD(x[i]) * LOAD(y[i]);
            dots_TN[t * N + n] = total;
        }
}

/* Log-sum-exp of each row of logits divided by a temperature, and the log-probability of its target */
void NAMED(row_logps)(const REAL *restrict logits_PV, const int64_t *restrict targets_P, float *restrict norms_P,
                      float *restrict logps_P, int64_t P, int64_t V, float inverse) {
#pragma omp parallel for schedule(static) if (P * V > SMALL)
    for (int64_t p = 0; p < P; p++) {
        const REAL *row = logits_PV + p * V;
        float peak = -INFINITY, total = 0.0f;
#pragma omp simd reduction(max : peak)
        for (int64_t i = 0; i < V; i++) peak = LOAD(row[i]) > peak ? LOAD(row[i]) : peak;
        peak *= inverse;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < V; i++) total += exponential(LOAD(row[i]) * inverse - peak);
        norms_P[p] = peak + logf(total);
        logps_P[p] = LOAD(row[targets_P[p]]) * inverse - norms_P[p];
    }
}

/* In place: logits become grad_P (onehot(target) - softmax) */
void NAMED(row_slopes)(REAL *restrict logits_PV, const int64_t *restrict targets_P, const float *restrict norms_P,
                       const float *restrict grad_P, int64_t P, int64_t V, float inverse) {
#pragma omp parallel for schedule(static) if (P * V > SMALL)
    for (int64_t p = 0; p < P; p++) {
        REAL *row = logits_PV + p * V;
        float norm = norms_P[p], up = grad_P[p], own = LOAD(row[targets_P[p]]);
#pragma omp simd
        for (int64_t i = 0; i < V; i++) row[i] = STORE(-up * exponential(LOAD(row[i]) * inverse - norm));
        row[targets_P[p]] = STORE(up - up * exponential(own * inverse - norm));
    }
}

/* A token of each row: the likeliest where the uniform number is negative, else the one at which the cumulative
 * probability passes it (sums of blocks first, then inside one block). Its log-probability under softmax(z inverse). */
void NAMED(draw_rows)(const REAL *restrict logits_BV, const double *restrict uniforms_B, int64_t *restrict tokens_B,
                      float *restrict logps_B, int64_t B, int64_t V, float inverse) {
    int64_t blocks = (V + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) if (B * V > SMALL)
    for (int64_t b = 0; b < B; b++) {
        const REAL *row = logits_BV + b * V;
        double *sums = malloc((size_t)blocks * sizeof(double)), whole = 0.0;
        float peak = -INFINITY;
#pragma omp simd reduction(max : peak)
        for (int64_t i = 0; i < V; i++) peak = LOAD(row[i]) > peak ? LOAD(row[i]) : peak;
        float top = peak * inverse;
        for (int64_t k = 0; k < blocks; k++) {
            int64_t end = (k + 1) * BLOCK < V ? (k + 1) * BLOCK : V;
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = k * BLOCK; i < end; i++) sum += exponential(LOAD(row[i]) * inverse - top);
            sums[k] = sum;
            whole += sum;
        }
        int64_t token = 0;
        if (uniforms_B[b] < 0.0) {
            while (token < V - 1 && !(LOAD(row[token]) == peak)) token++;
        } else {
            double left = uniforms_B[b] * whole;
            int64_t k = 0, last;
            while (k < blocks - 1 && left >= sums[k]) left -= sums[k++];
            int64_t end = (k + 1) * BLOCK < V ? (k + 1) * BLOCK : V;
            last = k * BLOCK;
            for (token = k * BLOCK; token < end; token++) {
                float weight = exponential(LOAD(row[token]) * inverse - top);
                if (weight > 0.0f) last = token;
                if (left < weight) break;
                left -= weight;
            }
            token = token < end ? token : last; /* rounding at the end of a block: the last token that is possible */
        }
        tokens_B[b] = token;
        logps_B[b] = LOAD(row[token]) * inverse - top - (float)log(whole);
        free(sums);
    }
}

#endif
