// One block of the cluster: what it holds, and how it meets the others.
#pragma once
#include "cuda/cluster/plan.h"
#include "cuda/device/async.cuh"
#include "cuda/device/cluster.cuh"
#include "cuda/device/elementary.cuh"
#include "cuda/device/types.cuh"

namespace twolayer::cuda {

struct ClusterTask {
  Steps<float> steps;
  ClusterPlan plan;
};

struct Block {
  const Steps<float>& s;
  const Training<float>& net;
  const ClusterPlan& plan;
  char* const memory;
  const int warp, lane;  // of this thread; the first the same number in all of a warp's registers, and known to be
  const int rank, unit_group, column_group;
  const int unit0, units, column0, columns;  // its own; of none it may have any
  const int row0, own_rows;                  // of the batch, those whose hidden values and loss it completes

  explicit __device__ __forceinline__ Block(const ClusterTask& t)
      : s(t.steps),
        net(t.steps.training),
        plan(t.plan),
        memory(shared_memory()),
        warp(__shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 32), 0)),
        lane(threadIdx.x % 32),
        rank(t.plan.blocks > 1 ? cluster_rank() : 0),
        unit_group(rank / t.plan.column_groups),
        column_group(rank % t.plan.column_groups),
        unit0(unit_group * t.plan.units),
        units(share(net.hidden, unit0, t.plan.units)),
        column0(column_group * t.plan.columns),
        columns(share(net.in, column0, t.plan.columns)),
        row0(column_group * t.plan.own_rows),
        own_rows(share(t.plan.batch, row0, t.plan.own_rows)) {}

  template <class V = float>
  __device__ __forceinline__ V* at(Array array) const {
    return reinterpret_cast<V*>(memory + plan.at[array]);
  }
  __device__ __forceinline__ bool is_first() const { return rank == 0; }
  __device__ __forceinline__ bool serves() const { return warp == kClusterWarps; }

  // Meeting all threads of all blocks; only before the first step and after the last, and for penalties.
  __device__ __forceinline__ void meet() const {
    if (plan.blocks > 1)
      cluster_barrier();
    else
      __syncthreads();
  }

  __device__ __forceinline__ Arrival* arrival(Kind kind, int step) const {
    return at<Arrival>(kArrivals) + 2 * kind + (step & 1);
  }

  // Waits for what blocks send; those threads that compute, or all.
  __device__ __forceinline__ void wait_for(Kind kind, int step) const {
    if constexpr (There::kCounts)
      wait_for_arrival(arrival(kind, step), step >> 1 & 1);
    else if (kind == kGradients)
      __syncthreads();
    else
      some_threads_barrier<kClusterThreads>();
  }

  // Sends a number to all blocks of the unit group, or of the column group, to where this block has it at `mine`.
  __device__ __forceinline__ void to_unit_group(float* mine, float value, Arrival* there) const {
    *mine = value;  // for the thread's own warp, at once
    const int first = unit_group * plan.column_groups, end = first + plan.column_groups;
#pragma unroll 1
    for (int other = first; other < end; ++other) There(mine, other, there).send(0, value);
  }
  __device__ __forceinline__ void to_column_group(float* mine, float value, Arrival* there) const {
#pragma unroll 1
    for (int other = column_group; other < plan.blocks; other += plan.column_groups)
      There(mine, other, there).send(0, value);
  }

 private:
  static __device__ __forceinline__ int share(int64_t all, int from, int most) {
    return static_cast<int>(max(int64_t{0}, min(all - from, int64_t{most})));
  }
};

__device__ __forceinline__ int in_eights(int n) { return (n + 7) & ~7; }

}  // namespace twolayer::cuda
