// Runs CUDA kernels, compiled as C++, on the CPU: every thread of a block is a fiber, all on one thread of the process.
//
// The blocks of a cluster run together, clusters one after the other in an order that follows from a seed, as does the
// order in which fibers get their turns. A fiber runs until it must wait; with an odd seed, one block after the other
// is held until no other can go on. Shared memory starts as NaN, and is exactly as large as the launch asked for.
// Copies with copy_async happen no earlier than they are waited for.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace emulation {

struct Index {
  unsigned x, y, z;
};

// What a fiber can ask about itself.
struct Thread {
  Index thread, block;
  Index block_size, grid_size;
  int lane, rank, cluster_size;
};
const Thread& current();

char* shared_memory(int rank);  // of a block of the cluster
void block_barrier();
void warp_barrier();
void cluster_barrier();

// All lanes of a warp give `bytes` each; the last to come calls combine(all inputs, all outputs) with room for
// out_bytes a lane, and each gets its own.
void exchange(const void* in, size_t bytes, void* out, size_t out_bytes,
              const std::function<void(const char* in, char* out)>& combine);

void copy_later(void* to, const void* from, size_t bytes, size_t valid);
void commit_copies();
void wait_for_copies(size_t groups);

// What arrives at a barrier of a block, when all that was announced for a phase is on its way and a thread waits for
// it; but what is sent with an odd seed is there at once, so that it shows who overwrites what is still read.
void prepare_arrival(uint64_t* arrival);
void announce(uint64_t* arrival, size_t bytes);
void copy_bulk(void* to, const void* from, size_t bytes, uint64_t* arrival);
void send(void* shared, int rank, const void* value, size_t bytes, uint64_t* arrival);  // both in this block's memory
void wait_for_arrival(uint64_t* arrival, int parity);

void some_threads_barrier(int threads);  // of the block, the same ones each time

struct Grid {
  unsigned blocks, threads;
  size_t shared_bytes;
  int cluster;
  bool is_cluster = false;  // launched as clusters, be it of one block: without it nothing can be sent
};
// Runs the body in every thread. False: a device would refuse the launch. Threads of the process take turns.
bool run(const Grid& grid, const std::function<void()>& body);

struct Settings {
  uint64_t seed = 0;
  int multiprocessors = 132, shared_bytes = 227 << 10, capability = 90;
  int64_t last_clusters = 0;        // so many of a launch run, where it has more; 0: all
  int skipped_barrier = -1;         // that __syncthreads, counted from 0 in each thread of the launch, does nothing
  size_t memory = size_t{1} << 40;  // that an allocation can have, in bytes
};
extern Settings settings;

struct Counts {
  int64_t launches, blocks, clusters;
  int64_t barriers;  // __syncthreads, the most of any thread
  int64_t graphs;    // launched
};
extern Counts counts;

// How often a thread has been given its turn: the device's clock, so that what depends on time is the same on every
// run.
extern std::atomic<uint64_t> turns;
constexpr double kSecondsPerTurn = 20e-9;  // several times as fast as this emulation is

}  // namespace emulation
