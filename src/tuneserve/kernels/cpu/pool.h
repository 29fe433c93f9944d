// Threads that run one function together and meet at barriers: they spin for a moment and then sleep.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

static inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Pool {
   public:
    // Within a step the others are a few microseconds away; between steps a sampler runs.
    static constexpr int SPINS = 4000;

    explicit Pool(int size) : size_(size) {
        for (int id = 1; id < size; ++id) threads_.emplace_back([this, id] { work(id); });
    }

    ~Pool() {
        stopping_ = true;
        round_.fetch_add(1);
        round_.notify_all();
        for (auto& thread : threads_) thread.join();
    }

    int size() const { return size_; }

    // Call task(id) on every thread, this one being number 0, and return when all are done.
    void run(const std::function<void(int)>& task) {
        task_ = &task;
        round_.fetch_add(1);
        round_.notify_all();
        task(0);
        barrier();
    }

    void barrier() {
        uint32_t phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.fetch_add(1, std::memory_order_release);
            phase_.notify_all();
        } else {
            await(phase_, phase);
        }
    }

   private:
    static void await(const std::atomic<uint32_t>& value, uint32_t old) {
        for (int spin = 0; spin < SPINS; ++spin) {
            if (value.load(std::memory_order_acquire) != old) return;
            relax();
        }
        value.wait(old, std::memory_order_acquire);
    }

    void work(int id) {
        for (uint32_t round = 0;; ++round) {
            await(round_, round);
            if (stopping_) return;
            (*task_)(id);
            barrier();
        }
    }

    const int size_;
    std::vector<std::thread> threads_;
    const std::function<void(int)>* task_ = nullptr;
    alignas(64) std::atomic<uint32_t> round_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    std::atomic<bool> stopping_{false};
};
