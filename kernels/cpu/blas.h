// Matrix products by PyTorch's BLAS, whose functions Python hands over (kernels/cpu/__init__.py): nothing here is linked
// to PyTorch, and what is compiled serves any version of it.
#pragma once

#include <cstdint>

namespace fastmc {

template <class T>
using Gemm = void (*)(const char* trans_a, const char* trans_b, const int64_t* m, const int64_t* n, const int64_t* k,
                      const T* alpha, const T* a, const int64_t* lda, const T* b, const int64_t* ldb, const T* beta,
                      T* c, const int64_t* ldc);
// BLAS has 32-bit or 64-bit integers; a small 64-bit one in little endian can be read as either.

struct Blas {
    Gemm<float> sgemm;
    Gemm<double> dgemm;
    int (*set_threads)(int);  // of the calling thread alone; returns what it was, 0 for the default
};

extern Blas blas;

// A matrix that lies row by row, `stride` elements from one row to the next; transposed: it is the transpose of what lies.
template <class T>
struct Matrix {
    const T* data;
    int64_t stride;
    bool transposed = false;
};

inline void gemm(char ta, char tb, int64_t m, int64_t n, int64_t k, float alpha, const float* a, int64_t lda,
                 const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
    blas.sgemm(&ta, &tb, &m, &n, &k, &alpha, a, &lda, b, &ldb, &beta, c, &ldc);
}

inline void gemm(char ta, char tb, int64_t m, int64_t n, int64_t k, double alpha, const double* a, int64_t lda,
                 const double* b, int64_t ldb, double beta, double* c, int64_t ldc) {
    blas.dgemm(&ta, &tb, &m, &n, &k, &alpha, a, &lda, b, &ldb, &beta, c, &ldc);
}

// c (m, n) = alpha * a (m, k) b (k, n) + beta * c. With beta = 0 what c held is not read.
//
// For few rows b should lie as (k, n), not transposed: MKL is then at full speed from m = 16 on.
template <class T>
void product(T alpha, Matrix<T> a, Matrix<T> b, T beta, T* c, int64_t c_stride, int64_t m, int64_t n, int64_t k) {
    if (m > 0 && n > 0)  // BLAS counts by columns: its matrices are the transposes of ours
        gemm(b.transposed ? 'T' : 'N', a.transposed ? 'T' : 'N', n, m, k, alpha, b.data, b.stride, a.data, a.stride,
             beta, c, c_stride);
}

// Within: products of this thread take no others.
class OneThread {
  public:
    OneThread() : before_(blas.set_threads(1)) {}
    ~OneThread() { blas.set_threads(before_); }
    OneThread(const OneThread&) = delete;
    OneThread& operator=(const OneThread&) = delete;

  private:
    int before_;
};

}  // namespace fastmc
