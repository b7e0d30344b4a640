"""Scores: what a run is measured against, and the report of a run."""
