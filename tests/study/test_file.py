"""The study file: its forms, everything that is wrong said at once, overrides, and the schema for editors."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fleetune.errors import SettingsError
from fleetune.study.file import parse_study, read_study
from fleetune.study.forms import Choice, Range, Rule
from fleetune.study.schema import schema
from fleetune.study.settings import as_toml
from fleetune.study.space import arms_of
from tests.runs import run_cli

GOOD = """
[data]
task = "rte"

[training]
num_train_epochs = 25
weight_decay = 0.01

[[methods]]
method = "bitfit"
learning_rate = [5e-4, 1e-3, 2e-3]

[[methods]]
method = "lora"
learning_rate = { low = 1e-4, high = 2e-3 }
r = [1, 2, 4, 8, 16]
lora_alpha = "4r"
target_modules = ["query", "value"]

[search]
trials_per_method = 12
"""


def arms(text: str):
    settings = parse_study(tomllib.loads(text))
    return {a.name: a for a in arms_of(settings.methods, settings.training)}


def problems(text: str) -> list[str]:
    with pytest.raises(SettingsError) as error:
        parse_study(tomllib.loads(text), "study.toml")
    assert error.value.exit_code == 2
    return list(error.value.problems)


def test_lists_ranges_and_rules() -> None:
    found = arms(GOOD)
    assert found["bitfit"].searched == {"learning_rate": Choice((5e-4, 1e-3, 2e-3))}
    lora = found["lora"]
    assert lora.searched["learning_rate"] == Range(1e-4, 2e-3, log=True, whole=False)
    assert lora.searched["r"] == Choice((1, 2, 4, 8, 16))
    assert lora.rules == {"lora_alpha": Rule(4.0, "r")}
    assert lora.fixed["target_modules"] == ["query", "value"]  # a list of names is one value
    own, training = lora.values({"learning_rate": 3e-4, "r": 16})
    assert (own["r"], own["lora_alpha"]) == (16, 64.0)
    assert training == {"num_train_epochs": 25, "weight_decay": 0.01, "learning_rate": 3e-4}


@pytest.mark.parametrize(
    ("written", "space"),
    [
        ('["default", "all-linear"]', Choice(("default", "all-linear"))),
        ('[["query"], ["query", "value"]]', Choice((["query"], ["query", "value"]))),
        ('["query,key", "value"]', Choice(("query,key", "value"))),
    ],
)
def test_a_list_of_lists_is_searched(written: str, space: Choice) -> None:
    text = GOOD.replace('["query", "value"]', written)
    assert arms(text)["lora"].searched["target_modules"] == space


def test_a_list_of_layers_is_one_value() -> None:
    text = GOOD.replace('["query", "value"]', '"default"\nlayers_to_transform = [4, 5]')
    assert arms(text)["lora"].fixed["layers_to_transform"] == [4, 5]
    text = GOOD.replace('["query", "value"]', '"default"\nlayers_to_transform = [[4, 5], [5]]')
    assert arms(text)["lora"].searched["layers_to_transform"] == Choice(([4, 5], [5]))


def test_steps_make_a_list_of_a_range() -> None:
    text = GOOD.replace("high = 2e-3 }", "high = 1e-2, steps = 3 }")
    assert arms(text)["lora"].searched["learning_rate"] == Choice((1e-4, 1e-3, 1e-2))
    text = GOOD.replace("weight_decay = 0.01", "weight_decay = { low = 0, high = 1, steps = 5 }")
    assert arms(text)["bitfit"].searched["weight_decay"].values == (0.0, 0.25, 0.5, 0.75, 1.0)


def test_a_rank_study_has_an_arm_for_each_rank() -> None:
    found = arms(GOOD.replace("lora_alpha", "rank_study = true\nlora_alpha"))
    assert list(found) == ["bitfit", "lora-r1", "lora-r2", "lora-r4", "lora-r8", "lora-r16"]
    assert set(found["lora-r4"].searched) == {"learning_rate"} and found["lora-r4"].rank == 4
    assert found["lora-r4"].values({"learning_rate": 1e-3})[0]["lora_alpha"] == 16


def test_ranks_have_one_reference() -> None:
    """Else a pair of them is judged in two families, and could get two verdicts."""
    ranks = GOOD.replace("lora_alpha", "rank_study = true\nreference_rank = 4\nlora_alpha")

    def confirmed(name: str) -> str:
        return ranks.replace("[search]", f'[confirm]\nreference = "{name}"\n[search]')

    (told,) = problems(confirmed("lora-r1"))
    assert told.startswith("confirm.reference: lora-r1 and reference_rank = 4 must be the same")
    for name in ("lora-r4", "bitfit"):
        assert parse_study(tomllib.loads(confirmed(name))).reference == name
    # What a run was begun with stays as it is.
    assert parse_study(tomllib.loads(confirmed("lora-r1")), begun=True).reference == "lora-r1"
    assert parse_study(tomllib.loads(ranks)).reference == "bitfit"
    alone = ranks.replace(
        ranks[
            ranks.index('[[methods]]\nmethod = "bitfit"') : ranks.index(
                '[[methods]]\nmethod = "lora"'
            )
        ],
        "",
    )
    assert parse_study(tomllib.loads(alone)).reference == "lora-r4"


NAMED = """
[data]
task = "rte"

[[methods]]
method = "bitfit"
name = "attention"
terms = ["query", "key", "value"]

[[methods]]
method = "bitfit"

[[methods]]
method = "lora"
r = [1, 2]
rank_study = true

[[methods]]
method = "lora"
name = "wide"
target_modules = "all-linear"
r = [1, 2]
rank_study = true

[[methods]]
method = "lora"

[confirm]
reference = "wide-r2"
"""


def test_methods_have_names_of_their_own() -> None:
    """Those without one are numbered among themselves alone."""
    found = list(arms(NAMED))
    assert found == [
        *("attention", "bitfit", "lora-1-r1", "lora-1-r2", "wide-r1", "wide-r2", "lora-2"),
    ]


def test_names_are_kept_with_the_settings() -> None:
    settings = parse_study(tomllib.loads(NAMED))
    again = parse_study(as_toml(settings))
    assert [m.name for m in again.methods] == ["attention", None, None, "wide", None]
    assert as_toml(again) == as_toml(settings)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ('"bitfit"', 'methods: "bitfit" stands for more than one method; give each a `name` of its own'),
        ('"BitFit"', '"BitFit" stands for more than one method'),
        ('"lora"', '"lora" is another method than bitfit'),
        ('"a/b"', "methods.1.name: must be a letter and at most 63 more of letters, digits, `_` and `-`, but got 'a/b'"),
        ('"1"', "but got '1'"),
        ('""', "but got ''"),
        ("3", "but got 3"),
        ('["query"]', "but got ['query']"),
    ],
)  # fmt: skip
def test_names_that_cannot_be(name: str, said: str) -> None:
    found = problems(NAMED.replace('"attention"', name))
    assert any(said in problem for problem in found)


def test_a_name_may_be_that_of_its_own_method() -> None:
    text = NAMED.replace('"attention"', '"bitfit"').replace(
        'method = "bitfit"\n\n', 'method = "head"\n\n'
    )
    assert list(arms(text))[:2] == ["bitfit", "head"]


BAD = """
[data]
tsk = "rte"
protocol = "holdot"

[backbone]
dtyp = "float32"

[training]
lr = 3
num_train_epochs = -1

[[methods]]
method = "bitfitt"

[[methods]]
method = "lora"
rank = 3
r = [1, 0]
lora_alpha = "4rank"
learning_rate = { low = 2e-3, high = 1e-3 }
warmup_steps = { lo = 1 }

[search]
trials_per_method = 0
sampler = "tpee"

[confirm]
seeds = "ten"

[sarch]
"""


def test_everything_that_is_wrong_is_said_at_once() -> None:
    found = problems(BAD)
    for said in (
        'data.tsk: unknown key, did you mean "task"?',
        'data.protocol: "holdot" is not known, did you mean "holdout"?',
        'backbone.dtyp: unknown key, did you mean "dtype"?',
        "training.lr: unknown setting; use learning_rate",
        "training.num_train_epochs: input should be greater than 0, but got -1",
        'methods.1.method: there is no "bitfitt", did you mean "bitfit"?',
        'methods.lora.rank: unknown setting of lora, did you mean "r"?',
        "methods.lora.r: input should be greater than or equal to 1, but got 0",
        "methods.lora.learning_rate: `0 < low < high` must hold, but got low=0.002, high=0.001",
        'methods.lora.warmup_steps: a range knows no "lo", did you mean "low"?',
        "search.trials_per_method: input should be greater than or equal to 1, but got 0",
        'search.sampler: "tpee" is not known, did you mean "tpe"?',
        "confirm.seeds: input should be a valid integer, but got 'ten'",
        'sarch: unknown key, did you mean "search"?',
    ):
        assert said in found
    (rule,) = (p for p in found if "4rank" in p)
    assert rule.endswith('did you mean "r"?')
    assert len(found) == 15


def test_an_unknown_key_may_be_called_like_a_type() -> None:
    found = problems('str = 1\n[data]\ntask = "rte"\nint = 2\n[[methods]]\nmethod = "head"\n')
    assert [p.partition(",")[0] for p in found] == [
        "data.int: unknown key; choose from data_dir",
        "str: unknown key; choose from backbone",
    ]


def test_what_is_wrong_in_one_table_hides_nothing_in_another() -> None:
    """Not even where no method is known, or where half of a table is wrong."""
    found = problems("""
[data]
task = "rtee"
protocol = "houldout"
[training]
num_train_epoch = 2
[[methods]]
method = "lroa"
[search]
sampler = "tpee"
""")
    assert sorted(p.partition(":")[0] for p in found) == [
        "data.protocol",
        "data.task",
        "methods.1.method",
        "search.sampler",
        "training.num_train_epoch",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("[search]\ntrials_per_method = 12", ""), "search: missing, but there is something to search"),
        (("[search]", '[confirm]\nreference = "loora"\n[search]'), 'did you mean "lora"?'),
        (("[search]", "[confirm]\nfirst_seed = 5\n[search]"), "confirm.first_seed: must be fresh"),
        (("[search]", '[search]\nsampler = "grid"'), "methods.lora.learning_rate: a grid needs a list"),
        (('method = "bitfit"', 'method = "bitfit"\nnum_train_epochs = [3, 5]'), "budgets are equal in epochs"),
        (('method = "bitfit"', 'method = "bitfit"\nnum_train_epochs = 3'), "must be the same for every searched"),
        (
            (
                "num_train_epochs = 25",
                "num_train_epochs = 1\nmax_steps = 12\n[[methods]]\nmethod = 'head'\nlearning_rate = [1e-3, 2e-3]\n"
                "num_train_epochs = 11\nmax_steps = 2",
            ),
            "must be the same for every searched",
        ),
        (('method = "bitfit"', 'method = "bitfit"\ndropout = "2learning_rate"\nmax_grad_norm = "0.5dropout"'), "a rule itself"),
        (('method = "bitfit"', 'method = "bitfit"\nmax_grad_norm = "0.5dropout"'), "`dropout`, which has no number by default"),
        (('method = "bitfit"', 'method = "bitfit"\nrank_study = true'), "bitfit has no rank"),
        (("r = [1, 2, 4, 8, 16]", "r = 4\nrank_study = true"), "`r` must be a list of ranks"),
        (("r = [1, 2, 4, 8, 16]", "r = [1, 2]\nrank_study = true\nreference_rank = 3"), "one of the ranks 1, 2, but got 3"),
        (("r = [1, 2, 4, 8, 16]", "r = [1.0, 2.0]\nrank_study = true"), "ranks must be whole numbers, but got [1.0, 2.0]"),
        (("r = [1, 2, 4, 8, 16]", "r = [1, 2]\nrank_study = true\nreference_rank = true"), "ranks 1, 2, but got True"),
        (("r = [1, 2, 4, 8, 16]", "r = [1, 1.0]"), "must differ"),
        (("[5e-4, 1e-3, 2e-3]", "[]"), "an empty list leaves nothing"),
        (("[5e-4, 1e-3, 2e-3]", "[1e-3, 1e-3]"), "must differ"),
        (('task = "rte"', 'task = "rte"\nfile = "a.csv"'), "and not both"),
        (('task = "rte"', 'task = ["rte", "rte"]'), 'data: "rte" stands twice'),
        (("weight_decay = 0.01", 'metric_for_best_model = ["f1", "accuracy"]'), "methods are compared by it"),
        (('method = "lora"', 'method = "lora"\nnum_train_epochs = "2r"'), "cannot follow `r`, which is searched"),
        (("weight_decay = 0.01", "max_steps = 60\nper_device_train_batch_size = [8, 16]"),
         "methods.bitfit.per_device_train_batch_size: cannot be searched where max_steps=60 ends a training"),
        (('target_modules', 'max_steps = 60\ngradient_accumulation_steps = "r"\ntarget_modules'),
         "methods.lora.gradient_accumulation_steps: cannot follow `r`, which is searched where max_steps=60"),
        (('method = "bitfit"', 'method = "bitfit"\nmax_steps = 60\n'), "must be the same for every searched"),
        (('[[methods]]\nmethod = "bitfit"', 'max_steps = 60\n[[methods]]\nmethod = "bitfit"\nper_device_train_batch_size = 8'),
         "per_device_train_batch_size must be the same for every searched method where max_steps ends a training"),
        (('method = "bitfit"', 'method = "bitfit"\nmetric_for_best_model = "loss"'),
         "but got loss, lower is better, for bitfit, the main metric for lora"),
        (('method = "bitfit"', 'method = "bitfit"\ngreater_is_better = false'), "greater_is_better must be the same for every"),
        (("weight_decay = 0.01", 'metric_for_best_model = "eval_loss"\nlabel_smoothing_factor = [0.0, 0.1]'),
         "methods.bitfit.label_smoothing_factor: cannot be searched where"),
        (("weight_decay = 0.01", 'metric_for_best_model = "loss"\n[[methods]]\nmethod = "head"\nlabel_smoothing_factor = 0.1'),
         "label_smoothing_factor must be the same for every method where"),
    ],
)  # fmt: skip
def test_rules_between_tables(change: tuple[str, str], said: str) -> None:
    assert change[0] in GOOD
    assert any(said in problem for problem in problems(GOOD.replace(*change)))


@pytest.mark.parametrize(
    "written",
    [
        # Steps of batches of all sizes are the same share of an epoch where epochs end the training.
        "per_device_train_batch_size = [8, 16]",
        'metric_for_best_model = "accuracy"\nlabel_smoothing_factor = [0.0, 0.1]',
        'metric_for_best_model = "loss"\nlabel_smoothing_factor = 0.1',
    ],
)
def test_what_keeps_budgets_and_scores_comparable_may_be_searched(written: str) -> None:
    parse_study(tomllib.loads(GOOD.replace("weight_decay = 0.01", written)))


def test_a_study_that_has_begun_is_not_held_against_later_rules() -> None:
    """An earlier version took it; it would end as neither done nor changed."""
    text = GOOD.replace(
        "weight_decay = 0.01", "max_steps = 60\nper_device_train_batch_size = [8, 16]"
    )
    assert problems(text)
    settings = parse_study(tomllib.loads(text), begun=True)
    assert settings.training["per_device_train_batch_size"] == [8, 16]


def test_a_grid_that_is_too_large_is_refused() -> None:
    text = GOOD.replace("high = 2e-3 }", "high = 1e-2, steps = 3 }")
    (said,) = problems(text.replace("[search]", '[search]\nsampler = "grid"'))
    assert "the grid of lora has 15 settings, but got 12" in said


def test_several_tasks_in_one_file() -> None:
    settings = parse_study(tomllib.loads(GOOD.replace('"rte"', '["rte", "sst2"]')))
    assert [d.task for d in settings.all_data] == ["rte", "sst2"]
    text = GOOD.replace("[data]", "[[data]]\ntask = 'sst2'\n[[data]]")
    assert [d.task for d in parse_study(tomllib.loads(text)).all_data] == ["sst2", "rte"]
    (said,) = problems(text.replace("task = 'sst2'", "task = 'sst2'\nprotocol = 'cv'"))
    assert "one protocol for all tasks" in said


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(GOOD)
    given = ("training.num_train_epochs=3", "methods.lora.r=[2, 4]", "methods.1.learning_rate=1e-3",
             "search.sampler=random", "confirm.seeds=5")  # fmt: skip
    settings = read_study(path, given)
    found = {a.name: a for a in arms_of(settings.methods, settings.training)}
    assert found["lora"].searched["r"] == Choice((2, 4))
    assert found["bitfit"].searched == {} and found["bitfit"].fixed["num_train_epochs"] == 3
    assert settings.search.sampler == "random" and len(settings.seeds) == 5
    path.write_text(NAMED)
    (named, *_) = read_study(path, ["methods.attention.weight_decay=0.5"]).methods
    assert named.training == {"weight_decay": 0.5}
    for pair, said in (
        ("r", "form"),
        ("methods.lra.r=2", "none of attention, bitfit, lora, wide, lora"),
        ("data.task.x=1", "is a value"),
    ):
        with pytest.raises(SettingsError, match=said):
            read_study(path, [pair])


def test_what_is_no_toml_is_said_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text("[data\n")
    with pytest.raises(SettingsError, match=r"is not TOML.*line 1"):
        read_study(path)
    with pytest.raises(SettingsError, match="this is a folder"):
        read_study(tmp_path)
    told = run_cli("study", tmp_path / "studi.toml", "--dry-run")
    assert told.code == 2 and told.out == ""
    assert 'there is no such file, did you mean "study.toml"?' in told.err


def test_the_schema_knows_every_method_and_its_settings() -> None:
    found = schema()
    methods = found["properties"]["methods"]["items"]["oneOf"]
    lora = next(m for m in methods if m["properties"]["method"] == {"const": "lora"})
    assert {"name", "r", "lora_alpha", "learning_rate", "rank_study"} <= set(lora["properties"])
    assert lora["additionalProperties"] is False
    assert set(found["properties"]) == {
        "data",
        "backbone",
        "training",
        "methods",
        "search",
        "confirm",
        "report_to",
    }
    printed = run_cli("study", "--schema")
    assert printed.code == 0 and '"$schema"' in printed.out


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").glob("*.toml")))
def test_recipes_are_studies(path: Path) -> None:
    settings = read_study(path)
    assert arms_of(settings.methods, settings.training)
