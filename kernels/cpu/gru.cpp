// One layer of a GRU of two directions, forwards and backwards: the mathematics of fastmc/encoders/recurrent.py.
//
// A unit of work is one direction of one share of the batch, for all frames: units meet nowhere, and shares depend on
// sizes alone, so that no result depends on the number of threads. Gates and states of a share lie in one piece:
//
//     gates    (2, B * T, 4H)        of a share (T, rows, 4H), in the order q, r, z, n
//     states   (2, B * (T + 1), H)   of a share (T + 1, rows, H), frames in order of time, with the zero state in front
//                                    or, of a direction that runs backwards in time, at the end
//     x        first layer: (B, T, F). Above: the states of the layer below, 2 parts of F = H columns each; so is dx
//
// Products with x and those of weight gradients are made for a block of steps, whose values stay in the cache.
#include <algorithm>
#include <cstdlib>
#include <new>

#include "blas.h"
#include "gates.h"
#include "pool.h"

namespace fastmc {
namespace {

// Memory of this thread that is kept from call to call.
template <class T>
class Scratch {
  public:
    ~Scratch() { std::free(memory_); }

    T* take(int64_t count) {
        if (count > size_) {
            std::free(memory_);
            size_ = (count + 63) / 64 * 64;
            memory_ = static_cast<T*>(std::aligned_alloc(64, size_ * sizeof(T)));
            if (memory_ == nullptr) throw std::bad_alloc();
        }
        return memory_;
    }

  private:
    T* memory_ = nullptr;
    int64_t size_ = 0;
};

int64_t aligned(int64_t count) { return (count + 15) / 16 * 16; }

}  // namespace

// As class Layer of kernels/cpu/gru.py. Pointers are null for what is not there or not wanted.
template <class T>
struct Layer {
    int64_t batch, frames, hidden, parts, width, share, block_rows;
    int64_t reverse, last, threads;
    const T* x;
    const T* weights[8];  // W_i, W_h, b_i, b_h of both directions
    T *prepared, *gates, *states, *final;
    const T* upstream;  // of final (B, 2H), or of states
    T *dx, *sums, *gradients[8];

    bool backwards_in_time(int64_t d) const { return reverse && d == 1; }
    int64_t columns() const { return parts * width; }
    int64_t shares() const { return (batch + share - 1) / share; }
    bool first() const { return parts == 1; }

    // Of one direction: W_i^T (F, 3H), W_h^T (H, 3H) with rolled gates, bias (4H); backwards W_h (3H, H) alone.
    int64_t prepared_size() const { return (columns() + hidden) * 3 * hidden + 4 * hidden; }
    // Of what has x's shape, and of dx for each direction.
    int64_t dx_size() const { return first() ? batch * frames * width : 2 * batch * (frames + 1) * hidden; }
    // Of one unit: dW_i (3H, F), dW_h (3H, H) with rolled gates, sums of da (4H).
    int64_t sums_size() const { return (columns() + hidden) * 3 * hidden + 4 * hidden; }
};

namespace {

// One direction of one share.
template <class T>
struct Unit {
    const Layer<T>& l;
    const int64_t d, start, rows;

    Unit(const Layer<T>& layer, int64_t unit)
        : l(layer),
          d(unit % 2),
          start(unit / 2 * layer.share),
          rows(std::min(layer.share, layer.batch - start)) {}

    int64_t block() const { return std::clamp<int64_t>(l.block_rows / rows, 1, l.frames); }
    int64_t frame(int64_t step) const { return l.backwards_in_time(d) ? l.frames - 1 - step : step; }
    // The first frame of the steps from begin to end.
    int64_t window(int64_t begin, int64_t end) const { return l.backwards_in_time(d) ? l.frames - end : begin; }

    T* gates(int64_t t) const { return l.gates + ((d * l.batch + start) * l.frames + t * rows) * 4 * l.hidden; }
    // h_t in states, or in what has their shape.
    template <class Pointer>
    Pointer after(Pointer states, int64_t direction, int64_t t) const {
        const int64_t place = l.backwards_in_time(direction) ? t : t + 1;
        return states + ((direction * l.batch + start) * (l.frames + 1) + place * rows) * l.hidden;
    }
    T* before(int64_t t) const { return after(l.states, d, l.backwards_in_time(d) ? t + 1 : t - 1); }
    T* final() const { return l.final + start * 2 * l.hidden + d * l.hidden; }
};

// Frames begin ... end - 1 of a share of x (B, T, F), as (frames, rows, F); back: the other way.
template <class T>
void gather(const Unit<T>& u, const T* x, int64_t begin, int64_t end, T* out) {
    const int64_t width = u.l.width;
    for (int64_t b = 0; b < u.rows; ++b)
        for (int64_t t = begin; t < end; ++t)
            std::copy_n(x + ((u.start + b) * u.l.frames + t) * width, width, out + ((t - begin) * u.rows + b) * width);
}

template <class T>
void scatter(const Unit<T>& u, const T* from, int64_t begin, int64_t end, T* x) {
    const int64_t width = u.l.width;
    for (int64_t b = 0; b < u.rows; ++b)
        for (int64_t t = begin; t < end; ++t)
            std::copy_n(from + ((t - begin) * u.rows + b) * width, width, x + ((u.start + b) * u.l.frames + t) * width);
}

// Part p of x for the frames from begin on, (frames, rows, width); the first layer's is gathered to `room`.
template <class T>
const T* input(const Unit<T>& u, int64_t p, int64_t begin, int64_t end, T* room) {
    if (!u.l.first()) return u.after(u.l.x, p, begin);
    gather(u, u.l.x, begin, end, room);
    return room;
}

template <class T>
void transpose(const T* from, int64_t rows, int64_t columns, int64_t from_stride, T* to, int64_t to_stride) {
    constexpr int64_t tile = 16;
    for (int64_t i = 0; i < rows; i += tile)
        for (int64_t j = 0; j < columns; j += tile)
            for (int64_t b = j; b < std::min(j + tile, columns); ++b)
                for (int64_t a = i; a < std::min(i + tile, rows); ++a) to[b * to_stride + a] = from[a * from_stride + b];
}

// Where W_hr, W_hz and W_hn (gate 0, 1, 2) lie among the rolled gates q, r, z.
int64_t rolled(int64_t gate) { return (gate + 1) % 3; }

template <class T>
void prepare_forward(const Layer<T>& l) {
    run(2 * 3, l.threads, [&](int64_t unit) {
        const int64_t d = unit % 2, gate = unit / 2, hidden = l.hidden, columns = l.columns();
        const T *w_i = l.weights[4 * d], *w_h = l.weights[4 * d + 1];
        const T *b_i = l.weights[4 * d + 2] + gate * hidden, *b_h = l.weights[4 * d + 3] + gate * hidden;
        T *of_x = l.prepared + d * l.prepared_size(), *of_h = of_x + columns * 3 * hidden;
        T* bias = of_h + hidden * 3 * hidden;
        transpose(w_i + gate * hidden * columns, hidden, columns, columns, of_x + gate * hidden, 3 * hidden);
        transpose(w_h + gate * hidden * hidden, hidden, hidden, hidden, of_h + rolled(gate) * hidden, 3 * hidden);
        T* sum = bias + (1 + gate) * hidden;
        for (int64_t j = 0; j < hidden; ++j) sum[j] = gate < 2 ? b_i[j] + b_h[j] : b_i[j];
        if (gate == 2) std::copy_n(b_h, hidden, bias);
    });
}

template <class T>
void prepare_backward(const Layer<T>& l) {
    run(2 * 3, l.threads, [&](int64_t unit) {
        const int64_t d = unit % 2, gate = unit / 2, size = l.hidden * l.hidden;
        std::copy_n(l.weights[4 * d + 1] + gate * size, size, l.prepared + (d * 3 + rolled(gate)) * size);
    });
}

template <class T>
void forward_unit(const Unit<T>& u) {
    const Layer<T>& l = u.l;
    const int64_t hidden = l.hidden, rows = u.rows, block = u.block(), steps = l.frames;
    const T *w_x = l.prepared + u.d * l.prepared_size(), *w_h = w_x + l.columns() * 3 * hidden;
    const T* bias = w_h + hidden * 3 * hidden;
    thread_local Scratch<T> scratch;
    T* from_x = scratch.take(aligned(block * rows * 3 * hidden) + aligned(rows * 3 * hidden) +
                             aligned(rows * 4 * hidden) + aligned(rows * hidden) + block * rows * l.width);
    T* from_h = from_x + aligned(block * rows * 3 * hidden);
    T* one_step = from_h + aligned(rows * 3 * hidden);
    T* state = one_step + aligned(rows * 4 * hidden);
    T* room = state + aligned(rows * hidden);

    if (l.states) {
        T* zero = u.before(u.frame(0));
        std::fill_n(zero, rows * hidden, T(0));
    }
    for (int64_t begin = 0; begin < steps; begin += block) {
        const int64_t end = std::min(begin + block, steps), t0 = u.window(begin, end), t1 = t0 + end - begin;
        for (int64_t p = 0; p < l.parts; ++p)
            product<T>(1, {input(u, p, t0, t1, room), l.width}, {w_x + p * l.width * 3 * hidden, 3 * hidden}, p > 0,
                       from_x, 3 * hidden, (t1 - t0) * rows, 3 * hidden, l.width);
        for (int64_t s = begin; s < end; ++s) {
            const int64_t t = u.frame(s);
            const T* before = s == 0 ? nullptr : l.states ? u.before(t) : state;
            if (before) product<T>(1, {before, hidden}, {w_h, 3 * hidden}, 0, from_h, 3 * hidden, rows, 3 * hidden, hidden);
            gates_forward(rows, hidden, from_x + (t - t0) * rows * 3 * hidden, from_h, bias, before,
                          l.gates ? u.gates(t) : one_step, l.states ? u.after(l.states, u.d, t) : state);
        }
    }
    if (l.final) {
        const T* h = l.states ? u.after(l.states, u.d, u.frame(steps - 1)) : state;
        for (int64_t b = 0; b < rows; ++b) std::copy_n(h + b * hidden, hidden, u.final() + b * 2 * hidden);
    }
}

// Sums over rows, added to or in place of `total` (columns). Few rows at a time, in `partial` (columns): a long chain of
// additions would lose digits.
template <class T>
void sum_rows(const T* a, int64_t rows, int64_t columns, bool adds, T* partial, T* total) {
    constexpr int64_t few = 32;
    if (!adds) std::fill_n(total, columns, T(0));
    for (int64_t begin = 0; begin < rows; begin += few) {
        const int64_t end = std::min(begin + few, rows);
        std::fill_n(partial, columns, T(0));
        for (int64_t row = begin; row < end; row += 4) {
            const T* at = a + row * columns;
            const int64_t second = row + 1 < end, third = row + 2 < end, fourth = row + 3 < end;
#pragma omp simd
            for (int64_t j = 0; j < columns; ++j) {
                T sum = at[j];
                if (second) sum += at[columns + j];
                if (third) sum += at[2 * columns + j];
                if (fourth) sum += at[3 * columns + j];
                partial[j] += sum;
            }
        }
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j) total[j] += partial[j];
    }
}

// dx as this direction alone has it, for the frames t0 ... t1 - 1.
template <class T>
void write_dx(const Unit<T>& u, Matrix<T> da_x, int64_t t0, int64_t t1, T* room) {
    const Layer<T>& l = u.l;
    T* dx = l.dx + u.d * l.dx_size();
    for (int64_t p = 0; p < l.parts; ++p) {
        T* out = l.first() ? room : u.after(dx, p, t0);
        product<T>(1, da_x, {l.weights[4 * u.d] + p * l.width, l.columns()}, 0, out, l.width, (t1 - t0) * u.rows, l.width,
                   3 * l.hidden);
    }
    if (l.first()) scatter(u, room, t0, t1, dx);
}

template <class T>
void backward_unit(const Unit<T>& u, int64_t unit) {
    const Layer<T>& l = u.l;
    const int64_t hidden = l.hidden, rows = u.rows, block = u.block(), columns = l.columns();
    const bool wants_w_i = l.gradients[4 * u.d], wants_w_h = l.gradients[4 * u.d + 1];
    const bool wants_b = l.gradients[4 * u.d + 2] || l.gradients[4 * u.d + 3];
    const T* w_h = l.prepared + u.d * 3 * hidden * hidden;
    T *dw_i = l.sums + unit * l.sums_size(), *dw_h = dw_i + 3 * hidden * columns, *db = dw_h + 3 * hidden * hidden;
    thread_local Scratch<T> scratch;
    T* da = scratch.take(aligned(block * rows * 4 * hidden) + aligned(rows * hidden) + aligned(4 * hidden) +
                         block * rows * l.width);
    T* dh = da + aligned(block * rows * 4 * hidden);
    T* partial = dh + aligned(rows * hidden);
    T* room = partial + aligned(4 * hidden);

    const int64_t steps = l.frames;
    if (l.last) {
        const T* of_final = l.upstream + u.start * 2 * hidden + u.d * hidden;
        for (int64_t b = 0; b < rows; ++b) std::copy_n(of_final + b * 2 * hidden, hidden, dh + b * hidden);
    } else {
        std::copy_n(u.after(l.upstream, u.d, u.frame(steps - 1)), rows * hidden, dh);
    }
    bool adds = false;
    for (int64_t end = steps; end > 0; end = std::max<int64_t>(0, end - block)) {
        const int64_t begin = std::max<int64_t>(0, end - block), t0 = u.window(begin, end), t1 = t0 + end - begin;
        const int64_t many = (t1 - t0) * rows;
        for (int64_t s = end - 1; s >= begin; --s) {
            const int64_t t = u.frame(s);
            T* at = da + (t - t0) * rows * 4 * hidden;
            const T* arriving = l.last || s == 0 ? nullptr : u.after(l.upstream, u.d, u.frame(s - 1));
            gates_backward(rows, hidden, u.gates(t), s ? u.before(t) : nullptr, arriving, dh, at);
            if (s)  // no one asks for the gradient of the zero state
                product<T>(1, {at, 4 * hidden}, {w_h, hidden}, 1, dh, hidden, rows, hidden, 3 * hidden);
        }
        const Matrix<T> da_x{da + hidden, 4 * hidden};
        for (int64_t p = 0; wants_w_i && p < l.parts; ++p)
            product<T>(1, {da_x.data, da_x.stride, true}, {input(u, p, t0, t1, room), l.width}, adds,
                       dw_i + p * l.width, columns, 3 * hidden, l.width, many);
        if (wants_w_h) {
            // The step from the zero state adds nothing.
            const int64_t skip = begin == 0 ? 1 : 0, from = l.backwards_in_time(u.d) ? t0 : t0 + skip;
            product<T>(1, {da + (from - t0) * rows * 4 * hidden, 4 * hidden, true}, {u.before(from), hidden}, adds,
                       dw_h, hidden, 3 * hidden, hidden, many - skip * rows);
        }
        if (wants_b) sum_rows(da, many, 4 * hidden, adds, partial, db);
        if (l.dx) write_dx(u, da_x, t0, t1, room);
        adds = true;
    }
}

// The sum of what the shares have, in their order: one gate's rows of a direction's gradients.
template <class T>
void sum_shares(const Layer<T>& l, int64_t d, int64_t gate) {
    const int64_t hidden = l.hidden, columns = l.columns();
    const T* of_first = l.sums + d * l.sums_size();
    const auto sum = [&](int64_t from, int64_t count, T* out) {
        if (out == nullptr) return;
        std::copy_n(of_first + from, count, out);
        for (int64_t share = 1; share < l.shares(); ++share) {
            const T* more = of_first + share * 2 * l.sums_size() + from;
#pragma omp simd
            for (int64_t j = 0; j < count; ++j) out[j] += more[j];
        }
    };
    const auto at = [](T* out, int64_t place) { return out == nullptr ? nullptr : out + place; };
    const int64_t dw_h = 3 * hidden * columns, db = dw_h + 3 * hidden * hidden;
    T* const* out = l.gradients + 4 * d;
    sum(gate * hidden * columns, hidden * columns, at(out[0], gate * hidden * columns));
    sum(dw_h + rolled(gate) * hidden * hidden, hidden * hidden, at(out[1], gate * hidden * hidden));
    sum(db + (1 + gate) * hidden, hidden, at(out[2], gate * hidden));
    sum(db + rolled(gate) * hidden, hidden, at(out[3], gate * hidden));
}

template <class T>
void add_directions(const Layer<T>& l, int64_t share, int64_t shares) {
    const int64_t begin = l.dx_size() * share / shares, end = l.dx_size() * (share + 1) / shares;
    const T* other = l.dx + l.dx_size();
#pragma omp simd
    for (int64_t j = begin; j < end; ++j) l.dx[j] += other[j];
}

template <class T>
void forward(const Layer<T>& l) {
    prepare_forward(l);
    run(2 * l.shares(), l.threads, [&](int64_t unit) { forward_unit(Unit<T>(l, unit)); });
}

template <class T>
void backward(const Layer<T>& l) {
    prepare_backward(l);
    run(2 * l.shares(), l.threads, [&](int64_t unit) { backward_unit(Unit<T>(l, unit), unit); });
    if (l.sums) run(2 * 3, l.threads, [&](int64_t unit) { sum_shares(l, unit % 2, unit / 2); });
    if (l.dx) run(l.shares(), l.threads, [&](int64_t share) { add_directions(l, share, l.shares()); });
}

}  // namespace
}  // namespace fastmc

FASTMC_API void fastmc_gru_forward_float32(const fastmc::Layer<float>* layer) { fastmc::forward(*layer); }
FASTMC_API void fastmc_gru_forward_float64(const fastmc::Layer<double>* layer) { fastmc::forward(*layer); }
FASTMC_API void fastmc_gru_backward_float32(const fastmc::Layer<float>* layer) { fastmc::backward(*layer); }
FASTMC_API void fastmc_gru_backward_float64(const fastmc::Layer<double>* layer) { fastmc::backward(*layer); }

// Of each x its sigmoid and tanh, as the gates have them.
FASTMC_API void fastmc_gru_gates(const float* x, int64_t count, float* sigmoids, float* tangents) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        sigmoids[i] = fastmc::sigmoid(x[i]);
        tangents[i] = fastmc::hyperbolic_tangent(x[i]);
    }
}
