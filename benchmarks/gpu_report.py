"""The Markdown report of benchmarks/gpu.py: tables of checks and figures, and the environment."""
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from utils.errors import first_line
from utils.files import write_atomically
from utils.hardware import instruction_set, processor_name, threads_in_words

ROOT = Path(__file__).resolve().parents[1]


class Sizes(NamedTuple):
    """How large the checks are. side: pixels; batch, images: of each process; steps: of the check for NaN."""
    side: int
    batch: int
    images: int
    depth: int
    steps: int


class Finding(NamedTuple):
    """A result of a check: whether it passed, None if it was not run, and the figures or the reason in words."""
    what: str
    passed: bool | None
    figures: str


class Report:
    """A Markdown file that is whole after every row; the same goes to standard output."""

    def __init__(self, path: Path):
        self.path, self.text, self.failures = path, "", 0

    def write(self, text: str) -> None:
        """Adds lines."""
        print(text, flush=True)
        self.text += text + "\n"
        with write_atomically(self.path) as temporary:
            temporary.write_text(self.text, encoding="utf-8")

    def head(self, title: str, text: str, columns: Sequence[str]) -> None:
        """A section, and the head of its table."""
        self.write(f"\n## {title}\n\n{text}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")

    def row(self, *cells: str) -> None:
        """A row of a table."""
        self.write(f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |")

    def checks(self, title: str, text: str, checks: Iterable[tuple[str, Callable[[], Iterable[Finding]]]]) -> None:
        """A section of checks. One that raises has failed, and the next one follows."""
        self.head(title, text, ("check", "result", "figures"))
        for name, check in checks:
            start = time.monotonic()
            try:
                for finding in check():
                    self._add(name, finding)
            except Exception as error:  # whatever a GPU may raise: the report is for finding that
                self._add(name, Finding("", False, f"{type(error).__name__} after {time.monotonic() - start:.0f} s: "
                                                   f"{first_line(error)}"))

    def fail(self, name: str, figures: str) -> None:
        """A failure outside a table."""
        self.failures += 1
        self.write(f"\n{name}: **FAILED**: {figures}")

    def _add(self, name: str, finding: Finding) -> None:
        result = "not run" if finding.passed is None else "passed" if finding.passed else "**FAILED**"
        self.failures += finding.passed is False
        self.row(f"{name}: {finding.what}" if finding.what else name, result, finding.figures)


def output_of(*command: str) -> str:
    """What a command prints, "unknown" if it cannot be run."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def memory_in_words(count: int) -> str:
    """Bytes in GiB."""
    return f"{count / 2 ** 30:.1f} GiB"


def environment(device: torch.device) -> Iterable[tuple[str, str]]:
    """Rows (what, value): versions, devices, processor."""
    changed = output_of("git", "status", "--porcelain", "--untracked-files=no")
    yield "commit", output_of("git", "rev-parse", "--short", "HEAD") + (", with changes" if changed else "")
    yield "system", f"{platform.platform()}, Python {platform.python_version()}"
    yield "PyTorch", f"{torch.__version__}, built for CUDA {torch.version.cuda}"
    if device.type == "cuda":
        yield "cuDNN", str(torch.backends.cudnn.version())
        yield "NCCL", ".".join(map(str, torch.cuda.nccl.version())) if dist.is_nccl_available() else "none"
        drivers = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        yield "driver", drivers.partition("\n")[0]
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            yield f"GPU {index}", (f"{found.name}, {memory_in_words(found.total_memory)}, compute capability "
                                   f"{found.major}.{found.minor}, {found.multi_processor_count} multiprocessors")
    yield "processor", (f"{processor_name()}, {instruction_set()}, {os.cpu_count()} cores, "
                        f"{threads_in_words()}")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        yield "memory", memory_in_words(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
