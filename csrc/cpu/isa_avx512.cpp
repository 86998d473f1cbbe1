// The kernels for AVX-512 (Skylake-X, Ice Lake, Zen 4 and later).
#include "cpu/dispatch.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/threads.h"

#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi,bmi2,popcnt,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi,bmi2,popcnt,f16c")
#endif

namespace twolayer::cpu::avx512 {
#define TWOLAYER_VECTOR_REGISTERS 32
#include "cpu/simd/avx512.h"
#include "cpu/kernels/all.h"
}  // namespace twolayer::cpu::avx512

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace twolayer::cpu {
const Isa* isa_avx512() {
  static const Isa isa = TWOLAYER_ISA(avx512, [] {
    return cpu_has_os_support(kOsSavesZmm) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi2");
  });
  return &isa;
}
}  // namespace twolayer::cpu
#else
const twolayer::cpu::Isa* twolayer::cpu::isa_avx512() { return nullptr; }
#endif
