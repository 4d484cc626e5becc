"""Packs a tree of frames into Parquet files, one Ray task a file."""

from __future__ import annotations

from collections.abc import Callable

import ray
from ray.exceptions import RayTaskError
from tqdm import tqdm

from seqtrack.cluster.connect import join_cluster
from seqtrack.config import Config
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.open import open_index
from seqtrack.data.packed import PackedShard, check_done, is_packed, pack_shard, plan_shards, write_index
from seqtrack.data.storage import DataError, Root, open_root
from seqtrack.experiments.prepare import settle_paths
from seqtrack.locations import filesystem_at, lasting


def pack(config: Config, target: str, allow_missing: bool = False, say: Callable[[str], None] = print) -> None:
    """Packs the sequences that `config` names into `target`, a folder or URI. The same call goes on.

    `allow_missing`: where frames are missing, packs the others. `say` gets the lines for the console. Raises
    InputError, OSError, ArrowException, or RayError.
    """
    config, target = settle_paths(config), lasting(target)
    tree = open_root(str(config.DATA.ROOT))
    if is_packed(tree):
        raise DataError(f"DATA.ROOT {config.DATA.ROOT}: is packed already")
    packed = Root(*filesystem_at(target))
    settings = config.DATA.model_copy(update={"ON_MISMATCH": "redraw"}) if allow_missing else config.DATA
    index = open_index(settings, tree, say)
    if not check_done(index, packed):
        plan = plan_shards(index)
        say(f"{len(index.names)} sequences, {index.num_frames} frames, {len(plan)} files")
        join_cluster()
        write_index(index, packed, plan, pack_shards(index, tree, packed, plan, allow_missing))
    open_index(config.DATA, packed)  # a folder of this machine is not another node's
    say(f"Ready: DATA.ROOT={target}")


def pack_shards(
    index: FrameIndex, tree: Root, packed: Root, plan: dict[str, list[int]], allow_missing: bool
) -> list[PackedShard]:
    """Packs all shards, as many in parallel as the cluster has CPUs. Raises DataError when all others are packed."""
    shared = ray.put(index)
    task = ray.remote(pack_shard)
    paths = {task.remote(shared, tree, packed, path, rows, allow_missing): path for path, rows in plan.items()}
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
                tqdm.write(f"warning: {frame} is cut off or empty; packed as it is, and no sample will show it")
            progress.update(int(index.lengths[plan[path]].sum()))
    if faults:
        raise DataError("\n       ".join([f"{len(faults)} of {len(plan)} files are not packed", *sorted(faults)]))
    return [done[path] for path in plan]
