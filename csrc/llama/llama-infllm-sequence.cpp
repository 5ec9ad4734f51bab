#include "llama-infllm-sequence.h"

#include "../infllm/centred.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstring>

llama_infllm_sequence::llama_infllm_sequence(
        llama_seq_id id, const llama_infllm_layers & layers, llama_infllm_page_control & paging, infllm::block_store & store) :
    id(id), layers(layers), cells(layers.cells), pagers(paging), store(store) {
    if (layers.can_page()) {
        init_k.resize(layers.all().size());
    }
}

void llama_infllm_sequence::begin_ubatch(const plan & plan) {
    has_slots_before = false;

    if (layers.can_page()) {
        offload(plan.n_offload);

        if (paging()) {
            // what several tokens see is a function of the text alone, whatever was computed before; decoding is to be fast
            const bool anew = plan.p1 - plan.p0 > 1;

            // the model sees no more positions than there are cells
            if (layers.remap && (anew || plan.p1 - shift*cells.block_size > cells.n_cells())) {
                set_shift(get_n_offload() - cells.n_slot);
            }
            if (anew) {
                place = stale ? infllm::PLACE_ALL : infllm::PLACE_ANEW;
            } else {
                place = infllm::PLACE_UPDATE;
                if (stale) {
                    load_slots();
                }
                save_slots();
            }
            stale = false;
        }
        if (layers.selector->sums_attention()) {
            clear_sums(plan.p0, plan.p1);
        }
    }

    n_tokens  = plan.p1;
    n_written = std::max(n_written, n_tokens);
}

// of the blocks of positions that begin here; page ops do this by themselves for queries
void llama_infllm_sequence::clear_sums(uint32_t p0, uint32_t p1) {
    for (uint32_t p = std::max(p0, cells.n_init); p < p1; ++p) {
        if ((p - cells.n_init)%cells.block_size != 0) {
            continue;
        }
        for (const auto & l : layers.all()) {
            pagers.of(l).edit(l.idx, id, [&](const infllm::pager_layer & pl, const infllm::pager_state & state) {
                std::fill_n(state.sums_of(pl, cells.block_of(p)), pl.n_sum, 0.0f);
            });
        }
    }
}

// blocks [get_n_offload(), n_offload) leave the ring
void llama_infllm_sequence::offload(uint32_t n_offload) {
    if (n_offload <= get_n_offload()) {
        return;
    }

    pagers.synchronize();

    const uint32_t block0 = get_n_offload();
    if (block0 == 0) {
        // until now cell = position: the first blocks are in their slots already
        for (const auto & l : layers.all()) {
            pagers.of(l).edit(l.idx, id, [&](const infllm::pager_layer &, const infllm::pager_state & state) {
                state.slots.clear();
                for (uint32_t i = 0; i < cells.n_slot; ++i) {
                    state.slots.assign(i, i);
                }
            });
        }
        keep_init_keys();
        stale = layers.is_coded(); // in slots they are as in the store, whenever they came there
    }

    std::vector<uint8_t *> data;
    for (uint32_t b = block0; b < n_offload; ++b) {
        const int32_t block_id = store.alloc();
        GGML_ASSERT(block_id != infllm::block_store::NONE);
        blocks.push_back(block_id);
        data.push_back(store.data(block_id));
    }
    pagers.store(id, block0, n_tokens, data);

    if (block0 == 0 && layers.selector->centres()) {
        set_mean();
    }
}

void llama_infllm_sequence::keep_init_keys() {
    for (const auto & l : layers.all()) {
        if (layers.remap && l.rope >= 0) {
            auto & keys = init_k[l.idx];
            keys.resize(cells.n_init*l.k->nb[1]);
            ggml_backend_tensor_get(l.k, keys.data(), id*l.k->nb[2], keys.size());
        }
    }
}

// the mean of the representative keys of the blocks that leave the ring first, which are centred now
void llama_infllm_sequence::set_mean() {
    pagers.synchronize();

    std::vector<uint16_t> rows;
    const int64_t n_row = int64_t(get_n_offload())*layers.prm.infllm.n_repr;
    for (const auto & l : layers.all()) {
        if (!l.mean) {
            continue;
        }
        const int64_t n_embd = l.repr->ne[0];

        rows.resize(n_row*n_embd);
        ggml_backend_tensor_get(l.repr, rows.data(), id*l.repr->nb[2], n_row*l.repr->nb[1]);

        std::vector<double> sum(n_embd);
        for (int64_t i = 0; i < n_row*n_embd; ++i) {
            sum[i%n_embd] += infllm::half_to_float(rows[i]);
        }
        std::vector<float> mean(n_embd);
        std::transform(sum.begin(), sum.end(), mean.begin(), [&](double x) { return float(x/n_row); });
        ggml_backend_tensor_set(l.mean, mean.data(), id*l.mean->nb[2], n_embd*sizeof(float));

        std::vector<float> lanes(n_row*infllm::CENTRED_LANES);
        infllm::centre_rows(infllm::single_thread(), rows.data(), n_row, n_embd, mean.data(), lanes.data());
        ggml_backend_tensor_set(l.repr, rows.data(), id*l.repr->nb[2], n_row*l.repr->nb[1]);
    }
}

void llama_infllm_sequence::set_shift(uint32_t shift_new) {
    if (shift_new == shift) {
        return;
    }
    shift = shift_new;
    stale = stale || layers.has_rope(); // without RoPE positions are in the mask alone

    pagers.synchronize();
    for (const auto & l : layers.all()) {
        if (!init_k[l.idx].empty()) {
            bytes = init_k[l.idx];
            infllm::host_rotate_rows(pagers.host_layer(l), bytes.data(), cells.n_init, 0, shift);
            ggml_backend_tensor_set(l.k, bytes.data(), id*l.k->nb[2], bytes.size());
        }
    }
}

void llama_infllm_sequence::load_slots() {
    pagers.synchronize();

    for (const auto & l : layers.all()) {
        pagers.of(l).read(l.idx, id, [&](const infllm::pager_layer &, const infllm::pager_state & state) {
            for (uint32_t i = 0; i < cells.n_slot; ++i) {
                const uint32_t block = state.slots.block[i];
                load_block(l, block, cells.slot_cell(i), slot_block(i, block));
            }
        });
    }
    stale = false;
}

void llama_infllm_sequence::save_slots() {
    slots_before.resize(layers.all().size());
    has_slots_before = true;
    for (const auto & l : layers.all()) {
        slots_before[l.idx].block.clear(); // nothing to restore
        if (pagers.by_device(l)) {
            continue;
        }
        pagers.of(l).read(l.idx, id, [&](const infllm::pager_layer &, const infllm::pager_state & state) {
            const auto & slots = state.slots;
            auto & copy = slots_before[l.idx];
            copy.tick = *slots.tick;
            copy.block.assign(slots.block, slots.block + slots.n_slot);
            copy.used .assign(slots.used,  slots.used  + slots.n_slot);
        });
    }
}

void llama_infllm_sequence::restore_slots() {
    for (const auto & l : layers.all()) {
        const auto & before = slots_before[l.idx];
        if (pagers.by_device(l) || before.block.empty()) {
            continue;
        }
        pagers.of(l).edit(l.idx, id, [&](const infllm::pager_layer &, const infllm::pager_state & state) {
            *state.slots.tick = before.tick;
            std::copy(before.block.begin(), before.block.end(), state.slots.block);
            std::copy(before.used .begin(), before.used .end(), state.slots.used);
        });
    }
}

void llama_infllm_sequence::truncate(uint32_t n_tokens_new, bool is_last) {
    if (n_tokens_new == 0) {
        reset();
        return;
    }

    if (paging()) {
        // with n_offload == 0 all goes back to cell = position
        const uint32_t n_old     = get_n_offload();
        const uint32_t n_offload = std::min(n_old, cells.n_offload(n_tokens_new, n_tokens_new));

        // a ring that starts further back must not run into the positions of the slots
        if (layers.remap) {
            set_shift(n_offload == 0 ? 0 : std::min(shift, n_offload - cells.n_slot));
        }

        pagers.synchronize();
        if (has_slots_before && is_last) {
            restore_slots();
        }

        // blocks that are in the ring again must not be attended twice; every slot holds a block, so fill up
        const uint32_t n_block = n_tokens_new > cells.n_init ? cells.block_of(n_tokens_new - 1) + 1 : 0;
        for (const auto & l : layers.all()) {
            for (uint32_t b = n_offload; b < n_old && b < n_block; ++b) {
                if (!in_ring(b)) {
                    load_block(l, b, cells.cell(cells.block_pos(b)), b);
                }
            }
            pagers.of(l).edit(l.idx, id, [&](const infllm::pager_layer & pl, const infllm::pager_state & state) {
                for (uint32_t b = n_offload; pl.n_chunk > 0 && b < n_old && b < n_block; ++b) {
                    std::memcpy(state.sums_of(pl, b), stored(l, b) + pl.stored_kv(), pl.size_sum());
                }
                if (n_offload == 0) {
                    state.slots.clear();
                } else {
                    state.slots.remove_from(n_offload);
                    state.slots.fill(n_offload);
                }
            });
        }
        for (uint32_t b = n_offload; b < n_old; ++b) {
            store.unref(blocks[b]);
        }
        blocks.resize(n_offload);
        stale = n_offload > 0;
        pagers.set_n_stored(id, n_offload);
        pagers.set_can_end();
    }

    n_tokens = n_tokens_new;
}

void llama_infllm_sequence::reset() {
    if (paging()) {
        pagers.synchronize(); // blocks may still be on their way
    }
    for (const int32_t block_id : blocks) {
        store.unref(block_id);
    }
    blocks.clear();
    has_slots_before = false;
    n_tokens  = 0;
    n_written = 0;
    shift     = 0;
    stale     = false;
    pagers.set_n_stored(id, 0);
    pagers.set_can_end();
}

void llama_infllm_sequence::copy(const llama_infllm_sequence & other) {
    // stored blocks never change, so both sequences can refer to them
    for (const int32_t block_id : other.blocks) {
        store.ref(block_id);
    }
    n_tokens  = other.n_tokens;
    n_written = other.n_written;
    shift     = other.shift;
    stale     = other.stale;
    place     = other.place;
    blocks    = other.blocks;
    init_k    = other.init_k;
    has_slots_before = false;
}

void llama_infllm_sequence::load_block(const llama_infllm_layer & l, uint32_t block, uint32_t cell, uint32_t dst) {
    const auto & pl = pagers.host_layer(l);

    infllm::host_load_rows(pl, stored(l, block), block, dst, bytes);
    ggml_backend_tensor_set(l.k, bytes.data(), id*l.k->nb[2] + cell*l.k->nb[1], pl.size_k());
    if (l.v) {
        ggml_backend_tensor_set(l.v, bytes.data() + pl.size_k(), id*l.v->nb[2] + cell*l.v->nb[1], pl.size_v());
    }
}

uint32_t llama_infllm_sequence::check_slots() {
    uint32_t n_bad = 0;

    std::vector<uint8_t> rows;
    for (const auto & l : layers.all()) {
        if (!paging()) {
            break;
        }
        const auto & pl = pagers.host_layer(l);
        pagers.of(l).read(l.idx, id, [&](const infllm::pager_layer &, const infllm::pager_state & state) {
            for (uint32_t i = 0; i < cells.n_slot; ++i) {
                const int32_t block = state.slots.block[i];
                if (block < 0 || block >= int32_t(get_n_offload())) {
                    n_bad++;
                    continue;
                }
                infllm::host_load_rows(pl, stored(l, block), block, slot_block(i, block), bytes);
                rows.resize(bytes.size());
                const size_t cell = cells.slot_cell(i);
                ggml_backend_tensor_get(l.k, rows.data(), id*l.k->nb[2] + cell*l.k->nb[1], pl.size_k());
                if (l.v) {
                    ggml_backend_tensor_get(l.v, rows.data() + pl.size_k(), id*l.v->nb[2] + cell*l.v->nb[1], pl.size_v());
                }
                n_bad += rows != bytes;
            }
        });
    }

    return n_bad;
}
