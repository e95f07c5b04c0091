// The engine for one instruction set: included by a file for each, which defines VECTOR (floats of a register), PANELS
// (registers of outputs in a tile), TILE (rows of a tile), BF16 (whether vdpbf16ps exists) and the namespace ISA.
//
// Rows are always computed by the same sequence of operations, wherever in a tile they are: results do not depend on
// threads, on blocks or on the order of vectors.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>
#if BF16
#include <immintrin.h>
#endif

#include "engine.h"

namespace ISA {

typedef float vector __attribute__((vector_size(VECTOR * 4)));
typedef float loose_vector __attribute__((vector_size(VECTOR * 4), aligned(4)));
typedef int32_t ivector __attribute__((vector_size(VECTOR * 4)));

constexpr int PANEL = VECTOR * PANELS;  // outputs of a tile
constexpr int ROWS = 96;                // candidates that walk through a network together: they stay in the cache
constexpr int MOST_CANDIDATES = 2048;   // of a group of vectors
constexpr int MOST_VECTORS = 16;        // of a group: they share what a step loads into the cache
constexpr int PAYING = 4;               // the table of pairs is filled when it could have been used so many times
constexpr int64_t MOST_PAIR_VALUES = 1 << 25;

static inline vector load(const float* from) { return *(const loose_vector*)from; }
static inline void store(float* to, vector v) { *(loose_vector*)to = v; }
static inline vector relu(vector v) { return v > 0 ? v : vector{}; }
static inline float sum(vector v) {
  float total = 0;
  for (int i = 0; i < VECTOR; i++) total += v[i];
  return total;
}
static inline int padded(int n) { return (n + PANEL - 1) / PANEL * PANEL; }

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
template <class T>
using array = std::unique_ptr<T[], Free>;

template <class T>
static array<T> allocate(size_t count) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, std::max<size_t>(64, count * sizeof(T)))) throw std::bad_alloc();
  memset(memory, 0, count * sizeof(T));
  return array<T>((T*)memory);
}

// Arithmetic of candidates: float32, or bf16 products with float32 sums.

struct Float {
  using element = float;
  static constexpr int PAIR = 1;  // inputs that one instruction takes
  static element convert(float x) { return x; }
  static void store_panel(element* to, const vector* values) {
    for (int j = 0; j < PANELS; j++) store(to + VECTOR * j, values[j]);
  }
  static vector load_wide(const element* from) { return load(from); }
  static vector rounded(vector v) { return v; }
  template <int N>
  static inline __attribute__((always_inline)) void multiply(const element* rows, int stride, int in, const element* panel,
                                                             vector (*sums)[PANELS]) {
    for (int k = 0; k < in; k++) {
      vector b[PANELS];
      for (int j = 0; j < PANELS; j++) b[j] = *(const vector*)(panel + k * PANEL + VECTOR * j);
#pragma GCC unroll 8
      for (int i = 0; i < N; i++) {
        const float a = rows[i * stride + k];
        for (int j = 0; j < PANELS; j++) sums[i][j] += a * b[j];
      }
    }
  }
};

#if BF16
struct Bfloat {
  using element = uint16_t;
  static constexpr int PAIR = 2;
  static element convert(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  }
  static void store_panel(element* to, const vector* v) {
    for (int j = 0; j < PANELS; j += 2)
      *(__m512i*)(to + VECTOR * j) = (__m512i)_mm512_cvtne2ps_pbh((__m512)v[j + 1], (__m512)v[j]);
  }
  static vector rounded(vector v) {
    const __m512i narrow = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v));
    return (vector)_mm512_castsi512_ps(_mm512_slli_epi32(narrow, 16));
  }
  static vector load_wide(const element* from) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
    return (vector)_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  template <int N>
  static inline __attribute__((always_inline)) void multiply(const element* rows, int stride, int in, const element* panel,
                                                             vector (*sums)[PANELS]) {
    for (int k = 0; k < in / 2; k++) {
      __m512bh b[PANELS];
      for (int j = 0; j < PANELS; j++) b[j] = (__m512bh)_mm512_load_si512(panel + k * 2 * PANEL + 32 * j);
#pragma GCC unroll 8
      for (int i = 0; i < N; i++) {
        int32_t two;
        memcpy(&two, rows + i * stride + 2 * k, 4);
        const __m512bh a = (__m512bh)_mm512_set1_epi32(two);
        for (int j = 0; j < PANELS; j++) sums[i][j] = (vector)_mm512_dpbf16_ps((__m512)sums[i][j], a, b[j]);
      }
    }
  }
};
#endif

// A matrix (out, in) in panels of PANEL outputs, in the order in which tiles read it; padded with zeros.
template <class A>
struct Matrix {
  using T = typename A::element;
  int out = 0, in = 0;  // padded
  array<T> values;

  void pack(const float* W, int rows, int columns) {
    out = padded(rows), in = padded(columns);
    values = allocate<T>(size_t(out) * in);
    for (int r = 0; r < rows; r++) {
      T* panel = values.get() + size_t(r / PANEL) * PANEL * in + r % PANEL * A::PAIR;
      for (int c = 0; c < columns; c++)
        panel[size_t(c / A::PAIR) * PANEL * A::PAIR + c % A::PAIR] = A::convert(W[size_t(r) * columns + c]);
    }
  }

  // rows (count, in) times the matrix: finish(row, first output, PANELS sums) for each row and panel.
  template <class Finish>
  inline __attribute__((always_inline)) void apply(const T* rows, int count, Finish finish) const {
    for (int p = 0; p < out; p += PANEL) {
      const T* panel = values.get() + size_t(p) * in;
      int i = 0;
      for (; i + TILE <= count; i += TILE) tile<TILE>(rows, i, p, panel, finish);
      switch (count - i) {
        case 5: tile<5>(rows, i, p, panel, finish); break;
        case 4: tile<4>(rows, i, p, panel, finish); break;
        case 3: tile<3>(rows, i, p, panel, finish); break;
        case 2: tile<2>(rows, i, p, panel, finish); break;
        case 1: tile<1>(rows, i, p, panel, finish);
      }
    }
  }

 private:
  template <int N, class Finish>
  inline __attribute__((always_inline)) void tile(const T* rows, int i, int p, const T* panel, Finish finish) const {
    vector sums[N][PANELS] = {};
    A::template multiply<N>(rows + size_t(i) * in, in, in, panel, sums);
    for (int r = 0; r < N; r++) finish(i + r, p, sums[r]);
  }
};

// Rows of float32, padded with zeros.
struct Table {
  int width = 0;
  array<float> values;
  void pack(const float* from, int rows, int columns) {
    width = padded(columns);
    values = allocate<float>(size_t(rows) * width);
    for (int r = 0; r < rows; r++) memcpy(values.get() + size_t(r) * width, from + size_t(r) * columns, columns * 4);
  }
  const float* operator[](size_t row) const { return values.get() + row * width; }
};

// The same in the arithmetic of candidates, which halves what a candidate gathers in bf16.
template <class A>
struct NarrowTable {
  int width = 0;
  array<typename A::element> values;
  void pack(const float* from, int rows, int columns) {
    width = padded(columns);
    values = allocate<typename A::element>(size_t(rows) * width);
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < columns; c++) values[size_t(r) * width + c] = A::convert(from[size_t(r) * columns + c]);
  }
  const typename A::element* operator[](size_t row) const { return values.get() + row * width; }
};

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

// The `wanted` smallest of `count` values that are not below zero, in the order of their places; ties go to the first.
struct Selection {
  std::vector<int32_t> places;

  void smallest(const float* values, int count, int wanted) {
    places.clear();
    kept.clear();
    const float limit = wanted < count ? bound(values, count, wanted) : INFINITY;
    int i = 0;
    for (; i + VECTOR <= count; i += VECTOR) {
      const ivector within = load(values + i) <= (vector{} + limit);
      if (!any(within)) continue;
      for (int j = 0; j < VECTOR; j++)
        if (within[j]) kept.push_back({values[i + j], i + j});
    }
    for (; i < count; i++)
      if (values[i] <= limit) kept.push_back({values[i], i});
    for (i = 0; i < count && (int)kept.size() < wanted; i++)  // values that are no numbers come last
      if (!(values[i] <= limit)) kept.push_back({INFINITY, i});
    if ((int)kept.size() > wanted) {
      std::nth_element(kept.begin(), kept.begin() + wanted, kept.end());
      kept.resize(wanted);
      std::sort(kept.begin(), kept.end(), [](auto& a, auto& b) { return a.second < b.second; });
    }
    for (auto& one : kept) places.push_back(one.second);
  }

 private:
  std::vector<std::pair<float, int32_t>> kept;
  std::vector<float> minima;

  static bool any(ivector mask) {
    int32_t bits = 0;
    for (int j = 0; j < VECTOR; j++) bits |= mask[j];
    return bits;
  }

  // A value that at least `wanted` and not many more values reach. The minima of groups of values decide: as many
  // groups as are wanted have one below the minimum that is the `wanted`-th.
  float bound(const float* values, int count, int wanted) {
    const int groups = std::max((8 * wanted + VECTOR - 1) / VECTOR * VECTOR, 16 * VECTOR);
    if (count < 2 * groups) return bisect(values, count, wanted);
    minima.assign(values, values + groups);
    int i = groups;
    for (; i + groups <= count; i += groups)
      for (int j = 0; j < groups; j += VECTOR) {
        const vector a = load(&minima[j]), b = load(values + i + j);
        store(&minima[j], b < a ? b : a);
      }
    for (; i < count; i++) minima[i % groups] = std::min(minima[i % groups], values[i]);
    return bisect(minima.data(), groups, wanted);
  }

  // Bisection on the bits, whose order is that of floats from zero on, until few more than wanted are left.
  static float bisect(const float* values, int count, int wanted) {
    uint32_t low = 0, high = 0x7f800000;
    const int slack = wanted + wanted / 8;
    while (low < high) {
      const uint32_t middle = low + (high - low) / 2;
      const int found = below(values, count, as_float(middle));
      if (found < wanted) {
        low = middle + 1;
      } else {
        high = middle;
        if (found <= slack) break;
      }
    }
    return as_float(high);
  }

  static float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
  }

  static int below(const float* values, int count, float limit) {
    int total = 0, i = 0;
    ivector counts = {};
    for (; i + VECTOR <= count; i += VECTOR) counts -= load(values + i) <= (vector{} + limit);
    for (int j = 0; j < VECTOR; j++) total += counts[j];
    for (; i < count; i++) total += values[i] <= limit;
    return total;
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

// Vectors over threads: each takes the next group until none is left.
template <class Make, class Run>
static void over_threads(int64_t count, int threads, Make make, Run run) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  const auto work = [&] {
    try {
      auto worker = make();
      const int64_t size = worker->vectors();
      for (int64_t from; (from = next.fetch_add(size)) < count;) run(*worker, from, (int)std::min(size, count - from));
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  };
  std::vector<std::thread> others;
  try {
    for (int t = 1; t < threads && t * 1LL * MOST_VECTORS < count; t++) others.emplace_back(work);
  } catch (const std::system_error&) {  // the system gives no more threads: those there are do the work
  }
  work();
  for (auto& other : others) other.join();
  if (failed) throw std::bad_alloc();
}

template <class A>
struct Engine : AnyEngine {
  Model<A> model;
  Engine(const qinco_sizes& sizes, const qinco_step* steps) : model(sizes, steps) {}

  void encode(const qinco_search& search, const float* x, const float* start, int64_t count, int threads,
              uint16_t* codes, float* reached) const override {
    const int D = model.size.dim, steps = search.steps;
    if (steps > 1) tabulate_pairs(search, count, threads);
    over_threads(
        count, threads, [&] { return std::make_unique<Encoder<A>>(model, search); },
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
        K, threads, [&] { return std::make_unique<PairTabulator<A>>(model); },
        [&](PairTabulator<A>& tabulator, int64_t code, int) { tabulator.run(code, values.get() + code * K * Ep); });
    model.pair_values = std::move(values);
    model.pair_streams = model.pair_values.get();
  }

  void decode(const uint16_t* codes, const float* start, int steps, int64_t count, int threads,
              float* out) const override {
    const int D = model.size.dim;
    over_threads(
        count, threads, [&] { return std::make_unique<Decoder<A>>(model); },
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
