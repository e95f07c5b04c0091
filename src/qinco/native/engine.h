// What a caller hands over: sizes and plain float32 arrays, row-major, which are packed once and not kept.
#pragma once
#include <cstdint>

#define QINCO_INTERFACE 9  // one more with each change of what is exported; as in library.py

extern "C" {

// One conditioned step. The stream's basis is the caller's choice: with projections it is the one in which the output
// projection's Gram matrix is diagonal, so that a candidate's distance needs no product of its own.
//   K codewords, D dimension, E stream, H hidden, L residual blocks
struct qinco_step {
  const float* codebook;      // (K, D)
  const float* preselector;   // (K, D), or null: every codeword is a candidate
  const float* stream_table;  // (K, E): the stream's beginning that comes from the codeword
  const float* hidden_table;  // (K, H): the same for the first hidden layer; null where L is 0
  const float* stream_x;      // (E, D): the stream's part that comes from the partial reconstruction
  const float* hidden_x;      // the same for the first hidden layer, (H, D); where E < D from the stream's part of the
                              // partial reconstruction instead, (H, E), which is less work; null where L is 0
  const float* const* up;     // L pointers to (H, E); the first is not read, hidden_table and hidden_x replace it
  const float* const* down;   // L pointers to (E, H)
  const float* project_out;   // (D, E), or null where E = D
  const float* gram;          // (E): the squared lengths of project_out's columns, which are orthogonal; or null
  const float* codeword_back; // (K, E): codebook times project_out; or null
  const float* first_cross;   // (K, K): products of the first step's codewords with this step's preselector; only for
                              // the second step after a bare first one, and null where K is large
  // The ranker of pre-selected pairs (see ranking.h), or nulls.
  const float* rank_codebook;       // (K, D)
  const float* rank_offset;         // (K)
  const float* rank_map;            // (E, D)
  const float* rank_slope;          // (D)
  const float* rank_hidden_map;     // (E, H)
  const float* rank_hidden_slope;   // (H)
  const float* rank_hidden_square;  // (H)
};

struct qinco_sizes {
  int32_t dim, stream, hidden, blocks, codewords, steps;
  int32_t skip;          // whether the codeword is added to the network's output
  int32_t first_is_bare; // whether the first step is a codebook without network; its qinco_step has a codebook only
  int32_t bf16;          // whether candidates are evaluated in bf16
};

struct qinco_search {
  int32_t candidates;  // A, codewords for each hypothesis; 0: not used
  int32_t pairs;       // C, pairs of the whole beam; 0: not used
  int32_t beam;        // B
  int32_t steps;       // how many of the model's steps
};

// The weights of one step as they are trained, or their gradients. Null where a step does not have them; a bare one has a
// codebook only.
struct qinco_layers {
  float* codebook;     // (K, D)
  float* preselector;  // (K, D)
  float* project_in;   // (E, D)
  float* concat;       // (E, E + D): columns for the projected codeword, and for the partial reconstruction
  float* bias;         // (E)
  float* const* up;    // L pointers to (H, E)
  float* const* down;  // L pointers to (E, H)
  float* project_out;  // (D, E)
};

struct qinco_batch {
  const float *x, *start;  // (N, D): vectors, and reconstructions before the first step
  const int32_t* codes;    // (N, M)
  int64_t count;           // N
  float scale;             // of the squared errors in the loss
  // What is added to: the loss of each step (M), how often a codeword is used (M, K), and the sums (M, D) of what steps
  // had left to approximate, and of its squares.
  double *losses, *counts, *sums, *squares;
};

// A matrix of finite values, row-major, which is replaced.
struct qinco_matrix {
  float* values;
  int32_t rows, columns;
};

// Python's PyGILState_Ensure, PyErr_CheckSignals, PyErr_Fetch and PyGILState_Release.
struct qinco_python {
  int (*ensure)();
  int (*check)();
  void (*fetch)(void** type, void** value, void** traceback);
  void (*release)(int state);
  void** raised;  // (3,), what a handler of a signal raised
};
}

// What watches this thread's calls, or null (see qinco_watch).
struct Watch;
extern thread_local Watch* watch;
// Once this is true, calls return early, with results of no meaning.
bool is_stopped();

// One model, packed for one instruction set.
struct AnyEngine {
  virtual ~AnyEngine() = default;
  virtual void encode(const qinco_search& search, const float* x, const float* start, int64_t count, int threads,
                      uint16_t* codes, float* reached) const = 0;
  // The reconstructions (count, D) after the last step or, with `each`, those after every step: (steps, count, D).
  virtual void decode(const uint16_t* codes, const float* start, int steps, int64_t count, int threads, bool each,
                      float* out) const = 0;
};

struct AnyGradient {
  virtual ~AnyGradient() = default;
  // Adds to the gradients, (M) structures as the weights.
  virtual void add(const qinco_batch&, const qinco_layers* weights, const qinco_layers* gradients, int threads) = 0;
};

namespace avx512_bf16 {
AnyEngine* make(const qinco_sizes&, const qinco_step*);
AnyGradient* make_gradient(const qinco_sizes&);
void orthogonalize(const qinco_matrix*, int count, const float* polynomials, int iterations, int threads, bool bf16);
}
namespace avx512 {
AnyEngine* make(const qinco_sizes&, const qinco_step*);
AnyGradient* make_gradient(const qinco_sizes&);
void orthogonalize(const qinco_matrix*, int count, const float* polynomials, int iterations, int threads, bool bf16);
}
namespace avx2 {
AnyEngine* make(const qinco_sizes&, const qinco_step*);
AnyGradient* make_gradient(const qinco_sizes&);
void orthogonalize(const qinco_matrix*, int count, const float* polynomials, int iterations, int threads, bool bf16);
}
namespace portable {
AnyEngine* make(const qinco_sizes&, const qinco_step*);
AnyGradient* make_gradient(const qinco_sizes&);
void orthogonalize(const qinco_matrix*, int count, const float* polynomials, int iterations, int threads, bool bf16);
}
