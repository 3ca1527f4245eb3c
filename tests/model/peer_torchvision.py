"""Makes a torchvision importable whose compiled library does not fit the torch beside it; imported before a peer is."""

import importlib.util
import sys
from pathlib import Path

LIBRARY: object = None  # the operators are declared for as long as it lives

if importlib.util.find_spec("torchvision") is not None:
    folder = str(Path(__file__).resolve().parents[2] / "benchmarks" / "parity")
    sys.path.insert(0, folder)
    try:
        LIBRARY = importlib.import_module("torchvision_alone").allow_torchvision_without_its_library()
    finally:
        sys.path.remove(folder)
