#include "cuda/engine.h"

#include <algorithm>
#include <tuple>

#include "cuda/chunks.h"
#include "cuda/resources.h"
#include "cuda/steps.h"

namespace twolayer::cuda {
namespace {

constexpr int64_t kGraphSteps = 8;                       // in one graph
constexpr int64_t kMostEvaluated = 2048;                 // rows at a time
constexpr int64_t kEvaluatedNumbers = int64_t{1} << 26;  // of scratch, about

}  // namespace

template <class T>
struct Engine<T>::Impl {
  const EngineConfig config;
  const int device;
  const bool may_cluster;
  Launch launch;
  Stream stream = make_stream();
  Event before = make_event();  // the caller's stream has done what it was given
  Chunks chunks;
  Pace training_pace, evaluation_pace;
  Training<T> training{};
  int64_t sizes[kParameters];
  DeviceArray<T> values[kParameters], states[kParameters][Learned<T>::kStates];
  DeviceArray<char> scratch;
  DeviceArray<Progress> progress;
  Mirrored<int64_t> order;
  Mirrored<char> rules;
  Mirrored<double> losses;
  Mirrored<Totals> totals;
  int64_t steps = 0;
  std::string path;
  GraphExec graph;

  // What the graph holds beside what an engine keeps.
  struct Captured {
    Examples<T> examples;
    const int64_t* order;
    int64_t rows, batch_size;
    const void* rules;
    double* losses;
    bool stop_if_not_finite;
    void* scratch;

    bool operator==(const Captured& o) const {
      const auto all = [](const Captured& c) {
        const Examples<T>& e = c.examples;
        return std::make_tuple(e.x, e.x_stride, e.storage, e.scale, e.shift, e.classes, e.values, e.value_stride,
                               e.row_weight, e.class_weight, c.order, c.rows, c.batch_size, c.rules, c.losses,
                               c.stop_if_not_finite, c.scratch);
      };
      return all(*this) == all(o);
    }
  };
  Captured captured{};

  Impl(const EngineConfig& c, int index, bool clusters) : config(c), device(index), may_cluster(clusters) {
    launch.stream = stream.get();
    launch.device = read_device(index);
    training.in = c.in, training.hidden = c.hidden, training.out = c.out;
    training.activation = c.activation, training.loss = c.loss, training.optimizer = c.optimizer;
    training.loss_options = c.loss_options, training.gradient = c.gradient;
    training.penalty_per_row = c.penalty_per_row;
    training.dropout = c.dropout, training.dropout_key = c.dropout_key;
    training.bfloat16_compute = c.bfloat16_compute;
    const int64_t all[] = {c.hidden * c.in, c.hidden, c.out * c.hidden, c.out};
    for (int i = 0; i < kParameters; ++i) {
      sizes[i] = c.present[i] ? all[i] : 0;
      Learned<T>& learned = training.parameters[i];
      learned.frozen = c.frozen[i];
      if (!c.present[i]) continue;
      learned.value = zeros(values[i], sizes[i]);
      for (int s = 0; s < Learned<T>::kStates; ++s)
        if (!c.frozen[i] && uses_state(c.optimizer, c.options, s)) learned.state[s] = zeros(states[i][s], sizes[i]);
    }
    progress.grow(1);
    totals.grow(1);
    synchronize();
  }

  template <class N>
  N* zeros(DeviceArray<N>& array, int64_t count) {
    clear(array.grow(count), count);
    return array.data();
  }

  template <class N>
  void clear(N* numbers, int64_t count) {
    check(cudaMemsetAsync(numbers, 0, static_cast<size_t>(count) * sizeof(N), stream.get()), "clear its memory");
  }

  void synchronize() const { check(cudaStreamSynchronize(stream.get()), "copy parameters"); }

  void wait_for(void* after) const {
    check(cudaEventRecord(before.get(), static_cast<cudaStream_t>(after)), "wait for torch's stream");
    check(cudaStreamWaitEvent(stream.get(), before.get(), 0), "wait for torch's stream");
  }

  // Parameter i, or one of its states, is at array(i). Both ways at once: what is null on either side is left out.
  template <class From, class To>
  void copy(From from, To to, void* after) const {
    const OnDevice current(device);
    wait_for(after);
    for (int i = 0; i < kParameters; ++i)
      if (const T* numbers = from(i); numbers && to(i))
        check(cudaMemcpyAsync(to(i), numbers, static_cast<size_t>(sizes[i]) * sizeof(T), cudaMemcpyDeviceToDevice,
                              stream.get()),
              "copy parameters");
    synchronize();
  }

  void check_launches() const {
    if (const std::string error = last_error(); !error.empty())
      throw std::runtime_error("twolayer could not launch its CUDA kernels: " + error);
  }

  // Steps on these rows, without what training alone has; the order is on its way to the device.
  Steps<T> steps_on(const Examples<T>& rows, const Order& asked, int64_t batch_size) {
    Steps<T> s{};
    s.training = training;
    s.examples = rows;
    if (asked.row) {
      order.grow(asked.rows);
      std::copy_n(asked.row, asked.rows, order.host());
      order.send(asked.rows, stream);
      s.order = order.device();
    }
    s.rows = asked.rows;
    s.batch_size = std::min(batch_size, asked.rows);
    s.progress = progress.data();
    clear(s.progress, 1);
    return s;
  }

  void send_rules(int64_t count, const double* lr) {
    const int64_t bytes = rule_bytes<T>(training.optimizer);
    rules.grow(count * bytes);
    OptimizerOptions options = config.options;
    for (int64_t i = 0; i < count; ++i) {
      options.lr = lr[i];
      make_rule<T>(training.optimizer, options, steps + i, rules.host() + i * bytes);
    }
    rules.send(count * bytes, stream);
  }

  // Whatever ends a call, nothing of it may be under way when the caller goes on with its memory.
  struct Quiet {
    const Stream& stream;
    ~Quiet() {
      if (cudaStreamSynchronize(stream.get()) != cudaSuccess) cudaGetLastError();
    }
  };

  RunResult run(const Examples<T>& rows, const Stretch& stretch, Poll poll, void* after) {
    if (stretch.steps == 0) return {};
    const OnDevice current(device);
    const Quiet quiet{stream};
    wait_for(after);
    Steps<T> s = steps_on(rows, stretch.order, stretch.batch_size);
    s.first_step = stretch.first_step, s.steps = stretch.steps, s.steps_before = steps;
    send_rules(s.steps, stretch.lr);
    losses.grow(s.steps);
    s.rules = rules.device(), s.losses = losses.device();
    s.stop_if_not_finite = stretch.stop_if_not_finite;

    const bool in_cluster = may_cluster && cluster_blocks(s, launch.device) > 0;
    path = in_cluster ? "cluster" : "graph";
    if (!in_cluster) {
      scratch.grow(steps_scratch(s, true, launch));
      begin_steps(s, scratch.data(), launch);
    }
    const Progress made =
        chunks.run(s.steps, s.batch_size, training_pace, poll, s.progress, stream, [&](int64_t done, int64_t count) {
          if (in_cluster)
            take_steps_in_cluster(part_of(s, done, count), launch);
          else
            take_steps(s, count);
          check_launches();
        });
    const int64_t seen = made.steps + (made.ended ? 1 : 0);
    losses.fetch(seen, stream);
    synchronize();
    std::copy_n(losses.host(), seen, stretch.losses);
    steps += made.steps;
    return {made.steps, made.ended != 0};
  }

  static Steps<T> part_of(Steps<T> s, int64_t done, int64_t count) {
    s.first_step += done, s.steps_before += done, s.steps = count;
    s.rules = static_cast<const char*>(s.rules) + done * rule_bytes<T>(s.training.optimizer);
    s.losses += done;
    return s;
  }

  void take_steps(const Steps<T>& s, int64_t count) {
    if (count >= kGraphSteps) capture(s);
    for (; count >= kGraphSteps; count -= kGraphSteps)
      check(cudaGraphLaunch(graph.get(), stream.get()), "launch its graph");
    for (; count > 0; --count) take_step(s, scratch.data(), launch);
  }

  // Makes the graph one of kGraphSteps of these steps.
  void capture(const Steps<T>& s) {
    const Captured wanted{s.examples,           s.order,       s.rows, s.batch_size, s.rules, s.losses,
                          s.stop_if_not_finite, scratch.data()};
    if (graph.get() && captured == wanted) return;
    check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "capture a graph");
    for (int64_t i = 0; i < kGraphSteps; ++i) take_step(s, scratch.data(), launch);
    cudaGraph_t made = nullptr;
    check(cudaStreamEndCapture(stream.get(), &made), "capture a graph");
    const Graph steps_as_graph(made);
    cudaGraphExec_t executable = nullptr;
    check(cudaGraphInstantiate(&executable, made, 0), "make its graph");
    graph = GraphExec(executable);
    captured = wanted;
  }

  Evaluation evaluate(const Examples<T>& rows, const Order& asked, Poll poll, void* after) {
    const OnDevice current(device);
    const Quiet quiet{stream};
    wait_for(after);
    const int64_t wanted = kEvaluatedNumbers / (training.in + 2 * training.hidden + training.out);
    Steps<T> s = steps_on(rows, asked, std::clamp<int64_t>(wanted, 1, kMostEvaluated));
    s.steps = s.rows / s.batch_size + (s.rows % s.batch_size != 0);
    clear(totals.device(), 1);
    scratch.grow(steps_scratch(s, false, launch));
    begin_steps(s, scratch.data(), launch);
    chunks.run(s.steps, s.batch_size, evaluation_pace, poll, s.progress, stream, [&](int64_t, int64_t count) {
      for (; count > 0; --count) evaluate_batch(s, scratch.data(), totals.device(), launch);
      check_launches();
    });
    totals.fetch(1, stream);
    synchronize();
    const Totals& found = *totals.host();
    return {found.loss_sum, found.divisor, found.hits};
  }
};

template <class T>
Engine<T>::Engine(const EngineConfig& config, int device, bool may_cluster) {
  const OnDevice current(device);
  impl_ = std::make_unique<Impl>(config, device, may_cluster);
}
template <class T>
Engine<T>::~Engine() = default;

template <class T>
void Engine<T>::load(const LinearLayout<const T>& parameters, void* after) {
  impl_->copy([&](int i) { return parameters[i]; }, [&](int i) { return impl_->values[i].data(); }, after);
}

template <class T>
void Engine<T>::store(const LinearLayout<T>& parameters, void* after) const {
  impl_->copy([&](int i) { return impl_->values[i].data(); }, [&](int i) { return parameters[i]; }, after);
}

template <class T>
bool Engine<T>::keeps_state(int state) const {
  return uses_state(impl_->config.optimizer, impl_->config.options, state);
}

template <class T>
void Engine<T>::load_state(int state, const LinearLayout<const T>& values, void* after) {
  impl_->copy([&](int i) { return values[i]; }, [&](int i) { return impl_->states[i][state].data(); }, after);
}

template <class T>
void Engine<T>::store_state(int state, const LinearLayout<T>& values, void* after) const {
  impl_->copy([&](int i) { return impl_->states[i][state].data(); }, [&](int i) { return values[i]; }, after);
}

template <class T>
int64_t Engine<T>::steps() const {
  return impl_->steps;
}

template <class T>
void Engine<T>::set_steps(int64_t steps) {
  impl_->steps = steps;
}

template <class T>
RunResult Engine<T>::run(const Examples<T>& rows, const Stretch& stretch, Poll poll, void* after) {
  return impl_->run(rows, stretch, poll, after);
}

template <class T>
Evaluation Engine<T>::evaluate(const Examples<T>& rows, const Order& order, Poll poll, void* after) {
  return impl_->evaluate(rows, order, poll, after);
}

template <class T>
const std::string& Engine<T>::path() const {
  return impl_->path;
}

template class Engine<float>;
template class Engine<double>;

}  // namespace twolayer::cuda
