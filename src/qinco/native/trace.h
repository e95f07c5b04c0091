// The networks of all steps forward and backward, for codes that are given; kept is what gradients of weights are sums of.
#pragma once
#include "worker.h"

namespace ISA {

constexpr int64_t MOST_TRACE_BYTES = 1 << 28;  // kept of the vectors of a part

static inline void add_row(float* to, const float* from, int width) {
  int i = 0;
  for (; i + VECTOR <= width; i += VECTOR) store(to + i, load(to + i) + load(from + i));
  for (; i < width; i++) to[i] += from[i];
}

// Adds sums to rows, which are then kept in the arithmetic of networks unless `kept` is null.
template <class A>
static auto add_to(float* rows, int width, typename A::element* kept) {
  return [=](int i, int p, vector* sums) {
    float* to = rows + size_t(i) * width + p;
    for (int j = 0; j < PANELS; j++) {
      sums[j] += load(to + VECTOR * j);
      store(to + VECTOR * j, sums[j]);
    }
    if (kept) A::store_panel(kept + size_t(i) * width + p, sums);
  };
}

template <class A>
struct Layer {
  Matrix<A> forward, backward;
  void pack(const float* W, int out, int in, int stride) {
    forward.pack(W, out, in, stride);
    backward.pack_transposed(W, in, out, stride);
  }
};

// A step's weights, and what it keeps of the vectors of a part: rows that a layer read, and gradients of rows it wrote.
template <class A>
struct TracedStep {
  using T = typename A::element;
  Layer<A> project_in, concat_codeword, concat_x, project_out;
  std::vector<Layer<A>> up, down;

  // Of each codeword: itself, its projection and what the stream begins with, and the gradients of the latter two.
  array<T> codewords, projected, projected_gradient, table_gradient;
  array<float> table, table_sums;                        // (K, Ep); the latter is summed over vectors

  array<T> x, output_gradient;                           // (N, Dp); the gradient where there are projections
  std::vector<array<T>> stream, stream_gradient;         // (N, Ep), before each block and after the last
  std::vector<array<T>> hidden, hidden_gradient;         // (N, Hp)
  array<float> residual, gradient;                       // (N, Dp): x̂ - x before the step, the gradient of x̂ after it

  void pack(const qinco_sizes& size, const qinco_layers& from) {
    const int D = size.dim, E = size.stream, H = size.hidden;
    if (from.project_in) project_in.pack(from.project_in, E, D, D);
    concat_codeword.pack(from.concat, E, E, E + D);
    concat_x.pack(from.concat + E, E, D, E + D);
    up.resize(size.blocks), down.resize(size.blocks);
    for (int j = 0; j < size.blocks; j++) {
      up[j].pack(from.up[j], H, E, E);
      down[j].pack(from.down[j], E, H, H);
    }
    if (from.project_out) project_out.pack(from.project_out, D, E, E);
  }

  // What codewords are before the concatenation.
  const T* projections() const { return projected ? projected.get() : codewords.get(); }

  // What streams begin with, by codeword: z + W z + b.
  void tabulate(const qinco_sizes& size, const qinco_layers& from) {
    const int D = size.dim, E = size.stream, K = size.codewords, Dp = padded(D), Ep = padded(E);
    if (!table) {
      codewords = allocate<T>(size_t(K) * Dp);
      if (from.project_in) projected = allocate<T>(size_t(K) * Ep);
      projected_gradient = allocate<T>(size_t(K) * Ep), table_gradient = allocate<T>(size_t(K) * Ep);
      table_sums = allocate<float>(size_t(K) * Ep), table = allocate<float>(size_t(K) * Ep);
    }
    memset(table_sums.get(), 0, size_t(K) * Ep * 4);
    memset(table.get(), 0, size_t(K) * Ep * 4);
    for (int k = 0; k < K; k++) {
      narrow_row<A>(from.codebook + size_t(k) * D, D, &codewords[size_t(k) * Dp]);
      if (!from.project_in) memcpy(&table[size_t(k) * Ep], from.codebook + size_t(k) * D, D * 4);
    }
    if (from.project_in) project_in.forward.apply(codewords.get(), K, add_to<A>(table.get(), Ep, projected.get()));
    concat_codeword.forward.apply(projections(), K, add_to<A>(table.get(), Ep, nullptr));
    for (int k = 0; from.bias && k < K; k++) add_row(&table[size_t(k) * Ep], from.bias, E);
  }

  void resize(const qinco_sizes& size, int64_t count, bool conditioned, bool projects) {
    const size_t dim = count * padded(size.dim), width = count * padded(size.stream), inner = count * padded(size.hidden);
    residual = allocate<float>(dim), gradient = allocate<float>(dim);
    if (!conditioned) return;
    x = allocate<T>(dim);
    if (projects) output_gradient = allocate<T>(dim);
    stream.resize(size.blocks + 1), stream_gradient.resize(size.blocks + 1);
    hidden.resize(size.blocks), hidden_gradient.resize(size.blocks);
    for (int j = 0; j <= size.blocks; j++) {
      stream_gradient[j] = allocate<T>(width);
      if (j < size.blocks || projects) stream[j] = allocate<T>(width);  // the end of the stream is read by the projection
    }
    for (int j = 0; j < size.blocks; j++) hidden[j] = allocate<T>(inner), hidden_gradient[j] = allocate<T>(inner);
  }
};

template <class A>
struct Trace {
  const qinco_sizes size;
  const int Dp, Ep, Hp;
  std::vector<TracedStep<A>> steps;
  array<float> last_residual;
  int64_t capacity = 0;

  explicit Trace(const qinco_sizes& sizes)
      : size(sizes), Dp(padded(size.dim)), Ep(padded(size.stream)), Hp(padded(size.hidden)), steps(size.steps) {}

  bool is_bare(int m) const { return m == 0 && size.first_is_bare; }
  const float* residual_after(int m) const {
    return m + 1 < size.steps ? steps[m + 1].residual.get() : last_residual.get();
  }

  // Vectors of a part, of `count`: the same ones on every machine.
  int64_t resize(int64_t count, bool projects) {
    const int64_t wide = sizeof(typename A::element);
    const int64_t each = size.steps * (Dp * (2 * 4 + 2 * wide) + 2 * wide * (size.blocks * (Ep + Hp) + Ep));
    const int64_t most = std::max<int64_t>(1, MOST_TRACE_BYTES / each / ROWS) * ROWS;
    const int64_t part = std::min(most, (count + ROWS - 1) / ROWS * ROWS);
    if (part <= capacity) return most;
    capacity = 0;
    for (int m = 0; m < size.steps; m++) steps[m].resize(size, part, !is_bare(m), projects);
    last_residual = allocate<float>(part * Dp);
    capacity = part;
    return most;
  }
};

// Takes groups of vectors through all steps, and back.
template <class A>
class Tracer {
  using T = typename A::element;
  Trace<A>& trace;
  const qinco_batch& batch;
  const qinco_layers* const weights;
  const qinco_sizes& size;
  const int D, Dp, Ep, Hp, M;
  array<float> x, reached, stream, gradient, stream_gradient;
  int64_t from = 0;  // the group, in the part
  int count = 0;
  const int32_t* codes = nullptr;

 public:
  Tracer(Trace<A>& t, const qinco_batch& b, const qinco_layers* w)
      : trace(t), batch(b), weights(w), size(t.size), D(size.dim), Dp(t.Dp), Ep(t.Ep), Hp(t.Hp), M(size.steps),
        x(allocate<float>(size_t(ROWS) * Dp)), reached(allocate<float>(size_t(ROWS) * Dp)),
        stream(allocate<float>(size_t(ROWS) * Ep)), gradient(allocate<float>(size_t(ROWS) * Dp)),
        stream_gradient(allocate<float>(size_t(ROWS) * Ep)) {}

  int vectors() const { return ROWS; }

  void run(int64_t first, int64_t group, int vectors) {
    from = group, count = vectors, codes = batch.codes + (first + group) * M;
    for (int i = 0; i < count; i++) {
      memcpy(&x[size_t(i) * Dp], batch.x + (first + from + i) * D, D * 4);
      memcpy(&reached[size_t(i) * Dp], batch.start + (first + from + i) * D, D * 4);
    }
    for (int m = 0; m < M && !is_stopped(); m++) {
      keep_residuals(trace.steps[m].residual.get());
      if (!trace.is_bare(m)) run_network(m);
      if (size.skip || trace.is_bare(m))
        for (int i = 0; i < count; i++) add_row(&reached[size_t(i) * Dp], codeword(m, i), D);
    }
    keep_residuals(trace.last_residual.get());
    memset(gradient.get(), 0, size_t(count) * Dp * 4);
    for (int m = M - 1; m >= 0 && !is_stopped(); m--) {
      const size_t values = size_t(count) * Dp;
      const float* residual = trace.residual_after(m) + from * Dp;
      for (size_t d = 0; d < values; d += VECTOR)
        store(&gradient[d], load(&gradient[d]) + 2 * batch.scale * load(residual + d));
      memcpy(trace.steps[m].gradient.get() + from * Dp, gradient.get(), values * 4);
      if (!trace.is_bare(m)) return_through(m);
    }
  }

 private:
  const float* codeword(int m, int i) const { return weights[m].codebook + size_t(codes[size_t(i) * M + m]) * D; }

  void keep_residuals(float* to) {
    for (size_t d = 0, values = size_t(count) * Dp; d < values; d += VECTOR)
      store(to + from * Dp + d, load(&reached[d]) - load(&x[d]));
  }

  void run_network(int m) {
    TracedStep<A>& step = trace.steps[m];
    const int width = Hp;
    const auto stream_rows = [&](int j) { return step.stream[j] ? step.stream[j].get() + from * Ep : nullptr; };
    T* x_rows = step.x.get() + from * Dp;
    Worker<A>::narrowed(reached.get(), x_rows, count, Dp);
    for (int i = 0; i < count; i++)
      memcpy(&stream[size_t(i) * Ep], &step.table[size_t(codes[size_t(i) * M + m]) * Ep], Ep * 4);
    step.concat_x.forward.apply(x_rows, count, add_to<A>(stream.get(), Ep, stream_rows(0)));
    for (int block = 0; block < size.blocks; block++) {
      T* hidden = step.hidden[block].get() + from * Hp;
      step.up[block].forward.apply(stream_rows(block), count, [=](int i, int p, vector* sums) {
        for (int j = 0; j < PANELS; j++) sums[j] = relu(sums[j]);
        A::store_panel(hidden + size_t(i) * width + p, sums);
      });
      step.down[block].forward.apply(hidden, count, add_to<A>(stream.get(), Ep, stream_rows(block + 1)));
    }
    if (weights[m].project_out)
      step.project_out.forward.apply(stream_rows(size.blocks), count, add_to<A>(reached.get(), Dp, nullptr));
    else
      add_row(reached.get(), stream.get(), count * Dp);
  }

  // From the gradient of the reconstructions after a step to that of those before it.
  void return_through(int m) {
    TracedStep<A>& step = trace.steps[m];
    const int width = Hp;
    const auto gradient_rows = [&](int j) { return step.stream_gradient[j].get() + from * Ep; };
    if (weights[m].project_out) {
      T* rows = step.output_gradient.get() + from * Dp;
      Worker<A>::narrowed(gradient.get(), rows, count, Dp);
      memset(stream_gradient.get(), 0, size_t(count) * Ep * 4);
      step.project_out.backward.apply(rows, count, add_to<A>(stream_gradient.get(), Ep, gradient_rows(size.blocks)));
    } else {
      memcpy(stream_gradient.get(), gradient.get(), size_t(count) * Ep * 4);
      Worker<A>::narrowed(gradient.get(), gradient_rows(size.blocks), count, Ep);
    }
    for (int block = size.blocks - 1; block >= 0; block--) {
      const T* hidden = step.hidden[block].get() + from * Hp;
      T* rows = step.hidden_gradient[block].get() + from * Hp;
      step.down[block].backward.apply(gradient_rows(block + 1), count, [=](int i, int p, vector* sums) {
        const size_t at = size_t(i) * width + p;
        for (int j = 0; j < PANELS; j++) sums[j] = A::load_wide(hidden + at + VECTOR * j) > 0 ? sums[j] : vector{};
        A::store_panel(rows + at, sums);
      });
      step.up[block].backward.apply(rows, count, add_to<A>(stream_gradient.get(), Ep, gradient_rows(block)));
    }
    if (m > 0) step.concat_x.backward.apply(gradient_rows(0), count, add_to<A>(gradient.get(), Dp, nullptr));
  }
};
}  // namespace ISA
