"""Real stories and prompts, which stand beside the project where its tests have no network."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"
STORIES = SHARED / "data" / "tinystories"  # where it is, all of SHARED is, and nothing skips


def beside(*names):
    """The path of a file or folder there; a test that wants it skips where nothing is there."""
    if not STORIES.exists():
        pytest.skip(f"needs a network: {names[-1]} is not beside the project")
    return SHARED.joinpath(*names)
