// A kernel matrix times values, and the derivatives of their bilinear form on the rows' side, in
// one launch that stores no n x m matrix; any number of features and values, and any kernel.
//
// A block takes 64 rows and a share of the columns, a tile of them after another:
//   1. of the tile's pairs squared distances, by plain differences, and <u_i, v_j> where a
//      derivative is wanted; a thread has 4 x 4 pairs (4 x 2 of doubles);
//   2. the kernel of each pair, to shared memory, as the pair's weights;
//   3. weights times values, or times differences of features; a thread has 4 rows x 4 outputs.
// Operands are read from global memory a chunk of features (values) at a time, and lie transposed
// in shared memory, so that one 16-byte load gives a thread its 4 rows or columns: phases 1 and 3
// take 3 wavefronts of shared memory for 16 pairs, and 8 clocks (4 where nothing is subtracted) of
// the multiprocessor's 128 lanes. Of narrow outputs threads share the columns ("slices").
//
// A pair takes 2d operations for its distance, some 20 for its kernel, p for the product, and p +
// 2d for the gradient (outputs by fours): distances and kernels are found once, whatever is wanted.
// Of a column d + p numbers are read for 64 rows, from L2, once or (of the gradient, d and p again)
// twice.
//
// Rounding: a thread's sums are of 256 columns at most, and then are added to compensated ones,
// which wait in global memory at the thread's own place. They are met once in 256 columns if
// product and gradient have a chunk each at most, else after every tile: 16 bytes for 64
// multiply-adds (twice as many of the gradient), which L2 gives.
//
// Nothing is added atomically. The shares of a row's columns, and of a bandwidth's derivative those
// of all blocks, are added by whoever finishes last, in their order.
#pragma once

#include "cuda/kernel_product_tile.cuh"
#include "cuda/radial.cuh"
#include "cuda/shared.cuh"
#include "kernel_product.h"

namespace cgm_fast::cuda {

// Of one bandwidth h.
template <typename T>
struct ProductScale {
  T unit;    // t = unit |a - b|^2: 1 / 2h
  T weight;  // of its kernel
  T slope;   // weight / h
};

// What a block has in shared memory behind its memory.
template <typename T>
struct ProductTail {
  ProductScale<T>* scales;   // [scales]
  double *of_warps, *parts;  // [scales, warps], [scales]: of the bandwidths' derivatives

  __host__ __device__ ProductTail(SharedLayout& layout, const KernelProductProblem<T>& in)
      : scales(layout.array<ProductScale<T>>(in.scales)),
        of_warps(layout.array<double>(in.scales * kWarps)),
        parts(layout.array<double>(in.scales)) {}
};

template <typename T>
struct ProductCall {
  KernelProductProblem<T> in;
  KernelProductValue<T> out;
  KernelProductDevice<T> device;
};

// The product, or the gradient: outputs of each row, a chunk of them after another.
template <typename T>
struct Outputs {
  static constexpr int kChunk = ProductMemory<T>::kChunk;
  int width, chunks;  // 0: not wanted
  int first_chunk;    // of those that are wanted

  __device__ Outputs(bool wanted, int64_t width, int first_chunk)
      : width(wanted ? static_cast<int>(width) : 0),
        chunks((this->width + kChunk - 1) / kChunk),
        first_chunk(first_chunk) {}
  __device__ int of_chunk(int chunk) const {
    const int left = width - chunk * kChunk;
    return left < kChunk ? left : kChunk;
  }
};

// A block's rows, with a tile of columns after another.
template <typename T, bool kGaussian>
struct ProductPass {
  using Memory = ProductMemory<T>;
  using Sums = T[kQuad][kQuad];  // [row][output]
  static constexpr int kColumns = Memory::kColumns, kChunk = Memory::kChunk;
  static constexpr int kOfThread = kColumns / kQuads;      // columns, in phases 1 and 2
  static constexpr int kTogether = kGaussian ? kQuad : 1;  // pairs whose kernels are found
  enum Operand { kSamples, kValues };

  const ProductCall<T>& call;
  const KernelProductProblem<T>& in;
  const KernelProductValue<T>& out;
  const ProductTail<T>& tail;
  Memory& memory;
  const int d, values;
  const Outputs<T> product, gradient;
  const int row_blocks;
  int64_t item = 0, first_row = 0, row_unit = 0;
  int split = 0, rows_here = 0;
  int64_t first_column = 0;  // of the tile
  int columns_here = 0;
  int held_rows = -1, held_columns = -1;  // chunks in shared memory, as `bring` counts them

  __device__ ProductPass(const ProductCall<T>& call, const ProductTail<T>& tail, Memory& memory)
      : call(call),
        in(call.in),
        out(call.out),
        tail(tail),
        memory(memory),
        d(static_cast<int>(in.d)),
        values(static_cast<int>(in.values)),
        product(out.product != nullptr, in.values, 0),
        gradient(out.x != nullptr, in.d, product.chunks),
        row_blocks(static_cast<int>((in.rows + kProductRows - 1) / kProductRows)) {}

  // In phases 1 and 2 a thread has these rows and columns.
  __device__ static int own_row() { return Slices::row(); }
  __device__ static int own_column() { return static_cast<int>(threadIdx.x) / kQuads * kOfThread; }

  // Units of work: an item's rows, and a share of the columns.
  __device__ int64_t units() const { return in.batch * row_blocks * call.device.splits; }

  __device__ void begin(int64_t unit) {
    split = static_cast<int>(unit % call.device.splits);
    row_unit = unit / call.device.splits;
    item = row_unit / row_blocks;
    first_row = row_unit % row_blocks * kProductRows;
    const int64_t left = in.rows - first_row;
    rows_here = static_cast<int>(left < kProductRows ? left : kProductRows);
    held_rows = -1;
    // Since the last barrier of the unit before nobody reads the tail.
    const T* variance = in.variance + item * call.device.variance_item;
#pragma unroll 1
    for (int s = static_cast<int>(threadIdx.x); s < in.scales; s += kThreads) {
      const T weight = call.device.kernel_weights[s];
      tail.scales[s] = {T(0.5) / variance[s], weight, weight / variance[s]};
    }
#pragma unroll 1
    for (int q = static_cast<int>(threadIdx.x); q < in.scales * kWarps; q += kThreads) {
      tail.of_warps[q] = 0;
    }
  }

  // Begin to bring the chunk of features of samples, or of values, that begins so.
  template <int kCount, int kStride>
  __device__ void load_samples(T (&chunk)[kChunk][kStride], Samples of, int64_t first, int here,
                               int begin) const {
    of = rows_from(of, item, first);
    const int some = d - begin < kChunk ? d - begin : kChunk;
    if (is_of<T>(of)) {
      ElementsOf<T> from = elements_of<T>(of);
      from.data += begin * from.across;
      return fetch_transposed<kCount>(chunk, here, some, from);
    }
    if constexpr (sizeof(T) == 4) {
      load_transposed<kCount>(chunk, here, some, [at = halves_of(of), begin](int row, int f) {
        return at(row, begin + f);
      });
    }
  }
  template <int kCount, int kStride>
  __device__ void load_values(T (&chunk)[kChunk][kStride], const T* of, int64_t first, int here,
                              int begin) const {
    const int some = values - begin < kChunk ? values - begin : kChunk;
    fetch_transposed<kCount>(chunk, here, some,
                             ElementsOf<T>{of + first * in.values + begin, in.values, 1});
  }

  // A chunk of the tile's columns, and of the rows where they are read, unless it is there already.
  __device__ void bring(Operand of, int chunk, bool with_rows) {
    const int code = 2 * chunk + of, begin = chunk * kChunk;
    const bool rows = with_rows && held_rows != code, columns = held_columns != code;
    if (!rows && !columns) return;
    sync_block();  // what is there has been read
    if (of == kSamples) {
      if (rows) load_samples<kProductRows>(memory.rows, in.x, first_row, rows_here, begin);
      if (columns) {
        load_samples<kColumns>(memory.columns, in.y, first_column, columns_here, begin);
      }
    } else {
      if (rows) {
        load_values<kProductRows>(memory.rows, in.u, item * in.rows + first_row, rows_here, begin);
      }
      if (columns) {
        load_values<kColumns>(memory.columns, in.v, item * in.columns + first_column, columns_here,
                              begin);
      }
    }
    if (rows) held_rows = code;
    if (columns) held_columns = code;
    copy_async_commit();
    copy_async_wait<0>();
    sync_block();
  }

  // Of the thread's pairs squared distances, or products of values, to their places.
  template <Operand kOf>
  __device__ void visit_pairs(T (&places)[kColumns][kProductRows]) {
    const int width = kOf == kSamples ? d : values;
#pragma unroll 1
    for (int begin = 0; begin < width; begin += kChunk) {
      bring(kOf, begin / kChunk, true);
      const int some = width - begin < kChunk ? width - begin : kChunk;
      T sums[kOfThread][kQuad] = {};
#pragma unroll 2
      for (int f = 0; f < some; ++f) {
        T a[kQuad], b[kOfThread];
        read_some(&memory.rows[f][own_row()], a);
        read_some(&memory.columns[f][own_column()], b);
#pragma unroll
        for (int c = 0; c < kOfThread; ++c) {
#pragma unroll
          for (int r = 0; r < kQuad; ++r) {
            const T left = kOf == kSamples ? a[r] - b[c] : a[r];
            const T right = kOf == kSamples ? left : b[c];
            sums[c][r] = fma(left, right, sums[c][r]);
          }
        }
      }
      // Sums of sums: with many features rounding would add up.
#pragma unroll
      for (int c = 0; c < kOfThread; ++c) {
        T* place = &places[own_column() + c][own_row()];
        if (begin > 0) {
          T before[kQuad];
          read_some(place, before);
#pragma unroll
          for (int r = 0; r < kQuad; ++r) sums[c][r] += before[r];
        }
        write_some(place, sums[c]);
      }
    }
  }

  // Adds to the bandwidths' sums of <u, v> phi'(t) t over a tile's pairs.
  __device__ void visit_bandwidths() const {
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll 1
    for (int s = 0; s < in.scales; ++s) {
      const T unit = tail.scales[s].unit;
      T sum = 0;
#pragma unroll 1
      for (int c = 0; c < kOfThread; ++c) {
        const int column = own_column() + c;
#pragma unroll kTogether
        for (int r = 0; r < kQuad; ++r) {
          const int row = own_row() + r;
          const T t = finite(memory.weights[column][row] * unit);
          const T of_pair =
              memory.slopes[column][row] * (t * radial<kGaussian>(in.kernel, t).first);
          sum += row < rows_here && column < columns_here ? of_pair : T(0);
        }
      }
      const double of_warp = sum_of_warp(static_cast<double>(sum));
      if (threadIdx.x % kWarp == 0) tail.of_warps[s * kWarps + warp] += of_warp;
    }
  }

  // A tile's k, and 2 <u, v> dk/du where a gradient is wanted, in place of what they come from.
  __device__ void visit_kernels() {
#pragma unroll 1
    for (int c = 0; c < kOfThread; ++c) {
      const int column = own_column() + c;
      const bool there = column < columns_here;
#pragma unroll 1
      for (int row = own_row(); row < own_row() + kQuad; row += kTogether) {
        T u[kTogether], whole[kTogether] = {}, slope[kTogether] = {};
#pragma unroll
        for (int p = 0; p < kTogether; ++p) u[p] = memory.weights[column][row + p];
#pragma unroll 1
        for (int s = 0; s < in.scales; ++s) {
          const ProductScale<T> scale = tail.scales[s];
#pragma unroll
          for (int p = 0; p < kTogether; ++p) {
            const Radial<T> k = radial<kGaussian>(in.kernel, finite(u[p] * scale.unit));
            whole[p] = fma(scale.weight, k.whole, whole[p]);
            slope[p] = fma(scale.slope, k.first, slope[p]);
          }
        }
#pragma unroll
        for (int p = 0; p < kTogether; ++p) {
          memory.weights[column][row + p] = there ? whole[p] : T(0);
          if (gradient.width == 0) continue;
          T& place = memory.slopes[column][row + p];
          place = there ? slope[p] * place : T(0);
        }
      }
    }
  }

  // Adds a tile's share of a chunk of outputs: values, or differences of features, weighed.
  template <bool kDifferences>
  __device__ void add_tile(const T (&weights)[kColumns][kProductRows], int outputs,
                           Sums& sums) const {
    const Slices own(outputs);
    const int first = own.output();
    if (first >= outputs) return;
    T x[kQuad][kQuad];
    if constexpr (kDifferences) {
#pragma unroll
      for (int q = 0; q < kQuad; ++q) read_some(&memory.rows[first + q][own.row()], x[q]);
    }
#pragma unroll 1
    for (int column = own.slice() * kQuad; column < kColumns; column += own.slices * kQuad) {
      T weight[kQuad][kQuad];
#pragma unroll
      for (int c = 0; c < kQuad; ++c) read_some(&weights[column + c][own.row()], weight[c]);
#pragma unroll
      for (int q = 0; q < kQuad; ++q) {
        T value[kQuad];
        read_some(&memory.columns[first + q][column], value);
#pragma unroll
        for (int c = 0; c < kQuad; ++c) {
#pragma unroll
          for (int r = 0; r < kQuad; ++r) {
            const T of_column = kDifferences ? x[q][r] - value[c] : value[c];
            sums[r][q] = fma(weight[c][r], of_column, sums[r][q]);
          }
        }
      }
    }
  }

  // Where a thread's compensated sum of a chunk is.
  __device__ T* place_of(int chunk, int thread, int row, int output) const {
    const int chunks = product.chunks + gradient.chunks;
    const int64_t at = (int64_t{blockIdx.x} * chunks + chunk) * (kQuad * kQuad) +
                       row % kQuad * kQuad + output % kQuad;
    return call.device.sums + 2 * (at * kThreads + thread);
  }

  // Adds the thread's sums of a chunk to the compensated ones, or begins these, and clears them.
  __device__ void flush(int chunk, Sums& sums, bool begun) const {
#pragma unroll
    for (int r = 0; r < kQuad; ++r) {
#pragma unroll
      for (int q = 0; q < kQuad; ++q) {
        T* place = place_of(chunk, static_cast<int>(threadIdx.x), r, q);
        Compensated<T> all{sums[r][q], T(0)};
        if (begun) {
          const Pack<T, 2> before = read_pack<2>(place);
          all = {before.of[0], before.of[1]};
          all.add(sums[r][q]);
        }
        write_pack(place, Pack<T, 2>{{all.sum, all.low}});
        sums[r][q] = 0;
      }
    }
  }

  // Tiles from a flush to the next.
  __device__ int period() const {
    if (product.chunks > 1 || gradient.chunks > 1) return 1;
    const int widest = product.width > gradient.width ? product.width : gradient.width;
    return kPlainColumns / kColumns * Slices(widest).slices;
  }

  __device__ void visit_columns() {
    const int64_t tiles = (in.columns + kColumns - 1) / kColumns;
    const int begin = static_cast<int>(tiles * split / call.device.splits);
    const int end = static_cast<int>(tiles * (split + 1) / call.device.splits);
    const int most = period();
    Sums of_product = {}, of_gradient = {};
    bool begun = false;
    int since = 0;
#pragma unroll 1
    for (int tile = begin; tile < end; ++tile) {
      first_column = int64_t{tile} * kColumns;
      const int64_t left = in.columns - first_column;
      columns_here = static_cast<int>(left < kColumns ? left : kColumns);
      held_columns = -1;
      if (gradient.width > 0 || out.variance) visit_pairs<kValues>(memory.slopes);
      visit_pairs<kSamples>(memory.weights);
      if (out.variance) visit_bandwidths();
      visit_kernels();
      sync_block();
      const bool full = ++since == most || tile + 1 == end;
#pragma unroll 1
      for (int chunk = gradient.chunks - 1; chunk >= 0; --chunk) {  // the last is there already
        bring(kSamples, chunk, true);
        add_tile<true>(memory.slopes, gradient.of_chunk(chunk), of_gradient);
        if (full) flush(gradient.first_chunk + chunk, of_gradient, begun);
      }
#pragma unroll 1
      for (int chunk = 0; chunk < product.chunks; ++chunk) {
        bring(kValues, chunk, false);
        add_tile<false>(memory.weights, product.of_chunk(chunk), of_product);
        if (full) flush(product.first_chunk + chunk, of_product, begun);
      }
      if (!full) continue;
      begun = true;
      since = 0;
    }
  }

  // Where a row's outputs begin.
  __device__ T* row_of(bool of_product, int row) const {
    const int64_t at = item * in.rows + first_row + row;
    return of_product ? out.product + at * in.values : out.x + at * in.d;
  }

  // Doubles of a unit's partial outputs.
  __device__ double* partials_of(int64_t unit_split) const {
    const int64_t width = product.width + gradient.width;
    return call.device.partials +
           (row_unit * call.device.splits + unit_split) * kProductRows * width;
  }

  // Adds up what threads have of the outputs; leaves it where it goes, or to `partials`.
  __device__ void deliver(bool of_product, double* partials) const {
    const Outputs<T>& outputs = of_product ? product : gradient;
    const int64_t places = int64_t{rows_here} * outputs.width;
#pragma unroll 1
    for (int64_t place = threadIdx.x; place < places; place += kThreads) {
      const int row = static_cast<int>(place / outputs.width);
      const int f = static_cast<int>(place % outputs.width), chunk = f / kChunk;
      const Slices shares(outputs.of_chunk(chunk));
      double sum = 0;
#pragma unroll 1
      for (int slice = 0; slice < shares.slices; ++slice) {
        const int thread = shares.thread(slice, row, f % kChunk);
        const Pack<T, 2> of =
            read_pack<2>(place_of(outputs.first_chunk + chunk, thread, row, f % kChunk));
        sum += Compensated<T>{of.of[0], of.of[1]}.total();
      }
      if (partials) {
        partials[place] = sum;
      } else {
        row_of(of_product, row)[f] = static_cast<T>(sum);
      }
    }
  }

  // The shares of the columns, added in their order.
  __device__ void add_splits(bool of_product) const {
    const Outputs<T>& outputs = of_product ? product : gradient;
    const int64_t before = of_product ? 0 : int64_t{kProductRows} * product.width;
    const int64_t places = int64_t{rows_here} * outputs.width;
#pragma unroll 1
    for (int64_t place = threadIdx.x; place < places; place += kThreads) {
      double sum = 0;
#pragma unroll 1
      for (int q = 0; q < call.device.splits; ++q) {
        sum += load_fresh(partials_of(q) + before + place);
      }
      row_of(of_product, static_cast<int>(place / outputs.width))[place % outputs.width] =
          static_cast<T>(sum);
    }
  }

  __device__ void finish() {
    sync_block();  // all sums are in their places
    double* partials = call.device.splits > 1 ? partials_of(split) : nullptr;
    if (product.width > 0) deliver(true, partials);
    if (gradient.width > 0) {
      deliver(false, partials ? partials + int64_t{kProductRows} * product.width : nullptr);
    }
    if (partials && last_to_finish(call.device.counters + in.batch + row_unit,
                                   static_cast<unsigned>(call.device.splits))) {
      if (product.width > 0) add_splits(true);
      if (gradient.width > 0) add_splits(false);
    }
    if (out.variance) finish_bandwidths();
  }

  __device__ void finish_bandwidths() {
    const int scales = static_cast<int>(in.scales);
    const auto units_of_item = static_cast<unsigned>(row_blocks * call.device.splits);
#pragma unroll 1
    for (int s = static_cast<int>(threadIdx.x); s < scales; s += kThreads) {
      double sum = 0;
#pragma unroll 1
      for (int warp = 0; warp < kWarps; ++warp) sum += tail.of_warps[s * kWarps + warp];
      tail.parts[s] = -static_cast<double>(tail.scales[s].slope) * sum;
    }
    const Partials partials{call.device.parts + item * units_of_item * scales, units_of_item,
                            scales};
    const auto unit = static_cast<unsigned>(row_unit % row_blocks * call.device.splits + split);
    if (!partials.leave(tail.parts, unit, call.device.counters + item)) return;
#pragma unroll 1
    for (int s = 0; s < scales; ++s) {
      const double sum = partials.sum(s, memory.scratch);
      if (threadIdx.x == 0) out.variance[item * scales + s] = static_cast<T>(sum);
    }
  }
};

template <typename T, bool kGaussian>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 2 : 1)
    kernel_product_kernel(const ProductCall<T> call) {
  SharedLayout layout(shared_memory<unsigned char>());
  ProductMemory<T>& memory = *layout.array<ProductMemory<T>>(1);
  const ProductTail<T> tail(layout, call.in);
  ProductPass<T, kGaussian> pass(call, tail, memory);
#pragma unroll 1
  for (int64_t unit = blockIdx.x; unit < pass.units(); unit += call.device.blocks) {
    pass.begin(unit);
    pass.visit_columns();
    pass.finish();
  }
}

}  // namespace cgm_fast::cuda
