"""How options look on the command line: the annotations that tyro reads. Torch-free."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

Flag = Annotated[bool, FlagCreatePairsOff, arg(help_behavior_hint="")]
Text = Annotated[str, arg(help_behavior_hint="")]  # empty means not given
Count = Annotated[int | None, arg(metavar="INT", help_behavior_hint="")]
