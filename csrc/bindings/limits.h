// The measured limits' Python face: multiply_add_gflops() and read_gigabytes().
#pragma once
#include <pybind11/pybind11.h>

namespace twolayer {
void bind_limits(pybind11::module_& m);
}
