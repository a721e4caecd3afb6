"""The study of cross-layer transcoders, a few steps of it."""

import json

import pytest

from experiments.cross_layer import main


@pytest.mark.slow
def test_all_roles_are_measured_at_the_same_number_of_active_features(tmp_path, capsys):
    main(smoke=True, root=tmp_path)
    (summary,) = (json.loads(path.read_text()) for path in tmp_path.glob("cross-layer-*/summary.json"))
    roles = {row["role"]: row for row in summary["coders"]}
    assert abs(roles["per layer, as many parameters"]["parameters"] / roles["cross-layer"]["parameters"] - 1) < 0.02
    assert all(row["total_l0"] <= 16 + 1e-9 for row in roles.values()) and len(roles["cross-layer"]["fvu"]) == 4
    assert set(summary["sharing"]) == {"crosscoder", "crosscoder, random"} and "cross-layer" in capsys.readouterr().out
