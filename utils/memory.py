"""How much memory is free here, for those who have to decide what fits."""
import os
import re
import resource
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")
# Of a container's memory: its limit, what is in use, and what of that is only cached; in versions 2 and 1 of cgroups.
CGROUP_FILES = (("memory.max", "memory.current", "memory.stat"),
                ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"))


def available_memory(device: torch.device) -> int:
    """Bytes that this process could still take: of a GPU's memory, or of the machine's within the process's limits.

    On the CPU that is the least of what Linux counts as available (elsewhere: all that is built in), of what is left of
    a container's limit, and of what is left of `ulimit -v`.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    left = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        left += [1024 * int(line.split()[1]) for line in meminfo.read_text().splitlines()
                 if line.startswith("MemAvailable:")]
    for limit, usage, statistics in CGROUP_FILES:
        numbers = [read_number(CGROUP / name) for name in (limit, usage)]
        if None not in numbers:
            left.append(numbers[0] - numbers[1] + cached_bytes(CGROUP / statistics))
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    statm = Path("/proc/self/statm")
    if address_space != resource.RLIM_INFINITY and statm.exists():
        left.append(address_space - os.sysconf("SC_PAGE_SIZE") * int(statm.read_text().split()[0]))
    return max(min(left), 0)


def read_number(path: Path) -> int | None:
    """The number in a file; None if it has none, as where there is no limit."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def cached_bytes(path: Path) -> int:
    """What of a container's memory holds files that nobody has used for a while, which makes way for others."""
    try:
        found = re.search(r"^inactive_file (\d+)$", path.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0
