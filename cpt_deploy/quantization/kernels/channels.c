/* Kernels on rows x channels, channels innermost: normalise, clamp and quantize a layer's output, and the backward. */
#include "kernels.h"

#define LEAST_PERIOD 512

static i64 period_of(i64 channels) { return channels * ((LEAST_PERIOD + channels - 1) / channels); }

/* Per-channel values repeated over a period, or null if out of memory. */
static float *repeated(const float *values, i64 channels, i64 period) {
    float *result = floats(period);
    for (i64 i = 0; result && i < period; i++) result[i] = values[i % channels];
    return result;
}

static i64 chunk_of(i64 period) { return period * ((CHUNK + period - 1) / period); }

typedef struct {
    i64 n, channels, period, chunk, chunks;
} Plan;

static Plan plan(i64 rows, i64 channels) {
    Plan p = {.n = rows * channels, .channels = channels, .period = period_of(channels)};
    p.chunk = chunk_of(p.period);
    p.chunks = (p.n + p.chunk - 1) / p.chunk;
    return p;
}

static void statistics_block(const float *restrict x, const float *restrict shift, i64 count, float *restrict sum,
                             float *restrict square, float *restrict low, float *restrict high) {
    for (i64 j = 0; j < count; j++) {
        float v = x[j], d = v - shift[j];
        sum[j] += d;
        square[j] += d * d;
        low[j] = v < low[j] ? v : low[j];
        high[j] = v > high[j] ? v : high[j];
    }
}

/* Per channel: mean, variance, min and max of x, from sums of x - x[row 0] and of its square in double. */
EXPORT Status cpt_statistics(const float *x, i64 rows, i64 channels, float *mean, float *variance, float *lowest,
                           float *highest, int threads) {
    if (rows == 0 || channels == 0) return EMPTY;
    Plan p = plan(rows, channels);
    double *sums = calloc((size_t)(2 * channels), sizeof(double));
    float *shift = repeated(x, channels, p.period);
    float *parts = floats(4 * p.period * p.chunks);
    Status status = sums && shift && parts ? OK : OUT_OF_MEMORY;
    if (status != OK) goto done;
    PARALLEL
    for (i64 k = 0; k < p.chunks; k++) {
        float *sum = parts + 4 * k * p.period, *square = sum + p.period, *low = square + p.period,
              *high = low + p.period;
        for (i64 j = 0; j < p.period; j++) sum[j] = square[j] = 0.0f, low[j] = INFINITY, high[j] = -INFINITY;
        for (i64 base = k * p.chunk; base < smaller(p.n, (k + 1) * p.chunk); base += p.period) {
            statistics_block(x + base, shift, smaller(p.period, p.n - base), sum, square, low, high);
        }
    }
    for (i64 c = 0; c < channels; c++) lowest[c] = INFINITY, highest[c] = -INFINITY;
    for (i64 k = 0; k < p.chunks; k++) {
        const float *sum = parts + 4 * k * p.period;
        for (i64 j = 0; j < p.period; j++) {
            i64 c = j % channels;
            float low = sum[2 * p.period + j], high = sum[3 * p.period + j];
            sums[c] += sum[j];
            sums[channels + c] += sum[p.period + j];
            lowest[c] = low < lowest[c] ? low : lowest[c];
            highest[c] = high > highest[c] ? high : highest[c];
        }
    }
    for (i64 c = 0; c < channels; c++) {
        double about = sums[c] / (double)rows, square = sums[channels + c] / (double)rows - about * about;
        mean[c] = (float)(about + x[c]);
        variance[c] = square < 0.0 ? 0.0f : (float)square;
    }
done:
    free(sums);
    free(parts);
    free(shift);
    return status;
}

/* Quantized values of clamp(x * factor + offset), factor and offset per channel. */
EXPORT Status cpt_affine_quantize(const float *x, i64 rows, i64 channels, const float *factor, const float *offset,
                                Clamp clamp, QParams qparams, uint8_t *codes, int threads) {
    if (rows == 0 || channels == 0) return OK;
    Plan p = plan(rows, channels);
    float *a = repeated(factor, channels, p.period), *b = repeated(offset, channels, p.period);
    Status status = a && b ? OK : OUT_OF_MEMORY;
    if (status != OK) goto done;
    PARALLEL
    for (i64 k = 0; k < p.chunks; k++)
        for (i64 base = k * p.chunk; base < smaller(p.n, (k + 1) * p.chunk); base += p.period) {
            i64 count = smaller(p.period, p.n - base);
            const float *block = x + base;
            uint8_t *out = codes + base;
            for (i64 j = 0; j < count; j++) out[j] = code_of(clamped(block[j] * a[j] + b[j], clamp), qparams);
        }
done:
    free(a);
    free(b);
    return status;
}

/* (x + shift) * factor + offset of 32-bit sums x; shift, factor and offset per channel. */
EXPORT Status cpt_scale_sums(const int32_t *x, i64 rows, i64 channels, const int32_t *shift, const float *factor,
                           const float *offset, float *out, int threads) {
    PARALLEL
    for (i64 r = 0; r < rows; r++)
        for (i64 c = 0; c < channels; c++)
            out[r * channels + c] = (float)(x[r * channels + c] + shift[c]) * factor[c] + offset[c];
    return OK;
}

/* Operands of the backward kernels: the gradient g of clamp(x * factor + offset), and x, the layer's integer sums. */
typedef struct {
    const void *g;
    const float *x;
    const float *factor, *offset;
    Clamp clamp;
    i64 rows, channels;
} OutputGradient;

INLINE float passed_gradient(const void *g, i64 i, float x, float a, float b, Clamp clamp, int bf16) {
    float z = x * a + b, v = load(g, i, bf16);
    return (z > clamp.low) & (z < clamp.high) ? v : 0.0f;
}

INLINE void sums_part(const OutputGradient *s, i64 from, i64 end, i64 period, const float *restrict a,
                      const float *restrict b, const float *restrict shift, float *restrict sum, float *restrict product, int bf16) {
    for (i64 base = from; base < end; base += period) {
        i64 count = smaller(period, end - base);
        const float *restrict x = s->x + base;
        for (i64 j = 0; j < count; j++) {
            float v = passed_gradient(s->g, base + j, x[j], a[j], b[j], s->clamp, bf16);
            sum[j] += v;
            product[j] += v * (x[j] - shift[j]);
        }
    }
}

/* Per channel: the sum of the gradient passed by the clamp, and of its product with x - mean.
 *
 * Here and below the types are constants within the parallel loop, which compilers outline as a function of its own: a
 * loop that tests the types at each element is not vectorised. */
EXPORT Status cpt_gradient_sums(const OutputGradient *s, const float *mean, float *passed, float *products,
                                int bf16, int threads) {
    if (s->rows == 0 || s->channels == 0) return EMPTY;
    Plan p = plan(s->rows, s->channels);
    double *sums = calloc((size_t)(2 * s->channels), sizeof(double));
    float *a = repeated(s->factor, s->channels, p.period), *b = repeated(s->offset, s->channels, p.period);
    float *shift = repeated(s->x, s->channels, p.period);
    float *parts = floats(2 * p.period * p.chunks);
    Status status = sums && a && b && shift && parts ? OK : OUT_OF_MEMORY;
    if (status != OK) goto done;
    PARALLEL
    for (i64 k = 0; k < p.chunks; k++) {
        float *sum = parts + 2 * k * p.period, *product = sum + p.period;
        i64 base = k * p.chunk, end = smaller(p.n, (k + 1) * p.chunk);
        for (i64 j = 0; j < p.period; j++) sum[j] = product[j] = 0.0f;
        if (bf16)
            sums_part(s, base, end, p.period, a, b, shift, sum, product, 1);
        else
            sums_part(s, base, end, p.period, a, b, shift, sum, product, 0);
    }
    for (i64 k = 0; k < p.chunks; k++)
        for (i64 j = 0; j < p.period; j++) {
            sums[j % s->channels] += parts[2 * k * p.period + j];
            sums[s->channels + j % s->channels] += parts[(2 * k + 1) * p.period + j];
        }
    for (i64 c = 0; c < s->channels; c++) { /* the products were of x - x[row 0] */
        passed[c] = (float)sums[c];
        products[c] = (float)(sums[s->channels + c] - (double)(mean[c] - s->x[c]) * sums[c]);
    }
done:
    free(sums);
    free(parts);
    free(shift);
    free(a);
    free(b);
    return status;
}

/* The gradient of the layer's output is passed * p + x * q + r, per channel; derived in `terms` of parameters.py. */
typedef struct {
    const float *p, *q, *r;
} Terms;

typedef struct {
    float *a, *b, *p, *q, *r;
} Repeated;

static Repeated repeat_all(const OutputGradient *s, const Terms *t, i64 period) {
    i64 c = s->channels;
    return (Repeated){repeated(s->factor, c, period), repeated(s->offset, c, period), repeated(t->p, c, period),
                      repeated(t->q, c, period), repeated(t->r, c, period)};
}

static int all_there(Repeated v) { return v.a && v.b && v.p && v.q && v.r; }

static void free_all(Repeated v) {
    free(v.a);
    free(v.b);
    free(v.p);
    free(v.q);
    free(v.r);
}

INLINE float gradient_at(const OutputGradient *s, i64 base, i64 j, Repeated v, int bf16) {
    float x = s->x[base + j];
    return passed_gradient(s->g, base + j, x, v.a[j], v.b[j], s->clamp, bf16) * v.p[j] + x * v.q[j] + v.r[j];
}

INLINE void gradient_range_part(const OutputGradient *s, i64 base, i64 to, Repeated all, float *result, int bf16) {
    i64 from = 0;
#define VALUE(k) gradient_at(s, base, k, all, bf16)
    RANGE_LOOP(VALUE)
#undef VALUE
}

/* Min and max of the gradient of the layer's output. */
EXPORT Status cpt_gradient_range(const OutputGradient *s, const Terms *terms, float *range, int bf16, int threads) {
    if (s->rows == 0 || s->channels == 0) return EMPTY;
    Plan p = plan(s->rows, s->channels);
    Repeated all = repeat_all(s, terms, p.period);
    float *pairs = floats(2 * p.chunks);
    Status status = pairs && all_there(all) ? OK : OUT_OF_MEMORY;
    if (status != OK) goto done;
    PARALLEL
    for (i64 k = 0; k < p.chunks; k++) {
        float *pair = pairs + 2 * k;
        pair[0] = INFINITY;
        pair[1] = -INFINITY;
        for (i64 base = k * p.chunk; base < smaller(p.n, (k + 1) * p.chunk); base += p.period) {
            float both[4] = {pair[0], pair[1]};
            i64 count = smaller(p.period, p.n - base);
            if (bf16)
                gradient_range_part(s, base, count, all, both + 2, 1);
            else
                gradient_range_part(s, base, count, all, both + 2, 0);
            merge(both, 2, pair);
        }
    }
    merge(pairs, p.chunks, range);
done:
    free(pairs);
    free_all(all);
    return status;
}

INLINE void codes_block(const OutputGradient *s, i64 base, i64 count, Repeated v, float step, uint32_t seed,
                        void *restrict codes, int bf16, int codes_bf16) {
    for (i64 j = 0; j < count; j++) {
        float code = noise((uint32_t)(base + j), seed) + gradient_at(s, base, j, v, bf16) / step;
        store_integer(codes, base + j, __builtin_floorf(code), codes_bf16);
    }
}

/* The gradient of the layer's output in units of `step`, stochastically rounded to integers. */
EXPORT Status cpt_gradient_codes(const OutputGradient *s, const Terms *terms, float step, uint32_t seed,
                                 void *codes, int bf16, int codes_bf16, int threads) {
    if (s->rows == 0 || s->channels == 0) return OK;
    Plan p = plan(s->rows, s->channels);
    Repeated v = repeat_all(s, terms, p.period);
    Status status = all_there(v) ? OK : OUT_OF_MEMORY;
    if (status != OK) goto done;
    PARALLEL
    for (i64 k = 0; k < p.chunks; k++)
        for (i64 base = k * p.chunk; base < smaller(p.n, (k + 1) * p.chunk); base += p.period) {
            i64 count = smaller(p.period, p.n - base);
            if (bf16)
                codes_block(s, base, count, v, step, seed, codes, 1, 1);
            else if (codes_bf16)
                codes_block(s, base, count, v, step, seed, codes, 0, 1);
            else
                codes_block(s, base, count, v, step, seed, codes, 0, 0);
        }
done:
    free_all(v);
    return status;
}
