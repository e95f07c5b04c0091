// The C interface: chooses the instruction set and keeps exceptions from crossing into the caller.
#include "engine.h"

#include <atomic>
#include <chrono>
#include <new>
#include <optional>
#include <thread>

#include "ids.h"
#include "lists.h"
#include "nearest.h"
#include "tables.h"
#include "walk.h"

using Clock = std::chrono::steady_clock;
static constexpr std::chrono::milliseconds BETWEEN_CHECKS{50};

struct Watch {
  qinco_python python;
  std::thread::id caller = std::this_thread::get_id();  // who alone checks: Python handles signals in its main thread
  Clock::time_point next = Clock::now() + BETWEEN_CHECKS;
  std::atomic<bool> is_stopped{false};

  explicit Watch(const qinco_python& python) : python(python) {}

  void check() {
    const int state = python.ensure();
    if (python.check()) {
      python.fetch(python.raised, python.raised + 1, python.raised + 2);
      is_stopped = true;
    }
    python.release(state);
    next = Clock::now() + BETWEEN_CHECKS;
  }
};

thread_local Watch* watch = nullptr;

bool is_stopped() {
  if (!watch) return false;
  if (std::this_thread::get_id() == watch->caller && !watch->is_stopped && Clock::now() >= watch->next) watch->check();
  return watch->is_stopped.load(std::memory_order_relaxed);
}

extern "C" {

// Calls of this thread run handlers of signals from now on, and stop when one of them raises; null: they do not.
void qinco_watch(const qinco_python* python) {
  static thread_local std::optional<Watch> own;
  own.reset();
  watch = python ? &own.emplace(*python) : nullptr;
}

// Which functions and types there are: a library of another number is not called.
int qinco_interface() { return QINCO_INTERFACE; }

// The best level that this processor has: 0 portable, 1 avx2, 2 avx512, 3 avx512_bf16.
int qinco_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd"))
    return __builtin_cpu_supports("avx512bf16") ? 3 : 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) return 1;
#endif
  return 0;
}

// An engine for a model, or null where memory is exhausted. `level` is at most qinco_level().
void* qinco_create(const qinco_sizes* sizes, const qinco_step* steps, int level) {
  try {
#if defined(__x86_64__)
    switch (level) {
      case 3: return avx512_bf16::make(*sizes, steps);
      case 2: return avx512::make(*sizes, steps);
      case 1: return avx2::make(*sizes, steps);
    }
#endif
    return portable::make(*sizes, steps);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void qinco_destroy(void* engine) { delete (AnyEngine*)engine; }

// Both return 0, or 1 where memory is exhausted.
int qinco_encode(const void* engine, const qinco_search* search, const float* x, const float* start, int64_t count,
                 int threads, uint16_t* codes, float* reached) {
  try {
    ((const AnyEngine*)engine)->encode(*search, x, start, count, threads, codes, reached);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

int qinco_decode(const void* engine, const uint16_t* codes, const float* start, int steps, int64_t count, int threads,
                 int each, float* out) {
  try {
    ((const AnyEngine*)engine)->decode(codes, start, steps, count, threads, each, out);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// What computes gradients for models of these sizes, and keeps its memory for the next batch; or null.
void* qinco_create_gradient(const qinco_sizes* sizes, int level) {
  try {
#if defined(__x86_64__)
    switch (level) {
      case 3: return avx512_bf16::make_gradient(*sizes);
      case 2: return avx512::make_gradient(*sizes);
      case 1: return avx2::make_gradient(*sizes);
    }
#endif
    return portable::make_gradient(*sizes);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void qinco_destroy_gradient(void* gradient) { delete (AnyGradient*)gradient; }

// Returns 0, or 1 where memory is exhausted.
int qinco_add_gradient(void* gradient, const qinco_batch* batch, const qinco_layers* weights,
                       const qinco_layers* gradients, int threads) {
  try {
    ((AnyGradient*)gradient)->add(*batch, weights, gradients, threads);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// Brings the singular values of matrices near to one; `polynomials` (iterations, 3) are those of orthogonal.h. Returns 0, or
// 1 where memory is exhausted.
int qinco_orthogonalize(const qinco_matrix* matrices, int count, const float* polynomials, int iterations, int threads,
                        int bf16, int level) {
  try {
#if defined(__x86_64__)
    switch (level) {
      case 3: return avx512_bf16::orthogonalize(matrices, count, polynomials, iterations, threads, bf16), 0;
      case 2: return avx512::orthogonalize(matrices, count, polynomials, iterations, threads, bf16), 0;
      case 1: return avx2::orthogonalize(matrices, count, polynomials, iterations, threads, bf16), 0;
    }
#endif
    return portable::orthogonalize(matrices, count, polynomials, iterations, threads, bf16), 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// Tables and centroids for searching inverted lists, or null where memory is exhausted.
void* qinco_create_scanner(const qinco_scanner_sizes* sizes, const float* centroids, const float* tables,
                           const float* levels, int level) {
  try {
#if defined(__x86_64__)
    if (level >= 2) return avx512::make_scanner(*sizes, centroids, tables, levels);
    if (level == 1) return avx2::make_scanner(*sizes, centroids, tables, levels);
#endif
    return portable::make_scanner(*sizes, centroids, tables, levels);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void qinco_destroy_scanner(void* scanner) { delete (AnyScanner*)scanner; }

// These return 0, or 1 where memory is exhausted.
int qinco_probe(const void* scanner, const float* queries, int64_t count, int nprobe, int threads, int32_t* probes,
                float* bases) {
  try {
    ((const AnyScanner*)scanner)->probe(queries, count, nprobe, threads, probes, bases);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

int qinco_scan_lists(const void* scanner, const qinco_scan* request, int threads) {
  try {
    ((const AnyScanner*)scanner)->scan(*request, threads);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

int qinco_sum_codes(const void* scanner, const qinco_sums* request, int threads) {
  try {
    ((const AnyScanner*)scanner)->sum(*request, threads);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

int qinco_walk_shortlists(const void* engine, const void* scanner, const qinco_walk* request, int threads) {
  try {
    Walk(*(const AnyEngine*)engine, *(const AnyScanner*)scanner, *request, threads).run();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// Marks the positions of `num_parts` arrays that hold one of the `count` ids: 0, or 1 where memory is exhausted.
int qinco_mark_ids(const int64_t* ids, int64_t count, qinco_ids* parts, int num_parts) {
  try {
    const IdSet chosen(ids, count);
    for (qinco_ids* part = parts; part < parts + num_parts; part++) {
      if (part->are_wide)
        chosen.mark<int64_t>(*part);
      else
        chosen.mark<uint32_t>(*part);
    }
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// These return 0, or 1 where memory is exhausted; see tables.h.
int qinco_decode_rows(const qinco_rows* rows, const void* tables, int half, float scale, int threads, int level, int adds,
                      float* out) {
  try {
#if defined(__x86_64__)
    if (level >= 2) return avx512::decode_rows(*rows, tables, half, scale, threads, adds, out), 0;
    if (level == 1) return avx2::decode_rows(*rows, tables, half, scale, threads, adds, out), 0;
#endif
    return portable::decode_rows(*rows, tables, half, scale, threads, adds, out), 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

int qinco_sum_by_row(const qinco_rows* rows, const float* x, int threads, int level, int wide, void* sums) {
  try {
#if defined(__x86_64__)
    if (level >= 2) return avx512::sum_by_row(*rows, x, threads, wide, sums), 0;
    if (level == 1) return avx2::sum_by_row(*rows, x, threads, wide, sums), 0;
#endif
    return portable::sum_by_row(*rows, x, threads, wide, sums), 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

int qinco_multiply(const float* a, const float* b, int64_t count, int rows, int inner, int64_t columns, int threads,
                   int level, float* out) {
  try {
#if defined(__x86_64__)
    if (level >= 2) return avx512::multiply(a, b, count, rows, inner, columns, threads, out), 0;
    if (level == 1) return avx2::multiply(a, b, count, rows, inner, columns, threads, out), 0;
#endif
    return portable::multiply(a, b, count, rows, inner, columns, threads, out), 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// Vectors (count, dim) to search exactly, or null where memory is exhausted; they are read in every search. `added`
// (count), or null, is what their values have more than distances or negative inner products.
void* qinco_create_flat(const float* vectors, const float* added, int64_t count, int dim, int inner_product, int packs,
                        int level) {
  try {
#if defined(__x86_64__)
    if (level >= 2) return avx512::make_flat(vectors, added, count, dim, inner_product, packs);
    if (level == 1) return avx2::make_flat(vectors, added, count, dim, inner_product, packs);
#endif
    return portable::make_flat(vectors, added, count, dim, inner_product, packs);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void qinco_destroy_flat(void* flat) { delete (AnyFlat*)flat; }

// These return 0, or 1 where memory is exhausted.
int qinco_search_flat(const void* flat, const float* queries, int64_t count, int64_t wanted, int threads, float* values,
                      int64_t* numbers) {
  try {
    ((const AnyFlat*)flat)->search(queries, count, wanted, threads, values, numbers);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// Fills a graph's links, or returns them unfinished where it is stopped.
int qinco_build_graph(const qinco_graph* graph, int effort, int level) {
  try {
#if defined(__x86_64__)
    if (level >= 2) return avx512::build_graph(*graph, effort), 0;
    if (level == 1) return avx2::build_graph(*graph, effort), 0;
#endif
    return portable::build_graph(*graph, effort), 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// The `wanted` <= effort nearest that a walk finds which keeps `effort`: values and numbers (count, wanted), infinite and
// -1 where it does not find so many.
int qinco_search_graph(const qinco_graph* graph, const float* queries, int64_t count, int64_t wanted, int effort,
                       int threads, float* values, int64_t* numbers, int level) {
  try {
#if defined(__x86_64__)
    if (level >= 2) return avx512::search_graph(*graph, queries, count, wanted, effort, threads, values, numbers), 0;
    if (level == 1) return avx2::search_graph(*graph, queries, count, wanted, effort, threads, values, numbers), 0;
#endif
    return portable::search_graph(*graph, queries, count, wanted, effort, threads, values, numbers), 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
}
