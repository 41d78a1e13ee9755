// The rasterizer on the CPU: a plain C interface (see zbuffer/backends.py), neither Python nor PyTorch needed to build.
//
// Work is split into slices of an item's triangles, each with a key image of its own; the pixels' keys are then the
// maximum over the slices. A maximum does not depend on the order or the number of slices, so neither does the result.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <thread>
#include <vector>

#include "triangle.h"

namespace {

constexpr int64_t kSuccess = -1;
constexpr int64_t kFailure = -2;
constexpr int64_t kSmallestSlice = 4096;  // triangles; below this a further thread costs more than it saves
constexpr int64_t kRowsPerTask = 16;

template <typename Scalar>
struct Job {
  const Scalar* vertices;    // (items, vertex_count, 3)
  const int32_t* triangles;  // (triangle_count, 3)
  int64_t items, vertex_count, triangle_count;
  int height, width;
  bool cull;
  int64_t* index;            // (items, height, width)
  Scalar* depth;             // (items, height, width)
  Scalar* barycentrics;      // (items, height, width, 3)
};

// Runs TASK(0) ... TASK(COUNT - 1) on up to THREADS threads, the calling one included.
template <typename Task>
void run_tasks(int64_t count, int64_t threads, const Task& task) {
  std::atomic<int64_t> next(0);
  const auto worker = [&] {
    for (int64_t i = next++; i < count; i = next++) task(i);
  };
  std::vector<std::thread> others;
  try {
    for (int64_t i = 1; i < std::min(threads, count); ++i) others.emplace_back(worker);
  } catch (const std::exception&) {
    // No further thread to be had: the ones that started do the work.
  }
  worker();
  for (auto& other : others) other.join();
}

template <typename Scalar>
void draw_slice(const Job<Scalar>& job, int64_t item, int64_t first, int64_t last, uint64_t* keys) {
  const Scalar* vertices = job.vertices + item * job.vertex_count * 3;
  zbuffer::Triangle triangle;
  double weights[3];
  for (int64_t t = first; t < last; ++t) {
    if (!zbuffer::set_up(vertices, job.triangles + 3 * t, job.height, job.width, job.cull, triangle)) continue;
    for (int row = triangle.first_row; row <= triangle.last_row; ++row) {
      uint64_t* key_row = keys + static_cast<int64_t>(row) * job.width;
      for (int column = triangle.first_column; column <= triangle.last_column; ++column) {
        if (!zbuffer::covers(triangle, row, column, weights)) continue;
        const double depth = zbuffer::interpolated_depth(triangle, weights);
        key_row[column] = std::max(key_row[column], zbuffer::pack(depth, static_cast<int32_t>(t)));
      }
    }
  }
}

// KEYS are SLICES key images of ITEM, one after the other.
template <typename Scalar>
void resolve_rows(const Job<Scalar>& job, int64_t item, int first_row, int last_row, int64_t slices,
                  const uint64_t* keys) {
  const Scalar* vertices = job.vertices + item * job.vertex_count * 3;
  const int64_t pixels = static_cast<int64_t>(job.height) * job.width;
  for (int row = first_row; row < last_row; ++row) {
    for (int column = 0; column < job.width; ++column) {
      const int64_t pixel = static_cast<int64_t>(row) * job.width + column;
      uint64_t key = keys[pixel];
      for (int64_t slice = 1; slice < slices; ++slice) key = std::max(key, keys[slice * pixels + pixel]);
      const int64_t out = item * pixels + pixel;
      zbuffer::resolve(vertices, job.triangles, job.height, job.width, key, row, column, job.index + out,
                       job.depth + out, job.barycentrics + 3 * out);
    }
  }
}

// Position in `triangles` of the first index that is no vertex, or kSuccess.
template <typename Scalar>
int64_t first_bad_index(const Job<Scalar>& job) {
  for (int64_t i = 0; i < 3 * job.triangle_count; ++i) {
    if (job.triangles[i] < 0 || job.triangles[i] >= job.vertex_count) return i;
  }
  return kSuccess;
}

template <typename Scalar>
int64_t rasterize(const Job<Scalar>& job, int64_t threads) {
  const int64_t bad = first_bad_index(job);
  const int64_t pixels = static_cast<int64_t>(job.height) * job.width;
  if (bad != kSuccess || job.items == 0 || pixels == 0) return bad;
  const int64_t useful = std::max<int64_t>(1, job.triangle_count / kSmallestSlice);
  const int64_t slices = std::min(useful, (threads + job.items - 1) / job.items);
  const std::unique_ptr<uint64_t[]> keys(new uint64_t[job.items * slices * pixels]);
  run_tasks(job.items * slices, threads, [&](int64_t task) {
    const int64_t slice = task % slices;
    uint64_t* image = keys.get() + task * pixels;
    std::fill(image, image + pixels, 0);
    draw_slice(job, task / slices, job.triangle_count * slice / slices, job.triangle_count * (slice + 1) / slices,
               image);
  });
  const int64_t strips = (job.height + kRowsPerTask - 1) / kRowsPerTask;
  run_tasks(job.items * strips, threads, [&](int64_t task) {
    const int64_t item = task / strips;
    const int first = static_cast<int>(task % strips * kRowsPerTask);
    const int last = static_cast<int>(std::min<int64_t>(first + kRowsPerTask, job.height));
    resolve_rows(job, item, first, last, slices, keys.get() + item * slices * pixels);
  });
  return kSuccess;
}

template <typename Scalar>
int64_t guarded(const Scalar* vertices, const int32_t* triangles, int64_t items, int64_t vertex_count,
                int64_t triangle_count, int64_t height, int64_t width, int64_t cull, int64_t threads, int64_t* index,
                Scalar* depth, Scalar* barycentrics) {
  try {
    return rasterize(Job<Scalar>{vertices, triangles, items, vertex_count, triangle_count, static_cast<int>(height),
                                 static_cast<int>(width), cull != 0, index, depth, barycentrics},
                     std::max<int64_t>(threads, 1));
  } catch (const std::exception&) {
    return kFailure;
  }
}

}  // namespace

// Both return -1 when done, -2 when memory ran out, else the position in `triangles` of an index that is no vertex.
extern "C" int64_t zbuffer_rasterize_float(const float* vertices, const int32_t* triangles, int64_t items,
                                           int64_t vertex_count, int64_t triangle_count, int64_t height,
                                           int64_t width, int64_t cull, int64_t threads, int64_t* index,
                                           float* depth, float* barycentrics) {
  return guarded(vertices, triangles, items, vertex_count, triangle_count, height, width, cull, threads, index, depth,
                 barycentrics);
}

extern "C" int64_t zbuffer_rasterize_double(const double* vertices, const int32_t* triangles, int64_t items,
                                            int64_t vertex_count, int64_t triangle_count, int64_t height,
                                            int64_t width, int64_t cull, int64_t threads, int64_t* index,
                                            double* depth, double* barycentrics) {
  return guarded(vertices, triangles, items, vertex_count, triangle_count, height, width, cull, threads, index, depth,
                 barycentrics);
}
