// The walk through shortlists: rounds in which those vectors of all queries are decoded and valued that may still come
// among the first. qinco/search/walk.py has the plain one.
#pragma once
#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "engine.h"
#include "lists.h"

class Walk {
  static constexpr int64_t BLOCK_VALUES = 1 << 19;  // of reconstructions that are compared at a time: they stay in the cache
  using Clock = std::chrono::steady_clock;

  const AnyEngine& engine;
  const AnyScanner& scanner;
  const qinco_walk& request;
  const int D, M, threads;
  const int64_t S;
  std::vector<int64_t> going, places;  // queries that go on, and vectors of a round in the flattened shortlists
  std::vector<uint16_t> codes;         // of a block of them, and so on
  std::vector<uint8_t> narrow_codes;
  std::vector<int32_t> lists;
  std::vector<float> starts, decoded, sums, best;

 public:
  Walk(const AnyEngine& e, const AnyScanner& s, const qinco_walk& r, int number)
      : engine(e), scanner(s), request(r), D(r.dim), M(r.steps), threads(number), S(r.width) {
    for (int64_t query = 0; query < r.count; query++) going.push_back(query);
  }

  void run() {
    const bool is_one_round = std::isinf(request.margin);
    int64_t begin = 0, end = is_one_round ? S : end_of(request.wanted, request.chunk);
    while (!going.empty() && begin < end) {
      places.clear();
      for (int64_t query : going)
        for (int64_t place = query * S + begin; place < query * S + end; place++)
          if (request.lists[place] >= 0) places.push_back(place);
      const int64_t size = std::max<int64_t>(1, BLOCK_VALUES / D), number = places.size();
      for (int64_t from = 0; from < number; from += size) {
        value(from, std::min(size, number - from));
        if (is_stopped()) return;
      }
      begin = end;
      if (begin == S) return;
      end = end_of(end, std::max<int64_t>(request.chunk, end / 4));
      going.erase(std::remove_if(going.begin(), going.end(), [&](int64_t query) { return is_done(query, begin); }),
                  going.end());
    }
  }

 private:
  int64_t end_of(int64_t begin, int64_t chunk) const {
    const int64_t number = std::max<int64_t>(1, going.size());
    const int64_t end = begin + std::max<int64_t>(chunk, (request.least + number - 1) / number);
    return end + request.chunk > S ? S : end;
  }

  bool is_done(int64_t query, int64_t next) {
    const int64_t place = query * S + next;
    if (request.lists[place] < 0) return true;
    best.assign(request.found + query * S, request.found + place);  // what comes later is infinite
    if ((int64_t)best.size() < request.wanted) return false;
    const auto worst = best.begin() + request.wanted - 1;
    const auto is_less = [](float a, float b) { return a < b || (b != b && a == a); };  // what is no number comes last
    std::nth_element(best.begin(), worst, best.end(), is_less);
    return request.values[place] - request.margin >= *worst;
  }

  void value(int64_t from, int64_t count) {
    const auto begun = Clock::now();
    codes.resize(count * M), narrow_codes.resize(count * M), lists.resize(count);
    decoded.resize(count * D), sums.resize(3 * count);
    if (request.starts) starts.resize(count * D);
    for (int64_t i = 0; i < count; i++) {
      const int64_t place = places[from + i];
      lists[i] = request.lists[place];
      for (int m = 0; m < M; m++) codes[i * M + m] = narrow_codes[i * M + m] = request.codes[place * M + m];
      if (request.starts) std::copy_n(request.starts + int64_t(lists[i]) * D, D, starts.data() + i * D);
    }
    engine.decode(codes.data(), request.starts ? starts.data() : nullptr, M, count, threads, false, decoded.data());
    if (is_stopped()) return;
    for (int64_t i = 0; i < count; i++)
      for (int d = 0; d < D; d++) decoded[i * D + d] = decoded[i * D + d] * request.scale + request.shift[d];
    const auto between = Clock::now();
    const qinco_sums given = {narrow_codes.data(), lists.data(),  count,          decoded.data(),
                              request.origin,      request.mean, request.centre, sums.data()};
    scanner.value(request, places.data() + from, given, threads);
    request.seconds[0] += std::chrono::duration<double>(between - begun).count();
    request.seconds[1] += std::chrono::duration<double>(Clock::now() - between).count();
  }
};
