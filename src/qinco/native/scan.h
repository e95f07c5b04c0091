// Search in inverted lists for one instruction set: nearest centroids, look-up tables, scan and shortlist.
//
// The value of a vector is the base of its list plus one table entry for each code and for the scalar. The tables are
// rounded down to bytes of a common step, 64 (AVX512-VBMI) or 32 (AVX2) codes are looked up at once, and only vectors whose
// sum could be among the nearest are summed in float32: the shortlist is that of the float tables.
#pragma once
#include <cmath>
#include <utility>
#if VECTOR >= 8
#include <immintrin.h>
#endif

#include "arithmetic.h"
#include "lists.h"
#include "selection.h"
#include "shortlist.h"

namespace ISA {

constexpr int BLOCK = 64;       // vectors of a block
constexpr int ENTRIES = 256;    // of a table
constexpr int MANY = 8 * BLOCK;         // vectors left in a list that are worth tables of bytes
constexpr int MOST_QUERIES = 2 * TILE;  // of a group: they share what a product loads into the cache
constexpr int MOST_BYTE_TABLES = 257;   // whose sums fit in 16 bits

constexpr int SPARSE = VECTOR >= 16 ? 6 : VECTOR >= 8 ? 16 : 24;  // vectors of a block that are summed one by one

// The vectors of a block, a bit each, that may be found.
static uint64_t admitted_lanes(const qinco_segment& segment, int64_t row, int width) {
  const uint64_t there = width == BLOCK ? ~uint64_t(0) : (uint64_t(1) << width) - 1;
  if (!segment.admitted) return there;
  const uint64_t* words = segment.admitted + row / 64;
  const int shift = row % 64;
  uint64_t lanes = words[0] >> shift;
  if (shift + width > 64) lanes |= words[1] << (64 - shift);
  return lanes & there;
}

static int64_t id_of(const qinco_segment& segment, int64_t row) {
  return segment.ids_are_wide ? ((const int64_t*)segment.ids)[row] : ((const uint32_t*)segment.ids)[row];
}

struct ScannerTables {
  qinco_scanner_sizes size;
  Matrix<Float> centroids, tables;  // (V, D), (M * 256, D)
  Table centroid_rows, table_rows;
  std::vector<float> norms;         // of the centroids
  std::vector<float> levels;
  float longest = 0;                // centroid
  bool permutes_bytes = false;      // whether the processor has AVX512-VBMI
  const bool fits_bytes;            // whether sums of bytes fit in 16 bits

  ScannerTables(const qinco_scanner_sizes& sizes, const float* centroids_VD, const float* tables_MKD, const float* given)
      : size(sizes), norms(sizes.lists), levels(given, given + ENTRIES), fits_bytes(sizes.steps + 1 <= MOST_BYTE_TABLES) {
    centroids.pack(centroids_VD, size.lists, size.dim);
    centroid_rows.pack(centroids_VD, size.lists, size.dim);
    tables.pack(tables_MKD, size.steps * ENTRIES, size.dim);
    table_rows.pack(tables_MKD, size.steps * ENTRIES, size.dim);
    for (int v = 0; v < size.lists; v++) {
      double total = 0;
      for (int d = 0; d < size.dim; d++) total += double(centroid_rows[v][d]) * centroid_rows[v][d];
      norms[v] = total;
      longest = std::max(longest, std::sqrt(norms[v]));
    }
#if VECTOR == 16
    permutes_bytes = __builtin_cpu_supports("avx512vbmi");
#endif
  }
};

// What one thread needs to walk a group of queries through a scanner.
class ListWorker {
  const ScannerTables& scanner;
  const int M, D, Dp, entries;
  array<float> rows, values, exact;  // (num_rows, Dp), (probing, Vp), (scanning, entries)
  array<uint8_t> coarse;             // tables of bytes
  float step = 1, lowest = 0;        // of the tables of bytes: their unit, and what zero stands for
  float largest = 0;                 // what the tables' entries may add up to
  Selection selection;
  Shortlist shortlist;
  std::vector<std::pair<float, int32_t>> near;

 public:
  // For so many rows at a time, of which some look for lists, and some scan them.
  ListWorker(const ScannerTables& s, size_t num_rows, size_t probing, size_t scanning)
      : scanner(s), M(s.size.steps), D(s.size.dim), Dp(s.tables.in), entries((M + 1) * ENTRIES),
        rows(allocate<float>(num_rows * Dp)), values(allocate<float>(probing * s.centroids.out)),
        exact(allocate<float>(scanning * entries)), coarse(allocate<uint8_t>(entries)) {}

  int vectors() const { return MOST_QUERIES; }

  void probe(const float* queries, int count, int nprobe, int32_t* probes, float* bases) {
    const qinco_scanner_sizes& size = scanner.size;
    take(queries, count);
    const int stride = scanner.centroids.out;
    scanner.centroids.apply(rows.get(), count, [&](int i, int p, vector* sums) {
      for (int j = 0; j < PANELS; j++) store(values.get() + size_t(i) * stride + p + VECTOR * j, sums[j]);
    });
    for (int i = 0; i < count; i++) {
      float* products = values.get() + size_t(i) * stride;
      const float* query = rows.get() + size_t(i) * Dp;
      const float own = product(query, query), lift = std::sqrt(own) * scanner.longest;
      if (size.inner_product) {
        for (int v = 0; v < size.lists; v++) products[v] = from_zero(lift - products[v]);
      } else {
        for (int v = 0; v < size.lists; v++) products[v] = from_zero(own + scanner.norms[v] - 2 * products[v]);
      }
      selection.smallest(products, size.lists, nprobe);
      near.clear();
      for (int32_t v : selection.places) {
        // What the lift has rounded off is what tells lists apart where one centroid is far longer than others.
        const float value = size.inner_product ? -product(query, scanner.centroid_rows[v]) : products[v];
        near.push_back({value == value ? value : INFINITY, v});
      }
      std::sort(near.begin(), near.end());
      for (int j = 0; j < nprobe; j++) {
        probes[size_t(i) * nprobe + j] = near[j].second;
        bases[size_t(i) * nprobe + j] = near[j].first;
      }
    }
  }

  void scan(const qinco_scan& request, int64_t from, int count) {
    take(request.queries + from * D, count);
    const float factor = scanner.size.inner_product ? -1 : -2;
    scanner.tables.apply(rows.get(), count, [&](int i, int p, vector* sums) {
      for (int j = 0; j < PANELS; j++) store(exact.get() + size_t(i) * entries + p + VECTOR * j, factor * sums[j]);
    });
    for (int i = 0; i < count; i++) {
      memcpy(exact.get() + size_t(i) * entries + M * ENTRIES, scanner.levels.data(), ENTRIES * 4);
      one(request, from + i, exact.get() + size_t(i) * entries);
    }
  }

  void sum_all(const qinco_sums& request, int64_t from, int count) {
    sum_each(request, from, count, [](int64_t) {});
  }

  void value_all(const qinco_walk& request, const int64_t* places, const qinco_sums& sums, int64_t from, int count) {
    sum_each(sums, from, count, [&](int64_t i) {
      const int64_t place = places[i];
      take(request.queries + place / request.width * D, 1, QUERY);
      const float *query = rows.get() + QUERY * Dp, *x = rows.get() + DECODED * Dp, *centre = rows.get() + CENTRE * Dp;
      vector near = {}, square = {};
      for (int d = 0; d < Dp; d += VECTOR) {
        const vector own = load(x + d), off = scanner.size.inner_product ? load(query + d) : own - load(query + d);
        const vector from_centre = own - load(centre + d);
        near += scanner.size.inner_product ? own * off : off * off;
        square += from_centre * from_centre;
      }
      float value = scanner.size.inner_product ? -sum(near) : sum(near);
      value += request.correction * correction_of(request, sums, i, request.norm_codes[place]);
      request.found[place] = request.length ? value + request.length * sum(square) : value;
    });
  }

 private:
  enum { DECODED, ORIGIN, MEAN, CENTRE, QUERY };  // rows of sums and values

  template <class Then>
  void sum_each(const qinco_sums& request, int64_t from, int count, Then then) {
    if (request.decoded) {
      take(request.origin, 1, ORIGIN);
      take(request.mean, 1, MEAN);
      take(request.centre, 1, CENTRE);
    }
    for (int64_t i = from; i < from + count; i++) {
      for (int m = 0; m < M && i + 1 < from + count; m++)
        for (int d = 0; d < Dp; d += 64 / 4) __builtin_prefetch(row_of(request, i + 1, m) + d);
      if (request.decoded)
        sum_compared(request, i);
      else
        sum_alone(request, i);
      then(i);
    }
  }

  // What a scalar holds besides what is known of it, the correction of the tables, as that of another decoder. What it
  // tells beyond the likely corrections counts if it leaves no other open; else it is the typical one if that is open,
  // and the nearest likely one if not.
  float correction_of(const qinco_walk& request, const qinco_sums& sums, int64_t i, int norm_code) const {
    if (!request.table_correction) return 0;
    const std::vector<float>& levels = scanner.levels;
    float known = scanner.size.inner_product ? 0 : sums.sums[i];
    if (request.table_length) known += request.table_length * sums.sums[sums.count + i];
    float found = (levels[norm_code] - known) / request.table_correction;
    if (!(found >= request.low && found <= request.high)) {
      const double below = norm_code ? levels[norm_code] / 2 + levels[norm_code - 1] / 2 : -INFINITY;
      const double above = norm_code + 1 < ENTRIES ? levels[norm_code + 1] / 2 + levels[norm_code] / 2 : INFINITY;
      const double rounding = request.rounding * (std::abs(known) + std::abs(levels[norm_code]));
      double least = (below - known - rounding) / request.table_correction;
      double most = (above - known + rounding) / request.table_correction;
      if (request.table_correction < 0) std::swap(least, most);
      const bool tells_typical = !(least > request.typical || request.typical > most);  // also if they are no numbers
      if (!(least > request.high || most < request.low))
        found = tells_typical ? request.typical : std::min(std::max(found, request.low), request.high);
    }
    return found - sums.sums[2 * sums.count + i];
  }

  void take(const float* vectors, int count, int first = 0) {
    for (int i = 0; i < count; i++) memcpy(rows.get() + size_t(first + i) * Dp, vectors + size_t(i) * D, D * 4);
  }

  const float* row_of(const qinco_sums& request, int64_t i, int m) const {
    return scanner.table_rows[size_t(m) * ENTRIES + request.codes[i * M + m]];
  }

  vector sum_of_rows(const qinco_sums& request, int64_t i, int d) const {
    vector r = {};
    for (int m = 0; m < M; m++) r += load(row_of(request, i, m) + d);
    return r;
  }

  void sum_alone(const qinco_sums& request, int64_t i) const {
    vector product = {}, square = {};
    const float* centroid = scanner.centroid_rows[request.lists[i]];
    for (int d = 0; d < Dp; d += VECTOR) {
      const vector r = sum_of_rows(request, i, d);
      product += r * load(centroid + d);
      square += r * r;
    }
    request.sums[i] = 2 * sum(product) + sum(square);
  }

  void sum_compared(const qinco_sums& request, int64_t i) {
    take(request.decoded + i * D, 1, DECODED);
    vector product = {}, square = {}, centred = {}, shared = {};
    const float* centroid = scanner.centroid_rows[request.lists[i]];
    const float *x = rows.get() + DECODED * Dp, *origin = rows.get() + ORIGIN * Dp;
    const float *mean = rows.get() + MEAN * Dp, *centre = rows.get() + CENTRE * Dp;
    for (int d = 0; d < Dp; d += VECTOR) {
      const vector r = sum_of_rows(request, i, d), c = load(centroid + d), o = load(origin + d);
      product += r * c;
      square += r * r;
      const vector from_centre = (o - load(centre + d)) + c + r;
      centred += from_centre * from_centre;
      shared += (load(x + d) - o - c - r) * (load(x + d) - load(mean + d));
    }
    request.sums[i] = 2 * sum(product) + sum(square);
    request.sums[request.count + i] = sum(centred);
    request.sums[2 * request.count + i] = sum(shared);
  }

  // What selection takes: nothing below zero, and what is no number last.
  static float from_zero(float value) { return value > 0 ? value : value <= 0 ? 0 : INFINITY; }

  float product(const float* a, const float* b) const {
    vector total = {};
    for (int d = 0; d < Dp; d += VECTOR) total += load(a + d) * load(b + d);
    return sum(total);
  }

  void one(const qinco_scan& request, int64_t query, const float* table) {
    const int32_t* probes = request.probes + query * request.num_probes;
    const float* bases = request.bases + query * request.num_probes;
    shortlist.clear(request.num_short);
    bool has_bytes = false;
    int64_t scanned = 0;
    for (int j = 0; j < request.num_probes && probes[j] >= 0 && (j < request.nprobe || !shortlist.is_full()); j++) {
      if (is_stopped()) return;
      const int32_t list = probes[j];
      for (int s = 0; s < request.num_segments; s++) {
        const qinco_segment& segment = request.segments[s];
        const int64_t begin = segment.starts[list], end = segment.starts[list + 1];
        const uint8_t* codes = segment.codes + begin * (M + 1);
        for (int64_t row = begin; row < end; row += BLOCK) {
          const int width = std::min<int64_t>(BLOCK, end - row);
          const uint64_t lanes = admitted_lanes(segment, row, width);
          const Found where = {bases[j], list, s, row};
          if (segment.admitted && __builtin_popcountll(lanes) <= SPARSE) {
            keep_all(where, lanes, codes, width, table);
          } else {
            const bool is_worth_it = row == begin || end - row >= MANY;
            if (scanner.fits_bytes && !has_bytes && is_worth_it && shortlist.limit < INFINITY) {
              round_down(table, *std::min_element(bases + j, bases + request.num_probes));
              has_bytes = true;
            }
            if (has_bytes)
              by_bytes(where, lanes, codes, width, table);
            else
              by_floats(where, lanes, codes, width, table);
          }
          codes += size_t(width) * (M + 1);
        }
        scanned += end - begin;
      }
    }
    request.scanned[query] = scanned;
    write(request, query);
  }

  // The tables as bytes: each entry rounded down, those that are too large for any near vector at 255.
  void round_down(const float* table, float base) {
    float least[MOST_BYTE_TABLES], range = 0;
    lowest = largest = 0;
    for (int m = 0; m <= M; m++) {
      vector low = vector{} + INFINITY, high = -low;  // what is no number passes by them
      for (int k = 0; k < ENTRIES; k += VECTOR) {
        const vector v = load(table + m * ENTRIES + k);
        low = v < low ? v : low;
        high = v > high ? v : high;
      }
      float top = high[0];
      least[m] = low[0];
      for (int j = 1; j < VECTOR; j++) least[m] = std::min(least[m], low[j]), top = std::max(top, high[j]);
      lowest += least[m];
      largest += std::max(std::fabs(least[m]), std::fabs(top));
      range = std::max(range, top - least[m]);
    }
    // No entry of a near vector is further above its table's least than the limit is above the sum of all.
    range = std::min(range, shortlist.limit - base - lowest);
    step = std::max(range / 255, 1e-30f);
    for (int m = 0; m <= M; m++)
      for (int k = 0; k < ENTRIES; k++)
        coarse[m * ENTRIES + k] = std::min(255.f, (table[m * ENTRIES + k] - least[m]) / step);
  }

  float value_of(const uint8_t* codes, int width, int lane, float base, const float* table) const {
    for (int m = 0; m <= M; m++) base += table[m * ENTRIES + codes[m * width + lane]];
    return base;
  }

  void keep(Found found, int lane, float value) {
    if (!(value < shortlist.limit && value > -INFINITY)) return;  // nor what has overflowed
    found.value = value;
    found.row += lane;
    shortlist.add(found);
  }

  // Sums each of some lanes, in the order in which `by_floats` sums all.
  void keep_all(const Found& where, uint64_t lanes, const uint8_t* codes, int width, const float* table) {
    for (; lanes; lanes &= lanes - 1) {
      const int lane = __builtin_ctzll(lanes);
      keep(where, lane, value_of(codes, width, lane, where.value, table));
    }
  }

  void by_floats(const Found& where, uint64_t lanes, const uint8_t* codes, int width, const float* table) {
    float sums[BLOCK];
    for (int i = 0; i < width; i++) sums[i] = where.value;
    for (int m = 0; m <= M; m++)
      for (int i = 0; i < width; i++) sums[i] += table[m * ENTRIES + codes[m * width + i]];
    for (; lanes; lanes &= lanes - 1) {
      const int lane = __builtin_ctzll(lanes);
      keep(where, lane, sums[lane]);
    }
  }

  void by_bytes(const Found& where, uint64_t admitted, const uint8_t* codes, int width, const float* table) {
    // Sums of floats are rounded, that of the candidate like those here: what could be within the limit is looked at.
    const float rounding = (M + 4) * 1.2e-7f * (std::fabs(where.value) + largest);
    const float units = (shortlist.limit - where.value - lowest + rounding) / step * 1.0001f + 1;
    if (units < 0) return;
    const uint16_t most = std::min(65535.f, units);  // all where it is no number
#if VECTOR == 16
    const uint64_t there = width == BLOCK ? ~uint64_t(0) : (uint64_t(1) << width) - 1;
    const uint64_t lanes = scanner.permutes_bytes ? by_permutes(codes, width, there, most) : by_shuffles(codes, width, most);
#else
    const uint64_t lanes = by_shuffles(codes, width, most);
#endif
    keep_all(where, lanes & admitted, codes, width, table);
  }

  // The lanes of a block whose sums of bytes are at most `most`.
#if VECTOR == 16
  __attribute__((target("avx512vbmi"))) uint64_t by_permutes(const uint8_t* codes, int width, uint64_t there,
                                                             uint16_t most) const {
    const __m512i low_byte = _mm512_set1_epi16(255), limit = _mm512_set1_epi16((short)most);
    __m512i even = _mm512_setzero_si512(), odd = even;
    for (int m = 0; m <= M; m++) {
      const uint8_t* bytes = coarse.get() + m * ENTRIES;
      // A masked load is slower where it waits for memory.
      const uint8_t* row = codes + m * width;
      const __m512i code = width == BLOCK ? _mm512_loadu_si512(row) : _mm512_maskz_loadu_epi8(there, row);
      // A permute takes the low seven bits of a code; the highest chooses between two of them.
      const __m512i below = _mm512_permutex2var_epi8(_mm512_load_si512(bytes), code, _mm512_load_si512(bytes + 64));
      const __m512i above = _mm512_permutex2var_epi8(_mm512_load_si512(bytes + 128), code, _mm512_load_si512(bytes + 192));
      const __m512i value = _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), below, above);
      even = _mm512_add_epi16(even, _mm512_and_si512(value, low_byte));
      odd = _mm512_add_epi16(odd, _mm512_srli_epi16(value, 8));
    }
    return _pdep_u64(_mm512_cmple_epu16_mask(even, limit), 0x5555555555555555) |
           _pdep_u64(_mm512_cmple_epu16_mask(odd, limit), 0xaaaaaaaaaaaaaaaa);
  }
#endif

#if VECTOR >= 8
  // A shuffle takes the low four bits of a code; the others choose among sixteen shuffles, two by two.
  uint64_t by_shuffles(const uint8_t* codes, int width, uint16_t most) const {
    const __m256i low_bits = _mm256_set1_epi8(15), low_byte = _mm256_set1_epi16(255);
    const __m256i limit = _mm256_set1_epi16((short)most);
    __m256i even[2] = {}, odd[2] = {};
    uint8_t padded[BLOCK] = {};
    for (int m = 0; m <= M; m++) {
      const uint8_t* row = codes + m * width;
      if (width < BLOCK) row = (const uint8_t*)memcpy(padded, row, width);
      const __m128i* entries = (const __m128i*)(coarse.get() + m * ENTRIES);
      for (int half = 0; half < 2; half++) {
        const __m256i code = _mm256_loadu_si256((const __m256i*)row + half), place = _mm256_and_si256(code, low_bits);
        __m256i value[16];
        for (int j = 0; j < 16; j++)
          value[j] = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128(entries + j)), place);
        for (int bit = 4, left = 8; left; bit++, left /= 2) {
          const __m256i chosen = _mm256_slli_epi16(code, 7 - bit);  // the bit comes to the top of its byte
          for (int j = 0; j < left; j++) value[j] = _mm256_blendv_epi8(value[2 * j], value[2 * j + 1], chosen);
        }
        even[half] = _mm256_add_epi16(even[half], _mm256_and_si256(value[0], low_byte));
        odd[half] = _mm256_add_epi16(odd[half], _mm256_srli_epi16(value[0], 8));
      }
    }
    uint64_t lanes = 0;
    for (int half = 0; half < 2; half++) {
      const __m256i near_even = _mm256_cmpeq_epi16(_mm256_min_epu16(even[half], limit), even[half]);
      const __m256i near_odd = _mm256_cmpeq_epi16(_mm256_min_epu16(odd[half], limit), odd[half]);
      const __m256i near = _mm256_blendv_epi8(near_even, near_odd, _mm256_set1_epi16((short)0xff00));
      lanes |= uint64_t(uint32_t(_mm256_movemask_epi8(near))) << 32 * half;
    }
    return lanes;
  }
#else
  uint64_t by_shuffles(const uint8_t* codes, int width, uint16_t most) const {
    uint16_t sums[BLOCK] = {};
    for (int m = 0; m <= M; m++)
      for (int i = 0; i < width; i++) sums[i] += coarse[m * ENTRIES + codes[m * width + i]];
    uint64_t lanes = 0;
    for (int i = 0; i < width; i++) lanes |= uint64_t(sums[i] <= most) << i;
    return lanes;
  }
#endif

  void write(const qinco_scan& request, int64_t query) {
    const int64_t S = request.num_short, from = query * S, filled = shortlist.sort();
    std::fill_n(request.values + from, S, INFINITY);
    std::fill_n(request.ids + from, S, -1);
    std::fill_n(request.lists + from, S, -1);
    memset(request.codes + from * M, 0, S * M);
    memset(request.norm_codes + from, 0, S);
    // Ids come from far apart: a loop that does nothing else waits for many at a time.
    for (int64_t i = 0; i < filled; i++) request.ids[from + i] = id_of(request.segments[shortlist[i].segment], shortlist[i].row);
    for (int64_t i = 0; i < filled; i++) {
      const Found& found = shortlist[i];
      const qinco_segment& segment = request.segments[found.segment];
      request.values[from + i] = found.value;
      request.lists[from + i] = found.list;
      const int64_t begin = segment.starts[found.list], block = (found.row - begin) / BLOCK * BLOCK;
      const int64_t width = std::min<int64_t>(BLOCK, segment.starts[found.list + 1] - begin - block);
      const uint8_t* codes = segment.codes + (begin + block) * (M + 1) + (found.row - begin - block);
      for (int m = 0; m < M; m++) request.codes[(from + i) * M + m] = codes[m * width];
      request.norm_codes[from + i] = codes[M * width];
    }
  }
};

struct Scanner : AnyScanner {
  ScannerTables tables;
  Scanner(const qinco_scanner_sizes& sizes, const float* centroids, const float* given, const float* levels)
      : tables(sizes, centroids, given, levels) {}

  template <class Run>
  void over(int64_t count, int threads, bool probes, bool scans, Run run) const {
    const size_t least = 5, rows = std::max<size_t>(least, std::min<int64_t>(count, MOST_QUERIES));
    over_threads(
        count, MOST_QUERIES, threads,
        [&] { return std::make_unique<ListWorker>(tables, rows, probes ? rows : 0, scans ? rows : 0); }, run);
  }

  void probe(const float* queries, int64_t count, int nprobe, int threads, int32_t* probes, float* bases) const override {
    over(count, threads, true, false, [&](ListWorker& worker, int64_t from, int now) {
      worker.probe(queries + from * tables.size.dim, now, nprobe, probes + from * nprobe, bases + from * nprobe);
    });
  }

  void scan(const qinco_scan& request, int threads) const override {
    over(request.count, threads, false, true,
         [&](ListWorker& worker, int64_t from, int now) { worker.scan(request, from, now); });
  }

  void sum(const qinco_sums& request, int threads) const override {
    over(request.count, threads, false, false,
         [&](ListWorker& worker, int64_t from, int now) { worker.sum_all(request, from, now); });
  }

  void value(const qinco_walk& request, const int64_t* places, const qinco_sums& sums, int threads) const override {
    over(sums.count, threads, false, false, [&](ListWorker& worker, int64_t from, int now) {
      worker.value_all(request, places, sums, from, now);
    });
  }
};

AnyScanner* make_scanner(const qinco_scanner_sizes& sizes, const float* centroids, const float* tables, const float* levels) {
  return new Scanner(sizes, centroids, tables, levels);
}
}  // namespace ISA
