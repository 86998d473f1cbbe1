// Training in one launch: whether a net fits into one cluster, how, and the launch.
#include "cuda/cluster/plan.h"
#include "cuda/cluster/steps.cuh"
#include "cuda/launch.h"
#include "cuda/plan.h"

namespace twolayer::cuda {
namespace {

int64_t up_to(int64_t n, int64_t multiple) { return ceil_div(n, multiple) * multiple; }

// The least stride of at least n numbers that warp products want: 8 or 24 modulo 32.
int stride_of(int64_t n) { return static_cast<int>(up_to(n - 8, 16) + 8); }

// The least power of two that is at least n, as an exponent; at most 9, all threads of a block.
int lanes_for(int64_t n) {
  int exponent = 0;
  while (exponent < 9 && int64_t{1} << exponent < n) ++exponent;
  return exponent;
}

// The most of 16, 8, 4, … bytes of which every row's address is a multiple, and of which `columns` are a whole number.
int access_of(const Examples<float>& examples, int64_t column_bytes) {
  const uint64_t bits = reinterpret_cast<uintptr_t>(examples.x) | static_cast<uint64_t>(examples.x_stride) |
                        static_cast<uint64_t>(column_bytes) | 16;
  return static_cast<int>(bits & -bits);
}

int64_t rows_of_batch(const Steps<float>& s) { return s.batch_size < s.rows ? s.batch_size : s.rows; }

// The layout for so many groups; shared_bytes says whether it fits.
ClusterPlan lay_out(const Steps<float>& s, int capability, int unit_groups, int column_groups) {
  const Training<float>& net = s.training;
  const Examples<float>& e = s.examples;
  ClusterPlan plan;
  plan.blocks = unit_groups * column_groups;
  plan.unit_groups = unit_groups, plan.column_groups = column_groups;
  plan.units = static_cast<int>(ceil_div(net.hidden, unit_groups));
  const int number = plan.number_bytes = static_cast<int>(storage_bytes(e.storage));
  plan.columns = static_cast<int>(up_to(ceil_div(net.in, column_groups), number == 1 ? 16 : 8));
  plan.batch = static_cast<int>(up_to(rows_of_batch(s), 16));
  plan.own_rows = static_cast<int>(up_to(ceil_div(plan.batch, column_groups), 16));
  const int tiles = plan.batch / 16;
  const int tasks = tiles * static_cast<int>(ceil_div(plan.units, 32));
  plan.parts = tasks < kClusterWarps ? kClusterWarps / tasks : 1;
  plan.forward_tasks = tasks * plan.parts;
  plan.pieces = static_cast<int>(ceil_div(plan.units, 32) * ceil_div(plan.columns, kPieceColumns) +
                                 ceil_div(net.out, 32) * ceil_div(plan.units, kPieceColumns));
  for (int i = 0; i < Learned<float>::kStates; ++i)
    for (const Learned<float>& p : net.parameters)
      if (p.state[i]) plan.states = i + 1;
  plan.column_stride = stride_of(plan.columns), plan.unit_stride = stride_of(up_to(plan.units, 8));
  plan.out_stride = stride_of(up_to(net.out, 8));
  const bool converts = e.storage != Storage::kFloat32 || e.scale != 1 || e.shift != 0;
  plan.raw_stride = converts ? static_cast<int>(up_to(plan.columns * number, 16)) : 0;
  plan.x_is_exact =
      (e.storage == Storage::kUInt8 || e.storage == Storage::kBFloat16) && e.shift == 0 && !net.bfloat16_compute;
  plan.x_scale = plan.x_is_exact ? static_cast<float>(e.scale) : 1;
  plan.access = access_of(e, plan.columns * number);
  plan.in_bulk = capability >= 90 && plan.access == 16 && net.in * number % 16 == 0;
  plan.l1 = static_cast<float>(net.gradient.l1), plan.l2 = static_cast<float>(net.gradient.l2);
  plan.clip_value = static_cast<float>(net.gradient.clip_value);
  plan.penalised = net.gradient.l1 != 0 || net.gradient.l2 != 0;
  plan.has_b1 = net.parameters[kB1].value, plan.has_b2 = net.parameters[kB2].value;
  plan.drops = net.dropout > 0;
  plan.copy_lanes = lanes_for(ceil_div(plan.columns * number, plan.access < 4 ? 1 : plan.access));
  plan.convert_lanes = lanes_for(ceil_div(plan.columns, 8));
  plan.saves_input = saves_input(net.activation);
  plan.loss_per_row = static_cast<double>(loss_per_row(net.loss, net.out));
  plan.rule_bytes = static_cast<int>(rule_bytes<float>(net.optimizer));

  int64_t bytes = 0;
  const auto place = [&](Array array, int64_t count, int64_t size = sizeof(float)) {
    plan.at[array] = static_cast<int>(bytes < (1 << 30) ? bytes : 0);
    bytes += up_to(count * size, 16);
  };
  const int64_t batch = plan.batch, own_rows = plan.own_rows, out8 = up_to(net.out, 8), kept = 1 + plan.states;
  place(kX, (converts ? 1 : 2) * batch * plan.column_stride);
  place(kWeight1, kept * up_to(plan.units, 8) * plan.column_stride);
  place(kWeight2, kept * out8 * plan.unit_stride);
  place(kBias1, kept * plan.units);
  place(kBias2, kept * net.out);
  place(kZ, column_groups * plan.parts * own_rows * plan.unit_stride);
  place(kSaved, own_rows * plan.unit_stride);
  place(kY, 2 * unit_groups * own_rows * plan.out_stride);
  place(kH, batch * plan.unit_stride);
  place(kGradZ, batch * plan.unit_stride);
  place(kGradY, batch * plan.out_stride);
  place(kNothing, 32);
  place(kTarget, e.values ? 2 * own_rows * plan.out_stride : 0);
  place(kRowLoss, batch);
  place(kRowWeight, 2 * batch);
  place(kFloatDivisor, 2);
  place(kLabel, 2 * batch);
  place(kRow, 2 * batch, sizeof(int64_t));
  place(kDivisor, 2, sizeof(double));
  place(kArrivals, 2 * kKinds, sizeof(uint64_t));
  place(kForward, plan.forward_tasks, sizeof(ForwardTask));
  place(kPieces, plan.pieces, sizeof(PieceTask));
  place(kPenalty, 2 * kClusterWarps * 2, sizeof(double));
  place(kRule, 2 * plan.rule_bytes, 1);
  place(kRaw, 2 * batch * plan.raw_stride, 1);
  plan.shared_bytes = static_cast<int>(bytes < (1 << 30) ? bytes : 1 << 30);
  return plan;
}

// About how many cycles a step takes: products, by tiles of 16 × 8 × 8 on tensor cores, and meetings.
double cycles(const ClusterPlan& plan) {
  constexpr double kTile = 5, kMeeting = 700;
  const auto rounds = [](int64_t tasks) { return static_cast<double>(ceil_div(tasks, kClusterWarps)); };
  const int64_t across = ceil_div(plan.units, 32), k8 = ceil_div(plan.columns / 8, plan.parts);
  const double forward = rounds(plan.batch / 16 * plan.parts * across) * static_cast<double>(4 * k8);
  const double backward = rounds(plan.pieces) * plan.batch / 2;  // 4 tiles for each 8 rows
  const int meetings = (plan.column_groups > 1 ? 2 : 0) + (plan.unit_groups > 1 ? 1 : 0);
  return (forward + backward) * kClusterWarps * kTile + meetings * kMeeting;
}

// The best layout; without blocks where none fits.
ClusterPlan plan_cluster(const Steps<float>& s, const Device& device) {
  const Training<float>& net = s.training;
  const bool may = net.gradient.clip_norm == 0 && rows_of_batch(s) > 0 && rows_of_batch(s) <= 4096 &&
                   s.steps < 1 << 30 && net.hidden <= 4096 && net.out <= 4096 &&
                   net.in <= 1 << 20;  // what is more never fits
  ClusterPlan best{};
  double least = 0;
  for (int blocks = 1; may && blocks <= device.cluster; blocks *= 2)
    for (int column_groups = 1; column_groups <= blocks; column_groups *= 2) {
      const ClusterPlan plan = lay_out(s, device.capability, blocks / column_groups, column_groups);
      if (plan.shared_bytes > device.shared_bytes) continue;
      if (column_groups > 1 && plan.columns * (column_groups - 1) >= net.in) continue;
      if (plan.units * (plan.unit_groups - 1) >= net.hidden) continue;  // some would have nothing to do
      const double cost = cycles(plan);
      if (best.blocks == 0 || cost < least) best = plan, least = cost;
    }
  return best;
}

}  // namespace

int largest_cluster(const Device& device) {
  int blocks = device.capability < 90 ? 1 : 16;
  while (blocks > 1 && !has_room_for_cluster(cluster_kernel<false>, kBlockThreads, device.shared_bytes, blocks, device))
    blocks /= 2;
  return blocks;
}

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
  start_cluster(kernel, task, kBlockThreads, task.plan.shared_bytes, task.plan.blocks, launch);
}
template <>
void take_steps_in_cluster(const Steps<double>&, const Launch&) {}

}  // namespace twolayer::cuda
