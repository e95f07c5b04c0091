// Which vectors have one of some ids: a bit for each position of their arrays of ids.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>

#include "engine.h"

extern "C" {

struct qinco_ids {
  const void* ids;    // (N): uint32, or int64 where they are wide
  int64_t count;      // N
  uint64_t* words;    // (N + 63) / 64: the bits of positions, the lowest first; what is beyond N is 0
  int64_t found;      // how many bits are set
  int32_t are_wide;
};
}

// Ids as bits from the first to the last one where these are near one another, else in a hash table.
class IdSet {
  static constexpr int64_t MOST_BITS_EACH = 64, FEW_BITS = 1 << 23, NONE = -1;  // no vector has this id
  std::unique_ptr<uint64_t[]> bits;
  std::unique_ptr<int64_t[]> slots;
  uint64_t first = 0, length = 0;  // of the bits
  uint64_t mask = 0;               // of the slots
  int shift = 0;

  static constexpr uint64_t SPREAD = 0x9e3779b97f4a7c15;  // 2^64 over the golden ratio

 public:
  IdSet(const int64_t* ids, int64_t count) {
    if (!count) return;
    const auto [low, high] = std::minmax_element(ids, ids + count);
    first = *low;
    const uint64_t span = uint64_t(*high) - first;
    if (span < uint64_t(std::max(FEW_BITS, MOST_BITS_EACH * count))) {
      length = span + 1;
      bits.reset(new uint64_t[length / 64 + 1]());
      for (int64_t i = 0; i < count; i++) {
        const uint64_t place = uint64_t(ids[i]) - first;
        bits[place / 64] |= uint64_t(1) << place % 64;
      }
      return;
    }
    int digits = 1;
    while (int64_t(1) << digits < 3 * count) digits++;
    shift = 64 - digits;
    mask = (uint64_t(1) << digits) - 1;
    slots.reset(new int64_t[mask + 1]);
    std::fill_n(slots.get(), mask + 1, NONE);
    for (int64_t i = 0; i < count; i++) {
      uint64_t slot = uint64_t(ids[i]) * SPREAD >> shift;
      while (slots[slot] != NONE && slots[slot] != ids[i]) slot = (slot + 1) & mask;
      slots[slot] = ids[i];
    }
  }

  template <class Id>
  void mark(qinco_ids& part) const {
    const Id* ids = (const Id*)part.ids;
    part.found = 0;
    for (int64_t begin = 0; begin < part.count; begin += 64) {
      if (begin % (1 << 20) == 0 && is_stopped()) return;
      const int width = std::min<int64_t>(64, part.count - begin);
      const uint64_t word = bits ? in_bits(ids + begin, width) : slots ? in_slots(ids + begin, width) : 0;
      part.words[begin / 64] = word;
      part.found += __builtin_popcountll(word);
    }
  }

 private:
  template <class Id>
  uint64_t in_bits(const Id* ids, int width) const {
    uint64_t word = 0;
    for (int i = 0; i < width; i++) {
      const uint64_t place = uint64_t(int64_t(ids[i])) - first;
      if (place < length) word |= (bits[place / 64] >> place % 64 & 1) << i;
    }
    return word;
  }

  template <class Id>
  uint64_t in_slots(const Id* ids, int width) const {
    uint64_t word = 0;
    for (int i = 0; i < width; i++) {
      const int64_t id = ids[i];
      uint64_t slot = uint64_t(id) * SPREAD >> shift;
      while (slots[slot] != NONE && slots[slot] != id) slot = (slot + 1) & mask;
      word |= uint64_t(slots[slot] != NONE) << i;
    }
    return word;
  }
};
