"""ONNX Runtime: what is missing and what is no model is told."""

from __future__ import annotations

import pytest

from dcmt.onnx.runtime import open_session, require
from knee.errors import UserError


def test_a_missing_package_is_named_with_the_extra() -> None:
    require("numpy")
    with pytest.raises(UserError, match=r"no_such_package not installed; install: pip install 'dcmt-knee\[onnx\]'"):
        require("numpy", "no_such_package")


def test_content_that_is_no_model_is_refused() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match="not a model that ONNX Runtime can run"):
        open_session(b"no model")
