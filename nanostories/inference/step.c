// A GPT's forward pass on a CPU, for generation: model.py on a page of C. compiled.py lets `hidden`
// read tokens, each at a position of a slot of the key-value cache, and calls `logits`, `sample`.
// C channels, H heads of D. The time goes to `matmul`: a core multiplies LANES numbers at once and
// holds some dozen such vectors: weights lie BLOCK outputs side by side and serve ROWS tokens.

#include <math.h>
#include <stdint.h>
#ifdef __AVX512F__
enum { LANES = 16, ROWS = 6 };
#else
enum { LANES = 8, ROWS = 2 };
#endif
enum { VECTORS = 4, BLOCK = VECTORS * LANES, FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 };
#define INLINE static inline __attribute__((always_inline))
const int lanes = LANES;  // for compiled.py, which lays out the weights
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t vec_i32 __attribute__((vector_size(4 * LANES), aligned(4)));
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
    int n_layer, n_head, n_embd, window, tanh_gelu;  // window: of odd layers
    float attention_scale;
    const float *wte, *wpe, *turns, *ln_f;  // learned positions have wpe, rotary ones turns
    Matrix head; const Layer *layers;
} Model;

// The weights of a block for input number i of all blocks. 32 bits hold one, two or four. Each is
// moved to the top: there 16 bits are a float, and 8 bits 2^24 times the weight, as `scale` knows.
// Far ones, in memory, are asked for early: a core itself does so to the end of a page only.
INLINE void load(vec w[VECTORS], const vec_i32 *words, long i, int type, int far) {
    for (int v = 0, bits = 32 >> type; v < VECTORS; v++) {
        const vec_i32 *word = words + (i * VECTORS + v) * bits / 32;
        int below = v * bits % 32;  // bits of the weights before it
        if (far && !below) __builtin_prefetch((const char *)word + 8192);
        vec_i32 top = *word << (32 - bits - below) & (below ? ~0u << (32 - bits) : ~0u);
        w[v] = type == INT8 ? __builtin_convertvector(top, vec) : (vec)top;
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

// y (n, out) = x (n, in) W^T + b. To start other threads pays from some 30,000 products on.
static void matmul(float *y, const float *x, const Matrix *m, int n, int threads) {
#pragma omp parallel for num_threads(threads) if ((double)n * m->in * m->out > 3e4)
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
    return p * (union { int32_t bits; float value; }){(n + 127) << 23}.value;
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
static void rope(float *restrict x, const float *restrict turn, int half) {
    for (int c = 0; c < half; c++) {
        float a = x[c], b = x[half + c];
        x[c] = a * turn[c] - b * turn[half + c];
        x[half + c] = b * turn[c] + a * turn[half + c];
    }
}

// One head's out (D) of a query q (D) over the keys and values of tokens `start` to `end`, LANES of
// them in a vector; those of LANES tokens lie C vectors after those of the LANES before.
static void attend(float *restrict out, const float *q, const vec *keys, const vec *values,
                   int start, int end, long C, int D, float scale) {
    const int first = start / LANES, last = (end - 1) / LANES;
    vec weights[last + 1];
    float *p = (float *)weights, top = -3e38f, total = 0;
    for (long b = first; b <= last; b++) {
        vec score = {0};
        for (int c = 0; c < D; c++) __builtin_prefetch(values + b * C + c);
        for (int c = 0; c < D; c++) score += scale * q[c] * keys[b * C + c];
        weights[b] = score;
    }
    for (int t = start; t < end; t++) top = p[t] > top ? p[t] : top;
    for (int t = start; t < end; t++) total += p[t] = exponential(p[t] - top);
    for (int t = first * LANES; t < (last + 1) * LANES; t++) p[t] *= t >= start && t < end;
    for (int c = 0; c < D; c++) {
        vec sum = {0};
        for (long b = first; b <= last; b++) sum += weights[b] * values[b * C + c];
        out[c] = 0;
        for (int l = 0; l < LANES; l++) out[c] += sum[l] / total;
    }
}

// Reads n tokens and caches their keys and values; x (n, C) is the last layer's output. Tokens of
// a slot come in order. cache: (n_layer, 2, batch, T / LANES, C, LANES). work: (n, 5, C).
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
            long t = positions[r], at = slots[r] * C * T + t / LANES * C * LANES + t % LANES;
            for (int k = 0; m->turns && k < 2 * H; k++) rope(qkv + k * D, m->turns + t * D, D / 2);
            for (int c = 0; c < C; c++) keys[at + c * LANES] = qkv[C + c];
            for (int c = 0; c < C; c++) values[at + c * LANES] = qkv[2 * C + c];
        }
#pragma omp parallel for num_threads(threads) if (2.0 * n * C * positions[n - 1] > 3e4)
        for (int k = 0; k < n * H; k++) {
            long r = k / H, first = k % H * D, at = slots[r] * C * T + first * LANES;
            int end = positions[r] + 1, start = i % 2 && end > m->window ? end - m->window : 0;
            attend(h + r * C + first, wide + 3 * r * C + first, (vec *)(keys + at),
                   (vec *)(values + at), start, end, C, D, m->attention_scale);
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
        float top = scores[0];
        double total = 0, sum = 0;
        int64_t i = 0;
        for (int j = 0; j < V; j++) top = scores[j] > top ? scores[j] : top;
        for (int j = 0; j < V; j++) total += p[j] = exponential((scores[j] - top) / temperature);
        if (temperature < 1e-5f) while (scores[i] < top) i++;
        else while (i < V - 1 && (sum += p[i]) <= noise[(long)r * T + positions[r]] * total) i++;
        tokens[r] = i;
    }
    return 1;
}
