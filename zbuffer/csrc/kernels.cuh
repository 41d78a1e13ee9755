// The CUDA kernels, apart from their launch: tests/cuda_shim runs this file on the CPU.
#pragma once

#include "triangle.h"

namespace zbuffer {

// One thread per (item, triangle): raises the keys of the pixels that the triangle covers. KEYS start as zeros.
// BAD_INDEX starts beyond 3 * TRIANGLE_COUNT and ends as the lowest position in TRIANGLES of an index that is no
// vertex; such triangles are not drawn.
template <typename Scalar>
__global__ void draw(const Scalar* vertices, const int32_t* triangles, int64_t items, int64_t vertex_count,
                     int64_t triangle_count, int height, int width, bool cull, unsigned long long* keys,
                     unsigned long long* bad_index) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (thread >= items * triangle_count) return;
  const int64_t item = thread / triangle_count;
  const int64_t index = thread % triangle_count;
  const int32_t* corners = triangles + 3 * index;
  for (int i = 0; i < 3; ++i) {
    if (corners[i] < 0 || corners[i] >= vertex_count) {
      atomicMin(bad_index, static_cast<unsigned long long>(3 * index + i));
      return;
    }
  }
  Triangle triangle;
  double weights[3];
  if (!set_up(vertices + item * vertex_count * 3, corners, height, width, cull, triangle)) return;
  for (int row = triangle.first_row; row <= triangle.last_row; ++row) {
    for (int column = triangle.first_column; column <= triangle.last_column; ++column) {
      if (!covers(triangle, row, column, weights)) continue;
      const int64_t pixel = (item * height + row) * width + column;
      const uint64_t key = pack(interpolated_depth(triangle, weights), static_cast<int32_t>(index));
      atomicMax(keys + pixel, static_cast<unsigned long long>(key));
    }
  }
}

// One thread per pixel of the batch: writes what its key stands for.
template <typename Scalar>
__global__ void resolve_keys(const Scalar* vertices, const int32_t* triangles, int64_t items, int64_t vertex_count,
                             int height, int width, const unsigned long long* keys, int64_t* index, Scalar* depth,
                             Scalar* barycentrics) {
  const int64_t out = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t pixels = static_cast<int64_t>(height) * width;
  if (out >= items * pixels) return;
  const int64_t pixel = out % pixels;
  resolve(vertices + out / pixels * vertex_count * 3, triangles, height, width, keys[out],
          static_cast<int>(pixel / width), static_cast<int>(pixel % width), index + out, depth + out,
          barycentrics + 3 * out);
}

}  // namespace zbuffer
