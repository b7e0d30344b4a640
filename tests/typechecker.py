"""The type checker that watches every annotated function of the package while tests run."""

from beartype import BeartypeConf, beartype

# An int where a float is annotated is fine, as everywhere in Python.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
