"""torch's huge pages are asked for before torch is there, and a person's own setting stays."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lora_ext.cli import HUGE_PAGES

SHOW = f"""
import os, sys
from lora_ext.cli import main
assert "torch" not in sys.modules
main(["lint", "--help"])
print(os.environ["{HUGE_PAGES}"])
"""


@pytest.mark.parametrize(("given", "found"), [(None, "1"), ("0", "0")])
def test_the_command_line_asks_for_huge_pages(given: str | None, found: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != HUGE_PAGES}
    environment.update({HUGE_PAGES: given} if given else {})
    done = subprocess.run([sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == found
