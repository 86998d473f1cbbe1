// How an engine hands steps to a device: in chunks, two on their way at a time, each so long that asking whether to
// stop takes no time and stopping little.
#pragma once
#include <chrono>
#include <thread>

#include "cuda/resources.h"
#include "cuda/train.h"
#include "training.h"

namespace twolayer::cuda {

using Clock = std::chrono::steady_clock;

// How many steps make a chunk, from how long those before took.
class Pace {
 public:
  int64_t chunk(int64_t rows_per_step) const {
    if (seconds_per_row_ == 0) return kFirst;
    const double wanted = kSeconds / (seconds_per_row_ * static_cast<double>(rows_per_step));
    const double most = kGrowth * static_cast<double>(last_);
    return wanted < 1 ? 1 : static_cast<int64_t>(wanted < most ? wanted : most);
  }
  // Whether a chunk's time is so well known that another may wait behind it.
  bool is_known() const { return seconds_per_row_ != 0 && last_seconds_ < 2 * kSeconds; }
  void note(int64_t steps, int64_t rows_per_step, double seconds) {
    if (seconds > 0) seconds_per_row_ = seconds / static_cast<double>(steps * rows_per_step);
    last_ = steps > last_ ? steps : last_;
    last_seconds_ = seconds;
  }

 private:
  static constexpr double kSeconds = 0.012;
  static constexpr int64_t kFirst = 1, kGrowth = 8;
  double seconds_per_row_ = 0, last_seconds_ = 0;
  int64_t last_ = kFirst;
};

// Asks on_poll from time to time.
class Poller {
 public:
  explicit Poller(Poll poll) : poll_(poll), next_(Clock::now() + kEvery) {}

  bool stopped() const { return stopped_; }
  void ask(int64_t steps_done) {
    if (stopped_ || Clock::now() < next_) return;
    next_ = Clock::now() + kEvery;
    stopped_ = poll_.stop(poll_.context, steps_done);
  }

 private:
  static constexpr auto kEvery = std::chrono::milliseconds(20);
  Poll poll_;
  Clock::time_point next_;
  bool stopped_ = false;
};

// Takes `count` steps, or fewer where it is told to stop or the run has ended: launch(first, steps) launches a chunk.
class Chunks {
 public:
  Chunks() {
    for (Event& mark : marks_) mark = make_event();
    progress_.grow(kMarks);
  }

  // Returns the progress made.
  template <class LaunchChunk>
  Progress run(int64_t count, int64_t rows_per_step, Pace& pace, Poll poll, const Progress* progress,
               const Stream& stream, LaunchChunk&& launch) {
    Poller poller(poll);
    int64_t sizes[kMarks] = {}, launched = 0, chunks_launched = 0, chunks_done = 0;
    Progress made{};
    mark(0, stream);
    while (true) {
      while (!poller.stopped() && !made.ended && launched < count &&
             chunks_launched < chunks_done + (pace.is_known() ? kInFlight : 1)) {
        int64_t steps = pace.chunk(rows_per_step);
        if (steps > count - launched) steps = count - launched;
        launch(launched, steps);
        launched += steps;
        const int slot = static_cast<int>(++chunks_launched % kMarks);
        sizes[slot] = steps;
        check(
            cudaMemcpyAsync(progress_.data() + slot, progress, sizeof(Progress), cudaMemcpyDeviceToHost, stream.get()),
            "copy its progress");
        mark(slot, stream);
        poller.ask(made.steps);
      }
      if (chunks_done == chunks_launched) return made;
      const int before = static_cast<int>(chunks_done % kMarks), slot = static_cast<int>(++chunks_done % kMarks);
      wait(marks_[slot], poller, made.steps);
      made = progress_.data()[slot];
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, marks_[before].get(), marks_[slot].get()), "time its steps");
      pace.note(sizes[slot], rows_per_step, milliseconds * 1e-3);
    }
  }

 private:
  static constexpr int kInFlight = 2, kMarks = kInFlight + 1;

  void mark(int slot, const Stream& stream) {
    check(cudaEventRecord(marks_[slot].get(), stream.get()), "launch its steps");
  }

  static void wait(const Event& event, Poller& poller, int64_t steps_done) {
    constexpr auto kShortest = std::chrono::microseconds(50), kLongest = std::chrono::microseconds(500);
    const Clock::time_point begin = Clock::now();
    for (;;) {
      const cudaError_t state = cudaEventQuery(event.get());
      if (state == cudaSuccess) return;
      if (state != cudaErrorNotReady) check(state, "train");
      cudaGetLastError();  // or the next launch would seem to have failed
      poller.ask(steps_done);
      const auto pause = (Clock::now() - begin) / 64;  // so that the end is noticed soon
      if (pause < kShortest)
        std::this_thread::yield();
      else
        std::this_thread::sleep_for(pause < kLongest ? pause : kLongest);
    }
  }

  Event marks_[kMarks];
  PinnedArray<Progress> progress_;  // after each chunk
};

}  // namespace twolayer::cuda
