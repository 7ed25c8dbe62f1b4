// A GPT's forward pass on a CPU, for generation: model.py on a page of C. compiled.py builds it and
// calls `hidden`, which reads tokens, each at a position of a slot of the key-value cache, `logits`,
// the head, and `sample`, which draws the next tokens. Vectors are float, matrices have 32, 16 or 8
// bits a weight. C channels, H heads of D. The time goes into `matmul`: a core multiplies LANES
// numbers at once and holds some dozen such vectors, so weights lie as they are read, BLOCK outputs
// side by side, and serve ROWS tokens.

#include <math.h>
#include <stdint.h>
#ifdef __AVX512F__
enum { LANES = 16, ROWS = 6 };
#else
enum { LANES = 8, ROWS = 2 };
#endif
enum { VECTORS = 4, BLOCK = VECTORS * LANES, FLOAT32 = 0, BFLOAT16, INT8 };
#define INLINE static inline __attribute__((always_inline))
const int lanes = LANES;  // for compiled.py, which lays out the weights
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t vec_i32 __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t vec_u16 __attribute__((vector_size(2 * LANES), aligned(2)));
typedef struct {
    const void *weight;         // (out / BLOCK, rounded up; in; BLOCK), of `type`
    const float *bias, *scale;  // (out), or NULL; scale: of 8-bit weights, one for each output
    int in, out, type;
} Matrix;
typedef struct {
    const float *ln_1, *ln_2;  // gains (C), then biases (C)
    Matrix c_attn, attn_proj, c_fc, mlp_proj;
} Layer;
typedef struct {
    int n_layer, n_head, n_embd, window, tanh_gelu;  // window: of odd layers, 0: they see all
    float attention_scale;
    const float *wte, *wpe, *turns, *ln_f;  // learned positions have wpe, rotary ones turns
    Matrix head; const Layer *layers;
} Model;

// The weights of a block for input number i of all blocks. Those that are far, in memory, are asked
// for early: a core's own prefetching ends with each page.
INLINE void load(vec w[VECTORS], const void *weight, long i, int type, int far) {
    vec_i32 bytes = type == INT8 ? ((const vec_i32 *)weight)[i] : (vec_i32){0};  // 4 a lane
    for (int v = 0; v < VECTORS; v++) {
        long at = i * VECTORS + v, size = 4 >> type;  // of a weight in bytes: 4, 2, 1
        if (far && v * size % 4 == 0) __builtin_prefetch((char *)weight + at * LANES * size + 8192);
        if (type == FLOAT32) w[v] = ((const vec *)weight)[at];
        if (type == BFLOAT16)  // the upper half of a float
            w[v] = (vec)(__builtin_convertvector(((const vec_u16 *)weight)[at], vec_i32) << 16);
        if (type == INT8) w[v] = __builtin_convertvector(bytes << (24 - 8 * v) >> 24, vec);
    }
}

// One block of y (rows, out) = x (rows, in) W^T + b. Where it is inlined, rows and type are known.
INLINE void block(float *y, const float *x, const Matrix *m, int first, int rows, int type) {
    vec sums[ROWS][VECTORS] = {0}, w[VECTORS];
    const int far = rows == 1 && (long)m->in * m->out > 1 << 19;  // more than a core caches
    for (long i = 0; i < m->in; i++) {
        load(w, m->weight, (long)first / BLOCK * m->in + i, type, far);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < VECTORS; v++) sums[r][v] += w[v] * x[r * m->in + i];
    }
    int end = m->out - first < BLOCK ? m->out - first : BLOCK;
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < end; o++)
            y[(long)r * m->out + first + o] = ((float *)sums[r])[o]
                * (m->scale ? m->scale[first + o] : 1) + (m->bias ? m->bias[first + o] : 0);
}

// y (n, out) = x (n, in) W^T + b. To start other threads pays from some 100,000 products on.
static void matmul(float *y, const float *x, const Matrix *m, int n, int threads) {
#pragma omp parallel for num_threads(threads) if ((double)n * m->in * m->out > 1e5)
    for (int first = 0; first < m->out; first += BLOCK)
        for (long r = 0, rows; r < n; r += rows) {
            rows = n - r < ROWS ? 1 : ROWS;
#define OF_ROWS(k, t) block(y + r * m->out, x + r * m->in, m, first, k, t)
#define OF_TYPE(t) if (m->type == t) rows == 1 ? OF_ROWS(1, t) : OF_ROWS(ROWS, t)
            OF_TYPE(FLOAT32); OF_TYPE(BFLOAT16); OF_TYPE(INT8);
        }
}

// e^x to 2e-7 of it, written so that the compiler computes LANES of them at once: 2^n e^r.
static inline float exponential(float x) {
    x = x < -87 ? -87 : x > 88 ? 88 : x;
    int n = (int)(x * 1.44269504f + (x < 0 ? -0.5f : 0.5f));
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;  // |r| < 0.35; the two are ln 2
    float p = 1 + r * (1 + r * (0.5f + r * (0.16666667f + r * (0.041666634f
        + r * (0.0083334f + r * 0.0013916f)))));
    union { int32_t bits; float value; } power = {(n + 127) << 23};
    return p * power.value;
}

static void layer_norm(float *restrict y, const float *restrict x, const float *gain, long C) {
    float mean = 0, variance = 0;
    for (int c = 0; c < C; c++) mean += x[c] / C;
    for (int c = 0; c < C; c++) variance += (x[c] - mean) * (x[c] - mean) / C;
    float factor = 1 / sqrtf(variance + 1e-5f);
    for (int c = 0; c < C; c++) y[c] = (x[c] - mean) * factor * gain[c] + gain[C + c];
}

static void gelu(float *x, long count, int tanh_gelu) {
    for (long i = 0; tanh_gelu && i < count; i++)
        x[i] /= 1 + exponential(-1.59576912f * (x[i] + 0.044715f * x[i] * x[i] * x[i]));
    for (long i = 0; !tanh_gelu && i < count; i++) {  // Abramowitz & Stegun 7.1.26, to 1.5e-7
        float z = fabsf(x[i]) * 0.70710678f, t = 1 / (1 + 0.3275911f * z);
        float beyond = 0.5f * exponential(-z * z) * t * (0.254829592f + t * (-0.284496736f
            + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
        x[i] *= x[i] < 0 ? beyond : 1 - beyond;  // the probability of a number below x
    }
}

// A query or key (2, half), turned by the cosines and sines (2, half) of its position.
static void rotate(float *restrict x, const float *restrict turn, int half) {
    for (int c = 0; c < half; c++) {
        float a = x[c], b = x[half + c], cosine = turn[c], sine = turn[half + c];
        x[c] = a * cosine - b * sine;
        x[half + c] = b * cosine + a * sine;
    }
}

// One head: a query q (D) over keys and values (D, T), from column `start` to `end`; out (D).
static void attend(float *restrict out, const float *q, const float *keys, const float *values,
                   int start, int end, int T, int D, float scale) {
    float p[end], highest = -3e38f, total = 0;
    for (int t = start; t < end; t++) p[t] = 0;
    for (long c = 0; c < D; c++)  // the inner loops run over tokens, which lie side by side
        for (int t = start; t < end; t++) p[t] += scale * q[c] * keys[c * T + t];
    for (int t = start; t < end; t++) highest = p[t] > highest ? p[t] : highest;
    for (int t = start; t < end; t++) total += p[t] = exponential(p[t] - highest);
    for (long c = 0; c < D; c++) {
        float sum = 0;
        for (int t = start; t < end; t++) sum += p[t] * values[c * T + t];
        out[c] = sum / total;
    }
}

// Reads n tokens and caches their keys and values; x (n, C) is the last layer's output. Tokens of
// one slot may come together, in order. cache: (n_layer, 2, batch, H, D, T). work: (n, 5, C).
void hidden(const Model *m, float *cache, int batch, int T, int n, const int64_t *tokens,
            const int64_t *slots, const int64_t *positions, float *x, float *work, int threads) {
    const long C = m->n_embd, H = m->n_head, D = C / H;
    float *h = work, *wide = work + n * C;
    for (long r = 0; r < n; r++)
        for (int c = 0; c < C; c++)
            x[r * C + c] = m->wte[tokens[r] * C + c] + (m->wpe ? m->wpe[positions[r] * C + c] : 0);
    for (int i = 0; i < m->n_layer; i++) {
        const Layer *layer = m->layers + i;
        float *keys = cache + 2L * i * batch * C * T, *values = keys + (long)batch * C * T;
        for (int r = 0; r < n; r++) layer_norm(h + r * C, x + r * C, layer->ln_1, C);
        matmul(wide, h, &layer->c_attn, n, threads);  // (n, 3, H, D)
        for (int r = 0; r < n; r++) {
            float *qkv = wide + 3 * r * C;
            long at = slots[r] * C * T + positions[r];
            for (int k = 0; m->turns && k < 2 * H; k++)
                rotate(qkv + k * D, m->turns + positions[r] * D, D / 2);
            for (int c = 0; c < C; c++) keys[at + c * T] = qkv[C + c];
            for (int c = 0; c < C; c++) values[at + c * T] = qkv[2 * C + c];
        }
#pragma omp parallel for num_threads(threads) if (n * C > 4096)
        for (int k = 0; k < n * H; k++) {
            long r = k / H, first = k % H * D, at = (slots[r] * C + first) * T;
            int end = positions[r] + 1, window = i % 2 ? m->window : 0;
            int start = window && end > window ? end - window : 0;
            attend(h + r * C + first, wide + 3 * r * C + first, keys + at, values + at, start, end,
                   T, D, m->attention_scale);
        }
        matmul(wide, h, &layer->attn_proj, n, threads);
        for (long j = 0; j < n * C; j++) x[j] += wide[j];
        for (int r = 0; r < n; r++) layer_norm(h + r * C, x + r * C, layer->ln_2, C);
        matmul(wide, h, &layer->c_fc, n, threads);  // (n, 4 C)
        gelu(wide, 4 * n * C, m->tanh_gelu);
        matmul(h, wide, &layer->mlp_proj, n, threads);
        for (long j = 0; j < n * C; j++) x[j] += h[j];
    }
}

// scores (n, vocab_size) of what `hidden` gave. work: (n, C).
void logits(const Model *m, const float *x, int n, float *scores, float *work, int threads) {
    const long C = m->n_embd;
    for (int r = 0; r < n; r++) layer_norm(work + r * C, x + r * C, m->ln_f, C);
    matmul(scores, work, &m->head, n, threads);
}

// One token for each row of scores (n, V), as sampling.py's `sample_token`; noise: (n, T), of which
// the column of its position is taken. p: (V). Returns 0 where a row is nan or infinite.
int sample(const float *scores, int n, int V, float temperature, const float *noise, int T,
           const int64_t *positions, float *p, int64_t *tokens) {
    for (int r = 0; r < n; r++, scores += V) {
        union { float value; uint32_t bits; } first = {scores[0]};
        if ((first.bits & 0x7f800000) == 0x7f800000) return 0;
        float highest = scores[0];
        double total = 0, sum = 0;
        int64_t i = 0;
        for (int j = 0; j < V; j++) highest = scores[j] > highest ? scores[j] : highest;
        for (int j = 0; j < V; j++) p[j] = exponential((scores[j] - highest) / temperature);
        for (int j = 0; j < V; j++) total += p[j];
        if (temperature < 1e-5f) while (scores[i] < highest) i++;
        else while (i < V - 1 && (sum += p[i]) <= noise[(long)r * T + positions[r]] * total) i++;
        tokens[r] = i;
    }
    return 1;
}
