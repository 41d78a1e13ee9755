// The rasterizer on CUDA devices: a plain C interface (see zbuffer/backends.py) around the kernels.

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cstring>
#include <exception>
#include <limits>

#include "kernels.cuh"

namespace {

constexpr int64_t kSuccess = -1;
constexpr int64_t kCudaError = -3;
constexpr int kThreads = 128;

unsigned int blocks(int64_t threads) {
  const int64_t count = (threads + kThreads - 1) / kThreads;
  TORCH_CHECK(count <= std::numeric_limits<int32_t>::max(), "the batch is too large for one launch");
  return static_cast<unsigned int>(count);
}

// KEYS are memory for items * height * width + 1 numbers; the last one receives the position of a bad index. The
// kernels leave out triangles with one; unless it is to be REPORTED, nobody waits for the device.
template <typename Scalar>
int64_t rasterize(const Scalar* vertices, const int32_t* triangles, int64_t items, int64_t vertex_count,
                  int64_t triangle_count, int64_t height, int64_t width, bool cull, bool reported, int64_t device,
                  unsigned long long* keys, int64_t* index, Scalar* depth, Scalar* barycentrics) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const int64_t pixels = items * height * width;
  const unsigned long long none = std::numeric_limits<unsigned long long>::max();
  unsigned long long* bad_index = keys + pixels;
  C10_CUDA_CHECK(cudaMemsetAsync(keys, 0, pixels * sizeof(*keys), stream));
  C10_CUDA_CHECK(cudaMemsetAsync(bad_index, 0xFF, sizeof(none), stream));
  if (items * triangle_count > 0) {
    zbuffer::draw<<<blocks(items * triangle_count), kThreads, 0, stream>>>(
        vertices, triangles, items, vertex_count, triangle_count, static_cast<int>(height), static_cast<int>(width),
        cull, keys, bad_index);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  if (pixels > 0) {
    zbuffer::resolve_keys<<<blocks(pixels), kThreads, 0, stream>>>(
        vertices, triangles, items, vertex_count, static_cast<int>(height), static_cast<int>(width), keys, index,
        depth, barycentrics);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  if (!reported) return kSuccess;
  unsigned long long found = none;
  C10_CUDA_CHECK(cudaMemcpyAsync(&found, bad_index, sizeof(found), cudaMemcpyDeviceToHost, stream));
  C10_CUDA_CHECK(cudaStreamSynchronize(stream));
  return found == none ? kSuccess : static_cast<int64_t>(found);
}

template <typename Scalar>
int64_t guarded(const Scalar* vertices, const int32_t* triangles, int64_t items, int64_t vertex_count,
                int64_t triangle_count, int64_t height, int64_t width, int64_t cull, int64_t reported, int64_t device,
                unsigned long long* keys, int64_t* index, Scalar* depth, Scalar* barycentrics, char* message,
                int64_t message_size) {
  try {
    return rasterize(vertices, triangles, items, vertex_count, triangle_count, height, width, cull != 0, reported != 0,
                     device, keys, index, depth, barycentrics);
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), message_size - 1);
    message[message_size - 1] = '\0';
    return kCudaError;
  }
}

}  // namespace

// Both return -1 when done, -3 with a MESSAGE on a CUDA error, else, if it is to be REPORTED, the position in
// `triangles` of an index that is no vertex. Pointers but MESSAGE are device memory.
extern "C" int64_t zbuffer_rasterize_float(const float* vertices, const int32_t* triangles, int64_t items,
                                           int64_t vertex_count, int64_t triangle_count, int64_t height,
                                           int64_t width, int64_t cull, int64_t reported, int64_t device,
                                           unsigned long long* keys, int64_t* index, float* depth,
                                           float* barycentrics, char* message, int64_t message_size) {
  return guarded(vertices, triangles, items, vertex_count, triangle_count, height, width, cull, reported, device, keys,
                 index, depth, barycentrics, message, message_size);
}

extern "C" int64_t zbuffer_rasterize_double(const double* vertices, const int32_t* triangles, int64_t items,
                                            int64_t vertex_count, int64_t triangle_count, int64_t height,
                                            int64_t width, int64_t cull, int64_t reported, int64_t device,
                                            unsigned long long* keys, int64_t* index, double* depth,
                                            double* barycentrics, char* message, int64_t message_size) {
  return guarded(vertices, triangles, items, vertex_count, triangle_count, height, width, cull, reported, device, keys,
                 index, depth, barycentrics, message, message_size);
}
