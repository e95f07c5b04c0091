// What a caller hands over for a search in inverted lists. Arrays are row-major.
//   V lists, D dimension, M codes of a vector, Q queries, P lists visited, S vectors of a shortlist
#pragma once
#include <cstdint>

extern "C" {

struct qinco_scanner_sizes {
  int32_t dim, lists, steps;
  int32_t inner_product;  // whether near means a large inner product, not a small squared distance
};

// Some vectors in inverted lists. List v holds rows starts[v] to starts[v + 1]; its bytes begin at starts[v] * (M + 1), in
// blocks of 64 vectors, each (M + 1, 64): M rows of codes and one of scalars; its last block is as wide as it has vectors.
struct qinco_segment {
  const int64_t* starts;  // (V + 1)
  const uint8_t* codes;
  const void* ids;        // (N): uint32, or int64 where ids_are_wide
  const uint64_t* admitted;  // a bit for each row, the lowest first: whether it may be found; null: all may
  int32_t ids_are_wide;
};

struct qinco_scan {
  const float* queries;   // (Q, D)
  const int32_t* probes;  // (Q, P): lists in the order of their visit; -1: none further
  const float* bases;     // (Q, P): what the values of a list's vectors begin with; +inf: none is near
  const qinco_segment* segments;
  int64_t count;          // Q
  int32_t num_segments, num_probes, num_short;
  int32_t nprobe;         // lists visited at least; further ones until a shortlist is full
  // Results, nearest first, of equal ones the first visited; values that have overflowed are not found. Where a shortlist
  // is not full the rest is +inf, -1, -1 and zeros.
  float* values;          // (Q, S)
  int64_t* ids;           // (Q, S)
  int32_t* lists;         // (Q, S)
  uint8_t* codes;         // (Q, S, M)
  uint8_t* norm_codes;    // (Q, S)
  int64_t* scanned;       // (Q): vectors looked at
};

// Vectors x' = o + c + r by their codes: o is the origin of the centroids, c the centroid of a list, and r the sum of the
// codes' rows of the tables. `norms` are 2 <c, r> + |r|^2. Where another decoder's reconstructions x are given, `squares`
// are |x' - centre|^2, and `shared` are <x - x', x - mean>.
struct qinco_sums {
  const uint8_t* codes;                 // (N, M)
  const int32_t* lists;                 // (N)
  int64_t count;                        // N
  const float* decoded;                 // x, (N, D), or null
  const float *origin, *mean, *centre;  // (D)
  float* sums;                          // (N): norms; where x are given (3, N): norms, squares, shared
};

// Shortlists of which a model decodes those vectors that may come among the `wanted` of least value. A vector's value is
// that of its reconstruction x + correction * T + length * |x - centre|^2, T being the correction that its scalar tells
// (search/ranking.py).
struct qinco_walk {
  const float* queries;      // (Q, D)
  const float* values;       // (Q, S): by the tables, ascending
  const int32_t* lists;      // (Q, S); -1: no vector from here on
  const uint8_t* codes;      // (Q, S, M)
  const uint8_t* norm_codes; // (Q, S)
  int64_t count;             // Q
  int32_t dim, steps, width; // D, M, S
  int32_t wanted;
  int32_t chunk, least;      // vectors of a round: of each query, and of all; at least
  float margin;              // by how much values may be smaller than those by the tables; +inf: all are decoded, at once
  // The model's reconstructions begin at `starts` (V, D), or zeros where that is null, and are scaled and shifted.
  const float* starts;
  const float* shift;        // (D)
  float scale;
  float correction, length;
  float table_correction, table_length;  // those by which the tables' scalars are made
  float typical, low, high;  // corrections: the usual one, and limits of likely ones
  double rounding;           // of scalars, relative
  const float *origin, *mean, *centre;  // (D), as in qinco_sums
  float* found;              // (Q, S): +inf, and the values of those that are decoded
  double* seconds;           // (2): are added to, by decoding and by valuing
};
}

// Tables and centroids packed for one instruction set.
struct AnyScanner {
  virtual ~AnyScanner() = default;
  // The `nprobe` nearest centroids of queries (count, D) in order, and the bases of their lists.
  virtual void probe(const float* queries, int64_t count, int nprobe, int threads, int32_t* probes, float* bases) const = 0;
  virtual void scan(const qinco_scan& request, int threads) const = 0;
  virtual void sum(const qinco_sums& request, int threads) const = 0;
  // The values of vectors of a walk by their reconstructions, in `found`; `places` are theirs in the flattened shortlists.
  virtual void value(const qinco_walk& request, const int64_t* places, const qinco_sums& sums, int threads) const = 0;
};

// centroids (V, D), tables (M, 256, D), levels (256): what a scalar byte stands for.
#define QINCO_SCANNER(isa)                                                                                          \
  namespace isa {                                                                                                   \
  AnyScanner* make_scanner(const qinco_scanner_sizes&, const float* centroids, const float* tables, const float* levels); \
  }
QINCO_SCANNER(avx512)
QINCO_SCANNER(avx2)
QINCO_SCANNER(portable)
