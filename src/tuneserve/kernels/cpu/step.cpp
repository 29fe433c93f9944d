// One step of a decoder: tokens of any number of sequences through all layers, over a paged cache.
//
// The threads run the same function and meet after each phase. Sizes and ranges were checked by the caller.
#include <algorithm>
#include <new>
#include <type_traits>

#include "attention.h"
#include "linear.h"
#include "lora.h"
#include "pack.h"
#include "pool.h"

extern "C" {

struct Layer {
    const float *attention_norm, *mlp_norm, *post_attention_norm, *post_mlp_norm, *query_norm, *key_norm;
    const float* sinks;      // (heads), or null
    Linear qkv, output, gate_up, down;
    const float *cos, *sin;  // (context, rotary_dim / 2); null: no positions
    int32_t rotary_dim;
    int32_t window;          // 0: all positions
};

struct Model {
    int32_t hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, activation;
    int32_t cache_kind, embedding_kind;
    float eps, attention_scale, attention_softcap, logit_softcap, embedding_scale, residual_scale, logit_scale, unused;
    const void* embedding;
    const float* norm;
    const float* query_scales;  // (context), or null
    Linear head;
    const Layer* layer;
};

struct Batch {
    int32_t tokens, sequences, max_blocks, unused;
    const int64_t *ids, *positions, *slots;
    const int32_t *starts, *block_tables;
    void *keys, *values;
    int64_t layer_stride;  // elements
    float* hidden;         // (tokens, hidden), after the last norm
    const int32_t* slots_of_adapters;  // (tokens), -1: none; null: none at all
    const Delta* deltas;               // (slots, layers, 4): qkv, output, gate_up, down
};
}

namespace {

enum Activation : int32_t { SILU = 0, GELU_TANH = 1 };

struct Buffer {
    uint8_t* data = nullptr;
    size_t size = 0;
    ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
    void reserve(size_t bytes) {
        if (bytes <= size) return;
        ::operator delete(data, std::align_val_t(64));
        data = nullptr, size = 0;
        data = (uint8_t*)::operator new(bytes, std::align_val_t(64));
        size = bytes;
    }
};

struct Session {
    explicit Session(int threads) : pool(threads), queries(new Queries[threads]), rows(new Buffer[threads]) {}
    ~Session() {
        delete[] queries;
        delete[] rows;
    }
    Pool pool;
    Queries* queries;
    Buffer* rows;
    Buffer residual, operand, qkv, activated, plain;
    Adapted adapted;
};

constexpr int LINEARS = 4;  // of a layer that adapters may change

// A thread and the phase that it is in.
struct Worker {
    int id, phase;
};

constexpr int64_t PIECE = 8192;  // columns times rows of a panel that are worth sharing out

// Rows are cheap: as many at a time as leave some for everyone.
template <class F>
void each_row(Session& s, Worker& w, int count, F&& f) {
    s.pool.share(w.phase++, count, std::max(1, count / (2 * s.pool.size())), f);
}

void normalise(const float* from, const float* weight, float* to, int size, float eps) {
    vf squares[4] = {};
    for (int i = 0; i < size; i += LANES) {
        vf x = load(from + i);
        squares[i / LANES % 4] = fma(x, x, squares[i / LANES % 4]);
    }
    float mean = sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / size;
    float scale = 1.0f / std::sqrt(mean + eps);
    for (int i = 0; i < size; i += LANES) store(to + i, load(from + i) * scale * load(weight + i));
}

constexpr int NO_DELTAS = -1;

// `linear` is the number of the linear layer among those that adapters change.
template <class Done>
void multiply_all(Session& s, Worker& w, const Linear& l, int linear, const uint8_t* x, int rows, Done&& done) {
    const size_t stride = operand_bytes(l.kind, l.cols);
    const int panels = panels_of(l.rows), inner = linear == NO_DELTAS ? 0 : s.adapted.pieces(linear);
    const uint8_t* plain = x;
    size_t plain_stride = stride;
    if (inner && operand_form(l.kind) != operand_form(s.adapted.kind())) {
        plain = s.plain.data, plain_stride = operand_bytes(s.adapted.kind(), l.cols);
        each_row(s, w, s.adapted.rows().size(), [&](int index) {
            const int row = s.adapted.rows()[index];
            float* wide = (float*)s.rows[w.id].data;
            widen(l.kind, x + row * stride, l.cols, wide);
            prepare(s.adapted.kind(), wide, s.plain.data + row * plain_stride, 0, l.cols);
        });
    }
    // Large enough to be worth sharing out, small enough to end together; what all wait for is taken piece by piece.
    const int enough = (int)std::min<int64_t>(PIECE / ((int64_t)l.cols * rows) + 1, panels / (2 * s.pool.size()));
    const int chunk = std::max(1, enough), phase = w.phase++;
    s.pool.share(phase, inner * chunk + panels, chunk, [&](int piece) {
        if (piece < inner * chunk) {
            if (piece % chunk) return;
            s.adapted.shrink(linear, piece / chunk, plain, plain_stride);
            s.pool.note(phase);
            return;
        }
        const int panel = piece - inner * chunk;
        alignas(64) float results[BLOCK_ROWS * PANEL];
        for (int first = 0, blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS; blocks > 0; --blocks) {
            const int count = (rows - first + blocks - 1) / blocks;
            multiply(l, panel, x + first * stride, stride, count, results);
            if (inner) {
                s.pool.await_noted(phase, inner);
                s.adapted.expand(linear, panel, first, count, results);
            }
            done(first, count, panel * PANEL, results);
            first += count;
        }
    });
}

// Write results into rows of `width` floats, the bias added; the last panel may be cut off.
void place(const Linear& w, float* to, size_t width, int first, int count, int column, const float* results) {
    const int columns = std::min(PANEL, w.rows - column);
    for (int r = 0; r < count; ++r, results += PANEL) {
        float* row = to + (first + r) * width + column;
        int i = 0;
        for (; i + LANES <= columns; i += LANES) {
            vf x = load(results + i);
            store(row + i, w.bias ? x + load(w.bias + column + i) : x);
        }
        for (; i < columns; ++i) row[i] = results[i] + (w.bias ? w.bias[column + i] : 0.0f);
    }
}

class Step {
   public:
    Step(Session& session, const Model& model, const Batch& batch) : s(session), m(model), b(batch) {
        const size_t tokens = b.tokens, queries = (size_t)m.heads * m.head_dim;
        const size_t widest = std::max({(size_t)m.hidden, queries, (size_t)m.intermediate});
        qkv_width = (m.heads + 2 * m.kv_heads) * m.head_dim;
        s.residual.reserve(tokens * m.hidden * 4);
        s.operand.reserve(tokens * widest * 4);
        s.qkv.reserve(tokens * std::max(qkv_width, m.hidden) * 4);
        s.activated.reserve(tokens * m.intermediate * 4);
        for (int id = 0; id < s.pool.size(); ++id) s.rows[id].reserve(widest * 4);
        s.adapted.begin(m.cache_kind, b.slots_of_adapters, b.tokens, b.deltas, m.layers * LINEARS);
        if (s.adapted.any()) s.plain.reserve(tokens * widest * 4);
        residual = (float*)s.residual.data;
        qkv = (float*)s.qkv.data;
        activated = s.activated.data;
        operand = s.operand.data;
        // As many tokens of a sequence as fill the queries that one turned block of keys serves.
        group = m.heads / m.kv_heads;
        span = std::max(1, MAX_QUERIES / group);
        for (int seq = 0; seq < b.sequences; ++seq) spans += (b.starts[seq + 1] - b.starts[seq] + span - 1) / span;
    }

    void run() {
        s.pool.run(m.layers * PHASES_PER_LAYER + 2, [this](int id) { work({id, 0}); });
    }

   private:
    static constexpr int PHASES_PER_LAYER = 16;

    void work(Worker&& w) {
        each(w, [&](int token) { embed(token); });
        for (int index = 0; index < m.layers; ++index) {
            const Layer& layer = m.layer[index];
            norm_all(w, layer.attention_norm, layer.qkv.kind);
            multiply_all(s, w, layer.qkv, index * LINEARS, operand, b.tokens, [&](int first, int count, int column, const float* results) {
                place(layer.qkv, qkv, qkv_width, first, count, column, results);
            });
            dispatch([&](auto tag) {
                using T = decltype(tag);
                each(w, [&](int token) { rotate<T>(layer, index, token); });
                attention<T>(w, layer, index);
            });
            add(w, layer.output, index * LINEARS + 1, operand, layer.post_attention_norm);
            norm_all(w, layer.mlp_norm, layer.gate_up.kind);
            gate(w, layer, index * LINEARS + 2);
            add(w, layer.down, index * LINEARS + 3, layer.down.kind < INT8 ? activated : operand, layer.post_mlp_norm);
        }
        each(w, [&](int token) {
            normalise(residual + (size_t)token * m.hidden, m.norm, b.hidden + (size_t)token * m.hidden, m.hidden, m.eps);
        });
    }

    template <class F>
    void dispatch(F&& f) {
        if (m.cache_kind == BF16) f(bf16{});
        else if (m.cache_kind == F16) f(f16{});
        else f(float{});
    }

    template <class F>
    void each(Worker& w, F&& f) {
        each_row(s, w, b.tokens, f);
    }

    void embed(int token) {
        float* row = residual + (size_t)token * m.hidden;
        const size_t first = (size_t)b.ids[token] * m.hidden;
        auto copy = [&](auto* table) {
            for (int i = 0; i < m.hidden; i += LANES) store(row + i, load(table + first + i) * m.embedding_scale);
        };
        if (m.embedding_kind == BF16) copy((const bf16*)m.embedding);
        else if (m.embedding_kind == F16) copy((const f16*)m.embedding);
        else copy((const float*)m.embedding);
    }

    uint8_t* operand_row(int kind, int cols, int row) const { return operand + row * operand_bytes(kind, cols); }

    void norm_all(Worker& w, const float* weight, int kind) {
        each(w, [&](int token) {
            float* row = (float*)s.rows[w.id].data;
            normalise(residual + (size_t)token * m.hidden, weight, row, m.hidden, m.eps);
            prepare(kind, row, operand_row(kind, m.hidden, token), 0, m.hidden);
        });
    }

    // residual += product with x, normalised first where the family does so.
    void add(Worker& w, const Linear& l, int linear, const uint8_t* x, const float* post_norm) {
        if (post_norm) {
            multiply_all(s, w, l, linear, x, b.tokens, [&](int first, int count, int column, const float* results) {
                place(l, qkv, m.hidden, first, count, column, results);
            });
            each(w, [&](int token) {
                float* row = qkv + (size_t)token * m.hidden;
                normalise(row, post_norm, row, m.hidden, m.eps);
                float* to = residual + (size_t)token * m.hidden;
                for (int i = 0; i < m.hidden; i += LANES) store(to + i, load(to + i) + load(row + i) * m.residual_scale);
            });
            return;
        }
        multiply_all(s, w, l, linear, x, b.tokens, [&](int first, int count, int column, const float* results) {
            const int columns = std::min(PANEL, l.rows - column);
            for (int r = 0; r < count; ++r, results += PANEL) {
                float* row = residual + (size_t)(first + r) * m.hidden + column;
                for (int i = 0; i < columns; i += LANES) {
                    vf y = load(results + i);
                    if (l.bias) y += load(l.bias + column + i);
                    store(row + i, fma(y, splat(m.residual_scale), load(row + i)));
                }
            }
        });
    }

    // A head's query or key: normalised if the family does, then the first rotary_dim dimensions turned by halves.
    void turn_head(const Layer& layer, const float* norm, float* head, int64_t position) const {
        if (norm) normalise(head, norm, head, m.head_dim, m.eps);
        if (!layer.cos) return;
        const int half = layer.rotary_dim / 2;
        const float *cos = layer.cos + position * half, *sin = layer.sin + position * half;
        int i = 0;
        for (; i + LANES <= half; i += LANES) {
            vf x = load(head + i), y = load(head + half + i), c = load(cos + i), s_ = load(sin + i);
            store(head + i, x * c - y * s_);
            store(head + half + i, y * c + x * s_);
        }
        for (; i < half; ++i) {
            float x = head[i], y = head[half + i];
            head[i] = x * cos[i] - y * sin[i];
            head[half + i] = y * cos[i] + x * sin[i];
        }
    }

    template <class T>
    void rotate(const Layer& layer, int index, int token) {
        float* row = qkv + (size_t)token * qkv_width;
        const int64_t position = b.positions[token], slot = b.slots[token];
        for (int head = 0; head < m.heads; ++head)
            turn_head(layer, layer.query_norm, row + head * m.head_dim, position);
        if (m.query_scales)
            for (int i = 0; i < m.heads * m.head_dim; i += LANES) store(row + i, load(row + i) * m.query_scales[position]);
        for (int head = 0; head < m.kv_heads; ++head) {
            float *key = row + (m.heads + head) * m.head_dim, *value = key + m.kv_heads * m.head_dim;
            turn_head(layer, layer.key_norm, key, position);
            const size_t offset = index * b.layer_stride +
                                  (((size_t)(slot / BLOCK) * m.kv_heads + head) * BLOCK + slot % BLOCK) * m.head_dim;
            for (int i = 0; i < m.head_dim; i += LANES) {
                store((T*)b.keys + offset + i, load(key + i));
                store((T*)b.values + offset + i, load(value + i));
            }
        }
    }

    // Every key-value head of every span of tokens, shared out as threads become free.
    template <class T>
    void attention(Worker& w, const Layer& layer, int index) {
        const int items = spans * m.kv_heads, kind = layer.output.kind;
        const AttentionShape shape{m.head_dim, m.kv_heads * BLOCK * m.head_dim, layer.window, m.attention_scale,
                                   m.attention_softcap};
        Queries& q = s.queries[w.id];
        int seq = 0, before = 0;  // spans before this sequence's: pieces come in order
        s.pool.share(w.phase++, items, 1, [&](int item) {
            const int head = item % m.kv_heads, number = item / m.kv_heads;
            auto spans_in = [&] { return (b.starts[seq + 1] - b.starts[seq] + span - 1) / span; };
            while (number >= before + spans_in()) before += spans_in(), ++seq;
            const int first = b.starts[seq] + (number - before) * span;
            const int last = std::min(first + span, b.starts[seq + 1]);
            q.count = 0;
            for (int token = first; token < last; ++token)
                for (int g = 0; g < group; ++g, ++q.count) {
                    const float* from = qkv + (size_t)token * qkv_width + (head * group + g) * m.head_dim;
                    q.position[q.count] = b.positions[token];
                    q.sink[q.count] = layer.sinks ? layer.sinks[head * group + g] : -INFINITY;
                    if constexpr (std::is_same_v<T, bf16>) prepare(BF16, from, (uint8_t*)q.values[q.count], 0, m.head_dim);
                    else std::memcpy(q.values[q.count], from, sizeof(float) * m.head_dim);
                }
            const size_t offset = index * b.layer_stride + (size_t)head * BLOCK * m.head_dim;
            attend(q, (const T*)b.keys + offset, (const T*)b.values + offset,
                   b.block_tables + (size_t)seq * b.max_blocks, shape);
            for (int i = 0; i < q.count; ++i) {
                uint8_t* row = operand_row(kind, layer.output.cols, first + i / group);
                const int column = (head * group + i % group) * m.head_dim;
                prepare(kind, q.out[i], row, column, m.head_dim);
            }
        });
    }

    vf activate(vf gate) const {
        if (m.activation == SILU) return gate / (exponential(-gate) + 1.0f);
        vf inner = gate * fma(gate * gate, splat(0.0356774081f), splat(0.797884561f));
        return gate * 0.5f * (tanh_of(inner) + 1.0f);
    }

    // Panels of 16 gate rows and the 16 up rows that belong to them; the products become the operand of `down`.
    void gate(Worker& w, const Layer& layer, int linear) {
        const int kind = layer.down.kind, half = PANEL / 2;
        const bool direct = kind < INT8;
        const float* bias = layer.gate_up.bias;  // in the panels' order
        const size_t stride = direct ? operand_bytes(kind, m.intermediate) : (size_t)m.intermediate * 4;
        multiply_all(s, w, layer.gate_up, linear, operand, b.tokens, [&](int first, int count, int column, const float* results) {
            alignas(64) float row[PANEL / 2];
            for (int r = 0; r < count; ++r, results += PANEL) {
                for (int i = 0; i < half; i += LANES) {
                    vf x = load(results + i), y = load(results + half + i);
                    if (bias) x += load(bias + column + i), y += load(bias + column + half + i);
                    store(row + i, activate(x) * y);
                }
                prepare(direct ? kind : F32, row, activated + (first + r) * stride, column / 2, half);
            }
        });
        if (direct) return;
        each(w, [&](int token) {
            prepare(kind, (const float*)(activated + token * stride), operand_row(kind, m.intermediate, token), 0,
                    m.intermediate);
        });
    }

    Session& s;
    const Model& m;
    const Batch& b;
    float *residual, *qkv;
    uint8_t *operand, *activated;
    int qkv_width, group, span, spans = 0;
};

// Logits of hidden states, float32 both.
void head(Session& s, const Model& m, const float* hidden, int rows, float* logits) {
    const size_t stride = operand_bytes(m.head.kind, m.hidden);
    s.operand.reserve(rows * stride);
    s.pool.run(2, [&](int id) {
        Worker w{id, 0};
        each_row(s, w, rows, [&](int row) {
            prepare(m.head.kind, hidden + (size_t)row * m.hidden, s.operand.data + row * stride, 0, m.hidden);
        });
        multiply_all(s, w, m.head, NO_DELTAS, s.operand.data, rows, [&](int first, int count, int column, const float* results) {
            alignas(64) float scaled[BLOCK_ROWS * PANEL];
            for (int i = 0; i < count * PANEL; i += LANES) {
                vf x = load(results + i) * m.logit_scale;
                if (m.logit_softcap > 0) x = tanh_of(x * (1.0f / m.logit_softcap)) * m.logit_softcap;
                store(scaled + i, x);
            }
            place(m.head, logits, m.vocab, first, count, column, scaled);
        });
    });
}

}  // namespace

extern "C" {

int64_t ts_packed_bytes(int32_t kind, int32_t rows, int32_t cols) {
    return (int64_t)(panels_of(rows) * panel_bytes(kind, cols));
}

// Rows [first, last) of panels; see pack.h.
void ts_pack(int32_t kind, int32_t paired, const void* from, int32_t rows, int32_t cols, void* to) {
    pack(kind, paired, (const uint8_t*)from, rows, cols, (uint8_t*)to);
}

// Codes that are kept; see pack.h.
void ts_pack_codes(int32_t kind, int32_t paired, const Codes* from, int32_t rows, int32_t cols, void* to) {
    pack_codes(kind, paired, *from, rows, cols, (uint8_t*)to);
}

// Null where there is no memory or the threads cannot be started.
void* ts_open(int32_t threads) {
    try {
        return new Session(threads);
    } catch (...) {
        return nullptr;
    }
}

void ts_close(void* session) { delete (Session*)session; }

// 0, or 1 where there is no memory for so many tokens.
int32_t ts_step(void* session, const Model* model, const Batch* batch) {
    try {
        Step(*(Session*)session, *model, *batch).run();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// Likewise.
int32_t ts_head(void* session, const Model* model, const float* hidden, int32_t rows, float* logits) {
    try {
        head(*(Session*)session, *model, hidden, rows, logits);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
}
