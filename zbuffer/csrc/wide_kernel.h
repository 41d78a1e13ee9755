// Drawing one image in float32 on processors with wide vectors: cpu_kernel.h's filters, in the same arithmetic, for
// kWide triangles at once. zbuffer_cpu.cpp includes this once per instruction set, after cpu_kernel.h and the
// instruction set's vectors (wide_avx2.h, wide_avx512.h), in their namespace.
//
// A triangle whose pixels lie in a box of 4 x 4 inside the image never leaves the vector registers until its covered
// pixels are known; a larger one is left to draw_triangle. No boxes are made beforehand: reading a corner costs more
// than rounding it.

constexpr int64_t kWideAtOnce = 256;  // triangles whose fragments stay in the first cache
constexpr int kWideBox = 4;           // pixels a side
constexpr float kWideUncertain = kEdgeError * (kWideBox + 1) * (kWideBox + 1);

// The pixels that some small triangles cover, and by which: its place after the first one.
struct Fragments {
  float lower[kWideAtOnce], upper[kWideAtOnce];  // of each triangle, what its pixels would remember
  int32_t pixel[kWideBox * kWideBox * kWideAtOnce + kWide], place[kWideBox * kWideBox * kWideAtOnce + kWide];
  int count;

  void append(Lanes chosen, WideInts pixels, WideInts places) {
    store(pixel + count, compressed(chosen, pixels));  // what follows the chosen ones is overwritten
    store(place + count, compressed(chosen, places));
    count += __builtin_popcount(chosen);
  }
};

// Gives each of the pixels to its fragment, if that is nearer; FIRST is the triangle at place 0.
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

// Draws a triangle that is not small, if it covers anything.
inline void draw_large(const Image<float>& image, int32_t index) {
  zbuffer::Triangle triangle;
  const int32_t* corners = image.triangles + 3 * static_cast<int64_t>(index);
  if (!zbuffer::set_up(image.vertices, corners, image.height, image.width, image.cull, triangle)) return;
  draw_triangle(image, index, triangle.first_row, triangle.first_column, triangle.last_row, triangle.last_column);
}

// As read_vertices, for COUNT lanes, whatever the vertex; the other lanes get the first one's.
inline void read_some_vertices(const float* vertices, const int32_t* corners, int count, WideFloats* read) {
  float numbers[3][kWide];
  for (int lane = 0; lane < kWide; ++lane) {
    const float* vertex = vertices + int64_t{3} * corners[lane < count ? 3 * lane : 0];
    for (int axis = 0; axis < 3; ++axis) numbers[axis][lane] = vertex[axis];
  }
  for (int axis = 0; axis < 3; ++axis) read[axis] = load(numbers[axis]);
}

// The triangles' edge functions from (ROW, COLUMN) to the next corner: their values at the box's first pixel, and what
// a row and a column add.
struct WideEdge {
  WideFloats value, per_row, per_column;

  WideEdge(WideFloats row, WideFloats column, WideFloats next_row, WideFloats next_column)
      : value(next_row * column - next_column * row), per_row(next_column - column), per_column(row - next_row) {}
};

// A 2 x 2 block of pixels for each triangle: its first row and column, how many more rows and columns the triangle's
// box has from there on (as floats), and the WANTED triangles.
struct Blocks {
  WideFloats top, left, rows, columns;
  Lanes wanted;

  // The next blocks below or beside these, of the triangles that reach them.
  Blocks below_these() const {
    const WideFloats two = splat(2);
    return {top + two, left, rows - two, columns, wanted & not_above(two, rows)};
  }
  Blocks beside_these() const {
    const WideFloats two = splat(2);
    return {top, left + two, rows, columns - two, wanted & not_above(two, columns)};
  }
};

// Which of their blocks' pixels the UNSURE triangles cover, by the arithmetic that defines it, is added to COVERED.
// Both have the pixels' lanes, row by row; FIRST is the triangle in lane 0.
__attribute__((noinline)) inline void make_sure(const Image<float>& image, int64_t first, const Blocks& blocks,
                                                const Lanes* unsure, Lanes* covered) {
  float tops[kWide], lefts[kWide];
  store(tops, blocks.top);
  store(lefts, blocks.left);
  for (Lanes lanes = unsure[0] | unsure[1] | unsure[2] | unsure[3]; lanes; lanes &= lanes - 1) {
    const int lane = __builtin_ctz(lanes);
    unsigned pixels = 0;
    for (int p = 0; p < 4; ++p) pixels |= (unsure[p] >> lane & 1u) << p;
    pixels = cover_exactly<2>(image, static_cast<int32_t>(first + lane), static_cast<int>(tops[lane]),
                              static_cast<int>(lefts[lane]), pixels);
    for (int p = 0; p < 4; ++p) covered[p] |= (pixels >> p & 1u) << lane;
  }
}

// Puts what the triangles from FIRST on cover of their blocks into FRAGMENTS, where they are at PLACE. EDGES are
// relative to the triangles' boxes, which begin SKIPPED_ROWS and SKIPPED_COLUMNS before the blocks.
inline void draw_blocks(const Image<float>& image, const WideEdge* edges, float skipped_rows, float skipped_columns,
                        const Blocks& blocks, int64_t first, WideInts place, Fragments& fragments) {
  WideFloats values[4][3];
  for (int k = 0; k < 3; ++k) {
    values[0][k] = edges[k].value + skipped_rows * edges[k].per_row + skipped_columns * edges[k].per_column;
    values[1][k] = values[0][k] + edges[k].per_column;
    values[2][k] = values[0][k] + edges[k].per_row;
    values[3][k] = values[1][k] + edges[k].per_row;
  }
  const WideFloats limit = splat(kWideUncertain), minus_limit = splat(-kWideUncertain), zero = splat(0);
  const Lanes second_row = blocks.wanted & below(zero, blocks.rows);
  const Lanes second_column = blocks.wanted & below(zero, blocks.columns);
  const Lanes inside[4] = {blocks.wanted, second_column, second_row, second_row & second_column};
  Lanes covered[4], unsure[4];
  for (int p = 0; p < 4; ++p) {
    const WideFloats low = least(values[p][0], values[p][1], values[p][2]);
    const WideFloats high = most(values[p][0], values[p][1], values[p][2]);
    const Lanes front = below(high, minus_limit), back = below(limit, low);
    const Lanes outside = below(low, minus_limit) & below(limit, high);
    covered[p] = inside[p] & (image.cull ? front : front | back);
    unsure[p] = inside[p] & ~(front | back | outside);
  }
  if (__builtin_expect((unsure[0] | unsure[1] | unsure[2] | unsure[3]) != 0, 0)) {
    make_sure(image, first, blocks, unsure, covered);
  }
  // Of triangles that are not wanted the numbers mean nothing; being unsigned, they may overflow.
  const uint32_t width = static_cast<uint32_t>(image.width);
  const WideInts pixel = to_ints(blocks.top) * width + to_ints(blocks.left);
  fragments.append(covered[0], pixel, place);
  fragments.append(covered[1], pixel + 1u, place);
  fragments.append(covered[2], pixel + width, place);
  fragments.append(covered[3], pixel + width + 1u, place);
}

// Some triangles' corners: row, column and depth of each.
struct Corners {
  int count;  // of the triangles, at most kWide
  WideFloats of[3][3];
};

inline void read_corners(const Image<float>& image, int64_t first, int64_t end, Corners& read) {
  const int32_t* corners = image.triangles + 3 * first;
  read.count = static_cast<int>(std::min<int64_t>(kWide, end - first));
  if (read.count == kWide && !any_is(corners, image.last_vertex)) {
    for (int k = 0; k < 3; ++k) read_vertices(image.vertices, corners + k, read.of[k]);
  } else {
    for (int k = 0; k < 3; ++k) read_some_vertices(image.vertices, corners + k, read.count, read.of[k]);
  }
}

// Draws the triangles from FIRST on whose CORNERS these are; small ones into FRAGMENTS, where they are at PLACE.
inline void draw_some(const Image<float>& image, int64_t first, const Corners& corners, int place,
                      Fragments& fragments) {
  const int count = corners.count;
  const auto& [row_a, column_a, depth_a] = corners.of[0];
  const auto& [row_b, column_b, depth_b] = corners.of[1];
  const auto& [row_c, column_c, depth_c] = corners.of[2];

  const WideFloats zero = splat(0), largest = splat(kWideBox - 1);
  const WideFloats last_row = splat(static_cast<float>(image.height - 1));
  const WideFloats last_column = splat(static_cast<float>(image.width - 1));
  const WideFloats top = rounded_up(least(row_a, row_b, row_c)), bottom = rounded_down(most(row_a, row_b, row_c));
  const WideFloats left = rounded_up(least(column_a, column_b, column_c));
  const WideFloats right = rounded_down(most(column_a, column_b, column_c));
  const WideFloats rows = bottom - top, columns = right - left;  // less one
  const Lanes asked = count == kWide ? static_cast<Lanes>((uint64_t{1} << kWide) - 1) : (Lanes{1} << count) - 1;
  const Lanes missed = below(bottom, top) | below(right, left) | below(bottom, zero) | below(right, zero) |
                       below(last_row, top) | below(last_column, left);
  const Lanes hit = asked & ~missed;
  if (!hit) return;
  // Infinite or missing coordinates make the sum of all no number, unless they make the box large.
  const WideFloats all = (row_a + row_b + row_c) + (column_a + column_b + column_c);
  const Lanes small = hit & not_above(rows, largest) & not_above(columns, largest) & not_above(zero, top) &
                      not_above(zero, left) & not_above(bottom, last_row) & not_above(right, last_column) &
                      are_numbers(all);
  for (Lanes large = hit & ~small; large; large &= large - 1) {
    draw_large(image, static_cast<int32_t>(first + __builtin_ctz(large)));
  }
  const Lanes usable = small & are_numbers(depth_a * zero + depth_b * zero + depth_c * zero);
  if (!usable) return;

  const WideFloats low = least(depth_a, depth_b, depth_c), high = most(depth_a, depth_b, depth_c);
  const WideFloats slack = splat(kDepthError) * (magnitude(low) + magnitude(high));
  store(fragments.lower + place, low - slack);
  store(fragments.upper + place, high + slack);
  int32_t places[kWide];
  for (int lane = 0; lane < kWide; ++lane) places[lane] = place + lane;
  WideInts at;
  __builtin_memcpy(&at, places, sizeof(at));

  const WideFloats ra = row_a - top, rb = row_b - top, rc = row_c - top;
  const WideFloats ca = column_a - left, cb = column_b - left, cc = column_c - left;
  const WideEdge edges[3] = {{ra, ca, rb, cb}, {rb, cb, rc, cc}, {rc, cc, ra, ca}};
  const Blocks blocks = {top, left, rows, columns, usable};
  const Blocks lower = blocks.below_these(), beside = blocks.beside_these(), last = lower.beside_these();
  draw_blocks(image, edges, 0, 0, blocks, first, at, fragments);
  if (lower.wanted) draw_blocks(image, edges, 2, 0, lower, first, at, fragments);
  if (beside.wanted) draw_blocks(image, edges, 0, 2, beside, first, at, fragments);
  if (last.wanted) draw_blocks(image, edges, 2, 2, last, first, at, fragments);
}

// Draws the triangles FIRST to LAST - 1. The other arguments are draw's, and not needed.
inline void draw_wide(const Image<float>& image, const uint64_t*, const uint8_t*, int64_t first, int64_t last) {
  Fragments fragments;
  for (int64_t start = first; start < last; start += kWideAtOnce) {
    const int64_t end = std::min(start + kWideAtOnce, last);
    fragments.count = 0;
    Corners corners[2];
    read_corners(image, start, end, corners[0]);
    for (int64_t t = start; t < end; t += kWide) {
      const int turn = (t - start) / kWide & 1;
      if (t + kWide < end) read_corners(image, t + kWide, end, corners[!turn]);  // on their way while these are drawn
      draw_some(image, t, corners[turn], static_cast<int>(t - start), fragments);
    }
    offer_all(image, fragments, start);
  }
}
