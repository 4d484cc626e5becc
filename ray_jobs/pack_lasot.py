"""Packs a tree into Parquet files: `python ray_jobs/pack_lasot.py DATA.ROOT=/data/lasot --to s3://bucket/lasot`.

Takes the settings of a training, `--config FILE` too, and packs the sequences of DATA.SPLIT and DATA.TRAIN.CLASSES, one
Ray task a file. The frames stay as they are, and training from DATA.ROOT=<packed> gives what training from the tree
gives. The same command again goes on after an interruption.
"""

from __future__ import annotations

import argparse
import sys

import ray
from pyarrow import ArrowException, fs
from ray.exceptions import RayError, RayTaskError
from tqdm import tqdm

from seqtrack.config import Config, ConfigError, load_config
from seqtrack.data.lasot import FrameIndex, build_index
from seqtrack.data.packed import (
    PackedShard,
    check_done,
    check_frames_exist,
    is_packed,
    open_index,
    pack_shard,
    plan_shards,
    write_index,
)
from seqtrack.data.storage import DataError, Root, open_root
from seqtrack.locations import lasting
from seqtrack.training.trainer import join_cluster, settle_paths


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Pack a LaSOT tree into Parquet files.")
    parser.add_argument("--to", metavar="FOLDER", required=True, help="a new folder or URI, which becomes a DATA.ROOT")
    parser.add_argument("--allow-missing", action="store_true", help="pack what is there where frames are missing")
    parser.add_argument("--config", metavar="FILE", help="settings as YAML (see configs/)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that replace the file's")
    options = parser.parse_intermixed_args(arguments)
    try:
        config = load_config(options.config, options.overrides)
        pack(settle_paths(config), lasting(options.to), options.allow_missing)
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, ArrowException, RayError) as error:
        print(f"error: {error}\nThe same command goes on from here.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nThe same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def pack(config: Config, target: str, allow_missing: bool) -> None:
    """Raises ConfigError, DataError, or OSError."""
    if config.DATA.ROOT is None:
        raise ConfigError("DATA.ROOT: name the tree to pack")
    tree = open_root(config.DATA.ROOT)
    if is_packed(tree):
        raise DataError(f"DATA.ROOT {config.DATA.ROOT}: is packed already")
    filesystem, path = fs.FileSystem.from_uri(target)
    packed = Root(filesystem, path)
    index = build_index(config.DATA, tree)
    if not check_done(index, packed):
        check_frames_exist(index, tree)
        plan = plan_shards(index)
        print(f"{len(index.names)} sequences, {index.num_frames} frames, {len(plan)} files")
        join_cluster()
        write_index(index, packed, plan, pack_shards(index, tree, packed, plan, allow_missing))
    check_frames_exist(open_index(config.DATA, packed), packed)  # a folder of this machine is not another node's
    print(f"Ready: DATA.ROOT={target}")


def pack_shards(
    index: FrameIndex, tree: Root, packed: Root, plan: dict[str, list[int]], allow_missing: bool
) -> list[PackedShard]:
    """Packs all shards, as many at a time as the cluster has CPUs. Raises DataError when all others are packed."""
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


if __name__ == "__main__":
    sys.exit(main())
