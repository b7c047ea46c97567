"""A saved model to the hub, where the user asked for it: into a private repository unless told otherwise.

What goes: weights or graph, settings, tokenizer, the card with its `.eval_results`. What stays: predictions, since they say
something of every test row. The address comes from HF_ENDPOINT, the token from HF_TOKEN or `hf auth login`; huggingface_hub
sends it to that address alone, and no message or file of ours holds it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, errors
from huggingface_hub.utils import validate_repo_id

from fleetune import __version__
from fleetune.artifact import layout
from fleetune.artifact.card import EVAL_RESULTS, is_hub_id
from fleetune.artifact.load import check_files, read_record
from fleetune.backbone import hub
from fleetune.errors import (
    EnvironmentProblem,
    FleetuneError,
    RefusedError,
    SettingsError,
    without_passwords,
)

FILES = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "*.model", "chat_template.jinja"),
    *(layout.CARD, layout.RECORD, layout.METRICS, f"{EVAL_RESULTS}/*.yaml"),
)


def push_model(folder: Path, repo: str, *, public: bool = False) -> str:
    """Upload a trial's folder or an exported one as one commit; the address of the repository.

    SettingsError for a name that no repository can have; RefusedError for an adapter on a local folder, and for a public
    repository without `public`; EnvironmentProblem where network, token or permission is missing.
    """
    _check_name(repo)
    _check_whole(folder)
    operations = [_add(folder, path) for path in _files(folder)]
    address = hub.endpoint()
    shown = without_passwords(address)
    if hub.is_offline():
        raise EnvironmentProblem(
            f"HF_HUB_OFFLINE is set, so nothing was sent to {shown}; unset it to push"
        )
    api: Any = HfApi(endpoint=address, library_name="fleetune", library_version=__version__)
    try:
        with hub.quiet_hub():
            _make(api, repo, public)
            api.create_commit(repo, operations, commit_message="Model trained by fleetune")
    except hub.FAILURES as error:
        raise _explained(error, repo, shown) from error
    return f"{shown}/{repo}"


def _check_name(repo: str) -> None:
    try:
        validate_repo_id(repo)
    except errors.HFValidationError as error:
        raise SettingsError("--push-to-hub", [f'"{repo}" is no name on the hub: {error}']) from None
    if "/" not in repo:
        raise SettingsError("--push-to-hub", [f'"{repo}": give owner and name, such as you/{repo}'])


def _check_whole(folder: Path) -> None:
    """What cannot be used here is not sent; raises what `check_files` does."""
    _, sums = read_record(folder)
    if layout.WEIGHTS in sums:
        check_files(folder, sums, (layout.CONFIG, layout.WEIGHTS), "saved")
    else:
        check_files(folder, sums, sums, "exported")


def _files(folder: Path) -> list[Path]:
    """What is sent: these by their names, and all else that was written as a part of the model."""
    found = {path for pattern in FILES for path in folder.glob(pattern)}
    _, sums = read_record(folder)
    found |= {folder / name for name in sums if Path(name).name == name}
    return sorted(path for path in found if path.is_file() and path.name != layout.PREDICTIONS)


def _add(folder: Path, path: Path) -> CommitOperationAdd:
    name = path.relative_to(folder).as_posix()
    if name == layout.RECORD:
        return CommitOperationAdd(name, _record(path))
    return CommitOperationAdd(name, str(path))


def _record(path: Path) -> bytes:
    """fleetune.json, without the place of a local backbone, which says more of the machine than of the model."""
    record = json.loads(path.read_text("utf-8"))
    source = str(record["backbone_source"])
    if not is_hub_id(source):
        if "exported" not in record:
            raise RefusedError(
                f"{path.parent}: its backbone is a folder of this machine, which nobody else has; push the merged model: "
                "--format hf --output DIR --push-to-hub ..."
            )
        last = re.split(r"[/\\]", source.rstrip("/\\"))[-1]
        record |= {"backbone": last, "backbone_source": last}
    # What stays here is not missing there.
    record.get("checksums", {}).pop(layout.PREDICTIONS, None)
    return f"{json.dumps(layout.sealed(record), indent=2, ensure_ascii=False)}\n".encode()


def _make(api: Any, repo: str, public: bool) -> None:
    """A new repository, or one that is there and as private as was asked for."""
    try:
        api.create_repo(repo, private=not public)
    except errors.HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
        if not public and not api.model_info(repo).private:
            raise RefusedError(
                f"{repo}: is there already and everybody can read it; give another name, or --public if that is meant"
            ) from None


def _explained(error: Exception, repo: str, shown: str) -> FleetuneError:
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403, 404):
            return EnvironmentProblem(
                f"the hub {shown} does not let this token write to {repo} (status {status}); log in with `hf auth login`, or set "
                "HF_TOKEN to a token that may write there"
            )
        return FleetuneError(
            f"the hub {shown} did not take {repo}: it answered with status {status}; try the same command again later"
        )
    if isinstance(error, errors.LocalTokenNotFoundError):
        return EnvironmentProblem(
            f"no token is set to write to {repo} with; log in with `hf auth login`, or set HF_TOKEN"
        )
    said = hub.network_reason(error).replace(hub.endpoint(), shown)
    return EnvironmentProblem(
        f"could not send {repo} to {shown}: {said}; connect to the network and run the same command again"
    )
