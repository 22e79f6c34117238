// A packed batch as the attention kernels see it.

#pragma once

#include "product.h"

// Segment s holds positions start[s] ... start[s] + length[s]. Its ancestors, root first, are
// chain[chain_at[s] ... chain_at[s + 1]]. A unit of work is (segment, first, end): queries inside of it.
// Keys of a segment that several units read have a place in a common sum of gradients, from row
// shared_at[s] of shared_rows on; elsewhere shared_at is -1. Field by field TreeStruct of kernels.py.
struct Tree {
    int64_t positions, heads, key_heads, dim, used, segments;
    const int64_t *start, *length, *chain_at, *chain, *shared_at, *units;
    int64_t unit_count, longest_row, shared_rows;
    float scale;

    int64_t group() const { return heads / key_heads; }
    int64_t wide() const { return padded(dim); }
};

namespace {

// Queries of all heads of a group, side by side, in one product: a multiple of every tile's columns.
const int64_t COLUMNS = 64;

const float LOG2_E = 1.44269504f, LN_2 = 0.69314718f;

// Rows of heads * dim numbers in the joint projection, its gradient, or (slots = heads) the output.
template <typename T>
struct Rows {
    T* at;
    int64_t slots, dim;
    T* operator()(int64_t position, int64_t slot) const { return at + (position * slots + slot) * dim; }
};

// One unit for one key head. Its keys are those of the chain and then the segment's own up to `end`;
// its columns are the queries of the group's heads, column = query * group + head of the group.
struct Unit {
    const Tree& tree;
    int64_t segment, first, end, head, before, group, columns;

    Unit(const Tree& tree, int64_t unit, int64_t head) : tree(tree), head(head), group(tree.group()) {
        segment = tree.units[3 * unit];
        first = tree.units[3 * unit + 1];
        end = tree.units[3 * unit + 2];
        columns = (end - first) * group;
        before = 0;
        for (int64_t c = tree.chain_at[segment]; c < tree.chain_at[segment + 1]; ++c)
            before += tree.length[tree.chain[c]];
    }

    int64_t keys() const { return before + end; }
    // Keys that a column sees.
    int64_t visible(int64_t column) const { return before + first + column / group + 1; }
    // The first column that sees a key.
    int64_t seen_from(int64_t key) const {
        const int64_t behind = key - before - first;
        return behind > 0 ? behind * group : 0;
    }

    // visit(segment, first position, rows, keys before) for each stretch of keys.
    template <typename Visit>
    void along(const Visit& visit) const {
        int64_t seen = 0;
        for (int64_t c = tree.chain_at[segment]; c < tree.chain_at[segment + 1]; ++c) {
            const int64_t a = tree.chain[c];
            visit(a, tree.start[a], tree.length[a], seen);
            seen += tree.length[a];
        }
        visit(segment, tree.start[segment], end, seen);
    }
};

// Columns [first, end) of a unit: what one sequence of products works on.
struct Panel {
    const Unit& unit;
    int64_t first, end;
    int64_t columns() const { return end - first; }
    int64_t across() const { return (columns() + LANES - 1) / LANES * LANES; }
    int64_t keys() const { return unit.visible(end - 1); }
    // Keys that all columns see; the others have a diagonal.
    int64_t open() const { return unit.visible(first); }
    // First column of the panel that sees a key.
    int64_t from(int64_t key) const {
        const int64_t column = unit.seen_from(key) - first;
        return column > 0 ? column : 0;
    }
    // Keys that any of the columns up to one sees.
    int64_t until(int64_t column) const { return unit.visible(first + column); }

    // visit(column of the panel, position, query head) for each.
    template <typename Visit>
    void each(const Visit& visit) const {
        const int64_t heads = unit.head * unit.group;
        int64_t position = unit.tree.start[unit.segment] + unit.first + first / unit.group;
        int64_t member = first % unit.group;
        for (int64_t c = 0; c < columns(); ++c) {
            visit(c, position, heads + member);
            if (++member == unit.group) {
                member = 0;
                ++position;
            }
        }
    }
};

// A row that will be written soon: asked for now, because storage is far away. Always inlined: alone, a
// function that only asks is taken for one that does nothing, and left out.
template <typename T>
inline __attribute__((always_inline)) void ask_for(const T* row, int64_t dim) {
    for (int64_t d = 0; d < dim; d += 64 / int64_t(sizeof(T))) __builtin_prefetch(row + d, 1, 2);
}

// Vectors of the panel's columns from storage, as rows of `wide` floats and transposed, (dim, COLUMNS).
// Rows of `soon` are what the panel will be written to.
template <typename T>
void gather(const Panel& panel, Rows<const T> from, float scale, float* rows, float* transposed,
            Rows<T> soon) {
    const int64_t wide = panel.unit.tree.wide(), dim = panel.unit.tree.dim;
    panel.each([&](int64_t c, int64_t position, int64_t head) {
        copy_in(from(position, head), dim, rows + c * wide, wide, scale);
        ask_for(soon(position, head), dim);
    });
    std::memset(rows + panel.columns() * wide, 0, (panel.across() - panel.columns()) * wide * 4);
    for (int64_t c = 0; c < panel.across(); c += LANES)
        for (int64_t d = 0; d < dim; d += LANES)
            transpose_square(rows + c * wide + d, wide, transposed + d * COLUMNS + c, COLUMNS);
}

// Keys and values of a unit from storage, as rows of `wide` floats.
template <typename T>
void gather_keys(const Unit& unit, Rows<const T> qkv, float* keys, float* values) {
    const Tree& tree = unit.tree;
    const int64_t wide = tree.wide(), slot = tree.heads + unit.head;
    unit.along([&](int64_t, int64_t at, int64_t rows, int64_t seen) {
        for (int64_t i = 0; i < rows; ++i) {
            copy_in(qkv(at + i, slot), tree.dim, keys + (seen + i) * wide, wide, 1.f);
            copy_in(qkv(at + i, slot + tree.key_heads), tree.dim, values + (seen + i) * wide, wide, 1.f);
        }
    });
}

// Left (keys, wide) times right (dim, COLUMNS): one row a key, for the columns that see it at all.
// finish(key) makes what takes the sums of the strip that begins at a key.
template <typename Finish>
void score(const Panel& panel, int64_t key, int64_t end, const float* left, const float* right,
           const Finish& finish) {
    const int64_t wide = panel.unit.tree.wide(), dim = panel.unit.tree.dim;
    in_strips(key, end, [&](int64_t i, int64_t rows) {
        const int64_t skip = panel.from(i) / LANES * LANES;
        strip({left + i * wide, wide, 1}, {right + skip, COLUMNS}, rows, panel.across() - skip, dim,
              finish(i, skip));
    });
}

// mixed (columns, wide) = or += weights (keys, COLUMNS) transposed times rows (keys, wide), for keys
// [key, end) of those that the columns see.
inline void mix(const Panel& panel, int64_t key, int64_t end, const float* weights, const float* rows,
                float* mixed) {
    const int64_t wide = panel.unit.tree.wide();
    const bool open = end <= panel.open();
    in_strips(0, panel.columns(), [&](int64_t c, int64_t count) {
        const int64_t until = open ? end : panel.until(c + count - 1);
        const int64_t depth = (until < end ? until : end) - key;
        const Left left{weights + key * COLUMNS + c, 1, COLUMNS};
        const Right right{rows + key * wide, wide};
        if (key == 0)
            strip(left, right, count, wide, depth, Put{mixed + c * wide, wide});
        else if (depth > 0)
            strip(left, right, count, wide, depth, Add{mixed + c * wide, wide});
    });
}

// Keys of one block of `mix`: its rows stay in the first-level cache.
inline int64_t keys_a_block(int64_t wide) { return wide < 256 ? 8192 / wide / TILE_ROWS * TILE_ROWS : 30; }

}  // namespace
