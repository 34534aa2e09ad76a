"""Pretrained weights of timm models for an encoder: from a file, or from timm's repositories on the hub."""

from pathlib import Path

import timm

from depthany.models.files.hub import hub_file
from depthany.models.files.weights import load_strictly, read_tensors, unwrap, weights_file
from depthany.models.timm_encoder import TimmEncoder


def load_timm_weights(encoder: TimmEncoder, path: str | Path | None) -> None:
    """Loads a state dict of the whole timm model into an encoder, strictly.

    What the encoder leaves out of the timm model, such as its classifier, is skipped by name; every other
    name and shape must match.

    Args:
        path: a `.safetensors` or torch file with timm's names, or a Hugging Face folder that has one; None
            for the weights that timm lists for the model, from the local cache of the hub or downloaded.

    Raises:
        FileNotFoundError: there is no such file.
        DownloadError: the weights are not in the cache, and the hub cannot be reached.
        ValueError: the file is damaged, of another model, or holds NaN; or timm lists no weights for it.
    """
    path = _from_hub(encoder.label) if path is None else weights_file(Path(path))
    unused, own = encoder.unused_names(), encoder.timm_model.state_dict()
    # Old files have no counters of BatchNorm's batches, and no layer of timm uses them.
    counters = {name: tensor for name, tensor in own.items() if name.endswith("num_batches_tracked")}
    found = {name: tensor for name, tensor in unwrap(read_tensors(path)).items() if name not in unused}
    load_strictly(encoder.timm_model, counters | found, f"{path} ({encoder.label})")


def _from_hub(name: str) -> Path:
    """Returns the local path of the weights that timm lists for a model; downloads them at the first call."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise ValueError(
            f"timm lists no weights for {name} on the hub; pass a local file: model.weights=PATH"
        )
    file_name = config.hf_hub_filename or "model.safetensors"
    way_out = f"offline, pass a local file of {config.hf_hub_id}: model.weights=/path/to/{file_name}"
    return hub_file(config.hf_hub_id, file_name, f"the weights of {name}", way_out)
