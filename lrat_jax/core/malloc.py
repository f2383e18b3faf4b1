"""The process's memory: what is freed is kept for the next step."""

import ctypes
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
# The heap of a thread, which is handed back as soon as it is empty, unless so much is to stay at its end.
_THREAD_HEAP = 2**26


def disable_malloc_trim() -> None:
  """Lets glibc keep what is freed, where it would hand it back to the kernel.

  XLA:CPU allocates a program's buffers at every call. Those of over 32 MB, as a training step has them, glibc takes
  from the kernel and hands back each time, and clearing fresh pages takes up to a third of the time of a step's
  gradient. The process then stays as large as it was at its largest. Blocks of more than a thread's heap, 64 MB, go on
  as they did, and so do other C libraries.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
  if mallopt is not None:
    mallopt(_M_MMAP_THRESHOLD, _THREAD_HEAP)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, _THREAD_HEAP)
