// Vectors, number formats and threads of the training kernels.
//
// Plain C functions on raw pointers, called through ctypes: no torch header, so the files compile in
// seconds. Arithmetic is float32 whatever the storage. Every output element is made by one thread in
// a fixed order, so results do not depend on the number of threads. NaN and infinity pass through:
// the files must not be compiled with -ffinite-math-only.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__AVX512F__)
#define LANES 16
#define TILE_ROWS 6
#define TILE_VECTORS 4
#elif defined(__AVX__)
#define LANES 8
#define TILE_ROWS 6
#define TILE_VECTORS 2
#else
#define LANES 4
#define TILE_ROWS 6
#define TILE_VECTORS 4
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

// How many threads a kernel may use: torch's number, set before each call.
inline int threads = 1;

namespace {

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef float VecAt __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(LANES * 4)));

const int64_t PAD = 16;  // scratch widths are multiples of this, itself a multiple of LANES

inline int64_t padded(int64_t n) { return (n + PAD - 1) / PAD * PAD; }

inline Vec load(const float* p) { return *reinterpret_cast<const VecAt*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<VecAt*>(p) = v; }
inline Vec all(float x) {
    Vec v;
    for (int i = 0; i < LANES; ++i) v[i] = x;
    return v;
}

inline float total(Vec v) {
    float sum = 0;
    for (int i = 0; i < LANES; ++i) sum += v[i];
    return sum;
}

typedef uint16_t Half __attribute__((may_alias));  // bfloat16: the upper half of a float32

inline float widen(float x) { return x; }
inline float widen(Half x) {
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}
inline void narrow(float x, float* to) { *to = x; }
inline void narrow(float x, Half* to) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    *to = static_cast<Half>(x == x ? rounded : 0x7fc0u);
}

// exp to about 2 units in the last place, after Cephes' expf: 2^n times a polynomial on +-ln(2)/2.
inline Vec exponential(Vec x) {
    x = x < all(-87.3f) ? all(-87.3f) : x;
    x = x > all(88.3f) ? all(88.3f) : x;
    Vec t = x * 1.44269504088896341f;
    IntVec n = __builtin_convertvector(t + (t < all(0.f) ? all(-0.5f) : all(0.5f)), IntVec);
    Vec whole = __builtin_convertvector(n, Vec);
    Vec r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Vec y = all(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    IntVec bits = (n + 127) << 23;
    Vec power;
    std::memcpy(&power, &bits, sizeof power);
    return y * power;
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }

template <typename T>
inline Vec load_any(const T* p) {
    Vec v;
    for (int l = 0; l < LANES; ++l) v[l] = widen(p[l]);
    return v;
}
template <>
inline Vec load_any<float>(const float* p) { return load(p); }
template <typename T>
inline void store_any(T* p, Vec v) {
    for (int l = 0; l < LANES; ++l) narrow(v[l], p + l);
}
template <>
inline void store_any<float>(float* p, Vec v) { store(p, v); }

}  // namespace
