// The Python face of training on a CUDA device: classes EngineFloat32 and EngineFloat64.
#pragma once
#include <pybind11/pybind11.h>

namespace twolayer {
void bind_cuda_engine(pybind11::module_& m);
}
