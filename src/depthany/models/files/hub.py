"""Files of the Hugging Face hub: from the local cache, or downloaded, with a clear error within seconds."""

import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub

PROBE_SECONDS = 5.0  # wait for the download host before it counts as unreachable


class DownloadError(ConnectionError, RuntimeError):
    """Weights could not be downloaded. Also an OSError, since the user can fix it."""


def hub_file(repository: str, file_name: str, what: str, way_out: str) -> Path:
    """Returns the path of a file of the hub in its local cache; downloads it if it is not there.

    Args:
        what: the file in the user's words, for the error.
        way_out: what the user can do instead; ends the error message.

    Raises:
        DownloadError: the hub cannot be reached, or has no such repository or file.
    """
    try:
        return Path(_cached_or_downloaded(repository, file_name))
    except (
        Exception
    ) as error:  # hub, socket and http errors share no base; each is re-raised here with its cause
        reason = str(error).strip().split("\n", 1)[0]
        raise DownloadError(
            f"could not download {what} ({type(error).__name__}: {reason}); {way_out}"
        ) from error


def _cached_or_downloaded(repository: str, file_name: str) -> str:
    """Probes the host first: the hub's client retries an unreachable one for most of a minute."""
    cached = huggingface_hub.try_to_load_from_cache(repository, file_name)
    if isinstance(cached, str):
        return cached
    host = urlsplit(huggingface_hub.constants.ENDPOINT)
    if not (huggingface_hub.constants.HF_HUB_OFFLINE or getproxies()):
        port = host.port or (80 if host.scheme == "http" else 443)
        socket.create_connection((host.hostname or "", port), timeout=PROBE_SECONDS).close()
    return huggingface_hub.hf_hub_download(repository, file_name)
