#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#include "blas.h"

namespace fastmc {

Blas blas;

namespace {

struct Call {
    int64_t units;
    const void* work;
    Unit unit;
    std::atomic<int64_t> next{0};

    void take_part() {
        for (int64_t i = next.fetch_add(1); i < units; i = next.fetch_add(1)) unit(work, i);
    }
};

class Pool {
  public:
    // False if another call is in progress.
    bool run(Call& call, int threads) {
        std::unique_lock<std::mutex> only(calling_, std::try_to_lock);
        if (!only) return false;
        {
            std::lock_guard<std::mutex> lock(state_);
            threads = std::min<int64_t>(threads, call.units);
            while (workers_ < threads - 1 && add_worker()) ++workers_;
            call_ = &call;
            seats_ = threads - 1;
        }
        for (int n = 1; n < threads; ++n) wake_.notify_one();
        call.take_part();
        std::unique_lock<std::mutex> lock(state_);
        seats_ = 0;  // who has not come yet is not waited for
        done_.wait(lock, [this] { return active_ == 0; });
        return true;
    }

  private:
    bool add_worker() {
        try {
            std::thread(&Pool::work, this).detach();
            return true;
        } catch (const std::system_error&) {
            return false;  // the system grants no more threads: fewer do the work
        }
    }

    void work();

    std::mutex calling_, state_;
    std::condition_variable wake_, done_;
    Call* call_ = nullptr;
    int workers_ = 0, seats_ = 0, active_ = 0;
};

// Never destroyed, since workers wait in it until the process ends. After a fork the child has no workers, and perhaps
// locks that nobody holds: it starts with another pool.
std::atomic<Pool*> pool{nullptr};
thread_local bool within_unit = false;

void Pool::work() {
#ifdef __linux__
    pthread_setname_np(pthread_self(), "fastmc");
#endif
    within_unit = true;
    blas.set_threads(1);
    std::unique_lock<std::mutex> lock(state_);
    for (;;) {
        wake_.wait(lock, [this] { return seats_ > 0; });
        --seats_;
        ++active_;
        Call& call = *call_;
        lock.unlock();
        call.take_part();
        lock.lock();
        if (--active_ == 0) done_.notify_one();
    }
}

Pool& the_pool() {
    Pool* there = pool.load();
    if (there == nullptr) {
        Pool* made = new Pool;
        if (pool.compare_exchange_strong(there, made)) return *made;
        delete made;
    }
    return *there;
}

}  // namespace

void run_units(int64_t units, int threads, const void* work, Unit unit) {
    Call call{units, work, unit};
    if (within_unit) return call.take_part();
    OneThread products;
    within_unit = true;
    if (units < 2 || threads < 2 || !the_pool().run(call, threads)) call.take_part();
    within_unit = false;
}

}  // namespace fastmc

FASTMC_API void fastmc_initialise(void* sgemm, void* dgemm, void* set_threads) {
    fastmc::blas = {reinterpret_cast<fastmc::Gemm<float>>(sgemm), reinterpret_cast<fastmc::Gemm<double>>(dgemm),
                    reinterpret_cast<int (*)(int)>(set_threads)};
    pthread_atfork(nullptr, nullptr, [] { fastmc::pool.store(nullptr); });
}

// Rows of a product c (rows, n) = a (rows, k) b (k, n), a unit for each `share` rows. by[unit] is told who did it: 0 the
// caller, 1 a worker.
FASTMC_API void fastmc_product(const float* a, const float* b, float* c, int64_t rows, int64_t n, int64_t k,
                               int64_t share, int threads, int8_t* by) {
    const auto caller = pthread_self();
    fastmc::run((rows + share - 1) / share, threads, [=](int64_t unit) {
        const int64_t first = unit * share;
        fastmc::product<float>(1, {a + first * k, k}, {b, n}, 0, c + first * n, n, std::min(share, rows - first), n, k);
        by[unit] = !pthread_equal(caller, pthread_self());
    });
}
