/* Attention's passes over scores between the products of a forest, and attention to the past in generation. Part of
 * kernels.c, which includes it once for each precision. */
#ifdef REAL

/* Attention's softmax in place over scores (S, N, L, R): row l of segment s is token rows_SL[s, l] and sees the first
 * shared_S[s] + l + 1 keys. lse (T, N) keeps log-sum-exps for backward. Padding rows become zeros. */
void NAMED(attention_softmax)(REAL *restrict scores, const int32_t *restrict rows_SL, const int32_t *restrict shared_S,
                              float *restrict lse_TN, int64_t S, int64_t N, int64_t L, int64_t R, float scale) {
#pragma omp parallel for collapse(2) schedule(static) if (S * N * L * R > SMALL)
    for (int64_t b = 0; b < S * N; b++)
        for (int64_t l = 0; l < L; l++) {
            int32_t t = rows_SL[b / N * L + l];
            int64_t seen = t < 0 ? 0 : shared_S[b / N] + l + 1;
            REAL *row = scores + (b * L + l) * R;
            float peak = -INFINITY, total = 0.0f;
#pragma omp simd reduction(max : peak)
            for (int64_t i = 0; i < seen; i++) peak = LOAD(row[i]) > peak ? LOAD(row[i]) : peak;
            peak *= scale;
            float norm;
            if (seen <= LOCAL) {
                float weights[LOCAL];
#pragma omp simd reduction(+ : total)
                for (int64_t i = 0; i < seen; i++) {
                    weights[i] = exponential(LOAD(row[i]) * scale - peak);
                    total += weights[i];
                }
                float share = 1.0f / total;
#pragma omp simd
                for (int64_t i = 0; i < seen; i++) row[i] = STORE(weights[i] * share);
                norm = peak + logf(total);
            } else {
#pragma omp simd reduction(+ : total)
                for (int64_t i = 0; i < seen; i++) total += exponential(LOAD(row[i]) * scale - peak);
                norm = peak + logf(total);
#pragma omp simd
                for (int64_t i = 0; i < seen; i++) row[i] = STORE(exponential(LOAD(row[i]) * scale - norm));
            }
            memset(row + seen, 0, (size_t)(R - seen) * sizeof(REAL));
            if (t >= 0) lse_TN[t * N + b % N] = norm;
        }
}

/* Between the products of attention's backward: scores and slopes (dO V') of the same rows become weights and gradients
 * of the scores in place: P = exp(scale S - lse), dS = P (dP - delta) scale. */
void NAMED(attention_slopes)(REAL *restrict scores, REAL *restrict slopes, const int32_t *restrict rows_SL,
                             const int32_t *restrict shared_S, const float *restrict lse_TN,
                             const float *restrict delta_TN, int64_t S, int64_t N, int64_t L, int64_t R, float scale) {
#pragma omp parallel for collapse(2) schedule(static) if (S * N * L * R > SMALL)
    for (int64_t b = 0; b < S * N; b++)
        for (int64_t l = 0; l < L; l++) {
            int32_t t = rows_SL[b / N * L + l];
            int64_t seen = t < 0 ? 0 : shared_S[b / N] + l + 1;
            REAL *s = scores + (b * L + l) * R, *d = slopes + (b * L + l) * R;
            float norm = t < 0 ? 0.0f : lse_TN[t * N + b % N], delta = t < 0 ? 0.0f : delta_TN[t * N + b % N];
#pragma omp simd
            for (int64_t i = 0; i < seen; i++) {
                float weight = exponential(LOAD(s[i]) * scale - norm);
                s[i] = STORE(weight);
                d[i] = STORE(weight * (LOAD(d[i]) - delta) * scale);
            }
            memset(s + seen, 0, (size_t)(R - seen) * sizeof(REAL));
            memset(d + seen, 0, (size_t)(R - seen) * sizeof(REAL));
        }
}

/* The same for what some layers do beside: row l sees keys from first_SL on only, a cap above zero makes scores
 * cap tanh(score / cap), and each head's sink (none where null) joins the sum that the weights are shares of. */
void NAMED(attention_softmax_with)(REAL *restrict scores, const int32_t *restrict rows_SL,
                                   const int32_t *restrict shared_S, const int32_t *restrict first_SL,
                                   const float *restrict sinks_N, float *restrict lse_TN, int64_t S, int64_t N,
                                   int64_t L, int64_t R, float scale, float cap) {
#pragma omp parallel for collapse(2) schedule(static) if (S * N * L * R > SMALL)
    for (int64_t b = 0; b < S * N; b++)
        for (int64_t l = 0; l < L; l++) {
            int32_t t = rows_SL[b / N * L + l];
            int64_t first = first_SL[b / N * L + l], seen = t < 0 ? 0 : shared_S[b / N] + l + 1 - first;
            REAL *whole = scores + (b * L + l) * R, *row = whole + first;
            if (t < 0) {
                memset(whole, 0, (size_t)R * sizeof(REAL));
                continue;
            }
            float kept[LOCAL], *weights = seen <= LOCAL ? kept : malloc((size_t)seen * sizeof(float));
            float peak = -INFINITY, total = 0.0f;
#pragma omp simd
            for (int64_t i = 0; i < seen; i++) weights[i] = LOAD(row[i]) * scale;
            if (cap > 0.0f) {
#pragma omp simd
                for (int64_t i = 0; i < seen; i++) weights[i] = cap * hyperbolic(weights[i] / cap);
            }
#pragma omp simd reduction(max : peak)
            for (int64_t i = 0; i < seen; i++) peak = weights[i] > peak ? weights[i] : peak;
            if (sinks_N) peak = sinks_N[b % N] > peak ? sinks_N[b % N] : peak;
#pragma omp simd reduction(+ : total)
            for (int64_t i = 0; i < seen; i++) {
                weights[i] = exponential(weights[i] - peak);
                total += weights[i];
            }
            if (sinks_N) total += exponential(sinks_N[b % N] - peak);
            float share = 1.0f / total;
            memset(whole, 0, (size_t)first * sizeof(REAL));
#pragma omp simd
            for (int64_t i = 0; i < seen; i++) row[i] = STORE(weights[i] * share);
            memset(row + seen, 0, (size_t)(R - first - seen) * sizeof(REAL));
            lse_TN[t * N + b % N] = peak + logf(total);
            if (seen > LOCAL) free(weights);
        }
}

/* Its backward: see attention_slopes. Through the cap a gradient shrinks by 1 - tanh^2. */
void NAMED(attention_slopes_with)(REAL *restrict scores, REAL *restrict slopes, const int32_t *restrict rows_SL,
                                  const int32_t *restrict shared_S, const int32_t *restrict first_SL,
                                  const float *restrict lse_TN, const float *restrict delta_TN, int64_t S, int64_t N,
                                  int64_t L, int64_t R, float scale, float cap) {
    float inverse = cap > 0.0f ? scale / cap : 0.0f;
#pragma omp parallel for collapse(2) schedule(static) if (S * N * L * R > SMALL)
    for (int64_t b = 0; b < S * N; b++)
        for (int64_t l = 0; l < L; l++) {
            int32_t t = rows_SL[b / N * L + l];
            int64_t first = t < 0 ? 0 : first_SL[b / N * L + l], end = t < 0 ? 0 : shared_S[b / N] + l + 1;
            REAL *s = scores + (b * L + l) * R, *d = slopes + (b * L + l) * R;
            float norm = t < 0 ? 0.0f : lse_TN[t * N + b % N], delta = t < 0 ? 0.0f : delta_TN[t * N + b % N];
            memset(s, 0, (size_t)first * sizeof(REAL));
            memset(d, 0, (size_t)first * sizeof(REAL));
            if (cap > 0.0f) {
#pragma omp simd
                for (int64_t i = first; i < end; i++) {
                    float share = hyperbolic(LOAD(s[i]) * inverse);
                    float weight = exponential(cap * share - norm);
                    s[i] = STORE(weight);
                    d[i] = STORE(weight * (LOAD(d[i]) - delta) * (1.0f - share * share) * scale);
                }
            } else {
#pragma omp simd
                for (int64_t i = first; i < end; i++) {
                    float weight = exponential(LOAD(s[i]) * scale - norm);
                    s[i] = STORE(weight);
                    d[i] = STORE(weight * (LOAD(d[i]) - delta) * scale);
                }
            }
            memset(s + end, 0, (size_t)(R - end) * sizeof(REAL));
            memset(d + end, 0, (size_t)(R - end) * sizeof(REAL));
        }
}

/* One new query per row and head over that row's own past: keys (B, K, any length, D) and values (B, K, any length, E),
 * those from firsts_B (none where null: from the first) up to lengths_B count. Heads that share keys read them once.
 * A cap above zero makes scores cap tanh(score / cap). out (B, N, E), lse (B, N) for whoever merges another part. */
void NAMED(attend_past)(const REAL *restrict query, const REAL *restrict keys, const REAL *restrict values,
                        const int64_t *restrict firsts_B, const int64_t *restrict lengths_B, REAL *restrict out,
                        float *restrict lse_BN, int64_t B, int64_t N, int64_t K, int64_t D, int64_t E, int64_t key_B,
                        int64_t key_K, int64_t value_B, int64_t value_K, float scale, float cap) {
    int64_t G = N / K;
#pragma omp parallel for schedule(static) if (B * N * D > SMALL / 4)
    for (int64_t pair = 0; pair < B * K; pair++) {
        int64_t b = pair / K, k = pair % K, before = firsts_B ? firsts_B[b] : 0, first = b * N + k * G;
        int64_t length = lengths_B[b] - before;
        const REAL *key = keys + b * key_B + k * key_K + before * D;
        const REAL *value = values + b * value_B + k * value_K + before * E;
        int64_t wide = D > E ? D : E;
        float *scratch = malloc((size_t)(G * (length + D + E) + wide) * sizeof(float));
        float *weights = scratch, *asked = weights + G * length, *row = asked + G * D, *found = row + wide;
        for (int64_t i = 0; i < G * D; i++) asked[i] = LOAD(query[first * D + i]) * scale;
        for (int64_t i = 0; i < G * E; i++) found[i] = 0.0f;
        for (int64_t l = 0; l < length; l++) {
            for (int64_t i = 0; i < D; i++) row[i] = LOAD(key[l * D + i]);
            for (int64_t g = 0; g < G; g++) {
                float score = 0.0f;
#pragma omp simd reduction(+ : score)
                for (int64_t i = 0; i < D; i++) score += asked[g * D + i] * row[i];
                weights[g * length + l] = score;
            }
        }
        if (cap > 0.0f)
            for (int64_t i = 0; i < G * length; i++) weights[i] = cap * hyperbolic(weights[i] / cap);
        for (int64_t g = 0; g < G; g++) {
            float *own = weights + g * length, peak = -INFINITY, total = 0.0f;
#pragma omp simd reduction(max : peak)
            for (int64_t l = 0; l < length; l++) peak = own[l] > peak ? own[l] : peak;
#pragma omp simd reduction(+ : total)
            for (int64_t l = 0; l < length; l++) {
                own[l] = exponential(own[l] - peak);
                total += own[l];
            }
            float share = 1.0f / total;
#pragma omp simd
            for (int64_t l = 0; l < length; l++) own[l] *= share;
            lse_BN[first + g] = peak + logf(total);
        }
        for (int64_t l = 0; l < length; l++) {
            for (int64_t i = 0; i < E; i++) row[i] = LOAD(value[l * E + i]);
            for (int64_t g = 0; g < G; g++) {
                float weight = weights[g * length + l];
#pragma omp simd
                for (int64_t i = 0; i < E; i++) found[g * E + i] += weight * row[i];
            }
        }
        for (int64_t i = 0; i < G * E; i++) out[first * E + i] = STORE(found[i]);
        free(scratch);
    }
}

#endif
