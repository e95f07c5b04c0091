// The vectors of least value that a query has met so far.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace ISA {

struct Found {
  float value;
  int32_t list, segment;
  int64_t row;
};

// The smallest values so far, of equal ones the first: collected until there are more than enough, then cut.
class Shortlist {
  std::vector<Found> found;   // in the order in which they came
  std::vector<int32_t> keys;  // their values as integers of the same order
  std::vector<uint64_t> order;
  size_t wanted = 0;

 public:
  float limit = INFINITY;  // values from it on are too large

  void clear(int count) {
    found.clear();
    keys.clear();
    wanted = count;
    limit = INFINITY;
  }
  bool is_full() const { return found.size() >= wanted; }

  void add(const Found& one) {
    found.push_back(one);
    keys.push_back(key_of(one.value));
    // The first limit comes as soon as there is one, because without it everything is a candidate.
    if (found.size() >= (limit == INFINITY ? wanted : wanted + std::max<size_t>(wanted / 2, 32))) cut();
  }

  const Found& operator[](size_t place) const { return found[uint32_t(order[place])]; }

  // Puts them in order; how many there are.
  size_t sort() {
    if (is_full()) cut();
    order.clear();
    for (size_t i = 0; i < keys.size(); i++) order.push_back(uint64_t(uint32_t(keys[i]) ^ 1u << 31) << 32 | i);
    std::sort(order.begin(), order.end());
    return order.size();
  }

 private:
  static int32_t key_of(float value) {
    int32_t bits;
    value += 0.f;  // there is one zero
    memcpy(&bits, &value, 4);
    return bits < 0 ? bits ^ INT32_MAX : bits;
  }

  static float value_of(int32_t key) {
    float value;
    key = key < 0 ? key ^ INT32_MAX : key;
    memcpy(&value, &key, 4);
    return value;
  }

  size_t up_to(int32_t bound) const {
    int32_t total = 0;
    for (int32_t key : keys) total += key <= bound;
    return total;
  }

  // Bisection for the bound that leaves as many as are wanted, or for the last value where several have it.
  void cut() {
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (int32_t key : keys) low = std::min(low, key), high = std::max(high, key);
    while (low < high) {
      const int32_t middle = (int64_t(low) + high) >> 1;
      const size_t number = up_to(middle);
      if (number < wanted)
        low = middle + 1;
      else
        high = middle;
      if (number == wanted) break;
    }
    int64_t equal = int64_t(wanted) - int64_t(up_to(high - 1));
    size_t kept = 0;
    for (size_t i = 0; i < keys.size(); i++) {
      const bool stays = keys[i] < high || (keys[i] == high && equal-- > 0);
      found[kept] = found[i];
      keys[kept] = keys[i];
      kept += stays;
    }
    found.resize(kept);
    keys.resize(kept);
    limit = value_of(high);
  }
};
}  // namespace ISA
