// Encoding: a beam search for the codes of a group of vectors.
#pragma once
#include "selection.h"
#include "worker.h"

namespace ISA {

constexpr int MOST_CANDIDATES = 2048;   // of a group of vectors
constexpr int MOST_VECTORS = 16;        // of a group: they share what a step loads into the cache

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
  Ranking<A> ranking;
  Selection selection;
  array<float> x, reached, next, residual, stream_x, hidden_x, back_x, cheap, cross, stream, distances, best_stream[2];
  array<T> narrow_rows, narrow_outputs;
  std::vector<int32_t> codes, next_codes;               // (group * beam, steps)
  std::vector<int32_t> candidate_codes, candidate_rows; // of a group, `proposed` for each vector
  std::vector<float> estimates;                         // of one vector's candidates
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
        Hp(padded(size.hidden)), worker(m), ranking(m.size) {
    int64_t most = 1, hypotheses = 1;  // most: candidates of one vector
    bool is_ranked = false;  // not every ranker of a model may have been fitted
    for (int m = 0; m < search.steps; m++) {
      const bool bare = m == 0 && size.first_is_bare;
      const int64_t found = bare ? K : candidates(hypotheses, m);
      if (!bare) most = std::max(most, found);
      is_ranked |= ranks(m);
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
    if (is_ranked) ranking.resize(rows);
    narrow_rows = allocate<T>(rows * Dp), narrow_outputs = allocate<T>(rows * Ep);
    codes.resize(rows * search.steps), next_codes.resize(rows * search.steps);
    tile_codes.resize(std::max(rows, size_t(group) * most_candidates)), tile_rows.resize(tile_codes.size());
    tile_parts.resize(tile_codes.size());
    best_count.resize(group), row_of.resize(rows);
  }

  int vectors() const { return group; }

  bool ranks(int m) const { return (search.pairs || search.candidates) && model.steps[m].ranker.is_fitted(); }

  // How many candidates of one vector step m evaluates that starts from `beam` hypotheses.
  int64_t candidates(int64_t beam, int m) const { return proposals(beam, m, 1); }

  // `times` as many pairs as these candidates, at most all.
  int64_t proposals(int64_t beam, int m, int64_t times) const {
    if (search.pairs) {
      int64_t wanted = search.pairs;
      if (ranks(m) && m + 1 == search.steps)
        wanted = std::max(std::min<int64_t>(wanted, LEAST_LAST), (wanted + LAST_SHARE - 1) / LAST_SHARE);
      return std::min(wanted * times, beam * K);
    }
    if (!search.candidates) return beam * K;
    const int64_t each = beam == 1 ? std::max(search.candidates, search.beam) : search.candidates;
    return beam * std::min<int64_t>(each * times, K);
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
    propose(step, count, proposals(beam, m, ranks(m) ? SHORTLISTED : 1));
    project_used(step, count, ranks(m));
    if (ranks(m)) choose_ranked(step, count, candidates(beam, m));
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

  // Candidates of each vector: `wanted` pairs of a row (hypothesis) and a code, in the order of rows.
  void propose(const Step<A>& step, int count, int64_t wanted) {
    const int rows = count * beam, width = step.proposals.out;
    candidate_codes.clear(), candidate_rows.clear();
    proposed = wanted;
    if (!search.candidates && !search.pairs) return;  // all of them: they need no list
    if (!step.follows_bare()) Worker<A>::narrowed(residual.get(), narrow_rows.get(), rows, Dp);
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

  void project_used(const Step<A>& step, int count, bool is_ranked) {
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
      if (is_ranked) ranking.map_reached(step.ranker, used, narrow_rows.get());
    }
    if (!step.project_out.out && !is_ranked) return;
    gather(residual.get());
    if (step.project_out.out) {
      step.back.apply(narrow_rows.get(), used, [&](int i, int p, vector* sums) {
        for (int j = 0; j < PANELS; j++) store(back_x.get() + size_t(i) * Ep + p + VECTOR * j, sums[j]);
      });
      if (is_ranked) Worker<A>::narrowed(back_x.get(), narrow_outputs.get(), used, Ep);
    }
    if (!is_ranked) return;
    const bool projects = step.project_out.out;
    ranking.map_back(step.ranker, used, projects ? narrow_outputs.get() : narrow_rows.get());
    for (int r = 0; r < rows; r++) {
      const float* own = residual.get() + size_t(r) * Dp;
      if (row_of[r] < 0) continue;
      const float* back = projects ? back_x.get() + size_t(row_of[r]) * Ep : own;
      ranking.set_own(step.ranker, row_of[r], own, reached.get() + size_t(r) * Dp, back);
    }
  }

  // Of the proposed pairs, those of the smallest estimates: `wanted` of each vector, or evenly of each of its hypotheses.
  void choose_ranked(const Step<A>& step, int count, int wanted) {
    const int groups = search.pairs ? 1 : beam, each = proposed / groups, kept = wanted / groups;
    size_t to = 0;
    estimates.resize(each);
    for (size_t from = 0; from < size_t(count) * proposed; from += each) {
      for (int i = 0; i < each; i++) {
        const int code = candidate_codes[from + i], row = candidate_rows[from + i], part = row_of[row];
        estimates[i] = ranking.estimate(step.ranker, code, part, residual.get() + size_t(row) * Dp, step.hidden_table[code],
                                        hidden_x.get() + size_t(part) * Hp);
      }
      selection.smallest(estimates.data(), each, kept);
      for (const int place : selection.places) {
        candidate_codes[to] = candidate_codes[from + place];
        candidate_rows[to++] = candidate_rows[from + place];
      }
    }
    proposed = wanted;
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
}  // namespace ISA
