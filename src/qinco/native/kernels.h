// The codec engine for one instruction set.
#pragma once
#include "decoder.h"
#include "encoder.h"

namespace ISA {

constexpr int PAYING = 4;               // the table of pairs is filled when it could have been used so many times
constexpr int64_t MOST_PAIR_VALUES = 1 << 25;

template <class A>
struct Engine : AnyEngine {
  Model<A> model;
  Engine(const qinco_sizes& sizes, const qinco_step* steps) : model(sizes, steps) {}

  void encode(const qinco_search& search, const float* x, const float* start, int64_t count, int threads,
              uint16_t* codes, float* reached) const override {
    const int D = model.size.dim, steps = search.steps;
    if (steps > 1) tabulate_pairs(search, count, threads);
    over_threads(
        count, MOST_VECTORS, threads, [&] { return std::make_unique<Encoder<A>>(model, search); },
        [&](Encoder<A>& encoder, int64_t from, int now) {
          encoder.run(x + from * D, start ? start + from * D : nullptr, now, codes + from * steps, reached + from * D);
        });
  }

  // Fill the second step's table of pairs when the vectors encoded so far would have paid for it.
  void tabulate_pairs(const qinco_search& search, int64_t count, int threads) const {
    const qinco_sizes& size = model.size;
    if (size.steps < 2 || !model.steps[1].follows_bare() || model.pair_streams.load()) return;
    const int64_t K = size.codewords, Ep = padded(size.stream);
    const int64_t each = search.pairs ? search.pairs : int64_t(search.beam) * (search.candidates ? search.candidates : K);
    if ((model.evaluations += count * each) < PAYING * K * K || K * K * Ep > MOST_PAIR_VALUES) return;
    // Not waited for: another thread fills it, or did so when this process was forked, and does not exist any more.
    const std::unique_lock<std::mutex> lock(model.building, std::try_to_lock);
    if (!lock || model.pair_streams.load()) return;
    array<typename A::element> values;
    try {
      values = allocate<typename A::element>(K * K * Ep);
    } catch (const std::bad_alloc&) {
      return;  // it goes without
    }
    over_threads(
        K, MOST_VECTORS, threads, [&] { return std::make_unique<PairTabulator<A>>(model); },
        [&](PairTabulator<A>& tabulator, int64_t code, int) { tabulator.run(code, values.get() + code * K * Ep); });
    if (is_stopped()) return;
    model.pair_values = std::move(values);
    model.pair_streams = model.pair_values.get();
  }

  void decode(const uint16_t* codes, const float* start, int steps, int64_t count, int threads, bool each,
              float* out) const override {
    const int D = model.size.dim;
    const int64_t stride = each ? count * D : 0;
    over_threads(
        count, MOST_VECTORS, threads, [&] { return std::make_unique<Decoder<A>>(model); },
        [&](Decoder<A>& decoder, int64_t from, int now) {
          decoder.run(codes + from * steps, start ? start + from * D : nullptr, steps, now, out + from * D, stride);
        });
  }
};

AnyEngine* make(const qinco_sizes& sizes, const qinco_step* steps) {
#if BF16
  if (sizes.bf16) return new Engine<Bfloat>(sizes, steps);
#endif
  return new Engine<Float>(sizes, steps);
}
}  // namespace ISA
