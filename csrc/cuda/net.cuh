// The host side of one storage type's kernels: checks nothing, plans, launches. Each type's .cu includes it and makes
// it that type's.
#pragma once
#include "cuda/kernels.h"
#include "cuda/kernels/backward.cuh"
#include "cuda/kernels/forward.cuh"
#include "cuda/kernels/hidden.cuh"
#include "cuda/kernels/reduce.cuh"
#include "cuda/launch.h"
#include "cuda/plan.h"

namespace twolayer::cuda {

// Calls f(kTf32) with the arithmetic of T's products.
template <class T, class F>
void with_arithmetic(bool tf32, F&& f) {
  if constexpr (same<T, float>) {
    if (tf32) return f.template operator()<true>();
  }
  f.template operator()<false>();
}

// ---- Forward

// A pass's launches, and the scratch that it needs.
template <class T>
struct ForwardPlan {
  ForwardTask<T> task{};
  int64_t blocks = 0, shared_bytes = 0, scratch_bytes = 0;
};

template <bool kTf32, class T>
ForwardPlan<T> plan_forward(const ForwardParams<T>& p, void* scratch, const Launch& launch) {
  using C = Compute<T>;
  using Tile = ForwardTile<kTf32, T>;
  constexpr int kChunk = 128;  // outputs that shared memory has room for
  constexpr int kTilings[][3] = {{8, 1, 1}, {4, 2, 1}, {2, 2, 2}, {2, 1, 4}, {1, 1, 8}};
  constexpr int kClusterBlocks = 8;  // as many as every device with clusters has
  const Device& device = launch.device;
  ForwardPlan<T> plan;
  ForwardTask<T>& task = plan.task;
  task.p = p;
  task.x = matrix(p.x, p.batch, p.in), task.w1 = matrix(p.w1, p.hidden, p.in);
  task.w2 = matrix(p.w2, p.out, p.hidden);
  task.chunk = static_cast<int>(p.out < kChunk ? p.out : kChunk);
  task.chunks = p.out > kChunk ? ceil_div(p.out, kChunk) : 1;

  const int64_t most_in_cluster = device.capability >= 90 ? kClusterBlocks : 1;
  const auto blocks = [&](const Tiling& t) {
    const int64_t unit_tiles = ceil_div(p.hidden, t.n());
    return ceil_div(p.batch, t.m()) * task.chunks * (unit_tiles < most_in_cluster ? unit_tiles : most_in_cluster);
  };
  const Tiling& t = task.tiling =
      choose_tiling(device, kTilings, p.batch, p.hidden, ceil_div(p.in, Tile::Hidden::kDepth), blocks,
                    [&](const Tiling& tiling) { return Tile::bytes(tiling, task.chunk); });
  const int64_t row_blocks = ceil_div(p.batch, t.m()) * task.chunks;
  task.unit_tiles = ceil_div(p.hidden, t.n());
  task.cluster = 1;
  if (row_blocks < device.multiprocessors)  // a power of two, though a block then may have nothing to do
    while (task.cluster < most_in_cluster && task.cluster < task.unit_tiles) task.cluster *= 2;

  int64_t groups = row_blocks ? device.multiprocessors / (row_blocks * task.cluster) : 1;
  const int64_t rounds = ceil_div(task.unit_tiles, task.cluster);
  groups = groups < rounds ? groups : rounds;
  task.group_tiles = ceil_div(rounds, groups < 1 ? 1 : groups) * task.cluster;
  task.groups = task.unit_tiles ? static_cast<int>(ceil_div(task.unit_tiles, task.group_tiles)) : 1;
  if (task.groups > 1) {
    task.parts = static_cast<C*>(scratch);
    plan.scratch_bytes = task.groups * p.batch * p.out * static_cast<int64_t>(sizeof(C));
  }
  plan.blocks = row_blocks * task.groups * task.cluster;
  plan.shared_bytes = Tile::bytes(t, task.chunk);
  return plan;
}

template <class T>
int64_t forward_scratch(const ForwardParams<T>& p, const Launch& launch) {
  int64_t bytes = 0;
  with_arithmetic<T>(launch.tf32, [&]<bool kTf32>() { bytes = plan_forward<kTf32>(p, nullptr, launch).scratch_bytes; });
  return bytes;
}

template <class T>
void forward(const ForwardParams<T>& p, void* scratch, const Launch& launch) {
  with_arithmetic<T>(launch.tf32, [&]<bool kTf32>() {
    ForwardPlan<T> plan = plan_forward<kTf32>(p, scratch, launch);
    ForwardTask<T>& task = plan.task;
    if (task.chunks > 1 && p.z && p.h == p.z) {  // the first chunk would overwrite what the others read
      activate(ActivateParams<T>{p.batch * p.hidden, p.z, p.h, p.activation, 0}, launch);
      task.p.h = nullptr, task.p.activation = 0;  // the identity
    }
    start(forward_kernel<kTf32, T>, task, plan.blocks, kThreads, plan.shared_bytes, task.cluster, launch);
    if (!task.parts) return;
    ReduceTask<T> reduce{};
    reduce.arrays[0] = {task.parts, p.batch * p.out, p.y, task.groups};
    start(reduce_kernel<T>, reduce, ceil_div(p.batch * p.out, kReduceColumns), kThreads,
          kThreads * int64_t{sizeof(Compute<T>)}, 1, launch);
  });
}

// ---- Backward

// A launch's work, and the scratch that it needs.
template <class T>
struct BackwardPlan {
  BackwardTask<T> task{};
  ReduceTask<T> reduce{};
  int64_t shared_bytes = 0, scratch_bytes = 0;
};

template <bool kTf32, class T>
BackwardPlan<T> plan_backward(const BackwardParams<T>& p, void* scratch, const Launch& launch) {
  using C = Compute<T>;
  using Tile = BackwardTile<kTf32, T>;
  constexpr int kMostParts = 128;
  const Device& device = launch.device;
  BackwardPlan<T> plan;
  BackwardTask<T>& task = plan.task;
  task.p = p;
  task.x = matrix(p.x, p.batch, p.in), task.w1 = matrix(p.w1, p.hidden, p.in);
  task.grad_y = matrix(p.grad_y, p.batch, p.out), task.saved = matrix(p.saved, p.batch, p.hidden);
  task.h_is_output = p.h || !saves_input(p.activation);
  task.h = p.h ? matrix(p.h, p.batch, p.hidden) : task.saved;

  const auto cut = [&]<class Product>(Product*, Share& share, int64_t m, int64_t n, int64_t k, bool in_parts) {
    const int parts = share_out<Product>(device, share, m, n, k, in_parts ? kMostParts : 1);
    if (share.blocks && Product::bytes(share.tiling) > plan.shared_bytes)
      plan.shared_bytes = Product::bytes(share.tiling);
    return parts;
  };

  char* free = static_cast<char*>(scratch);
  const auto keep_parts = [&](int array, int parts, int64_t size, T* sum, C*& to) {
    if (parts == 1 || !sum || size == 0) return;
    constexpr int64_t kAlign = 256;
    to = reinterpret_cast<C*>(free + plan.scratch_bytes);
    plan.reduce.arrays[array] = {to, size, sum, parts};
    plan.scratch_bytes += ceil_div(parts * size * sizeof(C), kAlign) * kAlign;
  };
  if (p.grad_w1 || p.grad_b1 || p.grad_z) {
    typename Tile::W1* const product = nullptr;
    const int parts = cut(product, task.w1_share, p.hidden, p.grad_w1 ? p.in : 0, p.batch, true);
    keep_parts(0, parts, p.hidden * p.in, p.grad_w1, task.part_w1);
    keep_parts(1, parts, p.hidden, p.grad_b1, task.part_b1);
  }
  if (p.grad_w2 || p.grad_b2) {
    typename Tile::W2* const product = nullptr;
    const int parts = cut(product, task.w2_share, p.out, p.grad_w2 ? p.hidden : 0, p.batch, true);
    keep_parts(2, parts, p.out * p.hidden, p.grad_w2, task.part_w2);
    keep_parts(3, parts, p.out, p.grad_b2, task.part_b2);
  }
  if (p.grad_x) {
    typename Tile::X* const product = nullptr;
    cut(product, task.x_share, p.batch, p.in, p.hidden, false);
  }
  return plan;
}

template <class T>
int64_t backward_scratch(const BackwardParams<T>& p, const Launch& launch) {
  int64_t bytes = 0;
  with_arithmetic<T>(launch.tf32,
                     [&]<bool kTf32>() { bytes = plan_backward<kTf32>(p, nullptr, launch).scratch_bytes; });
  return bytes;
}

template <class T>
void backward(const BackwardParams<T>& p, void* scratch, const Launch& launch) {
  with_arithmetic<T>(launch.tf32, [&]<bool kTf32>() {
    const BackwardPlan<T> plan = plan_backward<kTf32>(p, scratch, launch);
    const BackwardTask<T>& task = plan.task;
    start(backward_kernel<kTf32, T>, task, task.w1_share.blocks + task.x_share.blocks + task.w2_share.blocks, kThreads,
          plan.shared_bytes, 1, launch);
    int64_t blocks = 0;
    for (const Parts<T>& array : plan.reduce.arrays) blocks += ceil_div(array.size, kReduceColumns);
    start(reduce_kernel<T>, plan.reduce, blocks, kThreads, kThreads * int64_t{sizeof(Compute<T>)}, 1, launch);
  });
}

// ---- Passes over a hidden layer

// Whether rows of all these arrays can be taken 16 bytes at a time. A null pointer can.
template <class... T>
bool in_packs(int64_t rows, int64_t columns, int64_t number_bytes, const T*... arrays) {
  const uintptr_t row_bytes = rows > 1 ? columns * number_bytes : 0;
  return (((reinterpret_cast<uintptr_t>(arrays) | ...) | row_bytes) & 15) == 0 && columns * number_bytes % 16 == 0;
}

// A grid for `numbers` columns to a thread, with blocks for all multiprocessors as far as that leaves each enough rows.
inline PassGrid pass_grid(const Device& device, int64_t rows, int64_t columns, int numbers) {
  constexpr int kBlocksPerMultiprocessor = 8;
  PassGrid grid{rows, columns, 0, 0, 1};
  while (grid.lanes < kThreads && grid.lanes * numbers < columns) grid.lanes *= 2;
  grid.column_blocks = ceil_div(columns, int64_t{grid.lanes} * numbers);
  const int64_t at_once = int64_t{kThreads} / grid.lanes * kRowsAtOnce;
  const int64_t row_blocks = ceil_div(int64_t{kBlocksPerMultiprocessor} * device.multiprocessors, grid.column_blocks);
  grid.block_rows = ceil_div(ceil_div(rows, row_blocks), at_once) * at_once;
  return grid;
}

template <class T>
void bias_activate(const BiasActivateParams<T>& p, const Launch& launch) {
  constexpr int kPack = 16 / sizeof(T);
  if (p.batch * p.hidden == 0) return;
  if (!p.b1 && p.batch > 1) {  // one long row, which more often is of whole packs
    BiasActivateParams<T> flat = p;
    flat.batch = 1, flat.hidden = p.batch * p.hidden;
    return bias_activate(flat, launch);
  }
  const bool packs = in_packs(p.batch, p.hidden, sizeof(T), p.z, p.saved, p.h);
  const BiasActivateTask<T> task{p, pass_grid(launch.device, p.batch, p.hidden, packs ? kPack : 1)};
  start(packs ? bias_activate_kernel<T, kPack> : bias_activate_kernel<T, 1>, task,
        task.grid.column_blocks * ceil_div(task.grid.rows, task.grid.block_rows), kThreads, 0, 1, launch);
}

template <class T>
PassGrid derive_sum_grid(const DeriveSumParams<T>& p, const Launch& launch, bool& packs) {
  packs = in_packs(p.batch, p.hidden, sizeof(T), p.saved, static_cast<const T*>(p.grad));
  return pass_grid(launch.device, p.batch, p.hidden, packs ? 16 / sizeof(T) : 1);
}

template <class T>
int64_t derive_sum_scratch(const DeriveSumParams<T>& p, const Launch& launch) {
  if (!p.sum || p.batch * p.hidden == 0) return 0;
  bool packs;
  const PassGrid grid = derive_sum_grid(p, launch, packs);
  const int64_t row_blocks = ceil_div(grid.rows, grid.block_rows);
  return row_blocks > 1 ? row_blocks * p.hidden * static_cast<int64_t>(sizeof(Compute<T>)) : 0;
}

template <class T>
void derive_sum(const DeriveSumParams<T>& p, void* scratch, const Launch& launch) {
  constexpr int kPack = 16 / sizeof(T);
  if (p.hidden == 0 || (p.batch == 0 && !p.sum)) return;
  if (!p.sum && p.batch > 1) {
    DeriveSumParams<T> flat = p;
    flat.batch = 1, flat.hidden = p.batch * p.hidden;
    return derive_sum(flat, scratch, launch);
  }
  bool packs;
  const PassGrid grid = derive_sum_grid(p, launch, packs);
  const int64_t row_blocks = p.batch ? ceil_div(grid.rows, grid.block_rows) : 1;
  const DeriveSumTask<T> task{p, grid, row_blocks > 1 && p.sum ? static_cast<Compute<T>*>(scratch) : nullptr};
  const int64_t shared_bytes = p.sum ? kThreads * int64_t{packs ? kPack : 1} * sizeof(Compute<T>) : 0;
  start(packs ? derive_sum_kernel<T, kPack> : derive_sum_kernel<T, 1>, task, grid.column_blocks * row_blocks, kThreads,
        shared_bytes, 1, launch);
  if (!task.parts) return;
  ReduceTask<T> reduce{};
  reduce.arrays[0] = {task.parts, p.hidden, p.sum, static_cast<int>(row_blocks)};
  start(reduce_kernel<T>, reduce, ceil_div(p.hidden, kReduceColumns), kThreads, kThreads * int64_t{sizeof(Compute<T>)},
        1, launch);
}

template <class T>
void activate(const ActivateParams<T>& p, const Launch& launch) {
  bias_activate(BiasActivateParams<T>{1, p.count, p.in, nullptr, nullptr, p.out, p.activation}, launch);
}

template <class T>
void derive(const DerivativeParams<T>& p, const Launch& launch) {
  derive_sum(DeriveSumParams<T>{1, p.count, p.saved, p.grad, nullptr, p.activation}, nullptr, launch);
}

#define TWOLAYER_CUDA_KERNELS(T)                                                 \
  template int64_t forward_scratch(const ForwardParams<T>&, const Launch&);      \
  template void forward(const ForwardParams<T>&, void*, const Launch&);          \
  template int64_t backward_scratch(const BackwardParams<T>&, const Launch&);    \
  template void backward(const BackwardParams<T>&, void*, const Launch&);        \
  template void activate(const ActivateParams<T>&, const Launch&);               \
  template void derive(const DerivativeParams<T>&, const Launch&);               \
  template void bias_activate(const BiasActivateParams<T>&, const Launch&);      \
  template int64_t derive_sum_scratch(const DeriveSumParams<T>&, const Launch&); \
  template void derive_sum(const DeriveSumParams<T>&, void*, const Launch&);

}  // namespace twolayer::cuda
