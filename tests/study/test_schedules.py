"""Schedules of the learning rate are tried when a study is read, on the steps that its trials will have."""

from __future__ import annotations

import numpy as np
import pytest

from fleetune.errors import SettingsError
from fleetune.study.rows import TaskRows
from tests.runs import Made
from tests.study.studies import prepared, text


def test_seeds_alone_decide_how_rows_are_divided(made: Made) -> None:
    """Thousands of settings of one search train on the same rows, which are held once."""
    rows: TaskRows = prepared(text(made)).tasks[0].rows
    assert rows.divisions(3)[0] is rows.divisions(3)[0]
    assert not np.array_equal(rows.divisions(3)[0][0].rows, rows.divisions(4)[0][0].rows)


@pytest.mark.parametrize("protocol", ["holdout", "cv", "paper"])
def test_the_steps_are_those_of_the_training_rows(made: Made, protocol: str) -> None:
    """One row a step: warm-up of all of them is refused for polynomial decay, of more for any; of one fewer it is not."""
    study = text(made, protocol=protocol, epochs=1)
    rows: TaskRows = prepared(study).tasks[0].rows
    fewest = min(len(train) for seed in (0, 1) for train, _ in rows.divisions(seed))
    assert protocol == "paper" or fewest < len(rows.table)
    study = study.replace("per_device_train_batch_size = 8", "per_device_train_batch_size = 1")

    def told(warmup: int, name: str) -> str:
        asked = f'warmup_steps = {warmup}\nlr_scheduler_type = "{name}"'
        with pytest.raises(SettingsError) as caught:
            prepared(study.replace("warmup_steps = 1", asked))
        return str(caught.value)

    assert "needs a step after the warm-up" in told(fewest, "polynomial")
    assert f"more than the {fewest} steps" in told(fewest + 1, "linear")
    prepared(study.replace("warmup_steps = 1", f"warmup_steps = {fewest - 1}"))


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ('lr_scheduler_type = "polynomial"\nlr_scheduler_kwargs = { lr_end = 2e-3 }', "smaller"),
        # Neither setting fails with the first value of the other.
        (
            'lr_scheduler_type = "polynomial"\nlr_scheduler_kwargs = [{ power = 2 }, { lr_end = 2e-3 }]\n'
            "learning_rate = [1e-2, 1e-3]",
            "smaller than initial lr",
        ),
        ('lr_scheduler_type = ["linear", "cosine_with_min_lr"]', "min_lr"),
    ],
)
def test_a_searched_setting_is_tried_where_it_fails_first(
    made: Made, training: str, told: str
) -> None:
    study = text(made).replace("[training]", f"[training]\n{training}")
    if "learning_rate =" in training:
        study = study.replace("learning_rate = [1e-3, 1e-2, 3e-2]\n", "")
        study = study.replace("learning_rate = { low = 1e-3, high = 1e-1 }\n", "")
    with pytest.raises(SettingsError, match=told):
        prepared(study)
