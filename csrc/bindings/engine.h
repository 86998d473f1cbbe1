// The training engine's Python face: classes EngineFloat32 and EngineFloat64, and permutation().
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace twolayer {
void bind_engine(pybind11::module_& m);
}
