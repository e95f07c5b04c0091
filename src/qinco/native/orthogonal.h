// Matrices of the same singular vectors, with singular values near one: the updates of Muon.
//
// An iteration of Newton and Schulz is X <- p(A) X with A = X Xᵀ and p(A) = a I + b A + c A². All p(A) are polynomials of
// the first A, so iterations multiply symmetric matrices of the shorter side only, A <- p(A) A p(A), and X is multiplied
// once, in the end.
#pragma once
#include <cmath>

#include "arithmetic.h"

namespace ISA {

constexpr float LEAST_BOUND = 1e-12f;  // of the largest eigenvalue, which is less for a matrix of zeros only

template <class A>
class Orthogonalizer {
  Matrix<A> across, along;                    // X and its transpose
  Matrix<A> squared, polynomial, half, all;   // A, p(A), p(A) A and the product of all p(A)
  array<float> gram, product;                 // A and what is multiplied, (R, stride)
  int R = 0, C = 0, stride = 0, capacity = 0;

 public:
  int vectors() const { return 1; }

  // `polynomials` holds a, b and c of each iteration, for singular values up to one.
  void run(const qinco_matrix& of, const float* polynomials, int iterations) {
    resize(of);
    normalize(of);
    const bool is_wide = of.rows == R;
    if (is_wide) {
      across.pack(of.values, R, C, C);
      along.pack_transposed(of.values, C, R, C);
    } else {
      across.pack_transposed(of.values, R, C, R);
      along.pack(of.values, C, R, R);
    }
    multiply(across, across, C, gram.get());
    float bound = 1;  // of A's eigenvalues
    for (int i = 0; i < iterations; i++) {
      pack(squared, gram.get());
      multiply(squared, squared, R, product.get());
      if (i == 0) bound = largest_eigenvalue();
      evaluate(polynomials + 3 * i, i == 0 ? bound : 1);
      pack(polynomial, product.get());
      if (i + 1 < iterations) {
        multiply(polynomial, squared, R, product.get());
        pack(half, product.get());
        multiply(half, polynomial, R, gram.get());
      }
      if (i > 0) {
        multiply(polynomial, all, R, product.get());
        pack(all, product.get());
        continue;
      }
      std::swap(polynomial, all);
      for (int k = 0; k < R * stride; k++) gram[k] /= bound;
    }
    const float scale = 1 / std::sqrt(bound);
    is_wide ? put(all, along, scale, of) : put(along, all, scale, of);
  }

 private:
  void resize(const qinco_matrix& of) {
    R = std::min(of.rows, of.columns), C = std::max(of.rows, of.columns), stride = padded(R);
    if (R * stride <= capacity) return;
    capacity = R * stride;
    gram = allocate<float>(capacity), product = allocate<float>(capacity);
  }

  // In double precision, which no squares overflow.
  static double sum_of_squares(const float* from, size_t count) {
    double totals[VECTOR] = {}, total = 0;
    size_t i = 0;
    for (; i + VECTOR <= count; i += VECTOR)
      for (int j = 0; j < VECTOR; j++) totals[j] += double(from[i + j]) * from[i + j];
    for (; i < count; i++) total += double(from[i]) * from[i];
    for (int j = 0; j < VECTOR; j++) total += totals[j];
    return total;
  }

  static void normalize(const qinco_matrix& of) {
    const size_t count = size_t(of.rows) * of.columns;
    const double total = sum_of_squares(of.values, count);
    const float factor = total > 0 ? 1 / std::sqrt(total) : 0;
    for (size_t i = 0; i < count; i++) of.values[i] *= factor;
  }

  void pack(Matrix<A>& to, const float* symmetric) const { to.pack_transposed(symmetric, R, R, stride); }

  // Rows times rows of two matrices (out, in): body(row, first column, PANELS sums) of panels from first(panel of rows) on.
  template <class First, class Body>
  static inline __attribute__((always_inline)) void rows_by_rows(const Matrix<A>& left, int rows, const Matrix<A>& right,
                                                                 int columns, int inner, First first, Body body) {
    inner = (inner + A::PAIR - 1) / A::PAIR * A::PAIR;
    for (int q = 0; q < rows; q += PANEL)
      for (int p = first(q); p < columns; p += PANEL)
        in_tiles(std::min(PANEL, rows - q), [&](auto tile, int i) __attribute__((always_inline)) {
          vector sums[tile()][PANELS] = {};
          A::template multiply<tile()>(&left.values[size_t(q) * left.in + i * A::PAIR], A::PAIR, PANEL, inner,
                                       &right.values[size_t(p) * right.in], sums);
          for (int r = 0; r < tile(); r++) body(q + i + r, p, sums[r]);
        });
  }

  // A product that is known to be symmetric.
  void multiply(const Matrix<A>& left, const Matrix<A>& right, int inner, float* to) const {
    rows_by_rows(left, R, right, R, inner, [](int q) { return q; }, [&](int i, int p, const vector* sums) {
      for (int j = 0; j < PANELS; j++) store(to + size_t(i) * stride + p + VECTOR * j, sums[j]);
    });
    for (int i = PANEL; i < R; i++)
      for (int j = 0; j < i / PANEL * PANEL; j++) to[size_t(i) * stride + j] = to[size_t(j) * stride + i];
  }

  // A bound of A's eigenvalues, from those of A² in `product`: the fourth root of the sum of their fourth powers.
  float largest_eigenvalue() const {
    double total = 0;
    for (int i = 0; i < R; i++) total += sum_of_squares(&product[size_t(i) * stride], R);
    return std::max<float>(std::sqrt(std::sqrt(total)), LEAST_BOUND);
  }

  // p(A / bound) in place of A².
  void evaluate(const float* coefficients, float bound) {
    const float a = coefficients[0], b = coefficients[1] / bound, c = coefficients[2] / bound / bound;
    for (int k = 0; k < R * stride; k++) product[k] = b * gram[k] + c * product[k];
    for (int i = 0; i < R; i++) product[size_t(i) * stride + i] += a;
  }

  static void put(const Matrix<A>& left, const Matrix<A>& right, float scale, const qinco_matrix& to) {
    const int rows = to.rows, columns = to.columns;
    rows_by_rows(left, rows, right, columns, std::min(rows, columns), [](int) { return 0; },
                 [&](int i, int p, const vector* sums) {
                   alignas(64) float values[PANEL];
                   for (int j = 0; j < PANELS; j++) store(values + VECTOR * j, scale * sums[j]);
                   memcpy(to.values + size_t(i) * columns + p, values, std::min(PANEL, columns - p) * 4);
                 });
  }
};

template <class A>
static void orthogonalize_in(const qinco_matrix* matrices, int count, const float* polynomials, int iterations, int threads) {
  over_threads(
      count, 1, threads, [&] { return std::make_unique<Orthogonalizer<A>>(); },
      [&](Orthogonalizer<A>& own, int64_t number, int) { own.run(matrices[number], polynomials, iterations); });
}

void orthogonalize(const qinco_matrix* matrices, int count, const float* polynomials, int iterations, int threads,
                   bool bf16) {
#if BF16
  if (bf16) return orthogonalize_in<Bfloat>(matrices, count, polynomials, iterations, threads);
#endif
  (void)bf16;
  orthogonalize_in<Float>(matrices, count, polynomials, iterations, threads);
}
}  // namespace ISA
