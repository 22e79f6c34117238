// What is done to each row: RMSNorm, SwiGLU, cross-entropy with their gradients, and NF4 to numbers.

#include "vectors.h"

namespace {

template <typename T>
void norm_forward(const T* x, const T* weight, T* y, float* inverse, int64_t rows, int64_t width,
                  float eps) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < rows; ++i) {
        const T* row = x + i * width;
        float square[16] = {0};
        int64_t d = 0;
        for (; d + 16 <= width; d += 16)
            for (int l = 0; l < 16; ++l) square[l] += widen(row[d + l]) * widen(row[d + l]);
        for (; d < width; ++d) square[0] += widen(row[d]) * widen(row[d]);
        float sum = 0;
        for (int l = 0; l < 16; ++l) sum += square[l];
        const float scale = 1.f / std::sqrt(sum / width + eps);
        inverse[i] = scale;
        for (d = 0; d < width; ++d) narrow(widen(row[d]) * scale * widen(weight[d]), y + i * width + d);
    }
}

// dx = (dy w - hat mean(dy w hat)) / rms + residual, hat = x / rms.
template <typename T>
void norm_backward(const T* dy, const T* x, const float* inverse, const T* weight, const T* residual,
                   T* dx, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < rows; ++i) {
        const T *up = dy + i * width, *in = x + i * width, *more = residual + i * width;
        float dot[16] = {0};
        int64_t d = 0;
        for (; d + 16 <= width; d += 16)
            for (int l = 0; l < 16; ++l)
                dot[l] += widen(up[d + l]) * widen(weight[d + l]) * widen(in[d + l]);
        for (; d < width; ++d) dot[0] += widen(up[d]) * widen(weight[d]) * widen(in[d]);
        float sum = 0;
        for (int l = 0; l < 16; ++l) sum += dot[l];
        const float scale = inverse[i], pull = sum * scale * scale / width;
        for (d = 0; d < width; ++d)
            narrow((widen(up[d]) * widen(weight[d]) - widen(in[d]) * pull) * scale + widen(more[d]),
                   dx + i * width + d);
    }
}

// hidden = silu(gate) * up; gate and up side by side in rows of 2 * width.
template <typename T>
void gated_forward(const T* gate_up, T* hidden, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < rows; ++i) {
        const T *gate = gate_up + i * 2 * width, *up = gate + width;
        T* out = hidden + i * width;
        int64_t d = 0;
        for (; d + LANES <= width; d += LANES) {
            Vec g = load_any(gate + d);
            store_any(out + d, g * sigmoid(g) * load_any(up + d));
        }
        for (; d < width; ++d) {
            const float g = widen(gate[d]);
            narrow(g / (1.f + std::exp(-g)) * widen(up[d]), out + d);
        }
    }
}

// Overwrites gate and up with their gradients and dhidden with the hidden rows made again.
template <typename T>
void gated_backward(T* dhidden, T* gate_up, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < rows; ++i) {
        T *gate = gate_up + i * 2 * width, *up = gate + width, *slope = dhidden + i * width;
        int64_t d = 0;
        for (; d + LANES <= width; d += LANES) {
            Vec g = load_any(gate + d), u = load_any(up + d), s = load_any(slope + d);
            Vec open = sigmoid(g), active = g * open;
            store_any(gate + d, s * u * open * (1.f + g * (1.f - open)));
            store_any(up + d, s * active);
            store_any(slope + d, active * u);
        }
        for (; d < width; ++d) {
            const float g = widen(gate[d]), u = widen(up[d]), s = widen(slope[d]);
            const float open = 1.f / (1.f + std::exp(-g)), active = g * open;
            narrow(s * u * open * (1.f + g * (1.f - open)), gate + d);
            narrow(s * active, up + d);
            narrow(active * u, slope + d);
        }
    }
}

// Each row of logits becomes the gradient of its weighted cross-entropy; losses[i] is the plain one.
template <typename T>
void cross_entropy(T* logits, const int64_t* labels, const float* shares, float* losses, int64_t rows,
                   int64_t width, bool gradient) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < rows; ++i) {
        T* row = logits + i * width;
        Vec most = all(-INFINITY);
        int64_t d = 0;
        for (; d + LANES <= width; d += LANES) {
            Vec x = load_any(row + d);
            most = x > most ? x : most;
        }
        float peak = -INFINITY;
        for (int l = 0; l < LANES; ++l) peak = most[l] > peak ? most[l] : peak;
        for (; d < width; ++d) peak = widen(row[d]) > peak ? widen(row[d]) : peak;
        if (!(peak > -INFINITY)) peak = 0.f;
        const int64_t label = labels[i] < 0 ? 0 : labels[i];
        const float picked = widen(row[label]);
        Vec sums = Vec{};
        float rest = 0.f;
        for (d = 0; d + LANES <= width; d += LANES) sums += exponential(load_any(row + d) - peak);
        for (; d < width; ++d) rest += std::exp(widen(row[d]) - peak);
        const float mass = total(sums) + rest;
        losses[i] = labels[i] < 0 ? 0.f : std::log(mass) + peak - picked;
        if (!gradient) continue;
        const float share = labels[i] < 0 ? 0.f : shares[i], factor = share / mass;
        for (d = 0; d + LANES <= width; d += LANES)
            store_any(row + d, exponential(load_any(row + d) - peak) * factor);
        for (; d < width; ++d) narrow(std::exp(widen(row[d]) - peak) * factor, row + d);
        narrow(std::exp(picked - peak) * factor - share, row + label);
    }
}

// NF4 (models/nf4.py): two 4-bit codes a byte, the first in its upper half, one scale a block.
const float NF4[16] = {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
                       -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
                       0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f,
                       0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f,
                       0.7229568362236023f, 1.0f};

inline void narrow_finite(float x, float* to) { *to = x; }
inline void narrow_finite(float x, Half* to) {  // without a branch, which the compiler would not vectorise
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    *to = static_cast<Half>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

template <typename T>
void nf4_dense(const uint8_t* packed, const float* scales, int64_t blocks, int64_t block, T* out) {
    float pairs[256][2];
    for (int byte = 0; byte < 256; ++byte) {
        pairs[byte][0] = NF4[byte >> 4];
        pairs[byte][1] = NF4[byte & 15];
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < blocks; ++b) {
        const uint8_t* from = packed + b * (block / 2);
        T* to = out + b * block;
        const Vec scale = all(scales[b]);
        alignas(64) float tile[32];  // every block size is a multiple of 32
        for (int64_t at = 0; at < block; at += 32) {
            for (int i = 0; i < 16; ++i) std::memcpy(tile + 2 * i, pairs[from[at / 2 + i]], 8);
            for (int i = 0; i < 32; i += LANES) store(tile + i, load(tile + i) * scale);
            for (int i = 0; i < 32; ++i) narrow_finite(tile[i], to + at + i);
        }
    }
}

}  // namespace

EXPORT void set_threads(int64_t count) { threads = static_cast<int>(count); }

#define FOR_BOTH(T, S)                                                                              \
    EXPORT void norm_forward_##S(const T* x, const T* weight, T* y, float* inverse, int64_t rows,   \
                                 int64_t width, float eps) {                                        \
        norm_forward<T>(x, weight, y, inverse, rows, width, eps);                                   \
    }                                                                                               \
    EXPORT void norm_backward_##S(const T* dy, const T* x, const float* inverse, const T* weight,   \
                                  const T* residual, T* dx, int64_t rows, int64_t width) {          \
        norm_backward<T>(dy, x, inverse, weight, residual, dx, rows, width);                        \
    }                                                                                               \
    EXPORT void gated_forward_##S(const T* gate_up, T* hidden, int64_t rows, int64_t width) {       \
        gated_forward<T>(gate_up, hidden, rows, width);                                             \
    }                                                                                               \
    EXPORT void gated_backward_##S(T* dhidden, T* gate_up, int64_t rows, int64_t width) {           \
        gated_backward<T>(dhidden, gate_up, rows, width);                                           \
    }                                                                                               \
    EXPORT void cross_entropy_##S(T* logits, const int64_t* labels, const float* shares,            \
                                  float* losses, int64_t rows, int64_t width, int64_t gradient) {   \
        cross_entropy<T>(logits, labels, shares, losses, rows, width, gradient != 0);               \
    }                                                                                               \
    EXPORT void nf4_dense_##S(const uint8_t* packed, const float* scales, int64_t blocks,           \
                              int64_t block, T* out) {                                              \
        nf4_dense<T>(packed, scales, blocks, block, out);                                           \
    }

FOR_BOTH(float, fp32)
FOR_BOTH(Half, bf16)
