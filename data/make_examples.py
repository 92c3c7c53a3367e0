"""Make data/example-baseline.h5 and data/example-headwise.h5: three prompts, equal seeds, the bundled models.

python data/make_examples.py        about a minute on two CPU cores
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
DATA = Path(__file__).resolve().parent
sys.path.insert(0, str(DATA.parent))

from sd35h5.capturing.run_job import run
from sd35h5.planning.job import make_job
from sd35h5.planning.options import CaptureConfig, Model, Output, Prompts

EXAMPLES = {"baseline": "transformer", "headwise": "transformer_headwise"}
PROMPTS = 3


def main() -> None:
    """Capture both, replacing what is there."""
    os.chdir(DATA.parent)  # the files tell a path below the checkout, not this machine's
    for name, transformer in EXAMPLES.items():
        job = make_job(
            CaptureConfig(
                model=Model(model_id="data/models/emoji", transformer=transformer),
                prompts=Prompts(prompts_json="data/prompts/demo.json", limit=PROMPTS),
                output=Output(out=f"data/example-{name}.h5", overwrite=True),
            )
        )
        store = run(job)
        print(f"{store}: {store.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
