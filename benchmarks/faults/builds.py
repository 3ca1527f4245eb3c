"""A build of a few URLs against the web of faults, as a user starts it, and the checks that every build has to pass.

The checks read the files themselves: tars with tarfile, outcomes from the tables of the stages, requests from the server's books.
"""

import csv
import json
import os
import secrets
import shutil
import subprocess
import sys
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq

from clipkit.dataset.shards import Shards
from faults.faults import Target
from faults.kinds import answer, kind_of
from faults.knobs import download_knobs, image_knobs
from faults.processes import Watched
from faults.web import FaultWeb, Request

__all__ = ["Build", "Place", "certificates", "contents", "counted", "in_shards", "outcomes_of", "problems"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIMIT_SECONDS = 300.0
_PORTS = {"refused": "refused", "silent": "silent", "dies": "dying", "tls-mute": "mute", "tls-plain": "http"}


@dataclass
class Build:
    """A finished or broken-off `clipkit build-dataset`: its exit code, and what it took and said."""

    out: Path
    code: int
    seconds: float
    megabytes: float
    said: str

    @property
    def last_line(self) -> str:
        """The end of what it said."""
        return next((line for line in reversed(self.said.splitlines()) if line.strip()), "")


class Place:
    """A folder with a recipe for some URLs; `start` builds from it. `mark` is in the environment of all processes of its builds."""

    def __init__(self, folder: Path, targets: Sequence[Target], web: FaultWeb, *, out: Path | None = None, **knobs: Any) -> None:
        """Write the list of URLs and the recipe. `knobs` are of `[download]`; `shards` and `images` are sections of the recipe."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.web = folder, web
        self.out = folder / "out" if out is None else out
        self.mark = f"FAULT_BUILD={secrets.token_hex(8)}"
        for target in targets:  # what takes long to make is made before somebody waits for it
            answer(Request(urlsplit(target.url).netloc, "/" + target.name.partition("/")[2], 1, 0))
        with open(folder / "urls.csv", "w", newline="") as table:
            csv.writer(table).writerows([("url", "text"), *((target.url, f"picture {i} of the list") for i, target in enumerate(targets))])
        sections = {
            "match": {"required": False},
            "text": {"rules": []},
            "images": {"processes": 1, **image_knobs(), **knobs.pop("images", {})},
            "shards": {"pairs_per_shard": 25, **knobs.pop("shards", {})},
            "engine": {"processes": 1},
            "download": download_knobs(knobs) | {"connect_to": connect_to(targets, web)},
        }
        source = {"kind": "table", "paths": [str(folder / "urls.csv")]}
        lines = ["[[sources]]", *_toml(source)]
        for name, values in sections.items():
            lines += [f"[{name}]", *_toml(values)]
        self.recipe = folder / "recipe.toml"
        self.recipe.write_text("\n".join(lines) + "\n")

    def start(self, *, file_bytes: int | None = None) -> Watched:
        """Start the build. `file_bytes`: no file may become longer (RLIMIT_FSIZE)."""
        name, value = self.mark.split("=")
        path = os.pathsep.join([str(HERE / "resolver"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, name: value, "PYTHONPATH": path, "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"}
        if (self.web_certificates / "ca.pem").exists():
            environment["SSL_CERT_FILE"] = str(self.web_certificates / "ca.pem")
        command = [sys.executable, "-m", "clipkit", "build-dataset", str(self.recipe), "--out", str(self.out)]
        with open(self.folder / "said.txt", "wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-c", _STARTED, str(file_bytes or 0), *command],
                cwd=self.folder,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )
        return Watched(process)

    @property
    def web_certificates(self) -> Path:
        """Where `certificates` has put them."""
        return self.folder.parent / "certificates"

    def ended(self, watched: Watched) -> Build:
        """What became of a build that was waited for."""
        said = (self.folder / "said.txt").read_text(errors="replace")
        return Build(self.out, watched.process.returncode, watched.seconds, watched.peak_megabytes, said)

    def build(self, limit_seconds: float = LIMIT_SECONDS) -> Build:
        """Build and wait."""
        return self.ended(self.start().wait(limit_seconds))

    def forget(self) -> None:
        """Remove what was built."""
        shutil.rmtree(self.out, ignore_errors=True)


# A shell has the children that it starts in the background ignore Ctrl-C; what is started here hears it.
_STARTED = (
    "import os, resource, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); size = int(sys.argv[1]); "
    "size and resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)); os.execv(sys.argv[2], sys.argv[2:])"
)


def _toml(values: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {_toml_value(value)}" for name, value in values.items()]


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(name)} = {json.dumps(inner)}" for name, inner in value.items()) + " }"
    return json.dumps(value)


def connect_to(targets: Iterable[Target], web: FaultWeb) -> dict[str, str]:
    """Where the names of the URLs are: all at this web, those of `dns.example` left to the resolver."""
    hosts = {(urlsplit(target.url).hostname or "", urlsplit(target.url).scheme) for target in targets}
    found = {"target.good.example:80": f"127.0.0.1:{web.ports['http']}"}
    for host, scheme in sorted(hosts):
        kind = kind_of(host)
        if kind == "dns" or not host.endswith(".example"):
            continue
        port = web.ports[_PORTS.get(kind, kind if scheme == "https" else "http")]
        found[f"{host}:{443 if scheme == 'https' else 80}"] = f"127.0.0.1:{port}"
    return found


def certificates(folder: Path, web: FaultWeb) -> bool:
    """Make an authority and certificates, and open the ports of TLS; False where there is no openssl to make them."""
    if shutil.which("openssl") is None:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    _openssl(folder, f"req -x509 {key} -subj /CN=authority -keyout ca.key -out ca.pem")
    for name, host in (("tls-good", "*.tls-good.example"), ("tls-name", "another.example")):
        _openssl(folder, f"req {key} -subj /CN={name} -keyout {name}.key -out {name}.csr")
        (folder / "names.txt").write_text(f"subjectAltName=DNS:{host}\n")
        _openssl(folder, f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names.txt -out {name}.pem")
    _openssl(folder, f"req -x509 {key} -subj /CN=self -addext subjectAltName=DNS:*.tls-self.example -keyout tls-self.key -out tls-self.pem")
    for name in ("tls-good", "tls-name", "tls-self"):
        both = folder / f"{name}.both.pem"
        both.write_text((folder / f"{name}.key").read_text() + (folder / f"{name}.pem").read_text())
        web.listen_tls(name, str(both))
    return True


def _openssl(folder: Path, words: str) -> None:
    subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)


# ------------------------------------------------------------------- what was built


def in_shards(out: Path) -> dict[str, list[bytes]]:
    """The images of each URL in the shards, read with tarfile."""
    found: defaultdict[str, list[bytes]] = defaultdict(list)
    for path in sorted((out / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]
        for name, content in members.items():
            if name.endswith(".json"):
                key = name.removesuffix(".json")
                images = [members[f"{key}.{suffix}"] for suffix in ("jpg", "png", "webp") if f"{key}.{suffix}" in members]
                found[json.loads(content)["image_url"]] += images
    return dict(found)


def outcomes_of(out: Path) -> dict[str, str]:
    """How each URL of a small build ended."""
    folder = out / "stages" / "06-download"
    kept = dict.fromkeys(pq.read_table(folder / "pairs.parquet", columns=["image_url"])["image_url"].to_pylist(), "ok")
    dropped = pq.read_table(folder / "dropped.parquet", columns=["image_url", "reason"]).to_pylist()
    return kept | {row["image_url"]: row["reason"] for row in dropped}


def contents(out: Path) -> dict[str, bytes]:
    """Every file of the shards."""
    return {path.name: path.read_bytes() for path in sorted((out / "shards").iterdir())}


def problems(build: Build, targets: Sequence[Target], web: FaultWeb, *, bound: float) -> list[str]:
    """What is wrong with a finished build: a sentence for each thing."""
    if build.code != 0:
        return [f"exit code {build.code}: {build.last_line}"]
    found = [] if build.seconds <= bound else [f"it took {build.seconds:.1f} s, over the bound of {bound:.1f} s"]
    outcomes, images = outcomes_of(build.out), in_shards(build.out)
    for target in targets:
        found += _of_target(target, outcomes.get(target.url, "no outcome"), images.get(target.url, []), web.hits[target.name])
    strangers = images.keys() - {target.url for target in targets}
    found += [f"{url} is in the shards and was not asked for" for url in sorted(strangers)]
    found += [f"verify: {told}" for told in Shards.open(build.out, check_sizes=False).verify()["problems"]]
    found += [f"a temporary file was left: {path}" for path in (build.out / "shards").glob(".*")]
    return found + _reached_in_private(targets, web)


def _of_target(target: Target, outcome: str, images: Sequence[bytes], asked: int) -> list[str]:
    found = []
    if outcome not in target.outcomes:
        found.append(f"{target.url} ended in {outcome}, expected {' or '.join(sorted(target.outcomes))}")
    least, most = target.asked
    if not least <= asked <= most:
        found.append(f"{target.url} was asked for {asked} times, expected {least}{'' if least == most else f' to {most}'}")
    if len(images) > 1:
        found.append(f"{target.url} is in the shards {len(images)} times")
    if images and (target.picture is None or images[0] != target.picture):
        found.append(f"{target.url} is in the shards with other bytes than the server's picture")
    if not images and target.picture is not None and (target.is_sure or (outcome == "ok" and target.url.count(".dies."))):
        found.append(f"{target.url} was delivered whole and is not in the shards")
    return found


def _reached_in_private(targets: Sequence[Target], web: FaultWeb) -> list[str]:
    known = {urlsplit(target.url).hostname for target in targets} | {"target.good.example"}
    return [f"{name} was reached, at a private address" for name in web.hits if name.split("/")[0] not in known]


def counted(build: Build, targets: Sequence[Target], web: FaultWeb) -> dict[str, Any]:
    """The figures of a build for the table: counts of pictures, outcomes and requests."""
    whole = [target for target in targets if target.picture is not None and target.is_sure]
    figures: dict[str, Any] = {"urls": len(targets), "delivered": len(whole), "requests": sum(web.hits[t.name] for t in targets)}
    if build.code == 0:
        images = in_shards(build.out)
        outcomes = Counter(outcomes_of(build.out).values())
        lost = [target for target in whole if not images.get(target.url)]
        figures |= {"in_shards": sum(map(len, images.values())), "lost": len(lost)}
        figures |= {"twice": sum(len(some) > 1 for some in images.values()), "outcomes": dict(sorted(outcomes.items()))}
    return figures | {"seconds": round(build.seconds, 1), "megabytes": round(build.megabytes)}
