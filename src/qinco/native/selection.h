// The smallest of many values, exactly.
#pragma once
#include <cmath>
#include <utility>

#include "lanes.h"

namespace ISA {

// The `wanted` smallest of `count` values, in the order of their places; ties go to the first.
struct Selection {
  std::vector<int32_t> places;

  void smallest(const float* values, int count, int wanted) {
    const float limit = wanted < count ? bound(values, count, wanted) : INFINITY;
    if ((int)found.size() < count) found.resize(count), near.resize(count);
    int i = 0, total = 0;
    for (; i + VECTOR <= count; i += VECTOR)
      for (uint64_t lanes = at_most(load(values + i), vector{} + limit); lanes; lanes &= lanes - 1)
        found[total++] = i + __builtin_ctzll(lanes);
    for (; i < count; i++)
      if (values[i] <= limit) found[total++] = i;
    if (total > wanted) total = drop_far(values, total, wanted);
    for (i = 0; i < count && total < wanted; i++)  // values that are no numbers come last
      if (!(values[i] <= limit)) found[total++] = i;
    places.assign(found.begin(), found.begin() + total);
  }

 private:
  std::vector<int32_t> found;
  std::vector<float> near, minima;

  int drop_far(const float* values, int total, int wanted) {
    for (int i = 0; i < total; i++) near[i] = values[found[i]];
    const float last = bisect(near.data(), total, wanted, wanted);
    int ties = wanted, kept = 0;
    for (int i = 0; i < total; i++) ties -= near[i] < last;
    for (int i = 0; i < total; i++) {
      found[kept] = found[i];
      kept += near[i] < last || (near[i] == last && ties-- > 0);
    }
    return kept;
  }

  // A value that at least `wanted` and not many more values reach. The minima of groups of values decide: as many
  // groups as are wanted have one below the minimum that is the `wanted`-th.
  float bound(const float* values, int count, int wanted) {
    const int groups = std::max((4 * wanted + VECTOR - 1) / VECTOR * VECTOR, 16 * VECTOR);
    if (count < 2 * groups) return bisect(values, count, wanted, wanted + wanted / 8);
    minima.assign(values, values + groups);
    int i = groups;
    for (; i + groups <= count; i += groups)
      for (int j = 0; j < groups; j += VECTOR) {
        const vector a = load(&minima[j]), b = load(values + i + j);
        store(&minima[j], b < a ? b : a);
      }
    for (; i < count; i++) minima[i % groups] = std::min(minima[i % groups], values[i]);
    return bisect(minima.data(), groups, wanted, wanted + wanted / 8);
  }

  // Bisection on keys, until at least `wanted` and at most `enough` values reach the limit, or it is the `wanted`-th.
  static float bisect(const float* values, int count, int wanted, int enough) {
    vector least = vector{} + INFINITY, most = vector{} - INFINITY;
    for (int i = 0; i + VECTOR <= count; i += VECTOR) {
      const vector own = load(values + i);
      least = own < least ? own : least, most = own > most ? own : most;
    }
    float lowest = INFINITY, highest = -INFINITY;
    for (int j = 0; j < VECTOR; j++) lowest = std::min(lowest, least[j]), highest = std::max(highest, most[j]);
    for (int i = count / VECTOR * VECTOR; i < count; i++)
      if (values[i] == values[i]) lowest = std::min(lowest, values[i]), highest = std::max(highest, values[i]);
    uint32_t low = key_of(std::min(lowest, highest)), high = key_of(highest);
    while (low < high) {
      const uint32_t middle = low + (high - low) / 2;
      const int found = below(values, count, value_of(middle));
      if (found < wanted) {
        low = middle + 1;
      } else {
        high = middle;
        if (found <= enough) break;
      }
    }
    return value_of(high);
  }

  // Integers in the order of floats: the bits of negative floats are in the opposite order, and come first.
  static constexpr uint32_t SIGN = 1u << 31;
  static uint32_t key_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits & SIGN ? ~bits : bits | SIGN;
  }
  static float value_of(uint32_t key) {
    const uint32_t bits = key & SIGN ? key & ~SIGN : ~key;
    float value;
    memcpy(&value, &bits, 4);
    return value;
  }

  static int below(const float* values, int count, float limit) {
    int total = 0, i = 0;
    for (; i + VECTOR <= count; i += VECTOR) total += __builtin_popcountll(at_most(load(values + i), vector{} + limit));
    for (; i < count; i++) total += values[i] <= limit;
    return total;
  }
};
}  // namespace ISA
