// The kernels for any processor: 16-byte vectors in terms of the compiler's vector extensions.
#include "cpu/dispatch.h"
#include "cpu/threads.h"

namespace twolayer::cpu::portable {
#define TWOLAYER_VECTOR_REGISTERS 16
#include "cpu/simd/portable.h"
#include "cpu/kernels/all.h"
}  // namespace twolayer::cpu::portable

namespace twolayer::cpu {
const Isa* isa_portable() {
  static const Isa isa = TWOLAYER_ISA(portable, [] { return true; });
  return &isa;
}
}  // namespace twolayer::cpu
