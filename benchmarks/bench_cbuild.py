"""What does it cost to build a C program whose sources are in a lower?"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.acting import program
from benchmarks.materials import Materials
from benchmarks.suite import main
from benchmarks.workload import Context, Phase, Scale, Workload

_FILES: Final = 60


def _project(into: Path, files: int) -> None:
    source = into / "project"
    source.mkdir()
    for number in range(files):
        headers = "".join(f'#include "h{(number + step) % files}.h"\n' for step in range(min(10, files)))
        (source / f"h{number}.h").write_text(f"#pragma once\nint function{number}(int);\n")
        (source / f"f{number}.c").write_text(
            f"#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n{headers}"
            f"int function{number}(int n) {{ return n + {number}; }}\n"
        )
    (source / "main.c").write_text('#include "h0.h"\nint main(void) { return function0(0); }\n')


def lowers(materials: Materials, scale: Scale) -> Sequence[Path]:
    """The project above the root filesystem."""
    files = scale.of(_FILES, 2)
    return [materials.made("cproject", f"{files} 1", lambda into: _project(into, files)), materials.debian()]


def build(context: Context) -> None:
    """Compile every file, with the headers of the union, two at a time, and link."""
    sysroot = "--sysroot=../" if (context.merged / "usr/include/stdio.h").exists() else ""
    command = f"ls *.c | xargs -P2 -n1 gcc -O0 {sysroot} -c && gcc *.o -o program && ./program"
    program(["sh", "-c", command], context.merged / "project", {"TMPDIR": os.fspath(context.aside)})


WORKLOAD = Workload(
    "cbuild",
    "gcc -c of 60 files that include headers of the union, and a link",
    [Phase("C build of 60 files", build)],
    lowers,
    copied=("project", "usr/include"),
)

if __name__ == "__main__":
    sys.exit(main(only=WORKLOAD))
