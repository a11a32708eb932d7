"""Studies: many runs of pretraining over seeds, each with the same probes, and a table of what differs."""

from .plan import Study, read_study
from .results import Table, collect
from .running import run_study

__all__ = ['Study', 'Table', 'collect', 'read_study', 'run_study']
