// Drawing and resolving one image on the CPU. No include guard: zbuffer_cpu.cpp includes this once per instruction set,
// each time in a namespace of its own. Vectors are the compilers' generic ones (GCC, Clang), for any processor.
//
// The meshes of faces have more triangles than the image has pixels, so nearly all the time goes into triangles that
// cover no pixel or one. Three filters decide nearly everything cheaply, and the double-precision arithmetic of
// triangle.h, which defines the result, is asked only where they cannot tell:
//   1. A triangle whose box of pixel centres is empty is dropped, from boxes of the vertices made beforehand.
//   2. Edge functions are evaluated in float32 for four pixels at once. Beyond the bound on their rounding error their
//      signs are certain.
//   3. A pixel remembers between which depths its triangle lies: those of the triangle's corners. Of two triangles
//      whose intervals do not meet the nearer one is known.

typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));
typedef int16_t Shorts __attribute__((vector_size(16)));
typedef uint64_t Halves __attribute__((vector_size(16)));
typedef double Pairs __attribute__((vector_size(16)));  // each the row and the column of a vertex, in float32
typedef double Doubles __attribute__((vector_size(32)));
typedef int64_t Longs __attribute__((vector_size(32)));

constexpr int kLanes = 4;
constexpr int64_t kTrianglesAtOnce = 1024;

// The rounding error of an edge function in float32 stays below 2^-19 (m + 1)^2 where m is the largest magnitude of a
// coordinate relative to the box: 32 roundings of numbers of at most (m + 1)^2, each off by 2^-24 of itself.
constexpr float kEdgeError = 1.0f / (1 << 18);
constexpr float kSmallUncertain = kEdgeError * 9;  // in a block of 2 x 2 pixels
constexpr float kLargestExtent = 1e18f;            // from this m on products may overflow, and no sign is certain
// Depths rounded on the way stay within this share of the largest magnitude around the depths of the corners.
constexpr float kDepthError = 1.0f / (1 << 20);

// Of a vector's lanes, or of numbers.
template <typename Value>
inline Value smaller(Value a, Value b) { return a < b ? a : b; }
template <typename Value>
inline Value larger(Value a, Value b) { return a > b ? a : b; }

inline Floats magnitude(Floats value) { return (Floats)((Ints)value & INT32_MAX); }
inline Doubles magnitude(Doubles value) { return (Doubles)((Longs)value & INT64_MAX); }

// The sign bits of the lanes, lane 0 lowest.
inline unsigned signs(Ints lanes) {
#if defined(__SSE2__)
  return static_cast<unsigned>(__builtin_ia32_movmskps((Floats)lanes));
#else
  unsigned bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<unsigned>(lanes[i] & 1) << i;
  return bits;
#endif
}

// Sets PIXEL's depth exactly, where only an interval is known.
template <typename Scalar>
inline void settle(const Image<Scalar>& image, int row, int column, Pixel& pixel) {
  if (pixel.lower == pixel.upper || pixel.index < 0) return;
  zbuffer::Triangle triangle;
  double weights[3];
  const int32_t* corners = image.triangles + 3 * static_cast<int64_t>(pixel.index);
  zbuffer::set_up(image.vertices, corners, image.height, image.width, false, triangle);
  zbuffer::covers(triangle, row, column, weights);
  pixel.lower = pixel.upper = static_cast<float>(zbuffer::interpolated_depth(triangle, weights));
}

template <typename Scalar>
__attribute__((noinline)) void compare_exactly(const Image<Scalar>& image, int row, int column, Pixel candidate,
                                               Pixel& pixel) {
  settle(image, row, column, candidate);
  settle(image, row, column, pixel);
  const bool nearer = candidate.lower > pixel.lower;
  if (pixel.index < 0 || nearer || (candidate.lower == pixel.lower && candidate.index < pixel.index)) pixel = candidate;
}

// Gives PIXEL to CANDIDATE, which covers it, if it is nearer.
template <typename Scalar>
inline void offer(const Image<Scalar>& image, int row, int column, const Pixel& candidate, Pixel& pixel) {
  if (candidate.upper < pixel.lower) return;
  if (candidate.lower > pixel.upper) {
    pixel = candidate;
  } else {
    compare_exactly(image, row, column, candidate, pixel);
  }
}

// Which of the pixels of a block (bits) the triangle covers, by the arithmetic that defines it.
template <int kColumns, typename Scalar>
__attribute__((noinline)) unsigned cover_exactly(const Image<Scalar>& image, int32_t index, int row, int column,
                                                 unsigned asked) {
  zbuffer::Triangle triangle;
  double weights[3];
  const int32_t* corners = image.triangles + 3 * static_cast<int64_t>(index);
  if (!zbuffer::set_up(image.vertices, corners, image.height, image.width, image.cull, triangle)) return 0;
  unsigned covered = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(asked >> lane & 1)) continue;
    const bool covers = zbuffer::covers(triangle, row + lane / kColumns, column + lane % kColumns, weights);
    covered |= static_cast<unsigned>(covers) << lane;
  }
  return covered;
}

// What a pixel remembers of a triangle whose corners have the depths A, B and C.
template <typename Scalar>
inline Pixel candidate_pixel(Scalar a, Scalar b, Scalar c, int32_t index) {
  const float low = static_cast<float>(smaller(smaller(a, b), c)), high = static_cast<float>(larger(larger(a, b), c));
  const float slack = kDepthError * (std::fabs(low) + std::fabs(high));
  return {low - slack, high + slack, index};
}

// A triangle's edge functions constant + per_row * row + per_column * column, relative to the corner of its box.
struct Edges {
  float constant[4], per_row[4], per_column[4];
  float uncertain;  // values of at most this magnitude may have the wrong sign
};

// Which of four pixels of a row the triangle covers (bits). (ROW, COLUMN) is the first one, relative to the box; VALID
// are those in the box.
inline void cover(const Edges& edges, bool cull, float row, float column, unsigned valid, unsigned& covered,
                  unsigned& unsure) {
  const Floats columns = Floats{0, 1, 2, 3} + column;
  Floats value[3];
  for (int i = 0; i < 3; ++i) value[i] = edges.constant[i] + edges.per_row[i] * row + edges.per_column[i] * columns;
  const Floats least = smaller(smaller(value[0], value[1]), value[2]);
  const Floats most = larger(larger(value[0], value[1]), value[2]);
  const Ints front = most < -edges.uncertain, back = least > edges.uncertain;
  const Ints outside = (least < -edges.uncertain) & (most > edges.uncertain);
  covered = signs(cull ? front : (front | back)) & valid;
  unsure = valid & ~signs(front | back | outside);
}

// Draws a triangle of any size whose pixels lie in a box.
template <typename Scalar>
void draw_triangle(const Image<Scalar>& image, int32_t index, int first_row, int first_column, int last_row,
                   int last_column) {
  const int32_t* corners = image.triangles + 3 * static_cast<int64_t>(index);
  const Scalar* a = image.vertices + 3 * static_cast<int64_t>(corners[0]);
  const Scalar* b = image.vertices + 3 * static_cast<int64_t>(corners[1]);
  const Scalar* c = image.vertices + 3 * static_cast<int64_t>(corners[2]);
  const Scalar row = static_cast<Scalar>(first_row), column = static_cast<Scalar>(first_column);
  const Floats rows = {static_cast<float>(a[0] - row), static_cast<float>(b[0] - row), static_cast<float>(c[0] - row)};
  const Floats columns = {static_cast<float>(a[1] - column), static_cast<float>(b[1] - column),
                           static_cast<float>(c[1] - column)};
  const Floats next_rows = {rows[1], rows[2], rows[0]}, next_columns = {columns[1], columns[2], columns[0]};
  const Floats per_row = next_columns - columns, per_column = rows - next_rows;
  const Floats constant = next_rows * columns - next_columns * rows;
  Edges edges;
  __builtin_memcpy(edges.constant, &constant, sizeof(constant));
  __builtin_memcpy(edges.per_row, &per_row, sizeof(per_row));
  __builtin_memcpy(edges.per_column, &per_column, sizeof(per_column));
  float extent = 1;
  for (int i = 0; i < 3; ++i) extent = std::max({extent, std::fabs(rows[i]), std::fabs(columns[i])});
  edges.uncertain = extent < kLargestExtent ? kEdgeError * (extent + 1) * (extent + 1) : INFINITY;

  const Pixel candidate = candidate_pixel(a[2], b[2], c[2], index);
  for (int i = first_row; i <= last_row; ++i) {
    Pixel* pixels = image.pixels + static_cast<int64_t>(i) * image.width;
    for (int j = first_column; j <= last_column; j += kLanes) {
      const unsigned valid = j + kLanes - 1 <= last_column ? 15u : (1u << (last_column - j + 1)) - 1;
      unsigned covered, unsure;
      cover(edges, image.cull, static_cast<float>(i - first_row), static_cast<float>(j - first_column), valid, covered,
            unsure);
      if (__builtin_expect(unsure != 0, 0)) covered |= cover_exactly<kLanes>(image, index, i, j, unsure);
      for (; covered; covered &= covered - 1) {
        const int column = j + __builtin_ctz(covered);
        offer(image, i, column, candidate, pixels[column]);
      }
    }
  }
}

// A triangle whose pixels lie in a block of 2 x 2, away from the image's border: BOX as from vertex_boxes.
struct Small {
  uint64_t box;
  int32_t index;
  uint32_t extent;  // rows - 1 in the lower half, columns - 1 in the upper half
};

// For each set of pixels of a 2 x 2 block their offsets in the image, the first ones first, and their number.
inline void fill_offsets(int width, Ints* offsets, int32_t* sizes) {
  for (int set = 0; set < 16; ++set) {
    offsets[set] = Ints{};
    sizes[set] = 0;
    for (int lane = 0; lane < 4; ++lane) {
      if (set >> lane & 1) offsets[set][sizes[set]++] = lane / 2 * width + lane % 2;
    }
  }
}

// Drops the triangles with a vertex that is not finite; returns how many are left.
template <typename Scalar>
int without_unusable(const Image<Scalar>& image, const uint8_t* unusable, Small* triangles, int count) {
  int kept = 0;
  for (int i = 0; i < count; ++i) {
    const int32_t* corners = image.triangles + 3 * static_cast<int64_t>(triangles[i].index);
    triangles[kept] = triangles[i];
    kept += !(unusable[corners[0]] | unusable[corners[1]] | unusable[corners[2]]);
  }
  return kept;
}

// Row and column of two vertices, less those of a box's corner; subtracted before anything is rounded to float32.
inline Floats relative(const float* a, const float* b, float row, float column) {
  double first, second;
  __builtin_memcpy(&first, a, sizeof(first));
  __builtin_memcpy(&second, b, sizeof(second));
  return (Floats)Pairs{first, second} - Floats{row, column, row, column};
}

inline Floats relative(const double* a, const double* b, float row, float column) {
  return Floats{static_cast<float>(a[0] - row), static_cast<float>(a[1] - column), static_cast<float>(b[0] - row),
                static_cast<float>(b[1] - column)};
}

// Draws COUNT small triangles.
template <typename Scalar>
void draw_small(const Image<Scalar>& image, const Small* small, int count) {
  Pixel candidates[kTrianglesAtOnce];
  int32_t pixel[4 * kTrianglesAtOnce + 3], source[4 * kTrianglesAtOnce + 3];  // the covered pixels, and by what
  int fragments = 0;
  Ints offsets[16];  // of the pixels in a set of four, the first ones first
  int32_t sizes[16];
  fill_offsets(image.width, offsets, sizes);
  const unsigned valid[4] = {1, 5, 3, 15};
  for (int i = 0; i < count; ++i) {
    const int32_t* corners = image.triangles + 3 * static_cast<int64_t>(small[i].index);
    const Scalar* a = image.vertices + 3 * static_cast<int64_t>(corners[0]);
    const Scalar* b = image.vertices + 3 * static_cast<int64_t>(corners[1]);
    const Scalar* c = image.vertices + 3 * static_cast<int64_t>(corners[2]);
    int16_t sides[4];
    __builtin_memcpy(sides, &small[i].box, sizeof(sides));
    const float row = sides[0], column = sides[1];
    const Floats first = relative(a, b, row, column), last = relative(c, c, row, column);
    const Floats rows = ZBUFFER_SHUFFLE(first, last, 0, 2, 4, 4);
    const Floats columns = ZBUFFER_SHUFFLE(first, last, 1, 3, 5, 5);
    const Floats next_rows = ZBUFFER_SHUFFLE(rows, rows, 1, 2, 0, 0);
    const Floats next_columns = ZBUFFER_SHUFFLE(columns, columns, 1, 2, 0, 0);
    const Floats per_row = next_columns - columns, per_column = rows - next_rows;
    // The three edge functions at the block's four pixels, then the four pixels' values of each edge function.
    const Floats p0 = next_rows * columns - next_columns * rows, p1 = p0 + per_column;
    const Floats p2 = p0 + per_row, p3 = p1 + per_row;
    const Floats low01 = ZBUFFER_SHUFFLE(p0, p1, 0, 4, 1, 5);
    const Floats low23 = ZBUFFER_SHUFFLE(p2, p3, 0, 4, 1, 5);
    const Floats high01 = ZBUFFER_SHUFFLE(p0, p1, 2, 6, 3, 7);
    const Floats high23 = ZBUFFER_SHUFFLE(p2, p3, 2, 6, 3, 7);
    const Floats e0 = ZBUFFER_SHUFFLE(low01, low23, 0, 1, 4, 5);
    const Floats e1 = ZBUFFER_SHUFFLE(low01, low23, 2, 3, 6, 7);
    const Floats e2 = ZBUFFER_SHUFFLE(high01, high23, 0, 1, 4, 5);
    const Floats least = smaller(smaller(e0, e1), e2), most = larger(larger(e0, e1), e2);
    const Ints front = most < -kSmallUncertain;
    const Ints back = least > kSmallUncertain, outside = (least < -kSmallUncertain) & (most > kSmallUncertain);
    const unsigned inside = valid[(small[i].extent | small[i].extent >> 15) & 3];
    unsigned covered = signs(image.cull ? front : (front | back)) & inside;
    const unsigned unsure = inside & ~signs(front | back | outside);
    if (__builtin_expect(unsure != 0, 0)) {
      covered |= cover_exactly<2>(image, small[i].index, sides[0], sides[1], unsure);
    }
    candidates[i] = candidate_pixel(a[2], b[2], c[2], small[i].index);
    const Ints at = offsets[covered] + (sides[0] * image.width + sides[1]), from = Ints{} + i;
    __builtin_memcpy(pixel + fragments, &at, sizeof(at));  // the set's first pixels; what follows is overwritten
    __builtin_memcpy(source + fragments, &from, sizeof(from));
    fragments += sizes[covered];
  }
  for (int i = 0; i < fragments; ++i) {
    const Pixel& candidate = candidates[source[i]];
    Pixel& seen = image.pixels[pixel[i]];
    if (candidate.upper < seen.lower) continue;
    if (__builtin_expect(candidate.lower > seen.upper, 1)) {
      seen = candidate;
    } else {
      compare_exactly(image, pixel[i] / image.width, pixel[i] % image.width, candidate, seen);
    }
  }
}

// Draws the triangles FIRST to LAST - 1. BOXES are from vertex_boxes; UNUSABLE, unless null, says which vertices are
// not finite.
template <typename Scalar>
void draw(const Image<Scalar>& image, const uint64_t* boxes, const uint8_t* unusable, int64_t first, int64_t last) {
  Small small[kTrianglesAtOnce + 1], other[kTrianglesAtOnce + 1];
  // A small triangle's box begins after the first row and column and ends before the last ones: it is not clipped.
  const int16_t row_limit = static_cast<int16_t>(2 - image.height);
  const int16_t column_limit = static_cast<int16_t>(2 - image.width);
  const Shorts border = {1, 1, row_limit, column_limit, 1, 1, row_limit, column_limit};
  const Shorts size_lanes = {-1, -1, 0, 0, -1, -1, 0, 0}, too_much = size_lanes & static_cast<int16_t>(~1);
  for (int64_t start = first; start < last; start += kTrianglesAtOnce) {
    const int64_t end = std::min(start + kTrianglesAtOnce, last);
    int smalls = 0, others = 0;
    for (int64_t t = start; t < end; t += 2) {
      const int64_t second = std::min(t + 1, end - 1);
      const int32_t *a = image.triangles + 3 * t, *b = image.triangles + 3 * second;
      Shorts joined = (Shorts)Halves{boxes[a[0]], boxes[b[0]]};
      for (int k = 1; k < 3; ++k) joined = smaller(joined, (Shorts)Halves{boxes[a[k]], boxes[b[k]]});
      // Rows and columns less one in the lower half of each: negative if no pixel centre lies between.
      const Shorts extent = -(joined + (Shorts)((Halves)joined >> 32));
      const Halves rest = Halves{static_cast<uint64_t>(t), static_cast<uint64_t>(second)} | (Halves)extent << 32;
      const Halves entries[2] = {{((Halves)joined)[0], rest[0]}, {((Halves)joined)[1], rest[1]}};
      const unsigned some = signs((Ints)((extent < 0) & size_lanes) == 0);
      const unsigned fits = signs((Ints)((extent & too_much) | (joined < border)) == 0);
      const unsigned small0 = fits & fits >> 1 & 1, small1 = fits >> 2 & fits >> 3 & (second > t);
      __builtin_memcpy(small + smalls, entries, sizeof(Small));
      __builtin_memcpy(other + others, entries, sizeof(Small));
      smalls += small0;
      others += some & ~small0 & 1;
      __builtin_memcpy(small + smalls, entries + 1, sizeof(Small));
      __builtin_memcpy(other + others, entries + 1, sizeof(Small));
      smalls += small1;
      others += some >> 2 & ~small1 & (second > t);
    }
    if (unusable) smalls = without_unusable(image, unusable, small, smalls);
    if (unusable) others = without_unusable(image, unusable, other, others);
    draw_small(image, small, smalls);
    for (int i = 0; i < others; ++i) {
      int16_t sides[4];
      __builtin_memcpy(sides, &other[i].box, sizeof(sides));
      draw_triangle(image, other[i].index, sides[0], sides[1], -sides[2], -sides[3]);
    }
  }
}

// The largest of COUNT indices, of which negative ones count as huge.
inline uint32_t largest_index(const int32_t* indices, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, static_cast<uint32_t>(indices[i]));
  return largest;
}

typedef int16_t FourShorts __attribute__((vector_size(8)));

inline uint64_t narrow(Ints values) {
  const FourShorts shorts = __builtin_convertvector(values, FourShorts);
  uint64_t packed;
  __builtin_memcpy(&packed, &shorts, sizeof(packed));
  return packed;
}

// Fills BOXES for vertices: first row and column of pixel centres not before the vertex, and the negated last row and
// column not after it, which is the first one not before its mirror image. Returns whether all vertices are finite.
template <typename Scalar>
bool vertex_boxes(const Scalar* vertices, int64_t count, int height, int width, uint64_t* boxes) {
  const Scalar largest = static_cast<Scalar>(zbuffer::kLargest);
  int wrong = 0;
  for (int64_t i = 0; i < 3 * count; ++i) wrong |= !(std::fabs(vertices[i]) <= largest);
  const float h = static_cast<float>(height), w = static_cast<float>(width);
  const Floats lowest = {0, 0, 1 - h, 1 - w}, highest = {h, w, 1, 1};
  const Ints mirrored = {0, 0, INT32_MIN, INT32_MIN};
  for (int64_t v = 0; v < count; ++v) {
    // Rounding a double to float32 first can only enlarge a box.
    const Floats position = relative(vertices + 3 * v, vertices + 3 * v, 0, 0);
    const Floats kept = larger(smaller((Floats)((Ints)position ^ mirrored), highest), lowest);
    const Ints whole = __builtin_convertvector(kept, Ints);  // towards zero
    const Ints above = whole - (kept > __builtin_convertvector(whole, Floats));
    boxes[v] = narrow(above);
  }
  return !wrong;
}

// Edge functions as zbuffer::edge; CERTAIN loses the lanes whose sign rounding may have changed.
inline Doubles edge(Doubles ar, Doubles ac, Doubles br, Doubles bc, Doubles pr, Doubles pc, Longs& certain) {
  const Doubles left = (bc - ac) * (pr - ar), right = (br - ar) * (pc - ac);
  const Doubles value = left - right;
  certain &= magnitude(value) > zbuffer::kUncertain * (magnitude(left) + magnitude(right));
  return value;
}

// One coordinate of four vertices.
template <typename Scalar>
inline Doubles gathered(const Scalar* const* vertices, int axis) {
  typedef Scalar Four __attribute__((vector_size(kLanes * sizeof(Scalar))));
  const Four values = {vertices[0][axis], vertices[1][axis], vertices[2][axis], vertices[3][axis]};
  return __builtin_convertvector(values, Doubles);
}

// Writes what four pixels of a row show that a triangle covers: COLUMNS and the triangles' INDEX.
template <typename Scalar>
inline void resolve_four(const Image<Scalar>& image, int row, const int* columns, const int32_t* index,
                         int64_t* out_index, Scalar* out_depth, Scalar* out_barycentrics) {
  const Scalar* corner[3][kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const int32_t* corners = image.triangles + 3 * static_cast<int64_t>(index[i]);
    for (int k = 0; k < 3; ++k) corner[k][i] = image.vertices + 3 * static_cast<int64_t>(corners[k]);
  }
  Doubles rows[3], cols[3], depths[3], weights[3];
  for (int k = 0; k < 3; ++k) {
    rows[k] = gathered(corner[k], 0);
    cols[k] = gathered(corner[k], 1);
    depths[k] = gathered(corner[k], 2);
  }
  const Doubles pc = __builtin_convertvector(Ints{columns[0], columns[1], columns[2], columns[3]}, Doubles);
  const Doubles pr = Doubles{} + static_cast<double>(row);
  Longs certain = ~Longs{};
  for (int k = 0; k < 3; ++k) {
    const int from = (k + 1) % 3, to = (k + 2) % 3;
    // All three have the triangle's sign, so the magnitude is the weight.
    weights[k] = magnitude(edge(rows[from], cols[from], rows[to], cols[to], pr, pc, certain));
  }
  const Doubles sum = weights[0] + weights[1] + weights[2];
  const Doubles depth = (weights[0] * depths[0] + weights[1] * depths[1] + weights[2] * depths[2]) / sum;
  for (int k = 0; k < 3; ++k) weights[k] = weights[k] / sum;
  typedef Scalar Four __attribute__((vector_size(kLanes * sizeof(Scalar))));
  const Four rounded = __builtin_convertvector(depth, Four);
  Four shares[3];
  for (int k = 0; k < 3; ++k) shares[k] = __builtin_convertvector(weights[k], Four);
  for (int i = 0; i < kLanes; ++i) {
    const int64_t pixel = columns[i];
    if (__builtin_expect(certain[i] == 0, 0)) {
      zbuffer::resolve(image.vertices, image.triangles, image.height, image.width, zbuffer::pack(0, index[i]), row,
                       columns[i], out_index + pixel, out_depth + pixel, out_barycentrics + 3 * pixel);
      continue;
    }
    out_index[pixel] = index[i];
    out_depth[pixel] = rounded[i];
    for (int k = 0; k < 3; ++k) out_barycentrics[3 * pixel + k] = shares[k][i];
  }
}

// Writes what the pixels of a row from FIRST on show: OUT_INDEX and so on are the row's.
template <typename Scalar>
void resolve_rest(const Image<Scalar>& image, int row, int first, int64_t* out_index, Scalar* out_depth,
                  Scalar* out_barycentrics) {
  const Pixel* pixels = image.pixels + static_cast<int64_t>(row) * image.width;
  int columns[kLanes];
  int32_t index[kLanes];
  int waiting = 0;
  for (int column = first; column < image.width; ++column) {
    if (pixels[column].index < 0) {
      out_index[column] = -1;
      out_depth[column] = static_cast<Scalar>(-INFINITY);
      for (int k = 0; k < 3; ++k) out_barycentrics[3 * column + k] = 0;
      continue;
    }
    columns[waiting] = column;
    index[waiting++] = pixels[column].index;
    if (waiting == kLanes) {
      resolve_four(image, row, columns, index, out_index, out_depth, out_barycentrics);
      waiting = 0;
    }
  }
  if (waiting == 0) return;
  for (int i = waiting; i < kLanes; ++i) columns[i] = columns[0], index[i] = index[0];  // written twice, the same
  resolve_four(image, row, columns, index, out_index, out_depth, out_barycentrics);
}

// The same of the whole row.
template <typename Scalar>
void resolve_row(const Image<Scalar>& image, int row, int64_t* out_index, Scalar* out_depth, Scalar* out_barycentrics) {
  resolve_rest(image, row, 0, out_index, out_depth, out_barycentrics);
}

// Takes over what another slice of the triangles shows where it is nearer.
template <typename Scalar>
void merge_row(const Image<Scalar>& image, int row, const Pixel* other) {
  Pixel* pixels = image.pixels + static_cast<int64_t>(row) * image.width;
  for (int column = 0; column < image.width; ++column) {
    if (other[column].index >= 0) offer(image, row, column, other[column], pixels[column]);
  }
}
