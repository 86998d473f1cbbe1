// The parameters of every kernel as plain structs. No torch, no Python: pointers, sizes, numbers.
#pragma once
#include <cstdint>

namespace twolayer {

struct bfloat16 {  // the upper half of a float32
  uint16_t bits;
};

// y = act(x W1ᵀ + b1) W2ᵀ + b2. T is the storage type; arithmetic is float for bfloat16, else T.
template <class T>
struct ForwardParams {
  int64_t batch, in, hidden, out;
  const T* x;   // (batch, in), rows contiguous
  const T* w1;  // (hidden, in)
  const T* b1;  // (hidden) or null
  const T* w2;  // (out, hidden)
  const T* b2;  // (out) or null
  T* saved;  // (batch, hidden) or null: what backward needs, the activation's output or its input (math/activations.h)
  T* y;      // (batch, out)
  int activation;
  int threads;
};

// Gradients of the above. Those whose pointer is null are not computed.
template <class T>
struct BackwardParams {
  int64_t batch, in, hidden, out;
  const T* grad_y;  // (batch, out)
  const T* x;       // (batch, in)
  const T* w1;      // (hidden, in)
  const T* w2;      // (out, hidden)
  const T* saved;   // (batch, hidden), as forward left it
  T* grad_x;        // (batch, in) or null
  T* grad_w1;       // (hidden, in) or null
  T* grad_b1;       // (hidden) or null
  T* grad_w2;       // (out, hidden) or null
  T* grad_b2;       // (out) or null
  int activation;
  int threads;
};

struct OptimizerOptions {
  double lr, momentum, dampening, weight_decay;
  bool nesterov;
};

// A parameter and what its optimiser remembers of it, arrays of one shape. A null value: the net has no such parameter.
template <class T>
struct Trained {
  static constexpr int kStates = 1;
  T* value;
  T* state[kStates];  // null where the optimiser keeps none
};

// One training step, as the engine lays it out. Weights are kept with the hidden units contiguous, so that each thread
// owns some units and their weights never leave its cache: w1 transposed, and w2 in both layouts. H and O are hidden
// and out padded to kUnit. A block is a run of hidden units whose contributions to the outputs are summed first; the
// blocks' partial outputs are then added in order, so no bit depends on the thread count.
template <class T>
struct TrainParams {
  static constexpr int64_t kUnit = 16;

  int64_t in, hidden, out, padded_hidden, padded_out;
  int64_t block, blocks;  // units per block, number of blocks
  int activation, loss, optimizer;
  OptimizerOptions options;

  Trained<T> w1;     // (in, H)
  Trained<T> b1;     // (H)
  Trained<T> w2;     // (out, H)
  Trained<T> b2;     // (O)
  T* w2_transposed;  // (H, O)

  T* hidden_value;  // (batch, H) the activation's output
  T* hidden_saved;  // (batch, H) what its derivative is computed from; may be hidden_value
  T* grad_hidden;   // (batch, H) at the activation's input
  T* partial;       // (blocks, batch, O) partial outputs
  T* grad_out;      // (batch, O)
  T* row_loss;      // (batch) each row's loss, not yet divided by the mean's count
  T* grad_weight;   // (max(in, out), H), or null while a batch is no deeper than the kernels' depth

  // This step's batch.
  int64_t batch;
  int64_t step;                // steps taken before this one; at 0 optimiser states hold nothing yet
  const T* const* x_rows;      // (batch) pointers to (in)
  const int64_t* classes;      // (batch), or null
  const T* const* value_rows;  // (batch) pointers to (out), or null
};

}  // namespace twolayer
