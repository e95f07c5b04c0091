// The smallest of many values, exactly.
#pragma once
#include <cmath>
#include <utility>

#include "arithmetic.h"

namespace ISA {

// The `wanted` smallest of `count` values that are not below zero, in the order of their places; ties go to the first.
struct Selection {
  std::vector<int32_t> places;

  void smallest(const float* values, int count, int wanted) {
    places.clear();
    kept.clear();
    const float limit = wanted < count ? bound(values, count, wanted) : INFINITY;
    int i = 0;
    for (; i + VECTOR <= count; i += VECTOR) {
      const ivector within = load(values + i) <= (vector{} + limit);
      if (!any(within)) continue;
      for (int j = 0; j < VECTOR; j++)
        if (within[j]) kept.push_back({values[i + j], i + j});
    }
    for (; i < count; i++)
      if (values[i] <= limit) kept.push_back({values[i], i});
    for (i = 0; i < count && (int)kept.size() < wanted; i++)  // values that are no numbers come last
      if (!(values[i] <= limit)) kept.push_back({INFINITY, i});
    if ((int)kept.size() > wanted) {
      std::nth_element(kept.begin(), kept.begin() + wanted, kept.end());
      kept.resize(wanted);
      std::sort(kept.begin(), kept.end(), [](auto& a, auto& b) { return a.second < b.second; });
    }
    for (auto& one : kept) places.push_back(one.second);
  }

 private:
  std::vector<std::pair<float, int32_t>> kept;
  std::vector<float> minima;

  static bool any(ivector mask) {
    int32_t bits = 0;
    for (int j = 0; j < VECTOR; j++) bits |= mask[j];
    return bits;
  }

  // A value that at least `wanted` and not many more values reach. The minima of groups of values decide: as many
  // groups as are wanted have one below the minimum that is the `wanted`-th.
  float bound(const float* values, int count, int wanted) {
    const int groups = std::max((8 * wanted + VECTOR - 1) / VECTOR * VECTOR, 16 * VECTOR);
    if (count < 2 * groups) return bisect(values, count, wanted);
    minima.assign(values, values + groups);
    int i = groups;
    for (; i + groups <= count; i += groups)
      for (int j = 0; j < groups; j += VECTOR) {
        const vector a = load(&minima[j]), b = load(values + i + j);
        store(&minima[j], b < a ? b : a);
      }
    for (; i < count; i++) minima[i % groups] = std::min(minima[i % groups], values[i]);
    return bisect(minima.data(), groups, wanted);
  }

  // Bisection on the bits, whose order is that of floats from zero on, until few more than wanted are left.
  static float bisect(const float* values, int count, int wanted) {
    uint32_t low = 0, high = 0x7f800000;
    const int slack = wanted + wanted / 8;
    while (low < high) {
      const uint32_t middle = low + (high - low) / 2;
      const int found = below(values, count, as_float(middle));
      if (found < wanted) {
        low = middle + 1;
      } else {
        high = middle;
        if (found <= slack) break;
      }
    }
    return as_float(high);
  }

  static float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
  }

  static int below(const float* values, int count, float limit) {
    int total = 0, i = 0;
    ivector counts = {};
    for (; i + VECTOR <= count; i += VECTOR) counts -= load(values + i) <= (vector{} + limit);
    for (int j = 0; j < VECTOR; j++) total += counts[j];
    for (; i < count; i++) total += values[i] <= limit;
    return total;
  }
};
}  // namespace ISA
