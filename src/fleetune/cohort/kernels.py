"""How many compiled kernels the processor's library may keep.

In bfloat16 on a processor torch multiplies through oneDNN, which compiles a kernel for every shape that it meets. Packed
streams have another length in nearly every pass, so a kernel is rarely met again; torch and oneDNN nevertheless keep the last
1,024 of them, each with what it packed: gigabytes in a long run. Few of them do as well (docs/lab-notes.md, "kernels kept").

Both read their limits from the environment when the first kernel is compiled. What the user has set there stays.
Not covered: a process that has compiled kernels before, in which nothing changes.
"""

from __future__ import annotations

import os

# A layer has three shapes of products, forward and backward, in each of the lanes; the rest is for methods' own factors.
KEPT = {"LRU_CACHE_CAPACITY": 16, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": 64}


def keep_few_kernels() -> None:
    """Limit what is kept, where the environment says nothing else."""
    for name, count in KEPT.items():
        os.environ.setdefault(name, str(count))
