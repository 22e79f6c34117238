// Vectors, number formats and threads of the training kernels.
//
// Plain C functions on raw pointers, called through ctypes: no torch header, so the files compile in
// seconds. Arithmetic is float32 whatever the storage. Every output element is made by one thread, or
// added up in a fixed order, so results do not depend on the number of threads. NaN and infinity pass
// through: the files must not be compiled with -ffinite-math-only.

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

// How many threads a kernel may use: torch's number, set before each call. Hidden: otherwise all
// libraries in the process that have a `threads` would share one.
__attribute__((visibility("hidden"))) inline int threads = 1;

namespace {

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef float VecAt __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(LANES * 4)));
typedef uint32_t BitsVec __attribute__((vector_size(LANES * 4)));
typedef uint16_t HalfVecAt __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

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

// 2^x to about 2 units in the last place, for x < 127; exactly 0 below -126.5. NaN stays NaN. Adding the
// constant rounds x to a whole number n and leaves n + 127, the exponent of 2^n, in the lowest bits.
inline Vec power_of_two(Vec x) {
    x = x < all(-127.f) ? all(-127.f) : x;
    const Vec shifted = x + 12583039.f;
    const Vec r = x - (shifted - 12583039.f);
    Vec y = all(1.5345811976e-4f);  // minimax on +-1/2
    y = y * r + 1.3399931385e-3f;
    y = y * r + 9.6184889587e-3f;
    y = y * r + 5.5503287766e-2f;
    y = y * r + 2.4022646891e-1f;
    y = y * r + 6.9314720574e-1f;
    y = y * r + 1.0f;
    IntVec bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = bits << 23;
    Vec power;
    std::memcpy(&power, &bits, sizeof power);
    return y * power;
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }

inline Vec load_any(const float* p) { return load(p); }
inline Vec load_any(const Half* p) {
    const BitsVec bits = __builtin_convertvector(*reinterpret_cast<const HalfVecAt*>(p), BitsVec) << 16;
    Vec v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}
inline void store_any(float* p, Vec v) { store(p, v); }
inline void store_any(Half* p, Vec v) {
    BitsVec bits;
    std::memcpy(&bits, &v, sizeof bits);
    const BitsVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const BitsVec kept = v == v ? rounded : (BitsVec{} + 0x7fc0u);
    *reinterpret_cast<HalfVecAt*>(p) = __builtin_convertvector(kept, HalfVecAt);
}

}  // namespace
