// What a caller hands over for exact nearest neighbours.
//   V vectors, N queries, D dimension
#pragma once
#include <cstdint>

// Vectors packed for one instruction set. Of equal values, the smaller number comes first.
struct AnyFlat {
  virtual ~AnyFlat() = default;
  // The `wanted` <= V nearest of each query (count, D), in order: squared distances or negative inner products and
  // numbers, (count, wanted) each. What is no number counts as infinite.
  virtual void search(const float* queries, int64_t count, int64_t wanted, int threads, float* values,
                      int64_t* numbers) const = 0;
  // Sums (V, D) and counts (V) of the vectors x (count, D) of each number 0 <= numbers < V.
  virtual void sums(const float* x, const int64_t* numbers, int64_t count, int threads, double* sums,
                    int64_t* counts) const = 0;
};

// vectors (V, D), V < 2^31, which stay where they are.
#define QINCO_FLAT(isa) \
  namespace isa {       \
  AnyFlat* make_flat(const float* vectors, int64_t count, int dim, bool inner_product); \
  }
QINCO_FLAT(avx512)
QINCO_FLAT(avx2)
QINCO_FLAT(portable)
