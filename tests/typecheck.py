"""The checker of the import hook: beartype, with an int accepted where a float is asked for, as mypy and PEP 484 have it."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

typecheck = beartype(conf=BeartypeConf(is_pep484_tower=True))
