// What ids stand for.
#include "cuda/device/loss.cuh"
#include "cuda/device/rule.cuh"
#include "cuda/engine.h"

namespace twolayer::cuda {

bool loss_takes_classes(int loss) {
  switch (loss) {
#define TWOLAYER_CASE(number, Name) \
  case number:                      \
    return Name::kind == LossKind::kSoftmax;
    TWOLAYER_LOSSES(TWOLAYER_CASE)
#undef TWOLAYER_CASE
  }
  return false;
}

#define TWOLAYER_NAME(number, Name) Name::name,
std::vector<std::string> loss_names() { return {TWOLAYER_LOSSES(TWOLAYER_NAME)}; }
std::vector<std::string> optimizer_names() { return {TWOLAYER_OPTIMIZERS(TWOLAYER_NAME)}; }
#undef TWOLAYER_NAME

}  // namespace twolayer::cuda
