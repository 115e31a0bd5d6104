import pathlib
import re

import jax
import numpy as np
import pytest

import zoo.capture

README = pathlib.Path(zoo.capture.__file__).with_name("README.md")


@pytest.mark.slow
def test_code_and_links_of_the_readme_work():
    text = README.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    names, features = {}, None
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
        features = names["values"].get("features", features)
    x = np.array([0.5, -1.0, 2.0], np.float32)
    np.testing.assert_allclose(names["steered"], 8 * np.tanh(x) / np.cosh(x) ** 2, rtol=1e-5)
    assert names["ablated"] == 0
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), names["state"], names["new_state"])
    assert any(jax.tree.leaves(changed))
    assert features.shape == (1, 5, 8)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (README.parent / target).exists()
