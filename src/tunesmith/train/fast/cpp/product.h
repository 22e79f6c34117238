// Small products of float32 matrices, and what they are made from: rows brought in from storage.
//
// C (rows x columns) = A (scalars) times B (rows of vectors). A tile of C stays in registers over the
// whole depth; what becomes of it then is up to `finish(row, column, sum)`, column counted in floats.

#pragma once

#include "vectors.h"

// Memory of one thread, one block cut into pieces. The block stays for the thread's next call: fresh
// pages at each one would cost more than they hold. Not in the namespace: all files share one block.
class Scratch {
public:
    explicit Scratch(int64_t floats) {
        floats += 16;
        if (floats > size_) {
            std::free(base_);
            base_ = static_cast<float*>(std::aligned_alloc(64, (floats * 4 + 63) / 64 * 64));
            size_ = base_ == nullptr ? 0 : floats;
            if (base_ == nullptr) throw std::bad_alloc();  // ends the process with a message
        }
        at_ = base_;
    }
    Scratch(const Scratch&) = delete;
    float* take(int64_t floats) {
        float* piece = at_;
        at_ += padded(floats);
        return piece;
    }

private:
    static inline thread_local float* base_ = nullptr;
    static inline thread_local int64_t size_ = 0;
    float* at_;
};

namespace {

// A matrix of scalars: element (i, p) is at[i * row + p * step], so a transposed one costs nothing.
struct Left {
    const float* at;
    int64_t row, step;
};

struct Right {
    const float* at;
    int64_t row;
    Right across(int64_t columns) const { return {at + columns, row}; }
};

template <int ROWS, int VECTORS, typename Finish>
inline void tile(Left a, Right b, int64_t depth, int64_t column, const Finish& finish) {
    Vec sum[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) sum[i][j] = Vec{};
    for (int64_t p = 0; p < depth; ++p) {
        Vec right[VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) right[j] = load(b.at + p * b.row + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; ++i) {
            const float left = a.at[i * a.row + p * a.step];
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; ++j) sum[i][j] += left * right[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) finish(i, column + j * LANES, sum[i][j]);
}

template <int ROWS, typename Finish>
inline void tiles(Left a, Right b, int64_t columns, int64_t depth, const Finish& finish) {
    int64_t j = 0;
    for (; j + TILE_VECTORS * LANES <= columns; j += TILE_VECTORS * LANES)
        tile<ROWS, TILE_VECTORS>(a, b.across(j), depth, j, finish);
    if (TILE_VECTORS > 3 && j + 3 * LANES <= columns) {
        tile<ROWS, 3>(a, b.across(j), depth, j, finish);
        j += 3 * LANES;
    }
    if (TILE_VECTORS > 2 && j + 2 * LANES <= columns) {
        tile<ROWS, 2>(a, b.across(j), depth, j, finish);
        j += 2 * LANES;
    }
    for (; j + LANES <= columns; j += LANES) tile<ROWS, 1>(a, b.across(j), depth, j, finish);
}

// At most TILE_ROWS rows; columns is a multiple of LANES.
template <typename Finish>
inline void strip(Left a, Right b, int64_t rows, int64_t columns, int64_t depth, const Finish& finish) {
    switch (rows) {
        case 6: return tiles<6>(a, b, columns, depth, finish);
        case 5: return tiles<5>(a, b, columns, depth, finish);
        case 4: return tiles<4>(a, b, columns, depth, finish);
        case 3: return tiles<3>(a, b, columns, depth, finish);
        case 2: return tiles<2>(a, b, columns, depth, finish);
        case 1: return tiles<1>(a, b, columns, depth, finish);
    }
}

struct Put {
    float* to;
    int64_t row;
    void operator()(int64_t i, int64_t j, Vec sum) const { store(to + i * row + j, sum); }
};

struct Add {
    float* to;
    int64_t row;
    void operator()(int64_t i, int64_t j, Vec sum) const {
        store(to + i * row + j, load(to + i * row + j) + sum);
    }
};

// Calls visit(first row, rows) for `rows` rows in strips.
template <typename Visit>
inline void in_strips(int64_t from, int64_t to, const Visit& visit) {
    for (int64_t i = from; i < to; i += TILE_ROWS) visit(i, to - i < TILE_ROWS ? to - i : TILE_ROWS);
}

// One row of storage as `wide` floats, zero beyond dim, times `scale`.
template <typename T>
inline void copy_in(const T* from, int64_t dim, float* to, int64_t wide, float scale) {
    int64_t d = 0;
    for (; d + LANES <= dim; d += LANES) store(to + d, load_any(from + d) * scale);
    for (; d < dim; ++d) to[d] = widen(from[d]) * scale;
    for (; d < wide; ++d) to[d] = 0.f;
}

template <typename T>
inline void copy_out(const float* from, int64_t dim, T* to, float scale) {
    int64_t d = 0;
    for (; d + LANES <= dim; d += LANES) store_any(to + d, load(from + d) * scale);
    for (; d < dim; ++d) narrow(from[d] * scale, to + d);
}

// Interleaves the first, or the second, halves of two vectors: a0 b0 a1 b1 ...
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES 1
#if LANES == 16
inline Vec zip_low(Vec a, Vec b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline Vec zip_high(Vec a, Vec b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif LANES == 8
inline Vec zip_low(Vec a, Vec b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
inline Vec zip_high(Vec a, Vec b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#else
inline Vec zip_low(Vec a, Vec b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
inline Vec zip_high(Vec a, Vec b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
#endif
#endif
#endif

// LANES x LANES floats, transposed. log2(LANES) rounds of interleaving row i with row i + LANES / 2.
inline void transpose_square(const float* from, int64_t row, float* to, int64_t to_row) {
#ifdef SHUFFLES
    Vec x[LANES], y[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) x[i] = load(from + i * row);
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; ++i) {
            y[2 * i] = zip_low(x[i], x[i + LANES / 2]);
            y[2 * i + 1] = zip_high(x[i], x[i + LANES / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) x[i] = y[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) store(to + i * to_row, x[i]);
#else
    for (int i = 0; i < LANES; ++i)
        for (int j = 0; j < LANES; ++j) to[j * to_row + i] = from[i * row + j];
#endif
}

}  // namespace
