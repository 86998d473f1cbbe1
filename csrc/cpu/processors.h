// On which processors the threads that help a calling thread are run.
#pragma once
#include <atomic>

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace twolayer::cpu {

#if defined(__linux__)

// A thread that may be confined to some processors.
class ConfinedThread {
 public:
  ConfinedThread() { CPU_ZERO(&processors_); }

  // Called by that thread; before, it cannot be confined.
  void begin() { id_.store(static_cast<pid_t>(syscall(SYS_gettid)), std::memory_order_release); }

 private:
  friend class HelpersProcessors;
  std::atomic<pid_t> id_{0};
  cpu_set_t processors_;  // that it was last confined to; none: it was not
};

// Those that the calling thread may run on, but for the one that it is on. A helper that was asleep is else likely to
// be woken on just that one, and the two take turns there until the system moves one of them, which takes 10 ms or
// more.
class HelpersProcessors {
 public:
  HelpersProcessors() {
    const int here = sched_getcpu();
    if (here < 0 || here >= CPU_SETSIZE || sched_getaffinity(0, sizeof processors_, &processors_) != 0) return;
    CPU_CLR(here, &processors_);
    known_ = CPU_COUNT(&processors_) > 0;
  }

  void confine(ConfinedThread& helper) const {
    const pid_t id = helper.id_.load(std::memory_order_acquire);
    if (!known_ || id == 0 || CPU_EQUAL(&helper.processors_, &processors_)) return;
    if (sched_setaffinity(id, sizeof processors_, &processors_) == 0) helper.processors_ = processors_;
  }

 private:
  cpu_set_t processors_;
  bool known_ = false;
};

#else

struct ConfinedThread {
  void begin() {}
};
struct HelpersProcessors {
  void confine(ConfinedThread&) const {}
};

#endif

}  // namespace twolayer::cpu
