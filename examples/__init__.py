"""Labeled demo data."""
