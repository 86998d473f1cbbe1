// Training in one launch: whether a net fits into one cluster, how, and the launch.
#include "cuda/cluster/plan.h"
#include "cuda/cluster/steps.cuh"
#include "cuda/launch.h"

namespace twolayer::cuda {
namespace {

int64_t up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
int64_t share_of(int64_t n, int64_t parts) { return (n + parts - 1) / parts; }

// The least stride of at least n numbers by which the lanes of a warp meet no bank twice, along rows or across them.
int stride_of(int64_t n) { return static_cast<int>(up_to(n - 8, 32) + 8); }

int bytes_of(Storage storage) {
  return storage == Storage::kUInt8 ? 1 : storage == Storage::kBFloat16 ? 2 : storage == Storage::kFloat32 ? 4 : 8;
}

// The most of 16, 8, 4, … bytes of which every row's address is a multiple, and of which `columns` are a whole number.
int access_of(const Examples<float>& examples, int64_t column_bytes) {
  const uint64_t bits = reinterpret_cast<uintptr_t>(examples.x) | static_cast<uint64_t>(examples.x_stride) |
                        static_cast<uint64_t>(column_bytes) | 16;
  return static_cast<int>(bits & -bits);
}

// The layout for so many groups; shared_bytes says whether it fits.
ClusterPlan lay_out(const Steps<float>& s, int unit_groups, int column_groups) {
  const Training<float>& net = s.training;
  const Examples<float>& e = s.examples;
  ClusterPlan plan;
  plan.blocks = unit_groups * column_groups;
  plan.unit_groups = unit_groups, plan.column_groups = column_groups;
  plan.units = static_cast<int>(share_of(net.hidden, unit_groups));
  plan.columns = static_cast<int>(up_to(share_of(net.in, column_groups), 8));
  plan.batch = static_cast<int>(up_to(s.batch_size < s.rows ? s.batch_size : s.rows, 16));
  plan.own_rows = static_cast<int>(up_to(share_of(plan.batch, column_groups), 16));
  const int tiles = plan.batch / 16;
  plan.parts = tiles < kWarps ? kWarps / tiles : 1;
  for (int i = 0; i < Learned<float>::kStates; ++i)
    for (const Learned<float>& p : net.parameters)
      if (p.state[i]) plan.states = i + 1;
  plan.column_stride = stride_of(plan.columns), plan.unit_stride = stride_of(up_to(plan.units, 8));
  plan.out_stride = stride_of(up_to(net.out, 8));
  const bool converts = e.storage != Storage::kFloat32 || e.scale != 1 || e.shift != 0;
  const int number = bytes_of(e.storage);
  plan.raw_stride = converts ? static_cast<int>(up_to(plan.columns * number, 16)) : 0;
  plan.access = access_of(e, plan.columns * number);
  plan.loss_per_row = static_cast<double>(loss_per_row(net.loss, net.out));
  plan.rule_bytes = static_cast<int>(rule_bytes<float>(net.optimizer));

  int64_t bytes = 0;
  const auto place = [&](Array array, int64_t count, int64_t size = sizeof(float)) {
    plan.at[array] = static_cast<int>(bytes < (1 << 30) ? bytes : 0);
    bytes += up_to(count * size, 16);
  };
  const int64_t batch = plan.batch, own_rows = plan.own_rows, out8 = up_to(net.out, 8), kept = 1 + plan.states;
  place(kX, (converts ? 1 : 2) * batch * plan.column_stride);
  place(kRaw, 2 * batch * plan.raw_stride, 1);
  place(kWeight1, kept * up_to(plan.units, 8) * plan.column_stride);
  place(kWeight2, kept * out8 * plan.unit_stride);
  place(kBias1, kept * plan.units);
  place(kBias2, kept * net.out);
  place(kZ, column_groups * plan.parts * own_rows * plan.unit_stride);
  place(kSaved, own_rows * plan.unit_stride);
  place(kH, batch * plan.unit_stride);
  place(kGradZ, batch * plan.unit_stride);
  place(kY, 2 * unit_groups * own_rows * plan.out_stride);
  place(kGradY, batch * plan.out_stride);
  place(kTarget, e.values ? 2 * own_rows * plan.out_stride : 0);
  place(kRowLoss, batch);
  place(kRowWeight, 2 * batch);
  place(kLabel, 2 * batch);
  place(kRow, 2 * batch, sizeof(int64_t));
  place(kLossWeight, batch, sizeof(double));
  place(kDivisor, 2, sizeof(double));
  place(kPenalty, 2 * kWarps * 2, sizeof(double));
  place(kRule, 2 * plan.rule_bytes, 1);
  constexpr int kReadBeyond = 2 << 10;  // a piece of a gradient may reach beyond its factors' rows
  bytes += kReadBeyond;
  plan.shared_bytes = static_cast<int>(bytes < (1 << 30) ? bytes : 1 << 30);
  return plan;
}

// About how many cycles a step takes: products at a rate of multiply-adds a cycle, and meetings.
double cycles(const ClusterPlan& plan) {
  constexpr double kRate = 200, kMeeting = 800;
  const double units = up_to(plan.units, 8), pieces = share_of(plan.columns, 32) * share_of(plan.units, 32) + 1;
  const double forward = static_cast<double>(plan.batch) * units * plan.columns;
  const double backward =
      static_cast<double>(share_of(static_cast<int64_t>(pieces), kWarps)) * kWarps * plan.batch * 32 * 32;
  const int meetings = (plan.column_groups > 1 ? 2 : 0) + (plan.unit_groups > 1 ? 1 : 0);
  return (forward + backward) / kRate + meetings * kMeeting;
}

ClusterPlan plan_cluster(const Steps<float>& s, const Device& device) {
  ClusterPlan best{};
  const bool may = s.training.gradient.clip_norm == 0 && s.batch_size <= kThreads && s.rows > 0 &&
                   s.training.hidden <= 4096 && s.training.out <= 4096 && s.training.in <= 1 << 20;
  double least = 0;
  for (int blocks = 1; may && blocks <= device.cluster; blocks *= 2)
    for (int column_groups = 1; column_groups <= blocks; column_groups *= 2) {
      const ClusterPlan plan = lay_out(s, blocks / column_groups, column_groups);
      if (plan.shared_bytes > device.shared_bytes || plan.own_rows * (column_groups - 1) >= plan.batch) continue;
      if (column_groups > 1 && plan.columns * (column_groups - 1) >= s.training.in) continue;
      if (plan.units * (plan.unit_groups - 1) >= s.training.hidden) continue;  // some would have nothing to do
      const double cost = cycles(plan);
      if (best.blocks == 0 || cost < least) best = plan, least = cost;
    }
  return best;
}

}  // namespace

template <>
int cluster_blocks(const Steps<float>& s, const Device& device) {
  return plan_cluster(s, device).blocks;
}
template <>
int cluster_blocks(const Steps<double>&, const Device&) {
  return 0;  // tensor cores take its factors in parts of float32 only
}

template <>
void take_steps_in_cluster(const Steps<float>& s, const Launch& launch) {
  const ClusterTask task{s, plan_cluster(s, launch.device)};
  const auto kernel = s.training.bfloat16_compute ? cluster_kernel<true> : cluster_kernel<false>;
  start(kernel, task, task.plan.blocks, kThreads, task.plan.shared_bytes, task.plan.blocks, launch);
}
template <>
void take_steps_in_cluster(const Steps<double>&, const Launch&) {}

}  // namespace twolayer::cuda
