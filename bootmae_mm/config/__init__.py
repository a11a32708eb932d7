"""Configs: reading and combining files."""

from .loading import bound_names, check_bound, late_binding, load_config, value_at

__all__ = ['bound_names', 'check_bound', 'late_binding', 'load_config', 'value_at']
