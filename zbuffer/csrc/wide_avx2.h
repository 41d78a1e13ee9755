// Eight floats at once for wide_kernel.h, on processors with AVX2; as wide_avx512.h.

constexpr int kWide = 8;

typedef __m256 WideFloats;
typedef uint32_t WideInts __attribute__((vector_size(32)));
typedef uint32_t Lanes;  // a bit for each lane, lane 0 lowest

inline WideFloats splat(float value) { return _mm256_set1_ps(value); }
inline WideFloats load(const float* values) { return _mm256_loadu_ps(values); }
inline void store(float* to, WideFloats values) { _mm256_storeu_ps(to, values); }
inline void store(int32_t* to, WideInts values) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)values);
}
inline WideInts to_ints(WideFloats whole) { return (WideInts)_mm256_cvttps_epi32(whole); }
inline WideFloats rounded_up(WideFloats a) { return _mm256_ceil_ps(a); }
inline WideFloats rounded_down(WideFloats a) { return _mm256_floor_ps(a); }
inline WideFloats magnitude(WideFloats a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline WideFloats least(WideFloats a, WideFloats b, WideFloats c) { return _mm256_min_ps(_mm256_min_ps(a, b), c); }
inline WideFloats most(WideFloats a, WideFloats b, WideFloats c) { return _mm256_max_ps(_mm256_max_ps(a, b), c); }
inline Lanes lanes_of(__m256 chosen) { return static_cast<Lanes>(_mm256_movemask_ps(chosen)); }
inline Lanes below(WideFloats a, WideFloats b) { return lanes_of(_mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
inline Lanes not_above(WideFloats a, WideFloats b) { return lanes_of(_mm256_cmp_ps(a, b, _CMP_LE_OQ)); }
inline Lanes are_numbers(WideFloats a) { return lanes_of(_mm256_cmp_ps(a, a, _CMP_ORD_Q)); }

// For each set of lanes their numbers, a byte each, the lowest first.
struct LaneLists {
  uint64_t of[256];

  constexpr LaneLists() : of() {
    for (int set = 0; set < 256; ++set) {
      int bits = 0;
      for (int lane = 0; lane < 8; ++lane) {
        if (set >> lane & 1) of[set] |= static_cast<uint64_t>(lane) << bits, bits += 8;
      }
    }
  }
};
constexpr LaneLists kLaneLists;

inline WideInts compressed(Lanes chosen, WideInts values) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kLaneLists.of + chosen));
  return (WideInts)_mm256_permutevar8x32_epi32((__m256i)values, _mm256_cvtepu8_epi32(bytes));
}

inline bool any_is(const int32_t* numbers, int32_t wanted) {
  __m256i found = _mm256_setzero_si256();
  for (int i = 0; i < 3 * kWide; i += kWide) {
    const __m256i some = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(numbers + i));
    found = _mm256_or_si256(found, _mm256_cmpeq_epi32(some, _mm256_set1_epi32(wanted)));
  }
  return !_mm256_testz_si256(found, found);
}

inline void read_vertices(const float* vertices, const int32_t* corners, WideFloats* read) {
  const auto one = [&](int lane) { return _mm_loadu_ps(vertices + int64_t{3} * corners[3 * lane]); };
  const auto two = [&](int lane) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(one(lane)), one(lane + 4), 1);
  };
  const __m256 a = two(0), b = two(1), c = two(2), d = two(3);
  const __m256d low_ab = _mm256_castps_pd(_mm256_unpacklo_ps(a, b));
  const __m256d low_cd = _mm256_castps_pd(_mm256_unpacklo_ps(c, d));
  const __m256d high_ab = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
  const __m256d high_cd = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
  read[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(low_ab, low_cd));
  read[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low_ab, low_cd));
  read[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high_ab, high_cd));
}
