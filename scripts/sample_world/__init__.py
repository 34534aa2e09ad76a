"""Procedural rooms and streets behind `scripts/render_sample.py`."""
