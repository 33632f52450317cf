"""The C++ kernels that a wheel brings, built for levels of processors, so that no compiler is needed.

A wheel has a library for each level in `built/` beside this file, with a manifest that names the sources they were made
of. The kernels are plain C functions on arrays, called through ctypes: they include and link nothing of PyTorch, so one
library serves every version of it. hatch_build.py loads this file where nothing else is installed, hence it imports the
standard library only.
"""

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SOURCES = Path(__file__).parent
MAIN_SOURCE = "chains.cpp"
FOLDER = SOURCES / "built"
MANIFEST = "manifest.json"
FORMAT = "darts_sg kernels 1"
OPTIMISATION = "-O3"
FLAGS = ("-std=c++17", "-fopenmp", "-fno-math-errno", "-Wno-psabi", "-fPIC", "-shared")
REAL = "float"  # networks train in float32; float64 is for checks of gradients, and is compiled where it is wanted
LONGEST = 1800  # seconds of a compilation

_V3 = frozenset(["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"])
_V4 = frozenset(["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"])
LEVELS: Mapping[str, Mapping[str, frozenset[str]]] = {
    "x86_64": {"x86-64-v4": _V3 | _V4, "x86-64-v3": _V3},
    "aarch64": {"armv8-a": frozenset({"asimd"})},
}
"""By machine: the levels (as -march names them, the best one first) and the features of /proc/cpuinfo they need."""


class Unsuitable(Exception):
    """The wheel's kernels cannot be used here; the message says why, in a few words."""


def fingerprint() -> str:
    """16 hex digits of a SHA-256 over the sources of the kernels and the flags."""
    sources = [path for path in sorted(SOURCES.iterdir()) if path.suffix in (".cpp", ".h")]
    texts = [f"{path.name}\n{path.read_text(encoding='utf-8')}" for path in sources]
    return hashlib.sha256("\n".join([*texts, OPTIMISATION, *FLAGS]).encode()).hexdigest()[:16]


def features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The processor's features by the names of /proc/cpuinfo; empty where there is none."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(found, "").split())


def compile_all(compiler: str, folder: Path) -> list[Path]:
    """Compile a library for each level of this machine into `folder`, and write the manifest; returns all files.

    Raises OSError or a subprocess error, or ValueError for a machine without levels.
    """
    machine, libraries = platform.machine(), {}
    if machine not in LEVELS or sys.platform != "linux":
        raise ValueError(f"no levels of processors are known for {sys.platform} on {machine}")
    for level in LEVELS[machine]:
        built = folder / f"chains-{REAL}-{level}.so"
        # whoever has no g++ may lack its libraries, too; OpenMP's comes with PyTorch
        static = ("-static-libstdc++", "-static-libgcc")
        command = [compiler, OPTIMISATION, f"-march={level}", *FLAGS, f"-DREAL={REAL}", *static]
        command += [str(SOURCES / MAIN_SOURCE), "-o", str(built)]
        subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=True)
        libraries[level] = built
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    facts = {
        "format": FORMAT,
        "platform": sys.platform,
        "machine": machine,
        "sources": fingerprint(),
        "compiler": version.splitlines()[0],
        "libraries": {
            level: {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for level, path in libraries.items()
        },
    }
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return [manifest, *libraries.values()]


def chosen(real: str, has: Sequence[str] | frozenset[str] | None = None, folder: Path = FOLDER) -> Path | None:
    """The library for this processor; None if the installation brings none at all.

    has: the processor's features. Raises Unsuitable if there are libraries, but none that can be used.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return None
    try:
        facts = json.loads(manifest.read_text(encoding="utf-8"))
        machine, libraries = facts["machine"], {level: dict(entry) for level, entry in facts["libraries"].items()}
        if facts["format"] != FORMAT:
            raise Unsuitable(f"their format is {facts['format']!r}, known is {FORMAT!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Unsuitable(f"{manifest} is damaged") from None
    if (facts["platform"], machine) != (sys.platform, platform.machine()):
        raise Unsuitable(f"they are for {machine}, this machine is {platform.machine()}")
    if facts["sources"] != fingerprint():
        raise Unsuitable("they were built from other sources than those installed")
    if real != REAL:
        raise Unsuitable(f"they compute with {REAL}, and {real} is asked for")
    own = frozenset(features() if has is None else has)
    for level, needs in LEVELS.get(machine, {}).items():
        if level in libraries and needs <= own:
            library = folder / libraries[level]["file"]
            if not library.is_file() or hashlib.sha256(library.read_bytes()).hexdigest() != libraries[level]["sha256"]:
                raise Unsuitable(f"{library} is damaged")
            return library
    raise Unsuitable(f"this processor is below {list(LEVELS.get(machine, {'any level': ()}))[-1]}")
