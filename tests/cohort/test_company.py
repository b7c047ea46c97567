"""Who may share a pass: said of a method before it trains, and seen in what its trial owns."""

from __future__ import annotations

import pytest

from fleetune.backbone.families import FAMILIES
from fleetune.cohort.company import takes_company, why_alone
from fleetune.cohort.engine import Engine
from fleetune.methods.base import Method
from fleetune.methods.table import METHODS
from tests.cohort.test_isolation import HEAD
from tests.tiny import tiny_model

WITHOUT_BIASES = ("modernbert", "eurobert")


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "mpnet", "deberta-v2"])
def test_a_method_and_what_it_owns_say_the_same(family: str) -> None:
    """Training asks the method, the prediction of saved models what they own: both must
    judge alike."""
    engine = Engine(tiny_model(family), HEAD)
    weights = {f"{site.name}.weight" for site in engine.sites.part("encoder")}
    row = FAMILIES[family]
    said: dict[str, bool] = {}
    for name, cls in METHODS.items():
        if name == "bitfit" and family in WITHOUT_BIASES:
            continue
        method: Method = cls()
        said[name] = why_alone(method, row) is None
        assert takes_company(engine.owned(method, 0), weights, row) == said[name], name
    assert any(said.values()) == (family != "deberta-v2")
    assert not said["full"]
