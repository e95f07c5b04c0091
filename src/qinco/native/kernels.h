// The codec engine for one instruction set: encoding and decoding.
#pragma once
#include <cmath>
#include <mutex>

#include "arithmetic.h"
#include "engine.h"
#include "selection.h"

namespace ISA {

constexpr int ROWS = 96;                // candidates that walk through a network together: they stay in the cache
constexpr int MOST_CANDIDATES = 2048;   // of a group of vectors
constexpr int MOST_VECTORS = 16;        // of a group: they share what a step loads into the cache
constexpr int PAYING = 4;               // the table of pairs is filled when it could have been used so many times
constexpr int64_t MOST_PAIR_VALUES = 1 << 25;

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

  // The second step's streams of all pairs of codes, (K * K, Ep), once enough vectors have been encoded to pay for it.
  mutable std::mutex building;
  mutable std::atomic<const typename A::element*> pair_streams{nullptr};
  mutable array<typename A::element> pair_values;
  mutable std::atomic<int64_t> evaluations{0};

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
        to.hidden_x.pack(from.hidden_x, H, D);
      }
      if (from.project_out) {
        to.project_out.pack(from.project_out, D, E);
        std::vector<float> transposed(size_t(E) * D);
        for (int d = 0; d < D; d++)
          for (int e = 0; e < E; e++) transposed[size_t(e) * D + d] = from.project_out[size_t(d) * E + e];
        to.back.pack(transposed.data(), E, D);
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

// What one thread needs to encode a group of vectors or to decode a tile of them.
template <class A>
class Worker {
  using T = typename A::element;
  const Model<A>& model;
  const qinco_sizes& size;
  const int Dp, Ep, Hp;
  array<T> hidden, narrow;                       // (ROWS, Hp), (ROWS, Ep)
  std::vector<array<float>> owned;

 public:
  explicit Worker(const Model<A>& m)
      : model(m), size(m.size), Dp(padded(m.size.dim)), Ep(padded(m.size.stream)), Hp(padded(m.size.hidden)),
        hidden(allocate<T>(size_t(ROWS) * Hp)), narrow(allocate<T>(size_t(ROWS) * Ep)) {}

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
    if (size.blocks) step.hidden_x.apply(reached, count, into(hidden_x, Hp));
  }

 private:
  void begin(const Step<A>& step, int code, const float* part, float* to) {
    const T* table = step.stream_table[code];
    for (int e = 0; e < Ep; e += VECTOR) store(to + e, A::load_wide(table + e) + load(part + e));
  }
};

template <class A>
class Encoder {
  using T = typename A::element;
  const Model<A>& model;
  const qinco_sizes& size;
  const qinco_search& search;
  const int D, K, Dp, Ep, Hp;
  int64_t widest = 1;          // the largest beam that the search arrives at
  int group, most_candidates;  // vectors of a group; candidates of one vector that are evaluated together
  Worker<A> worker;
  Selection selection;
  array<float> x, reached, next, residual, stream_x, hidden_x, back_x, cheap, cross, stream, distances, best_stream[2];
  array<T> narrow_rows, narrow_outputs;
  std::vector<int32_t> codes, next_codes;               // (group * beam, steps)
  std::vector<int32_t> candidate_codes, candidate_rows; // of a group, `proposed` for each vector
  std::vector<int32_t> tile_codes, tile_rows, tile_parts, row_of;  // row_of: where a row's parts are
  struct Best {
    float distance;
    int32_t code, row;
  };
  std::vector<Best> best[2];
  std::vector<int> best_count;
  int beam = 1, proposed = 0;

 public:
  Encoder(const Model<A>& m, const qinco_search& s)
      : model(m), size(m.size), search(s), D(size.dim), K(size.codewords), Dp(padded(D)), Ep(padded(size.stream)),
        Hp(padded(size.hidden)), worker(m) {
    int64_t most = 1, hypotheses = 1;  // most: candidates of one vector
    for (int m = 0; m < search.steps; m++) {
      const bool bare = m == 0 && size.first_is_bare;
      const int64_t found = bare ? K : candidates(hypotheses);
      if (!bare) most = std::max(most, found);
      widest = std::max(widest, hypotheses);
      hypotheses = std::min<int64_t>(search.beam, found);
    }
    group = std::max<int64_t>(1, std::min<int64_t>(MOST_VECTORS, MOST_CANDIDATES / most));
    most_candidates = std::min<int64_t>(most, MOST_CANDIDATES);
    const size_t rows = size_t(group) * widest;
    x = allocate<float>(size_t(group) * Dp);
    reached = allocate<float>(rows * Dp), next = allocate<float>(rows * Dp), residual = allocate<float>(rows * Dp);
    stream_x = allocate<float>(rows * Ep), hidden_x = allocate<float>(rows * Hp), back_x = allocate<float>(rows * Ep);
    cheap = allocate<float>(std::max<size_t>(size_t(widest) * padded(K), size_t(group) * padded(K)));
    cross = allocate<float>(size_t(group) * padded(K));
    stream = allocate<float>(size_t(group) * most_candidates * Ep);
    distances = allocate<float>(size_t(group) * (most_candidates + widest));
    for (int side : {0, 1}) best_stream[side] = allocate<float>(rows * Ep), best[side].resize(rows);
    narrow_rows = allocate<T>(rows * Dp), narrow_outputs = allocate<T>(rows * Ep);
    codes.resize(rows * search.steps), next_codes.resize(rows * search.steps);
    tile_codes.resize(std::max(rows, size_t(group) * most_candidates)), tile_rows.resize(tile_codes.size());
    tile_parts.resize(tile_codes.size());
    best_count.resize(group), row_of.resize(rows);
  }

  int vectors() const { return group; }

  // How many candidates of one vector a step evaluates that starts from `beam` hypotheses.
  int64_t candidates(int64_t beam) const {
    if (search.pairs) return std::min<int64_t>(search.pairs, beam * K);
    if (!search.candidates) return beam * K;
    return beam * std::min(beam == 1 ? std::max(search.candidates, search.beam) : search.candidates, K);
  }

  // vectors, start (count, D) -> codes (count, steps), reached (count, D); start may be null: zeros
  void run(const float* vectors, const float* start, int count, uint16_t* out_codes, float* out_reached) {
    beam = 1;
    for (int v = 0; v < count; v++) {
      memcpy(x.get() + size_t(v) * Dp, vectors + size_t(v) * D, D * 4);
      memset(reached.get() + size_t(v) * Dp, 0, Dp * 4);
      if (start) memcpy(reached.get() + size_t(v) * Dp, start + size_t(v) * D, D * 4);
    }
    for (int m = 0; m < search.steps; m++) {
      const int wanted = m + 1 == search.steps ? 1 : search.beam;
      set_residuals(count);
      if (m == 0 && size.first_is_bare)
        first_step(count, wanted);
      else
        step(model.steps[m], m, count, wanted);
      std::swap(reached, next);
      std::swap(codes, next_codes);
    }
    for (int v = 0; v < count; v++) {
      for (int m = 0; m < search.steps; m++) out_codes[size_t(v) * search.steps + m] = codes[size_t(v) * search.steps + m];
      memcpy(out_reached + size_t(v) * D, reached.get() + size_t(v) * Dp, D * 4);
    }
  }

 private:
  void set_residuals(int count) {
    for (int v = 0; v < count; v++)
      for (int b = 0; b < beam; b++) {
        const size_t row = (size_t(v) * beam + b) * Dp;
        for (int d = 0; d < Dp; d += VECTOR)
          store(residual.get() + row + d, load(x.get() + size_t(v) * Dp + d) - load(reached.get() + row + d));
      }
  }

  static float squared(const float* row, int width) {
    vector total = {};
    for (int d = 0; d < width; d += VECTOR) total += load(row + d) * load(row + d);
    return sum(total);
  }

  // Distances, but for the residuals' own norms, to rows of norms `norms` and products `sums`.
  static void keep_distances(float* to, const float* norms, float own, const vector* sums) {
    for (int j = 0; j < PANELS; j++) {
      const vector distance = own + load(norms + VECTOR * j) - 2 * sums[j];
      store(to + VECTOR * j, distance < 0 ? vector{} : distance);  // what is no number stays so, and is never near
    }
  }

  void first_step(int count, int wanted) {
    const int width = model.first.out, kept = std::min(wanted, K);
    std::vector<float> own(count);
    for (int v = 0; v < count; v++) own[v] = squared(residual.get() + size_t(v) * Dp, Dp);
    model.first.apply(residual.get(), count, [&](int v, int p, vector* sums) {
      keep_distances(cheap.get() + size_t(v) * width + p, model.first_norms.data() + p, own[v], sums);
    });
    for (int v = 0; v < count; v++) {
      selection.smallest(cheap.get() + size_t(v) * width, K, kept);
      for (int b = 0; b < kept; b++) {
        const int code = selection.places[b];
        const size_t row = size_t(v) * kept + b;
        next_codes[row * search.steps] = code;
        for (int d = 0; d < Dp; d += VECTOR)
          store(next.get() + row * Dp + d, load(reached.get() + size_t(v) * Dp + d) + load(model.steps[0].codebook[code] + d));
      }
    }
    beam = kept;
  }

  void step(const Step<A>& step, int m, int count, int wanted) {
    propose(step, count);
    project_used(step, count);
    std::fill(best_count.begin(), best_count.end(), 0);
    const int kept = std::min(wanted, proposed);
    for (int from = 0; from < proposed; from += most_candidates) {
      const int now = std::min(most_candidates, proposed - from);
      evaluate(step, count, from, now);
      for (int v = 0; v < count; v++) keep_best(v, now, kept);
      std::swap(best[0], best[1]);
      std::swap(best_stream[0], best_stream[1]);
    }
    for (int v = 0; v < count; v++)
      for (int b = 0; b < kept; b++) {
        const size_t row = size_t(v) * kept + b;
        const Best& winner = best[0][row];
        memcpy(next.get() + row * Dp, reached.get() + size_t(winner.row) * Dp, Dp * 4);
        memcpy(&next_codes[row * search.steps], &codes[size_t(winner.row) * search.steps], m * 4);
        next_codes[row * search.steps + m] = winner.code;
        tile_codes[row] = winner.code;
      }
    worker.add_outputs(step, count * kept, tile_codes.data(), best_stream[0].get(), next.get(), narrow_outputs.get());
    beam = kept;
  }

  // Candidates of each vector: `proposed` pairs of a row (hypothesis) and a code, in the order of rows.
  void propose(const Step<A>& step, int count) {
    const int rows = count * beam, width = step.proposals.out;
    candidate_codes.clear(), candidate_rows.clear();
    if (!search.candidates && !search.pairs) {
      proposed = beam * K;  // all of them: they need no list
      return;
    }
    if (!step.follows_bare()) Worker<A>::narrowed(residual.get(), narrow_rows.get(), rows, Dp);
    proposed = candidates(beam);
    const int each = proposed / beam;
    std::vector<float> own(beam);
    if (step.follows_bare())
      step.exact_proposals.apply(x.get(), count, [&](int v, int p, vector* sums) {
        for (int j = 0; j < PANELS; j++) store(cross.get() + size_t(v) * width + p + VECTOR * j, sums[j]);
      });
    for (int v = 0; v < count; v++) {
      for (int b = 0; b < beam; b++) own[b] = squared(residual.get() + (size_t(v) * beam + b) * Dp, Dp);
      if (step.follows_bare())
        look_up_distances(step, v, own.data());
      else
        step.proposals.apply(narrow_rows.get() + size_t(v) * beam * Dp, beam, [&](int b, int p, vector* sums) {
          keep_distances(cheap.get() + size_t(b) * width + p, step.proposal_norms.data() + p, own[b], sums);
        });
      if (search.pairs) {
        // Infinite distances are no nearer than what pads the rows, so that is left out.
        for (int b = 1; b < beam && width > K; b++)
          memmove(cheap.get() + size_t(b) * K, cheap.get() + size_t(b) * width, K * sizeof(float));
        selection.smallest(cheap.get(), beam * K, proposed);
        add_candidates(v * beam, K);
      } else {
        for (int b = 0; b < beam; b++) {
          selection.smallest(cheap.get() + size_t(b) * width, K, each);
          add_candidates(v * beam + b, width);
        }
      }
    }
  }

  // The residual of a first codeword c is x - c (the start is zero), so its products are those of x less those of c.
  void look_up_distances(const Step<A>& step, int v, const float* own) {
    const int width = step.proposals.out;
    for (int b = 0; b < beam; b++) {
      const float* of_codeword = step.first_cross[codes[(size_t(v) * beam + b) * search.steps]];
      for (int p = 0; p < width; p += PANEL) {
        vector products[PANELS];
        for (int j = 0; j < PANELS; j++)
          products[j] = load(cross.get() + size_t(v) * width + p + VECTOR * j) - load(of_codeword + p + VECTOR * j);
        keep_distances(cheap.get() + size_t(b) * width + p, step.proposal_norms.data() + p, own[b], products);
      }
    }
  }

  void add_candidates(int first_row, int width) {
    for (const int place : selection.places) {
      candidate_rows.push_back(first_row + place / width);
      candidate_codes.push_back(place % width);
    }
  }

  void project_used(const Step<A>& step, int count) {
    const int rows = count * beam;
    int used = 0;
    if (candidate_rows.empty()) {
      used = rows;
      for (int r = 0; r < rows; r++) row_of[r] = r;
    } else {
      std::fill(row_of.begin(), row_of.begin() + rows, -1);
      for (const int row : candidate_rows)
        if (row_of[row] < 0) row_of[row] = used++;
    }
    // Rows that no candidate starts from are left out.
    const auto gather = [&](const float* from) {
      for (int r = 0; r < rows; r++)
        if (row_of[r] >= 0) Worker<A>::narrowed(from + size_t(r) * Dp, narrow_rows.get() + size_t(row_of[r]) * Dp, 1, Dp);
    };
    if (!step.follows_bare() || !model.pair_streams.load()) {
      gather(reached.get());
      worker.project(step, used, narrow_rows.get(), stream_x.get(), hidden_x.get());
    }
    if (step.project_out.out) {
      gather(residual.get());
      step.back.apply(narrow_rows.get(), used, [&](int i, int p, vector* sums) {
        for (int j = 0; j < PANELS; j++) store(back_x.get() + size_t(i) * Ep + p + VECTOR * j, sums[j]);
      });
    }
  }

  int candidate_row(int v, int i) const {
    return candidate_rows.empty() ? v * beam + i / K : candidate_rows[size_t(v) * proposed + i];
  }
  int candidate_code(int v, int i) const {
    return candidate_rows.empty() ? i % K : candidate_codes[size_t(v) * proposed + i];
  }

  // Streams and distances of candidates from .. from + now of each vector.
  void evaluate(const Step<A>& step, int count, int from, int now) {
    const int total = count * now;
    for (int v = 0; v < count; v++)
      for (int i = 0; i < now; i++) {
        tile_codes[size_t(v) * now + i] = candidate_code(v, from + i);
        tile_rows[size_t(v) * now + i] = candidate_row(v, from + i);
        tile_parts[size_t(v) * now + i] = row_of[candidate_row(v, from + i)];
      }
    const T* pairs = step.follows_bare() ? model.pair_streams.load() : nullptr;
    for (int first = 0; first < total; first += ROWS) {
      const int rows = std::min(ROWS, total - first);
      float* out = stream.get() + size_t(first) * Ep;
      if (pairs)
        for (int i = 0; i < rows; i++) {
          const size_t pair = size_t(codes[size_t(tile_rows[first + i]) * search.steps]) * K + tile_codes[first + i];
          for (int e = 0; e < Ep; e += VECTOR) store(out + size_t(i) * Ep + e, A::load_wide(pairs + pair * Ep + e));
        }
      else
        worker.network(step, rows, &tile_codes[first], &tile_parts[first], stream_x.get(), hidden_x.get(), out);
      if (step.follows_bare() && !pairs)  // rounded as the table is, so that codes do not depend on whether it is there
        for (int e = 0; e < rows * Ep; e += VECTOR) store(out + e, A::rounded(load(out + e)));
      for (int i = 0; i < rows; i++) {
        const int v = (first + i) / now, number = (first + i) % now;
        const float* own = residual.get() + size_t(tile_rows[first + i]) * Dp;
        const float* codeword = step.codebook[tile_codes[first + i]];
        const float* e = out + size_t(i) * Ep;
        distances[size_t(v) * (most_candidates + widest) + widest + number] =
            step.project_out.out ? projected_distance(step, own, codeword, e, tile_codes[first + i], tile_parts[first + i])
                                 : plain_distance(own, codeword, e);
      }
    }
  }

  float plain_distance(const float* own, const float* codeword, const float* e) const {
    vector total = {};
    for (int d = 0; d < Dp; d += VECTOR) {
      vector error = load(own + d) - load(e + d);
      if (size.skip) error -= load(codeword + d);
      total += error * error;
    }
    return sum(total);
  }

  // The square of r - c - P e, expanded: only the first part has D terms, and P's columns are orthogonal.
  float projected_distance(const Step<A>& step, const float* own, const float* codeword, const float* e, int code,
                           int row) const {
    vector total = {}, rest = {};
    for (int d = 0; d < Dp; d += VECTOR) {
      vector error = load(own + d);
      if (size.skip) error -= load(codeword + d);
      total += error * error;
    }
    const float *q = back_x.get() + size_t(row) * Ep, *w = step.back_codewords[code];
    for (int i = 0; i < Ep; i += VECTOR) {
      const vector value = load(e + i);
      rest += value * (load(step.gram.data() + i) * value - 2 * (load(q + i) - load(w + i)));
    }
    return std::max(sum(total) + sum(rest), 0.f);  // in this order, for what is no number
  }

  // The `kept` nearest of the `now` candidates just evaluated and of those kept before.
  void keep_best(int v, int now, int kept) {
    float* row = distances.get() + size_t(v) * (most_candidates + widest) + widest;
    const int before = best_count[v];
    for (int b = 0; b < before; b++) row[b - before] = best[0][size_t(v) * kept + b].distance;
    const int wanted = std::min(kept, before + now);
    selection.smallest(row - before, before + now, wanted);
    for (int b = 0; b < wanted; b++) {
      const int place = selection.places[b] - before;
      const size_t to = size_t(v) * kept + b, source = place < 0 ? size_t(v) * kept + place + before : size_t(v) * now + place;
      best[1][to] = place < 0 ? best[0][source] : Best{row[place], tile_codes[source], tile_rows[source]};
      memcpy(best_stream[1].get() + to * Ep, (place < 0 ? best_stream[0].get() : stream.get()) + source * Ep, Ep * 4);
    }
    best_count[v] = wanted;
  }
};

template <class A>
class Decoder {
  const Model<A>& model;
  Worker<A> worker;
  const int D, Dp;
  array<float> reached, next, stream_x, hidden_x, stream;
  array<typename A::element> narrow_rows, narrow_outputs;
  std::vector<int32_t> column, own;

 public:
  explicit Decoder(const Model<A>& m) : model(m), worker(m), D(m.size.dim), Dp(padded(m.size.dim)), column(ROWS), own(ROWS) {
    const int Ep = padded(m.size.stream), Hp = padded(m.size.hidden);
    reached = allocate<float>(size_t(ROWS) * Dp), stream = allocate<float>(size_t(ROWS) * Ep);
    stream_x = allocate<float>(size_t(ROWS) * Ep), hidden_x = allocate<float>(size_t(ROWS) * Hp);
    narrow_rows = allocate<typename A::element>(size_t(ROWS) * Dp);
    narrow_outputs = allocate<typename A::element>(size_t(ROWS) * Ep);
    for (int i = 0; i < ROWS; i++) own[i] = i;
  }

  int vectors() const { return ROWS; }

  // codes (count, steps) -> out (count, D), from `start` (count, D) or zeros
  void run(const uint16_t* codes, const float* start, int steps, int count, float* out) {
    for (int i = 0; i < count; i++) {
      memset(reached.get() + size_t(i) * Dp, 0, Dp * 4);
      if (start) memcpy(reached.get() + size_t(i) * Dp, start + size_t(i) * D, D * 4);
    }
    for (int m = 0; m < steps; m++) {
      for (int i = 0; i < count; i++) column[i] = codes[size_t(i) * steps + m];
      const Step<A>& step = model.steps[m];
      if (m == 0 && model.size.first_is_bare) {
        for (int i = 0; i < count; i++)
          for (int d = 0; d < Dp; d += VECTOR) {
            float* to = reached.get() + size_t(i) * Dp + d;
            store(to, load(to) + load(step.codebook[column[i]] + d));
          }
        continue;
      }
      Worker<A>::narrowed(reached.get(), narrow_rows.get(), count, Dp);
      worker.project(step, count, narrow_rows.get(), stream_x.get(), hidden_x.get());
      worker.network(step, count, column.data(), own.data(), stream_x.get(), hidden_x.get(), stream.get());
      worker.add_outputs(step, count, column.data(), stream.get(), reached.get(), narrow_outputs.get());
    }
    for (int i = 0; i < count; i++) memcpy(out + size_t(i) * D, reached.get() + size_t(i) * Dp, D * 4);
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
    const std::lock_guard<std::mutex> lock(model.building);
    if (model.pair_streams.load()) return;
    array<typename A::element> values;
    try {
      values = allocate<typename A::element>(K * K * Ep);
    } catch (const std::bad_alloc&) {
      return;  // it goes without
    }
    over_threads(
        K, MOST_VECTORS, threads, [&] { return std::make_unique<PairTabulator<A>>(model); },
        [&](PairTabulator<A>& tabulator, int64_t code, int) { tabulator.run(code, values.get() + code * K * Ep); });
    model.pair_values = std::move(values);
    model.pair_streams = model.pair_values.get();
  }

  void decode(const uint16_t* codes, const float* start, int steps, int64_t count, int threads,
              float* out) const override {
    const int D = model.size.dim;
    over_threads(
        count, MOST_VECTORS, threads, [&] { return std::make_unique<Decoder<A>>(model); },
        [&](Decoder<A>& decoder, int64_t from, int now) {
          decoder.run(codes + from * steps, start ? start + from * D : nullptr, steps, now, out + from * D);
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
