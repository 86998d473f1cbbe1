// The kernels for 64-bit Arm, where NEON is always there.
#include "cpu/dispatch.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#include "cpu/threads.h"

namespace twolayer::cpu::neon {
#define TWOLAYER_VECTOR_REGISTERS 32
#include "cpu/simd/neon.h"
#include "cpu/kernels/all.h"
}  // namespace twolayer::cpu::neon

namespace twolayer::cpu {
const Isa* isa_neon() {
  static const Isa isa = TWOLAYER_ISA(neon, [] { return true; });
  return &isa;
}
}  // namespace twolayer::cpu
#else
const twolayer::cpu::Isa* twolayer::cpu::isa_neon() { return nullptr; }
#endif
