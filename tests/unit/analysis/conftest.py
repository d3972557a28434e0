"""Request rows with just the columns that the analysis reads."""

import pandas as pd
import pytest


@pytest.fixture
def rows():
    """Build a frame of requests from a few columns; the others have one value throughout."""

    def make(**columns):
        frame = pd.DataFrame(columns)
        defaults = {
            "status": "ok", "row": 0, "process": 0, "block": 0, "repeat": 0, "batch_size": 1,
            "prefill_s": 0.0, "ttft_s": 0.0, "prompt_id": "p", "target": "pico", "target_sha": "f",
            "dtype": "float32", "device": "cpu", "threads": 1, "temperature": 0.0, "max_new_tokens": 8,
            "prompts_sha": "b",
        }  # fmt: skip
        for name, value in defaults.items():
            if name not in frame:
                frame[name] = value
        return frame

    return make
