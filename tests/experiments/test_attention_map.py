"""The example of `zoo.capture`: a learned mirror."""

import importlib

import pytest

main = importlib.import_module("experiments.attention_map.__main__").main


@pytest.mark.slow
def test_attention_looks_into_the_mirror(tmp_path, capsys):
    picture = tmp_path / "map.png"
    results = main(["--steps", "200", "--output", str(picture)])
    assert results["accuracy"] > 0.99
    assert results["attention on the mirrored place"] > 0.7
    assert results["change of the output"] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"wrote {picture}" in capsys.readouterr().out
