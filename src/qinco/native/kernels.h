// The codec engine for one instruction set.
#pragma once
#include "decoder.h"
#include "encoder.h"

namespace ISA {

constexpr int PAYING = 4;  // the table of pairs is filled once it could have been used so many times
constexpr int64_t MOST_PAIR_VALUES = 1 << 25;

template <class A>
struct Engine : AnyEngine {
  Model<A> model;
  Engine(const qinco_sizes& sizes, const qinco_step* steps) : model(sizes, steps) {}

  void encode(const qinco_search& search, const float* x, const float* start, int64_t count, int threads,
              uint16_t* codes, float* reached) const override {
    const int D = model.size.dim, steps = search.steps, K = model.size.codewords;
    const int64_t each = search.pairs ? search.pairs : int64_t(search.beam) * (search.candidates ? search.candidates : K);
    if (steps > 1) tabulate_pairs(count * each, threads);
    over_threads(
        count, MOST_VECTORS, threads, [&] { return std::make_unique<Encoder<A>>(model, search); },
        [&](Encoder<A>& encoder, int64_t from, int now) {
          encoder.run(x + from * D, start ? start + from * D : nullptr, now, codes + from * steps, reached + from * D);
        });
  }

  // Fill the second step's table of pairs when its evaluations so far would have paid for it: each call as many pairs as
  // it evaluates itself, so that none takes much longer.
  void tabulate_pairs(int64_t evaluations, int threads) const {
    const qinco_sizes& size = model.size;
    if (size.steps < 2 || !model.steps[1].follows_bare() || model.pair_streams.load()) return;
    const int64_t K = size.codewords, Ep = padded(size.stream);
    if ((model.evaluations += evaluations) < PAYING * K * K || K * K * Ep > MOST_PAIR_VALUES) return;
    // Not waited for: another thread fills it, or did so when this process was forked, and does not exist any more.
    const std::unique_lock<std::mutex> lock(model.building, std::try_to_lock);
    if (!lock || model.pair_streams.load()) return;
    try {
      if (!model.pair_values) model.pair_values = allocate<typename A::element>(K * K * Ep);
    } catch (const std::bad_alloc&) {
      return;  // it goes without
    }
    const int64_t from = model.tabulated, some = std::min(K - from, std::max<int64_t>(1, evaluations / K));
    over_threads(
        some, MOST_VECTORS, threads, [&] { return std::make_unique<PairTabulator<A>>(model); },
        [&](PairTabulator<A>& tabulator, int64_t number, int) {
          tabulator.run(from + number, model.pair_values.get() + (from + number) * K * Ep);
        });
    if (is_stopped()) return;
    model.tabulated += some;
    if (model.tabulated == K) model.pair_streams = model.pair_values.get();
  }

  void decode(const uint16_t* codes, const float* start, int steps, int64_t count, int threads, bool each,
              float* out) const override {
    const int D = model.size.dim;
    const int64_t stride = each ? count * D : 0;
    if (steps > 1) tabulate_pairs(count, threads);
    over_threads(
        count, MOST_VECTORS, threads,
        [&] { return std::make_unique<Decoder<A>>(model, std::min<int64_t>(count, ROWS)); },
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
