"""Packs a tree of frames into Parquet files, one Ray task a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import ray
from ray.exceptions import RayTaskError
from tqdm import tqdm

from seqtrack.cluster.connect import join_cluster
from seqtrack.config import Config
from seqtrack.data.datasets import got10k, lasot
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.kept import check_frames
from seqtrack.data.open import open_set
from seqtrack.data.packed import check_shards_exist, is_packed, read_packed_index
from seqtrack.data.packing import (
    check_done,
    pack_shard,
    plan_shards,
    stored_once,
    write_index,
)
from seqtrack.data.shards import PackedShard
from seqtrack.data.stamp import stamp_set
from seqtrack.data.storage import DataError, Root, open_root
from seqtrack.data.tiling import find_jpegtran
from seqtrack.experiments.prepare import settle_paths
from seqtrack.lease import owned
from seqtrack.locations import filesystem_at, lasting
from seqtrack.shown import shown


def pack(
    config: Config,
    target: str,
    allow_missing: bool = False,
    say: Callable[[str], None] = print,
    name: str = lasot.SET,
    tiled: bool = False,
    take_over: bool = False,
) -> None:
    """Packs the sequences that `config` names into `target`, a folder or URI. The same call goes on.

    `allow_missing`: where frames are missing, packs the others. `say` gets the lines for the console. `name`: the data
    set, whose tree is where DATA.ROOTS or DATA.ROOT says. `tiled`: divides frames into tiles. `take_over`: takes the
    target from another job that packs there. Raises InputError, OSError, ArrowException, or RayError.
    """
    if tiled:
        find_jpegtran()
    config, target = settle_paths(config), lasting(target)
    with owned(*filesystem_at(target), target, take_over, f"--to {target}"):
        _pack(config, target, allow_missing, say, name, tiled)


def _pack(config: Config, target: str, allow_missing: bool, say: Callable[[str], None], name: str, tiled: bool) -> None:
    setting, place = config.DATA.place_of(name)
    tree = open_root(str(place), setting)
    if is_packed(tree):
        raise DataError(f"{setting} {place}: is packed already")
    packed = Root(*filesystem_at(target))
    settings = config.DATA.model_copy(update={"ON_MISMATCH": "redraw"}) if allow_missing else config.DATA
    index = open_set(name, settings, say).index
    frames = stamp_set(name, index, tree)
    if not check_done(index, packed, name, tiled):
        stored = stored_once(index).index
        plan = plan_shards(stored, name)
        say(f"{len(index.names)} sequences, {stored.num_frames} frames, {len(plan)} files")
        join_cluster()
        shards = pack_shards(stored, tree, packed, plan, allow_missing, name, tiled)
        if untiled := describe_untiled(shards):
            say(untiled)
        write_index(index, packed, plan, shards, name, got10k.read_list(tree) if name in got10k.SETS else ())
    found = FrameIndex(read_packed_index(packed, name))
    check_shards_exist(found, packed)  # this machine's folder is not another's
    check_frames(tree, packed, frames, stamp_set(name, found, packed).to_json())
    above, _, key = setting.rpartition(".")
    say(f"Ready: {setting}={target}" if setting == "DATA.ROOT" else f"Ready: {above}={{{key}: {target}}}")


def pack_shards(
    index: FrameIndex,
    tree: Root,
    packed: Root,
    plan: dict[str, list[int]],
    allow_missing: bool,
    name: str,
    tiled: bool = False,
) -> list[PackedShard]:
    """Packs all shards, as many in parallel as the cluster has CPUs. Raises DataError when all others are packed."""
    shared = ray.put(index)
    task = ray.remote(pack_shard)
    paths = {
        task.remote(shared, tree, packed, path, rows, allow_missing, name, tiled): path for path, rows in plan.items()
    }
    done: dict[str, PackedShard] = {}
    faults: list[str] = []
    waiting = list(paths)
    with tqdm(total=index.num_frames, desc="Packing", unit="frame", smoothing=0) as progress:
        while waiting:
            (ready,), waiting = ray.wait(waiting)
            path = paths[ready]
            try:
                done[path] = ray.get(ready)
            except RayTaskError as error:
                if not isinstance(error.cause, DataError):
                    raise
                faults.append(str(error.cause))
                continue
            for frame in done[path].cut_off:
                tqdm.write(shown(f"warning: {frame} is cut off or empty; packed as it is, and no sample will show it"))
            progress.update(int(index.lengths[plan[path]].sum()))
    if faults:
        raise DataError(f"{len(faults)} of {len(plan)} files are not packed: {'; '.join(sorted(set(faults)))}")
    return [done[path] for path in plan]


def describe_untiled(shards: Sequence[PackedShard]) -> str:
    """How many frames could not be tiled, and why as far as that is known. Empty if there are none."""
    untiled, frames = (
        sum(counts) for counts in zip(*((one.num_untiled, one.num_frames) for one in shards), strict=True)
    )
    if not untiled:
        return ""
    reasons: Counter[str] = Counter()
    for one in shards:
        reasons.update(one.reasons)
    reasons["packed earlier"] = untiled - reasons.total()
    told = "; ".join(f"{count:,}: {reason}" for reason, count in reasons.most_common(5) if count)
    return f"{untiled:,} of {frames:,} frames could not be tiled and are decoded as before ({told})"
