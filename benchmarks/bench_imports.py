"""What does it cost to start many Python programs whose library is on the union?"""

from __future__ import annotations

import sys
from typing import Final

from benchmarks.acting import program
from benchmarks.suite import main
from benchmarks.workload import Context, Phase, Workload, debian

_PROGRAMS: Final = 8
_CODE: Final = """
import importlib, sys
sys.path[:] = [sys.argv[1], *(entry for entry in sys.path if entry.endswith("lib-dynload"))]
for name in list(sys.modules):
    module = sys.modules[name]
    if getattr(module, "__file__", None) and name != "__main__":
        del sys.modules[name]
for name in ("json email email.mime.text http.client http.server urllib.request xml.dom.minidom xml.etree.ElementTree "
             "logging.config logging.handlers unittest.mock asyncio concurrent.futures multiprocessing.pool sqlite3 "
             "tarfile zipfile ctypes.util distutils.core pydoc doctest pdb smtplib imaplib ftplib csv decimal "
             "fractions statistics configparser argparse optparse gettext difflib pickletools dis ast tokenize "
             "turtle_missing module0 module1 module2 json.module0 json.missing").split():
    try:
        importlib.import_module(name)
    except ImportError:
        pass
"""


def storm(context: Context) -> None:
    """Programs one after the other, each importing some 300 modules and failing to find some."""
    library = context.merged / "usr/lib/python3.11"
    for _ in range(context.scale.of(_PROGRAMS, 2)):
        program([sys.executable, "-I", "-S", "-B", "-c", _CODE, library], context.aside)


WORKLOAD = Workload(
    "imports",
    "8 Python programs, each importing some 300 modules from the union",
    [Phase("Python imports, cold", storm), Phase("Python imports, warm", storm, warm=True)],
    debian,
)

if __name__ == "__main__":
    sys.exit(main(only=WORKLOAD))
