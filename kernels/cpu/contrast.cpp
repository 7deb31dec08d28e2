// Passes over the bank for loss, gradients and bank step: what fastmc/objective/passes.py does with PyTorch operators,
// chunk by chunk in cache, a row of the table for one sample at a time. Names are those of that file.
//
// The bank is cut into as many units as its size says, and their sums are added in order: no bit depends on the threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "blas.h"
#include "exp2.h"
#include "pool.h"

namespace fastmc {
namespace {

constexpr int64_t ENTRIES = 512;  // of a chunk
constexpr int64_t UNITS = 16;     // at most

// The rows of some samples against the bank. Arrays lie as their shapes say; r n is a row of a sample.
template <class T>
struct Block {
    const T* bank;          // (K, D) raw rows
    const T* queries;       // (p, n, D), divided by the temperature and by log 2
    const T* mixing;        // (K), lambda; null: no mixed entries
    const T* crossed;       // (r, n, tile) logits of what the bank is mixed with
    const T* shift;         // (r, n) bits that logits are lessened by, or null
    const int64_t* column;  // (r), each row's plain column
    int64_t bank_size, dim, samples, columns, rows;
    int64_t tile;      // period of `crossed` along the bank
    int64_t measured;  // a column
    int64_t students;  // the first columns, which mine
    int64_t mined;     // entries each
    int64_t unit;      // whether rows of the bank are scaled to unit length

    int64_t chunk() const { return tile < ENTRIES ? ENTRIES / tile * tile : tile; }  // each begins with tile 0
    int64_t chunks() const { return (bank_size + chunk() - 1) / chunk(); }
    int64_t chunks_per_unit() const { return (chunks() + UNITS - 1) / UNITS; }
    int64_t units() const { return (chunks() + chunks_per_unit() - 1) / chunks_per_unit(); }
    int64_t all_rows() const { return rows * samples; }
    int64_t all_columns() const { return columns * samples; }

    T shift_of(int64_t row, int64_t sample) const { return shift ? shift[row * samples + sample] : T(0); }
};

// Unlike std::max it passes on what is not a number.
template <class T>
T larger(T a, T b) {
    return a > b || a != a ? a : b;
}

// Memory of a thread that is kept from call to call, aligned as the widest vectors want it.
template <class T>
class Memory {
  public:
    T* of(size_t size) {
        if (kept_.size() < size + ALIGNED / sizeof(T)) kept_.resize(size + ALIGNED / sizeof(T));
        const auto address = reinterpret_cast<uintptr_t>(kept_.data());
        return reinterpret_cast<T*>((address + ALIGNED - 1) / ALIGNED * ALIGNED);
    }

  private:
    static constexpr size_t ALIGNED = 64;
    std::vector<T> kept_;
};

// A chunk of the bank.
template <class T>
class Chunk {
  public:
    Chunk(const Block<T>& block, int64_t number)
        : start(number * block.chunk()), size(std::min(block.chunk(), block.bank_size - start)), block_(block) {
        const int64_t unit = size * block.dim, plain = block.all_columns() * size, all = block.all_rows() * size;
        static thread_local Memory<T> memory;
        unit_rows = memory.of(unit + plain + all + block.columns * (size + 1));
        logits = unit_rows + unit;
        weights = logits + plain;
        exponentials = weights + all;
        column_sums = exponentials + block.columns * size;
    }

    // Rows m (size, D), normalised or as they are, and logits (p, n, size), not yet less the shift.
    void make_logits() {
        for (int64_t i = 0; i < size; ++i) {
            const T* raw = block_.bank + (start + i) * block_.dim;
            const T inverse = block_.unit ? 1 / larger(length(raw, block_.dim), T(1e-12)) : T(1);
            for (int64_t d = 0; d < block_.dim; ++d) unit_rows[i * block_.dim + d] = raw[d] * inverse;
        }
        product<T>(1, {block_.queries, block_.dim}, {unit_rows, block_.dim, true}, 0, logits, size,
                   block_.all_columns(), size, block_.dim);
    }

    T* logits_of(int64_t column, int64_t sample) { return logits + (column * block_.samples + sample) * size; }

    static T length(const T* x, int64_t dim) {
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < dim; ++d) sum += x[d] * x[d];
        return std::sqrt(sum);
    }

    const int64_t start, size;
    T *unit_rows, *logits, *weights, *exponentials, *column_sums;

  private:
    const Block<T>& block_;
};

// The largest of them. In lanes, since compilers make no vectors of a maximum that may meet what is not a number.
template <class T>
T largest_of(const T* x, int64_t size) {
    constexpr int64_t LANES = 64 / sizeof(T);
    T lanes[LANES];
    std::fill(lanes, lanes + LANES, -std::numeric_limits<T>::infinity());
    int64_t j = 0;
    for (; j + LANES <= size; j += LANES)
        for (int64_t lane = 0; lane < LANES; ++lane) lanes[lane] = x[j + lane] > lanes[lane] ? x[j + lane] : lanes[lane];
    for (; j < size; ++j) lanes[0] = std::max(lanes[0], x[j]);
    return *std::max_element(lanes, lanes + LANES);
}

// e = 2^(factor (logits - shift)); returns their sum.
template <class T>
T exponentials(const T* logits, T shift, T factor, int64_t size, T* e) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < size; ++j) {
        e[j] = exp2(factor * (logits[j] - shift));
        sum += e[j];
    }
    return sum;
}

// Logits of the mixed entries, lambda crossed + (1 - lambda) logits, and with their exponentials e_b the weights
// e + (1 - lambda) e_b. Adds to `share` the sum of lambda e_b; returns that of e_b.
template <class T>
T mixed(const T* logits, const T* lambda, T crossed, T shift, T factor, int64_t size, const T* e, T* weights, T* share) {
    T sum = 0, of_partner = 0;
#pragma omp simd reduction(+ : sum, of_partner)
    for (int64_t j = 0; j < size; ++j) {
        const T mixed_e = exp2(factor * (logits[j] + lambda[j] * (crossed - logits[j]) - shift));
        sum += mixed_e;
        of_partner += lambda[j] * mixed_e;
        weights[j] = e[j] + (1 - lambda[j]) * mixed_e;
    }
    *share += of_partner;
    return sum;
}

// The same of as many entries as there are tiles, each with a share of its own.
template <class T>
T mixed_tiles(const T* logits, const T* lambda, const T* crossed, T shift, T factor, int64_t size, const T* e, T* weights,
              T* share) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < size; ++j) {
        const T mixed_e = exp2(factor * (logits[j] + lambda[j] * (crossed[j] - logits[j]) - shift));
        sum += mixed_e;
        share[j] += lambda[j] * mixed_e;
        weights[j] = e[j] + (1 - lambda[j]) * mixed_e;
    }
    return sum;
}

// Weights W (r, n, size) of one sample, of logits that are multiplied by `factor`. Adds to sums (r, n) those of all
// exponentials, and to share (r, n, tile) those of lambda e_b.
template <class T>
void weigh(const Block<T>& block, Chunk<T>& chunk, int64_t sample, T factor, T* weights, T* sums, T* share) {
    const int64_t size = chunk.size;
    for (int64_t c = 0; c < block.columns; ++c)
        chunk.column_sums[c] = exponentials(chunk.logits_of(c, sample), block.shift_of(c, sample), factor, size,
                                            chunk.exponentials + c * size);
    for (int64_t r = 0; r < block.rows; ++r) {
        const int64_t c = block.column[r], row = r * block.samples + sample;
        const T *e = chunk.exponentials + c * size, *logits = chunk.logits_of(c, sample);
        T* w = weights + row * size;
        sums[row] += chunk.column_sums[c];
        if (block.mixing == nullptr) {
            std::copy(e, e + size, w);
            continue;
        }
        const T *lambda = block.mixing + chunk.start, *crossed = block.crossed + row * block.tile;
        const T shift = block.shift_of(r, sample);
        if (block.tile == 1) {
            sums[row] += mixed(logits, lambda, *crossed, shift, factor, size, e, w, share + row);
            continue;
        }
        for (int64_t j = 0; j < size; j += block.tile)
            sums[row] += mixed_tiles(logits + j, lambda + j, crossed, shift, factor, std::min(block.tile, size - j),
                                     e + j, w + j, share + row * block.tile);
    }
}

// The nearest entries' logits (n) of the measured column, and the sums of 2^(factor (logits - nearest)).
template <class T>
struct Nearest {
    T *logit, *sum;

    void start(int64_t samples) {
        std::fill(logit, logit + samples, -std::numeric_limits<T>::infinity());
        std::fill(sum, sum + samples, T(0));
    }

    void add(int64_t sample, T other, T other_sum, T factor) {
        const T before = logit[sample], nearest = std::max(before, other);
        logit[sample] = nearest;
        sum[sample] = sum[sample] * exp2(factor * (before - nearest)) + other_sum * exp2(factor * (other - nearest));
    }

    void add(const Block<T>& block, Chunk<T>& chunk, int64_t sample, T factor) {
        const T* logits = chunk.logits_of(block.measured, sample);
        const T nearest = largest_of(logits, chunk.size);
        const T total = exponentials(logits, nearest, factor, chunk.size, chunk.exponentials);
        add(sample, nearest - block.shift_of(block.measured, sample), total, factor);
    }
};

// The entries with the largest logits of each column that mines, and of each sample (students, n, mined): largest first,
// of equals the first.
template <class T>
struct Mined {
    int64_t size;
    std::vector<T> logits;
    std::vector<int64_t> entries;

    explicit Mined(const Block<T>& block)
        : size(block.mined),
          logits(block.students * block.samples * size, -std::numeric_limits<T>::infinity()),
          entries(logits.size()) {
        for (size_t i = 0; i < entries.size(); ++i) entries[i] = i % size;  // these stay where logits are no numbers
    }

    void insert(int64_t list, T logit, int64_t entry) {
        T* x = &logits[list * size];
        int64_t *e = &entries[list * size], place = size - 1;
        if (!(logit > x[place])) return;
        for (; place > 0 && logit > x[place - 1]; --place) {
            x[place] = x[place - 1];
            e[place] = e[place - 1];
        }
        x[place] = logit;
        e[place] = entry;
    }

    void add(const Block<T>& block, Chunk<T>& chunk, int64_t sample) {
        for (int64_t c = 0; size > 0 && c < block.students; ++c) {
            const int64_t list = c * block.samples + sample;
            const T* x = chunk.logits_of(c, sample);
            if (!(largest_of(x, chunk.size) > logits[list * size + size - 1])) continue;
            for (int64_t j = 0; j < chunk.size; ++j) insert(list, x[j], chunk.start + j);
        }
    }

    void add(const Mined& later) {
        for (size_t i = 0; i < entries.size(); ++i) insert(i / size, later.logits[i], later.entries[i]);
    }
};

// What a sweep gives, one after the other in one array: sums (r, n) of all exponentials, share (r, n, tile) of lambda
// e_b, keys (r, n, D) of W m, each of the first temperature; sums (r, n) of the second; and Nearest's.
template <class T>
struct Found {
    T *sums, *share, *keys, *second;
    Nearest<T> nearest;
    int64_t added;  // elements before those of `nearest`

    Found(const Block<T>& block, bool first, bool with_second, T* at) : sums(at) {
        const int64_t rows = block.all_rows();
        share = sums + (first ? rows : 0);
        keys = share + (first ? rows * block.tile : 0);
        second = keys + (first ? rows * block.dim : 0);
        nearest.logit = second + (with_second ? rows : 0);
        nearest.sum = nearest.logit + block.samples;
        added = nearest.logit - at;
    }

    static int64_t size(const Block<T>& block, bool first, bool with_second) {
        return Found(block, first, with_second, nullptr).added + 2 * block.samples;
    }
};

// One pass. `kept`: where the weights W (r, n, size) at the second temperature go, chunk by chunk, or null; `factor`
// makes logits those of the second temperature; to `neighbours` go the entries that are mined.
template <class T>
void sweep(const Block<T>& block, bool first, T factor, T* kept, T* result, int64_t* neighbours, int threads) {
    const int64_t rows = block.all_rows(), n = block.samples, dim = block.dim;
    const int64_t size = Found<T>::size(block, first, kept), units = block.units(), share = block.chunks_per_unit();
    const std::unique_ptr<T[]> partial(new T[units * size]);
    std::vector<Mined<T>> mined(units, Mined<T>(block));
    run(units, threads, [&](int64_t unit) {
        Found<T> found(block, first, kept, partial.get() + unit * size);
        std::fill(found.sums, found.sums + found.added, T(0));
        found.nearest.start(n);
        std::vector<T> unused(kept ? rows * block.tile : 0);
        for (int64_t c = unit * share; c < std::min((unit + 1) * share, block.chunks()); ++c) {
            Chunk<T> chunk(block, c);
            chunk.make_logits();
            T* second = kept + chunk.start * rows;  // of the chunk
            for (int64_t sample = 0; sample < n; ++sample) {
                found.nearest.add(block, chunk, sample, factor);
                mined[unit].add(block, chunk, sample);
                if (first) weigh(block, chunk, sample, T(1), chunk.weights, found.sums, found.share);
                if (kept) weigh(block, chunk, sample, factor, second, found.second, unused.data());
            }
            if (first)
                product<T>(1, {chunk.weights, chunk.size}, {chunk.unit_rows, dim}, 1, found.keys, dim, rows, dim,
                           chunk.size);
        }
    });
    Found<T> total(block, first, kept, result);
    std::copy(partial.get(), partial.get() + size, result);
    for (int64_t unit = 1; unit < units; ++unit) {
        const Found<T> found(block, first, kept, partial.get() + unit * size);
        for (int64_t i = 0; i < found.added; ++i) result[i] += found.sums[i];
        for (int64_t sample = 0; sample < n; ++sample)
            total.nearest.add(sample, found.nearest.logit[sample], found.nearest.sum[sample], factor);
        mined[0].add(mined[unit]);
    }
    std::copy(mined[0].entries.begin(), mined[0].entries.end(), neighbours);
}

// The exact maximum of all logits, (r, n).
template <class T>
void largest(const Block<T>& block, T* result, int threads) {
    const int64_t rows = block.all_rows(), units = block.units(), share = block.chunks_per_unit();
    std::vector<T> partial(units * rows, -std::numeric_limits<T>::infinity());
    run(units, threads, [&](int64_t unit) {
        for (int64_t c = unit * share; c < std::min((unit + 1) * share, block.chunks()); ++c) {
            Chunk<T> chunk(block, c);
            chunk.make_logits();
            for (int64_t row = 0; row < rows; ++row) {
                const int64_t r = row / block.samples;
                T& found = partial[unit * rows + row];
                const T* logits = chunk.logits_of(block.column[r], row % block.samples);
                for (int64_t j = 0; j < chunk.size; ++j) {
                    found = larger(found, logits[j]);
                    if (block.mixing == nullptr) continue;
                    const T crossed = block.crossed[row * block.tile + j % block.tile];
                    found = larger(found, logits[j] + block.mixing[chunk.start + j] * (crossed - logits[j]));
                }
            }
        }
    });
    std::copy_n(partial.begin(), rows, result);
    for (int64_t i = rows; i < units * rows; ++i) result[i % rows] = larger(result[i % rows], partial[i]);
}

// How weights become the gradient of the bank.
template <class T>
struct Pull {
    const T* queries;     // (q, n, D), each with what its gradient is multiplied by
    const T* scale;       // (r, n), which turns the weights of a row with a target, and of that target, into softmaxes
    const int64_t* soft;  // pairs of a row and its target, in an order in which no target comes before its students
    int64_t softs, students;
    T* gradient;     // (K, D); null: of a chunk at a time, not kept
    int64_t add;     // to the gradient that is there
    int64_t finish;  // the gradient is complete: through the normalisation, and the step is made where there is one
    T* bank;         // (K, D), and its velocity; null: no step
    T* velocity;
    T lr, momentum_factor, weight_decay;
};

// From dL/dm (size, D) of unit rows m = w / max(|w|, 1e-12) to dL/dw, of one row w.
template <class T>
void through_normalisation(const T* raw, int64_t dim, T* gradient) {
    const T length = Chunk<T>::length(raw, dim), inverse = 1 / larger(length, T(1e-12));
    T along = 0;
#pragma omp simd reduction(+ : along)
    for (int64_t d = 0; d < dim; ++d) along += gradient[d] * raw[d];
    along = length >= T(1e-12) ? along * inverse * inverse * inverse : along * 0;  // nothing where it is clamped
    for (int64_t d = 0; d < dim; ++d) gradient[d] = gradient[d] * inverse - raw[d] * along;
}

// The chunk's part of the gradient, from its weights (r, n, size), which it spoils.
template <class T>
void pull(const Block<T>& block, const Pull<T>& how, int64_t start, int64_t size, T* weights) {
    const int64_t n = block.samples, dim = block.dim;
    for (int64_t s = 0; s < how.softs; ++s)
        for (int64_t sample = 0; sample < n; ++sample) {
            const int64_t row = how.soft[2 * s] * n + sample, target = how.soft[2 * s + 1] * n + sample;
            T *w = weights + row * size, *t = weights + target * size;
            for (int64_t j = 0; j < size; ++j) w[j] = w[j] * how.scale[row] - t[j] * how.scale[target];
        }
    static thread_local Memory<T> memory;
    T* gradient = how.gradient ? how.gradient + start * dim : memory.of(size * dim);
    product<T>(1, {weights, size, true}, {how.queries, dim}, how.add, gradient, dim, size, dim, how.students * n);
    if (!how.finish) return;
    for (int64_t i = 0; i < size; ++i) {
        T* g = gradient + i * dim;
        through_normalisation(block.bank + (start + i) * dim, dim, g);
        if (how.bank == nullptr) continue;
        T *w = how.bank + (start + i) * dim, *v = how.velocity + (start + i) * dim;
        for (int64_t d = 0; d < dim; ++d) {
            v[d] = how.momentum_factor * v[d] - g[d] + how.weight_decay * w[d];
            w[d] -= how.lr * v[d];
        }
    }
}

// Over all chunks, of weights that a sweep has kept.
template <class T>
void pull_all(const Block<T>& block, const Pull<T>& how, T* kept, int threads) {
    run(block.chunks(), threads, [&](int64_t c) {
        const int64_t start = c * block.chunk();
        pull(block, how, start, std::min(block.chunk(), block.bank_size - start), kept + start * block.all_rows());
    });
}

// The same of weights that are made here, at the block's own temperature.
template <class T>
void gradient(const Block<T>& block, const Pull<T>& how, int threads) {
    run(block.chunks(), threads, [&](int64_t c) {
        Chunk<T> chunk(block, c);
        chunk.make_logits();
        std::vector<T> sums(block.all_rows() * (1 + block.tile));  // of no use here
        for (int64_t sample = 0; sample < block.samples; ++sample)
            weigh(block, chunk, sample, T(1), chunk.weights, sums.data(), sums.data() + block.all_rows());
        pull(block, how, chunk.start, chunk.size, chunk.weights);
    });
}

}  // namespace
}  // namespace fastmc

#define FASTMC_CONTRAST(T, name)                                                                                     \
    FASTMC_API void fastmc_sweep_##name(const fastmc::Block<T>* block, int first, T factor, T* kept, T* result,      \
                                        int64_t* neighbours, int threads) {                                          \
        fastmc::sweep<T>(*block, first, factor, kept, result, neighbours, threads);                                  \
    }                                                                                                                \
    FASTMC_API int64_t fastmc_sweep_size_##name(const fastmc::Block<T>* block, int first, int second) {              \
        return fastmc::Found<T>::size(*block, first, second);                                                        \
    }                                                                                                                \
    FASTMC_API void fastmc_largest_##name(const fastmc::Block<T>* block, T* result, int threads) {                   \
        fastmc::largest<T>(*block, result, threads);                                                                 \
    }                                                                                                                \
    FASTMC_API void fastmc_pull_##name(const fastmc::Block<T>* block, const fastmc::Pull<T>* how, T* kept,           \
                                       int threads) {                                                                \
        kept ? fastmc::pull_all<T>(*block, *how, kept, threads) : fastmc::gradient<T>(*block, *how, threads);        \
    }                                                                                                                \
    FASTMC_API void fastmc_exp2_##name(const T* x, T* y, int64_t size) {                                             \
        for (int64_t i = 0; i < size; ++i) y[i] = fastmc::exp2(x[i]);                                                \
    }

FASTMC_CONTRAST(float, f32)
FASTMC_CONTRAST(double, f64)
