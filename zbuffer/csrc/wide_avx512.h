// Sixteen floats at once for wide_kernel.h, on processors with AVX-512; and resolving eight pixels at once.

constexpr int kWide = 16;

typedef __m512 WideFloats;
typedef uint32_t WideInts __attribute__((vector_size(64)));
typedef double WideDoubles __attribute__((vector_size(64)));
typedef uint32_t Lanes;  // a bit for each lane, lane 0 lowest

inline WideFloats splat(float value) { return _mm512_set1_ps(value); }
inline WideFloats load(const float* values) { return _mm512_loadu_ps(values); }
inline void store(float* to, WideFloats values) { _mm512_storeu_ps(to, values); }
inline void store(int32_t* to, WideInts values) { _mm512_storeu_si512(to, (__m512i)values); }
inline WideInts to_ints(WideFloats whole) { return (WideInts)_mm512_cvttps_epi32(whole); }
inline WideFloats rounded_up(WideFloats a) { return _mm512_ceil_ps(a); }
inline WideFloats rounded_down(WideFloats a) { return _mm512_floor_ps(a); }
inline WideFloats magnitude(WideFloats a) { return _mm512_abs_ps(a); }
inline WideFloats least(WideFloats a, WideFloats b, WideFloats c) { return _mm512_min_ps(_mm512_min_ps(a, b), c); }
inline WideFloats most(WideFloats a, WideFloats b, WideFloats c) { return _mm512_max_ps(_mm512_max_ps(a, b), c); }
inline Lanes below(WideFloats a, WideFloats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline Lanes not_above(WideFloats a, WideFloats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
inline Lanes are_numbers(WideFloats a) { return _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q); }

// The chosen lanes first.
inline WideInts compressed(Lanes chosen, WideInts values) {
  return (WideInts)_mm512_maskz_compress_epi32(static_cast<__mmask16>(chosen), (__m512i)values);
}

// Whether one of 3 * kWide numbers is WANTED.
inline bool any_is(const int32_t* numbers, int32_t wanted) {
  Lanes found = 0;
  for (int i = 0; i < 3 * kWide; i += kWide) {
    found |= _mm512_cmpeq_epi32_mask(_mm512_loadu_si512(numbers + i), _mm512_set1_epi32(wanted));
  }
  return found != 0;
}

// Row, column and depth of the vertices CORNERS[0], CORNERS[3] ..., each read with the number after it.
inline void read_vertices(const float* vertices, const int32_t* corners, WideFloats* read) {
  const auto one = [&](int lane) { return _mm_loadu_ps(vertices + int64_t{3} * corners[3 * lane]); };
  const auto four = [&](int lane) {
    const __m512 two = _mm512_insertf32x4(_mm512_castps128_ps512(one(lane)), one(lane + 4), 1);
    return _mm512_insertf32x4(_mm512_insertf32x4(two, one(lane + 8), 2), one(lane + 12), 3);
  };
  const __m512 a = four(0), b = four(1), c = four(2), d = four(3);
  const __m512d low_ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
  const __m512d low_cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
  const __m512d high_ab = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
  const __m512d high_cd = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
  read[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low_ab, low_cd));
  read[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low_ab, low_cd));
  read[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high_ab, high_cd));
}

constexpr int64_t kWideLimit = int64_t{1} << 29;  // vertices or triangles below which offsets of gathers fit

// Eight pixels of a row, which of them show a triangle, and its corners.
struct EightPixels {
  __mmask8 seen;
  __m256i index;  // -1: nothing
  __m256 row[3], column[3], depth[3];
};

inline EightPixels read_eight(const Image<float>& image, const Pixel* pixels) {
  static_assert(sizeof(Pixel) == 12 && offsetof(Pixel, index) == 8, "the gather below counts on it");
  const __m256 zero = _mm256_setzero_ps();
  EightPixels read;
  read.index = _mm256_i32gather_epi32(&pixels->index, _mm256_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21), 4);
  read.seen = _mm256_cmpgt_epi32_mask(read.index, _mm256_set1_epi32(-1));
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
  const __mmask8 seen = read.seen;
  _mm512_storeu_si512(out_index + column, _mm512_cvtepi32_epi64(read.index));
  const __m256 far = _mm256_set1_ps(-INFINITY);
  float* shares = out_barycentrics + 3 * column;
  if (!seen) {
    _mm256_storeu_ps(out_depth + column, far);
    _mm512_storeu_ps(shares, _mm512_setzero_ps());
    _mm256_storeu_ps(shares + 16, _mm256_setzero_ps());
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
  _mm256_storeu_ps(out_depth + column, _mm256_mask_blend_ps(seen, far, _mm512_cvtpd_ps((__m512d)depth)));
  // Eight triples from three vectors of eight: of the first two joined, then with the third one.
  const __m256 a = _mm512_maskz_cvtpd_ps(seen, (__m512d)(weights[0] / sum));
  const __m256 b = _mm512_maskz_cvtpd_ps(seen, (__m512d)(weights[1] / sum));
  const __m256 c = _mm512_maskz_cvtpd_ps(seen, (__m512d)(weights[2] / sum));
  const __m512 ab = _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1), cc = _mm512_castps256_ps512(c);
  const __m512i head = _mm512_setr_epi32(0, 8, 16, 1, 9, 17, 2, 10, 18, 3, 11, 19, 4, 12, 20, 5);
  const __m512i tail = _mm512_setr_epi32(13, 21, 6, 14, 22, 7, 15, 23, 0, 0, 0, 0, 0, 0, 0, 0);
  _mm512_storeu_ps(shares, _mm512_permutex2var_ps(ab, head, cc));
  _mm256_storeu_ps(shares + 16, _mm512_castps512_ps256(_mm512_permutex2var_ps(ab, tail, cc)));
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
  const int eights = image.width / 8 * 8;
  EightPixels current, next;
  if (eights) current = read_eight(image, pixels);
  for (int column = 0; column < eights; column += 8) {
    if (column + 8 < eights) next = read_eight(image, pixels + column + 8);  // on its way while these are divided
    resolve_eight(image, current, row, column, out_index, out_depth, out_barycentrics);
    current = next;
  }
  resolve_rest(image, row, eights, out_index, out_depth, out_barycentrics);
}
