// Attention on a tree of packed segments.
//
// Scores are made transposed, one row a key and one column a query, so that keys need no other layout
// than rows and the softmax runs down columns, a vector of queries at a time. Exponentials are powers of
// two: queries are scaled by log2(e) beside `scale`.

#include "tree.h"

namespace {

// 2^(score - peak) down `VECTORS` vectors of columns; `sums` gets a column's sum, `logs` its peak.
template <int VECTORS>
void soften(float* scores, int64_t keys, float* sums, float* logs) {
    Vec most[VECTORS], sum[VECTORS];
    for (int v = 0; v < VECTORS; ++v) {
        most[v] = all(-INFINITY);
        sum[v] = Vec{};
    }
    for (int64_t k = 0; k < keys; ++k)
        for (int v = 0; v < VECTORS; ++v) {
            const Vec x = load(scores + k * COLUMNS + v * LANES);
            most[v] = x > most[v] ? x : most[v];
        }
    for (int64_t k = 0; k < keys; ++k)
        for (int v = 0; v < VECTORS; ++v) {
            float* at = scores + k * COLUMNS + v * LANES;
            const Vec x = power_of_two(load(at) - most[v]);
            store(at, x);
            sum[v] += x;
        }
    for (int v = 0; v < VECTORS; ++v) {
        store(sums + v * LANES, sum[v]);
        store(logs + v * LANES, most[v]);
    }
}

void soften_panel(const Panel& panel, float* scores, float* sums, float* logs) {
    for (int64_t k = panel.open(); k < panel.keys(); ++k)
        for (int64_t c = 0; c < panel.from(k); ++c) scores[k * COLUMNS + c] = -INFINITY;
    int64_t c = 0;
    for (; c + 4 * LANES <= panel.across(); c += 4 * LANES)
        soften<4>(scores + c, panel.keys(), sums + c, logs + c);
    for (; c + 2 * LANES <= panel.across(); c += 2 * LANES)
        soften<2>(scores + c, panel.keys(), sums + c, logs + c);
    for (; c < panel.across(); c += LANES) soften<1>(scores + c, panel.keys(), sums + c, logs + c);
    for (c = 0; c < panel.columns(); ++c) logs[c] += std::log2(sums[c]);
}

template <typename T>
class Forward {
public:
    Forward(const Tree& tree, const T* qkv, T* out, float* logs)
        : tree_(tree), qkv_{qkv, tree.heads + 2 * tree.key_heads, tree.dim},
          out_{out, tree.heads, tree.dim}, logs_(logs),
          scratch_(tree.longest_row * (2 * tree.wide() + COLUMNS) + COLUMNS * (3 * tree.wide() + 2)) {
        const int64_t wide = tree.wide();
        keys_ = scratch_.take(tree.longest_row * wide);
        values_ = scratch_.take(tree.longest_row * wide);
        scores_ = scratch_.take(tree.longest_row * COLUMNS);
        queries_ = scratch_.take(COLUMNS * wide);
        transposed_ = scratch_.take(COLUMNS * wide);
        mixed_ = scratch_.take(COLUMNS * wide);
        sums_ = scratch_.take(COLUMNS);
        peaks_ = scratch_.take(COLUMNS);
    }

    void run(const Unit& unit) {
        gather_keys(unit, qkv_, keys_, values_);
        for (int64_t c = 0; c < unit.columns; c += COLUMNS)
            panel({unit, c, unit.columns < c + COLUMNS ? unit.columns : c + COLUMNS});
    }

private:
    void panel(const Panel& panel) {
        const int64_t wide = tree_.wide(), keys = panel.keys(), block = keys_a_block(wide);
        gather(panel, qkv_, tree_.scale * LOG2_E, queries_, transposed_, out_);
        score(panel, 0, keys, keys_, transposed_, [&](int64_t key, int64_t skip) {
            return Put{scores_ + key * COLUMNS + skip, COLUMNS};
        });
        soften_panel(panel, scores_, sums_, peaks_);
        for (int64_t k = 0; k < keys; k += block)
            mix(panel, k, keys < k + block ? keys : k + block, scores_, values_, mixed_);
        panel.each([&](int64_t c, int64_t position, int64_t head) {
            copy_out(mixed_ + c * wide, tree_.dim, out_(position, head), 1.f / sums_[c]);
            logs_[head * tree_.positions + position] = peaks_[c];
        });
    }

    const Tree& tree_;
    const Rows<const T> qkv_;
    const Rows<T> out_;
    float* logs_;
    Scratch scratch_;
    float *keys_, *values_, *scores_, *queries_, *transposed_, *mixed_, *sums_, *peaks_;
};

template <typename T>
void attend(const Tree& tree, const T* qkv, T* out, float* logs) {
#pragma omp parallel num_threads(threads)
    {
        Forward<T> forward(tree, qkv, out, logs);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < tree.unit_count * tree.key_heads; ++unit)
            forward.run(Unit(tree, unit / tree.key_heads, unit % tree.key_heads));
    }
    const int64_t row = tree.heads * tree.dim;
    std::memset(static_cast<void*>(out + tree.used * row), 0,
                (tree.positions - tree.used) * row * sizeof(T));
}

}  // namespace

#define FOR_BOTH(T, S)                                                                       \
    EXPORT void attend_##S(const Tree* tree, const T* qkv, T* out, float* logs) {            \
        attend<T>(*tree, qkv, out, logs);                                                    \
    }

FOR_BOTH(float, fp32)
FOR_BOTH(Half, bf16)
