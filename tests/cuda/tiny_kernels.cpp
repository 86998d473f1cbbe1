// Kernels that show what the emulation does, for tests/cuda/test_emulation.py.
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device/async.cuh"
#include "cuda/device/cluster.cuh"
#include "cuda/device/convert.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/launch.h"

using namespace twolayer;
using cuda::shared_memory;

namespace {

struct Arrays {
  const float* in;
  float* out;
};

// out[thread of the grid] = the sum of in over the threads of this number in the cluster's blocks.
void cluster_sum_kernel(Arrays p) {
  float* const mine = reinterpret_cast<float*>(shared_memory()) + threadIdx.x;
  const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
  *mine = p.in[thread];
  cuda::cluster_barrier();
  float sum = 0;
  for (int rank = 0; rank < emulation::current().cluster_size; ++rank) sum += *cuda::cluster_shared(mine, rank);
  p.out[thread] = sum + 1000 * static_cast<float>(cuda::cluster_rank());
  cuda::cluster_barrier();
}

// Block's numbers in reverse order, by way of shared memory.
void reverse_kernel(Arrays p) {
  float* const memory = reinterpret_cast<float*>(shared_memory());
  memory[threadIdx.x] = p.in[threadIdx.x];
  __syncthreads();
  p.out[threadIdx.x] = memory[blockDim.x - 1 - threadIdx.x];
}

// Each warp's sums, by shuffles, minus its lane 3's number.
void warp_kernel(Arrays p) {
  float sum = p.in[threadIdx.x];
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  __syncwarp();
  p.out[threadIdx.x] = sum - __shfl_sync(0xffffffffu, p.in[threadIdx.x], 3);
}

// A copy that is not waited for.
void hasty_kernel(Arrays p) {
  float* const mine = reinterpret_cast<float*>(shared_memory()) + threadIdx.x;
  cuda::copy_async<4>(mine, p.in + threadIdx.x, 4);
  cuda::commit_copies();
  p.out[threadIdx.x] = *mine;
  cuda::wait_for_copies<0>();
  p.out[threadIdx.x + blockDim.x] = *mine;
}

void beyond_shared_kernel(Arrays p) { p.out[0] = reinterpret_cast<float*>(shared_memory())[blockDim.x]; }

void at_different_barriers_kernel(Arrays p) {
  if (threadIdx.x == 0)
    cuda::cluster_barrier();
  else
    __syncthreads();
  p.out[threadIdx.x] = 0;
}

// Every thread sends its number to the next block of the cluster, where it has the same place: what is there before the
// block waits for what arrives, and then. A block announces so many times that all numbers but some will come.
template <int kAnnouncements, int kNotAnnounced>
void send_kernel(Arrays p) {
  float* const mine = reinterpret_cast<float*>(shared_memory()) + threadIdx.x;
  auto* const arrival = reinterpret_cast<cuda::Arrival*>(reinterpret_cast<float*>(shared_memory()) + blockDim.x);
  const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
  if (threadIdx.x == 0) cuda::prepare_arrival(arrival);
  cuda::cluster_barrier();
  for (int i = 0; threadIdx.x == 0 && i < kAnnouncements; ++i)
    cuda::announce(arrival, static_cast<int>((blockDim.x - kNotAnnounced) * sizeof(float)));
  const cuda::There there(mine, (cuda::cluster_rank() + 1) % emulation::current().cluster_size, arrival);
  there.send(0, p.in[thread]);
  cuda::cluster_barrier();
  p.out[thread] = *mine;
  __syncthreads();
  cuda::wait_for_arrival(arrival, 0);
  p.out[gridDim.x * blockDim.x + thread] = *mine;
}

struct Product {
  const void *a, *b;  // (16, k), (k, 8)
  float* d;           // (16, 8)
};

// d += a b by one warp. Which numbers a register has is written here as the PTX manual does, number by number.
template <class T>
void half_kernel(Product p) {
  const int group = emulation::current().lane / 4, in_group = emulation::current().lane % 4;
  const T *a = static_cast<const T*>(p.a), *b = static_cast<const T*>(p.b);
  uint32_t left[4] = {}, right[2] = {};
  for (int i = 0; i < 8; ++i) {
    const int row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
    const int column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
    left[i / 2] |= static_cast<uint32_t>(a[row * 16 + column].bits) << i % 2 * 16;
  }
  for (int i = 0; i < 4; ++i) {
    const int row = in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
    right[i / 2] |= static_cast<uint32_t>(b[row * 8 + group].bits) << i % 2 * 16;
  }
  float d[4];
  const auto at = [&](int i) { return (i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1); };
  for (int i = 0; i < 4; ++i) d[i] = p.d[at(i)];
  cuda::mma(d, left, right, T{});
  for (int i = 0; i < 4; ++i) p.d[at(i)] = d[i];
}

void tf32_kernel(Product p) {
  const int group = emulation::current().lane / 4, in_group = emulation::current().lane % 4;
  const float *a = static_cast<const float*>(p.a), *b = static_cast<const float*>(p.b);
  uint32_t left[4], right[2];
  for (int i = 0; i < 4; ++i) {
    const int row = i % 2 == 0 ? group : group + 8, column = i < 2 ? in_group : in_group + 4;
    left[i] = cuda::to_tf32(a[row * 8 + column]);
  }
  for (int i = 0; i < 2; ++i) right[i] = cuda::to_tf32(b[(in_group + 4 * i) * 8 + group]);
  float d[4];
  const auto at = [&](int i) { return (i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1); };
  for (int i = 0; i < 4; ++i) d[i] = p.d[at(i)];
  cuda::mma_tf32(d, left, right);
  for (int i = 0; i < 4; ++i) p.d[at(i)] = d[i];
}

}  // namespace

extern "C" {

void tiny_kernel(int which, const float* in, float* out, int blocks, int threads, int64_t shared_bytes, int cluster) {
  void (*const kernels[])(Arrays) = {
      cluster_sum_kernel,           reverse_kernel,    warp_kernel,       hasty_kernel,      beyond_shared_kernel,
      at_different_barriers_kernel, send_kernel<1, 0>, send_kernel<0, 0>, send_kernel<2, 0>, send_kernel<1, 1>};
  cuda::start(kernels[which], Arrays{in, out}, blocks, threads, shared_bytes, cluster, cuda::Launch{});
}

void tiny_product(int which, const void* a, const void* b, float* d) {
  void (*const kernels[])(Product) = {half_kernel<bfloat16>, half_kernel<float16>, tf32_kernel};
  cuda::start(kernels[which], Product{a, b, d}, 1, 32, 0, 1, cuda::Launch{});
}

void widen_all(bool is_bfloat16, const uint16_t* in, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = is_bfloat16 ? cuda::widen(bfloat16{in[i]}) : cuda::widen(float16{in[i]});
}

void narrow_all(bool is_bfloat16, const float* in, uint16_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    bfloat16 b;
    float16 h;
    if (is_bfloat16)
      cuda::narrow(in[i], b), out[i] = b.bits;
    else
      cuda::narrow(in[i], h), out[i] = h.bits;
  }
}

void to_tf32_all(const float* in, uint32_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = cuda::to_tf32(in[i]);
}

}  // extern "C"
