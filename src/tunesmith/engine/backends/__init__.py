"""Inference engines, one a module; `tunesmith.engine.BACKENDS` is their table."""
