"""Memory allocation of the process: freed memory is kept for the next step."""

import ctypes
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
# The size of a thread's heap. An empty heap is returned to the kernel, unless this much must stay at its end.
_THREAD_HEAP = 2**26


def disable_malloc_trim() -> None:
  """Lets glibc keep freed memory, instead of returning it to the kernel.

  XLA:CPU allocates a program's buffers at every call. A training step has buffers of over 32 MB. By default glibc takes
  these from the kernel and returns them each time, and clearing fresh pages takes up to a third of the time of a step's
  gradient. With this setting, the process stays at its peak size. Nothing changes for blocks larger than a thread's
  heap, 64 MB, and for other C libraries.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
  if mallopt is not None:
    mallopt(_M_MMAP_THRESHOLD, _THREAD_HEAP)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, _THREAD_HEAP)
