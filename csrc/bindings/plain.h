// plain_forward and plain_backward: eager calls on plain tensors, each in one native call.
#pragma once
#include <pybind11/pybind11.h>

namespace twolayer {
void bind_plain(pybind11::module_& m);
}
