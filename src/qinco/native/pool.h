// Threads that all calls of a process share.
#pragma once

struct Watch;

// A call's work, which its thread does and threads of the pool help with.
class Job {
 public:
  // Takes groups of the work until none is left, or leaves() tells a helper to go; several threads run it at once.
  virtual void work() = 0;

  // Work with up to `threads` threads. False where the process was forked meanwhile: what helpers had taken is missing
  // in the child, and everything is to be done anew.
  bool run(int threads);

  // Whether this thread is a helper that has to go, because as many threads compute as there should be.
  static bool leaves();

 protected:
  ~Job() = default;

 private:
  friend struct Pool;
  int helpers = 0, most_helpers = 0;
  bool has_more = true;
  Job *previous = nullptr, *next = nullptr;
  Watch* watched = nullptr;
};
