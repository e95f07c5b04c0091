// Nearest neighbours by an HNSW graph for one instruction set: "Efficient and robust approximate nearest neighbor search
// using Hierarchical Navigable Small World graphs", arXiv 1603.09320.
#pragma once
#include "flat.h"

namespace ISA {

// Which vectors a walk has met; a number that grows from walk to walk saves clearing the marks.
class Visited {
  std::vector<uint16_t> marks;
  uint16_t now = 0;

 public:
  void clear(size_t count) {
    if (marks.size() < count) marks.assign(count, now = 0);
    if (++now) return;
    std::fill(marks.begin(), marks.end(), 0);
    now = 1;
  }
  // Whether it was met before; it is from now on.
  bool meet(int32_t number) {
    const bool before = marks[number] == now;
    marks[number] = now;
    return before;
  }
};

// Walks through a graph towards a query.
class Walk {
  const qinco_graph& graph;
  Visited& visited;
  const float* query = nullptr;
  // The nearest met so far, in order: value, number and, in the last bit, whether its neighbors were looked at.
  std::vector<uint64_t> near;
  size_t size = 0;
  std::vector<int32_t> fresh;
  std::vector<float> values;

 public:
  Walk(const qinco_graph& g, Visited& v, size_t most)
      : graph(g), visited(v), near(std::max<size_t>(most, 1)), fresh(2 * g.links), values(2 * g.links) {}

  const float* vector_of(int64_t number) const { return graph.vectors + number * graph.dim; }
  size_t found() const { return size; }
  uint64_t key(size_t place) const { return key_of(value_of(near[place]), uint32_t(near[place]) >> 1); }

  void fetch(int64_t number) const {
    const char* row = (const char*)vector_of(number);
    for (size_t offset = 0; offset < graph.dim * sizeof(float); offset += 64) __builtin_prefetch(row + offset);
  }

  // Where a vector's links on a level begin, and how many there may be.
  int32_t* links_of(int64_t number, int level) const {
    return graph.neighbors + graph.offsets[number] + (level ? int64_t(level + 1) * graph.links : 0);
  }
  int most_links(int level) const { return level ? graph.links : 2 * graph.links; }

  // Values of N vectors, one or four, at once.
  template <int N>
  void compare(const float* x, const int32_t* numbers, float* out) const {
    const float* rows[N];
    for (int i = 0; i < N; i++) rows[i] = vector_of(numbers[i]);
    ISA::compare<N>(x, rows, graph.dim, graph.inner_product, out);
  }

  // Begins a walk for a query at the vector where the last one ended, or at the entry.
  void start(const float* x, int32_t at) {
    query = x;
    visited.clear(graph.count);
    visited.meet(at);
    float value;
    compare<1>(query, &at, &value);
    near[0] = key_of(value, uint32_t(at) << 1);
    size = 1;
  }

  // From the vector it is at to the nearest one that only nearer ones lead to on a level; its number.
  int32_t descend(int level) {
    uint64_t best = near[0];
    while (true) {
      const int32_t number = uint32_t(best) >> 1;
      look_at(number, level);
      uint64_t least = best;
      for (size_t i = 0; i < fresh_count; i++) least = std::min(least, key_of(values[i], uint32_t(fresh[i]) << 1));
      if (least == best) break;
      best = least;
    }
    near[0] = best;
    return uint32_t(best) >> 1;
  }

  // The `effort` nearest that a walk on a level meets which looks at the neighbors of all of them.
  void spread(int level, size_t effort) {
    for (size_t next = 0; next < size;) {
      if (near[next] & 1) {
        next++;
        continue;
      }
      near[next] |= 1;
      look_at(uint32_t(near[next]) >> 1, level);
      for (size_t i = 0; i < fresh_count; i++) {
        const uint64_t key = key_of(values[i], uint32_t(fresh[i]) << 1);
        if (size == effort && key >= near[size - 1]) continue;
        const size_t place = place_of(key);
        if (size < effort) size++;
        uint64_t* const at = near.data() + place;
        memmove(at + 1, at, (size - 1 - place) * sizeof(uint64_t));
        *at = key;
        next = std::min(next, place);
      }
    }
  }

 private:
  size_t fresh_count = 0;

  // The values of those neighbors of a vector that were not met before.
  void look_at(int32_t number, int level) {
    const int32_t* links = links_of(number, level);
    fresh_count = 0;
    for (int i = 0; i < most_links(level) && links[i] >= 0; i++) {
      if (visited.meet(links[i])) continue;
      fresh[fresh_count++] = links[i];
      fetch(links[i]);
    }
    size_t i = 0;
    for (; i + 4 <= fresh_count; i += 4) compare<4>(query, &fresh[i], &values[i]);
    for (; i < fresh_count; i++) compare<1>(query, &fresh[i], &values[i]);
  }

  size_t place_of(uint64_t key) const {
    const uint64_t* first = near.data();
    for (size_t left = size; left;) {  // no branch depends on a key
      const size_t half = left / 2;
      const bool is_beyond = first[half] < key;
      first += is_beyond ? half + 1 : 0;
      left = is_beyond ? left - half - 1 : half;
    }
    return first - near.data();
  }
};

class GraphBuilder {
  const qinco_graph& graph;
  Visited visited;
  Walk walk;
  const size_t effort;
  std::vector<float> lengths;      // of all links
  std::vector<uint16_t> checked;   // how many first links of each vector and level were compared with each other
  // Keys whose last bit says whether it is such a link.
  std::vector<uint64_t> candidates, chosen;
  std::vector<int32_t> kept, kept_unchecked;

 public:
  GraphBuilder(const qinco_graph& g, size_t most)
      : graph(g), walk(g, visited, most), effort(most), lengths(g.offsets[g.count]),
        checked(g.offsets[g.count] / g.links) {}

  void run() {
    std::fill_n(graph.neighbors, graph.offsets[graph.count], -1);
    const int32_t entry = graph.order[0];
    for (int64_t i = 1; i < graph.count && !is_stopped(); i++) {
      const int32_t number = graph.order[i];
      int32_t at = entry;
      walk.start(walk.vector_of(number), at);
      for (int level = graph.levels[entry] - 1; level >= 0; level--) {
        if (level >= graph.levels[number]) {
          at = walk.descend(level);
        } else {
          walk.start(walk.vector_of(number), at);
          walk.spread(level, effort);
          at = uint32_t(walk.key(0));
          link(number, level);
        }
      }
    }
  }

 private:
  static uint64_t candidate(float length, int32_t number, bool is_checked) {
    return key_of(length, uint32_t(number) << 1 | is_checked);
  }
  static int32_t number_of(uint64_t key) { return uint32_t(key) >> 1; }

  // Links a vector and the nearest that were found to each other.
  void link(int32_t number, int level) {
    candidates.clear();
    for (size_t i = 0; i < walk.found(); i++)
      candidates.push_back(candidate(value_of(walk.key(i)), uint32_t(walk.key(i)), false));
    choose(number, level);
    const std::vector<uint64_t> own = chosen;
    for (const uint64_t key : own) link_back(number_of(key), number, value_of(key), level);
  }

  void link_back(int32_t number, int32_t to, float length, int level) {
    int32_t* links = walk.links_of(number, level);
    const size_t begin = links - graph.neighbors;
    const int most = walk.most_links(level), there = std::find(links, links + most, -1) - links;
    if (there < most) {
      links[there] = to;
      lengths[begin + there] = length;
      return;
    }
    candidates.assign(1, candidate(length, to, false));
    for (int i = 0; i < most; i++)
      candidates.push_back(candidate(lengths[begin + i], links[i], i < checked[begin / graph.links]));
    std::sort(candidates.begin(), candidates.end());
    choose(number, level);
  }

  // Links a vector to the candidates or, where they are too many, to those that are nearer to it than to any one chosen
  // before them, the nearest first (section 4 of the paper).
  void choose(int32_t number, int level) {
    const size_t most = walk.most_links(level);
    const bool are_few = candidates.size() <= most;
    chosen.clear(), kept.clear(), kept_unchecked.clear();
    if (!are_few)
      for (const uint64_t key : candidates) walk.fetch(number_of(key));
    for (const uint64_t key : candidates) {
      if (chosen.size() == most) break;
      const bool is_checked = key & 1;
      if (!are_few && !is_apart(number_of(key), value_of(key), is_checked ? kept_unchecked : kept)) continue;
      chosen.push_back(key);
      kept.push_back(number_of(key));
      if (!is_checked) kept_unchecked.push_back(number_of(key));
    }
    int32_t* links = walk.links_of(number, level);
    const size_t begin = links - graph.neighbors;
    checked[begin / graph.links] = are_few ? 0 : chosen.size();
    std::fill_n(links, most, -1);
    for (size_t i = 0; i < chosen.size(); i++) links[i] = number_of(chosen[i]), lengths[begin + i] = value_of(chosen[i]);
  }

  bool is_apart(int32_t number, float length, const std::vector<int32_t>& others) const {
    const float* own = walk.vector_of(number);
    float between[4];
    size_t i = 0;
    for (; i + 4 <= others.size(); i += 4) {
      walk.compare<4>(own, &others[i], between);
      for (const float value : between)
        if (value < length) return false;
    }
    for (; i < others.size(); i++) {
      walk.compare<1>(own, &others[i], between);
      if (*between < length) return false;
    }
    return true;
  }
};

struct GraphSearcher {
  Walk walk;
  GraphSearcher(const qinco_graph& graph, size_t effort) : walk(graph, marks(), effort) {}
  int vectors() const { return 1; }

 private:
  static Visited& marks() {  // which stay for the thread's next call
    static thread_local Visited own;
    return own;
  }
};

void build_graph(const qinco_graph& graph, int effort) { GraphBuilder(graph, effort).run(); }

void search_graph(const qinco_graph& graph, const float* queries, int64_t count, int64_t wanted, int effort, int threads,
                  float* values, int64_t* numbers) {
  over_threads(
      count, 4, threads, [&] { return std::make_unique<GraphSearcher>(graph, effort); },
      [&](GraphSearcher& searcher, int64_t n, int) {
        Walk& walk = searcher.walk;
        int32_t at = graph.entry;
        walk.start(queries + n * graph.dim, at);
        for (int level = graph.levels[at] - 1; level > 0; level--) at = walk.descend(level);
        walk.start(queries + n * graph.dim, at);
        walk.spread(0, effort);
        for (int64_t i = 0; i < wanted; i++) {
          const bool is_there = i < (int64_t)walk.found();
          values[n * wanted + i] = is_there ? value_of(walk.key(i)) : INFINITY;
          numbers[n * wanted + i] = is_there ? int64_t(uint32_t(walk.key(i))) : -1;
        }
      });
}
}  // namespace ISA
