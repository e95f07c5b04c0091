// Comparisons of registers, as bits.
#pragma once
#if VECTOR >= 8
#include <immintrin.h>
#endif

#include "arithmetic.h"

namespace ISA {

#if VECTOR == 16
// gcc 12 stores two bytes of a mask that it extends, and reads eight, where it has no register left for it.
static inline uint64_t bits_of(__mmask16 lanes) {
  uint32_t bits;
  asm("kmovw %1, %0" : "=r"(bits) : "k"(lanes));
  return bits;
}
#elif VECTOR == 8
static inline uint64_t bits_of(ivector lanes) { return _mm256_movemask_ps((__m256)lanes); }
#elif VECTOR == 4
static inline uint64_t bits_of(ivector lanes) {
  uint64_t bits = 0;
  for (int j = 0; j < VECTOR; j++) bits |= uint64_t(lanes[j] & 1) << j;
  return bits;
}
#endif

// The lanes in which a < b, a = b, or either, as bits.
static inline uint64_t below(vector a, vector b) {
#if VECTOR == 16
  return bits_of(_mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ));
#else
  return bits_of(a < b);
#endif
}
static inline uint64_t equal(vector a, vector b) {
#if VECTOR == 16
  return bits_of(_mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ));
#else
  return bits_of(a == b);
#endif
}
static inline uint64_t at_most(vector a, vector b) {
#if VECTOR == 16
  return bits_of(_mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ));
#else
  return bits_of(a <= b);
#endif
}
}  // namespace ISA
