// The core's own threads. Waits spin briefly and then sleep; work is claimed in chunks, so a descheduled thread delays
// the chunk it holds and nothing else; the pool is emptied in a forked child, which starts its own threads when it
// needs them.
#pragma once
#include <cstdint>

namespace twolayer::cpu {

// Calls body(context, chunk) for each chunk in [0, chunks), on up to `threads` threads, the caller one of them.
void parallel_for(int threads, int64_t chunks, void (*body)(void* context, int64_t chunk), void* context);

template <class Body>
void parallel_for(int threads, int64_t chunks, Body&& body) {
  parallel_for(
      threads, chunks, [](void* context, int64_t chunk) { (*static_cast<Body*>(context))(chunk); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Has parallel_for borrow the threads of the OpenMP library that others in this process compute with, whose threads
// spin for a while after their work and would keep ours from the cores. They are GOMP_parallel and omp_get_thread_num;
// null: the core's own threads, which a forked child uses anyhow, since OpenMP's do not survive a fork.
using OpenMPTeam = void (*)(void (*task)(void* context), void* context, unsigned threads, unsigned flags);
using OpenMPThreadNumber = int (*)();
void borrow_threads(OpenMPTeam team, OpenMPThreadNumber thread_number);

// A sequence of phases, each of one chunk per thread. A phase ends when its last chunk does, whoever ran it; then that
// thread alone calls advance(), whose writes every later chunk sees. A thread takes its own chunk first (its data is in
// that core's cache), then any that nobody has begun.
class PhasedJob {
 public:
  virtual ~PhasedJob() = default;
  virtual void run_chunk(int chunk) = 0;  // the chunk's part of the current phase
  virtual bool advance() = 0;             // prepares the next phase; false when there is none
  virtual void poll() = 0;                // called now and then, by the calling thread only, between chunks
};

void run_phases(int threads, PhasedJob& job);

}  // namespace twolayer::cpu
