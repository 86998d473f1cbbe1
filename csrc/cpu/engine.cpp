#include "cpu/engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <utility>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/dispatch.h"
#include "cpu/subnormals.h"
#include "cpu/threads.h"

namespace twolayer::cpu {
namespace {

constexpr int64_t kMaxBlocks = 16;    // partial outputs of this many blocks are kept: a bound on memory and threads
constexpr double kSparseBelow = 0.4;  // share of nonzero inputs up to which going through them alone is faster
constexpr double kSparseVectorsBelow = 0.03;  // the same where zeros can only be left out a vector at a time
constexpr int64_t kLookAgainAfter = 64;       // batches, when one was found dense
constexpr int64_t kShareFrom = 64;            // inputs from which on it pays that threads share hidden units
constexpr int64_t kSpreadFrom = 8;            // rows per hidden unit from which on it pays that they share all of them
constexpr int64_t kReadAhead = 1 << 20;       // bytes of the next batch that stay in cache until they are used
constexpr auto kPollEvery = std::chrono::milliseconds(20);

}  // namespace

template <class T>
struct Engine<T>::Impl final : PhasedJob {
  enum class Phase { kGather, kScan, kForward, kLoss, kBackward, kUpdate };

  TrainParams<T> p{};
  const TrainKernels<T>& kernels = train_kernels<T>(current_isa());
  int threads_wanted;
  SkipZeros skip_zeros;
  const GradientOptions gradient;
  const bool penalty_per_row;
  int64_t batch_capacity = 0;

  std::array<int64_t, kParameters> sizes;  // of the parameters, padded
  std::array<Trained<T>*, kParameters> trained{&p.w1, &p.b1, &p.w2, &p.b2};
  Buffer<T> parameters[kParameters], compute[kParameters], grads[kParameters];
  Buffer<T> states[kParameters][Trained<T>::kStates];
  Buffer<T> w2_transposed, w2_shared, penalty, square_sum, class_weight;
  Buffer<T> hidden_value, hidden_saved, grad_hidden, grad_rows, partial, grad_out, row_loss, soft_target, gathered;
  Buffer<uint8_t> row_hit, found_not_finite;
  Buffer<uint64_t> nonzero_rows;
  Buffer<uint32_t> x_pairs, x_pairs_transposed, w1_pairs, grad_pairs;
  std::atomic<int64_t> nonzero_count{0};
  bool weights_finite = true;
  int64_t dense_group = 0;
  int64_t grad_units = 0;  // that grad_hidden holds
  bool can_share = false;
  int64_t dense_batches = 0;                      // to go before the density is measured again
  double frozen_absolute = 0, frozen_square = 0;  // sums over weights that no step changes
  std::vector<const T*> x_rows, value_rows;
  std::vector<const void*> source_rows, next_rows;
  std::vector<SparseRow> sparse_rows;
  std::vector<int64_t> classes;
  std::vector<T> row_weight;

  // The run under way.
  const Dataset<T>* data = nullptr;
  Stretch stretch{};
  Poll on_poll{};
  int chunks = 1;
  Phase phase = Phase::kForward;
  std::atomic<int64_t> steps_done{0};  // poll() reads it while another thread advances
  RunResult result{};
  Evaluation evaluation{};
  std::chrono::steady_clock::time_point next_poll;
  std::atomic<bool> stop{false};

  explicit Impl(const EngineConfig& c)
      : threads_wanted(c.threads), skip_zeros(c.skip_zeros), gradient(c.gradient), penalty_per_row(c.penalty_per_row) {
    p.in = c.in, p.hidden = c.hidden, p.out = c.out;
    p.padded_hidden = round_up(c.hidden, kPanel), p.padded_out = round_up(c.out, kPanel);
    p.activation = c.activation, p.loss = c.loss, p.optimizer = c.optimizer;
    p.options = c.options, p.loss_options = c.loss_options, p.gradient = c.gradient;
    p.dropout = c.dropout, p.dropout_key = c.dropout_key, p.bfloat16_compute = c.bfloat16_compute;

    // Pairs are read whole, zeros too: their sums have another order than those that skip zeros, and are no slower.
    if (__is_same(T, float) && p.bfloat16_compute) p.pairs = current_isa().pairs;
    if (p.pairs) p.w1_pairs = w1_pairs.resize(p.padded_hidden * padded_pairs(p.in));

    // Sums by unit over all inputs, and pairs, are made of panels.
    p.rest = p.pairs || !may_share() ? 0 : p.hidden - in_panels(p.hidden);
    p.whole = p.rest ? p.hidden - p.rest : p.padded_hidden;
    p.rest_stride = round_up(p.in, kPanel);
    p.w1_size = p.whole * p.in + p.rest * p.rest_stride;
    p.block = round_up((p.whole + kMaxBlocks - 1) / kMaxBlocks, kPanel);
    p.blocks = (p.whole + p.block - 1) / p.block + (p.rest ? 1 : 0);

    sizes = {p.w1_size, p.padded_hidden, p.out * p.padded_hidden, p.padded_out};
    for (int i = 0; i < kParameters; ++i) {
      if (!c.present[i]) sizes[i] = 0;
      Trained<T>& t = *trained[i];
      const bool rounded = p.bfloat16_compute && ((i == kW1 && !p.pairs) || i == kW2);
      t.frozen = c.frozen[i];
      t.value = parameters[i].resize(sizes[i]);
      t.compute = rounded ? compute[i].resize(sizes[i]) : t.value;
      for (int s = 0; s < Trained<T>::kStates; ++s)
        t.state[s] = states[i][s].resize(!t.frozen && optimizer_uses_state(p.optimizer, p.options, s) ? sizes[i] : 0);
      t.grad = grads[i].resize(p.gradient.clip_norm != 0 && !t.frozen ? sizes[i] : 0);
    }
    p.w2_transposed = w2_transposed.resize(p.padded_hidden * p.padded_out);
    p.penalty = penalty.resize(2 * p.padded_hidden);
    p.square_sum = square_sum.resize(p.padded_hidden + p.padded_out);
    p.found_not_finite = found_not_finite.resize(threads_wanted);
  }

  // To and from the engine's layout; array(i) is parameter i, or one of its states.
  template <class Array>
  void load(const LinearLayout<const T>& from, Array array) {
    for (int64_t unit = 0; unit < p.hidden; unit += kPanel) {
      const int64_t units = std::min(kPanel, p.hidden - unit);
      if (from[kW1] && unit < p.whole)
        transpose(units, p.in, from[kW1] + unit * p.in, p.in, array(kW1) + unit * p.in, kPanel);
      for (int64_t o = 0; from[kW2] && o < p.out; ++o)
        std::copy_n(from[kW2] + o * p.hidden + unit, units, array(kW2) + unit * p.out + o * kPanel);
    }
    for (int64_t unit = p.whole; from[kW1] && unit < p.hidden; ++unit)
      std::copy_n(from[kW1] + unit * p.in, p.in, array(kW1) + rest_row(unit));
    if (from[kB1]) std::copy_n(from[kB1], p.hidden, array(kB1));
    if (from[kB2]) std::copy_n(from[kB2], p.out, array(kB2));
  }

  template <class Array>
  void store(const LinearLayout<T>& to, Array array) const {
    for (int64_t unit = 0; unit < p.hidden; unit += kPanel) {
      const int64_t units = std::min(kPanel, p.hidden - unit);
      if (to[kW1] && unit < p.whole)
        transpose(p.in, units, array(kW1) + unit * p.in, kPanel, to[kW1] + unit * p.in, p.in);
      for (int64_t o = 0; to[kW2] && o < p.out; ++o)
        std::copy_n(array(kW2) + unit * p.out + o * kPanel, units, to[kW2] + o * p.hidden + unit);
    }
    for (int64_t unit = p.whole; to[kW1] && unit < p.hidden; ++unit)
      std::copy_n(array(kW1) + rest_row(unit), p.in, to[kW1] + unit * p.in);
    if (to[kB1]) std::copy_n(array(kB1), p.hidden, to[kB1]);
    if (to[kB2]) std::copy_n(array(kB2), p.out, to[kB2]);
  }

  void load_parameters(const LinearLayout<const T>& from) {
    load(from, [&](int i) { return parameters[i].data(); });
    if (penalised()) sum_frozen();
    weights_finite = kernels.take_weights(p);
    std::fill_n(p.found_not_finite, threads_wanted, uint8_t{0});
  }

  int64_t rest_row(int64_t unit) const { return p.whole * p.in + (unit - p.whole) * p.rest_stride; }

  bool penalised() const { return gradient.l1 != 0 || gradient.l2 != 0; }

  // Whether chunks may share units: not where something is summed by unit over all inputs.
  bool may_share() const { return !penalised() && gradient.clip_norm == 0 && p.in >= kShareFrom; }

  void reserve(int64_t batch) {
    if (batch <= batch_capacity) return;
    const bool separate = activation_saves_input(p.activation) || p.dropout > 0 || p.bfloat16_compute;
    p.hidden_value = hidden_value.resize(batch * p.padded_hidden);
    p.hidden_saved = hidden_saved.resize(separate ? batch * p.padded_hidden : 0);
    if (!separate) p.hidden_saved = p.hidden_value;
    p.partial = partial.resize(p.blocks * batch * p.padded_out);
    p.grad_out = grad_out.resize(batch * p.padded_out);
    p.row_loss = row_loss.resize(batch);
    p.row_hit = row_hit.resize(batch);
    if (batch > kShortBatch)  // the kernels then keep a weight's gradient whole while they go through the batch
      for (int i : {kW1, kW2})
        if (!trained[i]->frozen && !trained[i]->grad) trained[i]->grad = grads[i].resize(sizes[i]);
    x_rows.resize(batch);
    value_rows.resize(batch);
    source_rows.resize(batch);
    next_rows.resize(batch);
    sparse_rows.resize(batch);
    classes.resize(batch);
    row_weight.resize(batch);
    batch_capacity = batch;
  }

  void prepare(const Dataset<T>& dataset, int64_t batch, Poll poll) {
    data = &dataset, on_poll = poll;
    reserve(batch);
    p.gather = data->gather;
    p.gather.needed = p.gather.needed || (p.bfloat16_compute && !p.pairs);
    p.gathered = p.gather.needed ? gathered.grow(batch_capacity * p.in) : nullptr;
    p.class_weight = nullptr;
    if (data->class_weight) {
      p.class_weight = class_weight.resize(p.padded_out);
      std::copy_n(data->class_weight, p.out, class_weight.data());
    }
    const bool soft = data->class_weight || p.loss_options.label_smoothing != 0 || !data->classes;
    p.soft_target = soft ? soft_target.grow(batch_capacity * p.padded_out) : nullptr;
    steps_done = 0, stop = false, result = {}, evaluation = {};
    next_poll = std::chrono::steady_clock::now() + kPollEvery;
    const int64_t work = 2 * batch * p.padded_hidden * (p.in + p.out);
    chunks = worthwhile_threads(work, may_share() ? threads_wanted : std::min<int64_t>(threads_wanted, p.blocks));
    // Chunks that take units of their own all read the whole batch; those that share all units read their part of it.
    dense_group = may_share() && chunks > 1 && batch >= kSpreadFrom * p.hidden ? p.whole : p.block;
    const int64_t groups = (p.whole + dense_group - 1) / dense_group;
    can_share = may_share() && groups % chunks != 0;
    p.w2_shared = can_share || (p.rest && chunks > 1) ? w2_shared.grow(p.out * p.padded_hidden) : nullptr;
    grad_units = (can_share ? (groups + chunks - 1) * dense_group : p.whole) + chunks * (p.rest ? kPanel : 0);
    p.grad_hidden = grad_hidden.grow(batch_capacity * grad_units);
    if (p.pairs) {
      p.grad_pairs = grad_pairs.grow(padded_pairs(batch_capacity) * grad_units);
      p.x_pairs = x_pairs.grow(chunks * batch_capacity * padded_pairs(p.in));
      p.x_pairs_transposed = x_pairs_transposed.grow(chunks * p.in * padded_pairs(batch_capacity));
    }
    draw_batch();
  }

  void draw_batch() {
    const int64_t first = (stretch.first_step + steps_done) * stretch.batch_size;
    p.batch = std::min(stretch.batch_size, stretch.order.rows - first);
    double weight = 0;
    for (int64_t i = 0; i < p.batch; ++i) {
      const int64_t row = stretch.order.row ? stretch.order.row[first + i] : first + i;
      if (p.gather.sparse)
        sparse_rows[i] = sparse_row(row);
      else
        source_rows[i] = row_of(row);
      x_rows[i] = p.gather.needed ? p.gathered + i * p.in : static_cast<const T*>(source_rows[i]);
      if (data->classes) classes[i] = data->classes[row];
      if (data->values) value_rows[i] = data->values + row * data->value_stride;
      if (data->row_weight) row_weight[i] = data->row_weight[row];
      weight += loss_weight(row);
    }
    note_next_batch(first + p.batch);
    p.x_rows = x_rows.data();
    p.source_rows = source_rows.data();
    p.sparse_rows = sparse_rows.data();
    p.classes = data->classes ? classes.data() : nullptr;
    p.value_rows = data->values ? value_rows.data() : nullptr;
    p.row_weight = data->row_weight ? row_weight.data() : nullptr;
    const int64_t per_row = loss_per_row(p.loss, p.out);
    p.loss_divisor = per_row ? weight * static_cast<double>(per_row) : 1;
    if (p.training) p.options.lr = stretch.lr[steps_done];
    if (penalty_per_row) p.gradient.l1 = gradient.l1 / weight, p.gradient.l2 = gradient.l2 / weight;
    p.skips_zeros = p.skips_vectors = false;
    p.group = dense_group, p.shares_groups = can_share;
    phase = p.gather.needed ? Phase::kGather : first_after_gather();
  }

  Phase first_after_gather() {
    const bool scans = skip_zeros != SkipZeros::kNever && !p.pairs && weights_finite && --dense_batches < 0;
    if (!scans) return Phase::kForward;
    const int64_t words = (batch_capacity + 63) / 64;
    p.nonzero_rows = nonzero_rows.grow(words * p.in);
    return Phase::kScan;
  }

  // With every number that is not zero marked: whether to go through those alone.
  void choose_product() {
    const double density = static_cast<double>(nonzero_count.exchange(0)) / static_cast<double>(p.batch * p.in);
    p.skips_zeros = skip_zeros == SkipZeros::kAlways || density < kSparseBelow;
    if (!p.skips_zeros) {
      dense_batches = kLookAgainAfter;
      return;
    }
    p.skips_vectors = density < kSparseVectorsBelow;
    p.grad_rows = grad_rows.grow(batch_capacity * grad_units);
    p.group = p.block, p.shares_groups = false;  // going through columns twice costs more than the balance gains
  }

  void note_next_batch(int64_t first) {
    p.row_bytes = p.in * storage_bytes(p.gather.storage);
    const bool is_last = steps_done + 1 >= stretch.steps || p.gather.sparse;
    p.next_batch = is_last ? 0 : std::min(stretch.batch_size, stretch.order.rows - first);
    if (p.next_batch * p.row_bytes > kReadAhead) p.next_batch = 0;
    for (int64_t i = 0; i < p.next_batch; ++i)
      next_rows[i] = row_of(stretch.order.row ? stretch.order.row[first + i] : first + i);
    p.next_rows = next_rows.data();
  }

  const void* row_of(int64_t row) const { return static_cast<const char*>(data->x) + row * data->x_stride; }

  SparseRow sparse_row(int64_t row) const {
    const int64_t begin = data->offsets[row];
    const int64_t width = p.gather.wide_columns ? sizeof(int64_t) : sizeof(int32_t);
    return {static_cast<const char*>(data->columns) + begin * width, static_cast<const T*>(data->x) + begin,
            data->offsets[row + 1] - begin};
  }

  // What a row counts for in the mean: its own weight, times its class's.
  double loss_weight(int64_t row) const {
    const double own = data->row_weight ? static_cast<double>(data->row_weight[row]) : 1;
    if (!data->classes) return own;
    const int64_t label = data->classes[row];
    if (label == p.loss_options.ignore_index) return 0;
    return data->class_weight ? own * static_cast<double>(data->class_weight[label]) : own;
  }

  RunResult run(const Dataset<T>& dataset, const Stretch& asked, Poll poll) {
    stretch = asked;
    if (stretch.steps == 0) return {};
    p.training = true;
    prepare(dataset, std::min(stretch.batch_size, stretch.order.rows), poll);
    run_phases(chunks, *this);
    result.steps = steps_done;
    return result;
  }

  Evaluation evaluate(const Dataset<T>& dataset, const Order& order, Poll poll) {
    const int64_t batch = std::min(kShortBatch, order.rows);
    stretch = {};
    stretch.batch_size = batch;
    stretch.order = order;
    stretch.steps = (order.rows + batch - 1) / batch;
    p.training = false;
    prepare(dataset, batch, poll);
    run_phases(chunks, *this);
    return evaluation;
  }

  void run_chunk(int chunk) override {
    const auto share = [&](int64_t count) { return std::pair(chunk * count / chunks, (chunk + 1) * count / chunks); };
    const auto [row0, row1] = share(p.batch);
    const auto [line0, line1] = share(round_up(p.in, kPanel) / kPanel);
    const FlushSubnormals flush;
    switch (phase) {
      case Phase::kGather:
        return kernels.gather(p, row0, row1);
      case Phase::kScan:
        nonzero_count += kernels.scan(p, line0 * kPanel, std::min(line1 * kPanel, p.in));
        return;
      case Phase::kForward:
        return kernels.forward(p, chunk, chunks);
      case Phase::kLoss:
        return kernels.loss(p, row0, row1);
      case Phase::kBackward:
        return kernels.backward(p, chunk, chunks);
      case Phase::kUpdate:
        return kernels.update(p, chunk, chunks);
    }
  }

  bool advance() override {
    switch (phase) {
      case Phase::kGather:
        phase = first_after_gather();
        return true;
      case Phase::kScan:
        choose_product();
        phase = Phase::kForward;
        return true;
      case Phase::kForward:
        phase = Phase::kLoss;
        return true;
      case Phase::kLoss:
        return p.training ? to_backward() : to_next_evaluation();
      case Phase::kBackward:
        if (penalised()) stretch.losses[steps_done] += penalty_value();
        if (p.gradient.clip_norm == 0) return to_next_step();
        p.clip_factor = clip_factor(gradient_norm());
        phase = Phase::kUpdate;
        return true;
      case Phase::kUpdate:
        return to_next_step();
    }
    return false;
  }

  double loss_sum() const {
    double total = 0;
    for (int64_t i = 0; i < p.batch; ++i) total += static_cast<double>(p.row_loss[i]);
    return total;
  }

  bool to_backward() {
    const double loss = loss_sum() / p.loss_divisor;
    stretch.losses[steps_done] = loss;
    if (stretch.stop_if_not_finite && !std::isfinite(loss)) {
      result.not_finite = true;
      return false;
    }
    phase = Phase::kBackward;
    return true;
  }

  bool to_next_step() {
    ++p.step;
    for (int chunk = 0; chunk < chunks; ++chunk) weights_finite = weights_finite && !p.found_not_finite[chunk];
    if (++steps_done == stretch.steps || stop.load(std::memory_order_relaxed)) return false;
    draw_batch();
    return true;
  }

  bool to_next_evaluation() {
    evaluation.loss_sum += loss_sum();
    evaluation.divisor = loss_per_row(p.loss, p.out) ? evaluation.divisor + p.loss_divisor : 1;
    for (int64_t i = 0; p.classes && i < p.batch; ++i) evaluation.hits += p.row_hit[i];
    if (++steps_done == stretch.steps || stop.load(std::memory_order_relaxed)) return false;
    draw_batch();
    return true;
  }

  double penalty_value() const {
    double absolute = frozen_absolute, square = frozen_square;
    for (int64_t j = 0; j < p.hidden; ++j) {
      absolute += static_cast<double>(p.penalty[j]);
      square += static_cast<double>(p.penalty[p.padded_hidden + j]);
    }
    return p.gradient.l1 * absolute + p.gradient.l2 / 2 * square;
  }

  void sum_frozen() {
    frozen_absolute = frozen_square = 0;
    for (int i : {kW1, kW2})
      for (int64_t j = 0; trained[i]->frozen && j < sizes[i]; ++j) {
        const double w = static_cast<double>(trained[i]->value[j]);
        frozen_absolute += std::abs(w);
        frozen_square += w * w;
      }
  }

  double gradient_norm() const {
    double total = 0;
    for (int64_t j = 0; j < p.hidden; ++j) total += static_cast<double>(p.square_sum[j]);
    for (int64_t o = 0; o < p.out; ++o) total += static_cast<double>(p.square_sum[p.padded_hidden + o]);
    return std::sqrt(total);
  }

  // As torch.nn.utils.clip_grad_norm_ has it; NaN for a norm that is NaN.
  double clip_factor(double norm) const {
    const double factor = p.gradient.clip_norm / (norm + 1e-6);
    return factor > 1 ? 1 : factor;
  }

  void poll() override {
    const auto now = std::chrono::steady_clock::now();
    if (now < next_poll) return;
    next_poll = now + kPollEvery;
    if (on_poll.stop(on_poll.context, steps_done)) stop.store(true, std::memory_order_relaxed);
  }
};

template <class T>
Engine<T>::Engine(const EngineConfig& config) : impl_(std::make_unique<Impl>(config)) {}
template <class T>
Engine<T>::~Engine() = default;

template <class T>
void Engine<T>::load(const LinearLayout<const T>& parameters) {
  impl_->load_parameters(parameters);
}

template <class T>
void Engine<T>::store(const LinearLayout<T>& parameters) const {
  impl_->store(parameters, [&](int i) { return impl_->parameters[i].data(); });
}

template <class T>
bool Engine<T>::keeps_state(int state) const {
  return optimizer_uses_state(impl_->p.optimizer, impl_->p.options, state);
}

template <class T>
void Engine<T>::load_state(int state, const LinearLayout<const T>& values) {
  impl_->load(values, [&](int i) { return impl_->states[i][state].data(); });
}

template <class T>
void Engine<T>::store_state(int state, const LinearLayout<T>& values) const {
  impl_->store(values, [&](int i) { return impl_->states[i][state].data(); });
}

template <class T>
int64_t Engine<T>::steps() const {
  return impl_->p.step;
}

template <class T>
void Engine<T>::set_steps(int64_t steps) {
  impl_->p.step = steps;
}

template <class T>
RunResult Engine<T>::run(const Dataset<T>& data, const Stretch& stretch, Poll poll) {
  return impl_->run(data, stretch, poll);
}

template <class T>
Evaluation Engine<T>::evaluate(const Dataset<T>& data, const Order& order, Poll poll) {
  return impl_->evaluate(data, order, poll);
}

template class Engine<float>;
template class Engine<double>;

}  // namespace twolayer::cpu
