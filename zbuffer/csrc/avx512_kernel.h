// Drawing and resolving one image in float32 on processors with AVX-512: cpu_kernel.h's filters, in the same arithmetic,
// for sixteen triangles and eight pixels at once. zbuffer_cpu.cpp includes this once, in the namespace that holds
// cpu_kernel.h compiled for these processors.
//
// A triangle whose pixels lie in a block of 2 x 2 never leaves the vector registers; a larger one is left to
// draw_triangle. Gathers need no boxes made beforehand: reading a corner costs more than rounding it.

constexpr int kWide = 16;
constexpr int64_t kWideAtOnce = 256;  // triangles whose fragments stay in the first cache
constexpr int64_t kWideLimit = int64_t{1} << 29;  // vertices or triangles; gathers take 32-bit offsets

constexpr float kWideUncertain = kEdgeError * 25;  // in a box of 4 x 4 pixels

typedef double WideDoubles __attribute__((vector_size(64)));

// The pixels that some small triangles cover, and by which: its place after the first one.
struct Fragments {
  alignas(64) float lower[kWideAtOnce], upper[kWideAtOnce];  // of each triangle, what its pixels would remember
  int32_t pixel[16 * kWideAtOnce + kWide], place[16 * kWideAtOnce + kWide];
  int count;

  // Appends the chosen lanes.
  void append(__mmask16 chosen, __m512i pixels, __m512i places) {
    _mm512_storeu_si512(pixel + count, _mm512_maskz_compress_epi32(chosen, pixels));
    _mm512_storeu_si512(place + count, _mm512_maskz_compress_epi32(chosen, places));
    count += __builtin_popcount(chosen);
  }
};

inline void offer_all(const Image<float>& image, const Fragments& fragments, int64_t first) {
  for (int i = 0; i < fragments.count; ++i) {
    Pixel& seen = image.pixels[fragments.pixel[i]];
    const int32_t place = fragments.place[i];
    const Pixel candidate = {fragments.lower[place], fragments.upper[place], static_cast<int32_t>(first) + place};
    if (candidate.upper < seen.lower) continue;
    if (__builtin_expect(candidate.lower > seen.upper, 1)) {
      seen = candidate;
    } else {
      compare_exactly(image, fragments.pixel[i] / image.width, fragments.pixel[i] % image.width, candidate, seen);
    }
  }
}

// Draws a triangle that covers more than a block of pixels or reaches the image's border.
inline void draw_large(const Image<float>& image, int32_t index) {
  zbuffer::Triangle triangle;
  const int32_t* corners = image.triangles + 3 * static_cast<int64_t>(index);
  if (!zbuffer::set_up(image.vertices, corners, image.height, image.width, image.cull, triangle)) return;
  draw_triangle(image, index, triangle.first_row, triangle.first_column, triangle.last_row, triangle.last_column);
}

// One corner of each of sixteen triangles.
struct Corner {
  __m512 row, column, depth;
};

// The corner that CORNERS[0] is of the first triangle, each read with the number after it: not for the last vertex.
inline Corner read_corner(const float* vertices, const int32_t* corners) {
  const auto read = [&](int triangle) { return _mm_loadu_ps(vertices + int64_t{3} * corners[3 * triangle]); };
  const auto read_four = [&](int triangle) {
    const __m512 first = _mm512_castps128_ps512(read(triangle));
    const __m512 two = _mm512_insertf32x4(first, read(triangle + 4), 1);
    return _mm512_insertf32x4(_mm512_insertf32x4(two, read(triangle + 8), 2), read(triangle + 12), 3);
  };
  const __m512 a = read_four(0), b = read_four(1), c = read_four(2), d = read_four(3);
  const __m512d low_ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)), low_cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
  const __m512d high_ab = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
  const __m512d high_cd = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
  return {_mm512_castpd_ps(_mm512_unpacklo_pd(low_ab, low_cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(low_ab, low_cd)),
          _mm512_castpd_ps(_mm512_unpacklo_pd(high_ab, high_cd))};
}

// The same for the VALID triangles and any vertex, in twice the time.
inline Corner gather_corner(const float* vertices, const int32_t* corners, __mmask16 valid) {
  const __m512i thirds = _mm512_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45);
  const __m512i index = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), valid, thirds, corners, 4);
  const __m512i offset = _mm512_add_epi32(index, _mm512_add_epi32(index, index));
  const __m512 zero = _mm512_setzero_ps();
  return {_mm512_mask_i32gather_ps(zero, valid, offset, vertices, 4),
          _mm512_mask_i32gather_ps(zero, valid, offset, vertices + 1, 4),
          _mm512_mask_i32gather_ps(zero, valid, offset, vertices + 2, 4)};
}

// Whether one of the 48 corners is VERTEX.
inline bool any_is(const int32_t* corners, int32_t vertex) {
  const __m512i wanted = _mm512_set1_epi32(vertex);
  __mmask16 found = 0;
  for (int i = 0; i < 3 * kWide; i += kWide) {
    found |= _mm512_cmpeq_epi32_mask(_mm512_loadu_si512(corners + i), wanted);
  }
  return found != 0;
}

inline __m512 least(__m512 a, __m512 b, __m512 c) { return _mm512_min_ps(_mm512_min_ps(a, b), c); }
inline __m512 most(__m512 a, __m512 b, __m512 c) { return _mm512_max_ps(_mm512_max_ps(a, b), c); }
inline __mmask16 below(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline __mmask16 not_above(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }

// Sixteen triangles' edge function from (ROW, COLUMN) to the next corner: its value at the block's first pixel, and
// what a row and a column add.
struct WideEdge {
  __m512 value, per_row, per_column;

  WideEdge(__m512 row, __m512 column, __m512 next_row, __m512 next_column)
      : value(next_row * column - next_column * row), per_row(next_column - column), per_column(row - next_row) {}
};

// A 2 x 2 block of pixels for each of sixteen triangles: its first row and column, how many more rows and columns the
// triangle's box has from there on (as floats), and the WANTED triangles.
struct Blocks {
  __m512 top, left, rows, columns;
  __mmask16 wanted;

  // The next blocks below or to the right, of the triangles that reach them.
  Blocks below_these() const {
    const __m512 two = _mm512_set1_ps(2);
    return {top + two, left, rows - two, columns, static_cast<__mmask16>(wanted & not_above(two, rows))};
  }
  Blocks beside_these() const {
    const __m512 two = _mm512_set1_ps(2);
    return {top, left + two, rows, columns - two, static_cast<__mmask16>(wanted & not_above(two, columns))};
  }
};

// Draws what the triangles from FIRST on cover of their blocks into FRAGMENTS, where they are at PLACE. EDGES are
// relative to the triangles' boxes, which begin SKIPPED_ROWS and SKIPPED_COLUMNS before the blocks.
inline void draw_blocks(const Image<float>& image, const WideEdge* edges, float skipped_rows, float skipped_columns,
                        const Blocks& blocks, int64_t first, int place, Fragments& fragments) {
  __m512 values[4][3];
  for (int k = 0; k < 3; ++k) {
    values[0][k] = edges[k].value + skipped_rows * edges[k].per_row + skipped_columns * edges[k].per_column;
    values[1][k] = values[0][k] + edges[k].per_column;
    values[2][k] = values[0][k] + edges[k].per_row;
    values[3][k] = values[1][k] + edges[k].per_row;
  }
  const __m512 limit = _mm512_set1_ps(kWideUncertain), minus_limit = _mm512_set1_ps(-kWideUncertain);
  const __mmask16 second_row = blocks.wanted & below(_mm512_setzero_ps(), blocks.rows);
  const __mmask16 second_column = blocks.wanted & below(_mm512_setzero_ps(), blocks.columns);
  const __mmask16 inside[4] = {blocks.wanted, second_column, second_row,
                               static_cast<__mmask16>(second_row & second_column)};
  __mmask16 covered[4], unsure[4];
  for (int p = 0; p < 4; ++p) {
    const __m512 low = least(values[p][0], values[p][1], values[p][2]);
    const __m512 high = most(values[p][0], values[p][1], values[p][2]);
    const __mmask16 front = below(high, minus_limit), back = below(limit, low);
    const __mmask16 outside = below(low, minus_limit) & below(limit, high);
    covered[p] = inside[p] & (image.cull ? front : front | back);
    unsure[p] = inside[p] & ~(front | back | outside);
  }
  const unsigned asked = unsure[0] | unsure[1] | unsure[2] | unsure[3];
  if (__builtin_expect(asked != 0, 0)) {
    alignas(64) float tops[kWide], lefts[kWide];
    _mm512_store_ps(tops, blocks.top);
    _mm512_store_ps(lefts, blocks.left);
    for (unsigned lanes = asked; lanes; lanes &= lanes - 1) {
      const int lane = __builtin_ctz(lanes);
      unsigned pixels = 0;
      for (int p = 0; p < 4; ++p) pixels |= (unsure[p] >> lane & 1u) << p;
      pixels = cover_exactly<2>(image, static_cast<int32_t>(first + lane), static_cast<int>(tops[lane]),
                                static_cast<int>(lefts[lane]), pixels);
      for (int p = 0; p < 4; ++p) covered[p] |= static_cast<__mmask16>((pixels >> p & 1u) << lane);
    }
  }
  const __m512i width = _mm512_set1_epi32(image.width), next = _mm512_set1_epi32(1);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i places = _mm512_add_epi32(_mm512_set1_epi32(place), lane);
  const __m512i pixel = _mm512_add_epi32(_mm512_mullo_epi32(_mm512_cvttps_epi32(blocks.top), width),
                                         _mm512_cvttps_epi32(blocks.left));
  const __m512i next_row = _mm512_add_epi32(pixel, width);
  fragments.append(covered[0], pixel, places);
  fragments.append(covered[1], _mm512_add_epi32(pixel, next), places);
  fragments.append(covered[2], next_row, places);
  fragments.append(covered[3], _mm512_add_epi32(next_row, next), places);
}

// Draws the sixteen triangles from FIRST on (of them the VALID ones): small ones into FRAGMENTS, where they are at PLACE.
inline void draw_sixteen(const Image<float>& image, int64_t first, __mmask16 valid, int place, Fragments& fragments) {
  const int32_t* corners = image.triangles + 3 * first;
  Corner corner[3];
  if (valid == 0xffff && !any_is(corners, image.last_vertex)) {
    for (int k = 0; k < 3; ++k) corner[k] = read_corner(image.vertices, corners + k);
  } else {
    for (int k = 0; k < 3; ++k) corner[k] = gather_corner(image.vertices, corners + k, valid);
  }
  const auto& [row_a, column_a, depth_a] = corner[0];
  const auto& [row_b, column_b, depth_b] = corner[1];
  const auto& [row_c, column_c, depth_c] = corner[2];

  const __m512 zero = _mm512_setzero_ps(), most_small = _mm512_set1_ps(3);
  const __m512 last_row = _mm512_set1_ps(static_cast<float>(image.height - 1));
  const __m512 last_column = _mm512_set1_ps(static_cast<float>(image.width - 1));
  const __m512 top = _mm512_ceil_ps(least(row_a, row_b, row_c));
  const __m512 bottom = _mm512_floor_ps(most(row_a, row_b, row_c));
  const __m512 left = _mm512_ceil_ps(least(column_a, column_b, column_c));
  const __m512 right = _mm512_floor_ps(most(column_a, column_b, column_c));
  const __m512 rows = bottom - top, columns = right - left;  // less one; not a number beyond the largest float
  const __mmask16 missed = below(bottom, top) | below(right, left) | below(bottom, zero) | below(right, zero) |
                           below(last_row, top) | below(last_column, left);
  // Infinite or missing coordinates make the sum of all not a number, unless they make the box large.
  const __m512 all = (row_a + row_b + row_c) + (column_a + column_b + column_c);
  const __mmask16 small = valid & ~missed & not_above(rows, most_small) & not_above(columns, most_small) &
                          not_above(zero, top) & not_above(zero, left) & not_above(bottom, last_row) &
                          not_above(right, last_column) & _mm512_cmp_ps_mask(all, all, _CMP_ORD_Q);
  for (unsigned large = valid & ~missed & ~small; large; large &= large - 1) {
    draw_large(image, static_cast<int32_t>(first + __builtin_ctz(large)));
  }
  if (!small) return;
  const __m512 low = least(depth_a, depth_b, depth_c), high = most(depth_a, depth_b, depth_c);
  const __m512 slack = _mm512_set1_ps(kDepthError) * (_mm512_abs_ps(low) + _mm512_abs_ps(high));
  _mm512_store_ps(fragments.lower + place, low - slack);
  _mm512_store_ps(fragments.upper + place, high + slack);
  const __m512 nothing = depth_a * zero + depth_b * zero + depth_c * zero;
  const __mmask16 usable = small & _mm512_cmp_ps_mask(nothing, nothing, _CMP_ORD_Q);  // no infinite or missing depth
  if (!usable) return;

  const __m512 ra = row_a - top, rb = row_b - top, rc = row_c - top;
  const __m512 ca = column_a - left, cb = column_b - left, cc = column_c - left;
  const WideEdge edges[3] = {{ra, ca, rb, cb}, {rb, cb, rc, cc}, {rc, cc, ra, ca}};
  const Blocks blocks = {top, left, rows, columns, usable};
  const Blocks lower = blocks.below_these(), beside = blocks.beside_these(), last = lower.beside_these();
  draw_blocks(image, edges, 0, 0, blocks, first, place, fragments);
  if (lower.wanted) draw_blocks(image, edges, 2, 0, lower, first, place, fragments);
  if (beside.wanted) draw_blocks(image, edges, 0, 2, beside, first, place, fragments);
  if (last.wanted) draw_blocks(image, edges, 2, 2, last, first, place, fragments);
}

// Draws the triangles FIRST to LAST - 1; the mesh has at most kWideLimit vertices and triangles. The other arguments are
// draw's, and not needed.
inline void draw_wide(const Image<float>& image, const uint64_t*, const uint8_t*, int64_t first, int64_t last) {
  Fragments fragments;
  for (int64_t start = first; start < last; start += kWideAtOnce) {
    const int64_t end = std::min(start + kWideAtOnce, last);
    fragments.count = 0;
    for (int64_t t = start; t < end; t += kWide) {
      const __mmask16 valid = static_cast<__mmask16>(end - t >= kWide ? 0xffff : (1 << (end - t)) - 1);
      draw_sixteen(image, t, valid, static_cast<int>(t - start), fragments);
    }
    offer_all(image, fragments, start);
  }
}

// Eight pixels of a row (of them the VALID ones), which of them show a triangle, and its corners.
struct EightPixels {
  __mmask8 valid, seen;
  __m256i index;  // -1: nothing
  __m256 row[3], column[3], depth[3];
};

inline EightPixels read_eight(const Image<float>& image, const Pixel* pixels, __mmask8 valid) {
  static_assert(sizeof(Pixel) == 12 && offsetof(Pixel, index) == 8, "the gather below counts on it");
  const __m256i thirds = _mm256_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21), nothing = _mm256_set1_epi32(-1);
  const __m256 zero = _mm256_setzero_ps();
  EightPixels read;
  read.valid = valid;
  read.index = _mm256_mmask_i32gather_epi32(nothing, valid, thirds, &pixels->index, 4);
  read.seen = _mm256_cmpgt_epi32_mask(read.index, nothing);
  if (!read.seen) return read;
  const __m256i first = _mm256_add_epi32(read.index, _mm256_add_epi32(read.index, read.index));
  for (int k = 0; k < 3; ++k) {
    const __m256i corner =
        _mm256_mmask_i32gather_epi32(_mm256_setzero_si256(), read.seen, first, image.triangles + k, 4);
    const __m256i offset = _mm256_add_epi32(corner, _mm256_add_epi32(corner, corner));
    read.row[k] = _mm256_mmask_i32gather_ps(zero, read.seen, offset, image.vertices, 4);
    read.column[k] = _mm256_mmask_i32gather_ps(zero, read.seen, offset, image.vertices + 1, 4);
    read.depth[k] = _mm256_mmask_i32gather_ps(zero, read.seen, offset, image.vertices + 2, 4);
  }
  return read;
}

inline WideDoubles to_doubles(__m256 values) { return (WideDoubles)_mm512_cvtps_pd(values); }

inline WideDoubles magnitude(WideDoubles value) { return (WideDoubles)_mm512_abs_pd((__m512d)value); }

// Edge functions as zbuffer::edge; CERTAIN loses the lanes whose sign rounding may have changed.
inline WideDoubles edge(WideDoubles ar, WideDoubles ac, WideDoubles br, WideDoubles bc, WideDoubles pr, WideDoubles pc,
                        __mmask8& certain) {
  const WideDoubles left = (bc - ac) * (pr - ar), right = (br - ar) * (pc - ac);
  const WideDoubles value = left - right;
  const WideDoubles doubtful = zbuffer::kUncertain * (magnitude(left) + magnitude(right));
  certain &= _mm512_cmp_pd_mask((__m512d)magnitude(value), (__m512d)doubtful, _CMP_GT_OQ);
  return value;
}

// Writes what eight pixels of a row from COLUMN on show.
inline void resolve_eight(const Image<float>& image, const EightPixels& read, int row, int column, int64_t* out_index,
                          float* out_depth, float* out_barycentrics) {
  const __mmask8 seen = read.seen, valid = read.valid;
  _mm512_mask_storeu_epi64(out_index + column, valid, _mm512_cvtepi32_epi64(read.index));
  const __mmask32 valid_shares = static_cast<__mmask32>((1u << 3 * __builtin_popcount(valid)) - 1);
  const __m256 far = _mm256_set1_ps(-INFINITY);
  float* shares = out_barycentrics + 3 * column;
  if (!seen) {
    _mm256_mask_storeu_ps(out_depth + column, valid, far);
    _mm512_mask_storeu_ps(shares, static_cast<__mmask16>(valid_shares), _mm512_setzero_ps());
    _mm256_mask_storeu_ps(shares + 16, static_cast<__mmask8>(valid_shares >> 16), _mm256_setzero_ps());
    return;
  }
  WideDoubles rows[3], columns[3], weights[3];
  for (int k = 0; k < 3; ++k) rows[k] = to_doubles(read.row[k]), columns[k] = to_doubles(read.column[k]);
  const WideDoubles pr = WideDoubles{} + static_cast<double>(row);
  const WideDoubles pc = WideDoubles{0, 1, 2, 3, 4, 5, 6, 7} + static_cast<double>(column);
  __mmask8 certain = seen;
  for (int k = 0; k < 3; ++k) {
    const int from = (k + 1) % 3, to = (k + 2) % 3;
    // All three have the triangle's sign, so the magnitude is the weight.
    weights[k] = magnitude(edge(rows[from], columns[from], rows[to], columns[to], pr, pc, certain));
  }
  const WideDoubles sum = weights[0] + weights[1] + weights[2];
  const WideDoubles depth = (weights[0] * to_doubles(read.depth[0]) + weights[1] * to_doubles(read.depth[1]) +
                             weights[2] * to_doubles(read.depth[2])) / sum;
  _mm256_mask_storeu_ps(out_depth + column, valid, _mm256_mask_blend_ps(seen, far, _mm512_cvtpd_ps((__m512d)depth)));
  // Eight triples from three vectors of eight: of the first two joined, then with the third one.
  const __m256 a = _mm512_maskz_cvtpd_ps(seen, (__m512d)(weights[0] / sum));
  const __m256 b = _mm512_maskz_cvtpd_ps(seen, (__m512d)(weights[1] / sum));
  const __m256 c = _mm512_maskz_cvtpd_ps(seen, (__m512d)(weights[2] / sum));
  const __m512 ab = _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1), cc = _mm512_castps256_ps512(c);
  const __m512i head = _mm512_setr_epi32(0, 8, 16, 1, 9, 17, 2, 10, 18, 3, 11, 19, 4, 12, 20, 5);
  const __m512i tail = _mm512_setr_epi32(13, 21, 6, 14, 22, 7, 15, 23, 0, 0, 0, 0, 0, 0, 0, 0);
  _mm512_mask_storeu_ps(shares, static_cast<__mmask16>(valid_shares), _mm512_permutex2var_ps(ab, head, cc));
  _mm256_mask_storeu_ps(shares + 16, static_cast<__mmask8>(valid_shares >> 16),
                        _mm512_castps512_ps256(_mm512_permutex2var_ps(ab, tail, cc)));
  for (unsigned doubtful = seen & ~certain; doubtful; doubtful &= doubtful - 1) {
    const int at = column + __builtin_ctz(doubtful);
    zbuffer::resolve(image.vertices, image.triangles, image.height, image.width,
                     zbuffer::pack(0, image.pixels[static_cast<int64_t>(row) * image.width + at].index), row, at,
                     out_index + at, out_depth + at, out_barycentrics + 3 * at);
  }
}

// Writes what the pixels of a row show: OUT_INDEX and so on are the row's.
inline void resolve_row_wide(const Image<float>& image, int row, int64_t* out_index, float* out_depth,
                             float* out_barycentrics) {
  const Pixel* pixels = image.pixels + static_cast<int64_t>(row) * image.width;
  const auto read = [&](int column) {
    const int left = image.width - column;
    return read_eight(image, pixels + column, static_cast<__mmask8>(left >= 8 ? 0xff : (1 << left) - 1));
  };
  EightPixels current = read(0), next;
  for (int column = 0; column < image.width; column += 8) {
    if (column + 8 < image.width) next = read(column + 8);  // on its way while these are divided
    resolve_eight(image, current, row, column, out_index, out_depth, out_barycentrics);
    current = next;
  }
}
