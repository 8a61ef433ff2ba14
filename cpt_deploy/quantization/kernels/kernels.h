#ifndef CPT_KERNELS_H
#define CPT_KERNELS_H
/* Kernels of quantized training on the CPU: plain C, vectorised by the compiler, one object per instruction set.
 *
 * A tensor is an array of n elements; per-channel kernels read it as rows x channels, channels innermost. Per-channel
 * parameters are repeated to a period of several hundred elements, so that inner loops are long for any channel count.
 * Arithmetic is in float32, one rounding per operation (-ffp-contract=off), and so equal to that of torch, bit for bit.
 * Work is cut into chunks independently of the number of threads, so the results do not depend on it either.
 * Kernels whose result is undefined for an empty tensor (a range, statistics) return EMPTY and write nothing.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
#define CHUNK 16384 /* elements, about */
#define GOLDEN 0x9E3779B9u
#define MIX_1 0x2C1B3C6Du
#define MIX_2 0x297A2D39u

typedef int64_t i64;

/* The return value of every kernel; `native.py` raises an error for all but OK. */
typedef enum { OK = 0, OUT_OF_MEMORY = 1, EMPTY = 2 } Status;

/* Bounds of a clamp: z becomes min(max(z, low), high). */
typedef struct {
    float low, high;
} Clamp;

/* Quantization parameters: real = (q - zero_point) * scale, with q in 0..quant_max. */
typedef struct {
    float scale, zero_point, quant_max;
} QParams;

/* Functions shared by all kernels. */
INLINE i64 smaller(i64 a, i64 b) { return a < b ? a : b; }

INLINE float clamped(float z, Clamp c) {
    z = z < c.low ? c.low : z; /* NaN compares false and stays NaN */
    return z > c.high ? c.high : z;
}

INLINE uint8_t code_of(float x, QParams g) {
    float code = __builtin_rintf(x / g.scale) + g.zero_point;
    code = code < 0.0f ? 0.0f : code;
    code = code > g.quant_max ? g.quant_max : code;
    return (uint8_t)(int32_t)code;
}

INLINE float real_of(uint8_t code, QParams g) { return ((float)code - g.zero_point) * g.scale; }

INLINE float load(const void *p, i64 i, int bf16) {
    if (!bf16) return ((const float *)p)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)p)[i] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Store an integer of at most 8 significant bits; as bfloat16 it is exact. */
INLINE void store_integer(void *p, i64 i, float value, int bf16) {
    if (!bf16) {
        ((float *)p)[i] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    ((uint16_t *)p)[i] = (uint16_t)(bits >> 16);
}

/* Store a value; as bfloat16 it is rounded half to even, and NaN stays NaN. */
INLINE void store_rounded(void *p, i64 i, float value, int bf16) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (bf16)
        ((uint16_t *)p)[i] = value != value ? 0x7FC0 : (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
    else
        ((float *)p)[i] = value;
}

INLINE float noise(uint32_t index, uint32_t seed) {
    int32_t bits = (int32_t)(index * GOLDEN + seed);
    bits = (int32_t)((uint32_t)(bits ^ (bits >> 15)) * MIX_1);
    bits = (int32_t)((uint32_t)(bits ^ (bits >> 12)) * MIX_2);
    return (float)((bits >> 9) & 0x7FFFFF) * 0x1p-23f;
}

/* As many values as vector registers hold; the result does not depend on it. */
#ifdef __AVX512F__
#define LANES 64
#else
#define LANES 32
#endif

/* Min and max of the values from..to, accumulated in lanes; a NaN anywhere is kept in `bad`. */
#define RANGE_LOOP(VALUE)                                                                                              \
    float low[LANES], high[LANES], bad[LANES];                                                                         \
    for (int j = 0; j < LANES; j++) low[j] = INFINITY, high[j] = -INFINITY, bad[j] = 0.0f;                             \
    i64 i = from;                                                                                                      \
    for (; i + LANES <= to; i += LANES)                                                                                \
        for (int j = 0; j < LANES; j++) {                                                                              \
            float v = VALUE(i + j);                                                                                    \
            low[j] = v < low[j] ? v : low[j];                                                                          \
            high[j] = v > high[j] ? v : high[j];                                                                       \
            bad[j] = v != v ? v : bad[j];                                                                              \
        }                                                                                                              \
    for (; i < to; i++) {                                                                                              \
        float v = VALUE(i);                                                                                            \
        low[0] = v < low[0] ? v : low[0];                                                                              \
        high[0] = v > high[0] ? v : high[0];                                                                           \
        bad[0] = v != v ? v : bad[0];                                                                                  \
    }                                                                                                                  \
    for (int j = 1; j < LANES; j++) {                                                                                  \
        low[0] = low[j] < low[0] ? low[j] : low[0];                                                                    \
        high[0] = high[j] > high[0] ? high[j] : high[0];                                                               \
        bad[0] += bad[j];                                                                                              \
    }                                                                                                                  \
    result[0] = low[0] + bad[0];                                                                                       \
    result[1] = high[0] + bad[0];

/* Allocate `count` floats; on null, the kernel returns OUT_OF_MEMORY. */
INLINE float *floats(i64 count) { return malloc(sizeof(float) * (size_t)count); }

/* The range over at least one chunk, from a (min, max) pair per chunk. */
INLINE void merge(const float *pairs, i64 chunks, float *range) {
    float low = pairs[0], high = pairs[1];
    for (i64 k = 1; k < chunks; k++) {
        float l = pairs[2 * k], h = pairs[2 * k + 1];
        low = l < low || l != l ? l : low;
        high = h > high || h != h ? h : high;
    }
    range[0] = low;
    range[1] = high;
}

#define PARALLEL _Pragma("omp parallel for num_threads(threads) if (threads > 1) schedule(static)")

#endif
