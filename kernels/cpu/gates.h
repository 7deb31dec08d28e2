// The pointwise part of a GRU's step, one pass over memory, and its sigmoid and tanh in float32.
//
// The compiler makes vectors of the loops. Largest errors in float32: sigmoid 2.2 ulp (as PyTorch's), tanh 2.5 ulp
// (tests/test_cpu_gru.py). NaN stays NaN. In float64 both are the C library's.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace fastmc {

// 2^n and e^r - 1, where x = n ln 2 + r and |r| <= ln 2 / 2. x within +-87, so that 2^n and 2^-n are normal numbers.
struct Powers {
    float two, rest;
};

inline Powers powers(float x) {
    constexpr float log2_e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    constexpr float rounds = 12582912.f;  // 1.5 * 2^23: a sum with it is a whole number, in its last bits
    x = x > 87.f ? 87.f : x;
    x = x < -87.f ? -87.f : x;
    const float sum = x * log2_e + rounds, n = sum - rounds;
    const float r = (x - n * ln2_high) - n * ln2_low;
    float p = 1.f / 5040;
    p = p * r + 1.f / 720;
    p = p * r + 1.f / 120;
    p = p * r + 1.f / 24;
    p = p * r + 1.f / 6;
    p = p * r + .5f;
    uint32_t bits;
    std::memcpy(&bits, &sum, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;
    Powers found{0, p * (r * r) + r};
    std::memcpy(&found.two, &bits, sizeof bits);
    return found;
}

inline float sigmoid(float x) {
    const Powers e = powers(-x);
    return 1.f / (1.f + (e.two + e.two * e.rest));
}

inline float hyperbolic_tangent(float x) {
    const Powers e = powers(2.f * x);
    const float m = e.two * e.rest + (e.two - 1.f);
    return m / (m + 2.f);
}

inline double sigmoid(double x) { return 1. / (1. + std::exp(-x)); }
inline double hyperbolic_tangent(double x) { return std::tanh(x); }

// One step forwards: gates (rows, 4H) in the order q, r, z, n, and states h (rows, H).
//
// from_x (rows, 3H): r, z, n. from_h (rows, 3H): q, r, z, or null for the zero state. bias (4H). before null: the zero state.
// h and before may be the same memory.
template <class T>
void gates_forward(int64_t rows, int64_t hidden, const T* from_x, const T* from_h, const T* bias, const T* before,
                   T* gates, T* h) {
    for (int64_t row = 0; row < rows; ++row) {
        const T *x = from_x + row * 3 * hidden, *a = from_h + row * 3 * hidden, *last = before + row * hidden;
        T *out = gates + row * 4 * hidden, *next = h + row * hidden;
        if (before == nullptr) {
#pragma omp simd
            for (int64_t j = 0; j < hidden; ++j) {
                const T q = bias[j], r = sigmoid(x[j] + bias[hidden + j]);
                const T z = sigmoid(x[hidden + j] + bias[2 * hidden + j]);
                const T n = hyperbolic_tangent(x[2 * hidden + j] + bias[3 * hidden + j] + r * q);
                out[j] = q, out[hidden + j] = r, out[2 * hidden + j] = z, out[3 * hidden + j] = n;
                next[j] = n - z * n;
            }
            continue;
        }
#pragma omp simd
        for (int64_t j = 0; j < hidden; ++j) {
            const T q = a[j] + bias[j], r = sigmoid(x[j] + a[hidden + j] + bias[hidden + j]);
            const T z = sigmoid(x[hidden + j] + a[2 * hidden + j] + bias[2 * hidden + j]);
            const T n = hyperbolic_tangent(x[2 * hidden + j] + bias[3 * hidden + j] + r * q);
            out[j] = q, out[hidden + j] = r, out[2 * hidden + j] = z, out[3 * hidden + j] = n;
            next[j] = n + z * (last[j] - n);
        }
    }
}

// One step backwards: da (rows, 4H) = dh times its factors, and dh becomes dh * z + arriving (null for none).
template <class T>
void gates_backward(int64_t rows, int64_t hidden, const T* gates, const T* before, const T* arriving, T* dh, T* da) {
    for (int64_t row = 0; row < rows; ++row) {
        const T *g = gates + row * 4 * hidden, *last = before + row * hidden, *more = arriving + row * hidden;
        T *d = dh + row * hidden, *out = da + row * 4 * hidden;
        const bool zero = before == nullptr, adds = arriving != nullptr;
#pragma omp simd
        for (int64_t j = 0; j < hidden; ++j) {
            const T q = g[j], r = g[hidden + j], z = g[2 * hidden + j], n = g[3 * hidden + j], up = d[j];
            const T h = zero ? T(0) : last[j];
            const T da_n = up * (1 - z) * (1 - n * n);
            out[j] = da_n * r;
            out[hidden + j] = da_n * q * (r * (1 - r));
            out[2 * hidden + j] = up * (h - n) * (z * (1 - z));
            out[3 * hidden + j] = da_n;
            d[j] = adds ? up * z + more[j] : up * z;
        }
    }
}

}  // namespace fastmc
