// The network of a step for some candidates at a time, which encoding and decoding share.
#pragma once
#include "model.h"

namespace ISA {

constexpr int ROWS = 96;                // candidates that walk through a network together: they stay in the cache

// What one thread needs to encode a group of vectors or to decode a tile of them.
template <class A>
class Worker {
  using T = typename A::element;
  const Model<A>& model;
  const qinco_sizes& size;
  const int Dp, Ep, Hp;
  array<T> hidden, narrow;                       // (rows, Hp), (rows, Ep)
  std::vector<array<float>> owned;

 public:
  explicit Worker(const Model<A>& m, size_t rows = ROWS)
      : model(m), size(m.size), Dp(padded(m.size.dim)), Ep(padded(m.size.stream)), Hp(padded(m.size.hidden)),
        hidden(allocate<T>(rows * Hp)), narrow(allocate<T>(rows * Ep)) {}

  static void narrowed(const float* from, T* to, size_t rows, int width) {
    for (size_t i = 0; i < rows * width; i += PANEL) {
      vector values[PANELS];
      for (int j = 0; j < PANELS; j++) values[j] = load(from + i + VECTOR * j);
      A::store_panel(to + i, values);
    }
  }

  // The stream after all blocks, (count, Ep) with count <= ROWS, of candidates `codes` of hypotheses `parents`, whose
  // parts that come from the partial reconstruction are the rows of stream_x and hidden_x.
  void network(const Step<A>& step, int count, const int32_t* codes, const int32_t* parents, const float* stream_x,
               const float* hidden_x, float* stream) {
    if (is_stopped()) return;  // what takes time is left out; the caller has no use for the rest
    if (!size.blocks) {
      for (int i = 0; i < count; i++) begin(step, codes[i], stream_x + size_t(parents[i]) * Ep, stream + size_t(i) * Ep);
      return;
    }
    for (int i = 0; i < count; i++) {
      const T* table = step.hidden_table[codes[i]];
      const float* part = hidden_x + size_t(parents[i]) * Hp;
      T* to = hidden.get() + size_t(i) * Hp;
      for (int p = 0; p < Hp; p += PANEL) {
        vector values[PANELS];
        for (int j = 0; j < PANELS; j++)
          values[j] = relu(A::load_wide(table + p + VECTOR * j) + load(part + p + VECTOR * j));
        A::store_panel(to + p, values);
      }
    }
    for (int block = 0; block < size.blocks; block++) {
      const bool last = block + 1 == size.blocks;
      if (block)
        step.up[block].apply(narrow.get(), count, [&](int i, int p, vector* sums) {
          for (int j = 0; j < PANELS; j++) sums[j] = relu(sums[j]);
          A::store_panel(hidden.get() + size_t(i) * Hp + p, sums);
        });
      step.down[block].apply(hidden.get(), count, [&](int i, int p, vector* sums) {
        float* to = stream + size_t(i) * Ep + p;
        if (block) {
          for (int j = 0; j < PANELS; j++) sums[j] += load(to + VECTOR * j);
        } else {
          const T* table = step.stream_table[codes[i]] + p;
          const float* part = stream_x + size_t(parents[i]) * Ep + p;
          for (int j = 0; j < PANELS; j++) sums[j] += A::load_wide(table + VECTOR * j) + load(part + VECTOR * j);
        }
        for (int j = 0; j < PANELS; j++) store(to + VECTOR * j, sums[j]);
        if (!last) A::store_panel(narrow.get() + size_t(i) * Ep + p, sums);
      });
    }
  }

  // f of `count` rows of streams, added to the rows `to` (Dp): the network's output, and the codeword where it skips.
  void add_outputs(const Step<A>& step, int count, const int32_t* codes, const float* stream, float* to, T* scratch) {
    if (size.skip)
      for (int i = 0; i < count; i++) {
        const float* codeword = step.codebook[codes[i]];
        for (int d = 0; d < Dp; d += VECTOR)
          store(to + size_t(i) * Dp + d, load(to + size_t(i) * Dp + d) + load(codeword + d));
      }
    if (step.project_out.out) {
      narrowed(stream, scratch, count, Ep);
      step.project_out.apply(scratch, count, [&](int i, int p, vector* sums) {
        float* row = to + size_t(i) * Dp + p;
        for (int j = 0; j < PANELS; j++) store(row + VECTOR * j, load(row + VECTOR * j) + sums[j]);
      });
      return;
    }
    for (int i = 0; i < count; i++)
      for (int d = 0; d < Dp; d += VECTOR)
        store(to + size_t(i) * Dp + d, load(to + size_t(i) * Dp + d) + load(stream + size_t(i) * Ep + d));
  }

  // The parts of `count` partial reconstructions, already in the arithmetic of candidates.
  void project(const Step<A>& step, int count, const T* reached, float* stream_x, float* hidden_x) {
    const auto into = [](float* rows, int width) {
      return [=](int i, int p, vector* sums) {
        for (int j = 0; j < PANELS; j++) store(rows + size_t(i) * width + p + VECTOR * j, sums[j]);
      };
    };
    step.stream_x.apply(reached, count, into(stream_x, Ep));
    if (size.blocks && size.stream >= size.dim) step.hidden_x.apply(reached, count, into(hidden_x, Hp));
    if (size.blocks && size.stream < size.dim)
      for (int from = 0; from < count; from += ROWS) {
        const int rows = std::min(ROWS, count - from);
        narrowed(stream_x + size_t(from) * Ep, narrow.get(), rows, Ep);
        step.hidden_x.apply(narrow.get(), rows, into(hidden_x + size_t(from) * Hp, Hp));
      }
  }

 private:
  void begin(const Step<A>& step, int code, const float* part, float* to) {
    const T* table = step.stream_table[code];
    for (int e = 0; e < Ep; e += VECTOR) store(to + e, A::load_wide(table + e) + load(part + e));
  }
};
}  // namespace ISA
