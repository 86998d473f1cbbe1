#include "bindings/limits.h"

#include <string>

#include "bindings/checks.h"
#include "cpu/dispatch.h"
#include "cpu/limits.h"

namespace py = pybind11;

namespace twolayer {
namespace {

const cpu::Isa& available_isa(const std::string& name) {
  for (const cpu::Isa* isa : cpu::available_isas())
    if (name == isa->name) return *isa;
  throw py::value_error("isa must be one that this machine has; got " + name);
}

cpu::LimitType limit_type(const std::string& dtype) {
  if (dtype == "float32") return cpu::LimitType::kFloat32;
  if (dtype == "float64") return cpu::LimitType::kFloat64;
  if (dtype == "bfloat16") return cpu::LimitType::kBFloat16;
  throw py::value_error("dtype must be float32, float64 or bfloat16; got " + dtype);
}

void check_seconds(double seconds) {
  if (!(seconds > 0 && seconds <= 60))
    throw py::value_error("seconds must be above 0 and at most 60; got " + std::to_string(seconds));
}

double multiply_add_gflops(const std::string& isa_name, const std::string& dtype, int threads, double seconds) {
  const cpu::Isa& isa = available_isa(isa_name);
  const cpu::LimitType type = limit_type(dtype);
  check_at_least_1("threads", threads);
  check_seconds(seconds);
  if (type == cpu::LimitType::kBFloat16 && !isa.pairs)
    throw py::value_error("isa must be one that multiplies bfloat16; got " + isa_name);
  py::gil_scoped_release unlocked;
  return cpu::multiply_add_gflops(isa, type, threads, seconds);
}

double read_gigabytes(const std::string& isa_name, int64_t bytes, int threads, double seconds) {
  const cpu::Isa& isa = available_isa(isa_name);
  check_at_least_1("threads", threads);
  check_seconds(seconds);
  if (bytes < 4096) throw py::value_error("bytes must be at least 4096; got " + std::to_string(bytes));
  py::gil_scoped_release unlocked;
  return cpu::read_gigabytes(isa, bytes, threads, seconds);
}

}  // namespace

void bind_limits(py::module_& m) {
  m.def("multiply_add_gflops", &multiply_add_gflops, py::arg("isa"), py::arg("dtype"), py::arg("threads"),
        py::arg("seconds"));
  m.def("read_gigabytes", &read_gigabytes, py::arg("isa"), py::arg("bytes"), py::arg("threads"), py::arg("seconds"));
}

}  // namespace twolayer
