// Estimates of the errors of pairs of a hypothesis and a codeword, from the first hidden layer of the network.
#pragma once
#include "arithmetic.h"

namespace ISA {

constexpr int SHORTLISTED = 4;  // pairs for each candidate: what the pre-selector proposes, and the ranker chooses from
// The last step keeps one candidate only, so that it evaluates a share of C, but these at least.
constexpr int LAST_SHARE = 4, LEAST_LAST = 16;

// The error of f = c + P (A x̂ + Q h), whose squared length is about offset + slope x̂ + hidden_slope h + hidden_square h².
// P is the output projection, or one where there is none.
template <class A>
struct Ranker {
  NarrowTable<A> codebook;                         // c, (K, D)
  Matrix<A> map, hidden_back;                      // A, (E, D), and Q transposed, (H, E)
  std::vector<float> offset, slope, hidden_slope, hidden_square;
  bool is_fitted() const { return !offset.empty(); }

  void pack(const qinco_step& from, int K, int D, int E, int H) {
    codebook.pack(from.rank_codebook, K, D);
    map.pack(from.rank_map, E, D);
    hidden_back.pack_transposed(from.rank_hidden_map, H, E, H);
    offset.assign(from.rank_offset, from.rank_offset + K);
    slope = widened(from.rank_slope, D);
    hidden_slope = widened(from.rank_hidden_slope, H), hidden_square = widened(from.rank_hidden_square, H);
  }

 private:
  static std::vector<float> widened(const float* from, int width) {
    std::vector<float> values(padded(width), 0);
    std::copy(from, from + width, values.begin());
    return values;
  }
};

// What the estimates of a group of vectors need of their hypotheses: own errors, and factors of the hidden layer.
template <class A>
class Ranking {
  using T = typename A::element;
  const int Dp, Ep, Hp;
  array<float> own, factors, mapped;

 public:
  explicit Ranking(const qinco_sizes& size) : Dp(padded(size.dim)), Ep(padded(size.stream)), Hp(padded(size.hidden)) {}

  void resize(size_t rows) {
    own = allocate<float>(rows), factors = allocate<float>(rows * Hp), mapped = allocate<float>(rows * Ep);
  }

  void map_reached(const Ranker<A>& ranker, int count, const T* reached) {
    ranker.map.apply(reached, count, [&](int i, int p, vector* sums) {
      for (int j = 0; j < PANELS; j++) store(&mapped[size_t(i) * Ep + p + VECTOR * j], sums[j]);
    });
  }

  // back: residuals times the output projection, (count, E)
  void map_back(const Ranker<A>& ranker, int count, const T* back) {
    ranker.hidden_back.apply(back, count, [&](int i, int p, vector* sums) {
      for (int j = 0; j < PANELS; j++)
        store(&factors[size_t(i) * Hp + p + VECTOR * j], load(&ranker.hidden_slope[p + VECTOR * j]) - 2 * sums[j]);
    });
  }

  void set_own(const Ranker<A>& ranker, int row, const float* residual, const float* reached, const float* back) {
    vector total = {}, products = {};
    for (int d = 0; d < Dp; d += VECTOR)
      total += load(residual + d) * load(residual + d) + load(&ranker.slope[d]) * load(reached + d);
    for (int e = 0; e < Ep; e += VECTOR) products += load(back + e) * load(&mapped[size_t(row) * Ep + e]);
    own[row] = sum(total - 2 * products);
  }

  // Of a codeword and a hypothesis, whose parts are in `row`, and whose first hidden layer is the sum of two parts.
  float estimate(const Ranker<A>& ranker, int code, int row, const float* residual, const T* table,
                 const float* hidden_x) const {
    const T* codeword = ranker.codebook[code];
    const float* factor = &factors[size_t(row) * Hp];
    vector totals[PANELS] = {}, products = {};
    for (int p = 0; p < Hp; p += PANEL)
      for (int j = 0; j < PANELS; j++) {
        const int h = p + VECTOR * j;
        const vector hidden = relu(A::load_wide(table + h) + load(hidden_x + h));
        totals[j] += hidden * (load(factor + h) + load(&ranker.hidden_square[h]) * hidden);
      }
    for (int d = 0; d < Dp; d += VECTOR) products += A::load_wide(codeword + d) * load(residual + d);
    for (int j = 1; j < PANELS; j++) totals[0] += totals[j];
    return own[row] + ranker.offset[code] + sum(totals[0] - 2 * products);
  }
};
}  // namespace ISA
