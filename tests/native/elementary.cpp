// csrc/cpu/simd and csrc/math/activations.h as a C library, for tests/test_elementary.py: every instruction set this
// architecture has, in one translation unit.
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "params.h"

using twolayer::bfloat16;

namespace {

struct Tested {
  int float_lanes;
  bool (*apply_float)(const char* kind, const char* name, const float* in, float* out, int64_t n);
  bool (*apply_double)(const char* kind, const char* name, const double* in, double* out, int64_t n);
  void (*narrow)(const float* in, bfloat16* out, int64_t n);
  void (*widen)(const bfloat16* in, float* out, int64_t n);
  bfloat16 (*narrow_scalar)(float);
  float (*widen_scalar)(bfloat16);
};

}  // namespace

namespace twolayer::cpu::portable {
#include "cpu/simd/portable.h"
//
#include "cpu/simd/elementary.h"
#include "math/activations.h"
#include "native/elementary_table.h"
}  // namespace twolayer::cpu::portable

#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,f16c")
#endif
namespace twolayer::cpu::avx2 {
#include "cpu/simd/avx2.h"
//
#include "cpu/simd/elementary.h"
#include "math/activations.h"
#include "native/elementary_table.h"
}  // namespace twolayer::cpu::avx2
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi,bmi2,f16c"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi,bmi2,f16c")
#endif
namespace twolayer::cpu::avx512 {
#include "cpu/simd/avx512.h"
//
#include "cpu/simd/elementary.h"
#include "math/activations.h"
#include "native/elementary_table.h"
}  // namespace twolayer::cpu::avx512
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#elif defined(__aarch64__)
namespace twolayer::cpu::neon {
#include "cpu/simd/neon.h"
//
#include "cpu/simd/elementary.h"
#include "math/activations.h"
#include "native/elementary_table.h"
}  // namespace twolayer::cpu::neon
#endif

namespace {

// What is tested under this name; null if the name is unknown or this processor lacks the instructions.
const Tested* find(const char* isa) {
  const auto is = [isa](const char* name) { return std::strcmp(isa, name) == 0; };
  if (is("portable")) return &twolayer::cpu::portable::tested;
#if defined(__x86_64__)
  if (is("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return &twolayer::cpu::avx2::tested;
  if (is("avx512") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return &twolayer::cpu::avx512::tested;
#elif defined(__aarch64__)
  if (is("neon")) return &twolayer::cpu::neon::tested;
#endif
  return nullptr;
}

}  // namespace

extern "C" {

// The lanes of a float vector, or 0 where this machine cannot run `isa`.
int float_lanes(const char* isa) {
  const Tested* tested = find(isa);
  return tested ? tested->float_lanes : 0;
}

bool apply_float(const char* isa, const char* kind, const char* name, const float* in, float* out, int64_t n) {
  return find(isa)->apply_float(kind, name, in, out, n);
}

bool apply_double(const char* isa, const char* kind, const char* name, const double* in, double* out, int64_t n) {
  return find(isa)->apply_double(kind, name, in, out, n);
}

void narrow(const char* isa, const float* in, bfloat16* out, int64_t n) { find(isa)->narrow(in, out, n); }

void widen(const char* isa, const bfloat16* in, float* out, int64_t n) { find(isa)->widen(in, out, n); }

void narrow_scalar(const char* isa, const float* in, bfloat16* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = find(isa)->narrow_scalar(in[i]);
}

void widen_scalar(const char* isa, const bfloat16* in, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = find(isa)->widen_scalar(in[i]);
}

}  // extern "C"
