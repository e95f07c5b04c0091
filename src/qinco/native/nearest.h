// What a caller hands over for nearest neighbours, exact ones and those by a graph.
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
};

extern "C" {

// An HNSW graph (arXiv 1603.09320) in the layout of faiss: a vector has 2 M links on level 0 and M on each further one.
struct qinco_graph {
  const float* vectors;    // (V, D), V < 2^31
  const int32_t* levels;   // (V): on how many levels a vector is
  const int64_t* offsets;  // (V + 1): where its links begin, those of level 0 first
  int32_t* neighbors;      // on each level the vectors it is linked to, then -1
  const int32_t* order;    // (V): in which a graph is built, falling by level
  int64_t count;           // V
  int32_t dim, links;      // D, M
  int32_t entry;           // a vector of the highest level
  int32_t inner_product;
};
}

// vectors (V, D), V < 2^31, which stay where they are; they are packed (`packs`) for more than a few queries.
#define QINCO_NEAREST(isa)                                                                                          \
  namespace isa {                                                                                                   \
  AnyFlat* make_flat(const float* vectors, const float* added, int64_t count, int dim, bool inner_product, bool packs); \
  void build_graph(const qinco_graph&, int effort);                                                                \
  void search_graph(const qinco_graph&, const float* queries, int64_t count, int64_t wanted, int effort, int threads, \
                    float* values, int64_t* numbers);                                                              \
  }
QINCO_NEAREST(avx512)
QINCO_NEAREST(avx2)
QINCO_NEAREST(portable)
