// Update rules, made by the host so that no thread of a device raises a number to the power of a step.
#include <new>

#include "cuda/train.h"

namespace twolayer::cuda {
namespace {

#define TWOLAYER_HD inline
#include "math/losses.h"
#include "math/optimizers.h"

// Calls f with a null pointer to the optimiser's Rule<T>. The device's own of that name (device/rule.cuh) has the same
// members.
template <class T, class F>
void with_host_rule(int optimizer, F&& f) {
  switch (optimizer) {
#define TWOLAYER_CASE(number, Name) \
  case number:                      \
    return f(static_cast<typename Name::template Rule<T>*>(nullptr));
    TWOLAYER_OPTIMIZERS(TWOLAYER_CASE)
#undef TWOLAYER_CASE
  }
}

}  // namespace

template <class T>
int64_t rule_bytes(int optimizer) {
  int64_t bytes = 0;
  with_host_rule<T>(optimizer, [&]<class Rule>(Rule*) { bytes = sizeof(Rule); });
  return bytes;
}

template <class T>
void make_rule(int optimizer, const OptimizerOptions& options, int64_t steps, void* rule) {
  with_host_rule<T>(optimizer, [&]<class Rule>(Rule*) {
    new (rule) Rule(options, steps, [](double value) { return static_cast<T>(value); });
  });
}

int64_t loss_per_row(int loss, int64_t out) {
#define TWOLAYER_PER_ROW(number, Name) Name::per_row,
  static constexpr int64_t (*per_row[])(int64_t) = {TWOLAYER_LOSSES(TWOLAYER_PER_ROW)};
#undef TWOLAYER_PER_ROW
  return per_row[loss](out);
}

bool uses_state(int optimizer, const OptimizerOptions& options, int state) {
#define TWOLAYER_USES_STATE(number, Name) Name::uses_state,
  static constexpr bool (*uses[])(const OptimizerOptions&, int) = {TWOLAYER_OPTIMIZERS(TWOLAYER_USES_STATE)};
#undef TWOLAYER_USES_STATE
  return uses[optimizer](options, state);
}

template int64_t rule_bytes<float>(int);
template int64_t rule_bytes<double>(int);
template void make_rule<float>(int, const OptimizerOptions&, int64_t, void*);
template void make_rule<double>(int, const OptimizerOptions&, int64_t, void*);

}  // namespace twolayer::cuda
