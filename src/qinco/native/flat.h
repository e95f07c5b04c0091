// Exact nearest neighbours for one instruction set: a blocked product, of which each panel is looked through at once for
// values that are small enough.
//
// A distance is found as |c|^2 - 2 <x, c>. The values of those that are found are computed anew, distances from
// differences: they do not depend on how many queries were compared at once.
#pragma once
#include <cmath>
#include "lanes.h"
#include "nearest.h"

namespace ISA {

constexpr int DEPTH = 1024;           // dimensions multiplied at a time: their part of a panel stays in the cache
constexpr int MOST_ROWS = 16 * TILE;  // queries of a group, which share what is loaded of the vectors
constexpr int FEW = 2, WIDE = 8 / PANELS;  // rows that take WIDE panels at a time
constexpr size_t FOUND_VALUES = 1 << 18;  // kept for a group, unless one query needs more

// The smaller of each lane; `b` where one is no number.
static inline vector lower(vector a, vector b) {
#if VECTOR == 16
  return (vector)_mm512_mask_min_ps((__m512)b, 0xffff, (__m512)a, (__m512)b);
#elif VECTOR == 8
  return (vector)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

// The total and the least of all lanes.
#if VECTOR >= 8
static inline float total_of(__m256 v) {
  const __m256 two = _mm256_add_ps(v, _mm256_movehdup_ps(v));
  const __m256 one = _mm256_add_ps(two, _mm256_permute_ps(two, 2));
  return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(one), _mm256_extractf128_ps(one, 1)));
}
// Of four at once, added up in the same order.
static inline void totals_of(__m256 a, __m256 b, __m256 c, __m256 d, float* out) {
  const __m256 four = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1)));
}
static inline float least_of(__m256 v) {
  const __m128 four = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)));
}
#endif
#if VECTOR == 16
template <int HALF>
static inline __m256 half_of(vector v) {
  return _mm512_maskz_extractf32x8_ps(0xff, (__m512)v, HALF);
}
static inline __m256 halves_of(vector v) { return _mm256_add_ps(half_of<0>(v), half_of<1>(v)); }
static inline float total_of(vector v) { return total_of(halves_of(v)); }
static inline void totals_of(const vector* four, float* out) {
  totals_of(halves_of(four[0]), halves_of(four[1]), halves_of(four[2]), halves_of(four[3]), out);
}
static inline float least_of(vector v) { return least_of(_mm256_min_ps(half_of<0>(v), half_of<1>(v))); }
#elif VECTOR == 8
static inline void totals_of(const vector* four, float* out) {
  totals_of((__m256)four[0], (__m256)four[1], (__m256)four[2], (__m256)four[3], out);
}
#else
static inline float total_of(vector v) { return (v[0] + v[2]) + (v[1] + v[3]); }
static inline void totals_of(const vector* four, float* out) {
  for (int i = 0; i < 4; i++) out[i] = total_of(four[i]);
}
static inline float least_of(vector v) { return std::min(std::min(v[0], v[2]), std::min(v[1], v[3])); }
#endif

// Integers in the order of (value, number), and back.
static inline uint64_t key_of(float value, uint32_t number) {
  uint32_t bits;
  value += 0.f;  // there is one zero
  memcpy(&bits, &value, 4);
  return uint64_t(bits >> 31 ? ~bits : bits | 1u << 31) << 32 | number;
}
static inline float value_of(uint64_t key) {
  uint32_t bits = key >> 32;
  bits = bits >> 31 ? bits ^ 1u << 31 : ~bits;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Values of N vectors, one or four, at once: squared distances or negative inner products; infinite where they are none.
template <int N>
static inline void compare(const float* x, const float* const* vectors, int dim, bool inner_product, float* out) {
  vector totals[N] = {};
  float rest[N] = {};
  int d = 0;
  if (inner_product) {
    for (; d + VECTOR <= dim; d += VECTOR)
      for (int i = 0; i < N; i++) totals[i] -= load(x + d) * load(vectors[i] + d);
    for (; d < dim; d++)
      for (int i = 0; i < N; i++) rest[i] -= x[d] * vectors[i][d];
  } else {
    for (; d + VECTOR <= dim; d += VECTOR)
      for (int i = 0; i < N; i++) {
        const vector difference = load(x + d) - load(vectors[i] + d);
        totals[i] += difference * difference;
      }
    for (; d < dim; d++)
      for (int i = 0; i < N; i++) rest[i] += (x[d] - vectors[i][d]) * (x[d] - vectors[i][d]);
  }
  if (N == 4)
    totals_of(totals, out);
  else
    out[0] = total_of(totals[0]);
  for (int i = 0; i < N; i++) {
    const float value = out[i] + rest[i];
    out[i] = value == value ? value : INFINITY;
  }
}

struct FlatVectors {
  const float *rows, *added;  // (V, D), and (V) or null: what is added to the value of each
  const int64_t count;
  const int dim;
  const bool inner_product;
  array<float> panels;  // (V / PANEL, D, PANEL), padded with zeros; or null, which a few queries do not need
  array<float> norms;   // what a value begins with; infinite for the padding

  FlatVectors(const float* vectors, const float* more, int64_t number, int D, bool by_products, bool packs)
      : rows(vectors), added(more), count(number), dim(D), inner_product(by_products) {
    if (!packs) return;
    panels = allocate<float>(padded_count() * D);
    norms = allocate<float>(padded_count());
    std::fill_n(norms.get(), padded_count(), INFINITY);
    for (int64_t v = 0; v < count; v++) {
      float* panel = panels.get() + v / PANEL * PANEL * dim + v % PANEL;
      double total = 0;
      for (int d = 0; d < dim; d++) {
        const float value = rows[v * dim + d];
        panel[size_t(d) * PANEL] = value;
        total += double(value) * value;
      }
      norms[v] = (inner_product ? 0 : total) + added_to(v);
    }
  }
  float added_to(int64_t number) const { return added ? added[number] : 0; }
  size_t padded_count() const { return size_t(count + PANEL - 1) / PANEL * PANEL; }

  float value(const float* x, int64_t number) const {
    const float* const c = rows + number * dim;
    float value;
    compare<1>(x, &c, dim, inner_product, &value);
    return value + added_to(number);
  }
};

// The values of a panel, outside of registers.
struct Stored {
  alignas(64) float all[PANEL];
  explicit Stored(const vector* values) {
    for (int j = 0; j < PANELS; j++) *(vector*)(all + VECTOR * j) = values[j];
  }
};

// The nearest vector of each query of a group.
class OneFound {
  struct Best {
    float value;
    int64_t number;
  };
  Best best[MOST_ROWS];

 public:
  OneFound(const FlatVectors&, int, int64_t) {}
  void clear(int rows) { std::fill_n(best, rows, Best{INFINITY, 0}); }

  inline __attribute__((always_inline)) void look(int row, int64_t first, const vector* values) {
    vector least = vector{} + INFINITY;
    for (int j = 0; j < PANELS; j++) least = lower(values[j], least);
    if (below(least, vector{} + best[row].value)) take(best[row], first, values, least);
  }

  void write(const FlatVectors& vectors, int row, const float* query, float* values, int64_t* numbers) const {
    *numbers = best[row].number;
    *values = vectors.value(query, *numbers);
  }

 private:
  static inline __attribute__((always_inline)) void take(Best& to, int64_t first, const vector* values, vector least) {
    const float value = least_of(least);
    uint64_t lanes = 0;
    for (int j = 0; j < PANELS; j++) lanes |= equal(values[j], vector{} + value) << VECTOR * j;
    to = {value, first + __builtin_ctzll(lanes)};
  }
};

// Several nearest of each query of a group: collected until there are many more than wanted, then cut.
class SeveralFound {
  const size_t wanted, capacity;
  array<uint64_t> keys, spare;  // (rows, capacity), (capacity)
  std::vector<size_t> sizes;
  std::vector<float> limits;  // values from them on are too large

 public:
  SeveralFound(const FlatVectors& vectors, int rows, int64_t number)
      : wanted(number), capacity(capacity_for(vectors, number)), keys(allocate<uint64_t>(rows * capacity)),
        spare(allocate<uint64_t>(capacity)), sizes(rows), limits(rows) {}

  static size_t capacity_for(const FlatVectors& vectors, size_t wanted) {
    return std::min(vectors.padded_count(), wanted + std::max<size_t>(wanted / 2, 128)) + PANEL;
  }

  void clear(int rows) {
    std::fill_n(sizes.begin(), rows, 0);
    std::fill_n(limits.begin(), rows, INFINITY);
  }

  inline __attribute__((always_inline)) void look(int row, int64_t first, const vector* values) {
    const vector limit = vector{} + limits[row];
    uint64_t lanes = 0;
    for (int j = 0; j < PANELS; j++) lanes |= below(values[j], limit) << VECTOR * j;
    if (lanes) take(row, first, Stored(values), lanes);
  }

  void write(const FlatVectors& vectors, int row, const float* query, float* values, int64_t* numbers) {
    uint64_t* const own = keys.get() + row * capacity;
    if (sizes[row] > wanted) cut(row);
    if (sizes[row] < wanted) fill(own, sizes[row]);
    for (size_t i = 0; i < wanted; i++) own[i] = key_of(vectors.value(query, uint32_t(own[i])), own[i]);
    std::sort(own, own + wanted);
    for (size_t i = 0; i < wanted; i++) values[i] = value_of(own[i]), numbers[i] = uint32_t(own[i]);
  }

 private:
  void take(int row, int64_t first, const Stored& values, uint64_t lanes) {
    uint64_t* to = keys.get() + row * capacity + sizes[row];
    for (; lanes; lanes &= lanes - 1) {
      const int lane = __builtin_ctzll(lanes);
      *to++ = key_of(values.all[lane], first + lane);
    }
    sizes[row] = to - keys.get() - row * capacity;
    if (sizes[row] > capacity - PANEL || (limits[row] == INFINITY && sizes[row] >= wanted)) cut(row);
  }

  void cut(int row) {
    uint64_t* const own = keys.get() + row * capacity;
    keep_least(own, sizes[row]);
    sizes[row] = wanted;
    limits[row] = value_of(*std::max_element(own, own + wanted));
  }

  // The wanted least of some keys come first. No branch depends on a single key, which would be mispredicted.
  void keep_least(uint64_t* own, size_t end) {
    size_t begin = 0;
    for (int tries = 0; end - begin > 8 && tries < 32; tries++) {
      const uint64_t a = own[begin], b = own[(begin + end) / 2], c = own[end - 1];
      const uint64_t pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
      size_t low = begin, high = 0;
      for (size_t i = begin; i < end; i++) {
        const uint64_t key = own[i];
        const bool is_low = key <= pivot;
        own[low] = key, spare[high] = key;
        low += is_low, high += !is_low;
      }
      if (low >= wanted) {
        end = low;
        if (low == wanted) return;
      } else {
        memcpy(own + low, spare.get(), high * sizeof(uint64_t));
        begin = low;
      }
    }
    std::nth_element(own + begin, own + wanted - 1, own + end);
  }

  // Values that are infinite or no numbers come last, in the order of the vectors.
  void fill(uint64_t* own, size_t size) const {
    std::sort(own, own + size, [](uint64_t a, uint64_t b) { return uint32_t(a) < uint32_t(b); });
    size_t there = 0, filled = size;
    for (uint32_t number = 0; filled < wanted; number++) {
      if (there < size && uint32_t(own[there]) == number)
        there++;
      else
        own[filled++] = key_of(INFINITY, number);
    }
  }
};

// What one thread needs to compare groups of queries with all vectors.
template <class Found>
class FlatWorker {
  const FlatVectors& all;
  const int group;
  Found found;
  array<float> partial;  // (group, PANEL): sums over the dimensions so far, where there are many

 public:
  FlatWorker(const FlatVectors& v, int rows, int64_t wanted)
      : all(v), group(rows), found(v, rows, wanted), partial(allocate<float>(v.dim > DEPTH ? size_t(rows) * PANEL : 0)) {}

  int vectors() const { return group; }

  void run(const float* queries, int count, int64_t wanted, float* values, int64_t* numbers) {
    found.clear(count);
    if (!all.panels)
      unpacked(queries, count);
    else if (count > FEW)
      in_tiles(queries, count);
    else
      in_rows(queries, count);
    for (int i = 0; i < count; i++)
      found.write(all, i, queries + size_t(i) * all.dim, values + i * wanted, numbers + i * wanted);
  }

 private:
  void unpacked(const float* queries, int count) {
    const size_t D = all.dim;
    for (int64_t first = 0; first < all.count && !is_stopped(); first += PANEL) {
      const int now = std::min<int64_t>(PANEL, all.count - first);
      const float* rows[PANEL];
      for (int j = 0; j < now; j++) rows[j] = all.rows + (first + j) * D;
      for (int i = 0; i < count; i++) {
        alignas(64) float values[PANEL];
        std::fill_n(values, PANEL, INFINITY);
        int j = 0;
        for (; j + 4 <= now; j += 4) compare<4>(queries + i * D, rows + j, D, all.inner_product, values + j);
        for (; j < now; j++) compare<1>(queries + i * D, rows + j, D, all.inner_product, values + j);
        for (j = 0; j < now; j++) values[j] += all.added_to(first + j);
        found.look(i, first, (const vector*)values);
      }
    }
  }

  // Too few rows for a tile's sums not to wait for each other: several panels at a time.
  void in_rows(const float* queries, int count) {
    int64_t first = 0;
    for (; first + WIDE * PANEL <= all.count && !is_stopped(); first += WIDE * PANEL)
      for (int i = 0; i < count; i++) row<WIDE>(queries, i, first);
    for (; first < all.count && !is_stopped(); first += PANEL)
      for (int i = 0; i < count; i++) row<1>(queries, i, first);
  }

  template <int P>
  void row(const float* queries, int i, int64_t first) {
    const size_t D = all.dim;
    vector sums[P][PANELS] = {};
    const float *query = queries + i * D, *panel = all.panels.get() + first * D;
    for (size_t d = 0; d < D; d++)
      for (int p = 0; p < P; p++)
        for (int j = 0; j < PANELS; j++) sums[p][j] += query[d] * *(const vector*)(panel + (p * D + d) * PANEL + VECTOR * j);
    for (int p = 0; p < P; p++) finish<1>(i, first + p * PANEL, sums + p);
  }

  void in_tiles(const float* queries, int count) {
    for (int64_t first = 0; first < all.count && !is_stopped(); first += PANEL)
      for (int from = 0; from < all.dim; from += DEPTH) {
        int i = 0;
        for (; i + TILE <= count; i += TILE) tile<TILE>(queries, i, first, from);
        switch (count - i) {
          case 5: tile<5>(queries, i, first, from); break;
          case 4: tile<4>(queries, i, first, from); break;
          case 3: tile<3>(queries, i, first, from); break;
          case 2: tile<2>(queries, i, first, from); break;
          case 1: tile<1>(queries, i, first, from);
        }
      }
  }

  template <int N>
  inline __attribute__((always_inline)) void tile(const float* queries, int i, int64_t first, int from) {
    const int D = all.dim, now = std::min(DEPTH, D - from);
    vector sums[N][PANELS] = {};
    float* const kept = partial.get() + size_t(i) * PANEL;
    if (from)
      for (int r = 0; r < N; r++)
        for (int j = 0; j < PANELS; j++) sums[r][j] = load(kept + r * PANEL + VECTOR * j);
    const float* panel = all.panels.get() + size_t(first) * D + size_t(from) * PANEL;
    Float::multiply<N>(queries + size_t(i) * D + from, D, 1, now, panel, sums);
    if (from + now < D) {
      for (int r = 0; r < N; r++)
        for (int j = 0; j < PANELS; j++) store(kept + r * PANEL + VECTOR * j, sums[r][j]);
      return;
    }
    finish<N>(i, first, sums);
  }

  template <int N>
  inline __attribute__((always_inline)) void finish(int i, int64_t first, vector (*sums)[PANELS]) {
    const vector factor = vector{} - (all.inner_product ? 1.f : 2.f);
    vector norms[PANELS];
    for (int j = 0; j < PANELS; j++) norms[j] = load(all.norms.get() + first + VECTOR * j);
    for (int r = 0; r < N; r++) {
      for (int j = 0; j < PANELS; j++) sums[r][j] = norms[j] + factor * sums[r][j];
      found.look(i + r, first, sums[r]);
    }
  }
};

struct Flat final : AnyFlat {
  FlatVectors vectors;
  Flat(const float* rows, const float* added, int64_t count, int dim, bool inner_product, bool packs)
      : vectors(rows, added, count, dim, inner_product, packs) {}

  void search(const float* queries, int64_t count, int64_t wanted, int threads, float* values,
              int64_t* numbers) const override {
    if (wanted == 1)
      run<OneFound>(MOST_ROWS, queries, count, wanted, threads, values, numbers);
    else
      run<SeveralFound>(FOUND_VALUES / SeveralFound::capacity_for(vectors, wanted), queries, count, wanted, threads,
                        values, numbers);
  }

 private:
  template <class Found>
  void run(int64_t most, const float* queries, int64_t count, int64_t wanted, int threads, float* values,
           int64_t* numbers) const {
    const int64_t each = (count + threads - 1) / std::max(threads, 1);
    const int rows = std::max<int64_t>(1, std::min<int64_t>({MOST_ROWS, most, (each + TILE - 1) / TILE * TILE}));
    over_threads(
        count, TILE, threads, [&] { return std::make_unique<FlatWorker<Found>>(vectors, rows, wanted); },
        [&](FlatWorker<Found>& worker, int64_t from, int now) {
          worker.run(queries + from * vectors.dim, now, wanted, values + from * wanted, numbers + from * wanted);
        });
  }
};

AnyFlat* make_flat(const float* vectors, const float* added, int64_t count, int dim, bool inner_product, bool packs) {
  return new Flat(vectors, added, count, dim, inner_product, packs);
}
}  // namespace ISA
