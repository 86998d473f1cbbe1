#include "cpu/limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace twolayer::cpu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kTrials = 8;
constexpr double kShortestRun = 2e-3;  // seconds; by it the amount of work is set

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Units of work per second of all threads together. work(thread, repeats) returns the units it did. Not the pool's
// threads, which take each other's chunks: here each must do its own.
template <class Work>
double best_rate(int threads, double seconds, const Work& work) {
  int64_t repeats = 1;
  double once = 0;
  for (;; repeats *= 2) {
    const auto start = Clock::now();
    work(0, repeats);
    once = seconds_since(start);
    if (once > kShortestRun) break;
  }
  repeats = std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(repeats) * seconds / (kTrials * once)));

  double best = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::atomic<int> ready{0};
    std::atomic<int64_t> done{0};
    Clock::time_point start;
    const auto run = [&](int thread) {
      if (++ready == threads) start = Clock::now(), ++ready;
      while (ready.load() <= threads) std::this_thread::yield();
      done += work(thread, repeats);
    };
    std::vector<std::thread> others;
    for (int thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
    run(0);
    for (std::thread& other : others) other.join();
    best = std::max(best, static_cast<double>(done.load()) / seconds_since(start));
  }
  return best;
}

template <class T>
double multiply_adds(int threads, double seconds, int64_t (*kernel)(int64_t, T*)) {
  constexpr int64_t kRounds = 1000;
  return best_rate(threads, seconds, [&](int, int64_t repeats) {
    T result = T(0.5);
    volatile T sink = 0;
    const int64_t done = kernel(kRounds * repeats, &result);
    sink = result;
    static_cast<void>(sink);
    return done;
  });
}

}  // namespace

double multiply_add_gflops(const Isa& isa, LimitType type, int threads, double seconds) {
  const auto rate = type == LimitType::kFloat32   ? multiply_adds(threads, seconds, isa.limits.multiply_adds_f32)
                    : type == LimitType::kFloat64 ? multiply_adds(threads, seconds, isa.limits.multiply_adds_f64)
                                                  : multiply_adds(threads, seconds, isa.pairs->multiply_adds);
  return 2e-9 * rate;
}

double read_gigabytes(const Isa& isa, int64_t bytes, int threads, double seconds) {
  const int64_t n = bytes / 64 * 16;  // floats, in whole cache lines
  const Scratch<float> memory(threads * n);
  std::fill_n(memory.data, threads * n, 1.0f);  // pages that nobody has written may all be one page of zeros
  const double rate = best_rate(threads, seconds, [&](int thread, int64_t repeats) {
    int64_t done = 0;
    volatile float sink = 0;
    for (int64_t repeat = 0; repeat < repeats; ++repeat) {
      float result;
      done += isa.limits.read(n, memory.data + thread * n, &result);
      sink = result;
    }
    static_cast<void>(sink);
    return done;
  });
  return 1e-9 * rate * sizeof(float);
}

}  // namespace twolayer::cpu
