"""Reads and writes weights: published checkpoints, pre-trained encoders, safetensors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from seqtrack.address import SCHEME, Here, find
from seqtrack.config import Config, load_config, parse_config
from seqtrack.errors import InputError
from seqtrack.failures import explain
from seqtrack.files import replacing
from seqtrack.hub_files import fetch_file, repository_fault
from seqtrack.locations import is_uri
from seqtrack.meta import META_FILE
from seqtrack.model.file_kinds import Format, describe_folder, recognize
from seqtrack.model.seqtrack import SeqTrack, build_model
from seqtrack.model.tensor_file import Foreign, read_tensor_file
from seqtrack.sums import MODEL_FILE, NAME, SETTINGS_FILE

Weights = dict[str, Tensor]

KEYS = ("net", "model", "state_dict", "model_state_dict")
"""Names that published checkpoints give to their weights: SeqTrack, the MAE authors, timm, PyTorch's tutorials."""
DEEPEST = 4
"""How many such keys may follow each other."""
WRAPPERS = re.compile(r"^(?:(?:_orig_mod|module|net|model)\.)+(?=.)")
"""What torch.compile, data-parallel training and enclosing modules put in front of a parameter's name."""

ENCODER = "encoder.body."
"""Prefix of the names of the encoder's parameters."""

HUB_ENCODERS = {
    ("vit_base_patch16", "mae"): "timm/vit_base_patch16_224.mae",
    ("vit_large_patch16", "mae"): "timm/vit_large_patch16_224.mae",
    ("vit_base_patch16", "default"): "timm/vit_base_patch16_384.orig_in21k_ft_in1k",
    ("vit_large_patch16", "default"): "timm/vit_large_patch16_384.augreg_in21k_ft_in1k",
}
"""(TYPE, PRETRAIN_TYPE) -> Hub repository. The published code names the same files at their authors' addresses; it has
none for (`vit_large_patch16`, `default`)."""

UNUSED_BY_THE_ENCODER = ("cls_token", "mask_token", "decoder_", "head.")
"""Prefixes of parameters in a pre-trained ViT that a SeqTrack encoder does not have."""


class WeightsError(InputError):
    """Weights that cannot be used. The message names the file and what does not fit."""


def read_weights(path: str | Path, shown: str | None = None) -> Weights:
    """The tensors of a published checkpoint (such as `{"net": …}`), a `.safetensors` file, or a checkpoint folder.

    What wrappers put in front of names, such as `module.`, is removed. No code from the file is run. `shown`: how
    errors name the path, if it is not the user's. Raises WeightsError, also for numbers that are not finite.
    """
    file = Path(path)
    shown = shown or str(path)
    try:
        if file.is_dir() and not (file / MODEL_FILE).exists():
            raise WeightsError(f"{shown}: {describe_folder(file)}")
        if file.is_dir():
            file, shown = file / MODEL_FILE, f"{shown.rstrip('/')}/{MODEL_FILE}"
        stored = recognize(file)
        if isinstance(stored, str):
            raise WeightsError(f"{shown}: {stored}")
        content = load_file(file) if stored is Format.SAFETENSORS else read_tensor_file(file, only_plain=False)
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"{shown}: cannot be read ({error.strerror or explain(error)})") from error
    except Exception as error:  # of any type, because a file may hold anything
        raise WeightsError(f"{shown}: is cut off or damaged ({explain(error)})") from error
    weights = _with_bare_names(content, shown)
    check_finite(weights.items(), shown)
    return weights


def _with_bare_names(content: Any, shown: str) -> Weights:
    """The weights in a file's content, without what wrappers put in front of their names. Raises WeightsError."""
    named = _find_weights(content)
    if named is None:
        held = f"neither names with tensors, nor a dict of them under {', '.join(KEYS)}"
        if isinstance(content, Foreign):
            held = f"but an object of {content.kind}: save its state_dict() instead"
        raise WeightsError(f"{shown}: holds no weights ({held})")
    weights: Weights = {}
    for name, tensor in named.items():
        bare = WRAPPERS.sub("", name)
        if bare in weights:
            raise WeightsError(f"{shown}: has {bare} twice, behind different prefixes (such as `module.`)")
        weights[bare] = tensor
    return weights


def check_finite(weights: Iterable[tuple[str, Tensor]], source: str) -> None:
    """Raises WeightsError naming `source` and the first parameter with a number that is NaN or infinite."""
    faulty, count = [], 0
    for name, tensor in weights:
        count += 1
        numbers = tensor if tensor.dtype.itemsize > 1 else tensor.float()  # torch cannot tell for numbers of 8 bits
        if not bool(torch.isfinite(numbers).all()):
            faulty.append(name)
    if faulty:
        raise WeightsError(f"{source}: {len(faulty)} of {count} parameters are NaN or infinite, the first: {faulty[0]}")


def _find_weights(content: Any, depth: int = 0) -> Weights | None:
    """The first dict of names and tensors: the content itself, or within it by one of KEYS, again and again."""
    if not isinstance(content, dict) or not content or depth > DEEPEST:
        return None
    if all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        return content
    found = (_find_weights(content.get(key), depth + 1) for key in KEYS)
    return next((weights for weights in found if weights is not None), None)


def save_published(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Writes the published format, `{"net": {name: tensor}}`, which the published tracker reads, in one step."""
    with replacing(Path(path)) as partial:
        torch.save({"net": {name: tensor.detach().cpu() for name, tensor in weights.items()}}, partial)


def save_safetensors(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Writes names and tensors as safetensors, a format that cannot contain code, in one step."""
    with replacing(Path(path)) as partial:
        save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, partial)


def describe_mismatch(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Says in one line how the shapes of two sets of parameters differ; empty if they do not."""
    missing = sorted(wanted.keys() - stored.keys())
    unexpected = sorted(stored.keys() - wanted.keys())
    misshapen = [
        f"{name} is {list(stored[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in stored and tuple(stored[name]) != tuple(shape)
    ]
    faults = (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
    return "; ".join(f"{len(names)} {kind}: {_first(names)}" for kind, names in faults if names)


def load_weights(model: SeqTrack, path: str | Path, shown: str | None = None) -> None:
    """Copies the weights at `path` (as `read_weights`) into the model. Raises WeightsError naming what does not fit."""
    weights = read_weights(path, shown)
    _check_fit(shown or str(path), weights, model.state_dict())
    model.load_state_dict(weights)


def load_pretrained(source: str, revision: str | None = None) -> SeqTrack:
    """Implements `SeqTrack.from_pretrained`."""
    place = find(_as_address(source, revision))
    with place.here() as here:
        return read_model(here, place.shown)[0]


def _as_address(source: str, revision: str | None) -> str:
    """An address of `address.find`: `user/name` is one of the Hub, unless it is a place on this machine."""
    if not (is_uri(source) or repository_fault(source)):
        path, name = Path(source), Path(source).name
        in_a_run = path.parent.is_dir() and (name == "latest" or name.isdecimal() or NAME.fullmatch(name))
        if not path.exists() and not in_a_run:
            source = f"{SCHEME}{source}"
    if revision is not None and source.startswith(SCHEME):
        user, name, *rest = source.removeprefix(SCHEME).split("/")
        source = SCHEME + "/".join((user, f"{name}@{quote(revision, safe='')}", *rest))
    return source


def read_model(here: Here, shown: str, config: str | Path | None = None) -> tuple[SeqTrack, Config]:
    """The model at a verified place, in evaluation mode, and its settings.

    `config`: the settings of a file of weights (a YAML file or a recipe's name), if they are not beside it. `shown`:
    how errors name the place. Raises WeightsError or ConfigError.
    """
    if here.meta is not None:
        settings = parse_config(here.meta["config"], f"{shown}/{META_FILE}")
    elif config is not None:
        settings = load_config(config)
    elif (beside := here.path.with_name(SETTINGS_FILE)).is_file():
        settings = load_config(beside)
    else:
        raise WeightsError(f"{shown}: holds weights only; --config NAME|FILE names the settings they were trained with")
    model = build_model(settings)
    load_weights(model, here.path, shown)
    return model.eval(), settings


def starting_weights(config: Config) -> tuple[Weights, str]:
    """Initial weights for training, by the model's parameter names, and a description of their source.

    MODEL.WEIGHTS gives the whole model; MODEL.ENCODER.PRETRAIN_FILE or the Hub gives the encoder; PRETRAIN_TYPE
    `scratch` gives nothing. Raises WeightsError, and never falls back to random weights.
    """
    if config.MODEL.WEIGHTS is None and config.MODEL.ENCODER.PRETRAIN_TYPE == "scratch":
        return {}, "random"
    if config.MODEL.WEIGHTS is not None:
        weights, source = _named_weights(config.MODEL.WEIGHTS)
        setting, start = f"MODEL.WEIGHTS {source}", ""
    else:
        path, source = _pretrained_encoder(config)
        setting, start = source, ENCODER
        grids = config.DATA.SEARCH.SIZE // 16, config.DATA.TEMPLATE.SIZE // 16
        weights = fit_encoder(read_weights(path), *grids, source)
    with torch.device("meta"):  # after the weights were found: the first model of a process takes seconds to build
        wanted = build_model(config).state_dict()
    _check_fit(setting, weights, {name: tensor for name, tensor in wanted.items() if name.startswith(start)})
    return weights, source


def _named_weights(address: str) -> tuple[Weights, str]:
    """What MODEL.WEIGHTS names, and the checkpoint or file that it leads to. Raises WeightsError."""
    try:
        place = find(address)
        with place.here() as here:
            return read_weights(here.path, place.shown), place.shown
    except InputError as error:
        raise WeightsError(f"MODEL.WEIGHTS {error}") from error


def fit_encoder(weights: Weights, search_grid: int, template_grid: int, source: str) -> Weights:
    """Converts a plain ViT's weights (timm's or the MAE authors' names) to the encoder's, named as in the model.

    The class token is dropped, and the grid of position embeddings is resized to the search and to the template grid
    (bicubic, corners aligned, as published). Raises WeightsError naming `source`.
    """
    positions = weights.get("pos_embed")
    grid = 0 if positions is None or positions.dim() != 3 else math.isqrt(max(positions.shape[1] - 1, 0))
    if positions is None or grid == 0 or grid**2 != positions.shape[1] - 1:
        shape = "none" if positions is None else list(positions.shape)
        raise WeightsError(f"{source}: not a pre-trained ViT: pos_embed is {shape}, not [1, 1 + grid², width]")
    grid_1CHW = positions[:, 1:].unflatten(1, (grid, grid)).permute(0, 3, 1, 2).float()
    fitted = {
        ENCODER + name: tensor
        for name, tensor in weights.items()
        if not name.startswith(UNUSED_BY_THE_ENCODER) and name != "pos_embed"
    }
    tables = (_resize(grid_1CHW, search_grid), _resize(grid_1CHW, template_grid))
    fitted[f"{ENCODER}pos_embed"] = torch.cat(tables, dim=1)
    return fitted


def _resize(grid_1CHW: Tensor, side: int) -> Tensor:
    """(1, C, H, W) -> (1, side², C)."""
    if grid_1CHW.shape[-1] != side:
        grid_1CHW = F.interpolate(grid_1CHW, (side, side), mode="bicubic", align_corners=True)
    return grid_1CHW.flatten(2).transpose(1, 2)


def _pretrained_encoder(config: Config) -> tuple[str, str]:
    """Local file of the encoder that PRETRAIN_TYPE asks for, and a description of its source."""
    encoder = config.MODEL.ENCODER
    setting = f"MODEL.ENCODER.PRETRAIN_TYPE {encoder.PRETRAIN_TYPE}"
    if encoder.PRETRAIN_FILE is not None:
        return encoder.PRETRAIN_FILE, f"MODEL.ENCODER.PRETRAIN_FILE {encoder.PRETRAIN_FILE}"
    repository = HUB_ENCODERS.get((encoder.TYPE, encoder.PRETRAIN_TYPE))
    if repository is None:
        raise WeightsError(
            f"{setting}: the Hub has no such weights of {encoder.TYPE}; MODEL.ENCODER.PRETRAIN_FILE=FILE names some, "
            "MODEL.ENCODER.PRETRAIN_TYPE=scratch starts from random ones"
        )
    try:
        return str(fetch_file(repository, MODEL_FILE)), f"{repository} on the Hub"
    except Exception as error:  # network, Hub or disk: none may lead to random weights
        reason = explain(error.__cause__ or error)
        raise WeightsError(
            f"{setting}: {repository} cannot be had from the Hub ({reason}). Two ways out: a network (HF_ENDPOINT "
            "names a mirror), or a local file of timm's or the MAE authors' weights, MODEL.ENCODER.PRETRAIN_FILE=FILE"
        ) from error


def _check_fit(source: str, weights: Weights, wanted: Mapping[str, Tensor]) -> None:
    shapes = ({name: tensor.shape for name, tensor in of.items()} for of in (weights, wanted))
    if mismatch := describe_mismatch(*shapes):
        raise WeightsError(f"{source}: does not fit the model; {mismatch}")


def _first(names: list[str], shown: int = 5) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
