// Every kernel, in the order in which they stand on each other. An isa_*.cpp includes this inside its namespace, after
// the simd names; nothing here opens a namespace, has an include guard or uses the standard library.
#include "cpu/simd/elementary.h"
#include "math/activations.h"
#include "math/losses.h"
#include "math/optimizers.h"
#include "math/dropout.h"

#include "cpu/kernels/elementwise.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/forward.h"
#include "cpu/kernels/predict.h"
#include "cpu/kernels/backward.h"
#include "cpu/kernels/losses.h"
#include "cpu/kernels/gather.h"
#include "cpu/kernels/sparse.h"
#include "cpu/kernels/train.h"
#include "cpu/kernels/limits.h"
