"""Pack a run folder into a few small files, or make it a run folder again. Hidden states stay behind.

python pools.py --pack RUN POOL
python pools.py POOL RUN
"""

from __future__ import annotations

import gzip
import json
import lzma
import shutil
import sys
from pathlib import Path

PACKED = ("trees.jsonl", "grades.jsonl")


def pack(run: Path, pool: Path) -> None:
    """RUN's settings, trees and grades into POOL; whole lines only, so that it can be done while the run goes on."""
    pool.mkdir(parents=True, exist_ok=True)
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    # Where files lie on this machine is of no use elsewhere; the model is known by its digest.
    record["settings"] |= {"model": record["model"]["file"], "trace": None, "features": False}
    (pool / "run.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name in PACKED:
        whole = (run / name).read_bytes()
        (pool / f"{name}.xz").write_bytes(lzma.compress(whole[: whole.rfind(b"\n") + 1], preset=9))


def unpack(pool: Path, run: Path) -> None:
    """The run folder that was packed.

    Raises:
        SystemExit: RUN holds trees already.
    """
    if (run / PACKED[0]).exists():
        raise SystemExit(f"{run} holds a run already")
    run.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(pool / "run.json", run / "run.json")
    for name in PACKED:
        (run / name).write_bytes(_whole(pool, name))


def _whole(pool: Path, name: str) -> bytes:
    older = pool / f"{name}.gz"
    return (
        gzip.decompress(older.read_bytes()) if older.exists() else lzma.decompress((pool / f"{name}.xz").read_bytes())
    )


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if len(arguments) == 3 and arguments[0] == "--pack":
        pack(Path(arguments[1]), Path(arguments[2]))
    elif len(arguments) == 2:
        unpack(Path(arguments[0]), Path(arguments[1]))
    else:
        raise SystemExit(__doc__)
