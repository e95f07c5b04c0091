// Threads are started when a call could use more of them, and wait for further calls afterwards. They help while fewer
// threads compute, callers included, than the largest number that a call has asked for: however many threads of a program
// call at once, helpers add none to those that keep the cores busy.
#include "pool.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#include "engine.h"

static thread_local bool helps = false;  // whether this thread does, and counts among the active ones

struct Pool {
  std::mutex mutex;
  std::condition_variable work_there, helper_gone;
  Job* jobs = nullptr;         // that may be helped, the newest first
  int workers = 0, idle = 0;
  std::atomic<int> limit{1};   // the largest number of threads that was asked for
  std::atomic<int> active{0};  // threads that compute

  void enter(Job& job, int threads) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (threads > limit) limit = threads;
    active++;
    if (threads < 2) return;
    job.most_helpers = threads - 1;
    job.watched = watch;
    job.next = jobs;
    if (jobs) jobs->previous = &job;
    jobs = &job;
    start(std::min(job.most_helpers - idle, limit - 1 - workers));
    wake(job.most_helpers);
  }

  void leave(Job& job) {
    std::unique_lock<std::mutex> lock(mutex);
    if (job.most_helpers) {
      (job.previous ? job.previous->next : jobs) = job.next;
      if (job.next) job.next->previous = job.previous;
      helper_gone.wait(lock, [&] { return !job.helpers; });
    }
    active--;
    wake(1);
  }

  // Whether one of the threads that compute is too much; if so, it counts no more.
  bool drops_one() {
    int now = active;
    while (now > limit)
      if (active.compare_exchange_weak(now, now - 1)) return true;
    return false;
  }

 private:
  void start(int count) {
    sigset_t all, before;
    if (count <= 0 || sigfillset(&all) || pthread_sigmask(SIG_SETMASK, &all, &before)) return;
    try {
      for (; count > 0; count--, workers++) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {  // the system gives no more threads: those there are do the work
    } catch (const std::bad_alloc&) {
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void wake(int count) {
    if (!jobs || active >= limit) return;
    for (count = std::min(count, idle); count > 0; count--) work_there.notify_one();
  }

  Job* find() const {
    if (active >= limit) return nullptr;
    Job* job = jobs;
    while (job && (job->helpers >= job->most_helpers || !job->has_more)) job = job->next;
    return job;
  }

  [[noreturn]] void serve() {
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      Job* job = find();
      if (!job) {
        idle++;
        work_there.wait(lock);
        idle--;
        continue;
      }
      job->helpers++;
      active++;
      lock.unlock();
      helps = true;
      watch = job->watched;
      job->work();
      watch = nullptr;
      lock.lock();
      if (helps) {
        active--;
        job->has_more = false;
      }
      helps = false;
      if (!--job->helpers) helper_gone.notify_all();
      wake(1);
    }
  }
};

// Never destroyed: helpers wait in it when the process ends. A child begins with a new one in its place, whatever other
// threads of its parent, which it does not have, were doing to the old one.
alignas(Pool) static char memory[sizeof(Pool)];
static Pool* pool;
static int generation = 0;

static void renew() {
  pool = new (memory) Pool;
  generation++;
}
static const bool is_set_up = (renew(), pthread_atfork(nullptr, nullptr, renew) == 0);

bool Job::run(int threads) {
  const int before = generation;
  helpers = most_helpers = 0, has_more = true, previous = next = nullptr;
  pool->enter(*this, threads);
  work();
  if (generation != before) return !most_helpers;
  pool->leave(*this);
  return true;
}

bool Job::leaves() {
  if (!helps || !pool->drops_one()) return false;
  helps = false;
  return true;
}
