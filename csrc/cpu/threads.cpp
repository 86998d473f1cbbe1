#include "cpu/threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/processors.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace twolayer::cpu {
namespace {

// 0.1 to 0.4 ms, by processor. Whoever sleeps while another is still being woken up may be woken in turn on that one's
// core, and the two take turns there for tens of ms.
constexpr int kSpins = 10000;
constexpr int kCacheLine = 64;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns the first value of `word` that is not `old`.
template <class T>
T wait_while(const std::atomic<T>& word, T old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    const T now = word.load(std::memory_order_acquire);
    if (now != old) return now;
    pause();
  }
  word.wait(old, std::memory_order_acquire);
  return word.load(std::memory_order_acquire);
}

using Task = void (*)(void* context, int thread);

// One sleeping thread. Its state goes idle → offered → running → idle; an offer nobody took yet can be withdrawn, so
// the owner of a task never waits for a thread that has not woken up.
class Worker {
 public:
  Worker() {
    std::thread([this] { loop(); }).detach();
  }

  ConfinedThread& thread() { return confined_; }

  void offer(Task task, void* context, int thread) {
    task_ = task;
    context_ = context;
    thread_ = thread;
    state_.store(kOffered, std::memory_order_release);
    offers_.fetch_add(1, std::memory_order_release);
    offers_.notify_one();
  }

  void withdraw_or_wait() {
    uint32_t expected = kOffered;
    if (state_.compare_exchange_strong(expected, kIdle, std::memory_order_acq_rel)) return;
    while (expected != kIdle) expected = wait_while<uint32_t>(state_, kRunning);
  }

 private:
  enum : uint32_t { kIdle, kOffered, kRunning };

  void loop() {
    confined_.begin();
    // Waiting for one more offer, not for the state to change: who wakes up too late for a short task has not slept
    // through its withdrawal, and is awake for the next.
    for (uint32_t seen = 0;;) {
      seen = wait_while<uint32_t>(offers_, seen);
      uint32_t expected = kOffered;
      if (!state_.compare_exchange_strong(expected, kRunning, std::memory_order_acq_rel)) continue;
      task_(context_, thread_);
      state_.store(kIdle, std::memory_order_release);
      state_.notify_all();
    }
  }

  alignas(kCacheLine) std::atomic<uint32_t> state_{kIdle};
  std::atomic<uint32_t> offers_{0};
  Task task_ = nullptr;
  void* context_ = nullptr;
  int thread_ = 0;
  ConfinedThread confined_;
};

// Idle workers; a call takes as many as it needs, so calls from several threads run side by side. Never destroyed: its
// threads are detached and sleep until the process ends.
class Pool {
 public:
  static Pool& instance() {
    static Pool* pool = [] {
      auto* made = new Pool;
      pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); }, [] { instance().forget(); });
      return made;
    }();
    return *pool;
  }

  std::vector<Worker*> take(int count) {
    std::vector<Worker*> taken;
    std::lock_guard lock(mutex_);
    for (; count > 0; --count) {
      if (idle_.empty()) {
        try {
          taken.push_back(new Worker);
        } catch (const std::system_error&) {
          break;  // the system gives no more threads: fewer do the same chunks, with the same result
        }
      } else {
        taken.push_back(idle_.back());
        idle_.pop_back();
      }
    }
    return taken;
  }

  void give_back(const std::vector<Worker*>& workers) {
    std::lock_guard lock(mutex_);
    // Reversed, so that the next call hands each worker the same place in the team, and with it a warm cache.
    idle_.insert(idle_.end(), workers.rbegin(), workers.rend());
  }

 private:
  void forget() {  // in the forked child: the threads are not there, only their records
    new (&mutex_) std::mutex;
    new (&idle_) std::vector<Worker*>;
  }

  std::mutex mutex_;
  std::vector<Worker*> idle_;
};

// Runs task(context, thread) on the caller (thread 0) and offers it to threads − 1 workers.
void run_team(int threads, Task task, void* context) {
  const std::vector<Worker*> workers = Pool::instance().take(threads - 1);
  const HelpersProcessors processors;
  for (Worker* worker : workers) processors.confine(worker->thread());
  for (size_t i = 0; i < workers.size(); ++i) workers[i]->offer(task, context, static_cast<int>(i) + 1);
  task(context, 0);
  for (Worker* worker : workers) worker->withdraw_or_wait();
  Pool::instance().give_back(workers);
}

OpenMPTeam openmp_team = nullptr;
OpenMPThreadNumber openmp_thread_number = nullptr;

// Chunks of a loop, in a range for each thread, who begins with its own: from call to call a thread then works on the
// same part of the same arrays, which its cache may still hold.
class Ranges {
 public:
  Ranges(int threads, int64_t chunks, void (*body)(void*, int64_t), void* context)
      : body_(body), context_(context), chunks_(chunks), count_(std::min(threads, kMost)) {
    for (int range = 0; range < count_; ++range) next_[range].chunk.store(begin(range), std::memory_order_relaxed);
  }

  void work(int thread) {
    for (int i = 0; i < count_; ++i) {
      const int range = (thread + i) % count_;
      std::atomic<int64_t>& next = next_[range].chunk;
      const int64_t end = begin(range + 1);
      for (int64_t chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < end;) body_(context_, chunk);
    }
  }

 private:
  static constexpr int kMost = 16;
  struct alignas(kCacheLine) Next {
    std::atomic<int64_t> chunk;
  };

  int64_t begin(int range) const { return chunks_ * range / count_; }

  void (*const body_)(void*, int64_t);
  void* const context_;
  const int64_t chunks_;
  const int count_;
  Next next_[kMost];
};

class PhaseRunner {
 public:
  PhaseRunner(int chunks, PhasedJob& job) : job_(job), chunks_(chunks), claims_(new Claim[chunks]) {}

  void run(int thread) {
    uint32_t phase = phase_.load(std::memory_order_acquire);
    while (phase != kEnd) {
      for (int i = 0; i < chunks_; ++i) {
        const int chunk = (thread + i) % chunks_;
        if (claim(chunk, phase)) finish(chunk, phase);
      }
      if (thread == 0) job_.poll();
      phase = wait_while<uint32_t>(phase_, phase);
    }
  }

 private:
  static constexpr uint32_t kEnd = 0;

  struct alignas(kCacheLine) Claim {
    std::atomic<uint32_t> phase{1};  // the last phase in which this chunk was claimed
  };

  // Only the step from the phase before to this one succeeds: a thread that slept through phases claims nothing stale.
  bool claim(int chunk, uint32_t phase) {
    uint32_t before = previous(phase);
    return claims_[chunk].phase.compare_exchange_strong(before, phase, std::memory_order_acq_rel);
  }

  void finish(int chunk, uint32_t phase) {
    job_.run_chunk(chunk);
    if (done_.fetch_add(1, std::memory_order_acq_rel) != chunks_ - 1) return;
    done_.store(0, std::memory_order_relaxed);
    phase_.store(job_.advance() ? next(phase) : kEnd, std::memory_order_release);
    phase_.notify_all();
  }

  static uint32_t next(uint32_t phase) { return phase + 1 == kEnd ? 1 : phase + 1; }
  static uint32_t previous(uint32_t phase) { return phase == 1 ? UINT32_MAX : phase - 1; }

  PhasedJob& job_;
  const int chunks_;
  std::unique_ptr<Claim[]> claims_;
  alignas(kCacheLine) std::atomic<int> done_{0};
  alignas(kCacheLine) std::atomic<uint32_t> phase_{2};
};

}  // namespace

void parallel_for(int threads, int64_t chunks, void (*body)(void*, int64_t), void* context) {
  threads = static_cast<int>(std::min<int64_t>(threads, chunks));
  if (threads <= 1) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) body(context, chunk);
    return;
  }
  Ranges ranges(threads, chunks, body, context);
  if (openmp_team)
    openmp_team([](void* shared) { static_cast<Ranges*>(shared)->work(openmp_thread_number()); }, &ranges,
                static_cast<unsigned>(threads), 0);
  else
    run_team(threads, [](void* shared, int thread) { static_cast<Ranges*>(shared)->work(thread); }, &ranges);
}

void borrow_threads(OpenMPTeam team, OpenMPThreadNumber thread_number) {
  openmp_thread_number = thread_number;
  static const int registered = pthread_atfork(nullptr, nullptr, [] { openmp_team = nullptr; });
  openmp_team = registered == 0 ? team : nullptr;
}

void run_phases(int threads, PhasedJob& job) {
  if (threads <= 1) {
    do {
      job.run_chunk(0);
      job.poll();
    } while (job.advance());
    return;
  }
  PhaseRunner runner(threads, job);
  run_team(threads, [](void* shared, int thread) { static_cast<PhaseRunner*>(shared)->run(thread); }, &runner);
}

}  // namespace twolayer::cpu
