// Rotary position embeddings.

#include "vectors.h"

namespace {

// Rotates the first `heads` vectors of each position in place (Su et al. 2021, arXiv 2104.09864).
template <typename T>
void rotate(T* qkv, int64_t positions, int64_t stride, int64_t heads, int64_t dim,
            const int64_t* places, const float* cosines, const float* sines, float direction) {
    const int64_t half = dim / 2;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t p = 0; p < positions; ++p) {
        const float* cosine = cosines + places[p] * half;
        const float* sine = sines + places[p] * half;
        for (int64_t h = 0; h < heads; ++h) {
            T* one = qkv + p * stride + h * dim;
            T* two = one + half;
            for (int64_t d = 0; d < half; ++d) {
                const float x = widen(one[d]), y = widen(two[d]), s = sine[d] * direction;
                narrow(x * cosine[d] - y * s, one + d);
                narrow(y * cosine[d] + x * s, two + d);
            }
        }
    }
}

}  // namespace

#define FOR_BOTH(T, S)                                                                              \
    EXPORT void rotate_##S(T* qkv, int64_t positions, int64_t stride, int64_t heads, int64_t dim,   \
                           const int64_t* places, const float* cosines, const float* sines,         \
                           float direction) {                                                       \
        rotate<T>(qkv, positions, stride, heads, dim, places, cosines, sines, direction);           \
    }

FOR_BOTH(float, fp32)
FOR_BOTH(Half, bf16)
