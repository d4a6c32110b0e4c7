"""Settings of glibc: freed memory is kept, messages are silenced. No effect elsewhere."""

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)

libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
if libc:
    libc.fopen.restype = ctypes.c_void_p
    _stderr = ctypes.c_void_p.in_dll(libc, "stderr")
    _shown, _nowhere = _stderr.value, libc.fopen(b"/dev/null", b"w")
_silencing = threading.Lock()
_silent = 0  # how many are


def keep_freed_memory() -> None:
    """Freed buffers of up to 128 MB are used again, of 32 MB where glibc allows no more.

    By default the system takes each back and gives it out page by page: a third of decoding time.
    """
    if libc:
        any(libc.mallopt(M_MMAP_THRESHOLD, size << 20) for size in (128, 32))
        libc.mallopt(M_TRIM_THRESHOLD, 256 << 20)


@contextmanager
def silence() -> Iterator[None]:
    """Drops what C code prints: libtiff and OpenCV's libjpeg write a line for each bad file.

    C's `stderr` is a variable. File descriptor 2, where Python writes, stays as it is.
    """
    global _silent
    with _silencing:
        _silent += 1
        _point()
    try:
        yield
    finally:
        with _silencing:
            _silent -= 1
            _point()


def _point() -> None:
    if libc and _nowhere:
        _stderr.value = _nowhere if _silent else _shown
