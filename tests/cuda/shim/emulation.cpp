#include "emulation.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulation {

Settings settings;
Counts counts;
std::atomic<uint64_t> turns{0};

namespace {

constexpr size_t kStackBytes = 64 << 10, kGuardBytes = 4 << 10;
constexpr int kWarp = 32;
constexpr int kMostShared = 227 << 10, kMostThreads = 1024, kMostInCluster = 16;

[[noreturn]] void fail(const char* why) {
  std::fprintf(stderr, "emulated CUDA: %s\n", why);
  std::abort();
}

// ---- Stacks that can be left and taken up again

#if defined(__x86_64__)
extern "C" void emulation_switch(void** from, void* to);
asm(R"(
.text
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch, .-emulation_switch
)");
#endif

struct Context {
#if defined(__x86_64__)
  void* top = nullptr;
#else
  ucontext_t top;
#endif
  const void* stack = nullptr;  // of a fiber; the scheduler's own is found out at the first switch
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // ASan's
};

void begin_switch(Context& from, const Context& to, bool leaves_for_good) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(leaves_for_good ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#else
  (void)from, (void)to, (void)leaves_for_good;
#endif
}

void end_switch(Context& mine, Context* other) {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(mine.fake_stack, &stack, &bytes);
  if (other) other->stack = stack, other->stack_bytes = bytes;
#else
  (void)mine, (void)other;
#endif
}

void switch_to(Context& from, Context& to, bool leaves_for_good = false) {
  begin_switch(from, to, leaves_for_good);
#if defined(__x86_64__)
  emulation_switch(&from.top, to.top);
#else
  swapcontext(&from.top, &to.top);
#endif
}

// ---- Waiting

struct Barrier {
  int expected = 0, arrived = 0;
  uint64_t generation = 0;

  void release() {
    arrived = 0;
    ++generation;
  }
  void leave() {  // a thread that has ended is no longer waited for
    if (--expected == arrived && expected > 0) release();
  }
};

struct Warp {
  Barrier barrier;
  std::vector<char> in, out;
};

// What is on its way to a place in a block's memory, and what is known of the barrier where it arrives.
struct Delivery {
  void* to;
  const void* from;  // null: `value`
  std::array<char, 8> value;
  size_t bytes;
};
struct Arrivals {
  bool announced = false;
  size_t expected = 0, coming = 0;
  uint64_t phases = 0;  // that are over
  std::vector<Delivery> deliveries;
};

struct Block {
  Barrier barrier;
  Barrier some_threads;
  std::map<const uint64_t*, Arrivals> arrivals;  // by the barrier's place
  std::vector<Warp> warps;
  std::unique_ptr<char[]> shared;
};

struct Copy {
  char* to;
  const char* from;
  size_t bytes, valid;
};

struct Fiber {
  Context context;
  Thread thread;
  Block* block;
  Warp* warp;
  const Barrier* waits_for = nullptr;
  std::function<bool()> ready;  // or what it waits for
  uint64_t generation = 0;
  int64_t barriers = 0;
  bool ended = false;
  std::vector<Copy> copies;    // that have not happened
  std::vector<size_t> groups;  // of them: where each ends
};

Context scheduler;
Fiber* running = nullptr;
bool launched_as_clusters = false;
const std::function<void()>* body = nullptr;
std::vector<Block> blocks;
Barrier cluster;

void fiber_main() {
  end_switch(running->context, &scheduler);
  (*body)();
  running->ended = true;
  running->warp->barrier.leave();
  running->block->barrier.leave();
  cluster.leave();
  switch_to(running->context, scheduler, true);
  fail("a thread that had ended ran on");
}

// Stacks are kept from launch to launch.
char* stack(size_t index) {
  static std::vector<char*> stacks;
  while (stacks.size() <= index) {
    void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for a thread's stack");
    mprotect(memory, kGuardBytes, PROT_NONE);
    stacks.push_back(static_cast<char*>(memory));
  }
  return stacks[index] + kGuardBytes;
}

void prepare(Fiber& fiber, size_t index) {
  fiber.waits_for = nullptr;
  fiber.ready = nullptr;
  fiber.barriers = 0;
  fiber.ended = false;
  fiber.copies.clear();
  fiber.groups.clear();
  Context& context = fiber.context;
  char* const memory = stack(index);
  context.stack = memory, context.stack_bytes = kStackBytes;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(memory, kStackBytes);  // of the frames of a fiber that has ended
#endif
#if defined(__x86_64__)
  void** top =
      reinterpret_cast<void**>(memory + kStackBytes) - 1;  // as a call leaves the stack: 8 bytes past a multiple of 16
  *--top = reinterpret_cast<void*>(fiber_main);
  top -= 6;
  std::fill(top, top + 6, nullptr);
  context.top = top;
#else
  getcontext(&context.top);
  context.top.uc_stack.ss_sp = memory;
  context.top.uc_stack.ss_size = kStackBytes;
  context.top.uc_link = nullptr;
  makecontext(&context.top, fiber_main, 0);
#endif
}

void wait_at(Barrier& barrier, const std::function<void()>& last = {}) {
  if (++barrier.arrived == barrier.expected) {
    if (last) last();
    barrier.release();
    return;
  }
  Fiber& me = *running;
  me.waits_for = &barrier;
  me.generation = barrier.generation;
  switch_to(me.context, scheduler);
  end_switch(me.context, &scheduler);
  me.waits_for = nullptr;
}

// Runs a cluster whose first block has this number.
void run_cluster(const Grid& grid, unsigned first, std::mt19937_64& random) {
  blocks.clear();
  blocks.resize(grid.cluster);
  for (Block& block : blocks) {
    block.barrier.expected = static_cast<int>(grid.threads);
    block.warps.resize((grid.threads + kWarp - 1) / kWarp);
    block.shared.reset(new char[grid.shared_bytes]);
    std::memset(block.shared.get(), 0xff, grid.shared_bytes);
  }
  cluster = {};
  cluster.expected = static_cast<int>(grid.threads) * grid.cluster;

  static std::vector<Fiber> fibers;  // kept, with what they own
  const size_t count = size_t{grid.threads} * grid.cluster;
  if (fibers.size() < count) fibers.resize(count);
  for (size_t i = 0; i < count; ++i) {
    Fiber& fiber = fibers[i];
    const int rank = static_cast<int>(i / grid.threads);
    const unsigned thread = static_cast<unsigned>(i % grid.threads);
    fiber.block = &blocks[rank];
    fiber.warp = &fiber.block->warps[thread / kWarp];
    ++fiber.warp->barrier.expected;
    fiber.thread = {{thread, 0, 0},
                    {first + static_cast<unsigned>(rank), 0, 0},
                    {grid.threads, 1, 1},
                    {grid.blocks, 1, 1},
                    static_cast<int>(thread % kWarp),
                    rank,
                    grid.cluster};
    prepare(fiber, i);
  }

  std::vector<Fiber*> waiting(count);
  for (size_t i = 0; i < count; ++i) waiting[i] = &fibers[i];
  std::shuffle(waiting.begin(), waiting.end(), random);
  const Block* held = nullptr;
  for (uint64_t round = 0, next = 0; !waiting.empty(); ++round) {
    constexpr uint64_t kMostRounds = 32;  // without a block that is held
    if (settings.seed % 2 && !held && round >= next) held = &blocks[random() % blocks.size()];
    bool progress = false;
    for (Fiber* fiber : waiting) {
      if (fiber->block == held) continue;
      if (fiber->waits_for && fiber->waits_for->generation == fiber->generation) continue;
      if (fiber->ready && !fiber->ready()) continue;
      progress = true;
      turns.fetch_add(1, std::memory_order_relaxed);
      running = fiber;
      switch_to(scheduler, fiber->context);
      end_switch(scheduler, nullptr);
    }
    if (!progress && !held) fail("threads wait for each other at different barriers");
    if (!progress) held = nullptr, next = round + 1 + random() % kMostRounds;
    std::erase_if(waiting, [](const Fiber* fiber) { return fiber->ended; });
  }
  running = nullptr;
  for (const Block& block : blocks)
    for (const auto& [place, arrivals] : block.arrivals)
      if (arrivals.announced || arrivals.coming) fail("a kernel ended before something arrived");
  for (size_t i = 0; i < count; ++i) counts.barriers = std::max(counts.barriers, fibers[i].barriers);
}

}  // namespace

const Thread& current() { return running->thread; }

char* shared_memory(int rank) {
  if (rank < 0 || rank >= static_cast<int>(blocks.size())) fail("there is no block of that rank in the cluster");
  return blocks[rank].shared.get();
}

void block_barrier() {
  if (running->barriers++ == settings.skipped_barrier) return;
  wait_at(running->block->barrier);
}

void warp_barrier() { wait_at(running->warp->barrier); }

void cluster_barrier() { wait_at(cluster); }

void exchange(const void* in, size_t bytes, void* out, size_t out_bytes,
              const std::function<void(const char*, char*)>& combine) {
  Warp& warp = *running->warp;
  const int lane = running->thread.lane;
  if (warp.in.size() < kWarp * bytes) warp.in.resize(kWarp * bytes);
  if (warp.out.size() < kWarp * out_bytes) warp.out.resize(kWarp * out_bytes);
  std::memcpy(warp.in.data() + lane * bytes, in, bytes);
  // Results stay until all have come to the next exchange, and so have read them.
  wait_at(warp.barrier, [&] { combine(warp.in.data(), warp.out.data()); });
  std::memcpy(out, warp.out.data() + lane * out_bytes, out_bytes);
}

void copy_later(void* to, const void* from, size_t bytes, size_t valid) {
  if (reinterpret_cast<uintptr_t>(to) % bytes || (valid && reinterpret_cast<uintptr_t>(from) % bytes))
    fail("an address of copy_async is not a multiple of what it copies");
  running->copies.push_back({static_cast<char*>(to), static_cast<const char*>(from), bytes, valid});
}

void commit_copies() { running->groups.push_back(running->copies.size()); }

void wait_for_copies(size_t groups) {
  std::vector<Copy>& copies = running->copies;
  std::vector<size_t>& ends = running->groups;
  if (ends.size() <= groups) return;
  const size_t last = ends.size() - groups, done = ends[last - 1];
  for (size_t i = 0; i < done; ++i) {
    const Copy& copy = copies[i];
    std::memset(copy.to + copy.valid, 0, copy.bytes - copy.valid);
    if (copy.valid) std::memcpy(copy.to, copy.from, copy.valid);
  }
  copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(done));
  ends.erase(ends.begin(), ends.begin() + static_cast<std::ptrdiff_t>(last));
  for (size_t& end : ends) end -= done;
}

Arrivals& arrivals_at(Block& block, const uint64_t* arrival) {
  const auto found = block.arrivals.find(arrival);
  if (found == block.arrivals.end()) fail("there is no barrier prepared where something is to arrive");
  return found->second;
}

void prepare_arrival(uint64_t* arrival) { running->block->arrivals[arrival] = {}; }

void announce(uint64_t* arrival, size_t bytes) {
  Arrivals& a = arrivals_at(*running->block, arrival);
  if (a.announced) fail("something was announced twice in one phase");
  a.announced = true, a.expected = bytes;
}

void copy_bulk(void* to, const void* from, size_t bytes, uint64_t* arrival) {
  if (bytes % 16 || reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    fail("an address or a size of copy_bulk is not a multiple of 16");
  Arrivals& a = arrivals_at(*running->block, arrival);
  a.deliveries.push_back({to, from, {}, bytes});
  a.coming += bytes;
}

void send(void* shared, int rank, const void* value, size_t bytes, uint64_t* arrival) {
  if (!launched_as_clusters) fail("something is sent by a kernel that was not launched as a cluster");
  char* const mine = running->block->shared.get();
  char* const there = shared_memory(rank);
  const auto moved = [&](void* place) { return there + (static_cast<char*>(place) - mine); };
  Arrivals& a = arrivals_at(blocks[rank], reinterpret_cast<uint64_t*>(moved(arrival)));
  Delivery delivery{moved(shared), nullptr, {}, bytes};
  std::memcpy(delivery.value.data(), value, bytes);
  if (settings.seed % 2)
    std::memcpy(delivery.to, value, bytes);
  else
    a.deliveries.push_back(delivery);
  a.coming += bytes;
}

void wait_for_arrival(uint64_t* arrival, int parity) {
  Arrivals& a = arrivals_at(*running->block, arrival);
  const uint64_t phase = a.phases;
  if (phase % 2 != static_cast<uint64_t>(parity)) return;  // that phase is over
  const auto is_over = [&a, phase] { return a.phases != phase || (a.announced && a.coming >= a.expected); };
  if (!is_over()) {
    running->ready = is_over;
    switch_to(running->context, scheduler);
    end_switch(running->context, &scheduler);
    running->ready = nullptr;
  }
  if (a.phases != phase) return;
  if (a.coming > a.expected) fail("more has come than was announced");
  for (const Delivery& d : a.deliveries) std::memcpy(d.to, d.from ? d.from : d.value.data(), d.bytes);
  a.deliveries.clear();
  a.announced = false, a.coming = 0, ++a.phases;
}

void some_threads_barrier(int threads) {
  Barrier& barrier = running->block->some_threads;
  if (barrier.expected == 0) barrier.expected = threads;
  if (barrier.expected != threads) fail("another number of threads waits at a barrier of some of a block");
  wait_at(barrier);
}

bool run(const Grid& grid, const std::function<void()>& thread_body) {
  if (grid.threads < 1 || grid.threads > kMostThreads || grid.blocks < 1 || grid.cluster < 1) return false;
  if (grid.shared_bytes > static_cast<size_t>(settings.shared_bytes) || grid.shared_bytes > kMostShared) return false;
  if (grid.cluster > (settings.capability >= 90 ? kMostInCluster : 1) || grid.blocks % grid.cluster) return false;
  static std::mutex device;
  const std::lock_guard<std::mutex> alone(device);
  body = &thread_body;
  launched_as_clusters = grid.is_cluster;
  std::mt19937_64 random(settings.seed);
  const size_t clusters = grid.blocks / grid.cluster, last = static_cast<size_t>(settings.last_clusters);
  std::vector<unsigned> order(last == 0 ? clusters : std::min(last, clusters));
  for (size_t i = 0; i < order.size(); ++i)
    order[i] = static_cast<unsigned>((clusters - order.size() + i) * grid.cluster);
  std::shuffle(order.begin(), order.end(), random);
  for (unsigned first : order) run_cluster(grid, first, random);
  ++counts.launches;
  counts.blocks += grid.blocks;
  counts.clusters += static_cast<int64_t>(order.size());
  return true;
}

}  // namespace emulation
