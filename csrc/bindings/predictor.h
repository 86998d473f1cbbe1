// The prepared predictor's Python face: classes PredictorFloat32 and PredictorFloat64.
#pragma once
#include <pybind11/pybind11.h>

namespace twolayer {
void bind_predictor(pybind11::module_& m);
}
