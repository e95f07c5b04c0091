// The training loss and its gradients, for codes that are given.
//
// Two jobs for the threads. In the first each takes a group of vectors through all steps and back, and keeps what the
// layers read and the gradients of what they wrote. In the second each takes a layer, and sums its weights' gradients over
// the vectors in their order. So gradients do not depend on the number of threads.
#pragma once
#include "trace.h"

namespace ISA {

constexpr int SUMMED = 96;  // pairs of numbers that a tile of a sum over vectors reads at a time
constexpr int SPREAD = 16;  // numbers between rows, so that they do not share a few places of the cache

// A sum over vectors of products of two rows: out (rows, columns) += the sum of left (N, rows) times right (N, columns).
template <class T>
struct RowProducts {
  const T *left, *right;
  int rows, columns;
  float* out;
  int stride;  // between rows of `out`
};

// Sums over the vectors of a part: of products, and of what belongs to codewords; and gradients of tables over codewords.
template <class A>
class Summer {
  using T = typename A::element;
  Trace<A>& trace;
  const qinco_batch& batch;
  const qinco_layers *const weights, *const gradients;
  const qinco_sizes& size;
  std::vector<T> zeros;
  array<T> left, right;
  array<float> sums, difference;

 public:
  Summer(Trace<A>& t, const qinco_batch& b, const qinco_layers* w, const qinco_layers* g)
      : trace(t), batch(b), weights(w), gradients(g), size(t.size) {
    const int widest = std::max({t.Dp, t.Ep, t.Hp});
    zeros.resize(widest);
    left = allocate<T>(size_t(SUMMED) * (widest + SPREAD) * A::PAIR), right = allocate<T>(size_t(SUMMED) * widest * A::PAIR);
    sums = allocate<float>(size_t(widest) * widest), difference = allocate<float>(t.Dp);
  }

  int vectors() const { return 1; }

  void products(const RowProducts<T>& of, int64_t count) {
    const int rows = padded(of.rows), columns = padded(of.columns), spread = rows + SPREAD;
    memset(sums.get(), 0, size_t(of.rows) * columns * 4);
    for (int64_t from = 0; from < count && !is_stopped(); from += SUMMED * A::PAIR) {
      const int now = std::min<int64_t>(SUMMED * A::PAIR, count - from), pairs = (now + A::PAIR - 1) / A::PAIR;
      for (int k = 0; k < pairs; k++) {
        const T *first = of.left + (from + k * A::PAIR) * rows, *own = of.right + (from + k * A::PAIR) * columns;
        const bool both = k * A::PAIR + 1 < now;
        for (int i = 0; i < rows; i += VECTOR)
          A::pair(&left[(size_t(k) * spread + i) * A::PAIR], first + i, (both ? first + rows : zeros.data()) + i);
        for (int i = 0; i < columns; i += VECTOR)
          A::pair(&right[(size_t(i / PANEL * pairs + k) * PANEL + i % PANEL) * A::PAIR], own + i,
                  (both ? own + columns : zeros.data()) + i);
      }
      for (int p = 0; p < columns; p += PANEL) {
        const T* panel = &right[size_t(p) * pairs * A::PAIR];
        in_tiles(of.rows, [&](auto tile, int i) __attribute__((always_inline)) {
          vector total[tile()][PANELS] = {};
          A::template multiply<tile()>(&left[size_t(i) * A::PAIR], A::PAIR, spread, pairs * A::PAIR, panel, total);
          for (int r = 0; r < tile(); r++)
            for (int j = 0; j < PANELS; j++) {
              float* to = &sums[size_t(i + r) * columns + p + VECTOR * j];
              store(to, load(to) + total[r][j]);
            }
        });
      }
    }
    for (int r = 0; r < of.rows; r++) add_row(of.out + size_t(r) * of.stride, &sums[size_t(r) * columns], of.columns);
  }

  // Of step m: its loss, the use of its codewords, and the gradients of what is looked up by code.
  void lookups(int m, int64_t first, int64_t count) {
    const int D = size.dim, K = size.codewords, M = size.steps, Dp = trace.Dp, Ep = trace.Ep;
    const qinco_layers &weight = weights[m], &to = gradients[m];
    TracedStep<A>& step = trace.steps[m];
    double *own_sums = batch.sums + size_t(m) * D, *own_squares = batch.squares + size_t(m) * D, loss = 0;
    for (int64_t n = 0; n < count; n++) {
      const int code = batch.codes[(first + n) * M + m];
      const float *before = step.residual.get() + n * Dp, *gradient = step.gradient.get() + n * Dp;
      batch.counts[size_t(m) * K + code] += 1;
      for (int d = 0; d < D; d++) {
        own_sums[d] -= before[d];
        own_squares[d] += double(before[d]) * before[d];
      }
      loss += squared(trace.residual_after(m) + n * Dp);
      if (size.skip || trace.is_bare(m)) add_row(to.codebook + size_t(code) * D, gradient, D);
      if (weight.preselector) {
        const float* proposal = weight.preselector + size_t(code) * D;
        float* row = to.preselector + size_t(code) * D;
        for (int d = 0; d < D; d++) {
          difference[d] = proposal[d] + before[d];
          row[d] += 2 * batch.scale * difference[d];
        }
        loss += squared(difference.get());
      }
      if (trace.is_bare(m)) continue;
      const T* stream = step.stream_gradient[0].get() + n * Ep;
      float* row = &step.table_sums[size_t(code) * Ep];
      for (int e = 0; e < Ep; e += VECTOR) store(row + e, load(row + e) + A::load_wide(stream + e));
    }
    batch.losses[m] += loss * batch.scale;
  }

  // From the gradients of what streams of step m begin with to those of codewords and of the layers after them.
  void return_to_codewords(int m) {
    const int D = size.dim, E = size.stream, K = size.codewords, Ep = trace.Ep;
    TracedStep<A>& step = trace.steps[m];
    const qinco_layers& to = gradients[m];
    float* sums = step.table_sums.get();
    for (int k = 0; to.bias && k < K; k++) add_row(to.bias, sums + size_t(k) * Ep, E);
    Worker<A>::narrowed(sums, step.table_gradient.get(), K, Ep);
    products({step.table_gradient.get(), step.projections(), E, E, to.concat, E + D}, K);
    step.concat_codeword.backward.apply(step.table_gradient.get(), K, add_to<A>(sums, Ep, step.projected_gradient.get()));
    if (!to.project_in) {
      for (int k = 0; k < K; k++) add_row(to.codebook + size_t(k) * D, sums + size_t(k) * Ep, D);
      return;
    }
    products({step.projected_gradient.get(), step.codewords.get(), E, D, to.project_in, D}, K);
    step.project_in.backward.apply(step.projected_gradient.get(), K, [&](int k, int p, const vector* gradient) {
      if (p < D) add_row(to.codebook + size_t(k) * D + p, (const float*)gradient, std::min(PANEL, D - p));
    });
  }

 private:
  float squared(const float* row) const {
    vector total = {};
    for (int d = 0; d < trace.Dp; d += VECTOR) total += load(row + d) * load(row + d);
    return sum(total);
  }
};

// Takes one step at a time.
struct OneByOne {
  int vectors() const { return 1; }
};

template <class A>
class Gradient final : public AnyGradient {
  using T = typename A::element;
  Trace<A> trace;
  const qinco_sizes& size;

 public:
  explicit Gradient(const qinco_sizes& sizes) : trace(sizes), size(trace.size) {}

  void add(const qinco_batch& batch, const qinco_layers* weights, const qinco_layers* gradients, int threads) override {
    const bool projects = weights[size.steps - 1].project_out;
    const int64_t part = trace.resize(batch.count, projects);
    over_threads(
        size.steps, 1, threads, [&] { return std::make_unique<OneByOne>(); },
        [&](OneByOne&, int64_t m, int) {
          if (trace.is_bare(m)) return;
          trace.steps[m].pack(size, weights[m]);
          trace.steps[m].tabulate(size, weights[m]);
        });
    const auto make_summer = [&] { return std::make_unique<Summer<A>>(trace, batch, weights, gradients); };
    for (int64_t first = 0; first < batch.count && !is_stopped(); first += part) {
      const int64_t now = std::min(part, batch.count - first);
      over_threads(
          now, ROWS, threads, [&] { return std::make_unique<Tracer<A>>(trace, batch, weights); },
          [&](Tracer<A>& tracer, int64_t group, int vectors) { tracer.run(first, group, vectors); });
      const auto products = all_products(weights, gradients);
      const int64_t many = products.size();
      over_threads(
          many + size.steps, 1, threads, make_summer,
          [&](Summer<A>& summer, int64_t number, int) {
            if (number < many)
              summer.products(products[number], now);
            else
              summer.lookups(number - many, first, now);
          });
    }
    over_threads(size.steps, 1, threads, make_summer, [&](Summer<A>& summer, int64_t m, int) {
      if (!trace.is_bare(m)) summer.return_to_codewords(m);
    });
  }

 private:
  std::vector<RowProducts<T>> all_products(const qinco_layers* weights, const qinco_layers* gradients) const {
    const int D = size.dim, E = size.stream, H = size.hidden;
    std::vector<RowProducts<T>> all;
    for (int m = size.first_is_bare; m < size.steps; m++) {
      const TracedStep<A>& step = trace.steps[m];
      const qinco_layers& to = gradients[m];
      all.push_back({step.stream_gradient[0].get(), step.x.get(), E, D, to.concat + E, E + D});
      for (int j = 0; j < size.blocks; j++) {
        all.push_back({step.hidden_gradient[j].get(), step.stream[j].get(), H, E, to.up[j], E});
        all.push_back({step.stream_gradient[j + 1].get(), step.hidden[j].get(), E, H, to.down[j], H});
      }
      if (weights[m].project_out)
        all.push_back({step.output_gradient.get(), step.stream[size.blocks].get(), D, E, to.project_out, E});
    }
    return all;
  }
};

AnyGradient* make_gradient(const qinco_sizes& sizes) {
#if BF16
  if (sizes.bf16) return new Gradient<Bfloat>(sizes);
#endif
  return new Gradient<Float>(sizes);
}
}  // namespace ISA
