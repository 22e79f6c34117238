// Attention on a tree of packed segments, with its gradient, and rotary embeddings.

#include "vectors.h"

// What a packed batch looks like. Segment s holds positions start[s] ... start[s] + length[s]. Its
// ancestors, root first, are chain[chain_at[s] ... chain_at[s + 1]]; those that continue it, at any
// depth, are heirs[heirs_at[s] ... heirs_at[s + 1]]. A unit is (segment, first, end) inside of it.
struct Tree {
    int64_t positions, heads, key_heads, dim, used;
    const int64_t *start, *length, *chain_at, *chain, *heirs_at, *heirs;
    const int64_t* query_units;
    const int64_t* key_units;
    int64_t query_unit_count, key_unit_count, longest_row;
    float scale;
};

namespace {

// A matrix of scalars: element (i, p) is at[i * row + p * step], so a transposed one costs nothing.
struct Left {
    const float* at;
    int64_t row, step;
};

// One tile of C (rows x vectors * LANES) = or += A (scalars) times B (rows of vectors).
template <int ROWS, int VECTORS>
inline void tile(Left a, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t depth, bool add) {
    Vec sum[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) sum[i][j] = Vec{};
    for (int64_t p = 0; p < depth; ++p) {
        Vec right[VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) right[j] = load(b + p * ldb + j * LANES);
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
        for (int j = 0; j < VECTORS; ++j) {
            float* at = c + i * ldc + j * LANES;
            store(at, add ? load(at) + sum[i][j] : sum[i][j]);
        }
}

template <int VECTORS>
void columns(Left a, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t rows, int64_t depth,
             bool add) {
    int64_t i = 0;
    for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
        tile<TILE_ROWS, VECTORS>({a.at + i * a.row, a.row, a.step}, b, ldb, c + i * ldc, ldc, depth, add);
    for (; i + 2 <= rows; i += 2)
        tile<2, VECTORS>({a.at + i * a.row, a.row, a.step}, b, ldb, c + i * ldc, ldc, depth, add);
    for (; i < rows; ++i)
        tile<1, VECTORS>({a.at + i * a.row, a.row, a.step}, b, ldb, c + i * ldc, ldc, depth, add);
}

// C (rows x width) = or += A (rows x depth) B (depth x width); width is a multiple of PAD.
void product(Left a, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t rows, int64_t width,
             int64_t depth, bool add) {
    int64_t j = 0;
    for (; j + TILE_VECTORS * LANES <= width; j += TILE_VECTORS * LANES)
        columns<TILE_VECTORS>(a, b + j, ldb, c + j, ldc, rows, depth, add);
    if (j + 3 * LANES <= width && TILE_VECTORS > 3) {
        columns<3>(a, b + j, ldb, c + j, ldc, rows, depth, add);
        j += 3 * LANES;
    }
    for (; j + 2 * LANES <= width; j += 2 * LANES)
        columns<2>(a, b + j, ldb, c + j, ldc, rows, depth, add);
    for (; j + LANES <= width; j += LANES)
        columns<1>(a, b + j, ldb, c + j, ldc, rows, depth, add);
}

// Scratch memory of one thread, one block cut into pieces. The block stays for the thread's next
// call: fresh pages at each one would cost more than they hold.
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
    void reset() { at_ = base_; }

private:
    static thread_local float* base_;
    static thread_local int64_t size_;
    float* at_;
};
thread_local float* Scratch::base_ = nullptr;
thread_local int64_t Scratch::size_ = 0;

// rows x dim from storage into rows of `wide` floats, zero beyond dim, times `scale`.
template <typename T>
void copy_in(const T* from, int64_t stride, int64_t rows, int64_t dim, float* to, int64_t wide,
             float scale) {
    for (int64_t i = 0; i < rows; ++i) {
        const T* source = from + i * stride;
        float* target = to + i * wide;
        for (int64_t d = 0; d < dim; ++d) target[d] = widen(source[d]) * scale;
        for (int64_t d = dim; d < wide; ++d) target[d] = 0.f;
    }
}

// The same, transposed: dim rows of `wide` floats, of which `at ... at + rows` are written.
template <typename T>
void copy_in_transposed(const T* from, int64_t stride, int64_t rows, int64_t dim, float* to,
                        int64_t wide, int64_t at, float scale) {
    for (int64_t i = 0; i < rows; ++i) {
        const T* source = from + i * stride;
        for (int64_t d = 0; d < dim; ++d) to[d * wide + at + i] = widen(source[d]) * scale;
    }
}

template <typename T>
void copy_out(const float* from, int64_t wide, int64_t rows, int64_t dim, T* to, int64_t stride) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t d = 0; d < dim; ++d) narrow(from[i * wide + d], to + i * stride + d);
}

const int64_t QUERY_BLOCK = 32;  // queries of one head in one product

// Weights of the queries [first, end) of segment s for one key head, group * block rows of
// `width` floats: exp(score - peak) and their sums, or exp(score - logsumexp) when it is known.
// `seen` keys come before the segment's own; what a query may not see becomes zero.
template <bool KNOWN>
void weigh(float* scores, int64_t width, int64_t group, int64_t block, int64_t first, int64_t seen,
           float* sums, const float* known) {
    const int64_t visible = padded(seen + first + block);
    for (int64_t g = 0; g < group; ++g)
        for (int64_t i = 0; i < block; ++i) {
            float* row = scores + (g * block + i) * width;
            int64_t count = seen + first + i + 1;
            float peak;
            if (KNOWN) {
                peak = known[g * block + i];
            } else {
                Vec most = all(-INFINITY);
                int64_t j = 0;
                for (; j + LANES <= count; j += LANES) {
                    Vec x = load(row + j);
                    most = x > most ? x : most;
                }
                peak = -INFINITY;
                for (int l = 0; l < LANES; ++l) peak = most[l] > peak ? most[l] : peak;
                for (; j < count; ++j) peak = row[j] > peak ? row[j] : peak;
                if (!(peak > -INFINITY)) peak = 0.f;  // all NaN: let NaN through below
            }
            for (int64_t j = count; j < padded(count); ++j) row[j] = -INFINITY;
            Vec sum = Vec{};
            for (int64_t j = 0; j < padded(count); j += LANES) {
                Vec x = exponential(load(row + j) - peak);
                store(row + j, x);
                sum += x;
            }
            for (int64_t j = count; j < padded(count); ++j) {
                sum[j % LANES] -= row[j];
                row[j] = 0.f;
            }
            for (int64_t j = padded(count); j < visible; ++j) row[j] = 0.f;
            if (!KNOWN) {
                float whole = total(sum);
                sums[2 * (g * block + i)] = whole;
                sums[2 * (g * block + i) + 1] = peak + std::log(whole);
            }
        }
}

template <typename T>
struct View {
    const Tree& tree;
    const T* qkv;
    int64_t slots() const { return tree.heads + 2 * tree.key_heads; }
    int64_t stride() const { return slots() * tree.dim; }
    const T* query(int64_t position, int64_t head) const {
        return qkv + position * stride() + head * tree.dim;
    }
    const T* key(int64_t position, int64_t head) const { return query(position, tree.heads + head); }
    const T* value(int64_t position, int64_t head) const {
        return query(position, tree.heads + tree.key_heads + head);
    }
};

// Calls visit(first position, rows, keys before) for each ancestor of s and then for `own` of its rows.
template <typename Visit>
int64_t along_chain(const Tree& tree, int64_t s, int64_t own, Visit visit) {
    int64_t seen = 0;
    for (int64_t c = tree.chain_at[s]; c < tree.chain_at[s + 1]; ++c) {
        int64_t a = tree.chain[c];
        visit(tree.start[a], tree.length[a], seen);
        seen += tree.length[a];
    }
    visit(tree.start[s], own, seen);
    return seen;
}

template <typename T>
void attend(const Tree& tree, const T* qkv, T* out, float* logsumexp) {
    const View<T> view{tree, qkv};
    const int64_t group = tree.heads / tree.key_heads, dim = tree.dim, wide = padded(dim);
    const int64_t keys_most = padded(tree.longest_row);
    const int64_t rows_most = group * QUERY_BLOCK;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(keys_most * wide * 2 + rows_most * (keys_most + 2 * wide + 4) + 8 * PAD);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < tree.query_unit_count * tree.key_heads; ++unit) {
            scratch.reset();
            const int64_t* which = tree.query_units + 3 * (unit / tree.key_heads);
            const int64_t s = which[0], first = which[1], end = which[2], head = unit % tree.key_heads;
            float* keys = scratch.take(wide * keys_most);
            float* values = scratch.take(keys_most * wide);
            float* queries = scratch.take(rows_most * wide);
            float* scores = scratch.take(rows_most * keys_most);
            float* mixed = scratch.take(rows_most * wide);
            float* sums = scratch.take(rows_most * 2);
            int64_t count = end;
            for (int64_t c = tree.chain_at[s]; c < tree.chain_at[s + 1]; ++c)
                count += tree.length[tree.chain[c]];
            const int64_t width = padded(count);
            for (int64_t d = 0; d < dim; ++d)
                for (int64_t j = count; j < width; ++j) keys[d * width + j] = 0.f;
            const int64_t seen = along_chain(tree, s, end, [&](int64_t at, int64_t n, int64_t before) {
                copy_in_transposed(view.key(at, head), view.stride(), n, dim, keys, width, before, 1.f);
                copy_in(view.value(at, head), view.stride(), n, dim, values + before * wide, wide, 1.f);
            });
            for (int64_t q = first; q < end; q += QUERY_BLOCK) {
                const int64_t block = end - q < QUERY_BLOCK ? end - q : QUERY_BLOCK;
                const int64_t at = tree.start[s] + q, visible = seen + q + block;
                for (int64_t g = 0; g < group; ++g)
                    copy_in(view.query(at, head * group + g), view.stride(), block, dim,
                            queries + g * block * wide, wide, tree.scale);
                product({queries, wide, 1}, keys, width, scores, keys_most, group * block,
                        padded(visible), dim, false);
                weigh<false>(scores, keys_most, group, block, q, seen, sums, nullptr);
                product({scores, keys_most, 1}, values, wide, mixed, wide, group * block, wide, visible,
                        false);
                for (int64_t g = 0; g < group; ++g)
                    for (int64_t i = 0; i < block; ++i) {
                        const int64_t row = g * block + i, h = head * group + g;
                        const float inverse = 1.f / sums[2 * row];
                        for (int64_t d = 0; d < dim; ++d) mixed[row * wide + d] *= inverse;
                        copy_out(mixed + row * wide, wide, 1, dim,
                                 out + (at + i) * tree.heads * dim + h * dim, 0);
                        logsumexp[h * tree.positions + at + i] = sums[2 * row + 1];
                    }
            }
        }
    }
    std::memset(static_cast<void*>(out + tree.used * tree.heads * dim), 0,
                (tree.positions - tree.used) * tree.heads * dim * sizeof(T));
}

// Gradient of the queries; also makes `out` again and sum(dout * out) a query, which the keys need.
template <typename T>
void query_pass(const Tree& tree, const T* qkv, const T* dout, const float* logsumexp, T* out,
                float* delta, T* dqkv) {
    const View<T> view{tree, qkv};
    const int64_t group = tree.heads / tree.key_heads, dim = tree.dim, wide = padded(dim);
    const int64_t keys_most = padded(tree.longest_row);
    const int64_t rows_most = group * QUERY_BLOCK;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(keys_most * wide * 4 + rows_most * (2 * keys_most + 4 * wide + 2) + 12 * PAD);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < tree.query_unit_count * tree.key_heads; ++unit) {
            scratch.reset();
            const int64_t* which = tree.query_units + 3 * (unit / tree.key_heads);
            const int64_t s = which[0], first = which[1], end = which[2], head = unit % tree.key_heads;
            float* keys_t = scratch.take(wide * keys_most);
            float* values_t = scratch.take(wide * keys_most);
            float* keys = scratch.take(keys_most * wide);
            float* values = scratch.take(keys_most * wide);
            float* queries = scratch.take(rows_most * wide);
            float* wanted = scratch.take(rows_most * wide);
            float* mixed = scratch.take(rows_most * wide);
            float* weights = scratch.take(rows_most * keys_most);
            float* slopes = scratch.take(rows_most * keys_most);
            float* known = scratch.take(rows_most);
            int64_t count = end;
            for (int64_t c = tree.chain_at[s]; c < tree.chain_at[s + 1]; ++c)
                count += tree.length[tree.chain[c]];
            const int64_t width = padded(count);
            for (int64_t d = 0; d < dim; ++d)
                for (int64_t j = count; j < width; ++j)
                    keys_t[d * width + j] = values_t[d * width + j] = 0.f;
            const int64_t seen = along_chain(tree, s, end, [&](int64_t at, int64_t n, int64_t before) {
                const int64_t stride = view.stride();
                copy_in_transposed(view.key(at, head), stride, n, dim, keys_t, width, before, 1.f);
                copy_in_transposed(view.value(at, head), stride, n, dim, values_t, width, before, 1.f);
                copy_in(view.key(at, head), stride, n, dim, keys + before * wide, wide, 1.f);
                copy_in(view.value(at, head), stride, n, dim, values + before * wide, wide, 1.f);
            });
            for (int64_t q = first; q < end; q += QUERY_BLOCK) {
                const int64_t block = end - q < QUERY_BLOCK ? end - q : QUERY_BLOCK;
                const int64_t at = tree.start[s] + q, visible = seen + q + block;
                const int64_t rows = group * block, out_stride = tree.heads * dim;
                for (int64_t g = 0; g < group; ++g) {
                    const int64_t h = head * group + g;
                    copy_in(view.query(at, h), view.stride(), block, dim, queries + g * block * wide,
                            wide, tree.scale);
                    copy_in(dout + at * out_stride + h * dim, out_stride, block, dim,
                            wanted + g * block * wide, wide, 1.f);
                    for (int64_t i = 0; i < block; ++i)
                        known[g * block + i] = logsumexp[h * tree.positions + at + i];
                }
                product({queries, wide, 1}, keys_t, width, weights, keys_most, rows, padded(visible), dim,
                        false);
                weigh<true>(weights, keys_most, group, block, q, seen, nullptr, known);
                product({weights, keys_most, 1}, values, wide, mixed, wide, rows, wide, visible, false);
                product({wanted, wide, 1}, values_t, width, slopes, keys_most, rows, padded(visible), dim,
                        false);
                for (int64_t g = 0; g < group; ++g)
                    for (int64_t i = 0; i < block; ++i) {
                        const int64_t row = g * block + i, h = head * group + g;
                        Vec sum = Vec{};
                        for (int64_t d = 0; d < wide; d += LANES)
                            sum += load(mixed + row * wide + d) * load(wanted + row * wide + d);
                        const float mean = total(sum);
                        delta[h * tree.positions + at + i] = mean;
                        float* slope = slopes + row * keys_most;
                        const float* weight = weights + row * keys_most;
                        for (int64_t j = 0; j < padded(visible); j += LANES)
                            store(slope + j, (load(slope + j) - mean) * load(weight + j));
                        copy_out(mixed + row * wide, wide, 1, dim,
                                 out + (at + i) * out_stride + h * dim, 0);
                    }
                product({slopes, keys_most, 1}, keys, wide, mixed, wide, rows, wide, visible, false);
                for (int64_t g = 0; g < group; ++g)
                    for (int64_t i = 0; i < block; ++i) {
                        float* row = mixed + (g * block + i) * wide;
                        for (int64_t d = 0; d < dim; ++d) row[d] *= tree.scale;
                        copy_out(row, wide, 1, dim,
                                 dqkv + (at + i) * view.stride() + (head * group + g) * dim, 0);
                    }
            }
        }
    }
    std::memset(static_cast<void*>(out + tree.used * tree.heads * dim), 0,
                (tree.positions - tree.used) * tree.heads * dim * sizeof(T));
}

// Adds what the queries [first, end) of segment t give to a block of keys. In the block's own segment
// (`own`) a query sees the keys up to itself; for an heir all are visible.
template <typename T>
struct KeySums {
    const Tree& tree;
    const View<T>& view;
    const T* dout;
    const float *logsumexp, *delta;
    int64_t head, rows, width, wide;
    const float *keys_t, *values_t;
    float *dkeys, *dvalues;
    float *queries, *wanted, *weights, *slopes;

    void add(int64_t t, int64_t first, int64_t end, int64_t key_first, bool own) {
        for (int64_t q = first; q < end; q += QUERY_BLOCK)
            block(t, q, end - q < QUERY_BLOCK ? end - q : QUERY_BLOCK, own ? q - key_first : rows);
    }

    // `count` queries from q on; the first of them sees `seen` + 1 keys of the block.
    void block(int64_t t, int64_t q, int64_t count, int64_t seen) {
        const int64_t group = tree.heads / tree.key_heads, dim = tree.dim, many = group * count;
        const int64_t at = tree.start[t] + q, out_stride = tree.heads * dim;
        for (int64_t g = 0; g < group; ++g) {
            const int64_t h = head * group + g;
            copy_in(view.query(at, h), view.stride(), count, dim, queries + g * count * wide, wide,
                    tree.scale);
            copy_in(dout + at * out_stride + h * dim, out_stride, count, dim,
                    wanted + g * count * wide, wide, 1.f);
        }
        product({queries, wide, 1}, keys_t, width, weights, width, many, width, dim, false);
        product({wanted, wide, 1}, values_t, width, slopes, width, many, width, dim, false);
        for (int64_t g = 0; g < group; ++g)
            for (int64_t i = 0; i < count; ++i) {
                const int64_t place = (head * group + g) * tree.positions + at + i;
                float* weight = weights + (g * count + i) * width;
                float* slope = slopes + (g * count + i) * width;
                const int64_t visible = seen + i + 1 < rows ? seen + i + 1 : rows;
                for (int64_t j = 0; j < width; j += LANES) {
                    Vec x = exponential(load(weight + j) - logsumexp[place]);
                    store(weight + j, x);
                    store(slope + j, (load(slope + j) - delta[place]) * x);
                }
                for (int64_t j = visible; j < width; ++j) weight[j] = slope[j] = 0.f;
            }
        product({weights, 1, width}, wanted, wide, dvalues, wide, rows, wide, many, true);
        product({slopes, 1, width}, queries, wide, dkeys, wide, rows, wide, many, true);
    }
};

template <typename T>
void key_pass(const Tree& tree, const T* qkv, const T* dout, const float* logsumexp,
              const float* delta, T* dqkv) {
    const View<T> view{tree, qkv};
    const int64_t dim = tree.dim, wide = padded(dim);
    const int64_t many = tree.heads / tree.key_heads * QUERY_BLOCK;
    int64_t most = 0;  // keys of one unit
    for (int64_t unit = 0; unit < tree.key_unit_count; ++unit) {
        const int64_t size = tree.key_units[3 * unit + 2] - tree.key_units[3 * unit + 1];
        most = size > most ? size : most;
    }
    most = padded(most);
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(4 * most * wide + 2 * many * wide + 2 * most * many + 8 * PAD);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < tree.key_unit_count * tree.key_heads; ++unit) {
            scratch.reset();
            const int64_t* which = tree.key_units + 3 * (unit / tree.key_heads);
            const int64_t s = which[0], first = which[1], end = which[2], head = unit % tree.key_heads;
            const int64_t rows = end - first, at = tree.start[s] + first, width = padded(rows);
            float* keys_t = scratch.take(dim * width);
            float* values_t = scratch.take(dim * width);
            float* dkeys = scratch.take(rows * wide);
            float* dvalues = scratch.take(rows * wide);
            std::memset(dkeys, 0, rows * wide * 4);
            std::memset(dvalues, 0, rows * wide * 4);
            for (int64_t d = 0; d < dim; ++d)
                for (int64_t j = rows; j < width; ++j) keys_t[d * width + j] = values_t[d * width + j] = 0.f;
            copy_in_transposed(view.key(at, head), view.stride(), rows, dim, keys_t, width, 0, 1.f);
            copy_in_transposed(view.value(at, head), view.stride(), rows, dim, values_t, width, 0, 1.f);
            float* queries = scratch.take(many * wide);
            float* wanted = scratch.take(many * wide);
            float* weights = scratch.take(many * width);
            float* slopes = scratch.take(many * width);
            KeySums<T> sums{tree,     view,  dout,    logsumexp, delta,  head,    rows,  width, wide,
                            keys_t, values_t, dkeys, dvalues,   queries, wanted, weights, slopes};
            sums.add(s, first, tree.length[s], first, true);
            for (int64_t c = tree.heirs_at[s]; c < tree.heirs_at[s + 1]; ++c)
                sums.add(tree.heirs[c], 0, tree.length[tree.heirs[c]], 0, false);
            T* to = dqkv + at * view.stride();
            copy_out(dkeys, wide, rows, dim, to + (tree.heads + head) * dim, view.stride());
            copy_out(dvalues, wide, rows, dim, to + (tree.heads + tree.key_heads + head) * dim,
                     view.stride());
        }
    }
    std::memset(static_cast<void*>(dqkv + tree.used * view.stride()), 0,
                (tree.positions - tree.used) * view.stride() * sizeof(T));
}

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
    }                                                                                               \
    EXPORT void attend_##S(const Tree* tree, const T* qkv, T* out, float* logsumexp) {              \
        attend<T>(*tree, qkv, out, logsumexp);                                                      \
    }                                                                                               \
    EXPORT void attend_backward_##S(const Tree* tree, const T* qkv, const T* dout,                  \
                                    const float* logsumexp, T* out, float* delta, T* dqkv) {        \
        query_pass<T>(*tree, qkv, dout, logsumexp, out, delta, dqkv);                               \
        key_pass<T>(*tree, qkv, dout, logsumexp, delta, dqkv);                                      \
    }

FOR_BOTH(float, fp32)
FOR_BOTH(Half, bf16)
