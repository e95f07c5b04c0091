// A model packed for one instruction set.
#pragma once
#include <cmath>
#include <mutex>

#include "arithmetic.h"
#include "engine.h"
#include "ranking.h"

namespace ISA {

template <class A>
struct Step {
  Table codebook;                  // (K, D)
  Matrix<A> proposals;             // (K, D)
  std::vector<float> proposal_norms, gram;
  NarrowTable<A> stream_table, hidden_table;
  Matrix<A> stream_x, hidden_x, project_out;
  std::vector<Matrix<A>> up, down;
  Matrix<A> back;                  // project_out transposed (E, D)
  Table back_codewords;            // (K, E): codewords times project_out
  Ranker<A> ranker;
  // Where the step follows a bare codebook, it meets K partial reconstructions only, and much of it can be looked up.
  Matrix<Float> exact_proposals;   // (K, D)
  Table first_cross;               // (K, K): first codewords times proposals
  bool follows_bare() const { return first_cross.width > 0; }
};

template <class A>
struct Model {
  qinco_sizes size;
  Matrix<Float> first;  // the bare codebook, exact
  std::vector<float> first_norms;
  std::vector<Step<A>> steps;

  // The second step's streams of all pairs of codes, (K * K, Ep), once enough evaluations would have paid for it.
  mutable std::mutex building;
  mutable std::atomic<const typename A::element*> pair_streams{nullptr};
  mutable array<typename A::element> pair_values;
  mutable std::atomic<int64_t> evaluations{0};
  mutable int64_t tabulated = 0;  // first codes, by who holds `building`

  Model(const qinco_sizes& sizes, const qinco_step* given) : size(sizes), steps(sizes.steps) {
    const int K = size.codewords, D = size.dim, E = size.stream, H = size.hidden;
    for (int m = 0; m < size.steps; m++) {
      const qinco_step& from = given[m];
      Step<A>& to = steps[m];
      to.codebook.pack(from.codebook, K, D);
      if (m == 0 && size.first_is_bare) {
        first.pack(from.codebook, K, D);
        first_norms = norms(from.codebook, K, D, first.out);
        continue;
      }
      if (from.preselector) {
        to.proposals.pack(from.preselector, K, D);
        to.proposal_norms = norms(from.preselector, K, D, to.proposals.out);
      }
      if (from.rank_codebook) to.ranker.pack(from, K, D, E, H);
      if (from.first_cross) {
        to.exact_proposals.pack(from.preselector, K, D);
        to.first_cross.pack(from.first_cross, K, K);
      }
      to.stream_table.pack(from.stream_table, K, E);
      to.stream_x.pack(from.stream_x, E, D);
      to.up.resize(size.blocks);
      to.down.resize(size.blocks);
      for (int j = 0; j < size.blocks; j++) {
        if (j) to.up[j].pack(from.up[j], H, E);
        to.down[j].pack(from.down[j], E, H);
      }
      if (size.blocks) {
        to.hidden_table.pack(from.hidden_table, K, H);
        to.hidden_x.pack(from.hidden_x, H, std::min(D, E));
      }
      if (from.project_out) {
        to.project_out.pack(from.project_out, D, E);
        to.back.pack_transposed(from.project_out, E, D, E);
        to.back_codewords.pack(from.codeword_back, K, E);
        to.gram.assign(padded(E), 0);
        std::copy(from.gram, from.gram + E, to.gram.begin());
      }
    }
  }

  static std::vector<float> norms(const float* rows, int count, int dim, int length) {
    std::vector<float> squares(length, INFINITY);  // what pads the panels is never near
    for (int k = 0; k < count; k++) {
      double total = 0;
      for (int d = 0; d < dim; d++) total += double(rows[size_t(k) * dim + d]) * rows[size_t(k) * dim + d];
      squares[k] = total;
    }
    return squares;
  }
};
}  // namespace ISA
