"""The folder of real samples that may lie beside the checkout; tests that want it skip, visibly, without it."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_samples = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the folder of real samples beside the checkout")
