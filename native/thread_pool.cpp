#include "thread_pool.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__APPLE__)
#include <pthread/qos.h>
#endif

namespace knee {

namespace {

using Clock = std::chrono::steady_clock;

// Between two steps the engine works for about 0.1 ms; a thread that slept would need half as long to wake up.
constexpr auto kSpin = std::chrono::microseconds(400);
constexpr int kPausesBetweenLooks = 64;
constexpr int kPausesAtBarrier = 2000;  // some 0.05 ms; then give way: another program may have the other's core

// Signals are for the interpreter's thread.
class SignalsBlocked {
  public:
    SignalsBlocked() {
        sigset_t all;
        sigfillset(&all);
        for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) sigdelset(&all, fault);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

  private:
    sigset_t before_;
};

}  // namespace

struct ThreadPool::Crew {
    explicit Crew(int size) : size(size) {}

    int const size;
    std::vector<std::thread> threads;
    const std::function<void(int)>* job = nullptr;
    alignas(64) std::atomic<std::uint32_t> turn{0};      // one more for each job
    alignas(64) std::atomic<int> asleep{0};
    alignas(64) std::atomic<int> arrived{0};             // at the barrier
    alignas(64) std::atomic<std::uint32_t> passed{0};    // barriers so far
    std::atomic<bool> ending{false};
    std::mutex mutex;
    std::condition_variable wake;

    void announce() {
        turn.fetch_add(1, std::memory_order_seq_cst);
        if (asleep.load(std::memory_order_seq_cst) > 0) {
            std::lock_guard lock(mutex);
            wake.notify_all();
        }
    }

    // Waits until there has been another turn than `seen`.
    void wait(std::uint32_t seen) {
        auto const until = Clock::now() + kSpin;
        do {
            for (int i = 0; i < kPausesBetweenLooks; ++i) {
                if (turn.load(std::memory_order_acquire) != seen) return;
                relax();
            }
        } while (Clock::now() < until);
        std::unique_lock lock(mutex);
        asleep.fetch_add(1, std::memory_order_seq_cst);
        wake.wait(lock, [&] { return turn.load(std::memory_order_seq_cst) != seen; });
        asleep.fetch_sub(1, std::memory_order_seq_cst);
    }

    void end() {
        ending.store(true, std::memory_order_release);
        announce();
        for (auto& thread : threads) thread.join();
    }

    void barrier() {
        if (size == 1) return;
        auto const before = passed.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            arrived.store(0, std::memory_order_relaxed);
            passed.store(before + 1, std::memory_order_release);
            return;
        }
        for (int i = 0; passed.load(std::memory_order_acquire) == before; ++i) {
            if (i < kPausesAtBarrier) relax();
            else std::this_thread::yield();
        }
    }

    // What throws here ends the process: the others would wait for this thread for ever.
    void do_job(int thread) noexcept { (*job)(thread); }

    void work(int thread) {
#if defined(__APPLE__)
        pthread_set_qos_class_self_np(QOS_CLASS_USER_INTERACTIVE, 0);  // performance cores
#endif
        for (std::uint32_t seen = 0;; ++seen) {
            wait(seen);
            if (ending.load(std::memory_order_acquire)) return;
            do_job(thread);
            barrier();
        }
    }
};

ThreadPool::ThreadPool(int threads) : size_(threads < 1 ? 1 : threads) { start(); }

ThreadPool::~ThreadPool() {
    if (process_ != getpid()) return;  // a forked child: the threads, and whatever they held, stayed with the parent
    crew_->end();
    delete crew_;
}

void ThreadPool::start() {
    auto crew = std::make_unique<Crew>(size_);
    SignalsBlocked const blocked;
    try {
        for (int thread = 1; thread < size_; ++thread)
            crew->threads.emplace_back([shared = crew.get(), thread] { shared->work(thread); });
    } catch (...) {  // too many: those that there are must not wait for the others
        crew->end();
        throw;
    }
    crew_ = crew.release();
    process_ = getpid();
}

void ThreadPool::run(const std::function<void(int)>& job) {
    if (process_ != getpid()) start();  // the crew of the parent is left as it is: its locks may be held for ever
    if (size_ == 1) return job(0);
    crew_->job = &job;
    crew_->announce();
    crew_->do_job(0);
    crew_->barrier();
}

void ThreadPool::barrier() { crew_->barrier(); }

}  // namespace knee
