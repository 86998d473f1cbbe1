// The kernels for AVX2 with FMA (Haswell, Zen and later).
#include "cpu/dispatch.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/threads.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,popcnt,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt,f16c")
#endif

namespace twolayer::cpu::avx2 {
#define TWOLAYER_VECTOR_REGISTERS 16
#include "cpu/simd/avx2.h"
#include "cpu/kernels/all.h"
}  // namespace twolayer::cpu::avx2

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace twolayer::cpu {
const Isa* isa_avx2() {
  static const Isa isa = TWOLAYER_ISA(avx2, [] {
    return cpu_has_os_support(kOsSavesYmm) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi2");
  });
  return &isa;
}
}  // namespace twolayer::cpu
#else
const twolayer::cpu::Isa* twolayer::cpu::isa_avx2() { return nullptr; }
#endif
