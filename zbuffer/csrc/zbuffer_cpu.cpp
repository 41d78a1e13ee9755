// The rasterizer on the CPU: a plain C interface (see zbuffer/backends.py), neither Python nor PyTorch needed to build.
//
// Images of a batch are drawn by different threads. Where there are more threads than images, each image's triangles
// are split into slices with a picture of their own, of which the nearest is taken. What is nearest does not depend on
// the order or the number of slices, so neither does the result.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "triangle.h"

namespace {

#include "pyramid.h"
#include "surface.h"

constexpr int64_t kSuccess = -1;
constexpr int64_t kFailure = -2;
constexpr int64_t kSmallestSlice = 131072;  // triangles; below this a further thread begins too late to be of use
constexpr int64_t kRowsPerTask = 16;
constexpr int kLargestSide = 32000;       // pixels; the kernels' boxes are 16-bit numbers

// What a pixel shows: the triangle, and bounds on its depth there as rounded to float32; equal bounds are that depth.
struct Pixel {
  float lower, upper;
  int32_t index;  // -1: nothing
};

constexpr Pixel kEmpty = {-INFINITY, -INFINITY, -1};

template <typename Scalar>
struct Image {
  const Scalar* vertices;    // of this item
  const int32_t* triangles;
  int32_t last_vertex;
  int height, width;
  bool cull;
  Pixel* pixels;
};

// ZBUFFER_SHUFFLE(a, b, i, ...): the lanes i, ... of the vectors a and b, counted through both.
#if defined(__clang__) || __GNUC__ >= 12
#define ZBUFFER_SHUFFLE __builtin_shufflevector
#else
#define ZBUFFER_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Ints{__VA_ARGS__})
#endif

// The kernel for every processor, and on x86 two others, of which the processor's best is taken.
namespace plain {
#include "cpu_kernel.h"
}
#if defined(__x86_64__) && !defined(ZBUFFER_PLAIN)
#define ZBUFFER_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
namespace avx2 {
#include "cpu_kernel.h"
#include "wide_avx2.h"
#include "wide_kernel.h"
}
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#endif
namespace avx512 {
#include "cpu_kernel.h"
#include "wide_avx512.h"
#include "wide_kernel.h"
}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

// What the kernels offer, see cpu_kernel.h; without `vertex_boxes`, `draw` needs no boxes and finds what is not finite.
template <typename Scalar>
struct Kernel {
  decltype(&plain::largest_index) largest;
  decltype(&plain::vertex_boxes<Scalar>) vertex_boxes;
  decltype(&plain::draw<Scalar>) draw;
  decltype(&plain::merge_row<Scalar>) merge_row;
  decltype(&plain::resolve_row<Scalar>) resolve_row;
};

#ifdef ZBUFFER_X86
bool has_avx512() {
#ifdef ZBUFFER_NO_AVX512
  return false;
#else
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
}

// The kernel in float32; that for AVX-512 resolves meshes of fewer than 2^29 triangles and vertices only.
Kernel<float> best_x86_kernel(const Kernel<float>& plain, int64_t largest) {
  if (has_avx512() && largest < avx512::kWideLimit) {
    return {avx512::largest_index, nullptr, avx512::draw_wide, avx512::merge_row<float>, avx512::resolve_row_wide};
  }
  if (!__builtin_cpu_supports("avx2")) return plain;
  return {avx2::largest_index, nullptr, avx2::draw_wide, avx2::merge_row<float>, avx2::resolve_row<float>};
}

Kernel<double> best_x86_kernel(const Kernel<double>& plain, int64_t) {
  if (!__builtin_cpu_supports("avx2")) return plain;
  return {avx2::largest_index, avx2::vertex_boxes<double>, avx2::draw<double>, avx2::merge_row<double>,
          avx2::resolve_row<double>};
}
#endif

// The best kernel of this processor for meshes of at most LARGEST vertices and triangles.
template <typename Scalar>
Kernel<Scalar> best_kernel([[maybe_unused]] int64_t largest) {
  const Kernel<Scalar> plain = {plain::largest_index, plain::vertex_boxes<Scalar>, plain::draw<Scalar>,
                                plain::merge_row<Scalar>, plain::resolve_row<Scalar>};
#ifdef ZBUFFER_X86
  return best_x86_kernel(plain, largest);
#else
  return plain;
#endif
}

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

  int64_t pixels() const { return static_cast<int64_t>(height) * width; }
  Image<Scalar> image(int64_t item, Pixel* pixels) const {
    return {vertices + item * vertex_count * 3, triangles, static_cast<int32_t>(vertex_count - 1), height, width, cull,
            pixels};
  }
};

// Runs TASK(0) ... TASK(COUNT - 1) on up to THREADS threads, the calling one included. What a task throws (memory may
// run out) is thrown again here, once all threads have ended.
template <typename Task>
void run_tasks(int64_t count, int64_t threads, const Task& task) {
  std::atomic<int64_t> next(0);
  std::mutex failing;
  std::exception_ptr failure;
  const auto worker = [&] {
    try {
      for (int64_t i = next++; i < count; i = next++) task(i);
    } catch (...) {
      next = count;
      const std::lock_guard<std::mutex> lock(failing);
      failure = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  try {
    for (int64_t i = 1; i < std::min(threads, count); ++i) others.emplace_back(worker);
  } catch (const std::exception&) {
    // No further thread to be had: the ones that started do the work.
  }
  worker();
  for (auto& other : others) other.join();
  if (failure) std::rethrow_exception(failure);
}

// Position in `triangles` of the first index that is no vertex, or kSuccess.
template <typename Scalar>
int64_t first_bad_index(const Job<Scalar>& job, const Kernel<Scalar>& kernel) {
  const int64_t count = 3 * job.triangle_count;
  if (count == 0) return kSuccess;
  const uint32_t vertices = static_cast<uint32_t>(job.vertex_count);
  if (kernel.largest(job.triangles, count) < vertices) return kSuccess;
  int64_t i = 0;
  while (static_cast<uint32_t>(job.triangles[i]) < vertices) ++i;
  return i;
}

// Memory of one thread, used for one image after the other.
template <typename Scalar>
class Drawer {
 public:
  Drawer(const Job<Scalar>& job, const Kernel<Scalar>& kernel)
      : job_(job), kernel_(kernel), huge_(std::max(job.height, job.width) > kLargestSide) {
    if (!huge_ && kernel.vertex_boxes) boxes_.reset(new uint64_t[job.vertex_count]);
  }

  // Draws the triangles FIRST to LAST - 1 of ITEM into PIXELS, which are emptied first.
  void draw(int64_t item, int64_t first, int64_t last, Pixel* pixels) {
    const Image<Scalar> image = job_.image(item, pixels);
    std::fill(pixels, pixels + job_.pixels(), kEmpty);
    if (huge_) return draw_huge(image, first, last);
    if (!kernel_.vertex_boxes) return kernel_.draw(image, nullptr, nullptr, first, last);
    const bool finite = kernel_.vertex_boxes(image.vertices, job_.vertex_count, job_.height, job_.width, boxes_.get());
    if (!finite) find_unusable(image.vertices);
    kernel_.draw(image, boxes_.get(), finite ? nullptr : unusable_.data(), first, last);
  }

 private:
  void find_unusable(const Scalar* vertices) {
    unusable_.resize(job_.vertex_count);
    for (int64_t v = 0; v < job_.vertex_count; ++v) {
      const Scalar* vertex = vertices + 3 * v;
      unusable_[v] = !(zbuffer::finite(vertex[0]) && zbuffer::finite(vertex[1]) && zbuffer::finite(vertex[2]));
    }
  }

  // Any size of image, by the defining arithmetic alone.
  void draw_huge(const Image<Scalar>& image, int64_t first, int64_t last) {
    zbuffer::Triangle triangle;
    double weights[3];
    for (int64_t t = first; t < last; ++t) {
      if (!zbuffer::set_up(image.vertices, image.triangles + 3 * t, image.height, image.width, image.cull, triangle)) {
        continue;
      }
      for (int row = triangle.first_row; row <= triangle.last_row; ++row) {
        for (int column = triangle.first_column; column <= triangle.last_column; ++column) {
          if (!zbuffer::covers(triangle, row, column, weights)) continue;
          const float depth = static_cast<float>(zbuffer::interpolated_depth(triangle, weights));
          Pixel& pixel = image.pixels[static_cast<int64_t>(row) * image.width + column];
          if (depth > pixel.lower) pixel = {depth, depth, static_cast<int32_t>(t)};  // the lower index came first
        }
      }
    }
  }

  const Job<Scalar>& job_;
  const Kernel<Scalar>& kernel_;
  const bool huge_;
  std::unique_ptr<uint64_t[]> boxes_;
  std::vector<uint8_t> unusable_;
};

template <typename Scalar>
void resolve_rows(const Job<Scalar>& job, const Kernel<Scalar>& kernel, const Image<Scalar>& image, int64_t item,
                  int first_row, int last_row) {
  for (int row = first_row; row < last_row; ++row) {
    const int64_t out = item * job.pixels() + static_cast<int64_t>(row) * job.width;
    kernel.resolve_row(image, row, job.index + out, job.depth + out, job.barycentrics + 3 * out);
  }
}

// Each thread draws and resolves whole images, whose pixels stay in its cache.
template <typename Scalar>
void rasterize_images(const Job<Scalar>& job, const Kernel<Scalar>& kernel, int64_t threads) {
  const int64_t workers = std::min(threads, job.items);
  std::atomic<int64_t> next(0);
  run_tasks(workers, threads, [&](int64_t) {
    Drawer<Scalar> drawer(job, kernel);
    const std::unique_ptr<Pixel[]> pixels(new Pixel[job.pixels()]);
    for (int64_t item = next++; item < job.items; item = next++) {
      drawer.draw(item, 0, job.triangle_count, pixels.get());
      resolve_rows(job, kernel, job.image(item, pixels.get()), item, 0, job.height);
    }
  });
}

// SLICES threads draw each image.
template <typename Scalar>
void rasterize_slices(const Job<Scalar>& job, const Kernel<Scalar>& kernel, int64_t threads, int64_t slices) {
  const std::unique_ptr<Pixel[]> pixels(new Pixel[job.items * slices * job.pixels()]);
  run_tasks(job.items * slices, threads, [&](int64_t task) {
    const int64_t slice = task % slices;
    Drawer<Scalar>(job, kernel).draw(task / slices, job.triangle_count * slice / slices,
                                     job.triangle_count * (slice + 1) / slices, pixels.get() + task * job.pixels());
  });
  const int64_t strips = (job.height + kRowsPerTask - 1) / kRowsPerTask;
  run_tasks(job.items * strips, threads, [&](int64_t task) {
    const int64_t item = task / strips;
    const int first = static_cast<int>(task % strips * kRowsPerTask);
    const int last = static_cast<int>(std::min<int64_t>(first + kRowsPerTask, job.height));
    const Image<Scalar> image = job.image(item, pixels.get() + item * slices * job.pixels());
    for (int row = first; row < last; ++row) {
      for (int64_t slice = 1; slice < slices; ++slice) {
        kernel.merge_row(image, row, image.pixels + slice * job.pixels() + static_cast<int64_t>(row) * job.width);
      }
    }
    resolve_rows(job, kernel, image, item, first, last);
  });
}

template <typename Scalar>
int64_t rasterize(const Job<Scalar>& job, int64_t threads) {
  const Kernel<Scalar> kernel = best_kernel<Scalar>(std::max(job.vertex_count, job.triangle_count));
  const int64_t bad = first_bad_index(job, kernel);
  if (bad != kSuccess || job.items == 0 || job.pixels() == 0) return bad;
  const int64_t useful = std::max<int64_t>(1, job.triangle_count / kSmallestSlice);
  const int64_t slices = std::min(useful, (threads + job.items - 1) / job.items);
  if (slices == 1) {
    rasterize_images(job, kernel, threads);
  } else {
    rasterize_slices(job, kernel, threads, slices);
  }
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

// What is asked of a mesh around its z-buffer (surface.h), and pictures extended (pyramid.h), for each of so many
// items. All return kSuccess or kFailure, or the position in `triangles` of an index that is no vertex.
namespace {

int64_t bad_index(const int32_t* triangles, int64_t triangle_count, int64_t vertex_count) {
  Job<float> job{};
  job.triangles = triangles, job.triangle_count = triangle_count, job.vertex_count = vertex_count;
  return first_bad_index(job, best_kernel<float>(std::max(vertex_count, triangle_count)));
}

template <typename Task>
int64_t for_each_item(int64_t items, int64_t threads, const Task& task) {
  try {
    run_tasks(items, std::max<int64_t>(threads, 1), task);
    return kSuccess;
  } catch (const std::exception&) {
    return kFailure;
  }
}

}  // namespace

extern "C" int64_t surface_vertex_normals(const float* vertices, const int32_t* triangles, int64_t items,
                                          int64_t vertex_count, int64_t triangle_count, int64_t threads,
                                          float* normals) {
  const int64_t bad = bad_index(triangles, triangle_count, vertex_count);
  if (bad != kSuccess) return bad;
  return for_each_item(items, threads, [&](int64_t item) {
    const int64_t first = 3 * item * vertex_count;
    surface::vertex_normals({vertices + first, triangles, vertex_count, triangle_count}, normals + first);
  });
}

extern "C" int64_t surface_texel_normals(const float* normals, int64_t items, int64_t vertex_count, int64_t threads,
                                         int64_t texel_count, const int64_t* corners, const float* weights,
                                         const int64_t* index, int64_t map_size, const float* rotations, float* maps) {
  return for_each_item(items, threads, [&](int64_t item) {
    surface::texel_normals(normals + 3 * item * vertex_count, rotations + 9 * item, {texel_count, corners, weights},
                           index, map_size, maps + 3 * item * map_size);
  });
}

extern "C" int64_t surface_quadratic(const float* maps, int64_t items, int64_t map_size, int64_t threads,
                                     const uint8_t* on_face, const float* coefficients, int64_t channels, float beside,
                                     float* results) {
  return for_each_item(items, threads, [&](int64_t item) {
    surface::quadratic(maps + 3 * item * map_size, on_face, map_size, coefficients + 10 * item * channels, channels,
                       beside, results + item * channels * map_size);
  });
}

extern "C" int64_t surface_visible_texels(const float* vertices, const int32_t* triangles, int64_t items,
                                          int64_t vertex_count, int64_t triangle_count, int64_t threads,
                                          int64_t height, int64_t width, const int64_t* triangle, const float* depth,
                                          float depth_tolerance, float steepest, float negligible, int64_t texel_count,
                                          const float* texels, const float* cosine, uint8_t* visible) {
  const int64_t bad = bad_index(triangles, triangle_count, vertex_count);
  if (bad != kSuccess) return bad;
  const int64_t pixels = height * width;
  return for_each_item(items, threads, [&](int64_t item) {
    const surface::Picture picture{height, width, triangle + item * pixels, depth + item * pixels, nullptr};
    const std::unique_ptr<surface::Slope[]> slope(new surface::Slope[pixels]);
    surface::slopes({vertices + 3 * item * vertex_count, triangles, vertex_count, triangle_count}, picture,
                    slope.get());
    surface::visible_texels(picture, slope.get(), {depth_tolerance, steepest, negligible},
                            texels + 3 * item * texel_count, cosine + item * texel_count, texel_count,
                            visible + item * texel_count);
  });
}

extern "C" int64_t surface_draw(const float* maps, int64_t items, int64_t channels, int64_t map_height,
                                int64_t map_width, const int64_t* nearest, const uint8_t* on_face,
                                const float* corners, const uint8_t* textured, int64_t triangle_count,
                                int64_t threads, int64_t height, int64_t width, const int64_t* triangle,
                                const float* barycentrics, float* images, uint8_t* coverage) {
  const int64_t pixels = height * width, texels = map_height * map_width, stride = channels + 1;
  return for_each_item(items, threads, [&](int64_t item) {
    const surface::Map map{channels,  map_height, map_width, maps + item * channels * texels, nearest, on_face,
                           corners,   textured};
    const surface::Picture picture{height, width, triangle + item * pixels, nullptr, barycentrics + 3 * item * pixels};
    const std::unique_ptr<float[]> interleaved(new float[texels * stride]);
    surface::interleave(map, stride, interleaved.get());
    const auto draw = stride == 4 ? surface::draw<4> : surface::draw<0>;
    draw(map, picture, triangle_count, interleaved.get(), stride, images + item * channels * pixels,
         coverage + item * pixels);
  });
}

extern "C" int64_t surface_sample(const float* images, int64_t items, int64_t channels, int64_t height, int64_t width,
                                  int64_t threads, int64_t texel_count, const float* texels, const int64_t* index,
                                  int64_t map_size, float* maps) {
  return for_each_item(items, threads, [&](int64_t item) {
    surface::sample(images + item * channels * height * width, channels, height, width,
                    texels + 3 * item * texel_count, index, texel_count, map_size, maps + item * channels * map_size);
  });
}

extern "C" int64_t pyramid_fill(const float* values, const float* weight, int64_t items, int64_t channels,
                                int64_t height, int64_t width, int64_t threads, int64_t top, int64_t bottom,
                                int64_t left, int64_t right, int64_t relaxations, float* results) {
  const int64_t pixels = height * width;
  return for_each_item(items, threads, [&](int64_t item) {
    pyramid::fill(values + item * channels * pixels, weight + item * pixels, channels, height, width,
                  {top, bottom, left, right}, relaxations, results + item * channels * pixels);
  });
}
