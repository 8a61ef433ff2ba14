/* Element-wise kernels, independent of channels, and kernels on weights. */
#include "kernels.h"

static void range_part(const float *x, i64 from, i64 to, float *result) {
#define VALUE(k) x[k]
    RANGE_LOOP(VALUE)
#undef VALUE
}

/* range[0], range[1]: min and max of x; NaN if a value is NaN. */
EXPORT Status cpt_range(const float *x, i64 n, float *range, int threads) {
    if (n == 0) return EMPTY;
    i64 chunks = (n + CHUNK - 1) / CHUNK;
    float *pairs = floats(2 * chunks);
    if (!pairs) return OUT_OF_MEMORY;
    PARALLEL
    for (i64 k = 0; k < chunks; k++) range_part(x, k * CHUNK, smaller(n, (k + 1) * CHUNK), pairs + 2 * k);
    merge(pairs, chunks, range);
    free(pairs);
    return OK;
}

EXPORT Status cpt_quantize(const float *x, i64 n, QParams qparams, uint8_t *codes, int threads) {
    PARALLEL
    for (i64 i = 0; i < n; i++) codes[i] = code_of(x[i], qparams);
    return OK;
}

EXPORT Status cpt_requantize(const uint8_t *x, i64 n, QParams from, QParams to, uint8_t *codes, int threads) {
    PARALLEL
    for (i64 i = 0; i < n; i++) codes[i] = code_of(real_of(x[i], from), to);
    return OK;
}

/* code - zero_point, which bfloat16 holds exactly. */
EXPORT Status cpt_centre(const uint8_t *codes, i64 n, float zero_point, void *out, int bf16, int threads) {
    if (bf16) {
        PARALLEL
        for (i64 i = 0; i < n; i++) store_integer(out, i, (float)codes[i] - zero_point, 1);
    } else {
        PARALLEL
        for (i64 i = 0; i < n; i++) store_integer(out, i, (float)codes[i] - zero_point, 0);
    }
    return OK;
}

EXPORT Status cpt_dequantize(const uint8_t *codes, i64 n, QParams qparams, float *out, int threads) {
    PARALLEL
    for (i64 i = 0; i < n; i++) out[i] = real_of(codes[i], qparams);
    return OK;
}

/* --- weights: outputs x inputs, quantized symmetrically per output ---------------------------------------------- */

/* The max quantized value of output o is quant_max[o * stride]: per output, or with stride 0 one for all. */
EXPORT Status cpt_quantize_weight(const float *w, i64 outputs, i64 inputs, const float *quant_max, i64 stride,
                                int8_t *codes, float *scales, int threads) {
    if (outputs == 0 || inputs == 0) return EMPTY;
    PARALLEL
    for (i64 o = 0; o < outputs; o++) {
        const float *row = w + o * inputs;
        float range[2], most = quant_max[o * stride];
        range_part(row, 0, inputs, range);
        float scale = (range[1] > -range[0] || range[1] != range[1] ? range[1] : -range[0]) / most;
        scale = scale == 0.0f ? 1.0f : scale;
        scales[o] = scale;
        for (i64 i = 0; i < inputs; i++) {
            float code = __builtin_rintf(row[i] / scale);
            code = code < -most ? -most : code;
            code = code > most ? most : code;
            codes[o * inputs + i] = (int8_t)(int32_t)code;
        }
    }
    return OK;
}

INLINE void real_row(const int8_t *restrict row, i64 from, i64 count, float scale, void *restrict out, int bf16) {
    for (i64 i = 0; i < count; i++) store_rounded(out, from + i, (float)row[i] * scale, bf16);
}

/* code * (scale * step). */
EXPORT Status cpt_real_weight(const int8_t *codes, i64 outputs, i64 inputs, const float *scales, const float *step,
                            void *out, int bf16, int threads) {
    PARALLEL
    for (i64 o = 0; o < outputs; o++) {
        const int8_t *row = codes + o * inputs;
        if (bf16)
            real_row(row, o * inputs, inputs, scales[o] * *step, out, 1);
        else
            real_row(row, o * inputs, inputs, scales[o] * *step, out, 0);
    }
    return OK;
}

/* --- sums of two quantized tensors, clamped ----------------------------------------------------------------------- */

static void add_range_part(const uint8_t *a, const uint8_t *b, QParams ga, QParams gb, Clamp clamp, i64 from,
                           i64 to, float *result) {
#define VALUE(k) clamped(real_of(a[k], ga) + real_of(b[k], gb), clamp)
    RANGE_LOOP(VALUE)
#undef VALUE
}

EXPORT Status cpt_add_range(const uint8_t *a, const uint8_t *b, i64 n, QParams ga, QParams gb, Clamp clamp,
                          float *range, int threads) {
    if (n == 0) return EMPTY;
    i64 chunks = (n + CHUNK - 1) / CHUNK;
    float *pairs = floats(2 * chunks);
    if (!pairs) return OUT_OF_MEMORY;
    PARALLEL
    for (i64 k = 0; k < chunks; k++)
        add_range_part(a, b, ga, gb, clamp, k * CHUNK, smaller(n, (k + 1) * CHUNK), pairs + 2 * k);
    merge(pairs, chunks, range);
    free(pairs);
    return OK;
}

/* Quantized values of the clamped sum, and a bit for each element that the clamp did not change: bit i % 8 of
 * passed[i / 8]. */
EXPORT Status cpt_add_quantize(const uint8_t *a, const uint8_t *b, i64 n, QParams ga, QParams gb, Clamp clamp,
                             QParams qparams, uint8_t *codes, uint8_t *passed, int threads) {
    i64 chunks = (n + CHUNK - 1) / CHUNK;
    PARALLEL
    for (i64 k = 0; k < chunks; k++) {
        uint8_t inside[CHUNK + 8] = {0};
        i64 from = k * CHUNK, count = smaller(n - from, CHUNK);
        for (i64 i = 0; i < count; i++) {
            float z = real_of(a[from + i], ga) + real_of(b[from + i], gb);
            inside[i] = (uint8_t)((z > clamp.low) & (z < clamp.high));
            codes[from + i] = code_of(clamped(z, clamp), qparams);
        }
        for (i64 j = 0; j < (count + 7) / 8; j++) {
            uint64_t eight;
            memcpy(&eight, inside + 8 * j, 8);
            /* Gather the lowest bit of each byte; that of the first byte becomes bit 0. */
            passed[from / 8 + j] = (uint8_t)((eight * 0x0102040810204080ull) >> 56);
        }
    }
    return OK;
}

INLINE void mask_part(const void *restrict g, const uint8_t *restrict inside, i64 from, i64 count, void *restrict out,
                      int bf16) {
    for (i64 i = 0; i < count; i++)
        if (bf16)
            ((uint16_t *)out)[from + i] = inside[i] ? ((const uint16_t *)g)[from + i] : 0;
        else
            ((float *)out)[from + i] = inside[i] ? ((const float *)g)[from + i] : 0.0f;
}

/* The gradient where the clamp did not change the value, else 0. */
EXPORT Status cpt_mask(const void *g, const uint8_t *passed, i64 n, void *out, int bf16, int threads) {
    i64 chunks = (n + CHUNK - 1) / CHUNK;
    PARALLEL
    for (i64 k = 0; k < chunks; k++) {
        uint8_t inside[CHUNK + 8];
        i64 from = k * CHUNK, count = smaller(n - from, CHUNK);
        for (i64 j = 0; j < (count + 7) / 8; j++) {
            uint64_t eight = (passed[from / 8 + j] * 0x0101010101010101ull) & 0x8040201008040201ull;
            memcpy(inside + 8 * j, &eight, 8);
        }
        if (bf16)
            mask_part(g, inside, from, count, out, 1);
        else
            mask_part(g, inside, from, count, out, 0);
    }
    return OK;
}

/* --- the gradient of a tensor outside of fused layers ------------------------------------------------------------ */

/* floor(g / step + noise) * step. */
EXPORT Status cpt_round_gradient(const float *g, i64 n, float step, uint32_t seed, float *out, int threads) {
    PARALLEL
    for (i64 i = 0; i < n; i++) out[i] = __builtin_floorf(noise((uint32_t)i, seed) + g[i] / step) * step;
    return OK;
}

/* --- selection of the object for this processor -------------------------------------------------------------------- */

/* The instruction set of this processor: 0: no extension, 1: AVX2, 2: AVX-512 (F, BW, DQ, VL). */
EXPORT int cpt_instruction_level(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

/* The digest of the sources, so that an outdated object is not used. */
EXPORT const char *cpt_sources(void) { return CPT_SOURCES; }
