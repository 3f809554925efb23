"""Memory that begins on a page.

C libraries copy large blocks with ``rep movsb``. AMD's processors take many times longer for that
if the addresses of source and target differ by a few bytes modulo a page. A file's bytes lie on
pages in the system's cache, and large numpy arrays begin 16 bytes behind the start of a page, so
reading the start of a file into a numpy array meets that case. Hence buffers for file contents
begin on a page, or well away from the offset in the file.
"""

from mmap import mmap

PAGE = 1 << 12  # bytes


def page_aligned(length: int) -> memoryview:
    """Return zeroed memory of ``length`` bytes that begins on a page."""
    return memoryview(mmap(-1, length))
