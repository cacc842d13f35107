"""How much device memory PyTorch's caching allocator takes for a set of tensors.

Source: pytorch ``c10/cuda/CUDACachingAllocator.cpp`` (kMinBlockSize, kSmallSize, kSmallBuffer,
kMinLargeAlloc, kLargeBuffer, kRoundLarge, should_split, find_expandable_block), the same constants since PyTorch 1.x:

- a request is rounded up to 512 bytes;
- up to 1 MiB it is cut from 2 MiB segments;
- below 10 MiB it is cut from 20 MiB segments;
- from 10 MiB on it gets a segment of its own, rounded up to 2 MiB, and what is left over is given
  back to the pool only where it is larger than 1 MiB.

So two 8 MiB matrices share 20 MiB, and a KV buffer of 32 MiB plus one row takes 34 MiB.

With ``expandable_segments:True`` there is one segment for requests up to 1 MiB, which grows by 2 MiB,
and one for larger ones, which grows by 20 MiB.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .units import MIB, round_up

BLOCK = 512
SMALL_LIMIT, SMALL_SEGMENT = MIB, 2 * MIB
LARGE_LIMIT, LARGE_SEGMENT = 10 * MIB, 20 * MIB
ROUND_LARGE = 2 * MIB
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the first counts where both are set


class CachingAllocator:
    """As it is by default. Sizes in bytes, tensors in the order of allocation."""

    def reserved(self, tensors: Iterable[int]) -> int:
        """Bytes of segments that hold ``tensors``."""
        total = 0
        free: dict[bool, list[int]] = {True: [], False: []}
        for size in tensors:
            size = round_up(size, BLOCK)
            if size >= LARGE_LIMIT:
                total += round_up(size, ROUND_LARGE)
                continue
            small = size <= SMALL_LIMIT
            fitting = [rest for rest in free[small] if rest >= size]
            if fitting:
                rest = min(fitting)
                free[small].remove(rest)
            else:
                rest = SMALL_SEGMENT if small else LARGE_SEGMENT
                total += rest
            left = rest - size
            if left >= BLOCK if small else left > SMALL_LIMIT:
                free[small].append(left)
        return total

    def allocated(self, tensors: Iterable[int]) -> int:
        """Bytes that ``torch.cuda.memory_allocated`` reports for ``tensors``.

        A segment's rest of at most 1 MiB is not split off, so it counts as allocated.
        """
        total = 0
        for size in tensors:
            size = round_up(size, BLOCK)
            rest = round_up(size, ROUND_LARGE) - size if size >= LARGE_LIMIT else 0
            total += size + (rest if rest <= SMALL_LIMIT else 0)
        return total

    def buffers(self, size: int, count: int) -> int:
        """Device memory of ``count`` long-lived buffers of ``size`` bytes each, made one after another.

        Small ones share segments: 72 buffers of 5.1 MiB take 24 segments of 20 MiB, not 367 MiB.
        """
        size = round_up(size, BLOCK)
        if size >= LARGE_LIMIT:
            return count * round_up(size, ROUND_LARGE)
        segment = SMALL_SEGMENT if size <= SMALL_LIMIT else LARGE_SEGMENT
        return -(-count // (segment // max(size, BLOCK))) * segment

    def unfilled(self, freed: int, size: int, count: int) -> int:
        """What a freed tensor of at least 10 MiB adds to ``buffers``, which are cut from its segment while they fit.

        The segment is not given back: one of them, or anything small, is in it. Those of up to 1 MiB are counted in it,
        too, though they have segments of their own: larger buffers are not to take less.
        """
        size, segment = max(BLOCK, round_up(size, BLOCK)), round_up(freed, ROUND_LARGE)
        fitting = min(count, segment // size)
        return max(0, segment + self.buffers(size, count - fitting) - self.buffers(size, count))


class ExpandableSegments(CachingAllocator):
    """With ``expandable_segments:True``. Sizes in bytes."""

    def reserved(self, tensors: Iterable[int]) -> int:
        """Bytes of device memory that is mapped for ``tensors``."""
        small = large = 0
        for size in tensors:
            size = round_up(size, BLOCK)
            if size <= SMALL_LIMIT:
                small += size
            else:
                large += size
        return round_up(small, SMALL_SEGMENT) + round_up(large, LARGE_SEGMENT)

    def allocated(self, tensors: Iterable[int]) -> int:
        """Bytes that ``torch.cuda.memory_allocated`` reports for ``tensors``: every rest is split off."""
        return sum(round_up(size, BLOCK) for size in tensors)

    def buffers(self, size: int, count: int) -> int:
        """Device memory of ``count`` buffers of ``size`` bytes each."""
        size = round_up(size, BLOCK)
        return round_up(count * size, SMALL_SEGMENT if size <= SMALL_LIMIT else LARGE_SEGMENT)

    def unfilled(self, freed: int, size: int, count: int) -> int:
        """None: the next buffer takes the freed room and maps only what it needs beyond."""
        return 0


DEFAULT, EXPANDABLE = CachingAllocator(), ExpandableSegments()


def allocator_of(environment: Mapping[str, str]) -> CachingAllocator:
    """The allocator of a process with these variables."""
    settings = next((environment[name] for name in VARIABLES if environment.get(name)), "")
    options = dict(option.partition(":")[::2] for option in settings.replace(" ", "").split(","))
    return EXPANDABLE if options.get("expandable_segments") == "True" else DEFAULT
