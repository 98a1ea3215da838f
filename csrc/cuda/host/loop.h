// Shared by the time loops of both passes.
#pragma once
#include <algorithm>
#include <functional>
#include <optional>

#include "core/dispatch.h"
#include "core/registry.h"
#include "cuda/host/product.h"

namespace fused_rnn::cuda {
namespace {

// The arguments for kernels, which cannot read packed input's lengths and offsets in host memory (see Step).
template <class Args>
Args on_device(Args args) {
  if (args.offsets) args.offsets = args.lengths = nullptr;
  return args;
}

// Maps steps to a layer's rows.
class Times {
 public:
  explicit Times(const Layer& layer) : layer_(layer) {}

  // t = T: the end.
  int64_t first_row(int64_t t) const { return t == layer_.steps ? layer_.rows : row_of(layer_, t, 0); }
  int64_t rows(int64_t t) const { return 0 <= t && t < layer_.steps ? first_row(t + 1) - first_row(t) : 0; }

  // Step `number` of the time loop; direction 1 runs the other way, as both do in the backward pass.
  Step step(int64_t number, bool back) const {
    Step step = {};
    for (int64_t d = 0; d < layer_.directions; ++d) {
      const int64_t t = (d == 1) != back ? layer_.steps - 1 - number : number;
      step.time[d] = t;
      step.first_row[d] = first_row(t);
      step.present[d] = rows(t);
      step.present_at_cut[d] = rows(d == 0 ? t : t + 1);
      step.rows = std::max(step.rows, step.present[d]);
    }
    return step;
  }

 private:
  const Layer& layer_;
};

// A product over a step's rows, made again only when their number changes (packed input).
class StepProduct {
 public:
  explicit StepProduct(std::function<Product(int64_t rows)> make) : make_(std::move(make)) {}

  void run(int64_t rows) {
    if (!product_ || rows != rows_) product_.emplace(make_(rows));
    rows_ = rows;
    product_->run();
  }

 private:
  std::function<Product(int64_t rows)> make_;
  std::optional<Product> product_;
  int64_t rows_ = 0;
};

// Allocation and conversion of one call's arrays.
class Arrays {
 public:
  Arrays(const Layer& layer, const Machine& machine)
      : layer_(layer), machine_(machine), problems_(layer.members * layer.directions) {}

  bool is_wide() const { return bytes(Format::kArithmetic) > bytes(Format::kStorage); }
  int64_t bytes(Format format) const {
    if (layer_.dtype == Dtype::kDouble) return 8;
    return layer_.dtype == Dtype::kFloat || format == Format::kArithmetic ? 4 : 2;
  }

  void* take(Format format, int64_t count) const { return machine_.scratch(count * bytes(format)); }

  // Null stays null.
  template <class Void>
  Void* offset(Void* array, Format format, int64_t count) const {
    using Byte = std::conditional_t<std::is_const_v<Void>, const char, char>;
    return array ? static_cast<Byte*>(array) + count * bytes(format) : nullptr;
  }

  // Sets state s of [Q, B, row_width], which begins at column `first`, to `given` or, where nothing was, to `initial`.
  void begin_state(void* to, Format format, const void* given, int64_t first, int64_t columns, int64_t row_width,
                   double initial) const {
    launch_copy(layer_.dtype,
                {problems_ * layer_.batch, columns, offset(to, format, first), format, row_width,
                 offset(given, Format::kStorage, first), Format::kStorage, row_width, initial},
                machine_.stream);
  }

  // Converts `count` numbers; fills with zeros if `from` is null.
  void copy(void* to, Format to_format, const void* from, Format from_format, int64_t count) const {
    launch_copy(layer_.dtype, {1, count, to, to_format, count, from, from_format, count}, machine_.stream);
  }

  // The weights of all problems as one array, [Q, rows, columns]: copied if there are two directions.
  Matrices weights(const void* Weights::* which, int64_t rows, int64_t columns) const {
    const int64_t size = rows * columns;
    const Matrices one = {layer_.weights[0].*which, size, columns, 1};
    if (layer_.directions == 1) return one;
    void* const all = take(Format::kStorage, problems_ * size);
    for (int64_t d = 0; d < layer_.directions; ++d)
      launch_copy(layer_.dtype,
                  {layer_.members, size, offset(all, Format::kStorage, d * size), Format::kStorage,
                   layer_.directions * size, layer_.weights[d].*which, Format::kStorage, size},
                  machine_.stream);
    return {all, size, columns, 1};
  }

 protected:
  const Layer& layer_;
  const Machine& machine_;
  const int64_t problems_;  // Q
};

}  // namespace
}  // namespace fused_rnn::cuda
