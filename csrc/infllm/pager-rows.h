#pragma once

#include "pager-layer.h"
#include "row-codec.h"

namespace infllm {

struct alignas(16) bytes16 {
    uint32_t x[4];
};

// four loads in flight for every thread: the source may be on the other side of a bus
template <typename Group>
INFLLM_PORTABLE void copy_bytes(const Group & g, uint8_t * dst, const uint8_t * src, uint64_t n) {
    uint64_t done = 0;
    if ((uintptr_t(dst) | uintptr_t(src))%sizeof(bytes16) == 0) {
        const uint64_t n16  = n/sizeof(bytes16);
        const uint64_t step = g.size();

        auto * d = (bytes16 *) dst;
        auto * s = (const bytes16 *) src;

        for (uint64_t i = g.rank(); i < n16; i += 4*step) {
            bytes16 x[4];
            for (int j = 0; j < 4; ++j) {
                if (i + j*step < n16) {
                    x[j] = s[i + j*step];
                }
            }
            for (int j = 0; j < 4; ++j) {
                if (i + j*step < n16) {
                    d[i + j*step] = x[j];
                }
            }
        }
        done = n16*sizeof(bytes16);
    }
    for (uint64_t i = done + g.rank(); i < n; i += g.size()) {
        dst[i] = src[i];
    }
}

// cosine and sine of a rotation for pair i
struct cos_sin {
    float c;
    float s;

    INFLLM_PORTABLE cos_sin inverse() const { return { c, -s }; }
};

INFLLM_PORTABLE cos_sin operator*(const cos_sin & a, const cos_sin & b) {
    return { a.c*b.c - a.s*b.s, a.c*b.s + a.s*b.c };
}

INFLLM_PORTABLE cos_sin rope_at(const float * table, uint32_t n_rot, uint32_t row, uint32_t i) {
    const float * cs = table + uint64_t(row)*n_rot + 2*i;
    return { cs[0], cs[1] };
}

// by n blocks
INFLLM_PORTABLE cos_sin rope_by(const pager_layer & l, uint32_t n, uint32_t i) {
    return rope_at(l.rope_low, l.n_rot, n%block_rotations::N_LOW, i)*rope_at(l.rope_high, l.n_rot, n/block_rotations::N_LOW, i);
}

// from the positions of block src to those of block dst
INFLLM_PORTABLE cos_sin rope_move(const pager_layer & l, uint32_t src, uint32_t dst, uint32_t i) {
    return src < dst ? rope_by(l, dst - src, i) : rope_by(l, src - dst, i).inverse();
}

// the dimensions of pair i
INFLLM_PORTABLE uint32_t rope_dim0(const pager_layer & l, uint32_t i) { return l.rot0 + (l.neox ? i : 2*i); }
INFLLM_PORTABLE uint32_t rope_dim1(const pager_layer & l, uint32_t i) { return l.rot0 + (l.neox ? i + l.n_rot/2 : 2*i + 1); }

static constexpr uint32_t PAGER_MAX_HEAD = 256; // values of a head of quantised K that a thread holds

// rotate n rows of K, in place; a group may have a faster way (see llama-infllm-host-pager.cpp)
template <typename Group>
INFLLM_PORTABLE void rotate_k(const Group & g, const pager_layer & l, uint8_t * rows, uint32_t n, uint32_t src, uint32_t dst) {
    const uint32_t n_pair = l.n_rot/2;

    if (l.type_k == KV_F16) {
        for (uint64_t i = g.rank(); i < uint64_t(n)*l.n_head_kv*n_pair; i += g.size()) {
            const uint32_t pair = i%n_pair;
            auto * x = (uint16_t *) rows + i/n_pair*l.n_embd_head_k; // rows are contiguous

            uint16_t & x0 = x[rope_dim0(l, pair)];
            uint16_t & x1 = x[rope_dim1(l, pair)];

            const cos_sin r = rope_move(l, src, dst, pair);
            const float   a = half_to_float(x0);
            const float   b = half_to_float(x1);
            x0 = half_from_float(a*r.c - b*r.s);
            x1 = half_from_float(a*r.s + b*r.c);
        }
        return;
    }

    // blocks of 32 values share a scale: a thread does a head
    const uint64_t head_bytes = kv_row_bytes(l.type_k, l.n_embd_head_k);
    for (uint64_t i = g.rank(); i < uint64_t(n)*l.n_head_kv; i += g.size()) {
        uint8_t * head = rows + i/l.n_head_kv*l.row_k + i%l.n_head_kv*head_bytes;

        float x[PAGER_MAX_HEAD];
        for (uint32_t j = 0; j < l.n_embd_head_k; ++j) {
            x[j] = kv_load(l.type_k, head, j);
        }
        for (uint32_t pair = 0; pair < n_pair; ++pair) {
            float & x0 = x[rope_dim0(l, pair)];
            float & x1 = x[rope_dim1(l, pair)];

            const cos_sin r = rope_move(l, src, dst, pair);
            const float   a = x0;
            const float   b = x1;
            x0 = a*r.c - b*r.s;
            x1 = a*r.s + b*r.c;
        }
        for (uint32_t j = 0; j < l.n_embd_head_k; j += 32) {
            kv_store_block(l.type_k, head + kv_row_bytes(l.type_k, j), x + j);
        }
    }
}

// the rows of a block, of so many bytes each, into the store
template <typename Group>
INFLLM_PORTABLE void store_rows_of(const Group & g, const pager_layer & l, uint64_t row, const uint8_t * rows, uint8_t * dst) {
    const uint64_t size = l.cells.block_size*row;
    if (l.is_coded()) {
        encode_rows(g, l.codec, row/sizeof(uint16_t), rows, size/sizeof(uint16_t), dst);
    } else {
        copy_bytes(g, dst, rows, size);
    }
}

// rows [row0, row0 + n) back from there
template <typename Group>
INFLLM_PORTABLE void load_rows_of(const Group & g, const pager_layer & l, uint64_t row, const uint8_t * stored, uint32_t row0, uint32_t n,
        uint8_t * rows) {
    if (l.is_coded()) {
        decode_rows(g, l.codec, row/sizeof(uint16_t), stored + l.stored(row0*row), n*row/sizeof(uint16_t), rows);
    } else {
        copy_bytes(g, rows, stored + row0*row, n*row);
    }
}

// Rows of a stored block, into n cells of K and V: rows [row0, row0 + n), at the positions of block dst.
//   data  the layer's part of the block
template <typename Group>
INFLLM_PORTABLE void load_rows(const Group & g, const pager_layer & l, const uint8_t * data, uint32_t block, uint32_t dst,
        uint32_t row0, uint32_t n, uint8_t * k, uint8_t * v) {
    load_rows_of(g, l, l.row_k, data,                        row0, n, k);
    load_rows_of(g, l, l.row_v, data + l.stored(l.size_k()), row0, n, v);

    if (l.n_rot > 0 && block != dst) {
        g.sync();
        rotate_k(g, l, k, n, block, dst);
    }
}

} // namespace infllm
