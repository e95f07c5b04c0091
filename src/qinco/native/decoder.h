// Decoding: reconstructions of a tile of codes, and the second step's streams of all pairs of codes.
#pragma once
#include <numeric>

#include "worker.h"

namespace ISA {

constexpr int PAIRS_AHEAD = 8;  // vectors whose streams are fetched before their turn

template <class A>
class Decoder {
  const Model<A>& model;
  Worker<A> worker;
  const int D, Dp, Ep;
  array<float> reached, stream_x, hidden_x, stream;
  array<typename A::element> narrow_rows, narrow_outputs;
  std::vector<int32_t> column, own;

 public:
  // rows: vectors at a time, ROWS or all where there are fewer
  Decoder(const Model<A>& m, size_t rows)
      : model(m), worker(m, rows), D(m.size.dim), Dp(padded(D)), Ep(padded(m.size.stream)), column(rows), own(rows) {
    reached = allocate<float>(rows * Dp), stream = allocate<float>(rows * Ep);
    stream_x = allocate<float>(rows * Ep), hidden_x = allocate<float>(rows * padded(m.size.hidden));
    narrow_rows = allocate<typename A::element>(rows * Dp);
    narrow_outputs = allocate<typename A::element>(rows * Ep);
    std::iota(own.begin(), own.end(), 0);
  }

  int vectors() const { return ROWS; }

  // codes (count, steps) -> out (count, D), from `start` (count, D) or zeros; after each step, if they have a stride
  void run(const uint16_t* codes, const float* start, int steps, int count, float* out, int64_t stride) {
    for (int i = 0; i < count; i++) {
      memset(reached.get() + size_t(i) * Dp, 0, Dp * 4);
      if (start) memcpy(reached.get() + size_t(i) * Dp, start + size_t(i) * D, D * 4);
    }
    const auto* pairs = steps > 1 && model.steps[1].follows_bare() ? model.pair_streams.load() : nullptr;
    for (int m = 0; m < steps; m++) {
      for (int i = 0; i < count; i++) column[i] = codes[size_t(i) * steps + m];
      const Step<A>& step = model.steps[m];
      if (m == 0 && model.size.first_is_bare) {
        for (int i = 0; i < count; i++)
          for (int d = 0; d < Dp; d += VECTOR) {
            float* to = reached.get() + size_t(i) * Dp + d;
            store(to, load(to) + load(step.codebook[column[i]] + d));
          }
      } else {
        if (m == 1 && pairs) {
          look_up(pairs, codes, steps, count);
        } else {
          Worker<A>::narrowed(reached.get(), narrow_rows.get(), count, Dp);
          worker.project(step, count, narrow_rows.get(), stream_x.get(), hidden_x.get());
          worker.network(step, count, column.data(), own.data(), stream_x.get(), hidden_x.get(), stream.get());
          if (step.follows_bare())  // rounded as the table is, so that results do not depend on whether it is there
            for (int e = 0; e < count * Ep; e += VECTOR) store(stream.get() + e, A::rounded(load(stream.get() + e)));
        }
        worker.add_outputs(step, count, column.data(), stream.get(), reached.get(), narrow_outputs.get());
      }
      if (stride || m == steps - 1)
        for (int i = 0; i < count; i++)
          memcpy(out + m * stride + size_t(i) * D, reached.get() + size_t(i) * Dp, D * 4);
    }
  }

 private:
  void look_up(const typename A::element* pairs, const uint16_t* codes, int steps, int count) {
    const auto row_of = [&](int i) {
      const uint16_t* own = codes + size_t(i) * steps;
      return pairs + (size_t(own[0]) * model.size.codewords + own[1]) * Ep;
    };
    for (int i = 0; i < count; i++) {
      const char* later = (const char*)row_of(std::min(i + PAIRS_AHEAD, count - 1));
      for (size_t byte = 0; byte < Ep * sizeof(*pairs); byte += 64) __builtin_prefetch(later + byte);
      for (int e = 0; e < Ep; e += VECTOR) store(stream.get() + size_t(i) * Ep + e, A::load_wide(row_of(i) + e));
    }
  }
};

// Streams of the second step for one code of a bare first step and all codes of its own.
template <class A>
class PairTabulator {
  using T = typename A::element;
  const Model<A>& model;
  const int Dp, Ep, K;
  Worker<A> worker;
  array<T> row;
  array<float> stream_x, hidden_x, stream;
  std::vector<int32_t> codes, parents;

 public:
  explicit PairTabulator(const Model<A>& m)
      : model(m), Dp(padded(m.size.dim)), Ep(padded(m.size.stream)), K(m.size.codewords), worker(m),
        row(allocate<T>(Dp)), stream_x(allocate<float>(Ep)), hidden_x(allocate<float>(padded(m.size.hidden))),
        stream(allocate<float>(size_t(ROWS) * Ep)), codes(ROWS), parents(ROWS) {}

  int vectors() const { return 1; }

  void run(int first_code, T* out) {
    const Step<A>& step = model.steps[1];
    Worker<A>::narrowed(model.steps[0].codebook[first_code], row.get(), 1, Dp);
    worker.project(step, 1, row.get(), stream_x.get(), hidden_x.get());
    for (int from = 0; from < K; from += ROWS) {
      const int rows = std::min(ROWS, K - from);
      for (int i = 0; i < rows; i++) codes[i] = from + i;
      worker.network(step, rows, codes.data(), parents.data(), stream_x.get(), hidden_x.get(), stream.get());
      Worker<A>::narrowed(stream.get(), out + size_t(from) * Ep, rows, Ep);
    }
  }
};
}  // namespace ISA
