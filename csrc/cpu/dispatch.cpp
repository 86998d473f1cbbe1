#include "cpu/dispatch.h"

#include <cstdlib>
#include <new>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace twolayer::cpu {
namespace {

namespace lists {  // the structs of csrc/math, here only for their names
#define TWOLAYER_HD
#include "math/activations.h"
#include "math/losses.h"
#include "math/optimizers.h"
}  // namespace lists

std::string joined(const std::vector<const Isa*>& isas) {
  std::string text;
  for (const Isa* isa : isas) text += (text.empty() ? "" : ", ") + std::string(isa->name);
  return text;
}

const Isa& choose_isa() {
  const std::vector<const Isa*> available = available_isas();
  const char* wanted = std::getenv("TWOLAYER_ISA");
  if (!wanted || !*wanted) return *available.back();
  for (const Isa* isa : available)
    if (isa->name == std::string(wanted)) return *isa;
  for (const Isa* isa : compiled_isas())
    if (isa->name == std::string(wanted))
      throw std::runtime_error("TWOLAYER_ISA=" + std::string(wanted) + ": this processor lacks it; it has " +
                               joined(available));
  throw std::runtime_error("TWOLAYER_ISA must be one of " + joined(compiled_isas()) + "; got " + wanted);
}

}  // namespace

bool cpu_has_os_support(OsSupport registers) {
#if defined(__x86_64__)
  constexpr unsigned kOsxsave = 1u << 27;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & kOsxsave)) return false;
  unsigned low, high;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & registers) == registers;
#else
  return registers == 0;
#endif
}

std::vector<const Isa*> compiled_isas() {
  std::vector<const Isa*> found;
  for (const Isa* isa : {isa_portable(), isa_neon(), isa_avx2(), isa_avx512(), isa_avx512_bf16(), isa_avx512_amx()})
    if (isa) found.push_back(isa);
  return found;
}

std::vector<const Isa*> available_isas() {
  std::vector<const Isa*> found;
  for (const Isa* isa : compiled_isas())
    if (isa->supported()) found.push_back(isa);
  return found;
}

const Isa& current_isa() {
  static const Isa& isa = choose_isa();
  return isa;
}

#define TWOLAYER_NAME(number, Name) lists::Name::name,
std::vector<std::string> activation_names() { return {TWOLAYER_ACTIVATIONS(TWOLAYER_NAME)}; }
std::vector<std::string> loss_names() { return {TWOLAYER_LOSSES(TWOLAYER_NAME)}; }
std::vector<std::string> optimizer_names() { return {TWOLAYER_OPTIMIZERS(TWOLAYER_NAME)}; }
#undef TWOLAYER_NAME

#define TWOLAYER_SAVES_INPUT(number, Name) lists::Name::saves_input,
bool activation_saves_input(int activation) {
  static constexpr bool saves[] = {TWOLAYER_ACTIVATIONS(TWOLAYER_SAVES_INPUT)};
  return saves[activation];
}
#undef TWOLAYER_SAVES_INPUT

#define TWOLAYER_TAKES_CLASSES(number, Name) lists::Name::kind == lists::LossKind::kSoftmax,
bool loss_takes_classes(int loss) {
  static constexpr bool takes[] = {TWOLAYER_LOSSES(TWOLAYER_TAKES_CLASSES)};
  return takes[loss];
}
#undef TWOLAYER_TAKES_CLASSES

#define TWOLAYER_PER_ROW(number, Name) lists::Name::per_row,
int64_t loss_per_row(int loss, int64_t out) {
  static constexpr int64_t (*per_row[])(int64_t) = {TWOLAYER_LOSSES(TWOLAYER_PER_ROW)};
  return per_row[loss](out);
}
#undef TWOLAYER_PER_ROW

#define TWOLAYER_USES_STATE(number, Name) lists::Name::uses_state,
bool optimizer_uses_state(int optimizer, const OptimizerOptions& options, int state) {
  static constexpr bool (*uses[])(const OptimizerOptions&, int) = {TWOLAYER_OPTIMIZERS(TWOLAYER_USES_STATE)};
  return uses[optimizer](options, state);
}
#undef TWOLAYER_USES_STATE

void* allocate(size_t bytes) { return ::operator new(bytes, std::align_val_t(64)); }
void release(void* memory) { ::operator delete(memory, std::align_val_t(64)); }

}  // namespace twolayer::cpu
