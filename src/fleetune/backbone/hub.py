"""Get a model's files from the hub, by way of its cache.

A revision is a branch, a tag or a commit; a commit is 40 hexadecimal digits and never changes. The
endpoint, offline mode and token are read from the environment at each call. A model that the cache
holds whole is used when the hub cannot be asked or will not answer; a pinned commit that is cached
is not asked for at all. Every failure comes out as one of our errors, and none quotes a token.
Not covered: what is inside the files (load.py, weights.py).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import HfApi, constants, errors
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)
from huggingface_hub.utils import logging as hub_logging

from fleetune.backbone.weights import refuse_pickle, weight_files
from fleetune.errors import (
    EnvironmentProblem,
    FleetuneError,
    SettingsError,
    chain,
    disk_error,
    without_passwords,
)

_untyped: Any = huggingface_hub

TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model"),
    *("sentencepiece*.model", "spm.model", "spiece.model"),
)
FILES = (
    *("config.json", "*.safetensors", "model.safetensors.index.json", *TOKENIZER_FILES),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
COMMIT = re.compile(r"[0-9a-f]{40}")
Look = Callable[[Path], object]
REVISION = re.compile(r"(?!.*\.\.)\w[\w./+-]*")
# The library's own default is to wait for ever. This holds for each address of the host, of which
# there often are two, so that an unreachable hub is given up after about 10 s.
TIMEOUT_SECONDS = 5.0
# All that comes out of huggingface_hub: no answer, a refusal, a full disk, an answer of no hub.
# The base of the HTTP errors is httpx's or httpx2's, by the version of huggingface_hub.
_HTTPError: type[Exception] = _untyped.errors.HTTPError
FAILURES = (_HTTPError, OSError, ValueError, KeyError, TypeError, AttributeError)


def hub_snapshot(
    repo: str,
    revision: str | None = None,
    *,
    config_alone: bool = False,
    cached_alone: bool = False,
    look: Look | None = None,
) -> Path:
    """The folder, named by its commit, of the files of one model; downloads what is missing.

    config_alone: get config.json and nothing else. cached_alone: ask nobody, as if offline. look: called with a folder that holds
    config.json before anything else is downloaded; what it raises ends the whole.
    Raises SettingsError for a model or revision that is not there, EnvironmentProblem where network
    or token is missing, RefusedError for weights stored as pickle alone.
    """
    _check_names(repo, revision)
    model = _Model(repo, revision or "main", config_alone, endpoint())
    offline = cached_alone or is_offline()
    if offline or COMMIT.fullmatch(model.revision):
        folder = model.cached()
        if folder is not None:
            return folder
        if offline:
            why = (
                "only the cache was looked at"
                if cached_alone
                else "HF_HUB_OFFLINE is set, so nothing was asked"
            )
            raise model.unreachable(why)
    try:
        with quiet_hub():
            told = model.asked(alone=look is not None)
        if look is not None and told is not None:
            look(told)  # apart: what reads it lets the library talk again
        with quiet_hub():
            return model.download()
    except FAILURES as error:
        problem, cause = model.explain(error), error
    # What the hub does not know is a mistake to point out, not a reason to take what lies around.
    folder = None if isinstance(problem, SettingsError) else model.cached()
    if folder is None:
        raise problem from cause
    return folder


@dataclass(frozen=True, slots=True)
class _Model:
    """One model at one revision on one hub."""

    repo: str
    revision: str
    config_alone: bool
    endpoint: str

    def cached(self) -> Path | None:
        """The folder in the cache, if nothing is missing from it; the hub is not asked."""
        try:
            with quiet_hub():
                folder = self._snapshot(local_files_only=True)
        except OSError:
            return None
        return folder if self._is_whole(folder) else None

    def asked(self, *, alone: bool) -> Path | None:
        """Ask what there is; RefusedError for pickle alone. alone: get config.json before the rest, and give its folder."""
        # Asked first, with a time limit, since snapshot_download has none for its own questions;
        # and so that a model without safetensors is refused before anything is fetched.
        api: Any = HfApi(endpoint=self.endpoint)
        info = api.model_info(self.repo, revision=self.revision, timeout=_timeout())
        if not COMMIT.fullmatch(info.sha or ""):
            raise ValueError("no commit in the answer")
        if not self.config_alone:
            names = [file.rfilename for file in info.siblings or ()]
            refuse_pickle(self.repo, names)
            if alone and "config.json" in names:
                return self._snapshot(local_files_only=False, config_alone=True)
        return None

    def download(self) -> Path:
        return self._snapshot(local_files_only=False)

    def _snapshot(self, *, local_files_only: bool, config_alone: bool = False) -> Path:
        folder: str = _untyped.snapshot_download(
            self.repo,
            revision=self.revision,
            endpoint=self.endpoint,
            etag_timeout=_timeout(),
            allow_patterns=["config.json"] if config_alone or self.config_alone else list(FILES),
            ignore_patterns=["*/*"],
            local_files_only=local_files_only,
        )
        return Path(folder)

    def _is_whole(self, folder: Path) -> bool:
        """Whether nothing is missing: other programs leave single files and no list of them."""
        if self.config_alone:
            return (folder / "config.json").is_file()
        files = [folder / "config.json", *weight_files(folder)]
        has_tokenizer = any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES)
        return len(files) > 1 and has_tokenizer and all(file.is_file() for file in files)

    def explain(self, error: Exception) -> FleetuneError:
        """The failure as one of ours."""
        answer = next((e for e in chain(error) if isinstance(e, errors.HfHubHTTPError)), None)
        if answer is None:
            if (place := _full_or_closed(error)) is not None:
                return place
            return self.unreachable(network_reason(error).replace(self.endpoint, self._shown))
        status = answer.response.status_code
        code = answer.response.headers.get("X-Error-Code")
        if isinstance(answer, errors.RevisionNotFoundError):
            rule = f'{self.repo} has no revision "{self.revision}" at {self._shown}'
            return SettingsError("backbone", [f"{rule}; name a branch, tag or commit it has"])
        elsewhere = answer.response.url.host != urlsplit(self.endpoint).hostname
        if status in (401, 403) and elsewhere:
            return self.unreachable(f"{answer.response.url.host} answered with status {status}")
        if isinstance(answer, errors.GatedRepoError) or (
            status in (401, 403) and code != "RepoNotFound"
        ):
            return self._forbidden(status)
        if code == "RepoNotFound" or (status == 404 and code != "EntryNotFound"):
            rule = f'the hub {self._shown} has no model "{self.repo}", or it is private'
            remedy = (
                "check the spelling; for a private model, set HF_TOKEN to a token that reads it"
            )
            return SettingsError("backbone", [f"{rule} (and no such folder is here); {remedy}"])
        return self.unreachable(f"it answered with status {status}")

    def _forbidden(self, status: int) -> EnvironmentProblem:
        has_token = bool(huggingface_hub.get_token())
        token = "the token in use does not open it" if has_token else "no token is set"
        return EnvironmentProblem(
            f"the hub {self._shown} does not give out {self.repo} (status {status}), and {token}; "
            "check the spelling, ask for access on the model's page if it is gated, and set "
            "HF_TOKEN to a token that may read it"
        )

    def unreachable(self, why: str) -> EnvironmentProblem:
        return EnvironmentProblem(
            f"could not get {self.repo} (revision {self.revision}) from {self._shown}: {why}; and "
            f"the cache {constants.HF_HUB_CACHE} does not hold all of it. Connect to the network, "
            "or set HF_ENDPOINT to a hub that can be reached, and run the same command again; or "
            "download the model elsewhere and give its folder; or use `--backbone minilm`, which "
            "needs no network"
        )

    @property
    def _shown(self) -> str:
        """The endpoint without user name and password."""
        return without_passwords(self.endpoint)


def _check_names(repo: str, revision: str | None) -> None:
    problems: list[str] = []
    try:
        validate_repo_id(repo)
    except errors.HFValidationError as error:
        problems.append(f'"{repo}" is neither `minilm`, nor a folder, nor a hub id: {error}')
    if revision is not None and not REVISION.fullmatch(revision):
        problems.append(f'a revision is a branch, a tag or a commit, but got "{revision}"')
    if problems:
        raise SettingsError("backbone", problems)


def endpoint() -> str:
    """The hub's address. SettingsError where HF_ENDPOINT holds no address."""
    address = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        rule = "must be a URL such as https://huggingface.co, and is not; correct or unset it"
        raise SettingsError("HF_ENDPOINT", [rule])
    return address


def _timeout() -> float:
    return float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or TIMEOUT_SECONDS)


def is_offline() -> bool:
    """Whether the environment forbids to ask the hub."""
    asked = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return constants.HF_HUB_OFFLINE or asked.upper() in constants.ENV_VARS_TRUE_VALUES


def _full_or_closed(error: Exception) -> EnvironmentProblem | None:
    """Where not the network failed but the disk: an error that names a file, other than one of the hub's."""
    if (said := disk_error(error)) is None:
        return None
    return EnvironmentProblem(
        f"{said.filename}: {said.strerror}; models of the hub are kept in {constants.HF_HUB_CACHE}: make room there, or "
        "set HF_HOME to a folder that can be written"
    )


def network_reason(error: Exception) -> str:
    """What the system said. The HTTP library may quote headers: of its errors the kind alone."""
    if isinstance(error, UnicodeEncodeError):
        return "HF_TOKEN holds characters that no request can carry"
    for said in reversed([*chain(error)]):
        if isinstance(said, OSError) and not isinstance(said, errors.EntryNotFoundError):
            return (said.strerror or str(said) or type(said).__name__).splitlines()[0]
    if isinstance(error, _HTTPError):
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
    return "what answers there is not a hub"


@contextmanager
def quiet_hub() -> Generator[None]:
    """Keep the library from talking over our one message; bars are for a person at a terminal."""
    verbosity = hub_logging.get_verbosity()
    # Where the environment says whether there are bars, the library warns of any other wish.
    mute = constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
    mute = mute and not sys.stderr.isatty()
    hub_logging.set_verbosity_error()
    if mute:
        disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if mute:
            enable_progress_bars()
