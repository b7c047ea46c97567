"""How many compiled kernels the processor's library may keep.

In bfloat16 on a processor torch multiplies through oneDNN, which compiles a kernel for every shape that it meets. Packed
streams have another length in nearly every pass, so a kernel is rarely met again; torch and oneDNN nevertheless keep the last
1,024 of them, each with what it packed: gigabytes in a long run. As many as one pass of each lane meets again in the next
layer do better than both fewer and more (docs/lab-notes.md, "kernels kept" and "kernels kept, again").

Both read their limits from the environment when the first kernel is compiled. What the user has set there stays.
Not covered: a process that has compiled kernels before, in which nothing changes.
"""

from __future__ import annotations

import os

# Each trial's low-rank factors have shapes of their own: some six products for each of a dozen or two trials. torch's own
# cache, beside oneDNN's, is of no use.
KEPT = {"LRU_CACHE_CAPACITY": 4, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": 128}


def keep_few_kernels() -> None:
    """Limit what is kept, where the environment says nothing else."""
    for name, count in KEPT.items():
        os.environ.setdefault(name, str(count))
