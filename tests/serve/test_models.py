"""Models served together say what each says alone, and hold their backbone once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fleetune.errors import DataError, RefusedError, SettingsError
from fleetune.serve import predictor
from fleetune.serve.models import Answer, Asked, Models, _batch_sizes, named
from fleetune.serve.predictor import Predictor
from tests import runs
from tests.backbone.hub import save_tiny
from tests.runs import METHODS, Made, settings, train

TEXTS = runs.texts(40, seed=21)
OTHERS = runs.texts(40, seed=22)


@pytest.fixture(scope="module")
def models(places: dict[str, Path]) -> Models:
    return Models(places, dtype="float64")


def questions(models: Models) -> list[Asked]:
    """Some of every model, of one text and of many, in turns."""
    found: list[Asked] = []
    for i, count in enumerate([1, 7, 3]):
        for name in models.names:
            at = slice(i, i + count)
            second = OTHERS[at] if models[name].pairs else None
            found.append(Asked(name, TEXTS[at], second))
    return found


def test_together_is_alone(models: Models, places: dict[str, Path]) -> None:
    asked = questions(models)
    for one, answer in zip(asked, models.answer(asked), strict=True):
        alone = Predictor(places[one.model], dtype="float64").predict(one.first, one.second)
        assert isinstance(answer, Answer) and len(answer.predictions) == len(alone)
        for found, expected in zip(answer.predictions, alone, strict=True):
            if not expected.probabilities:
                assert float(found.label) == pytest.approx(float(expected.label), rel=1e-5)
                continue
            assert found.label == expected.label
            assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-9)


def test_a_backbone_is_held_once(models: Models) -> None:
    """Also by models with heads of other shapes."""
    assert models.backbones == 1
    two = {name: models[name] for name in METHODS}
    assert len({id(one.engine) for one in two.values()}) == 1
    engines = {id(models[name].engine): models[name].engine for name in models.names}
    # two labels, three, one target
    assert len(engines) == 3
    places = [
        {n: p.data_ptr() for n, p in engine.backbone.model.named_parameters()}
        for engine in engines.values()
    ]
    heads = {n for n in places[0] if n.startswith("classifier")}
    assert heads
    for name in places[0].keys() - heads:
        assert len({place[name] for place in places}) == 1, name


def test_a_pass_holds_no_more_texts_of_all_models_than_of_one(models: Models) -> None:
    names = ["lora", "bitfit", "head"]
    rows = [models[name].rows(TEXTS) for name in names]
    sizes = _batch_sizes(rows, 10**6)
    assert sum(map(len, rows)) > predictor.BATCH >= sum(sizes) > predictor.BATCH / 2


def test_a_model_computes_in_the_dtype_of_its_training(made: Made, tmp_path: Path) -> None:
    given = settings(made.folder, made.backbone, ["head"], seeds=[0], max_steps=1)
    train(tmp_path / "run", replace(given, dtype="float64"))
    found = {
        told: Predictor(tmp_path / "run", dtype=told).opened.compute for told in (None, "float32")
    }
    assert found == {None: (torch.float64, "cpu"), "float32": (torch.float32, "cpu")}


def test_loading_one_more_reads_no_backbone(
    models: Models, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "open_saved", None)
    beside = [models[name] for name in models.names]
    one = Predictor(places["bitfit"], dtype="float64", beside=beside)
    assert one.engine is models["bitfit"].engine


def test_another_backbone_or_dtype_shares_nothing(
    models: Models, places: dict[str, Path], made: Made, tmp_path: Path
) -> None:
    other = save_tiny(tmp_path / "other", initializer_range=0.05)
    train(tmp_path / "run", settings(made.folder, other, ["lora"], seeds=[0], max_steps=1))
    beside = [models["lora"]]
    elsewhere = Predictor(tmp_path / "run", dtype="float64", beside=beside)
    narrower = Predictor(places["lora"], dtype="float32", beside=beside)
    mine = {p.data_ptr() for p in models["lora"].engine.backbone.model.parameters()}
    for one in (elsewhere, narrower):
        theirs = {p.data_ptr() for p in one.engine.backbone.model.parameters()}
        assert not mine & theirs
    alone = Predictor(tmp_path / "run", dtype="float64").logits(TEXTS)
    np.testing.assert_array_equal(elsewhere.logits(TEXTS), alone)


def test_a_model_without_numbers_spoils_no_other(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Models({n: places[n] for n in ("lora", "bitfit")}, dtype="float64")
    before = models.answer([Asked("lora", TEXTS[:3])])
    for flat in models["bitfit"].owned.flats:
        flat.fill_(torch.nan)
    asked = [Asked("lora", TEXTS[:3]), Asked("bitfit", TEXTS[:2])]
    mine, hurt = models.answer(asked)
    assert isinstance(hurt, DataError) and "no number" in str(hurt)
    assert isinstance(mine, Answer)
    for found, expected in zip(mine.predictions, before[0].predictions, strict=True):
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-9)


def test_cut_texts_are_counted_for_those_who_sent_them(models: Models) -> None:
    long = " ".join(["w1"] * 2000)
    asked = [Asked("lora", [long, "w1", long]), Asked("lora", ["w2"]), Asked("head", [long])]
    assert [answer.truncated for answer in models.answer(asked)] == [2, 0, 1]


def test_texts_leave_no_trace(places: dict[str, Path]) -> None:
    """A head's trial enters above the encoder, whose values of a table would be kept for good."""
    one = Predictor(places["head"])
    one.predict(TEXTS)
    assert one.engine.known._found == {}


def test_equal_weights_with_unlike_configs_are_two_backbones(made: Made, tmp_path: Path) -> None:
    """Each model answers as it does alone, through its own."""
    import json
    import shutil

    alone: dict[str, np.ndarray] = {}
    for name, eps in (("a", 1e-12), ("b", 0.1)):
        backbone = Path(shutil.copytree(made.backbone, tmp_path / f"backbone-{name}"))
        told = json.loads((backbone / "config.json").read_text())
        (backbone / "config.json").write_text(json.dumps({**told, "layer_norm_eps": eps}))
        train(tmp_path / name, settings(made.folder, backbone, ["lora"], seeds=[0]))
        alone[name] = Predictor(tmp_path / name / "trials/lora-s0").logits(["w1 w2 w3"])
    models = Models({name: tmp_path / name / "trials/lora-s0" for name in alone})
    assert models.backbones == 2
    for name, expected in alone.items():
        assert np.array_equal(models[name].logits(["w1 w2 w3"]), expected)
    assert not np.array_equal(alone["a"], alone["b"])


def test_a_changed_backbone_is_refused_beside_others_too(
    models: Models, places: dict[str, Path], tmp_path: Path
) -> None:
    import json
    import shutil

    from fleetune.artifact import layout

    shutil.copytree(places["lora"], tmp_path / "copy")
    record = json.loads((tmp_path / "copy/fleetune.json").read_text())
    record["backbone_checksum"] = "0" * 64
    (tmp_path / "copy/fleetune.json").write_text(json.dumps(layout.sealed(record)))
    with pytest.raises(RefusedError, match="the weights found now are"):
        Predictor(tmp_path / "copy", dtype="float64", beside=[models["lora"]])


# -- names ----------------------------------------------------------------------------------------


def test_models_are_called_as_their_folders_or_as_said(tmp_path: Path) -> None:
    odd = tmp_path / "a=b"
    odd.mkdir()
    found = named([f"{tmp_path}/x/", "tone=runs/a", f"c={odd}"])
    assert found == {"x": tmp_path / "x", "tone": Path("runs/a"), "c": odd}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["runs/a", "other/a"], "other/a: runs/a has the name a too; give one NAME=FOLDER"),
        (["my model=runs/a"], "the name 'my model' must be letters"),
        (["=runs/a"], "the name '' must be letters"),
        (["runs/über"], "give NAME=FOLDER"),
    ],
)
def test_names_that_are_none(given: list[str], says: str) -> None:
    with pytest.raises(SettingsError) as refused:
        named(given)
    assert says in str(refused.value)
