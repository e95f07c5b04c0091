// Additive tables: sums of table rows, which decode, sums of vectors by table row, to which tables are fitted, and
// products that mix the rows of a table. Arrays are row-major.
//   N vectors, D dimension, W codes of a vector, P table rows of a vector, K codewords
#pragma once
#include <cstdint>

extern "C" {
// Which rows of P tables laid one after the other are those of vectors: row c of the p-th table, c being the p-th code,
// or row a * K + b where there are pairs of codes.
struct qinco_rows {
  const int32_t* codes;  // (N, W), below K
  const int32_t* pairs;  // (P, 2), which codes are a and b; or null, where P = W
  int64_t count;         // N
  int32_t num_codes, num_rows, codewords, dim;
};
}

// decode_rows: `out` (N, D) is `scale` times the sum of each vector's rows, float32 or float16 (`half`), added to what it
// held if `adds`.
// sum_by_row: x (N, D) is added to its rows of `sums`, float32 or float64 (`wide`).
// multiply: each of `count` matrices b (inner, columns) becomes a b (rows, columns), a being (rows, inner).
#define QINCO_TABLES(isa)                                                                                    \
  namespace isa {                                                                                            \
  void decode_rows(const qinco_rows&, const void* tables, bool half, float scale, int threads, bool adds,    \
                   float* out);                                                                              \
  void sum_by_row(const qinco_rows&, const float* x, int threads, bool wide, void* sums);                    \
  void multiply(const float* a, const float* b, int64_t count, int rows, int inner, int64_t columns, int threads, \
                float* out);                                                                                 \
  }
QINCO_TABLES(avx512)
QINCO_TABLES(avx2)
QINCO_TABLES(portable)

#ifdef ISA
#include "arithmetic.h"
#ifdef __F16C__
#include <immintrin.h>
#endif

namespace ISA {

constexpr int FEWEST_TABLE_VECTORS = 2048;  // for a thread
constexpr int TABLE_VECTORS = 256;          // that a thread takes at a time
constexpr int TABLE_COLUMNS = 32;           // that a thread sums at a time: so much of all rows stays in its cache
constexpr int AHEAD = 8;                    // vectors whose sums are fetched before their turn
constexpr int BETWEEN_CHECKS = 1 << 16;     // rows
constexpr int64_t FEWEST_PRODUCTS = 1 << 20;  // for a thread
constexpr int LINE = 64;                    // bytes

static inline float widened(float value) { return value; }
static inline float widened(uint16_t half) {
  uint32_t bits = uint32_t(half & 0x7fff) << 13;
  float value;
  memcpy(&value, &bits, 4);
  value *= 0x1p112f;
  memcpy(&bits, &value, 4);
  bits |= ((half & 0x7c00) == 0x7c00 ? 0x7f800000u : 0) | uint32_t(half & 0x8000) << 16;
  memcpy(&value, &bits, 4);
  return value;
}

static inline vector load_row(const float* from) { return load(from); }
static inline vector load_row(const uint16_t* from) {
#if defined(__F16C__) && VECTOR == 16
  return (vector)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__)
  return (vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
  vector values;
  for (int i = 0; i < VECTOR; i++) values[i] = widened(from[i]);
  return values;
#endif
}

struct Rows : qinco_rows {
  explicit Rows(const qinco_rows& given) : qinco_rows(given) {}

  int64_t row(int64_t n, int p) const {
    const int32_t* own = codes + n * num_codes;
    if (!pairs) return int64_t(p) * codewords + own[p];
    return (int64_t(p) * codewords + own[pairs[2 * p]]) * codewords + own[pairs[2 * p + 1]];
  }
};

template <class T>
class RowDecoder {
  const Rows& rows;
  const T* const tables;
  const float scale;
  const bool adds;
  const int D, P;
  std::vector<const T*> own, next;

 public:
  RowDecoder(const Rows& rows, const T* tables, float scale, bool adds)
      : rows(rows), tables(tables), scale(scale), adds(adds), D(rows.dim), P(rows.num_rows), own(P), next(P) {}

  int vectors() const { return TABLE_VECTORS; }

  void run(int64_t from, int count, float* out) {
    look_up(from);
    for (int64_t n = from; n < from + count; n++) {
      std::swap(own, next);
      look_up(std::min(n + 1, from + count - 1));
      float* to = out + n * D;
      if (D < VECTOR) {
        for (int d = 0; d < D; d++) to[d] = total(d) * scale + (adds ? to[d] : 0);
        continue;
      }
      // The last columns overlap those before them, which are written first, but read later.
      vector last[1];
      sum<1>(D - VECTOR, to, last);
      int d = 0;
      for (; d + 8 * VECTOR <= D; d += 8 * VECTOR) decode<8>(d, to);
      for (; d + 4 * VECTOR <= D; d += 4 * VECTOR) decode<4>(d, to);
      for (; d + VECTOR <= D; d += VECTOR) decode<1>(d, to);
      store(to + D - VECTOR, last[0]);
    }
  }

 private:
  void look_up(int64_t n) {
    for (int p = 0; p < P; p++) next[p] = tables + rows.row(n, p) * D;
  }

  float total(int d) const {
    float total = 0;
    for (int p = 0; p < P; p++) total += widened(own[p][d]);
    return total;
  }

  template <int N>
  void sum(int d, const float* to, vector* values) const {
    vector total[N] = {};
    for (int p = 0; p < P; p++)
      for (int j = 0; j < N; j++) {
        // The next vector's rows come from far apart: they are asked for while those of this one are summed.
        if ((VECTOR * sizeof(T) * j) % LINE == 0) __builtin_prefetch(next[p] + d + VECTOR * j);
        total[j] += load_row(own[p] + d + VECTOR * j);
      }
    for (int j = 0; j < N; j++) {
      values[j] = total[j] * scale;
      if (adds) values[j] += load(to + d + VECTOR * j);
    }
  }

  template <int N>
  void decode(int d, float* to) const {
    vector values[N];
    sum<N>(d, to, values);
    for (int j = 0; j < N; j++) store(to + d + VECTOR * j, values[j]);
  }
};

void decode_rows(const qinco_rows& given, const void* tables, bool half, float scale, int threads, bool adds, float* out) {
  const Rows rows(given);
  const auto over = [&](const auto* numbers) {
    using Decoder = RowDecoder<std::decay_t<decltype(*numbers)>>;
    over_threads(
        rows.count, FEWEST_TABLE_VECTORS, threads, [&] { return std::make_unique<Decoder>(rows, numbers, scale, adds); },
        [&](Decoder& decoder, int64_t from, int now) { decoder.run(from, now, out); });
  };
  half ? over((const uint16_t*)tables) : over((const float*)tables);
}

// Sums some columns: each of them in the order of the vectors, however many threads there are.
template <class T>
class ColumnSummer {
  const Rows& rows;

 public:
  explicit ColumnSummer(const Rows& rows) : rows(rows) {}

  int vectors() const { return TABLE_COLUMNS; }

  void run(int from, int columns, const float* x, T* sums) const {
    const int64_t between_checks = BETWEEN_CHECKS / std::max(1, rows.num_rows) + 1;
    for (int64_t n = 0; n < rows.count; n++) {
      if (n % between_checks == 0 && is_stopped()) return;
      if (n + AHEAD < rows.count)
        for (int p = 0; p < rows.num_rows; p++)
          for (size_t byte = 0; byte < columns * sizeof(T); byte += LINE)
            __builtin_prefetch((const char*)(sums + rows.row(n + AHEAD, p) * rows.dim + from) + byte, 1);
      const float* own = x + n * rows.dim + from;
      for (int p = 0; p < rows.num_rows; p++) {
        T* to = sums + rows.row(n, p) * rows.dim + from;
        if (columns == TABLE_COLUMNS)
          for (int d = 0; d < TABLE_COLUMNS; d++) to[d] += own[d];
        else
          for (int d = 0; d < columns; d++) to[d] += own[d];
      }
    }
  }
};

void sum_by_row(const qinco_rows& given, const float* x, int threads, bool wide, void* sums) {
  const Rows rows(given);
  const auto over = [&](auto* numbers) {
    using Summer = ColumnSummer<std::decay_t<decltype(*numbers)>>;
    const int64_t most = rows.count * rows.num_rows / FEWEST_TABLE_VECTORS + 1;
    over_threads(
        rows.dim, TABLE_COLUMNS, std::min<int64_t>(threads, most), [&] { return std::make_unique<Summer>(rows); },
        [&](Summer& summer, int64_t from, int now) { summer.run(from, now, x, numbers); });
  };
  wide ? over((double*)sums) : over((float*)sums);
}

// Multiplies a panel at a time: columns of one b, or of some narrow ones.
class PanelMultiplier {
  const float* const a;
  const int rows, inner;
  const int64_t columns;
  Matrix<Float> panel;

  struct Part {
    int64_t matrix, column;
    int first, width;  // in the panel
  };
  std::vector<Part> parts;

 public:
  PanelMultiplier(const float* a, int rows, int inner, int64_t columns) : a(a), rows(rows), inner(inner), columns(columns) {
    panel.out = PANEL, panel.in = inner, panel.values = allocate<float>(size_t(inner) * PANEL);
  }

  int vectors() const { return PANEL; }

  void run(int64_t from, int width, const float* b, float* out) {
    parts.clear();
    for (int first = 0; first < width;) {
      const int64_t column = (from + first) % columns;
      const int some = std::min<int64_t>(width - first, columns - column);
      parts.push_back({(from + first) / columns, column, first, some});
      first += some;
    }
    for (const Part& part : parts)
      for (int i = 0; i < inner; i++)
        memcpy(&panel.values[i * PANEL + part.first], b + (part.matrix * inner + i) * columns + part.column, part.width * 4);
    panel.apply(a, rows, [&](int row, int, const vector* sums) {
      for (const Part& part : parts)
        memcpy(out + (part.matrix * rows + row) * columns + part.column, (const float*)sums + part.first, part.width * 4);
    });
  }
};

void multiply(const float* a, const float* b, int64_t count, int rows, int inner, int64_t columns, int threads, float* out) {
  const int64_t most = count * rows * inner * columns / FEWEST_PRODUCTS + 1;
  over_threads(
      count * columns, PANEL, std::min<int64_t>(threads, most),
      [&] { return std::make_unique<PanelMultiplier>(a, rows, inner, columns); },
      [&](PanelMultiplier& multiplier, int64_t from, int now) { multiplier.run(from, now, b, out); });
}
}  // namespace ISA
#endif
