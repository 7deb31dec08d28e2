// Threads of our own for work that is split into a few coarse units.
//
// OpenMP's threads wait for each other by spinning, so that a step with hundreds of its regions stands still while
// another program has a core. Here a call is one region: units are handed out one by one, who waits sleeps, and a caller
// whose workers get no core does all of the work itself.
#pragma once

#include <cstdint>

namespace fastmc {

using Unit = void (*)(const void* work, int64_t unit);

// Do units 0 ... units - 1, in any order, on at most `threads` threads, the caller among them; return when all are done.
//
// A unit must not throw, and what it computes must not depend on who does it. Within it products take one thread (blas.h).
// A call from within a unit, or while another thread is in a call, is done by its caller alone.
void run_units(int64_t units, int threads, const void* work, Unit unit);

template <class Function>
void run(int64_t units, int threads, const Function& function) {
    run_units(units, threads, &function, [](const void* work, int64_t unit) {
        (*static_cast<const Function*>(work))(unit);
    });
}

}  // namespace fastmc

#define FASTMC_API extern "C" __attribute__((visibility("default")))
