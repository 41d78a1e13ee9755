"""Helpers that know nothing about faces: errors, image files, configuration, checkpoints, logging."""
