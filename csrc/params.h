// The parameters of every kernel as plain structs. No torch, no Python: pointers, sizes, numbers.
#pragma once
#include <cstdint>

namespace twolayer {

namespace cpu {
struct PairKernels;
}

struct bfloat16 {  // the upper half of a float32
  uint16_t bits;
};

struct float16 {  // IEEE's binary16; on CUDA only
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
  // Not for bfloat16, whose hidden layer is float while it is computed:
  const T* z;  // (batch, hidden) or null: x W1ᵀ + b1, where it is there already; x and w1 are not read then
  T* h;        // (batch, hidden) or null: keeps the activation's output; may be z
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
  const T* h;       // (batch, hidden) or null: the activation's output, where `saved` is its input and this was kept
  T* grad_z;        // (batch, hidden) or null: the gradient at the activation's input; not for bfloat16
  int activation;
  int threads;
};

// out = act(in), elementwise; the two may coincide.
template <class T>
struct ActivateParams {
  int64_t count;
  const T* in;
  T* out;
  int activation;
  int threads;
};

// grad *= act'(·), elementwise, from what forward saved.
template <class T>
struct DerivativeParams {
  int64_t count;
  const T* saved;
  T* grad;
  int activation;
  int threads;
};

// Hidden units, or outputs, that packed weights keep side by side: a cache line of float32. "Panels of (n)" of N of
// them is an array (⌈N / kPanel⌉, n, kPanel), what is beyond N being zero.
constexpr int64_t kPanel = 16;

// Of n, how many stand in panels: all, or all but a few beyond whole panels, whose own would be mostly padding.
constexpr int64_t in_panels(int64_t n) {
  constexpr int64_t kMostLeft = kPanel / 2;
  return n > kPanel && n % kPanel <= kMostLeft ? n - n % kPanel : n;
}

// y = act(x W1ᵀ + b1) W2ᵀ + b2 for a few rows, at weights that were packed beforehand (cpu/predictor.h). H and O are
// hidden and out padded to kPanel.
template <class T>
struct PredictParams {
  static constexpr int64_t kRows = 64;  // at most
  static constexpr int64_t kUnits =
      8 * kPanel;  // hidden units at a time: what they hold stays in cache until it is used
  int64_t in, hidden, out;
  const T* w1;  // panels of (in), of hidden units
  const T* b1;  // (H), zero where the net has none
  const T* w2;  // panels of (hidden), of outputs
  const T* b2;  // (O), zero where the net has none
  int activation;

  int64_t rows;
  const T* x;        // (rows, in)
  int64_t x_stride;  // numbers from one row of x to the next
  T* y;              // (rows, out)
};

enum Parameter { kW1, kB1, kW2, kB2, kParameters };

struct OptimizerOptions {
  double lr = 0, momentum = 0, dampening = 0, weight_decay = 0;
  double beta1 = 0, beta2 = 0, eps = 0, alpha = 0, lr_decay = 0, initial_accumulator = 0;
  bool nesterov = false, amsgrad = false, centered = false;
  bool eps_hat = false;  // eps is added to the root before the correction of the square's mean
};

struct LossOptions {
  double label_smoothing = 0;
  double beta = 1;              // where smooth_l1 and huber turn from a square to a line
  int64_t ignore_index = -100;  // rows of this class count for nothing
};

// What is done to a gradient before the optimiser sees it. Zero: nothing.
struct GradientOptions {
  double l1 = 0, l2 = 0;                 // penalties on w1 and w2, part of the loss
  double clip_norm = 0, clip_value = 0;  // of the whole gradient, and of each number
};

// A parameter, what its optimiser remembers of it, and its gradient: arrays of one shape. A null value: the net has no
// such parameter.
template <class T>
struct Trained {
  static constexpr int kStates = 3;
  T* value;
  T* compute;         // what products read: `value`, or a copy of it rounded to bfloat16
  T* state[kStates];  // null where the optimiser keeps none
  T* grad;            // null where a gradient goes straight from registers to the update
  bool frozen;        // left as it is
};

// One row of a sparse batch: column indices and values.
struct SparseRow {
  const void* columns;
  const void* values;
  int64_t count;
};

enum class Storage { kFloat32, kFloat64, kBFloat16, kUInt8 };
constexpr int64_t storage_bytes(Storage storage) {
  return storage == Storage::kFloat64 ? 8 : storage == Storage::kFloat32 ? 4 : storage == Storage::kBFloat16 ? 2 : 1;
}

// How the rows of a batch become rows of T. Where they are that already, nothing is copied.
struct GatherOptions {
  bool needed = false;
  Storage storage = Storage::kFloat32;
  bool sparse = false, wide_columns = false;  // column indices are int64, not int32
  double scale = 1, shift = 0;                // of uint8 rows
};

// One training step, as the engine lays it out. Hidden units stand in panels of kPanel: w1 is, panel after panel, its
// transpose (in, kPanel), so that a thread that owns some panels reads and writes memory no other thread is near. H and
// O are hidden and out padded to kPanel. A block is a run of panels whose contributions to the outputs are summed
// first; the blocks' partial outputs are then added in order, so no bit depends on the thread count.
template <class T>
struct TrainParams {
  int64_t in, hidden, out, padded_hidden, padded_out;
  int64_t block, blocks;  // units per block (a multiple of kPanel), number of blocks
  int64_t whole;          // units whose weights in w1 stand in panels: H, or those before the rest
  int64_t rest;           // the few beyond whole panels (kernels/rest.h): each a row of w1, together one block more
  int64_t rest_stride;    // from one of these rows to the next: in, padded to kPanel
  int64_t w1_size;        // numbers that w1 holds, a whole number of vectors
  int activation, loss, optimizer;
  OptimizerOptions options;
  LossOptions loss_options;
  GradientOptions gradient;
  double dropout;         // the share of hidden values set to zero
  uint64_t dropout_key;   // of the run; with the step, the row and the unit it decides who is dropped
  bool bfloat16_compute;  // factors of products are rounded to bfloat16
  bool training;          // false: outputs, losses and hits only
  int64_t group;          // units that chunks of a phase take as one: some blocks
  bool shares_groups;     // where groups do not go evenly into chunks, chunks do parts of one (see kernels/share.h)

  Trained<T> w1;     // panels of (in) of the whole units; then (rest, rest_stride)
  Trained<T> b1;     // (H)
  Trained<T> w2;     // panels of (out)
  Trained<T> b2;     // (O)
  T* w2_transposed;  // (H, O), of w2.compute
  T* w2_shared;      // panels of (out), of w2.compute where units are shared: one chunk updates it, others still read
                     // it; or null

  T* hidden_value;   // panels of (batch): the activation's output, dropout applied
  T* hidden_saved;   // panels of (batch): what its derivative is computed from; may be hidden_value
  T* grad_hidden;    // panels of (batch): at the activation's input; the units of each chunk, shared ones repeated
  T* partial;        // (blocks, batch, O) partial outputs
  T* grad_out;       // (batch, O)
  T* row_loss;       // (batch) each row's loss times its weight, not yet divided
  T* soft_target;    // (batch, O) scratch of losses over weighted or smoothed classes, or null
  uint8_t* row_hit;  // (batch) whether the largest output is the row's class
  T* penalty;        // (2, H) sums over each unit's weights of |w| and w², as they were before the update
  T* square_sum;     // (H + O) sums of squared gradients by column

  // This step's batch.
  int64_t batch;
  int64_t step;                // steps taken before this one
  double loss_divisor;         // what the sum of row losses is divided by
  double clip_factor;          // what clip_norm makes gradients shorter by
  const T* const* x_rows;      // (batch) pointers to (in)
  const int64_t* classes;      // (batch), or null
  const T* const* value_rows;  // (batch) pointers to (out), or null
  const T* class_weight;       // (O), or null
  const T* row_weight;         // (batch), or null

  // The rows of the next batch, for prefetching: their order may be random, and each is read once an epoch.
  const void* const* next_rows;  // (next_batch) pointers to row_bytes each
  int64_t next_batch, row_bytes;

  // Where most of the batch's inputs are zero, the products over them go through the others only. The sums are the same
  // to the bit, since adding 0 · w changes nothing — while every w is finite.
  bool skips_zeros;
  bool skips_vectors;         // so few are not that the rest of the units goes through vectors of inputs that have one
  uint64_t* nonzero_rows;     // (⌈batch / 64⌉, in) bit i of word w: row 64 w + i is not zero in that column
  T* grad_rows;               // scratch of grad_hidden's size
  uint8_t* found_not_finite;  // (chunks) a weight that this chunk updated has become infinite or NaN

  // Where factors are bfloat16 and the processor multiplies those: products over the inputs, in pairs (cpu/pairs.h).
  const cpu::PairKernels* pairs;  // or null
  uint32_t* x_pairs;              // (chunks, batch, padded_pairs(in)): each chunk makes its own, faster than it could
  uint32_t* x_pairs_transposed;   // (chunks, in, padded_pairs(batch))   fetch what another core has just written
  uint32_t* w1_pairs;             // panels of (padded_pairs(in))
  uint32_t* grad_pairs;           // panels of (padded_pairs(batch)), of grad_hidden, unit by unit as there

  // Where x_rows must first be made from rows of another kind.
  GatherOptions gather;
  T* gathered;                     // (batch, in)
  const void* const* source_rows;  // (batch) pointers to (in) of gather.storage
  const SparseRow* sparse_rows;    // (batch), values of gather.storage
};

}  // namespace twolayer
