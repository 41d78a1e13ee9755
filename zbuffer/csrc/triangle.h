// The arithmetic of one triangle: everything that decides which triangle a pixel shows, and with which depth.
//
// The CPU and the CUDA translation unit include this header, and zbuffer/reference.py repeats it in PyTorch, operation
// for operation. All of it is double precision without fused multiply-adds (-ffp-contract=off, --fmad=false; the calls
// of fma below are meant), so the three agree bit for bit.
//
// Positions are (row, column, depth): rows grow downwards, columns to the right, depth towards the camera. Pixel
// (r, c) is the point (r, c): centres at integer coordinates.
#pragma once

#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define ZBUFFER_INLINE __host__ __device__ __forceinline__
#define ZBUFFER_OUT_OF_LINE __host__ __device__ __noinline__ static
#else
#define ZBUFFER_INLINE inline
#define ZBUFFER_OUT_OF_LINE static
#endif

namespace zbuffer {

// Coordinates beyond the largest float32 count as not finite, whatever the type, so no product below overflows.
constexpr double kLargest = 3.4028234663852886e38;

// Shewchuk, "Adaptive Precision Floating-Point Arithmetic and Fast Robust Geometric Predicates" (1997), section 4.3:
// the sign of the determinant is certain when it exceeds (3 + 16e)e, e = 2^-53, times the sum of its two products'
// magnitudes. 2^-51 = 4e is a little more careful.
constexpr double kUncertain = 4.440892098500626e-16;

struct Triangle {
  double row[3], column[3], depth[3];
  double sign;                   // +1 or -1: makes the edge functions positive inside
  int first_row, last_row;       // pixels that may be covered, both ends included
  int first_column, last_column;
};

// Adds TERM to an expansion (a sum of non-overlapping doubles, smallest first) without rounding.
ZBUFFER_INLINE void add_exactly(double* expansion, int& length, double term) {
  for (int i = 0; i < length; ++i) {
    const double sum = term + expansion[i];
    const double virtual_part = sum - term;
    expansion[i] = (term - (sum - virtual_part)) + (expansion[i] - virtual_part);
    term = sum;
  }
  expansion[length++] = term;
}

ZBUFFER_INLINE void add_product_exactly(double* expansion, int& length, double a, double b) {
  const double product = a * b;
  add_exactly(expansion, length, fma(a, b, -product));
  add_exactly(expansion, length, product);
}

// The edge function from its six products, each split into two doubles: its sign is exact, its value rounded.
ZBUFFER_OUT_OF_LINE double exact_edge(double ar, double ac, double br, double bc, double pr, double pc) {
  if ((bc == ac || pr == ar) && (br == ar || pc == ac)) return 0;  // as along a symmetric face's midline
  double expansion[12];
  int length = 0;
  add_product_exactly(expansion, length, bc, pr);
  add_product_exactly(expansion, length, -bc, ar);
  add_product_exactly(expansion, length, -ac, pr);
  add_product_exactly(expansion, length, br, ac);
  add_product_exactly(expansion, length, -br, pc);
  add_product_exactly(expansion, length, ar, pc);
  double value = 0;
  for (int i = 0; i < length; ++i) value += expansion[i];
  return value;
}

// Twice the signed area of (a, b, p); positive if they run clockwise on the screen. The sign is always exact, so two
// triangles that share the edge (a, b) never both claim, nor both refuse, a pixel that is not exactly on it.
ZBUFFER_INLINE double edge(double ar, double ac, double br, double bc, double pr, double pc) {
  const double left = (bc - ac) * (pr - ar);
  const double right = (br - ar) * (pc - ac);
  const double value = left - right;
  if (fabs(value) > kUncertain * (fabs(left) + fabs(right))) return value;
  return exact_edge(ar, ac, br, bc, pr, pc);
}

ZBUFFER_INLINE bool finite(double value) { return fabs(value) <= kLargest; }  // false for NaN

// The integers in [low, high] that lie in [0, size - 1]; false if there are none or a bound is NaN.
ZBUFFER_INLINE bool integers(double low, double high, int size, int& first, int& last) {
  if (!(high >= 0) || !(low <= size - 1)) return false;
  first = low > 0 ? static_cast<int>(low) : 0;
  if (first < low) ++first;
  last = high < size - 1 ? static_cast<int>(high) : size - 1;
  return first <= last;
}

ZBUFFER_INLINE double smallest(double a, double b, double c) {
  const double ab = a < b ? a : b;
  return ab < c ? ab : c;
}

ZBUFFER_INLINE double largest(double a, double b, double c) {
  const double ab = a > b ? a : b;
  return ab > c ? ab : c;
}

// Reads a triangle; CORNERS are three valid vertex indices. False if it covers no pixel of a HEIGHT x WIDTH image:
// outside, between pixel centres, not finite, without area or, with CULL, facing away.
template <typename Scalar>
ZBUFFER_INLINE bool set_up(const Scalar* vertices, const int32_t* corners, int height, int width, bool cull,
                           Triangle& triangle) {
  for (int i = 0; i < 3; ++i) {
    const Scalar* vertex = vertices + 3 * static_cast<int64_t>(corners[i]);
    triangle.row[i] = vertex[0];
    triangle.column[i] = vertex[1];
    triangle.depth[i] = vertex[2];
  }
  const double* row = triangle.row;
  const double* column = triangle.column;
  const double* depth = triangle.depth;
  if (!integers(smallest(row[0], row[1], row[2]), largest(row[0], row[1], row[2]), height, triangle.first_row,
                triangle.last_row) ||
      !integers(smallest(column[0], column[1], column[2]), largest(column[0], column[1], column[2]), width,
                triangle.first_column, triangle.last_column)) {
    return false;
  }
  for (int i = 0; i < 3; ++i) {
    if (!(finite(row[i]) && finite(column[i]) && finite(depth[i]))) return false;
  }
  const double area = edge(row[0], column[0], row[1], column[1], row[2], column[2]);
  triangle.sign = area > 0 ? 1.0 : -1.0;
  // Rows grow downwards, so counter-clockwise as the camera sees it (front-facing) is a negative area.
  return area < 0 || (area > 0 && !cull);
}

// Top-left rule: of the two triangles that share an edge the one to the right of it, or below it if it is horizontal,
// owns the pixels exactly on it. FROM and TO are the edge's corners.
ZBUFFER_INLINE bool owns_edge(const Triangle& triangle, int from, int to) {
  const double rise = triangle.sign * (triangle.row[from] - triangle.row[to]);
  if (rise != 0) return rise > 0;
  return triangle.sign * (triangle.column[to] - triangle.column[from]) > 0;
}

// Whether the triangle covers a pixel; WEIGHTS are then its barycentrics up to a common positive factor.
ZBUFFER_INLINE bool covers(const Triangle& triangle, int pixel_row, int pixel_column, double* weights) {
  for (int i = 0; i < 3; ++i) {
    const int from = i == 2 ? 0 : i + 1;
    const int to = i == 0 ? 2 : i - 1;
    const double weight = triangle.sign * edge(triangle.row[from], triangle.column[from], triangle.row[to],
                                               triangle.column[to], pixel_row, pixel_column);
    if (weight < 0 || (weight == 0 && !owns_edge(triangle, from, to))) return false;
    weights[i] = weight;
  }
  return true;
}

ZBUFFER_INLINE double interpolated_depth(const Triangle& triangle, const double* weights) {
  const double sum = weights[0] + weights[1] + weights[2];
  const double weighted = weights[0] * triangle.depth[0] + weights[1] * triangle.depth[1] +
                          weights[2] * triangle.depth[2];
  return weighted / sum;
}

// One number to maximise per pixel: depth, rounded to float32, in the upper half (its bits reordered so that unsigned
// integers compare as the floats do), and the index in the lower half, inverted so that the lower index wins a tie.
// Zero stands for an empty pixel: no depth and index give it.
ZBUFFER_INLINE uint64_t pack(double depth, int32_t index) {
  union { float number; uint32_t bits; } as;
  as.number = static_cast<float>(depth) + 0.0f;  // adding zero turns -0 into +0, which compare equal
  const uint32_t ordered = (as.bits & 0x80000000u) ? ~as.bits : as.bits | 0x80000000u;
  return (static_cast<uint64_t>(ordered) << 32) | static_cast<uint32_t>(~index);
}

ZBUFFER_INLINE int32_t packed_index(uint64_t key) { return static_cast<int32_t>(~static_cast<uint32_t>(key)); }

// Writes what a pixel shows: triangle index, depth and three barycentrics (-1, -infinity and zeros if empty).
template <typename Scalar>
ZBUFFER_INLINE void resolve(const Scalar* vertices, const int32_t* triangles, int height, int width, uint64_t key,
                            int row, int column, int64_t* index, Scalar* depth, Scalar* barycentrics) {
  Triangle triangle;
  double weights[3];
  const int32_t chosen = packed_index(key);
  if (key == 0 ||
      !set_up(vertices, triangles + 3 * static_cast<int64_t>(chosen), height, width, false, triangle) ||
      !covers(triangle, row, column, weights)) {
    *index = -1;
    *depth = static_cast<Scalar>(-INFINITY);
    barycentrics[0] = barycentrics[1] = barycentrics[2] = 0;
    return;
  }
  const double sum = weights[0] + weights[1] + weights[2];
  *index = chosen;
  *depth = static_cast<Scalar>(interpolated_depth(triangle, weights));
  for (int i = 0; i < 3; ++i) barycentrics[i] = static_cast<Scalar>(weights[i] / sum);
}

}  // namespace zbuffer
