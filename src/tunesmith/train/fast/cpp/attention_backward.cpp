// The gradient of attention on a tree of packed segments: weights are made again from the scores and
// the logarithms of their sums, panel by panel, as in the forward pass.

#include <atomic>
#include <memory>
#include <thread>

#include "tree.h"

namespace {

// weight = 2^(score - log of the column's sum).
struct Weigh {
    float* to;
    const float* logs;
    void operator()(int64_t i, int64_t j, Vec sum) const {
        store(to + i * COLUMNS + j, power_of_two(sum - load(logs + j)));
    }
};

// slope of a score = weight * (slope of the weight - the column's mean slope).
struct Incline {
    const float *weights, *means;
    float* to;
    void operator()(int64_t i, int64_t j, Vec sum) const {
        store(to + i * COLUMNS + j, load(weights + i * COLUMNS + j) * (sum - load(means + j)));
    }
};

void hide(const Panel& panel, float* weights) {
    for (int64_t k = panel.open(); k < panel.keys(); ++k)
        std::memset(weights + k * COLUMNS, 0, panel.from(k) * 4);
}

// sums (keys, wide) += weights (keys, COLUMNS) times rows (columns, wide).
inline void collect(const Panel& panel, int64_t key, int64_t end, const float* weights,
                    const float* rows, float* sums) {
    const int64_t wide = panel.unit.tree.wide();
    in_strips(key, end, [&](int64_t i, int64_t count) {
        const int64_t from = panel.from(i);
        strip({weights + i * COLUMNS + from, COLUMNS, 1}, {rows + from * wide, wide}, count, wide,
              panel.columns() - from, Add{sums + i * wide, wide});
    });
}

// Gradients of keys that several units read: each adds its part in the order of the units, whichever
// thread runs it, so that the sums do not depend on the threads.
class Common {
public:
    explicit Common(const Tree& tree)
        : tree_(tree), size_(tree.key_heads * tree.shared_rows * 2 * tree.wide()),
          turn_(new std::atomic<int64_t>[tree.key_heads]), place_(new int64_t[tree.unit_count]) {
        if (size_ > kept_size_) {
            kept_.reset(new float[size_]);
            kept_size_ = size_;
        }
        sums_ = kept_.get();  // other threads have another kept_
        std::memset(sums_, 0, size_ * 4);
        for (int64_t head = 0; head < tree.key_heads; ++head) turn_[head] = 0;
        int64_t next = 0;
        for (int64_t unit = 0; unit < tree.unit_count; ++unit)
            place_[unit] = shares(Unit(tree, unit, 0)) ? next++ : -1;
    }
    // Row of a shared segment's key gradient; that of the value follows it.
    float* row(int64_t head, int64_t segment, int64_t key) const {
        return sums_ + (head * tree_.shared_rows + tree_.shared_at[segment] + key) * 2 * tree_.wide();
    }
    // Runs add() when all units before this one have run theirs. Units must be started in order.
    template <typename Do>
    void in_turn(int64_t unit, int64_t head, const Do& add) {
        if (place_[unit] < 0) return;
        while (turn_[head].load(std::memory_order_acquire) != place_[unit]) std::this_thread::yield();
        add();
        turn_[head].store(place_[unit] + 1, std::memory_order_release);
    }

private:
    static bool shares(const Unit& unit) {
        bool any = false;
        unit.along([&](int64_t s, int64_t, int64_t, int64_t) { any |= unit.tree.shared_at[s] >= 0; });
        return any;
    }

    static thread_local std::unique_ptr<float[]> kept_;  // for the next call, as in Scratch
    static thread_local int64_t kept_size_;
    const Tree& tree_;
    const int64_t size_;
    float* sums_;
    std::unique_ptr<std::atomic<int64_t>[]> turn_;
    std::unique_ptr<int64_t[]> place_;
};
thread_local std::unique_ptr<float[]> Common::kept_;
thread_local int64_t Common::kept_size_ = 0;

template <typename T>
struct Gradients {
    const T *qkv, *dout;
    const float* logs;
    T* out;
    T* dqkv;
};

template <typename T>
class Backward {
public:
    Backward(const Tree& tree, const Gradients<T>& at, Common& common)
        : tree_(tree), common_(common), qkv_{at.qkv, tree.heads + 2 * tree.key_heads, tree.dim},
          dout_{at.dout, tree.heads, tree.dim}, out_{at.out, tree.heads, tree.dim},
          dqkv_{at.dqkv, qkv_.slots, tree.dim}, logs_(at.logs),
          scratch_(tree.longest_row * (4 * tree.wide() + 2 * COLUMNS) +
                   COLUMNS * (5 * tree.wide() + 2)) {
        const int64_t wide = tree.wide(), longest = tree.longest_row;
        keys_ = scratch_.take(longest * wide);
        values_ = scratch_.take(longest * wide);
        dkeys_ = scratch_.take(longest * wide);
        dvalues_ = scratch_.take(longest * wide);
        weights_ = scratch_.take(longest * COLUMNS);
        slopes_ = scratch_.take(longest * COLUMNS);
        queries_ = scratch_.take(COLUMNS * wide);
        queries_t_ = scratch_.take(COLUMNS * wide);
        wanted_ = scratch_.take(COLUMNS * wide);
        wanted_t_ = scratch_.take(COLUMNS * wide);
        mixed_ = scratch_.take(COLUMNS * wide);
        sums_ = scratch_.take(COLUMNS);
        means_ = scratch_.take(COLUMNS);
    }

    void run(int64_t number, int64_t head) {
        const Unit unit(tree_, number, head);
        gather_keys(unit, qkv_, keys_, values_);
        std::memset(dkeys_, 0, unit.keys() * tree_.wide() * 4);
        std::memset(dvalues_, 0, unit.keys() * tree_.wide() * 4);
        for (int64_t c = 0; c < unit.columns; c += COLUMNS)
            panel({unit, c, unit.columns < c + COLUMNS ? unit.columns : c + COLUMNS});
        if (tree_.shared_at[unit.segment] < 0) write(unit);
        common_.in_turn(number, head, [&] { add(unit); });
    }

private:
    void panel(const Panel& panel) {
        const int64_t wide = tree_.wide(), keys = panel.keys(), block = keys_a_block(wide);
        gather(panel, qkv_, tree_.scale * LOG2_E, queries_, queries_t_, dqkv_);
        gather(panel, dout_, 1.f, wanted_, wanted_t_, out_);
        std::memset(sums_, 0, COLUMNS * 4);
        panel.each([&](int64_t c, int64_t position, int64_t head) {
            sums_[c] = logs_[head * tree_.positions + position];
        });
        score(panel, 0, keys, keys_, queries_t_, [&](int64_t key, int64_t skip) {
            return Weigh{weights_ + key * COLUMNS + skip, sums_ + skip};
        });
        hide(panel, weights_);
        for (int64_t k = 0; k < keys; k += block)
            mix(panel, k, keys < k + block ? keys : k + block, weights_, values_, mixed_);
        average(panel);
        score(panel, 0, keys, values_, wanted_t_, [&](int64_t key, int64_t skip) {
            const int64_t at = key * COLUMNS + skip;
            return Incline{weights_ + at, means_ + skip, slopes_ + at};
        });
        hide(panel, slopes_);
        for (int64_t k = 0; k < keys; k += block)
            mix(panel, k, keys < k + block ? keys : k + block, slopes_, keys_, mixed_);
        panel.each([&](int64_t c, int64_t position, int64_t head) {
            copy_out(mixed_ + c * wide, tree_.dim, dqkv_(position, head), tree_.scale);
        });
        collect(panel, 0, keys, weights_, wanted_, dvalues_);
        collect(panel, 0, keys, slopes_, queries_, dkeys_);
    }

    // The output again, and sum(dout * out) of each column.
    void average(const Panel& panel) {
        const int64_t wide = tree_.wide();
        panel.each([&](int64_t c, int64_t position, int64_t head) {
            Vec sum = Vec{};
            for (int64_t d = 0; d < wide; d += LANES)
                sum += load(mixed_ + c * wide + d) * load(wanted_ + c * wide + d);
            means_[c] = total(sum);
            copy_out(mixed_ + c * wide, tree_.dim, out_(position, head), 1.f);
        });
    }

    // Gradients of the segment's own keys, which no other unit reads.
    void write(const Unit& unit) {
        const int64_t slot = tree_.heads + unit.head, wide = tree_.wide();
        for (int64_t i = 0; i < unit.end; ++i) {
            const int64_t at = tree_.start[unit.segment] + i, key = (unit.before + i) * wide;
            copy_out(dkeys_ + key, tree_.dim, dqkv_(at, slot), LN_2);
            copy_out(dvalues_ + key, tree_.dim, dqkv_(at, slot + tree_.key_heads), 1.f);
        }
    }

    void add(const Unit& unit) {
        const int64_t wide = tree_.wide();
        unit.along([&](int64_t s, int64_t, int64_t rows, int64_t seen) {
            if (tree_.shared_at[s] < 0) return;
            for (int64_t i = 0; i < rows; ++i) {
                float* to = common_.row(unit.head, s, i);
                const int64_t at = (seen + i) * wide;
                for (int64_t d = 0; d < wide; d += LANES) {
                    store(to + d, load(to + d) + load(dkeys_ + at + d));
                    store(to + wide + d, load(to + wide + d) + load(dvalues_ + at + d));
                }
            }
        });
    }

    const Tree& tree_;
    Common& common_;
    const Rows<const T> qkv_, dout_;
    const Rows<T> out_, dqkv_;
    const float* logs_;
    Scratch scratch_;
    float *keys_, *values_, *dkeys_, *dvalues_, *weights_, *slopes_;
    float *queries_, *queries_t_, *wanted_, *wanted_t_, *mixed_, *sums_, *means_;
};

// The common sums of one segment for one key head, into storage.
template <typename T>
void settle(const Tree& tree, const Common& common, int64_t s, int64_t head, T* to) {
    const Rows<T> dqkv{to, tree.heads + 2 * tree.key_heads, tree.dim};
    const int64_t slot = tree.heads + head;
    for (int64_t i = 0; i < tree.length[s]; ++i) {
        const float* row = common.row(head, s, i);
        copy_out(row, tree.dim, dqkv(tree.start[s] + i, slot), LN_2);
        copy_out(row + tree.wide(), tree.dim, dqkv(tree.start[s] + i, slot + tree.key_heads), 1.f);
    }
}

template <typename T>
void attend_backward(const Tree& tree, const Gradients<T>& at) {
    Common common(tree);
    std::atomic<int64_t> next{0};
    const int64_t units = tree.unit_count * tree.key_heads;
#pragma omp parallel num_threads(threads)
    {
        Backward<T> backward(tree, at, common);
        for (int64_t unit = next++; unit < units; unit = next++)
            backward.run(unit / tree.key_heads, unit % tree.key_heads);
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t i = 0; i < tree.segments * tree.key_heads; ++i)
            if (tree.shared_at[i / tree.key_heads] >= 0)
                settle(tree, common, i / tree.key_heads, i % tree.key_heads, at.dqkv);
    }
    const int64_t row = tree.heads * tree.dim, slots = tree.heads + 2 * tree.key_heads;
    const int64_t unused = tree.positions - tree.used;
    std::memset(static_cast<void*>(at.out + tree.used * row), 0, unused * row * sizeof(T));
    std::memset(static_cast<void*>(at.dqkv + tree.used * slots * tree.dim), 0,
                unused * slots * tree.dim * sizeof(T));
}

}  // namespace

#define FOR_BOTH(T, S)                                                                         \
    EXPORT void attend_backward_##S(const Tree* tree, const T* qkv, const T* dout,             \
                                    const float* logs, T* out, T* dqkv) {                      \
        attend_backward<T>(*tree, {qkv, dout, logs, out, dqkv});                               \
    }

FOR_BOTH(float, fp32)
FOR_BOTH(Half, bf16)
