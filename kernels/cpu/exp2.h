// Powers of two in a form that compilers make vectors of.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastmc {

template <class T>
struct Float;

template <>
struct Float<float> {
    using Bits = uint32_t;
    static constexpr int mantissa = 23;
    static constexpr float one_and_a_half = 0x1.8p23f, smallest = -126;
    // 2^f for |f| <= 1/2: of all polynomials of this degree the one of least relative error, 2e-9.
    static constexpr float powers[] = {1.0f, 0.69314718f, 0.24022646f, 0.055503286f, 0.0096184891f, 0.0013399931f,
                                       0.00015345812f};
};

template <>
struct Float<double> {
    using Bits = uint64_t;
    static constexpr int mantissa = 52;
    static constexpr double one_and_a_half = 0x1.8p52, smallest = -1022;
    // (log 2)^n / n!: what is left out is less than 1e-17.
    static constexpr double powers[] = {1,
                                        0.69314718055994530942,
                                        0.24022650695910071233,
                                        0.055504108664821579953,
                                        0.0096181291076284771619,
                                        0.0013333558146428443423,
                                        0.00015403530393381609954,
                                        0.000015252733804059840280,
                                        1.3215486790144309488e-6,
                                        1.0178086009239699728e-7,
                                        7.0549116208011233299e-9,
                                        4.4455382718708114976e-10,
                                        2.5678435993488205142e-11,
                                        1.3691488853904128881e-12};
};

template <class T>
inline T from_bits(typename Float<T>::Bits bits) {
    T x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// 2^x for x < 127.5 (of float64 1023.5), within 1.5 times the machine epsilon (tests/test_cpu_contrast.py); 0 where it is no
// normal number.
template <class T>
inline T exp2(T x) {
    using F = Float<T>;
    const T shifted = x + F::one_and_a_half;  // an integer, in the last bits
    const T f = x - (shifted - F::one_and_a_half);
    constexpr int degree = sizeof(F::powers) / sizeof(T) - 1;
    T y = F::powers[degree];
#pragma GCC unroll 16
    for (int n = degree - 1; n >= 0; --n) y = y * f + F::powers[n];
    typename F::Bits bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    constexpr auto exponent_of_one = typename F::Bits(sizeof(T) == 4 ? 127 : 1023) << F::mantissa;
    const T power = y * from_bits<T>((bits << F::mantissa) + exponent_of_one);
    return x < F::smallest ? T(0) : power;
}

}  // namespace fastmc
