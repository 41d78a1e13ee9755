// Runs the CUDA kernels' source on the CPU, for tests only.
//
// Every CUDA thread of a launch is a fiber, all alive at once; whenever one reaches an atomic operation, before and
// after it, a scheduler picks at random which fiber goes on. A seed fixes the interleaving. Compiled with
// -DBROKEN_ATOMICS an atomic is torn into a load and a store, which shows that the interleavings do find races.

#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <vector>

namespace {

struct Index {
  unsigned int x;
};
Index blockIdx, threadIdx, blockDim;

constexpr std::size_t kStack = 32 * 1024;

struct Fiber {
  ucontext_t context;
  Index block, thread;
  std::unique_ptr<char[]> stack;
};

ucontext_t scheduler;
Fiber* running = nullptr;
const std::function<void()>* body = nullptr;
bool finished = false;

void run_body() {
  (*body)();
  finished = true;
  swapcontext(&running->context, &scheduler);
}

void let_others_run() { swapcontext(&running->context, &scheduler); }

template <typename Change>
unsigned long long atomically(unsigned long long* address, const Change& change) {
  let_others_run();
  const unsigned long long old = *address;
#ifdef BROKEN_ATOMICS
  let_others_run();
#endif
  *address = change(old);
  let_others_run();
  return old;
}

unsigned long long atomicMax(unsigned long long* address, unsigned long long value) {
  return atomically(address, [=](unsigned long long old) { return old > value ? old : value; });
}

unsigned long long atomicMin(unsigned long long* address, unsigned long long value) {
  return atomically(address, [=](unsigned long long old) { return old < value ? old : value; });
}

// Runs KERNEL on a grid of at least THREADS threads, in an order drawn from RANDOM.
void launch(int64_t threads, unsigned int block_size, std::mt19937& random, const std::function<void()>& kernel) {
  const int64_t total = (threads + block_size - 1) / block_size * block_size;
  std::vector<std::unique_ptr<Fiber>> alive;
  body = &kernel;
  blockDim.x = block_size;
  for (int64_t i = 0; i < total; ++i) {
    auto fiber = std::make_unique<Fiber>();
    fiber->block.x = static_cast<unsigned int>(i / block_size);
    fiber->thread.x = static_cast<unsigned int>(i % block_size);
    fiber->stack = std::make_unique<char[]>(kStack);
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = kStack;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, run_body, 0);
    alive.push_back(std::move(fiber));
  }
  while (!alive.empty()) {
    auto& chosen = alive[random() % alive.size()];
    running = chosen.get();
    blockIdx = running->block;
    threadIdx = running->thread;
    finished = false;
    swapcontext(&scheduler, &running->context);
    if (finished) {
      std::swap(chosen, alive.back());
      alive.pop_back();
    }
  }
}

}  // namespace

#define __global__ static
#include "kernels.cuh"

namespace {

template <typename Scalar>
int64_t rasterize(const Scalar* vertices, const int32_t* triangles, int64_t items, int64_t vertex_count,
                  int64_t triangle_count, int64_t height, int64_t width, int64_t cull, int64_t block_size, int64_t seed,
                  int64_t* index, Scalar* depth, Scalar* barycentrics) {
  const unsigned long long none = std::numeric_limits<unsigned long long>::max();
  const int64_t pixels = items * height * width;
  std::vector<unsigned long long> keys(pixels, 0);
  unsigned long long bad_index = none;
  std::mt19937 random(static_cast<unsigned int>(seed));
  const int h = static_cast<int>(height), w = static_cast<int>(width);
  launch(items * triangle_count, static_cast<unsigned int>(block_size), random, [&] {
    zbuffer::draw(vertices, triangles, items, vertex_count, triangle_count, h, w, cull != 0, keys.data(), &bad_index);
  });
  launch(pixels, static_cast<unsigned int>(block_size), random, [&] {
    zbuffer::resolve_keys(vertices, triangles, items, vertex_count, h, w, keys.data(), index, depth, barycentrics);
  });
  return bad_index == none ? -1 : static_cast<int64_t>(bad_index);
}

}  // namespace

extern "C" int64_t shim_rasterize_float(const float* vertices, const int32_t* triangles, int64_t items,
                                        int64_t vertex_count, int64_t triangle_count, int64_t height, int64_t width,
                                        int64_t cull, int64_t block_size, int64_t seed, int64_t* index, float* depth,
                                        float* barycentrics) {
  return rasterize(vertices, triangles, items, vertex_count, triangle_count, height, width, cull, block_size, seed,
                   index, depth, barycentrics);
}

extern "C" int64_t shim_rasterize_double(const double* vertices, const int32_t* triangles, int64_t items,
                                         int64_t vertex_count, int64_t triangle_count, int64_t height, int64_t width,
                                         int64_t cull, int64_t block_size, int64_t seed, int64_t* index,
                                         double* depth, double* barycentrics) {
  return rasterize(vertices, triangles, items, vertex_count, triangle_count, height, width, cull, block_size, seed,
                   index, depth, barycentrics);
}
