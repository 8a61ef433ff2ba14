/* Kernels on a few numbers per tensor or channel, each of which would be ten or more operations in torch. */
#include "kernels.h"

INLINE float scale_of(float width) { return width == 0.0f ? 1.0f : width; }

INLINE void store_qparams(float low, float high, float quant_max, int symmetric, float *qparams) {
    float zero_point = (quant_max + 1.0f) / 2.0f;
    if (symmetric) {
        qparams[0] = scale_of((high > -low ? high : -low) / (zero_point - 1.0f));
    } else {
        qparams[0] = scale_of((high - low) / quant_max);
        zero_point = clamped(__builtin_rintf(-low / qparams[0]), (Clamp){0.0f, quant_max});
    }
    qparams[1] = zero_point;
    qparams[2] = quant_max;
}

INLINE float moved(float from, float to, float weight) {
    return weight < 0.5f ? from + weight * (to - from) : to - (to - from) * (1.0f - weight);
}

/* A moving average of ranges; the weight of a new range is 1 / number of ranges, but at least `momentum`. */
typedef struct {
    float *low, *high;
    i64 *batches;
    float momentum;
} Average;

/* Range including 0, quantization parameters of the tensor and those of scheduled layers, 8 values; the average, if any,
 * is updated. */
EXPORT Status cpt_observe(const float *low, const float *high, const Average *average, const float *own,
                        const float *scheduled, float own_min, int symmetric, float *out, int threads) {
    float bottom = *low > 0.0f ? 0.0f : *low, top = *high < 0.0f ? 0.0f : *high;
    if (average) {
        float weight = 1.0f / (float)(++*average->batches);
        weight = weight < average->momentum ? average->momentum : weight;
        *average->low = moved(*average->low, bottom, weight);
        *average->high = moved(*average->high, top, weight);
    }
    out[0] = bottom;
    out[1] = top;
    store_qparams(bottom, top, *own < own_min ? own_min : *own, symmetric, out + 2);
    store_qparams(bottom, top, *scheduled, symmetric, out + 5);
    return OK;
}

/* The quantization step of a gradient, from its range including 0. */
EXPORT Status cpt_gradient_step(const float *low, const float *high, const float *quant_max, float *step, int threads) {
    float bottom = *low > 0.0f ? 0.0f : *low, top = *high < 0.0f ? 0.0f : *high;
    *step = scale_of((top - bottom) / (*quant_max - 1.0f));
    return OK;
}

/* Statistics of a layer's integer sums, per channel. */
typedef struct {
    const float *mean, *variance, *low, *high;
} Statistics;

/* A BatchNorm, whose running averages are updated; without one, `weight` is null. */
typedef struct {
    const float *weight, *bias;
    float *running_mean, *running_variance;
    i64 *batches;
    float momentum, eps;
} BatchNorm;

/* Normalisation of a layer's sums (factor, offset, mean, gain, deviation: out[5 * channels]), and the range of its
 * output after the clamp. A unit of the sums has the real value `input` * `scales`; `constant` is the layer's bias or
 * null. */
EXPORT Status cpt_normalise(const Statistics *sums, const float *input, const float *scales, const float *constant,
                          const BatchNorm *norm, Clamp clamp, i64 count, i64 channels, float *out, float *range,
                          int threads) {
    if (channels == 0) return EMPTY;
    float *factor = out, *offset = out + channels, *mean = offset + channels, *gain = mean + channels,
          *deviation = gain + channels;
    float low = INFINITY, high = -INFINITY, bad = 0.0f;
    float correction = (float)((double)count / (double)(count > 1 ? count - 1 : 1));
    if (norm->weight) ++*norm->batches;
    for (i64 c = 0; c < channels; c++) {
        float unit = *input * scales[c], shift = constant ? constant[c] : 0.0f;
        mean[c] = sums->mean[c];
        if (norm->weight) {
            float real = mean[c] * unit, variance = sums->variance[c] * (unit * unit);
            float inverse = 1.0f / sqrtf(variance + norm->eps);
            norm->running_mean[c] = moved(norm->running_mean[c], real + shift, norm->momentum);
            norm->running_variance[c] = moved(norm->running_variance[c], variance * correction, norm->momentum);
            gain[c] = norm->weight[c] * inverse;
            offset[c] = norm->bias[c] - real * gain[c]; /* BatchNorm cancels the layer's bias */
            factor[c] = gain[c] * unit;
            deviation[c] = inverse * unit;
        } else {
            factor[c] = unit;
            offset[c] = shift;
            gain[c] = 1.0f;
            deviation[c] = 0.0f;
        }
        float ends[2] = {clamped(sums->low[c] * factor[c] + offset[c], clamp),
                         clamped(sums->high[c] * factor[c] + offset[c], clamp)};
        for (int i = 0; i < 2; i++) {
            low = ends[i] < low ? ends[i] : low;
            high = ends[i] > high ? ends[i] : high;
            bad = ends[i] != ends[i] ? ends[i] : bad;
        }
    }
    range[0] = low + bad;
    range[1] = high + bad;
    return OK;
}

/* The gradient through BatchNorm: q, r, and the gradient of its weight, out[3 * channels]; p is `gain`. Derived in
 * `terms` of parameters.py. */
EXPORT Status cpt_normalisation_terms(const float *mean, const float *gain, const float *deviation, const float *passed,
                                    const float *products, i64 count, i64 channels, float *out, int threads) {
    float number = -(float)count;
    for (i64 c = 0; c < channels; c++) {
        float grad_weight = products[c] * deviation[c], q = gain[c] * deviation[c] * grad_weight / number;
        out[c] = q;
        out[channels + c] = gain[c] * passed[c] / number - q * mean[c];
        out[2 * channels + c] = grad_weight;
    }
    return OK;
}
