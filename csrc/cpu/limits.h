// The machine's limits, measured: multiply-adds in registers, and reading from caches and memory.
#pragma once
#include "cpu/isa.h"

namespace twolayer::cpu {

enum class LimitType { kFloat32, kFloat64, kBFloat16 };

// Billions of multiply-adds and adds a second, of `threads` threads together: the best of several trials of `seconds`
// seconds in all. bfloat16 needs an ISA with `pairs`.
double multiply_add_gflops(const Isa& isa, LimitType type, int threads, double seconds);

// Billions of bytes a second that `threads` threads together read, each again and again from `bytes` bytes of its own.
double read_gigabytes(const Isa& isa, int64_t bytes, int threads, double seconds);

}  // namespace twolayer::cpu
