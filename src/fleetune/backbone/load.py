"""Load a backbone: config, tokenizer, and, on demand, the weights with a fresh classification head.

Nothing that a model brings along is ever run: `trust_remote_code=False` and `use_safetensors=True`,
always. Once the files are found (fetch.py), nothing asks the network again. What transformers has
to say comes out as one of our errors, or not at all.
Not covered: freezing and opening up the model (cohort/open.py); how a method sets its head (methods/).
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from fleetune.backbone.draws import drawing
from fleetune.backbone.families import family_of
from fleetune.backbone.fetch import find_files
from fleetune.backbone.shortage import is_out_of_memory
from fleetune.backbone.sites import empty_model
from fleetune.backbone.weights import (
    checksum,
    read_json,
    refuse_pickle,
    weight_files,
    wrong_checksum,
)
from fleetune.errors import DataError, EnvironmentProblem, RefusedError, SettingsError
from fleetune.seeds import torch_seed

_untyped: Any = transformers

# Their position table starts at padding_idx + 1: so many of its rows belong to no token. These are
# the text models of transformers 5.23 whose table is an `nn.Embedding(..., padding_idx=...)`.
OFFSET_POSITIONS = frozenset(
    (
        *("camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke"),
        *("markuplm", "mluke", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta"),
        *("xlm-roberta-xl", "xmod"),
    )
)
# Keys whose value says how often a module is made; the deepest known encoders have under a hundred layers.
_MODULES = re.compile(r"(layers|groups|group_num)$")
MOST_LAYERS = 1_000
# So many parameters are made whatever the weights hold; what is wrong with them is said more exactly afterwards.
ALWAYS_MADE = 50_000_000
# Keys of config.json that say who wrote it, or are of a head that is not used.
_OF_HEAD = frozenset(
    (
        *("transformers_version", "_name_or_path", "architectures", "torch_dtype", "dtype"),
        *(
            "id2label",
            "label2id",
            "num_labels",
            "problem_type",
            "finetuning_task",
            "task_specific_params",
        ),
    )
)
_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
READS = "backbone_max_length"
"""The key of an exported tokenizer's settings under which the limit of the tokenizer stands that it was made of."""
# What tokenizers differ by, beside their vocabulary: case, accents, marks, digits, blanks, scripts.
_TRIED = (
    "Not once in 3,000 years, she said; it's \u201cnaïve\u201d & co-written.",
    "  Łódź\t東京 ①ﬁ\u200b\u00a0😀 don't C3PO's\r\nTHE END ",
)
# Assumption: where neither config nor tokenizer sets a limit (relative positions), longer sequences
# than the usual ones were not seen in pre-training.
DEFAULT_MAX_LENGTH = 512


@dataclass(frozen=True)
class Backbone:
    """A pre-trained encoder, found, checked and described; `classifier` reads its weights."""

    name: str
    """As the user said: `minilm`, a hub id, or a folder's path."""
    source: str
    """What others find it by, for adapter_config.json: a hub id, or a folder's absolute path."""
    revision: str | None
    """The commit, for a hub id; None for the others."""
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    """A fast one."""
    folder: Path
    """Where its files lie on this machine."""
    checksum: str
    """sha256 of model.safetensors; of the list of the sha256s where the weights are many files."""
    max_length: int
    """The most tokens that a sequence may have, special tokens among them."""
    config_checksum: str
    """sha256 (hex) of what config.json says, but for who wrote it and what its head was."""

    @cached_property
    def tokenizer_checksum(self) -> str:
        """sha256 (hex) of the vocabulary and of what some texts become.

        Other than `data.tokens.tokenizer_fingerprint`, which holds what the library knows of itself, it stays the same when that
        is updated: a saved model goes on.
        """
        tokenizer: Any = self.tokenizer
        with quiet():  # some would complain that texts are longer than their limit
            told = {
                "vocabulary": sorted(tokenizer.get_vocab().items()),
                "special": [getattr(tokenizer, f"{name}_token_id", None) for name in _SPECIAL],
                "texts": [tokenizer(text)["input_ids"] for text in _TRIED],
                "pair": tokenizer(*_TRIED[:2])["input_ids"],
                "side": tokenizer.truncation_side,
            }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def classifier(
        self, num_labels: int, label_names: Sequence[str], *, problem_type: str | None = None
    ) -> tuple[PreTrainedModel, frozenset[str]]:
        """A new model, float32 and in eval mode, and the names of its newly made parameters.

        Those were in no checkpoint and are drawn from a fixed stream; torch's own generator is left
        as it was. label_names: as many as labels, or none for LABEL_0 and so on.
        Raises ValueError for labels that do not fit, SettingsError for a family without classifier,
        DataError for weights that do not fit the config.
        """
        names = list(label_names) or [f"LABEL_{i}" for i in range(num_labels)]
        if num_labels < 1 or len(names) != num_labels or len(set(names)) != num_labels:
            rule = "`label_names` must be `num_labels` different names"
            raise ValueError(f"{rule}, but got num_labels={num_labels} and {names}.")
        config: Any = copy.deepcopy(self.config)
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
        config.problem_type = problem_type
        _refuse_misfit(self.folder, self.config)
        model, info = _read_model(self.folder, config)
        new = _new_parameters(model, info, self.folder)
        model.name_or_path = model.config.name_or_path = self.source  # where PEFT looks for it
        return model.eval(), new


def find_backbone(name: str, *, revision: str | None = None) -> Backbone:
    """Find a backbone, check its files, and read all but the weights.

    name: `minilm`, a hub id, or a folder. revision: a branch, tag or commit of a hub id.
    Raises SettingsError, DataError, EnvironmentProblem or RefusedError.
    """
    found = find_files(name, revision, look=_read_known)
    config = _read_known(found.folder)
    told = _config_checksum(found.folder)
    refuse_pickle(str(found.folder), [file.name for file in found.folder.iterdir()])
    files = weight_files(found.folder)
    if not files:
        rule = f"must have its weights in model.safetensors, and {found.folder} has no such file"
        raise SettingsError(name, [f"{rule}; give another model"])
    digest = checksum(files)
    if found.sha256 is not None and digest != found.sha256:
        raise wrong_checksum(files[0], digest, found.sha256)
    tokenizer = _read_tokenizer(found.folder, config)
    _give_padding(found.folder, config, tokenizer)
    _refuse_unknown_tokens(found.folder, config, tokenizer)
    limit = _max_length(config, tokenizer)
    return Backbone(
        name, found.source, found.revision, config, tokenizer, found.folder, digest, limit, told
    )


def _read_known(folder: Path) -> PreTrainedConfig:
    """The config, of a family that Fleetune knows."""
    config = _read_config(folder)
    family_of(config)
    return config


def _give_padding(folder: Path, config: Any, tokenizer: Any) -> None:
    """A config that names no padding token takes the tokenizer's; DataError where positions count from one that nobody names."""
    if getattr(config, "pad_token_id", None) is not None:
        return
    if tokenizer.pad_token_id is None and config.model_type in OFFSET_POSITIONS:
        rule = "config.json must name its padding token (`pad_token_id`), since positions count from it, and does not"
        raise DataError(str(folder), [f"{rule}; put in the number that the model was trained with"])
    # Of the other families whatever stands there is masked.
    config.pad_token_id = tokenizer.pad_token_id or 0


def _refuse_unknown_tokens(folder: Path, config: Any, tokenizer: Any) -> None:
    """SettingsError where the tokenizer has tokens for which the model has no embedding."""
    rows = config.vocab_size
    extra = sorted(
        (number, token) for token, number in tokenizer.get_vocab().items() if number >= rows
    )
    if extra:
        named = ", ".join(repr(token) for _, token in extra[:3])
        rule = f"the tokenizer has {len(extra):,} more tokens than the {rows:,} rows of the embeddings, such as {named}"
        remedy = "use the model's own tokenizer, or resize_token_embeddings(len(tokenizer)) in transformers and save the model"
        raise SettingsError(str(folder), [f"{rule}; {remedy}"])


def config_only(name: str, revision: str | None = None) -> PreTrainedConfig:
    """The config of a backbone; of a hub id, nothing else is downloaded."""
    return _read_config(find_files(name, revision, config_alone=True).folder)


def _read_config(folder: Path) -> PreTrainedConfig:
    file = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        rule = f"must be a whole model, and {folder} holds an adapter"
        raise SettingsError("backbone", [f"{rule}; give the model that it was trained on"])
    if not file.is_file():
        rule = f"must have a config.json, and {folder} has none"
        raise SettingsError("backbone", [f"{rule}; check the name"])
    read = read_json(file)
    kind = read.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        if "auto_map" in read:
            raise RefusedError(
                f'{folder}: transformers does not know `model_type` "{kind}", and the code that '
                "the model brings along is never run; give a model that transformers knows"
            )
        rule = f'`model_type` must be one that transformers knows, but is "{kind}"'
        raise SettingsError(str(file), [f"{rule}; update transformers or give another model"])
    _refuse_kernels(file, read)
    _refuse_endless(file, read)
    with _reading(folder):
        config = _untyped.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    # How a model gives out what: logits by their name, and nothing beside them.
    config.return_dict = True
    config.output_attentions = config.output_hidden_states = False
    # By this key a config can name other weights than those that were checked.
    if getattr(config, "transformers_weights", None) is not None:
        config.transformers_weights = None
    return config


def _config_checksum(folder: Path) -> str:
    told = {k: v for k, v in read_json(folder / "config.json").items() if k not in _OF_HEAD}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _refuse_kernels(file: Path, held: Any) -> None:
    """RefusedError where a config, or one inside it, names attention code of the hub, which transformers would fetch and run."""
    if not isinstance(held, dict):
        return
    for key, value in held.items():
        if str(key).endswith("_implementation") and not re.fullmatch(r"\w{0,40}", str(value)):
            raise RefusedError(
                f"{file}: `{key}` names code from elsewhere ({str(value)[:80]!r}), and code that a model brings along is never "
                "run; take the key out"
            )
        _refuse_kernels(file, value)


def _refuse_endless(file: Path, read: dict[str, Any]) -> None:
    """DataError where a config asks for so many modules that making them, even empty, would not end."""
    counts = {k: v for k, v in read.items() if _MODULES.search(k) and isinstance(v, int)}
    problems = [
        f"`0 <= {key} <= {MOST_LAYERS}` must hold, but it is {f'{value:,}'[:30]}; the file is damaged, or is no encoder's"
        for key, value in counts.items()
        if not 0 <= value <= MOST_LAYERS
    ]
    if problems:
        raise DataError(str(file), problems)


def _read_tokenizer(folder: Path, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    with _reading(folder):
        tokenizer = _untyped.AutoTokenizer.from_pretrained(
            folder, config=config, use_fast=True, local_files_only=True, trust_remote_code=False
        )
    if not getattr(tokenizer, "is_fast", False):
        rule = "must have a fast tokenizer (tokenizer.json), and has none"
        raise SettingsError(str(folder), [f"{rule}; give another model"])
    # transformers makes an empty one (of T5 with a blank in it) where its files are missing: every word would be unknown.
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) < 2:
        rule = "must have the words of its tokenizer (tokenizer.json, or vocab.txt and the like), and has none"
        raise SettingsError(str(folder), [f"{rule}; put the model's own there"])
    return tokenizer


def _refuse_misfit(folder: Path, config: Any) -> None:
    """DataError where a config asks for far more than the weights hold: transformers would make it first, and compare then."""
    with _reading(folder):
        asked = sum(p.numel() for p in empty_model(config).parameters())
    # Nobody keeps a number in less than a byte, so this is generous.
    held = sum(file.stat().st_size for file in weight_files(folder))
    if asked > max(held, ALWAYS_MADE):
        rule = f"config.json asks for {asked:,} parameters, and the weights have {held:,} bytes"
        remedy = "take weights and config.json from one and the same model"
        raise DataError(str(folder), [f"{rule}; {remedy}"])


def _read_model(folder: Path, config: Any) -> tuple[Any, dict[str, Any]]:
    """The model, and what transformers noted on the way; leaves torch's generator as it was."""
    with drawing(torch_seed(0, "backbone", "new parameters")), _reading(folder):
        return _untyped.AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # for another task's head; all else is refused later
            output_loading_info=True,
        )


def _max_length(config: PreTrainedConfig, tokenizer: Any) -> int:
    # An export's tokenizer cuts where its training did, and says what its backbone could read. transformers writes "no limit" as
    # 1e30.
    told: Any = getattr(tokenizer, "init_kwargs", {}).get(READS)
    most = told if isinstance(told, int) and told > 0 else tokenizer.model_max_length
    limits = [int(most)] if most < 1e9 else []
    positions: Any = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        padding = 1 if config.model_type == "mpnet" else getattr(config, "pad_token_id", None) or 0
        limits.append(
            positions - padding - 1 if config.model_type in OFFSET_POSITIONS else positions
        )
    return min(limits, default=DEFAULT_MAX_LENGTH)


def _new_parameters(model: Any, info: dict[str, Any], folder: Path) -> frozenset[str]:
    """The parameters of no checkpoint; raises DataError if any is of the encoder, to be frozen."""
    resized: set[str] = {key for key, *_ in info["mismatched_keys"]}
    owned: set[str] = {name for name, _ in model.named_parameters()}
    new: set[str] = owned & ({*info["missing_keys"]} | resized)
    # Checkpoints of masked-language models have no pooler; it counts as part of the head.
    inside = f"{model.base_model_prefix}."
    lost = sorted(name for name in new if name.startswith(inside) and ".pooler." not in name)
    if lost:
        rule = f"must hold the whole encoder, but {len(lost)} parameters are missing or misshapen"
        remedy = "take weights and config.json from one and the same model"
        raise DataError(str(folder), [f"{rule}, such as {lost[0]}; {remedy}"])
    return frozenset(new)


@contextmanager
def quiet() -> Generator[None]:
    """Silence transformers' messages and progress bars for a while."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def _reading(folder: Path) -> Generator[None]:
    """Silence transformers for this one call, and turn what it raises into our errors."""
    try:
        with quiet():
            yield
    except ImportError as error:
        rule = f"{folder}: reading it needs a package that is not installed"
        raise EnvironmentProblem(f"{rule} ({_first_line(error)}); install it") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if "trust_remote_code" in str(error):
            rule = f"{folder}: needs code that it brings along, and that is never run"
            raise RefusedError(f"{rule}; give another model") from error
        if "Unrecognized configuration class" in str(error):
            rule = "must be of a family for which transformers has a classifier, and is not"
            raise SettingsError(str(folder), [f"{rule}; give another model"]) from error
        rule = f"must be readable by transformers, but is not: {_first_line(error)}"
        remedy = "download it again or give another model"
        raise DataError(str(folder), [f"{rule}; {remedy}"]) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
