// MMD² and its gradient in float32 on tensor cores, in one launch, where rows are many: a warp has
// 16 rows, whose tf32 parts and sums stay in its registers, a block 128; columns come by tiles
// through shared memory, the next one copied while one is worked on.
//
// Rows and columns are centred on the mean of the block's rows and scaled, so that with b = -|z|²/2
// a pair's exponent is z_i . z_j + b_i + b_j: the first product. Weights w leave the accumulators
// as the left factor of the second, sum_j w_ij z_j: what a lane has of them belongs to columns 2t
// and 2t + 1 of eight, where a left factor has t and t + 4, so columns are counted in that order.
//
// In three products of two parts each, what is lost is below float32's rounding; where tf32 is
// allowed samples are rounded to it first, so that the first product is exact, and weights are cut
// to it. Tensor cores cut their sums: they are given short ones, a tile's.
#pragma once

#include "cuda/mmd.cuh"
#include "cuda/mmd_rows.cuh"

namespace cgm_fast::cuda {

constexpr int kTensorRows = 128, kRowsOfMma = 16;

template <int kD>
struct TensorMemory {
  static constexpr int kColumns = 2048 / kD;
  static constexpr int kStride = kD + 4;  // lanes that read one product's operand meet all banks
  alignas(16) float ring[2][kColumns][kD];
  float rows[kTensorRows][kD];
  float high[kColumns][kStride], low[kColumns][kStride];  // of a tile, centred and scaled
  float bias[kColumns], weight[kColumns], row_bias[kTensorRows];
  float centre[kD];
  double sums[kTensorRows][2];
  double scratch[kWarps];
  // Then: double parts[2], Scale<float> scales[scales]
};

template <int kD>
std::size_t tensor_shared_bytes(int64_t scales) {
  return sizeof(TensorMemory<kD>) + 2 * sizeof(double) +
         static_cast<std::size_t>(scales) * sizeof(Scale<float>);
}

// The tf32 number that tensor cores read, and the nearest one, ties away from zero.
__device__ inline float cut_tf32(float value) { return from_bits(bits_of(value) & ~0x1fff); }
__device__ inline float nearest_tf32(float value) {
  const float rounded = from_bits((bits_of(value) + 0x1000) & ~0x1fff);
  return value == value ? rounded : value;
}

// Over the four lanes that have a row's accumulators.
__device__ inline float sum_of_four(float value) {
  value += shuffle_xor(value, 1);
  return value + shuffle_xor(value, 2);
}

// A tile of columns, all of one sample.
struct TensorTile {
  int sample, here;
  int64_t first;

  template <int kColumns>
  __device__ static TensorTile at(int64_t tile, const MmdInput<float>& in) {
    const int64_t of_x = (in.n + kColumns - 1) / kColumns;
    const int sample = tile >= of_x;
    const int64_t first = (tile - (sample ? of_x : 0)) * kColumns;
    const int64_t left = (sample ? in.m : in.n) - first;
    return {sample, static_cast<int>(left < kColumns ? left : kColumns), first};
  }
};

// Whether rows can be copied by sixteen bytes.
__device__ inline bool aligned(const Samples& of, int64_t d) {
  return of.dtype == Dtype::float32 && of.feature_stride == 1 && d % 4 == 0 &&
         of.row_stride % 4 == 0 && of.item_stride % 4 == 0 &&
         reinterpret_cast<std::uintptr_t>(of.data) % 16 == 0;
}

// Begin to copy a tile, with zeros beyond its rows and features.
template <int kColumns, int kD>
__device__ void fetch(const Samples& from, int64_t item, int d, int64_t first, int here,
                      float (&to)[kColumns][kD]) {
  if (aligned(from, d)) {
    for (int at = static_cast<int>(threadIdx.x); at < kColumns * kD / 4; at += kThreads) {
      const int j = at / (kD / 4), f = at % (kD / 4) * 4;
      const bool valid = j < here && f < d;
      const float* row = static_cast<const float*>(from.data) + item * from.item_stride +
                         (first + (valid ? j : 0)) * from.row_stride;
      copy_async_16(&to[j][f], row + (valid ? f : 0), valid);
    }
  } else {
    for (int at = static_cast<int>(threadIdx.x); at < kColumns * kD; at += kThreads) {
      const int j = at / kD, f = at % kD;
      to[j][f] = j < here && f < d ? load<float>(from, item, first + j, f) : 0.f;
    }
  }
  copy_async_commit();
}

// The block's rows, their centre (0 for features beyond d), and whether one is far from it.
template <int kD>
__device__ bool load_rows(const MmdInput<float>& in, int64_t item, int64_t first_row, int here,
                          float scale, float widest, bool exact, TensorMemory<kD>& memory) {
  const int d = static_cast<int>(in.d), thread = static_cast<int>(threadIdx.x);
  for (int at = thread; at < kTensorRows * kD; at += kThreads) {
    const int row = at / kD, f = at % kD;
    memory.rows[row][f] = row < here && f < d ? element(in, item, first_row + row, f) : 0.f;
  }
  constexpr int kParts = kThreads / kD;  // a thread adds up the rows that it has written
  float sum = 0;
  for (int row = thread / kD; row < here; row += kParts) sum += memory.rows[row][thread % kD];
  memory.high[thread / kD][thread % kD] = sum;
  sync_block();
  if (thread < kD) {
    sum = 0;
    for (int part = 0; part < kParts; ++part) sum += memory.high[part][thread];
    memory.centre[thread] = sum / static_cast<float>(here);
  }
  sync_block();
  bool far = false;
  if (thread < kTensorRows) {
    float square = 0;
#pragma unroll 8
    for (int f = 0; f < kD && thread < here; ++f) {
      float value = (memory.rows[thread][f] - memory.centre[f]) * scale;
      if (!exact) value = nearest_tf32(value);
      square = fma(value, value, square);
    }
    far = !(square * widest <= kFar);  // or NaN
    memory.row_bias[thread] = square * -0.5f;
  }
  return any_in_block(far);
}

// A tile as products want it; whether some column is far from the centre. A barrier.
template <int kD>
__device__ bool prepare(const float (&raw)[TensorMemory<kD>::kColumns][kD], int here, float scale,
                        float widest, bool exact, TensorMemory<kD>& memory) {
  for (int at = static_cast<int>(threadIdx.x); at < TensorMemory<kD>::kColumns * kD;
       at += kThreads) {
    const int j = at / kD, f = at % kD;
    const float value = j < here ? (raw[j][f] - memory.centre[f]) * scale : 0.f;
    const float high = exact ? cut_tf32(value) : nearest_tf32(value);
    memory.high[j][f] = high;
    memory.low[j][f] = value - high;
  }
  bool far = false;
  const int j = static_cast<int>(threadIdx.x);
  if (j < here) {
    float square = 0;
#pragma unroll 8
    for (int f = 0; f < kD; ++f) {
      float value = (raw[j][f] - memory.centre[f]) * scale;
      if (!exact) value = nearest_tf32(value);
      square = fma(value, value, square);
    }
    far = !(square * widest <= kFar);
    memory.bias[j] = square * -0.5f;
  }
  return any_in_block(far);
}

template <int kD, bool kOptions>
__global__ void __launch_bounds__(kThreads, 1)
    mmd_tensor_kernel(const MmdCall<float> call, const MmdGradient<float> out, unsigned blocks) {
  using Memory = TensorMemory<kD>;
  constexpr int kColumns = Memory::kColumns, kSteps = kD / 8;
  const MmdInput<float>& in = call.in;
  Memory& memory = *shared_memory<Memory>();
  double* parts = reinterpret_cast<double*>(&memory + 1);
  Scale<float>* scales = reinterpret_cast<Scale<float>*>(parts + 2);
  const int64_t item = blockIdx.x / blocks, total_rows = in.n + in.m;
  const unsigned block = blockIdx.x % blocks;
  const int64_t first_row = int64_t{block} * kTensorRows;
  const int rows_here =
      static_cast<int>(total_rows - first_row < kTensorRows ? total_rows - first_row : kTensorRows);
  const int d = static_cast<int>(in.d), lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, g = lane / 4, t = lane % 4;
  const bool exact = call.device.products == 3;
  const bool gradient = first_row < out.row_end && first_row + kTensorRows > out.row_begin;
  const float between = between_samples(in, item);

  const auto begin_copy = [&](int64_t tile) {
    const TensorTile of = TensorTile::at<kColumns>(tile, in);
    if (of.sample) {
      fetch(in.y, item, d, of.first, of.here, memory.ring[tile % 2]);
    } else {
      fetch(in.x, item, d, of.first, of.here, memory.ring[tile % 2]);
    }
  };
  const int64_t count = (in.n + kColumns - 1) / kColumns + (in.m + kColumns - 1) / kColumns;
  begin_copy(0);
  load_scales(call, item, scales);
  sync_block();
  const float scale = sqrt(-2 * scales[0].unit);
  float widest = 1;
  for (int s = 1; s < in.scales; ++s) {
    widest = scales[s].ratio > widest ? scales[s].ratio : widest;
  }
  const bool far_rows = load_rows<kD>(in, item, first_row, rows_here, scale, widest, exact, memory);

  const int rows[2] = {warp * kRowsOfMma + g, warp * kRowsOfMma + g + 8};
  float a_high[kSteps][4], a_low[kSteps][4];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const int f = 8 * step + t + p / 2 * 4;
      const float value = (memory.rows[rows[p % 2]][f] - memory.centre[f]) * scale;
      a_high[step][p] = exact ? cut_tf32(value) : nearest_tf32(value);
      a_low[step][p] = value - a_high[step][p];
    }
  }
  const bool in_y[2] = {first_row + rows[0] >= in.n, first_row + rows[1] >= in.n};

  float pull[kSteps][4] = {}, slope[2] = {};
  if (t == 0) {  // of a row's four lanes the one that keeps its sums
    for (int row : rows) memory.sums[row][0] = memory.sums[row][1] = 0;
  }
  for (int64_t tile = 0; tile < count; ++tile) {
    const auto [of_sample, here, first] = TensorTile::at<kColumns>(tile, in);
    const int64_t stacked = first + (of_sample ? in.n : 0);
    if (tile + 1 < count) {
      begin_copy(tile + 1);
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    sync_block();
    const auto& raw = memory.ring[tile % 2];
    const float* weights = kOptions ? of_sample ? in.y_weights : in.x_weights : nullptr;
    if (weights && static_cast<int>(threadIdx.x) < here) {
      memory.weight[threadIdx.x] = weights[item * (of_sample ? in.m : in.n) + first + threadIdx.x];
    }
    const bool far = prepare<kD>(raw, here, scale, widest, exact, memory);
    const bool own = stacked < first_row + kTensorRows && first_row < stacked + here;
    const float a = static_cast<float>(of_sample ? -in.y_scale : in.x_scale);
    const bool same[2] = {in_y[0] == (of_sample == 1), in_y[1] == (of_sample == 1)};
    const float coefficient[2] = {a * (same[0] ? 1.f : between), a * (same[1] ? 1.f : between)};

    float values[2] = {}, of_tile[kSteps][4] = {};
#pragma unroll 1
    for (int begin = 0; begin < here; begin += 8) {
      float e[4] = {};
      if (far_rows || far || own) {
#pragma unroll 1
        for (int f = 0; f < kD; ++f) {
#pragma unroll
          for (int p = 0; p < 4; ++p) {
            const float difference = memory.rows[rows[p / 2]][f] - raw[begin + 2 * t + p % 2][f];
            e[p] = fma(difference, difference, e[p]);
          }
        }
#pragma unroll
        for (int p = 0; p < 4; ++p) e[p] *= scales[0].unit;
      } else {
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          const float* high = &memory.high[begin + g][8 * step + t];
          const float* low = &memory.low[begin + g][8 * step + t];
          const float b_high[2] = {high[0], high[4]};
          if (exact) {
            const float b_low[2] = {low[0], low[4]};
            mma_16x8x8_tf32(e, a_low[step], b_high);
            mma_16x8x8_tf32(e, a_high[step], b_low);
          }
          mma_16x8x8_tf32(e, a_high[step], b_high);
        }
#pragma unroll
        for (int p = 0; p < 4; ++p)
          e[p] += memory.row_bias[rows[p / 2]] + memory.bias[begin + 2 * t + p % 2];
      }
      float w_high[4], w_low[4];
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const int j = begin + 2 * t + p % 2, row = p / 2;
        float value, w;
        if constexpr (kOptions) {
          kernel_at(e[p], scales, in.scales, &value, &w);
          const float of_column = weights && j < here ? memory.weight[j] : 1.f;
          value *= of_column;
          w *= of_column;
        } else {
          const Exp2<float> k = exp2_less_one(e[p]);
          value = k.less_one;
          w = k.whole;
        }
        const bool there = j < here;
        values[row] += there ? value : 0.f;
        // A row does not pull itself; its rounding would be all there is where others are far.
        w = there && stacked + j != first_row + rows[row] ? w * coefficient[row] : 0.f;
        const int place = row + p % 2 * 2;  // of a left factor
        w_high[place] = cut_tf32(w);
        w_low[place] = w - w_high[place];
        slope[row] += exact ? w : w_high[place];
      }
      if (!gradient) continue;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const float* high = &memory.high[begin + 2 * t][8 * step + g];
        const float* low = &memory.low[begin + 2 * t][8 * step + g];
        const float b_high[2] = {high[0], high[Memory::kStride]};
        if (exact) {
          const float b_low[2] = {low[0], low[Memory::kStride]};
          mma_16x8x8_tf32(of_tile[step], w_low, b_high);
          mma_16x8x8_tf32(of_tile[step], w_high, b_low);
        }
        mma_16x8x8_tf32(of_tile[step], w_high, b_high);
      }
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float value = sum_of_four(values[row]);
      if (t == 0) memory.sums[rows[row]][!same[row]] += static_cast<double>(a * value);
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int p = 0; p < 4; ++p) pull[step][p] += of_tile[step][p];
    }
    sync_block();  // the tile has been read
  }

#pragma unroll
  for (int row = 0; row < 2; ++row) {
    slope[row] = sum_of_four(slope[row]);
    const int64_t i = first_row + rows[row];
    if (!gradient || rows[row] >= rows_here || i < out.row_begin || i >= out.row_end) continue;
    // Cutting takes 0.72 of 2^-11 off a weight on average; see triton_kernels.py.
    const double factor = -2. / scales[0].variance / scale * signed_weight(in, item, i) *
                          (exact ? 1. : 1 + 0.72 / 2048);
    float* to = out.grad_z + (item * (out.row_end - out.row_begin) + i - out.row_begin) * d;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int f = 8 * step + 2 * t + c;
        if (f >= d) continue;
        float z = (memory.rows[rows[row]][f] - memory.centre[f]) * scale;
        if (!exact) z = nearest_tf32(z);
        to[f] = static_cast<float>(factor * fma(slope[row], z, -pull[step][2 * row + c]));
      }
    }
  }
  // The rows' sums were complete before the barrier behind the last tile.
  finish(call, out, item, block, blocks, kTensorRows, memory.sums, parts, memory.scratch);
}

}  // namespace cgm_fast::cuda
