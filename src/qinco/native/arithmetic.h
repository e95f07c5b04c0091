// Arithmetic for one instruction set: registers, float32 and bf16 products, packed matrices, and work over threads.
// Included by the files of an instruction set, which define VECTOR (floats of a register), PANELS (registers of outputs in
// a tile), TILE (rows of a tile), BF16 (whether vdpbf16ps exists) and the namespace ISA.
//
// Rows are always computed by the same sequence of operations, wherever in a tile they are: results do not depend on
// threads, on blocks or on the order of vectors.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>
#if BF16
#include <immintrin.h>
#endif

#include "engine.h"
#include "pool.h"

namespace ISA {

typedef float vector __attribute__((vector_size(VECTOR * 4)));
typedef float loose_vector __attribute__((vector_size(VECTOR * 4), aligned(4)));
typedef int32_t ivector __attribute__((vector_size(VECTOR * 4)));

constexpr int PANEL = VECTOR * PANELS;  // outputs of a tile

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

template <int N>
static inline __attribute__((always_inline)) void copy(vector (*to)[PANELS], const vector (*from)[PANELS]) {
#pragma GCC unroll 8
  for (int i = 0; i < N; i++)
    for (int j = 0; j < PANELS; j++) to[i][j] = from[i][j];
}

// Arithmetic of networks: float32, or bf16 products with float32 sums. `multiply` adds to sums [i][j] the products of number
// k of row i, which is at rows[i * stride + k * step] (with pairs, in units of them), and number k of the panel's outputs j.

struct Float {
  using element = float;
  static constexpr int PAIR = 1;  // inputs that one instruction takes
  static element convert(float x) { return x; }
  static void store_panel(element* to, const vector* values) {
    for (int j = 0; j < PANELS; j++) store(to + VECTOR * j, values[j]);
  }
  static vector load_wide(const element* from) { return load(from); }
  static vector rounded(vector v) { return v; }
  static void pair(element* to, const element* first, const element*) { store(to, load(first)); }
  template <int N>
  static inline __attribute__((always_inline)) void multiply(const element* rows, int stride, int step, int in,
                                                             const element* panel, vector (*sums)[PANELS]) {
    vector own[N][PANELS];  // which stay in registers: nothing else points to them
    copy<N>(own, sums);
    for (int k = 0; k < in; k++) {
      vector b[PANELS];
      for (int j = 0; j < PANELS; j++) b[j] = *(const vector*)(panel + k * PANEL + VECTOR * j);
#pragma GCC unroll 8
      for (int i = 0; i < N; i++) {
        const float a = rows[i * stride + k * step];
        for (int j = 0; j < PANELS; j++) own[i][j] += a * b[j];
      }
    }
    copy<N>(sums, own);
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
  // VECTOR pairs of a number of the one row and a number of the other.
  static void pair(element* to, const element* first, const element* second) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)first));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)second));
    _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
  template <int N>
  static inline __attribute__((always_inline)) void multiply(const element* rows, int stride, int step, int in,
                                                             const element* panel, vector (*sums)[PANELS]) {
    vector own[N][PANELS];  // which stay in registers: nothing else points to them
    copy<N>(own, sums);
    for (int k = 0; k < in / 2; k++) {
      __m512bh b[PANELS];
      for (int j = 0; j < PANELS; j++) b[j] = (__m512bh)_mm512_load_si512(panel + k * 2 * PANEL + 32 * j);
#pragma GCC unroll 8
      for (int i = 0; i < N; i++) {
        int32_t two;
        memcpy(&two, rows + i * stride + 2 * k * step, 4);
        const __m512bh a = (__m512bh)_mm512_set1_epi32(two);
        for (int j = 0; j < PANELS; j++) own[i][j] = (vector)_mm512_dpbf16_ps((__m512)own[i][j], a, b[j]);
      }
    }
    copy<N>(sums, own);
  }
};
#endif

// body(the number of rows as a constant, the first of them) for tiles of `count` rows.
template <class Body>
static inline __attribute__((always_inline)) void in_tiles(int count, Body body) {
  int i = 0;
  for (; i + TILE <= count; i += TILE) body(std::integral_constant<int, TILE>(), i);
  switch (count - i) {
    case 5: body(std::integral_constant<int, 5>(), i); break;
    case 4: body(std::integral_constant<int, 4>(), i); break;
    case 3: body(std::integral_constant<int, 3>(), i); break;
    case 2: body(std::integral_constant<int, 2>(), i); break;
    case 1: body(std::integral_constant<int, 1>(), i);
  }
}

// Rows of float32 in the arithmetic of networks, padded with zeros; null is a row of zeros.
template <class A>
static void narrow_row(const float* from, int width, typename A::element* to) {
  for (int p = 0; p < width; p += PANEL) {
    vector values[PANELS] = {};
    if (from && p + PANEL <= width)
      for (int j = 0; j < PANELS; j++) values[j] = load(from + p + VECTOR * j);
    else if (from)
      memcpy(values, from + p, (width - p) * 4);
    A::store_panel(to + p, values);
  }
}

// A matrix (out, in) in panels of PANEL outputs, in the order in which tiles read it; padded with zeros.
template <class A>
struct Matrix {
  using T = typename A::element;
  int out = 0, in = 0;  // padded
  array<T> values;

  // W (rows, columns), whose rows are `stride` apart.
  void pack(const float* W, int rows, int columns, int stride) {
    resize(rows, columns);
    const array<T> block = allocate<T>(size_t(VECTOR) * in);
    for (int r = 0; r < rows; r += VECTOR) {
      for (int i = 0; i < VECTOR; i++)
        narrow_row<A>(r + i < rows ? W + size_t(r + i) * stride : nullptr, columns, &block[size_t(i) * in]);
      T* panel = values.get() + size_t(r / PANEL) * PANEL * in + r % PANEL * A::PAIR;
      for (int k = 0; k < in / A::PAIR; k++)
        for (int i = 0; i < VECTOR; i++)
          memcpy(panel + (size_t(k) * PANEL + i) * A::PAIR, &block[size_t(i) * in + k * A::PAIR], 4);
    }
  }

  void pack(const float* W, int rows, int columns) { pack(W, rows, columns, columns); }

  // The transpose of W (columns, rows), whose rows are `stride` apart.
  void pack_transposed(const float* W, int rows, int columns, int stride) {
    resize(rows, columns);
    const array<T> first = allocate<T>(out), second = allocate<T>(out);
    for (int c = 0; c < columns; c += A::PAIR) {
      narrow_row<A>(W + size_t(c) * stride, rows, first.get());
      if (A::PAIR == 2) narrow_row<A>(c + 1 < columns ? W + size_t(c + 1) * stride : nullptr, rows, second.get());
      for (int r = 0; r < out; r += VECTOR) {
        T* panel = values.get() + size_t(r / PANEL) * PANEL * in + r % PANEL * A::PAIR;
        A::pair(panel + size_t(c) * PANEL, &first[r], &second[r]);
      }
    }
  }

  // rows (count, in) times the matrix: finish(row, first output, PANELS sums) for each row and panel.
  template <class Finish>
  inline __attribute__((always_inline)) void apply(const T* rows, int count, Finish finish) const {
    for (int p = 0; p < out; p += PANEL) {
      const T* panel = values.get() + size_t(p) * in;
      in_tiles(count, [&](auto tile, int i) __attribute__((always_inline)) {
        vector sums[tile()][PANELS] = {};
        A::template multiply<tile()>(rows + size_t(i) * in, in, 1, in, panel, sums);
        for (int r = 0; r < tile(); r++) finish(i + r, p, sums[r]);
      });
    }
  }

 private:
  void resize(int rows, int columns) {
    if (out == padded(rows) && in == padded(columns)) return;
    out = padded(rows), in = padded(columns);
    values = allocate<T>(size_t(out) * in);
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

// Vectors over threads, of which each has `fewest` at least: each takes the next group until none is left, or it is told
// to stop.
template <class Make, class Run>
struct Groups final : Job {
  const int64_t count;
  Make& make;
  Run& run_group;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};

  Groups(int64_t number, Make& m, Run& r) : count(number), make(m), run_group(r) {}

  void work() override {
    try {
      auto worker = make();
      const int64_t size = worker->vectors();
      for (int64_t from; !is_stopped() && !leaves() && (from = next.fetch_add(size)) < count;)
        run_group(*worker, from, (int)std::min(size, count - from));
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  }
};

template <class Make, class Run>
static void over_threads(int64_t count, int fewest, int threads, Make make, Run run) {
  Groups<Make, Run> groups(count, make, run);
  const int64_t useful = (count + fewest - 1) / fewest;
  while (!groups.run(std::max<int64_t>(1, std::min<int64_t>(threads, useful)))) groups.next = 0;
  if (groups.failed) throw std::bad_alloc();
}
}  // namespace ISA
