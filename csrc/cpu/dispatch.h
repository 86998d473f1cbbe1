// Which instruction set's kernels run: the best this machine has, or the one TWOLAYER_ISA names.
#pragma once
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace twolayer::cpu {

// One function per isa_*.cpp; null on another architecture.
const Isa* isa_portable();
const Isa* isa_avx2();
const Isa* isa_avx512();
const Isa* isa_avx512_bf16();
const Isa* isa_avx512_amx();
const Isa* isa_neon();

enum OsSupport : unsigned { kOsSavesYmm = 0x6, kOsSavesZmm = 0xe6, kOsSavesTiles = 0x600e6 };  // bits of XCR0
bool cpu_has_os_support(OsSupport registers);
bool cpu_has_avx512_bf16();

std::vector<const Isa*> compiled_isas();   // best last
std::vector<const Isa*> available_isas();  // those this machine can run, best last

// Throws std::runtime_error when TWOLAYER_ISA names one that is unknown or that this machine lacks.
const Isa& current_isa();

// The names in the lists of csrc/math, by id.
std::vector<std::string> activation_names();
std::vector<std::string> loss_names();
std::vector<std::string> optimizer_names();

// What the engine asks of an entry of those lists.
bool activation_saves_input(int activation);
bool loss_takes_classes(int loss);
int64_t loss_per_row(int loss, int64_t out);
bool optimizer_uses_state(int optimizer, const OptimizerOptions& options, int state);

}  // namespace twolayer::cpu
