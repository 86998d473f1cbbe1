#include "cpu/engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <utility>

#include "cpu/dispatch.h"
#include "cpu/threads.h"

namespace twolayer::cpu {
namespace {

constexpr int64_t kUnit = TrainParams<float>::kUnit;
constexpr int64_t kMaxBlocks = 16;  // partial outputs of this many blocks are kept: a bound on memory and threads
constexpr auto kPollEvery = std::chrono::milliseconds(20);

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// A zeroed array, aligned to a cache line.
template <class T>
class Buffer {
 public:
  void resize(int64_t count) {
    scratch_ = std::make_unique<Scratch<T>>(count);
    if (count) std::memset(scratch_->data, 0, count * sizeof(T));
  }
  T* data() const { return scratch_ ? scratch_->data : nullptr; }

 private:
  std::unique_ptr<Scratch<T>> scratch_;
};

// Copies between torch.nn.Linear's layout and the engine's. 32 × 32 squares keep both sides in cache.
template <class T>
void transpose(int64_t rows, int64_t columns, const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  constexpr int64_t kSquare = 32;
  for (int64_t i0 = 0; i0 < rows; i0 += kSquare)
    for (int64_t j0 = 0; j0 < columns; j0 += kSquare)
      for (int64_t i = i0; i < std::min(i0 + kSquare, rows); ++i)
        for (int64_t j = j0; j < std::min(j0 + kSquare, columns); ++j)
          to[j * to_stride + i] = from[i * from_stride + j];
}

}  // namespace

template <class T>
struct Engine<T>::Impl final : PhasedJob {
  enum class Phase { kForward, kLoss, kBackward };

  TrainParams<T> p{};
  const TrainKernels<T>& kernels = train_kernels<T>(current_isa());
  int threads_wanted;
  int64_t batch_capacity = 0;

  Buffer<T> parameters[4], states[4][Trained<T>::kStates], w2_transposed;
  Buffer<T> hidden_value, hidden_saved, grad_hidden, partial, grad_out, row_loss, grad_weight;
  std::vector<const T*> x_rows, value_rows;
  std::vector<int64_t> classes;

  // The run under way.
  const Dataset<T>* data = nullptr;
  const Epoch* epoch = nullptr;
  Poll on_poll{};
  int chunks = 1;
  Phase phase = Phase::kForward;
  std::atomic<int64_t> steps_done{0};  // poll() reads it while another thread advances
  std::chrono::steady_clock::time_point next_poll;
  std::atomic<bool> stop{false};

  explicit Impl(const EngineConfig& c) : threads_wanted(c.threads) {
    p.in = c.in, p.hidden = c.hidden, p.out = c.out;
    p.padded_hidden = round_up(c.hidden, kUnit), p.padded_out = round_up(c.out, kUnit);
    p.block = round_up((p.padded_hidden + kMaxBlocks - 1) / kMaxBlocks, kUnit);
    p.blocks = (p.hidden + p.block - 1) / p.block;
    p.activation = c.activation, p.loss = c.loss, p.optimizer = c.optimizer, p.options = c.options;
    const int64_t sizes[] = {p.in * p.padded_hidden, c.has_b1 ? p.padded_hidden : 0, p.out * p.padded_hidden,
                             c.has_b2 ? p.padded_out : 0};
    for (int i = 0; i < 4; ++i) {
      parameters[i].resize(sizes[i]);
      for (int s = 0; s < Trained<T>::kStates; ++s)
        states[i][s].resize(optimizer_uses_state(p.optimizer, p.options, s) ? sizes[i] : 0);
    }
    w2_transposed.resize(p.padded_hidden * p.padded_out);
    Trained<T>* trained[] = {&p.w1, &p.b1, &p.w2, &p.b2};
    for (int i = 0; i < 4; ++i) {
      trained[i]->value = parameters[i].data();
      for (int s = 0; s < Trained<T>::kStates; ++s) trained[i]->state[s] = states[i][s].data();
    }
    p.w2_transposed = w2_transposed.data();
  }

  // To and from the engine's layout; `array` picks w1, b1, w2, b2 out of parameters or of a state.
  template <class Array>
  void load(const LinearLayout<const T>& from, Array array) {
    transpose(p.hidden, p.in, from.w1, p.in, array(0), p.padded_hidden);
    if (from.b1) std::copy_n(from.b1, p.hidden, array(1));
    for (int64_t o = 0; o < p.out; ++o) std::copy_n(from.w2 + o * p.hidden, p.hidden, array(2) + o * p.padded_hidden);
    if (from.b2) std::copy_n(from.b2, p.out, array(3));
  }

  template <class Array>
  void store(const LinearLayout<T>& to, Array array) const {
    transpose(p.in, p.hidden, array(0), p.padded_hidden, to.w1, p.in);
    if (to.b1) std::copy_n(array(1), p.hidden, to.b1);
    for (int64_t o = 0; o < p.out; ++o) std::copy_n(array(2) + o * p.padded_hidden, p.hidden, to.w2 + o * p.hidden);
    if (to.b2) std::copy_n(array(3), p.out, to.b2);
  }

  void reserve(int64_t batch) {
    if (batch <= batch_capacity) return;
    hidden_value.resize(batch * p.padded_hidden);
    grad_hidden.resize(batch * p.padded_hidden);
    const bool separate = activation_saves_input(p.activation);
    hidden_saved.resize(separate ? batch * p.padded_hidden : 0);
    partial.resize(p.blocks * batch * p.padded_out);
    grad_out.resize(batch * p.padded_out);
    row_loss.resize(batch);
    grad_weight.resize(batch > kDepth ? std::max(p.in, p.out) * p.padded_hidden : 0);
    p.hidden_value = hidden_value.data();
    p.hidden_saved = separate ? hidden_saved.data() : p.hidden_value;
    p.grad_hidden = grad_hidden.data();
    p.partial = partial.data();
    p.grad_out = grad_out.data();
    p.row_loss = row_loss.data();
    p.grad_weight = grad_weight.data();
    x_rows.resize(batch);
    classes.resize(batch);
    value_rows.resize(batch);
    batch_capacity = batch;
  }

  void draw_batch() {
    const int64_t first = steps_done * epoch->batch_size;
    p.batch = std::min(epoch->batch_size, data->rows - first);
    for (int64_t i = 0; i < p.batch; ++i) {
      const int64_t row = epoch->order ? epoch->order[first + i] : first + i;
      x_rows[i] = data->x + row * data->x_stride;
      if (data->classes) classes[i] = data->classes[row];
      if (data->values) value_rows[i] = data->values + row * data->value_stride;
    }
    p.x_rows = x_rows.data();
    p.classes = data->classes ? classes.data() : nullptr;
    p.value_rows = data->values ? value_rows.data() : nullptr;
  }

  int64_t run(const Dataset<T>& dataset, const Epoch& this_epoch, Poll poll) {
    data = &dataset, epoch = &this_epoch, on_poll = poll;
    if (epoch->steps == 0) return 0;
    reserve(std::min(epoch->batch_size, data->rows));
    steps_done = 0, phase = Phase::kForward, stop = false;
    next_poll = std::chrono::steady_clock::now() + kPollEvery;
    draw_batch();
    const int64_t work = 2 * p.batch * p.padded_hidden * (p.in + p.out);
    chunks = worthwhile_threads(work, std::min<int64_t>(threads_wanted, p.blocks));
    run_phases(chunks, *this);
    return steps_done;
  }

  void run_chunk(int chunk) override {
    const auto share = [&](int64_t count) { return std::pair(chunk * count / chunks, (chunk + 1) * count / chunks); };
    const auto [block0, block1] = share(p.blocks);
    const auto [row0, row1] = share(p.batch);
    switch (phase) {
      case Phase::kForward:
        return kernels.forward(p, block0, block1);
      case Phase::kLoss:
        return kernels.loss(p, row0, row1);
      case Phase::kBackward:
        return kernels.backward(p, block0, block1);
    }
  }

  bool advance() override {
    switch (phase) {
      case Phase::kForward:
        phase = Phase::kLoss;
        return true;
      case Phase::kLoss: {
        double total = 0;
        for (int64_t i = 0; i < p.batch; ++i) total += static_cast<double>(p.row_loss[i]);
        epoch->losses[steps_done] = total / loss_count(p.loss, p.batch, p.out);
        phase = Phase::kBackward;
        return true;
      }
      case Phase::kBackward:
        ++p.step;
        if (++steps_done == epoch->steps || stop.load(std::memory_order_relaxed)) return false;
        draw_batch();
        phase = Phase::kForward;
        return true;
    }
    return false;
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
  impl_->load(parameters, [&](int i) { return impl_->parameters[i].data(); });
  const TrainParams<T>& p = impl_->p;
  transpose(p.out, p.hidden, p.w2.value, p.padded_hidden, p.w2_transposed, p.padded_out);
}

template <class T>
void Engine<T>::store(const LinearLayout<T>& parameters) const {
  impl_->store(parameters, [&](int i) { return impl_->parameters[i].data(); });
}

template <class T>
bool Engine<T>::keeps_state(int state) const {
  return impl_->states[0][state].data() != nullptr;
}

template <class T>
void Engine<T>::load_state(int state, const LinearLayout<const T>& values, int64_t steps_taken) {
  impl_->load(values, [&](int i) { return impl_->states[i][state].data(); });
  impl_->p.step = steps_taken;
}

template <class T>
void Engine<T>::store_state(int state, const LinearLayout<T>& values) const {
  impl_->store(values, [&](int i) { return impl_->states[i][state].data(); });
}

template <class T>
int64_t Engine<T>::run(const Dataset<T>& data, const Epoch& epoch, Poll poll) {
  return impl_->run(data, epoch, poll);
}

template class Engine<float>;
template class Engine<double>;

void permutation(int64_t n, uint64_t seed, uint64_t epoch, int64_t* order) {
  uint64_t state = seed * 0x9E3779B97F4A7C15 + (epoch + 1) * 0xD1B54A32D192ED03;
  const auto next = [&] {
    uint64_t z = state += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  };
  state = next();  // the starts of neighbouring seeds differ by the generator's own increment: without this their draws
                   // overlap
  for (int64_t i = 0; i < n; ++i) order[i] = i;
  for (int64_t i = n - 1; i > 0; --i) {
    const auto j = static_cast<int64_t>((static_cast<unsigned __int128>(next()) * static_cast<uint64_t>(i + 1)) >> 64);
    std::swap(order[i], order[j]);
  }
}

}  // namespace twolayer::cpu
