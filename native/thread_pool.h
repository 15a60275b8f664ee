// Threads that live as long as the model: they spin for a moment after each step, ready for the next, then sleep.
//
// Knows no kernels. `run(f)` calls f(thread) on every thread, the caller being thread 0, and returns when all are done.
// Inside f, `barrier()` waits for the others.
#pragma once

#include <atomic>
#include <functional>

namespace knee {

class ThreadPool {
  public:
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const { return size_; }
    void run(const std::function<void(int)>& job);
    void barrier();

  private:
    struct Crew;  // the threads and what they share
    void start();

    int size_;
    int process_ = 0;            // whose threads these are: after a fork the child has none
    Crew* crew_ = nullptr;
};

// Hints that a loop spins: the other thread of the core, if any, and the memory system get room.
inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");
#endif
}

}  // namespace knee
